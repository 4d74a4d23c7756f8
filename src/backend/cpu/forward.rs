//! The layer walk: every thread runs [`Pass::run`] and takes items of each stage from its queue.
//!
//! A decoding layer has four barriers, two a sub-layer: after attention, `out_proj_residual`,
//! `expert_gate_up_swiglu` and `expert_down_residual`. Between `norm_qkv_rope_append` and
//! `attention_partial` a KV head waits for its own rows only. With few rows every thread repeats
//! the small stages (norm, router, quantization, residual) on buffers of its own instead of waiting
//! for others to do them; the arithmetic is the same.
#![allow(unsafe_code)] // disjoint writes to shared buffers between barriers

use super::{
    attention::Plan,
    buffers::{Large, Local, Small, Work},
    cache::Cache,
    kernels::{Kernels, Rows, XRow},
    moe::choose,
    offsets,
    threads::{Pool, Queue, Shared},
};
use crate::{
    backend::Batch,
    config::Config,
    trace::{self, Stage},
    weights::{Layer, Linear, Matrix, Weights},
};
use std::{
    borrow::Cow,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Up to this many rows, every thread does the small stages itself.
pub const ALONE: usize = 4;
/// Weight rows of one item.
pub const CHUNK: usize = 64;
/// Stages that have a queue, per layer.
const QUEUES: usize = 4;

/// Queues that a pass over `layers` layers needs: four a layer and the LM head's.
pub fn queue_count(layers: usize) -> usize {
    layers * QUEUES + 1
}

/// Items of `norm_qkv_rope_append` for one KV head.
pub fn qkv_items(config: &Config) -> usize {
    let chunks = |rows: usize| rows.div_ceil(CHUNK);
    chunks(config.group() * config.head_dim) + 2 * chunks(config.head_dim)
}

/// Takes what a stage computed.
pub type Look<'a> = dyn Fn(Option<usize>, Stage, Cow<'_, [f32]>) + Sync + 'a;

/// What all threads see of one forward pass.
pub struct Pass<'a> {
    /// The shape.
    pub config: &'a Config,
    /// The weights.
    pub weights: &'a Weights,
    /// The instruction set.
    pub kernels: &'static Kernels,
    /// The threads.
    pub pool: &'a Pool,
    /// The KV cache.
    pub cache: &'a Cache,
    /// The batch.
    pub batch: &'a Batch,
    /// Attention items.
    pub plan: &'a Plan,
    /// First row of each segment, then the number of rows.
    pub first_row: &'a [usize],
    /// By segment, the first position that its rows see in sliding layers.
    pub window_from: &'a [usize],
    /// Token id of each row.
    pub ids: &'a [u32],
    /// Rows that need logits.
    pub logit_rows: &'a [usize],
    /// cos, then sin, `[rows, 2, head_dim / 2]`.
    pub rope: &'a [f32],
    /// Small stages' results when they are shared out.
    pub small: Small<'a>,
    /// Large stages' results.
    pub large: Large<'a>,
    /// `[logit rows, vocab]`.
    pub logits: Shared<'a, f32>,
    /// See [`queue_count`].
    pub queues: &'a [Queue],
    /// Per layer and KV head, items until its q, k and v can be used: [`qkv_items`] and one more
    /// until they are rotated and appended.
    pub pending: &'a [AtomicUsize],
    /// Where a trace is wanted.
    pub look: Option<&'a Look<'a>>,
}

impl<'a> Pass<'a> {
    /// Runs the pass on every thread of the pool; `false` if one panicked.
    pub fn run_on_all(&self, locals: Shared<'a, Local>) -> bool {
        self.pool.run(&|thread| {
            // SAFETY: each thread takes its own.
            let local = unsafe { &mut locals.get_mut(thread, 1)[0] };
            self.run(thread, local);
        })
    }

