//! The CUDA back end: kernels compiled by nvcc when this program was built, run by the driver that is
//! loaded when it starts.

pub mod device;
mod driver;
pub mod memory;
pub mod tiles;
pub mod weights;

pub use device::{Device, Graph, Grid, Kernel};
pub use memory::{Buffer, Pinned, Plain};
