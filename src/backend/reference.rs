//! The executable specification: gpt-oss in scalar f32, one function a stage, slow and obvious.
//!
//! Every other back end is judged by this one, and this one by engines that we did not write
//! (tests/forward.rs). Weights are decoded exactly, activations and the KV cache are f32, and sums
//! run in f64, so that their order is no question. A row's result depends on its inputs only, never
//! on the rows beside it.

use super::{
    Backend, Batch, Footprint, KV_BLOCK, Limits, LogitRows, Segment, Windows, Work, kv_block_bytes,
    room::{mapped_bytes, vector_bytes},
    snapshot_bytes,
    windows::check_copy,
};
use crate::{
    config::Config,
    trace::{self, Stage, Tap},
    weights::{Check, Layer, Linear, Matrix, Model},
};
use anyhow::Result;
use std::{borrow::Cow, ops::Range, sync::Arc};

/// The reference back end: one thread, every platform.
pub struct Reference {
    model: Arc<Model>,
    limits: Limits,
    /// `[head_dim / 2]`.
    inv_freq: Vec<f32>,
    /// One a layer.
    cache: Vec<Cache>,
    windows: Windows,
    /// By snapshot, the windows' keys and values, layer by layer.
    snapshots: Vec<Vec<f32>>,
    /// `[rows asked for, vocab]` of the last batch.
    logits: Vec<f32>,
    work: Work,
}

/// Keys (after RoPE) and values of one layer, each `[places, kv_heads * head_dim]`; see [`Reference::place`].
struct Cache {
    k: Vec<f32>,
    v: Vec<f32>,
}

/// One new token of the batch.
struct Row {
    segment: usize,
    token: u32,
    position: usize,
}

/// The experts of one row with their weights, best first.
type Chosen = Vec<(usize, f32)>;

/// What a model takes: as on the processor, with keys and values in f32 and next to nothing between layers.
pub(super) fn footprint(check: &Check, limits: &Limits) -> Footprint {
    let model = &check.model;
    let config = &model.config;
    let windows = |places: usize| 2 * (places as u64).saturating_mul(snapshot_bytes(config));
    let values = limits.slots * config.vocab + limits.batch_tokens * 8 * config.hidden;
    Footprint {
        mapped: mapped_bytes(model),
        weights: check.cost.converted_bytes + vector_bytes(model),
        blocks: 2 * (limits.kv_blocks as u64).saturating_mul(kv_block_bytes(config)),
        windows: windows(limits.slots),
        snapshots: windows(limits.snapshots),
        work: (values * size_of::<f32>()) as u64,
        ..Footprint::default()
    }
}

impl Reference {
    /// Makes room for `limits`; the pages of the cache are touched only as they fill.
    pub fn new(model: Arc<Model>, limits: Limits) -> Reference {
        let config = &model.config;
        let cache = (0..config.layers)
            .map(|layer| {
                let places = if config.is_sliding(layer) {
                    limits.slots * ring(config, &limits)
                } else {
                    limits.kv_blocks * KV_BLOCK
                };
                let len = places * config.kv_heads * config.head_dim;
                Cache {
                    k: vec![0.0; len],
                    v: vec![0.0; len],
                }
            })
            .collect();
        Reference {
            inv_freq: config.rope.inv_freq(config.head_dim),
            cache,
            windows: Windows::new(config, &limits),
            snapshots: vec![Vec::new(); limits.snapshots],
            logits: Vec::new(),
            work: Work::default(),
            limits,
            model,
        }
    }

    /// Where layer `layer` keeps position `position` of a segment's sequence: full layers in the
    /// sequence's blocks, sliding layers in the slot's ring.
    fn place(&self, layer: usize, batch: &Batch, segment: usize, position: usize) -> usize {
        let segment = &batch.segments[segment];
        if self.model.config.is_sliding(layer) {
            let ring = ring(&self.model.config, &self.limits);
            segment.slot * ring + position % ring
        } else {
            segment.blocks[position / KV_BLOCK] as usize * KV_BLOCK + position % KV_BLOCK
        }
    }

    /// The elements of each sliding layer's keys, or values, that the slot's window holds, position by position.
    fn window_places(&self, slot: usize) -> Vec<(usize, Range<usize>)> {
        let config = &self.model.config;
        let (ring, width) = (
            ring(config, &self.limits),
            config.kv_heads * config.head_dim,
        );
        let end = self.windows.end(slot);
        let positions = end.saturating_sub(config.window)..end;
        (0..config.layers)
            .filter(|&layer| config.is_sliding(layer))
            .flat_map(|layer| positions.clone().map(move |position| (layer, position)))
            .map(|(layer, position)| {
                let at = (slot * ring + position % ring) * width;
                (layer, at..at + width)
            })
            .collect()
    }

