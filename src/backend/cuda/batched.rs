//! The layers for many rows at once, all but attention: whole-row kernels (kernels/norm.cu) around the
//! products of gemm.rs. Activations between them are f16 in paired order; the residual x is f32.
//!
//! The experts' outputs are added to x by the kernel that reads x next, a layer later or before the LM
//! head, so that every sum has one order.

use super::{
    Buffer, Device,
    gemm::{Input, Output, Products, QkvOut, Routes, Scaled},
    rows::{Router, RowKernels, Rows, padded},
    weights::{DeviceWeights, LayerWeights},
};
use crate::config::Config;
use anyhow::Result;
use half::f16;
use std::sync::Arc;

/// One batch on its way through the layers: addresses on the device.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// [`Row`](super::batch::Row)s.
    pub tokens: u64,
    /// How many.
    pub rows: usize,
    /// f32 `[rows, hidden]`.
    pub x: u64,
    /// u64 that counts experts whose weights are read, or 0.
    pub touched: u64,
    /// Those whose result is wanted: the last layer's experts and the LM head run for no other.
    pub wanted: Rows,
}

/// A layer's matrices with their exponents.
struct Layer {
    qkv: Scaled,
    out: Scaled,
    gate_up: Scaled,
    down: Scaled,
}

/// Kernels, work buffers and the scales of a model's weights.
pub struct Batched {
    config: Config,
    products: Products,
    rows: RowKernels,
    layers: Vec<Layer>,
    output: Scaled,
    _exponents: Buffer<u8>,
    buffers: Buffers,
}

/// Room for the most rows.
struct Buffers {
    /// `[rows, padded hidden]`.
    h: Buffer<f16>,
    /// `[rows * used, padded expert_width]`.
    s: Buffer<f16>,
    /// `[rows * used, hidden]`.
    y: Buffer<f32>,
    /// `[rows, used]`.
    ids: Buffer<i32>,
    /// `[rows, used]`.
    chosen: Buffer<f32>,
    /// `[rows * used]`.
    order: Buffer<i32>,
    /// Four words each.
    work: Buffer<i32>,
    count: Buffer<i32>,
}

impl Batched {
    /// Makes room for `max_rows` rows and finds the weights' scales.
    pub fn new(
        device: &Arc<Device>,
        config: &Config,
        weights: &DeviceWeights,
        max_rows: usize,
    ) -> Result<Batched> {
        let products = Products::new(device)?;
        let bytes = exponent_bytes(config, weights);
        let exponents = device.alloc(bytes, "the largest scales of the weights' rows")?;
        let mut at = 0;
        let mut scaled = |tiles, experts, cols| -> Result<Scaled> {
            let to = exponents.at(at);
            at += Products::exponent_bytes(&tiles, experts);
            products.exponents(tiles, experts, cols, to)
        };
        let mut layer = |l: &LayerWeights| -> Result<Layer> {
            Ok(Layer {
                qkv: scaled(l.qkv, 1, config.hidden)?,
                out: scaled(l.out, 1, config.heads * config.head_dim)?,
                gate_up: scaled(l.gate_up, config.experts, config.hidden)?,
                down: scaled(l.down, config.experts, config.expert_width)?,
            })
        };
        let layers = weights
            .layers
            .iter()
            .map(&mut layer)
            .collect::<Result<_>>()?;
        let output = scaled(weights.output, 1, config.hidden)?;
        Ok(Batched {
            rows: RowKernels::new(device, config)?,
            layers,
            output,
            buffers: Buffers::new(device, config, max_rows)?,
            _exponents: exponents,
            products,
            config: config.clone(),
        })
    }

    /// Bytes of device memory that [`Batched::new`] takes, without the weights' scales (a 34th of the
    /// weights' bytes at most, a 1,530th in gpt-oss-20b's experts).
    pub fn bytes(config: &Config, max_rows: usize) -> u64 {
        let sizes = Sizes::of(config, max_rows);
        (2 * (sizes.h + sizes.s) + 4 * (sizes.y + 3 * sizes.pairs + 4 * sizes.pieces + 1)) as u64
    }

    /// x = token_embd[token].
    pub fn embed(&self, weights: &DeviceWeights, step: &Step) -> Result<()> {
        let table = (weights.token_embd, weights.embd_format);
        self.rows.embed(table, step.tokens, step.x, step.rows)
    }

    /// Layer `index`: `attention` reads q and writes `attended`, f16 `[rows, heads, 64]`, which this
    /// reorders in place.
    pub fn layer(
        &self,
        index: usize,
        weights: &LayerWeights,
        step: &Step,
        qkv: QkvOut,
        attended: u64,
        attention: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let (config, layer) = (&self.config, &self.layers[index]);
        let all = Rows {
            list: 0,
            count: step.rows,
        };
        self.norm(step.x, index > 0, weights.attn_norm, all)?;
        let h = self.input(step.rows);
        self.products.multiply(&layer.qkv, h, Output::Qkv(qkv))?;
        attention()?;
        let width = config.heads * config.head_dim;
        self.rows.pair(attended, step.rows * width)?;
        let attended = Input {
            h: attended,
            rows: step.rows,
            stride: width,
        };
        let out = Output::OutProj {
            out: step.x,
            width: config.hidden,
            bias: weights.out_bias,
        };
        self.products.multiply(&layer.out, attended, out)?;
        let rows = if index + 1 == config.layers {
            step.wanted
        } else {
            all
        };
        self.experts(layer, weights, step, rows)
    }

