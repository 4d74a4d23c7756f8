//! The CUDA back end: kernels compiled by nvcc when this program was built, run by the driver that is
//! loaded when it starts.

pub mod attention;
pub mod batch;
pub mod device;
mod driver;
pub mod graph;
mod images;
pub mod memory;
pub mod tiles;
mod upload;
pub mod weights;

pub use device::{Device, Grid, Kernel};
pub use graph::{Event, Graph};
pub use memory::{Buffer, Pinned, Plain};