    /// First position that a token of the segment at `position` attends to.
    fn first_key(&self, layer: usize, segment: &Segment, position: usize) -> usize {
        let config = &self.model.config;
        if config.is_sliding(layer) {
            let window = (position + 1).saturating_sub(config.window);
            window.max(self.windows.from(segment))
        } else {
            0
        }
    }

    /// The layer walk; `tap` sees what each stage computed.
    fn walk(&mut self, batch: &Batch, mut tap: Tap) -> Result<()> {
        batch.check(&self.model.config, &self.limits)?;
        self.windows.check(batch)?;
        let rows: Vec<Row> = (batch.segments.iter().enumerate())
            .flat_map(|(segment, s)| {
                (s.tokens.iter().enumerate()).map(move |(i, &token)| Row {
                    segment,
                    token,
                    position: s.start + i,
                })
            })
            .collect();
        let model = self.model.clone();
        let (experts, used) = (model.config.experts, model.config.experts_used);
        let mut x = self.embed(&rows);
        tap.show(None, Stage::Embed, || Cow::from(&x));
        for (l, weights) in model.weights.layers.iter().enumerate() {
            let qkv = self.norm_qkv_rope_append(l, batch, &rows, &x);
            tap.show(Some(l), Stage::NormQkvRopeAppend, || {
                trace::beside(rows.len(), &qkv.each_ref().map(Vec::as_slice)).into()
            });
            let a = self.attention(l, batch, &rows, &qkv[0]);
            tap.show(Some(l), Stage::AttentionReduce, || Cow::from(&a));
            self.out_proj_residual(weights, &a, &mut x);
            tap.show(Some(l), Stage::OutProjResidual, || Cow::from(&x));
            let (h, chosen) = self.norm_router_topk(weights, &x);
            tap.show(Some(l), Stage::NormRouterTopk, || {
                trace::expert_weights(&flat(&chosen), used, experts).into()
            });
            let s = self.expert_gate_up_swiglu(weights, &h, &chosen);
            tap.show(Some(l), Stage::ExpertGateUpSwiglu, || {
                trace::by_expert(&flat(&chosen), used, &s).into()
            });
            self.expert_down_residual(weights, &s, &chosen, &mut x);
            tap.show(Some(l), Stage::ExpertDownResidual, || Cow::from(&x));
        }
        self.norm_lm_head(batch, &x);
        tap.show(None, Stage::NormLmHead, || Cow::from(&self.logits));
        self.windows.ran(batch);
        self.work.token_rows += rows.len() as u64;
        tap.finish()
    }

    /// x = token_embd[id], `[rows, hidden]`.
    fn embed(&mut self, rows: &[Row]) -> Vec<f32> {
        let table = &self.model.weights.token_embd;
        let mut x = vec![0.0; rows.len() * table.cols];
        for (row, x) in rows.iter().zip(x.chunks_exact_mut(table.cols)) {
            table.row_to_f32(row.token as usize, x);
        }
        self.work.bytes += (rows.len() * table.format.row_bytes(table.cols)) as u64;
        x
    }

    /// h = rmsnorm(x); q, k, v = W h + b; RoPE on q and k; k and v appended to the cache
    /// where they are not kept. Returns q, `[rows, heads, head_dim]`, and k and v alike.
    fn norm_qkv_rope_append(
        &mut self,
        layer: usize,
        batch: &Batch,
        rows: &[Row],
        x: &[f32],
    ) -> [Vec<f32>; 3] {
        let model = self.model.clone();
        let weights = &model.weights.layers[layer];
        let h = rmsnorm(x, &weights.attn_norm, model.config.rms_eps);
        let mut q = self.linear(&weights.q, 0..weights.q.weight.rows, &h);
        let mut k = self.linear(&weights.k, 0..weights.k.weight.rows, &h);
        let v = self.linear(&weights.v, 0..weights.v.weight.rows, &h);
        let (q_width, kv_width) = (weights.q.weight.rows, weights.k.weight.rows);
        for (r, row) in rows.iter().enumerate() {
            self.rope(row.position, &mut q[r * q_width..][..q_width]);
            self.rope(row.position, &mut k[r * kv_width..][..kv_width]);
            let kept = row.position < batch.segments[row.segment].kept;
            if kept && !model.config.is_sliding(layer) {
                continue;
            }
            let at = self.place(layer, batch, row.segment, row.position) * kv_width;
            let cache = &mut self.cache[layer];
            cache.k[at..at + kv_width].copy_from_slice(&k[r * kv_width..][..kv_width]);
            cache.v[at..at + kv_width].copy_from_slice(&v[r * kv_width..][..kv_width]);
        }
        [q, k, v]
    }