    /// The experts' part of a layer, for `rows`.
    fn experts(
        &self,
        layer: &Layer,
        weights: &LayerWeights,
        step: &Step,
        rows: Rows,
    ) -> Result<()> {
        if rows.count == 0 {
            return Ok(());
        }
        let (config, buffers) = (&self.config, &self.buffers);
        let formats = [layer.gate_up.tiles.format, layer.down.tiles.format];
        let stride = padded(config.hidden.max(config.expert_width));
        let choice = (config.experts_used, config.experts);
        let shape = self.products.shape(formats, stride, rows.count, choice);
        let routes = Routes {
            ids: buffers.ids.ptr(),
            chosen: buffers.chosen.ptr(),
            order: buffers.order.ptr(),
            work: buffers.work.ptr(),
            touched: step.touched,
            count: buffers.count.ptr(),
            experts: config.experts,
            used: config.experts_used,
            shape,
        };
        let router = Router {
            norm: weights.post_norm,
            weight: weights.router,
            bias: weights.router_bias,
        };
        let h = buffers.h.ptr();
        self.rows
            .router(step.x, h, &router, step.tokens, rows, &routes)?;
        self.products.route(&routes, rows.count)?;
        let stride = padded(config.expert_width);
        let gate_up = Output::GateUp {
            out: buffers.s.ptr(),
            stride,
            width: config.expert_width,
            bias: weights.gate_bias,
            up_bias: weights.up_bias,
            limit: config.swiglu_limit,
            routes,
        };
        self.products
            .multiply(&layer.gate_up, self.input(rows.count), gate_up)?;
        let s = Input {
            h: buffers.s.ptr(),
            rows: rows.count,
            stride,
        };
        let down = Output::Down {
            out: buffers.y.ptr(),
            width: config.hidden,
            bias: weights.down_bias,
            routes,
        };
        self.products.multiply(&layer.down, s, down)
    }

    /// f32 logits `[wanted, vocab]` of the rows wanted, after the last layer.
    pub fn lm_head(&self, weights: &DeviceWeights, step: &Step, logits: u64) -> Result<()> {
        if step.wanted.count == 0 {
            return Ok(());
        }
        self.norm(step.x, true, weights.output_norm, step.wanted)?;
        let out = Output::LmHead {
            out: logits,
            width: self.config.vocab,
        };
        self.products
            .multiply(&self.output, self.input(step.wanted.count), out)
    }

    /// The normed rows.
    fn input(&self, rows: usize) -> Input {
        Input {
            h: self.buffers.h.ptr(),
            rows,
            stride: padded(self.config.hidden),
        }
    }

    /// x += what the experts left for these rows, if they did; h = rmsnorm(x).
    fn norm(&self, x: u64, experts: bool, weight: u64, rows: Rows) -> Result<()> {
        let (y, h) = (self.buffers.y.ptr(), self.buffers.h.ptr());
        self.rows.norm(x, experts.then_some(y), h, weight, rows)
    }
}

/// Bytes of the scales of all matrices.
fn exponent_bytes(config: &Config, weights: &DeviceWeights) -> usize {
    let of = Products::exponent_bytes;
    let layers = weights.layers.iter().map(|l| {
        of(&l.qkv, 1) + of(&l.out, 1) + of(&l.gate_up, config.experts) + of(&l.down, config.experts)
    });
    layers.sum::<usize>() + of(&weights.output, 1)
}

/// Values in the work buffers.
struct Sizes {
    h: usize,
    s: usize,
    y: usize,
    pairs: usize,
    pieces: usize,
}

impl Sizes {
    fn of(config: &Config, rows: usize) -> Sizes {
        let pairs = rows * config.experts_used;
        Sizes {
            h: rows * padded(config.hidden),
            s: pairs * padded(config.expert_width),
            y: pairs * config.hidden,
            pairs,
            pieces: Products::pieces(pairs, config.experts),
        }
    }
}

impl Buffers {
    fn new(device: &Arc<Device>, config: &Config, rows: usize) -> Result<Buffers> {
        let sizes = Sizes::of(config, rows);
        let what = "room for the activations of a batch";
        let mut buffers = Buffers {
            h: device.alloc(sizes.h, what)?,
            s: device.alloc(sizes.s, what)?,
            y: device.alloc(sizes.y, what)?,
            ids: device.alloc(sizes.pairs, what)?,
            chosen: device.alloc(sizes.pairs, what)?,
            order: device.alloc(sizes.pairs, what)?,
            work: device.alloc(4 * sizes.pieces, what)?,
            count: device.alloc(1, what)?,
        };
        // What is beyond a row's width stays zero; the rest only has to be finite.
        buffers.h.zero()?;
        buffers.s.zero()?;
        buffers.y.zero()?;
        Ok(buffers)
    }
}