    /// The whole model, as thread `thread`.
    fn run(&self, thread: usize, local: &'a mut Local) {
        let Local { small, work } = local;
        let small = if self.alone() {
            small.view()
        } else {
            self.small
        };
        let rows = self.share(thread, self.ids.len());
        for r in rows.clone() {
            // SAFETY: this thread's row; so wherever `rows` is walked below.
            let x = unsafe { small.x.get_mut(r * self.config.hidden, self.config.hidden) };
            self.weights.token_embd.row_to_f32(self.ids[r] as usize, x);
        }
        self.show(thread, None, Stage::Embed, || self.residual(&small));
        for (l, layer) in self.weights.layers.iter().enumerate() {
            let queues = &self.queues[l * QUEUES..(l + 1) * QUEUES];
            self.norm(&layer.attn_norm, rows.clone(), |i| i, &small);
            self.meet_unless_alone();
            self.qkv_and_attention(l, layer, &small, &queues[0], work);
            self.pool.barrier();
            self.show_attention(thread, l);
            self.out_proj(layer, rows.clone(), &small, &queues[1], work);
            self.pool.barrier();
            for r in rows.clone() {
                let hidden = self.config.hidden;
                // SAFETY: this thread's row; `projected` was complete before the barrier.
                let (x, y) = unsafe {
                    (
                        small.x.get_mut(r * hidden, hidden),
                        self.large.projected.get(r * hidden, hidden),
                    )
                };
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            }
            self.show(thread, Some(l), Stage::OutProjResidual, || {
                self.residual(&small)
            });
            self.norm(&layer.post_attention_norm, rows.clone(), |i| i, &small);
            self.router(layer, rows.clone(), &small, work);
            self.meet_unless_alone();
            self.route(layer, thread, &small, work);
            self.gate_up(layer, &small, &queues[2], work);
            self.pool.barrier();
            self.show_experts(thread, l, &small);
            self.down(layer, thread, &small, &queues[3], work);
            self.pool.barrier();
            for r in rows.clone() {
                self.add_experts(r, &small);
            }
            self.show(thread, Some(l), Stage::ExpertDownResidual, || {
                self.residual(&small)
            });
        }
        self.lm_head(thread, &small, work);
        // SAFETY: `show` looks between two barriers; so wherever values are shown below.
        self.show(thread, None, Stage::NormLmHead, || unsafe {
            let logits = self.logit_rows.len() * self.config.vocab;
            self.logits.get(0, logits).into()
        });
    }