    /// Rotates the halves `(i, i + head_dim / 2)` of every head by `position * inv_freq[i]`.
    fn rope(&self, position: usize, heads: &mut [f32]) {
        let concentration = self.model.config.rope.concentration();
        let half = self.inv_freq.len();
        for head in heads.chunks_exact_mut(2 * half) {
            for i in 0..half {
                let angle = position as f64 * self.inv_freq[i] as f64;
                let cos = angle.cos() as f32 * concentration;
                let sin = angle.sin() as f32 * concentration;
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos - b * sin;
                head[i + half] = b * cos + a * sin;
            }
        }
    }

    /// Stages `attention_partial` and `attention_reduce`, one here: softmax(q.k / sqrt(head_dim))
    /// over the keys in reach and the head's sink, times v. Returns `[rows, heads, head_dim]`.
    fn attention(&mut self, layer: usize, batch: &Batch, rows: &[Row], q: &[f32]) -> Vec<f32> {
        let config = &self.model.config;
        let sinks = &self.model.weights.layers[layer].sinks;
        let (dim, kv_width) = (config.head_dim, config.kv_heads * config.head_dim);
        let scale = 1.0 / (dim as f64).sqrt();
        let cache = &self.cache[layer];
        let mut out = vec![0.0; q.len()];
        for (r, row) in rows.iter().enumerate() {
            let places: Vec<usize> =
                (self.first_key(layer, &batch.segments[row.segment], row.position)..=row.position)
                    .map(|position| self.place(layer, batch, row.segment, position))
                    .collect();
            for (head, &sink) in sinks.iter().enumerate() {
                let at = (r * config.heads + head) * dim;
                let q = &q[at..at + dim];
                let kv = |place: usize| place * kv_width + head / config.group() * dim;
                let mut p: Vec<f64> = places
                    .iter()
                    .map(|&place| dot(q, &cache.k[kv(place)..][..dim]) * scale)
                    .collect();
                p.push(sink as f64); // one more logit, whose value is the zero vector
                softmax(&mut p);
                for (i, out) in out[at..at + dim].iter_mut().enumerate() {
                    let sum: f64 = places
                        .iter()
                        .zip(&p)
                        .map(|(&place, p)| p * cache.v[kv(place) + i] as f64)
                        .sum();
                    *out = sum as f32;
                }
            }
        }
        for segment in &batch.segments {
            let keys = segment.start + segment.tokens.len()
                - self.first_key(layer, segment, segment.start);
            self.work.bytes += (keys * kv_width * 2 * size_of::<f32>()) as u64;
        }
        out
    }

    /// x += W_o a + b_o.
    fn out_proj_residual(&mut self, weights: &Layer, a: &[f32], x: &mut [f32]) {
        let y = self.linear(&weights.o, 0..weights.o.weight.rows, a);
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }

