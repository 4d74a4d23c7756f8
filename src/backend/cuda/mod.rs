//! The CUDA back end: kernels compiled by nvcc when this program was built, run by the driver that is
//! loaded when it starts.

pub mod attention;
pub mod batch;
pub mod batched;
pub mod device;
mod driver;
pub mod gemm;
pub mod graph;
mod images;
pub mod memory;
pub mod plan;
pub mod rows;
#[cfg(test)]
mod tests;
pub mod tiles;
mod upload;
pub mod weights;

pub use device::{Device, Grid, Kernel};
pub use driver::is_there;
pub use graph::{Event, Graph};
pub use memory::{Buffer, Pinned, Plain};
pub use plan::Plan;
pub use weights::check_shape;

use super::{Backend, Limits};
use crate::{config::Config, weights::Model};
use anyhow::{Result, bail};
use indicatif::ProgressBar;
use std::sync::Arc;

/// Opens the back end on `device`.
pub(super) fn open(
    device: Arc<Device>,
    model: Arc<Model>,
    limits: Limits,
    progress: &ProgressBar,
) -> Result<Box<dyn Backend>> {
    let plan = Plan::new(&model, &limits);
    let started = std::time::Instant::now();
    let before = device.memory()?.0;
    let weights = weights::DeviceWeights::upload(&device, &model, progress)?;
    let taken = before - device.memory()?.0;
    bail!(
        "{plan}; {} layers of weights there in {:.3} s, {taken} bytes taken, {} planned; no forward pass yet",
        weights.layers.len(),
        started.elapsed().as_secs_f64(),
        weights.bytes
    )
}

/// Device memory for everything between two layers, and the logits.
fn work_bytes(config: &Config, limits: &Limits) -> u64 {
    (limits.batch_tokens * config.vocab * size_of::<f32>()) as u64
}
