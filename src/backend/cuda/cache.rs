//! Keys and values on the device, laid out as kernels/common.cuh describes.
//!
//! Full layers are paged; sliding layers keep rings, all of one slot's (or one snapshot's) together, so that
//! to save or to restore is one copy.

use super::{Buffer, Device, batch::Cache};
use crate::{
    backend::{KV_BLOCK, Limits, window_steps},
    config::Config,
};
use anyhow::Result;
use half::f16;
use std::sync::Arc;

/// All keys and values.
pub struct KvCache {
    device: Arc<Device>,
    /// By full layer, `[blocks, kv_heads]` steps.
    full: Vec<Buffer<f16>>,
    /// `[slots, then snapshots; sliding layers; ring_steps; kv_heads]` steps.
    rings: Buffer<f16>,
    slots: usize,
    ring_steps: usize,
    sliding_layers: usize,
    kv_heads: usize,
    /// Values of a step of one head.
    step: usize,
}

/// Values of one step of all KV heads.
fn step_values(config: &Config) -> usize {
    config.kv_heads * 2 * KV_BLOCK * config.head_dim
}

/// Values of all rings of one slot.
fn ring_values(config: &Config) -> usize {
    config.sliding_layers() * ring_steps(config) * step_values(config)
}

fn ring_steps(config: &Config) -> usize {
    window_steps(config.window.min(config.context))
}

/// Positions of a sliding layer's ring: a segment of up to `ring - window + 1` rows may write its own
/// before it reads older ones.
pub fn ring_positions(config: &Config) -> usize {
    ring_steps(config) * KV_BLOCK
}

impl KvCache {
    /// Makes room for `limits`, all zero: what a mask hides is multiplied by zero and must be finite.
    pub fn new(device: &Arc<Device>, config: &Config, limits: &Limits) -> Result<KvCache> {
        let what = "KV cache (--ctx-size and --max-seqs bound it)";
        let mut full = Vec::new();
        for _ in 0..config.layers - config.sliding_layers() {
            let mut layer = device.alloc(limits.kv_blocks * step_values(config), what)?;
            layer.zero()?;
            full.push(layer);
        }
        let places = limits.slots + limits.snapshots;
        let what = "sliding windows (--max-seqs and --cache-bytes bound them)";
        let mut rings = device.alloc(places * ring_values(config), what)?;
        rings.zero()?;
        Ok(KvCache {
            device: device.clone(),
            full,
            rings,
            slots: limits.slots,
            ring_steps: ring_steps(config),
            sliding_layers: config.sliding_layers(),
            kv_heads: config.kv_heads,
            step: 2 * KV_BLOCK * config.head_dim,
        })
    }

    /// Layer `layer`'s, for kernels; `table` is the batch's block tables.
    pub fn layer(&self, layer: usize, sliding: bool, table: u64) -> Cache {
        let rings = self.ring_steps * self.kv_heads * self.step;
        Cache {
            base: match sliding {
                true => self.rings.at(layer / 2 * rings),
                false => self.full[layer / 2].ptr(),
            },
            table,
            kv_heads: self.kv_heads as i32,
            ring_steps: if sliding { self.ring_steps as i32 } else { 0 },
            ring_stride: (self.sliding_layers * self.ring_steps) as i32,
            pad: 0,
        }
    }

    /// Starts copying a block of every full layer to another; both are within the limits.
    pub fn copy_block(&self, from: u32, to: u32) -> Result<()> {
        if from == to {
            return Ok(());
        }
        let values = self.kv_heads * self.step;
        for layer in &self.full {
            let (from, to) = (from as usize * values, to as usize * values);
            self.device.copy(layer, from, layer, to, values)?;
        }
        Ok(())
    }

    /// Starts copying a slot's rings to a snapshot's; both are within the limits.
    pub fn save(&self, slot: usize, snapshot: usize) -> Result<()> {
        self.copy_rings(slot, self.slots + snapshot)
    }

    /// Starts copying a snapshot's rings to a slot's; both are within the limits.
    pub fn restore(&self, slot: usize, snapshot: usize) -> Result<()> {
        self.copy_rings(self.slots + snapshot, slot)
    }

    fn copy_rings(&self, from: usize, to: usize) -> Result<()> {
        let values = self.sliding_layers * self.ring_steps * self.kv_heads * self.step;
        if values == 0 {
            return Ok(());
        }
        self.device
            .copy(&self.rings, from * values, &self.rings, to * values, values)
    }
}