    /// h = rmsnorm(x); the best experts by W_r h + b_r, ties to the lower index, weighed by a
    /// softmax over those alone. Returns h and each row's experts.
    fn norm_router_topk(&mut self, weights: &Layer, x: &[f32]) -> (Vec<f32>, Vec<Chosen>) {
        let model = self.model.clone();
        let h = rmsnorm(x, &weights.post_attention_norm, model.config.rms_eps);
        let scores = self.linear(&weights.router, 0..model.config.experts, &h);
        let chosen = scores
            .chunks_exact(model.config.experts)
            .map(|scores| {
                let mut order: Vec<usize> = (0..scores.len()).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a])); // stable
                order.truncate(model.config.experts_used);
                let mut p: Vec<f64> = order.iter().map(|&e| scores[e] as f64).collect();
                softmax(&mut p);
                order
                    .into_iter()
                    .zip(p)
                    .map(|(e, p)| (e, p as f32))
                    .collect()
            })
            .collect();
        (h, chosen)
    }

    /// g = min(gate, 7), u = clamp(up, -7, 7), s = g * sigmoid(1.702 g) * (u + 1), for every chosen
    /// expert. Returns `[rows, experts_used, expert_width]`.
    fn expert_gate_up_swiglu(&mut self, weights: &Layer, h: &[f32], chosen: &[Chosen]) -> Vec<f32> {
        let config = &self.model.clone().config;
        let (width, limit) = (config.expert_width, config.swiglu_limit);
        let mut s = vec![0.0; chosen.len() * config.experts_used * width];
        for expert in 0..config.experts {
            let places = places_of(expert, chosen);
            let h: Vec<f32> = places
                .iter()
                .flat_map(|&(row, ..)| &h[row * config.hidden..][..config.hidden])
                .copied()
                .collect();
            let outputs = expert * width..(expert + 1) * width;
            let gate = self.linear(&weights.gate, outputs.clone(), &h);
            let up = self.linear(&weights.up, outputs, &h);
            for (i, (row, rank, _)) in places.into_iter().enumerate() {
                let s = &mut s[(row * config.experts_used + rank) * width..][..width];
                for (j, s) in s.iter_mut().enumerate() {
                    let g = gate[i * width + j].min(limit);
                    let u = up[i * width + j].clamp(-limit, limit);
                    *s = g / (1.0 + (-1.702 * g).exp()) * (u + 1.0);
                }
            }
        }
        s
    }

    /// x += sum over the chosen experts of weight * (W_down s + b_down).
    fn expert_down_residual(
        &mut self,
        weights: &Layer,
        s: &[f32],
        chosen: &[Chosen],
        x: &mut [f32],
    ) {
        let config = &self.model.clone().config;
        let width = config.expert_width;
        let mut sums = vec![0.0f64; x.len()];
        for expert in 0..config.experts {
            let places = places_of(expert, chosen);
            let s: Vec<f32> = places
                .iter()
                .flat_map(|&(row, rank, _)| {
                    &s[(row * config.experts_used + rank) * width..][..width]
                })
                .copied()
                .collect();
            let y = self.linear(
                &weights.down,
                expert * config.hidden..(expert + 1) * config.hidden,
                &s,
            );
            for ((row, _, weight), y) in places.into_iter().zip(y.chunks_exact(config.hidden)) {
                let sums = &mut sums[row * config.hidden..][..config.hidden];
                sums.iter_mut()
                    .zip(y)
                    .for_each(|(sum, &y)| *sum += weight as f64 * y as f64);
            }
        }
        x.iter_mut().zip(sums).for_each(|(x, sum)| *x += sum as f32);
    }

    /// logits = output * rmsnorm(x), for the rows asked for.
    fn norm_lm_head(&mut self, batch: &Batch, x: &[f32]) {
        let model = self.model.clone();
        let (config, weights) = (&model.config, &model.weights);
        let (mut wanted, mut row) = (Vec::new(), 0);
        for segment in &batch.segments {
            let rows = row..row + segment.tokens.len();
            row = rows.end;
            let rows = match segment.logits {
                LogitRows::None => rows.end..rows.end,
                LogitRows::Last | LogitRows::Draw(_) => rows.end - 1..rows.end,
                LogitRows::All => rows,
            };
            wanted.extend_from_slice(&x[rows.start * config.hidden..rows.end * config.hidden]);
        }
        let h = rmsnorm(&wanted, &weights.output_norm, config.rms_eps);
        self.logits = self.matmul(&weights.output, 0..config.vocab, &h);
        self.work.logit_rows += (h.len() / config.hidden) as u64;
    }

    /// [`Reference::matmul`] plus the bias.
    fn linear(&mut self, linear: &Linear, outputs: Range<usize>, x: &[f32]) -> Vec<f32> {
        let mut y = self.matmul(&linear.weight, outputs.clone(), x);
        for y in y.chunks_exact_mut(outputs.len()) {
            y.iter_mut()
                .zip(&linear.bias[outputs.clone()])
                .for_each(|(y, b)| *y += b);
        }
        y
    }

    /// `y[r][o] = sum over i of W[o][i] x[r][i]` for the matrix rows `outputs`; x is `[rows, in]`.
    /// Nothing is read, or counted, when there is no row.
    fn matmul(&mut self, w: &Matrix, outputs: Range<usize>, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / w.cols * outputs.len()];
        if y.is_empty() {
            return y;
        }
        let mut decoded = vec![0.0; w.cols];
        for (o, output) in outputs.clone().enumerate() {
            w.row_to_f32(output, &mut decoded);
            for (x, y) in x
                .chunks_exact(w.cols)
                .zip(y.chunks_exact_mut(outputs.len()))
            {
                y[o] = dot(&decoded, x) as f32;
            }
        }
        let offsets = w
            .offsets
            .as_ref()
            .map_or(0, |o| o.stride(w.cols) * size_of::<f32>());
        self.work.bytes += (outputs.len() * (w.format.row_bytes(w.cols) + offsets)) as u64;
        y
    }
}

