//! `attention_partial` and `attention_reduce`: which thread attends to what.
//!
//! Sliding layers: one item is a segment and a KV head; it appends up to the end of each step, then
//! attends, so that a ring of the window and one step is enough for any prefill. Full layers: one
//! item is a tile of tokens, or, for few tokens with a long context, one partition of the context;
//! the last of the partitions merges them in order. Either way a row's result is the merge of its
//! partitions at multiples of [`PARTITION`], so it does not depend on the split.
#![allow(unsafe_code)] // disjoint writes to shared buffers

use super::{
    buffers::Work,
    cache::Place,
    forward::Pass,
    kernels::attention::{Partial, STEP},
};
use crate::{backend::Batch, config::Config, weights::Layer};
use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Positions of one partition: the unit in which threads share a long context.
pub const PARTITION: usize = 1024;
/// Query rows of a tile.
const TILE_ROWS: usize = 32;
/// Tokens times partitions of all split segments that one batch has room for.
pub const PARTIALS: usize = 512;

/// Query rows that a tile has room for.
pub fn tile_rows(config: &Config) -> usize {
    tile_tokens(config) * config.group()
}

fn tile_tokens(config: &Config) -> usize {
    (TILE_ROWS / config.group()).max(1)
}

/// A piece of attention work of one KV head.
#[derive(Clone)]
struct Item {
    head: usize,
    segment: usize,
    /// Tokens of the segment.
    tokens: Range<usize>,
    /// The partition, where the segment is split.
    part: Option<Part>,
}

#[derive(Clone, Copy)]
struct Part {
    index: usize,
    of: usize,
    /// Which countdown.
    split: usize,
    /// First place of the segment's partials, in tokens times partitions.
    place: usize,
}

/// The attention items of a batch, the same for every layer of a kind.
#[derive(Default)]
pub struct Plan {
    sliding: Vec<Item>,
    full: Vec<Item>,
    /// Partitions still to come, by split.
    left: Vec<AtomicUsize>,
}

impl Plan {
    /// Plans a batch anew, keeping the lists' memory.
    pub fn make(&mut self, config: &Config, batch: &Batch) {
        self.sliding.clear();
        self.full.clear();
        self.left.clear();
        for head in 0..config.kv_heads {
            let mut place = 0;
            for (segment, s) in batch.segments.iter().enumerate() {
                let n = s.tokens.len();
                self.sliding.push(Item {
                    head,
                    segment,
                    tokens: 0..n,
                    part: None,
                });
                let parts = (s.start + n).div_ceil(PARTITION);
                let tokens = tile_tokens(config);
                if parts > 1 && n <= tokens && place + n * parts <= PARTIALS {
                    let split = self.left.len();
                    self.left.push(AtomicUsize::new(parts));
                    for index in 0..parts {
                        let part = Some(Part {
                            index,
                            of: parts,
                            split,
                            place,
                        });
                        self.full.push(Item {
                            head,
                            segment,
                            tokens: 0..n,
                            part,
                        });
                    }
                    place += n * parts;
                } else {
                    for first in (0..n).step_by(tokens) {
                        let tokens = first..(first + tokens).min(n);
                        self.full.push(Item {
                            head,
                            segment,
                            tokens,
                            part: None,
                        });
                    }
                }
            }
        }
    }

    /// Items of a layer.
    pub fn len(&self, sliding: bool) -> usize {
        if sliding {
            self.sliding.len()
        } else {
            self.full.len()
        }
    }
}