    /// Where a trace is wanted: thread 0 shows `values` once all threads are here, and before any goes on.
    fn show<'v>(
        &self,
        thread: usize,
        layer: Option<usize>,
        stage: Stage,
        values: impl FnOnce() -> Cow<'v, [f32]>,
    ) {
        let Some(look) = self.look else { return };
        self.pool.barrier();
        if thread == 0 {
            look(layer, stage, values());
        }
        self.pool.barrier();
    }

    /// The residual of all rows.
    fn residual(&self, small: &Small<'a>) -> Cow<'a, [f32]> {
        // SAFETY: see `run`.
        unsafe { small.x.get(0, self.ids.len() * self.config.hidden) }.into()
    }

    /// `norm_qkv_rope_append`, complete only now that attention is, and `attention_reduce`.
    fn show_attention(&self, thread: usize, l: usize) {
        let (config, n) = (self.config, self.ids.len());
        let q_width = config.heads * config.head_dim;
        let width = q_width + 2 * config.kv_heads * config.head_dim;
        self.show(thread, Some(l), Stage::NormQkvRopeAppend, || {
            // SAFETY: see `run`.
            let mut qkv = unsafe { self.large.qkv.get(0, n * width) }.to_vec();
            // q has been scaled for the scores.
            let scale = (config.head_dim as f32).sqrt();
            let q = qkv
                .chunks_exact_mut(width)
                .flat_map(|row| &mut row[..q_width]);
            q.for_each(|q| *q *= scale);
            qkv.into()
        });
        // SAFETY: see `run`.
        self.show(thread, Some(l), Stage::AttentionReduce, || unsafe {
            self.large.attention.get(0, n * q_width).into()
        });
    }

    /// `norm_router_topk` and `expert_gate_up_swiglu`.
    fn show_experts(&self, thread: usize, l: usize, small: &Small<'a>) {
        let (used, experts) = (self.config.experts_used, self.config.experts);
        let pairs = self.ids.len() * used;
        // SAFETY: see `run`.
        let choices = || unsafe { small.choices.get(0, pairs) };
        self.show(thread, Some(l), Stage::NormRouterTopk, || {
            trace::expert_weights(choices(), used, experts).into()
        });
        self.show(thread, Some(l), Stage::ExpertGateUpSwiglu, || {
            // SAFETY: see `run`.
            let outputs = unsafe { self.large.swiglu.get(0, pairs * self.config.expert_width) };
            trace::by_expert(choices(), used, outputs).into()
        });
    }

    /// Whether every thread does the small stages for all rows itself.
    fn alone(&self) -> bool {
        self.ids.len() <= ALONE
    }

    /// The part of `n` rows that this thread does in small stages: all, or its share.
    fn share(&self, thread: usize, n: usize) -> Range<usize> {
        if self.alone() {
            return 0..n;
        }
        let threads = self.pool.threads();
        n * thread / threads..n * (thread + 1) / threads
    }

    fn meet_unless_alone(&self) {
        if !self.alone() {
            self.pool.barrier();
        }
    }

    /// h[i] = rmsnorm(x[row(i)]) and its quantized form.
    fn norm(
        &self,
        weight: &[f32],
        rows: Range<usize>,
        row: impl Fn(usize) -> usize,
        small: &Small<'a>,
    ) {
        let hidden = self.config.hidden;
        for i in rows {
            // SAFETY: this thread's rows of x, h and input.
            unsafe {
                let h = small.h.get_mut(i * hidden, hidden);
                self.kernels.rms_norm(
                    small.x.get(row(i) * hidden, hidden),
                    weight,
                    self.config.rms_eps,
                    h,
                );
                small.input.quantize(self.kernels, i, h);
            }
        }
    }

    /// `norm_qkv_rope_append`, then attention as each KV head becomes ready.
    fn qkv_and_attention(
        &self,
        l: usize,
        layer: &Layer,
        small: &Small<'a>,
        queue: &Queue,
        work: &mut Work,
    ) {
        let config = self.config;
        let (d, n) = (config.head_dim, self.ids.len());
        let (q_width, kv_width) = (config.heads * d, config.kv_heads * d);
        let per_head = qkv_items(config);
        let qkv = config.kv_heads * per_head;
        let total = qkv + self.plan.len(config.is_sliding(l));
        // The rows of item `i`: of which matrix, and from which column of q | k | v on.
        let place = |i: usize| {
            let (head, item) = (i / per_head, i % per_head);
            let (k_items, group) = (d.div_ceil(CHUNK), config.group() * d);
            let q_items = per_head - 2 * k_items;
            let (linear, base, rows, column) = if item < q_items {
                (&layer.q, head * group, chunk(item, group), 0)
            } else if item < q_items + k_items {
                (&layer.k, head * d, chunk(item - q_items, d), q_width)
            } else {
                let rows = chunk(item - q_items - k_items, d);
                (&layer.v, head * d, rows, q_width + kv_width)
            };
            (linear, base + rows.start..base + rows.end, column)
        };
        for (item, following) in queue.items(total) {
            if item >= qkv {
                self.attention_item(l, layer, item - qkv, work);
                continue;
            }
            let head = item / per_head;
            let (linear, rows, column) = place(item);
            let next = following.filter(|&i| i < qkv).map_or(&[][..], |i| {
                let (linear, rows, _) = place(i);
                linear.weight.row_data(rows)
            });
            let input = |r| self.input_h(small, r);
            self.linear(linear, rows.clone(), next, n, input, work);
            for r in 0..n {
                let from = &work.out[0][r * rows.len()..(r + 1) * rows.len()];
                // SAFETY: this item's columns of each row.
                let to = unsafe {
                    self.large.qkv.get_mut(
                        r * (q_width + 2 * kv_width) + column + rows.start,
                        rows.len(),
                    )
                };
                to.copy_from_slice(from);
            }
            let pending = &self.pending[l * config.kv_heads + head];
            if pending.fetch_sub(1, Ordering::AcqRel) == 2 {
                if !config.is_sliding(l) {
                    for (segment, s) in self.batch.segments.iter().enumerate() {
                        self.rope_append(l, head, segment, 0..s.tokens.len());
                    }
                }
                pending.store(0, Ordering::Release);
            }
        }
    }

    /// `out_proj_residual` but for the sum: projected = W_o a + b_o.
    fn out_proj(
        &self,
        layer: &Layer,
        rows: Range<usize>,
        small: &Small<'a>,
        queue: &Queue,
        work: &mut Work,
    ) {
        let (width, hidden, n) = (
            self.config.heads * self.config.head_dim,
            self.config.hidden,
            self.ids.len(),
        );
        // SAFETY: attention was complete before the last barrier.
        let attention = |r: usize| unsafe { self.large.attention.get(r * width, width) };
        for r in rows {
            // SAFETY: this thread's row of the quantized input, whose readers have passed the barrier.
            unsafe { small.input.quantize(self.kernels, r, attention(r)) };
        }
        self.meet_unless_alone();
        for (item, following) in queue.items(hidden.div_ceil(CHUNK)) {
            let rows = chunk(item, hidden);
            let next = following.map_or(&[][..], |i| layer.o.weight.row_data(chunk(i, hidden)));
            // SAFETY: quantized by this thread, or before the barrier.
            self.linear(
                &layer.o,
                rows.clone(),
                next,
                n,
                |r| unsafe { small.input.row(r, attention(r)) },
                work,
            );
            scatter(&self.large.projected, hidden, 0..n, &rows, &work.out[0]);
        }
    }

    /// `norm_router_topk` but for the norm: the experts of each row.
    fn router(&self, layer: &Layer, rows: Range<usize>, small: &Small<'a>, work: &mut Work) {
        let k = self.config.experts_used;
        for r in rows {
            let mut logits = std::mem::take(&mut work.router);
            self.product(
                &layer.router.weight,
                0..logits.len(),
                &[],
                &[self.input_h(small, r)],
                &mut logits,
                work,
            );
            logits
                .iter_mut()
                .zip(&layer.router.bias)
                .for_each(|(y, b)| *y += b);
            // SAFETY: this thread's row.
            choose(&logits, unsafe { small.choices.get_mut(r * k, k) });
            work.router = logits;
        }
    }

    /// Groups the rows by expert; every thread does so for itself.
    fn route(&self, layer: &Layer, thread: usize, small: &Small<'a>, work: &mut Work) {
        // SAFETY: written by this thread, or before the barrier.
        work.routing.group(unsafe {
            small
                .choices
                .get(0, self.ids.len() * self.config.experts_used)
        });
        if thread == 0 {
            let expert = |m: &Matrix| m.bytes() / self.config.experts;
            let bytes =
                expert(&layer.gate.weight) + expert(&layer.up.weight) + expert(&layer.down.weight);
            work.expert_bytes += (work.routing.active().len() * bytes) as u64;
        }
    }

    /// `expert_gate_up_swiglu`.
    fn gate_up(&self, layer: &Layer, small: &Small<'a>, queue: &Queue, work: &mut Work) {
        let (width, k) = (self.config.expert_width, self.config.experts_used);
        let chunks = width.div_ceil(CHUNK);
        let routing = std::mem::take(&mut work.routing);
        let place = |i: usize| expert_rows(routing.active()[i / chunks], i % chunks, width);
        for (item, following) in queue.items(routing.active().len() * chunks) {
            let (expert, rows, weights) = place(item);
            let next = following.map_or(&[][..], |i| layer.gate.weight.row_data(place(i).2));
            let pairs = routing.pairs(expert);
            let len = pairs.len() * rows.len();
            work.with_inputs(
                pairs.iter().map(|&p| self.input_h(small, p as usize / k)),
                |work, inputs| {
                    let [mut gate, mut up] = std::mem::take(&mut work.out);
                    self.product(
                        &layer.gate.weight,
                        weights.clone(),
                        layer.up.weight.row_data(weights.clone()),
                        inputs,
                        &mut gate[..len],
                        work,
                    );
                    self.product(
                        &layer.up.weight,
                        weights.clone(),
                        next,
                        inputs,
                        &mut up[..len],
                        work,
                    );
                    add_bias(&mut gate[..len], &layer.gate.bias[weights.clone()]);
                    add_bias(&mut up[..len], &layer.up.bias[weights]);
                    self.kernels
                        .swiglu(&mut gate[..len], &up[..len], self.config.swiglu_limit);
                    work.out = [gate, up];
                },
            );
            scatter(
                &self.large.swiglu,
                width,
                pairs.iter().map(|&p| p as usize),
                &rows,
                &work.out[0],
            );
        }
        work.routing = routing;
    }

    /// `expert_down_residual` but for the sum: W_down s + b_down of each pair.
    fn down(
        &self,
        layer: &Layer,
        thread: usize,
        small: &Small<'a>,
        queue: &Queue,
        work: &mut Work,
    ) {
        let (width, hidden) = (self.config.expert_width, self.config.hidden);
        // SAFETY: SwiGLU outputs were complete before the last barrier.
        let swiglu = |p: usize| unsafe { self.large.swiglu.get(p * width, width) };
        for p in self.share(thread, self.ids.len() * self.config.experts_used) {
            // SAFETY: this thread's pair.
            unsafe { small.pairs.quantize(self.kernels, p, swiglu(p)) };
        }
        self.meet_unless_alone();
        let chunks = hidden.div_ceil(CHUNK);
        let routing = std::mem::take(&mut work.routing);
        let place = |i: usize| expert_rows(routing.active()[i / chunks], i % chunks, hidden);
        for (item, following) in queue.items(routing.active().len() * chunks) {
            let (expert, rows, weights) = place(item);
            let next = following.map_or(&[][..], |i| layer.down.weight.row_data(place(i).2));
            let pairs = routing.pairs(expert);
            let len = pairs.len() * rows.len();
            // SAFETY: quantized by this thread, or before the barrier.
            let input = |&p: &u32| unsafe { small.pairs.row(p as usize, swiglu(p as usize)) };
            work.with_inputs(pairs.iter().map(input), |work, inputs| {
                let mut out = std::mem::take(&mut work.out[0]);
                self.product(
                    &layer.down.weight,
                    weights.clone(),
                    next,
                    inputs,
                    &mut out[..len],
                    work,
                );
                add_bias(&mut out[..len], &layer.down.bias[weights]);
                work.out[0] = out;
            });
            scatter(
                &self.large.experts,
                hidden,
                pairs.iter().map(|&p| p as usize),
                &rows,
                &work.out[0],
            );
        }
        work.routing = routing;
    }

    /// x[r] += the row's experts' outputs, weighted, best first.
    fn add_experts(&self, r: usize, small: &Small<'a>) {
        let (hidden, k) = (self.config.hidden, self.config.experts_used);
        // SAFETY: this thread's row; expert outputs were complete before the barrier.
        unsafe {
            let x = small.x.get_mut(r * hidden, hidden);
            for (rank, &(_, weight)) in small.choices.get(r * k, k).iter().enumerate() {
                let y = self.large.experts.get((r * k + rank) * hidden, hidden);
                x.iter_mut().zip(y).for_each(|(x, y)| *x += weight * y);
            }
        }
    }

    /// `norm_lm_head`.
    fn lm_head(&self, thread: usize, small: &Small<'a>, work: &mut Work) {
        let n = self.logit_rows.len();
        if n == 0 {
            return;
        }
        // Rows of x are spread over threads differently than rows of logits.
        self.meet_unless_alone();
        self.norm(
            &self.weights.output_norm,
            self.share(thread, n),
            |i| self.logit_rows[i],
            small,
        );
        self.meet_unless_alone();
        let output = &self.weights.output;
        let queue = &self.queues[self.weights.layers.len() * QUEUES];
        for (item, following) in queue.items(output.rows.div_ceil(CHUNK)) {
            let rows = chunk(item, output.rows);
            let next = following.map_or(&[][..], |i| output.row_data(chunk(i, output.rows)));
            let len = n * rows.len();
            work.with_inputs((0..n).map(|i| self.input_h(small, i)), |work, inputs| {
                let mut out = std::mem::take(&mut work.out[0]);
                self.product(output, rows.clone(), next, inputs, &mut out[..len], work);
                work.out[0] = out;
            });
            scatter(&self.logits, output.rows, 0..n, &rows, &work.out[0]);
        }
    }

    /// Row `r` of the normed residual, as written by this thread or before a barrier.
    fn input_h(&self, small: &Small<'a>, r: usize) -> XRow<'a> {
        // SAFETY: written by this thread, or before the barrier that precedes every use.
        unsafe {
            small
                .input
                .row(r, small.h.get(r * self.config.hidden, self.config.hidden))
        }
    }

    /// `work.out[0] = W[rows] x + b[rows]`, `[n, rows]`.
    fn linear(
        &self,
        linear: &Linear,
        rows: Range<usize>,
        next: &[u8],
        n: usize,
        input: impl Fn(usize) -> XRow<'a>,
        work: &mut Work,
    ) {
        let len = n * rows.len();
        work.with_inputs((0..n).map(input), |work, inputs| {
            let mut out = std::mem::take(&mut work.out[0]);
            let out_rows = &mut out[..len];
            self.product(&linear.weight, rows.clone(), next, inputs, out_rows, work);
            add_bias(&mut out[..len], &linear.bias[rows]);
            work.out[0] = out;
        });
    }

    /// `out = W[rows] x`, `[inputs, rows]`; `next` are the weights that this thread reads next.
    fn product(
        &self,
        weight: &Matrix,
        rows: Range<usize>,
        next: &[u8],
        inputs: &[XRow],
        out: &mut [f32],
        work: &mut Work,
    ) {
        let data = Rows {
            data: weight.row_data(rows.clone()),
            next,
            rows: rows.len(),
            cols: weight.cols,
        };
        self.kernels
            .matmul(weight.format, data, inputs, out, &mut work.panel);
        if let Some(offsets) = &weight.offsets {
            offsets::add(self.kernels, offsets, weight.cols, rows, inputs, out, work);
        }
    }
}

/// Rows of item `i` out of `rows`.
fn chunk(i: usize, rows: usize) -> Range<usize> {
    i * CHUNK..((i + 1) * CHUNK).min(rows)
}

/// Chunk `i` of an expert's `rows` outputs: the expert, its rows, and where they lie in the matrix
/// of all experts.
fn expert_rows(expert: u32, i: usize, rows: usize) -> (u32, Range<usize>, Range<usize>) {
    let (chunk, first) = (chunk(i, rows), expert as usize * rows);
    (
        expert,
        chunk.clone(),
        first + chunk.start..first + chunk.end,
    )
}

/// Adds `bias` to each row of `out`.
fn add_bias(out: &mut [f32], bias: &[f32]) {
    for row in out.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
}

/// Copies `out`, `[to_rows, columns]`, to columns `columns` of rows `to_rows` of `to`.
fn scatter(
    to: &Shared<f32>,
    width: usize,
    to_rows: impl IntoIterator<Item = usize>,
    columns: &Range<usize>,
    out: &[f32],
) {
    for (r, from) in to_rows.into_iter().zip(out.chunks_exact(columns.len())) {
        // SAFETY: an item's columns are its own in every row.
        unsafe { to.get_mut(r * width + columns.start, columns.len()) }.copy_from_slice(from);
    }
}
