//! Device memory, told before any of it is taken.

use super::weights::device_bytes;
use crate::{
    backend::{Footprint, Limits, kv_block_bytes, snapshot_bytes},
    weights::Model,
};

/// What `model` takes of a GPU's memory with room for `limits`: all of it when the back end is opened.
pub fn footprint(model: &Model, limits: &Limits) -> Footprint {
    let config = &model.config;
    let windows = |places: usize| (places as u64).saturating_mul(snapshot_bytes(config));
    Footprint {
        mapped: 0,
        weights: device_bytes(model),
        blocks: (limits.kv_blocks as u64).saturating_mul(kv_block_bytes(config)),
        windows: windows(limits.slots),
        snapshots: windows(limits.snapshots),
        work: super::work_bytes(config, limits),
        ..Footprint::default()
    }
}