impl Pass<'_> {
    /// Runs attention item `i` of layer `l` once the item's head has its q, k and v.
    pub fn attention_item(&self, l: usize, layer: &Layer, i: usize, work: &mut Work) {
        let sliding = self.config.is_sliding(l);
        let item = if sliding {
            &self.plan.sliding[i]
        } else {
            &self.plan.full[i]
        };
        let pending = &self.pending[l * self.config.kv_heads + item.head];
        self.pool
            .spin_until(|| pending.load(Ordering::Acquire) == 0);
        let segment = &self.batch.segments[item.segment];
        if sliding {
            let step = tile_tokens(self.config);
            let mut first = 0;
            while first < item.tokens.end {
                let position = segment.start + first;
                let end = item.tokens.end.min(first + STEP - position % STEP);
                self.rope_append(l, item.head, item.segment, first..end);
                for first in (first..end).step_by(step) {
                    let tokens = first..(first + step).min(end);
                    let rows = self.load_queries(l, item, &tokens, work);
                    self.partition(l, layer, item, 0..usize::MAX, rows, work);
                    self.merge(rows, 0, work);
                    self.finish(item, &tokens, work);
                }
                first = end;
            }
            return;
        }
        let rows = self.load_queries(l, item, &item.tokens, work);
        let Some(part) = item.part else {
            let end = segment.start + item.tokens.end;
            for p in 0..end.div_ceil(PARTITION) {
                self.partition(
                    l,
                    layer,
                    item,
                    p * PARTITION..(p + 1) * PARTITION,
                    rows,
                    work,
                );
                self.merge(rows, p, work);
            }
            self.finish(item, &item.tokens, work);
            return;
        };
        self.partition(
            l,
            layer,
            item,
            part.index * PARTITION..(part.index + 1) * PARTITION,
            rows,
            work,
        );
        self.save_partials(item, part, rows, work);
        if self.plan.left[part.split].fetch_sub(1, Ordering::AcqRel) == 1 {
            self.plan.left[part.split].store(part.of, Ordering::Relaxed);
            self.load_and_merge(item, part, rows, work);
            self.finish(item, &item.tokens, work);
        }
    }

    /// RoPE on q and k of a head's tokens in place; k and v appended to the cache where they are not kept.
    pub fn rope_append(&self, l: usize, head: usize, segment: usize, tokens: Range<usize>) {
        let config = self.config;
        let (d, group) = (config.head_dim, config.group());
        let (q_width, kv_width) = (config.heads * d, config.kv_heads * d);
        let width = q_width + 2 * kv_width;
        let scale = 1.0 / (d as f32).sqrt();
        for t in tokens {
            let row = self.first_row[segment] + t;
            let rope = &self.rope[row * d..(row + 1) * d];
            // SAFETY: this head's columns of q, k and v are complete, and only the one thread that
            // runs this function for the head uses them until it is done.
            let (q, k, v) = unsafe {
                let q = self
                    .large
                    .qkv
                    .get_mut(row * width + head * group * d, group * d);
                let k = self.large.qkv.get_mut(row * width + q_width + head * d, d);
                (
                    q,
                    k,
                    self.large
                        .qkv
                        .get(row * width + q_width + kv_width + head * d, d),
                )
            };
            for q in q.chunks_exact_mut(d) {
                rotate(q, rope);
                q.iter_mut().for_each(|x| *x *= scale);
            }
            rotate(k, rope);
            let position = self.batch.segments[segment].start + t;
            if position < self.batch.segments[segment].kept && !config.is_sliding(l) {
                continue; // perhaps another sequence's too, which reads it right now
            }
            // SAFETY: as above; this position's step belongs to this sequence.
            unsafe {
                self.cache
                    .append(l, self.place(l, segment), head, position, k, v)
            };
        }
    }

    fn place(&self, l: usize, segment: usize) -> Place<'_> {
        let segment = &self.batch.segments[segment];
        if self.config.is_sliding(l) {
            Place::Ring(segment.slot)
        } else {
            Place::Blocks(&segment.blocks)
        }
    }

    /// Copies the queries of some tokens into the tile: rows are tokens times the head's group.
    fn load_queries(&self, l: usize, item: &Item, tokens: &Range<usize>, work: &mut Work) -> usize {
        let config = self.config;
        let (d, group) = (config.head_dim, config.group());
        let width = (config.heads + 2 * config.kv_heads) * d;
        for (i, t) in tokens.clone().enumerate() {
            let row = self.first_row[item.segment] + t;
            // SAFETY: rotated queries of this head, complete.
            let q = unsafe {
                self.large
                    .qkv
                    .get(row * width + item.head * group * d, group * d)
            };
            work.tile.q[i * group * d..][..group * d].copy_from_slice(q);
            let end = self.batch.segments[item.segment].start + t + 1;
            let start = if config.is_sliding(l) {
                let from = self.window_from[item.segment];
                end.saturating_sub(config.window).max(from)
            } else {
                0
            };
            work.tile.visible[i * group..][..group].fill((start, end));
        }
        tokens.len() * group
    }

    /// Attends to the positions of one partition.
    fn partition(
        &self,
        l: usize,
        layer: &Layer,
        item: &Item,
        part: Range<usize>,
        rows: usize,
        work: &mut Work,
    ) {
        let (tile, group) = (&mut work.tile, self.config.group());
        for r in 0..rows {
            tile.max[r] = layer.sinks[item.head * group + r % group];
            tile.sum[r] = [0.0; 16];
            tile.sum[r][0] = if part.start == 0 { 1.0 } else { 0.0 }; // the sink's own weight
        }
        tile.acc[..rows * tile.head_dim].fill(0.0);
        let start = tile.visible[0].0.max(part.start) / STEP * STEP;
        let end = tile.visible[rows - 1].1.min(part.end);
        for position in (start..end).step_by(STEP) {
            // SAFETY: this head's positions up to `end` are appended, by this thread or before the
            // countdown that this item waited for.
            let (k, v) = unsafe {
                self.cache
                    .step(l, self.place(l, item.segment), item.head, position)
            };
            self.kernels.attend(tile, rows, k, v, position);
        }
    }

    /// Merges the tile's state, partition `part` of each row, into the rows' merged state.
    fn merge(&self, rows: usize, part: usize, work: &mut Work) {
        let d = work.tile.head_dim;
        for r in 0..rows {
            let max = work.tile.max[r];
            let sum = sum16(work.tile.sum[r]);
            let acc = &mut work.tile.acc[r * d..(r + 1) * d];
            let into = &mut work.merged_acc[r * d..(r + 1) * d];
            if part == 0 {
                work.merged[r] = (max, sum);
                into.copy_from_slice(acc);
            } else {
                let mut state = Partial {
                    max: work.merged[r].0,
                    sum: work.merged[r].1,
                    acc: into,
                };
                self.kernels.merge(&mut state, &Partial { max, sum, acc });
                work.merged[r] = (state.max, state.sum);
            }
        }
    }

    /// Range of a row's partial state: maximum, sum, values.
    fn partial(&self, item: &Item, part: Part, index: usize, row: usize) -> (usize, usize) {
        let (d, group) = (self.config.head_dim, self.config.group());
        let tokens = item.tokens.len();
        let place =
            (part.place + index * tokens) * self.config.heads + item.head * group * tokens + row;
        (place * (d + 2), d + 2)
    }

    fn save_partials(&self, item: &Item, part: Part, rows: usize, work: &mut Work) {
        let d = work.tile.head_dim;
        for r in 0..rows {
            let (start, len) = self.partial(item, part, part.index, r);
            // SAFETY: this item's own range.
            let to = unsafe { self.large.partials.get_mut(start, len) };
            to[0] = work.tile.max[r];
            to[1] = sum16(work.tile.sum[r]);
            to[2..].copy_from_slice(&work.tile.acc[r * d..(r + 1) * d]);
        }
    }

    fn load_and_merge(&self, item: &Item, part: Part, rows: usize, work: &mut Work) {
        let d = work.tile.head_dim;
        for index in 0..part.of {
            for r in 0..rows {
                let (start, len) = self.partial(item, part, index, r);
                // SAFETY: every partition's item has counted down after writing its range.
                let from = unsafe { self.large.partials.get(start, len) };
                work.tile.max[r] = from[0];
                work.tile.sum[r] = [0.0; 16];
                work.tile.sum[r][0] = from[1];
                work.tile.acc[r * d..(r + 1) * d].copy_from_slice(&from[2..]);
            }
            self.merge(rows, index, work);
        }
    }

    /// `attention_reduce`: divides by the sums and writes the head's output.
    fn finish(&self, item: &Item, tokens: &Range<usize>, work: &mut Work) {
        let config = self.config;
        let (d, group) = (config.head_dim, config.group());
        for (i, t) in tokens.clone().enumerate() {
            let row = self.first_row[item.segment] + t;
            // SAFETY: this item's own columns of this row.
            let out = unsafe {
                self.large
                    .attention
                    .get_mut((row * config.heads + item.head * group) * d, group * d)
            };
            for (g, out) in out.chunks_exact_mut(d).enumerate() {
                let r = i * group + g;
                let inverse = 1.0 / work.merged[r].1;
                let acc = &work.merged_acc[r * d..(r + 1) * d];
                out.iter_mut().zip(acc).for_each(|(o, a)| *o = a * inverse);
            }
        }
    }
}

/// RoPE over pairs `(i, i + d / 2)`; `rope` holds cos, then sin, `[d / 2]` each.
fn rotate(x: &mut [f32], rope: &[f32]) {
    let half = x.len() / 2;
    let (cos, sin) = rope.split_at(half);
    let (a, b) = x.split_at_mut(half);
    for i in 0..half {
        (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
    }
}

/// The lanes' sum in the order of [`F32x16::sum`](super::kernels::simd::F32x16::sum).
fn sum16(mut v: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            v[i] += v[i + half];
        }
    }
    v[0]
}
