//! Attention on the device: memory for it, and the launches that a [`Plan`] comes to.

mod plan;
#[cfg(test)]
mod tests;

pub use plan::Plan;

use super::{
    Buffer, Device, Grid, Kernel, Pinned,
    batch::{Cache, Segment},
};
use crate::config::Config;
use anyhow::Result;
pub use plan::QUERIES;
use plan::{Blocks, PARTIALS, Shape};
use std::sync::Arc;

/// Floats of one query's partial sums.
const PART: usize = 68;

/// The same in kernels/attention.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct AttentionArgs {
    q: u64,
    out: u64,
    fresh: u64,
    cache: Cache,
    rows: u64,
    segments: u64,
    sinks: u64,
    tiles: u64,
    list: u64,
    partial: u64,
    counters: u64,
    window: i32,
    heads: i32,
    whole: i32,
    least: i32,
}

/// The same in kernels/keep_window.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct KeepWindowArgs {
    fresh: u64,
    cache: Cache,
    segments: u64,
}

/// What one layer's attention reads and writes: addresses on the device.
#[derive(Debug, Clone, Copy)]
pub struct Io {
    /// f16 `[rows, heads, 64]`, divided by the square root of 64.
    pub q: u64,
    /// f16 `[rows, heads, 64]`.
    pub out: u64,
    /// f16 `[rows, kv_heads, 2, 64]`: the batch's keys and values, which are not in the rings yet.
    /// Of use where the plan was made with `fresh`, on sliding layers.
    pub fresh: u64,
    /// [`Row`](super::batch::Row)s.
    pub rows: u64,
    /// [`Segment`]s.
    pub segments: u64,
    /// f32 `[heads]`.
    pub sinks: u64,
    /// The layer's keys and values. Every value in it is finite.
    pub cache: Cache,
}

/// The attention kernels and the memory they need.
pub struct Attention {
    device: Arc<Device>,
    shape: Shape,
    rows: Kernel,
    rows_many: Kernel,
    rows_short: Kernel,
    tiles: Kernel,
    tiles_sm90: Option<Kernel>,
    keep: Kernel,
    partial: Buffer<f32>,
    counters: Buffer<u32>,
    /// Of the last plan.
    words: Buffer<i32>,
    staging: Pinned<i32>,
}

impl Attention {
    /// Makes room for batches of at most `most_rows` rows in `most_segments` segments.
    pub fn new(
        device: &Arc<Device>,
        config: &Config,
        most_rows: usize,
        most_segments: usize,
    ) -> Result<Attention> {
        let shape = Attention::shape(config, device.multiprocessors());
        let words = shape.most_words(most_rows, most_segments);
        let mut attention = Attention {
            device: device.clone(),
            shape,
            rows: device.kernel("attention_rows")?,
            rows_many: device.kernel("attention_rows_many")?,
            rows_short: device.kernel("attention_rows_short")?,
            tiles: device.kernel("attention_tiles")?,
            tiles_sm90: match device.arch() {
                90 => Some(device.kernel("attention_tiles_sm90")?),
                _ => None,
            },
            keep: device.kernel("keep_window")?,
            partial: device.alloc(PARTIALS * PART, "partial sums of attention")?,
            counters: device.alloc(shape.most_counters(most_rows), "counters of attention")?,
            words: device.alloc(words, "tiles of attention")?,
            staging: device.pinned(words, "tiles of attention")?,
        };
        attention.counters.zero()?;
        Ok(attention)
    }

    /// Device memory, in bytes, that [`Attention::new`] takes.
    pub fn bytes_for(config: &Config, most_rows: usize, most_segments: usize) -> u64 {
        let shape = Attention::shape(config, 0);
        let words = shape.most_words(most_rows, most_segments);
        4 * (PARTIALS * PART + shape.most_counters(most_rows) + words) as u64
    }

    fn shape(config: &Config, multiprocessors: u32) -> Shape {
        Shape {
            kv_heads: config.kv_heads,
            group: config.group(),
            window: config.window,
            multiprocessors: multiprocessors as usize,
        }
    }

    /// The plan for `rows` rows at positions below `longest`, whatever segments they belong to, where
    /// no layer has [`Io::fresh`]. Its launches may be recorded once and replayed.
    pub fn plan_rows(&self, rows: usize, longest: usize) -> Plan {
        self.shape.rows(rows, longest)
    }

    /// The plan for any batch. `fresh`: on sliding layers the batch's keys and values lie in
    /// [`Io::fresh`], as they must where a segment has more rows than its ring has room beside the
    /// window. It holds until this is called again.
    pub fn plan(&mut self, segments: &[Segment], fresh: bool) -> Result<Plan> {
        let (plan, words) = self.shape.batch(segments, fresh);
        self.device.synchronize()?; // the last plan's words may be on their way still
        self.staging[..words.len()].copy_from_slice(&words);
        let (to, from) = (&self.words, &self.staging);
        self.device.upload_async(to, 0, from, words.len())?;
        Ok(plan)
    }

    /// Starts one layer's attention, and, where new keys and values lie in `fresh`, their way to the
    /// rings.
    pub fn launch(&self, plan: &Plan, sliding: bool, io: &Io) -> Result<()> {
        let launches = if sliding { &plan.sliding } else { &plan.full };
        let fresh = sliding && plan.keep > 0;
        let (whole, least) = launches.blocks.steps();
        let args = AttentionArgs {
            q: io.q,
            out: io.out,
            fresh: if fresh { io.fresh } else { 0 },
            cache: io.cache,
            rows: io.rows,
            segments: io.segments,
            sinks: io.sinks,
            tiles: self.words.at(launches.first_tile),
            list: launches.list.map_or(0, |at| self.words.at(at)),
            partial: self.partial.ptr(),
            counters: self.counters.ptr(),
            window: if sliding { self.shape.window as i32 } else { 0 },
            heads: (self.shape.kv_heads * self.shape.group) as i32,
            whole: whole as i32,
            least: least as i32,
        };
        let grid = |blocks: [usize; 3], threads, shared| Grid {
            blocks: (blocks[0] as u32, blocks[1] as u32, blocks[2] as u32),
            threads,
            shared,
            dependent: true,
        };
        if launches.rows > 0 {
            let blocks = [launches.parts, self.shape.head_tiles(), launches.rows];
            // Not every GPU has the shared memory for the largest.
            let large = self.device.shared_bytes() >= 128 << 10;
            let (kernel, grid) = match launches.blocks {
                Blocks::Short => (&self.rows_short, grid(blocks, 256, 64 << 10)),
                Blocks::Few if large => (&self.rows, grid(blocks, 256, 128 << 10)),
                _ => (&self.rows_many, grid(blocks, 128, 64 << 10)),
            };
            self.device.launch(kernel, grid, &args)?;
        }
        if launches.tiles > 0 {
            let blocks = [launches.tiles, self.shape.kv_heads, 1];
            let (kernel, grid) = match &self.tiles_sm90 {
                Some(kernel) => (kernel, grid(blocks, 256, 80 << 10)),
                None => (&self.tiles, grid(blocks, 128, 64 << 10)),
            };
            self.device.launch(kernel, grid, &args)?;
        }
        if fresh {
            let args = KeepWindowArgs {
                fresh: io.fresh,
                cache: io.cache,
                segments: io.segments,
            };
            let blocks = [plan.keep, self.shape.kv_heads, io.cache.ring_steps as usize];
            self.device
                .launch(&self.keep, grid(blocks, 128, 0), &args)?;
        }
        Ok(())
    }
}