impl Backend for Reference {
    fn config(&self) -> &Config {
        &self.model.config
    }

    fn describe(&self) -> String {
        "reference (scalar f32, 1 thread)".into()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: &Batch) -> Result<()> {
        self.walk(batch, Tap::new(None, 0, 0))
    }

    fn forward_traced(&mut self, batch: &Batch, sink: &mut trace::Sink) -> Result<()> {
        let (start, rows) = batch.traced()?;
        self.walk(batch, Tap::new(Some(sink), start, rows))
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<()> {
        check_copy(from, to, &self.limits)?;
        let config = &self.model.config;
        let len = KV_BLOCK * config.kv_heads * config.head_dim;
        let (from, to) = (from as usize * len, to as usize * len);
        for layer in (0..config.layers).filter(|&layer| !config.is_sliding(layer)) {
            let Cache { k, v } = &mut self.cache[layer];
            k.copy_within(from..from + len, to);
            v.copy_within(from..from + len, to);
        }
        Ok(())
    }

    fn save(&mut self, slot: usize, snapshot: usize) -> Result<()> {
        self.windows.save(slot, snapshot)?;
        let mut copy = Vec::new();
        for (layer, places) in self.window_places(slot) {
            copy.extend_from_slice(&self.cache[layer].k[places.clone()]);
            copy.extend_from_slice(&self.cache[layer].v[places]);
        }
        self.snapshots[snapshot] = copy;
        Ok(())
    }

    fn restore(&mut self, slot: usize, snapshot: usize) -> Result<()> {
        self.windows.restore(slot, snapshot)?;
        let mut copy = &self.snapshots[snapshot][..];
        for (layer, places) in self.window_places(slot) {
            let Cache { k, v } = &mut self.cache[layer];
            for cache in [k, v] {
                let from;
                (from, copy) = copy.split_at(places.len());
                cache[places.clone()].copy_from_slice(from);
            }
        }
        Ok(())
    }

    fn batch_invariant(&self) -> bool {
        true
    }

    fn logits(&self, row: usize) -> &[f32] {
        let vocab = self.model.config.vocab;
        &self.logits[row * vocab..(row + 1) * vocab]
    }

    fn work(&self) -> Work {
        self.work
    }
}

/// Positions in a slot's ring: the window that the batch's first token sees, and the batch.
fn ring(config: &Config, limits: &Limits) -> usize {
    config.window + limits.batch_tokens
}

/// All rows' choices, one after the other.
fn flat(chosen: &[Chosen]) -> Vec<(u32, f32)> {
    let all = chosen.iter().flatten();
    all.map(|&(expert, weight)| (expert as u32, weight))
        .collect()
}

/// Where `expert` was chosen: row, rank, weight.
fn places_of(expert: usize, chosen: &[Chosen]) -> Vec<(usize, usize, f32)> {
    let mut places = Vec::new();
    for (row, chosen) in chosen.iter().enumerate() {
        let of_row = chosen.iter().enumerate().filter(|(_, (e, _))| *e == expert);
        places.extend(of_row.map(|(rank, &(_, weight))| (row, rank, weight)));
    }
    places
}

/// x / sqrt(mean(x^2) + eps) * weight, for each row of `[rows, hidden]`.
fn rmsnorm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let normed = x.chunks_exact(weight.len()).flat_map(|x| {
        let scale = 1.0 / (dot(x, x) / x.len() as f64 + eps as f64).sqrt();
        x.iter()
            .zip(weight)
            .map(move |(x, w)| (*x as f64 * scale) as f32 * w)
    });
    normed.collect()
}

/// In place, the greatest value taken out first.
fn softmax(logits: &mut [f64]) {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f64 = logits.iter().sum();
    logits.iter_mut().for_each(|x| *x /= sum);
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum()
}
