//! The CUDA back end: kernels compiled by nvcc when this program was built, run by the driver that is
//! loaded when it starts.

pub mod attention;
pub mod batch;
pub mod batched;
mod cache;
pub mod decode;
pub mod device;
mod draw;
mod driver;
mod footprint;
mod forward;
pub mod gemm;
pub mod graph;
mod images;
pub mod memory;
pub mod rows;
#[cfg(test)]
mod tests;
pub mod tiles;
mod upload;
pub mod weights;

pub use device::{Device, Grid, Kernel};
pub use driver::{is_there, names};
pub use footprint::footprint;
pub use forward::{Cuda, work_bytes};
pub use graph::{Event, Graph};
pub use memory::{Buffer, Pinned, Plain};
pub use weights::check_shape;

use super::{Backend, Limits};
use crate::weights::Model;
use anyhow::Result;
use indicatif::ProgressBar;
use std::sync::Arc;

/// Opens the back end on `device`.
pub(super) fn open(
    device: Arc<Device>,
    model: Arc<Model>,
    limits: Limits,
    progress: &ProgressBar,
) -> Result<Box<dyn Backend>> {
    Ok(Box::new(Cuda::new(device, model, limits, progress)?))
}
