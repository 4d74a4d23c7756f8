//! The layers for one to eight rows: the stages of kernels/decode.cu, each one launch.

use super::{
    Device, Grid, Kernel,
    batch::Cache,
    gemm::QkvOut,
    tiles::{TileFormat, Tiles},
    weights::{DeviceWeights, LayerWeights},
};
use crate::config::Config;
use anyhow::Result;
use half::f16;
use std::sync::Arc;

/// Rows at most: the columns of one tensor-core product.
pub const MOST_ROWS: usize = 8;
/// Warps of a block, and the stages of each warp's ring, as in kernels/stream.cuh.
const WARPS: usize = 16;
const STAGES: usize = 2;
/// Static shared memory of the kernels that route, and some more.
const ROUTING_BYTES: u32 = 2048;
const SLOT_BYTES: usize = 4 * super::tiles::UNIT_BYTES + 8;

/// Halves between two columns of activations in shared memory, as in kernels/stream.cuh.
fn column_stride(inputs: usize) -> usize {
    inputs.next_multiple_of(64) + 32
}

/// Shared memory of a stage, as in kernels/decode.cu.
fn shared(rows: usize, column_halves: usize) -> u32 {
    let sums = 2 * WARPS * 2 * rows * 16 + 2 * WARPS;
    (WARPS * STAGES * SLOT_BYTES + 4 * sums + 2 * column_halves) as u32
}

/// Inputs of a tile, padding included.
fn inputs(tiles: &Tiles) -> usize {
    tiles.units as usize * TileFormat::of_tiles(tiles).unit_inputs()
}

/// One stage's kernels, by the format of its weights.
struct Stage([Kernel; 3]);

impl Stage {
    fn new(device: &Device, name: &str) -> Result<Stage> {
        let kernel = |suffix: &str| device.kernel(&format!("{name}_{suffix}"));
        Ok(Stage([kernel("mxfp4")?, kernel("q8_0")?, kernel("f16")?]))
    }

    fn of(&self, tiles: &Tiles) -> &Kernel {
        &self.0[tiles.format as usize]
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct QkvArgs {
    w: Tiles,
    out: QkvOut,
    x: u64,
    norm: u64,
    eps: f32,
    rows: i32,
    hidden: i32,
    stages: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct OutArgs {
    w: Tiles,
    x: u64,
    attention: u64,
    bias: u64,
    rows: i32,
    inputs: i32,
    stages: i32,
    pad: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RouterArgs {
    x: u64,
    norm: u64,
    w: u64,
    bias: u64,
    logits: u64,
    eps: f32,
    rows: i32,
    hidden: i32,
    experts: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GateUpArgs {
    w: Tiles,
    x: u64,
    norm: u64,
    logits: u64,
    gate_bias: u64,
    up_bias: u64,
    out: u64,
    touched: u64,
    eps: f32,
    limit: f32,
    rows: i32,
    hidden: i32,
    width: i32,
    experts: i32,
    used: i32,
    out_stride: i32,
    stages: i32,
    pad: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct DownArgs {
    w: Tiles,
    x: u64,
    input: u64,
    logits: u64,
    bias: u64,
    rows: i32,
    experts: i32,
    used: i32,
    in_stride: i32,
    stages: i32,
    staged: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct HeadArgs {
    w: Tiles,
    x: u64,
    norm: u64,
    logits: u64,
    eps: f32,
    rows: i32,
    hidden: i32,
    stages: i32,
}

/// What a step reads and writes besides weights: addresses on the device.
#[derive(Debug, Clone, Copy)]
pub struct Io {
    /// [`Row`](super::batch::Row)s.
    pub tokens: u64,
    /// How many, 1 to [`MOST_ROWS`].
    pub rows: usize,
    /// [`Segment`](super::batch::Segment)s.
    pub segments: u64,
    /// f32 `[rows, hidden]`.
    pub x: u64,
    /// f16 `[rows, heads, 64]`.
    pub q: u64,
    /// f16 `[rows, kv_heads, 2, 64]`, or 0: keys and values go straight to the cache.
    pub fresh: u64,
    /// f16 `[rows, heads, 64]`.
    pub attended: u64,
}

/// Kernels and work buffers of the decode chain.
pub struct Decode {
    device: Arc<Device>,
    config: Config,
    qkv: Stage,
    out: Stage,
    router: Kernel,
    gate_up: Stage,
    down: Stage,
    head: Stage,
    /// f32 `[MOST_ROWS, experts]`.
    router_logits: super::Buffer<f32>,
    /// f16 `[MOST_ROWS * used + 1, stride]`; its last row stays zero.
    swiglu: super::Buffer<f16>,
    stride: usize,
    /// Rows for which all stages' activations fit into shared memory.
    most_rows: usize,
    /// Whether one row's inputs of `expert_down_residual` do.
    staged: bool,
}

impl Decode {
    /// Finds the kernels and makes room.
    pub fn new(device: &Arc<Device>, config: &Config, weights: &DeviceWeights) -> Result<Decode> {
        let stride = weights.layers.iter().map(|l| inputs(&l.down)).max();
        let stride = stride.unwrap_or(0).next_multiple_of(64);
        let rows = MOST_ROWS * config.experts_used + 1;
        let mut swiglu = device.alloc(rows * stride, "activations of experts")?;
        swiglu.zero()?;
        // Less what the kernels have besides: the routing.
        let room = device.shared_bytes().saturating_sub(ROUTING_BYTES);
        let fits = |rows: usize| {
            let widest = |l: &LayerWeights| {
                let columns = [l.qkv, l.out, l.gate_up].map(|tiles| column_stride(inputs(&tiles)));
                columns.into_iter().max().unwrap_or(0)
            };
            let widest = weights.layers.iter().map(widest).max().unwrap_or(0);
            let widest = widest.max(column_stride(inputs(&weights.output)));
            shared(rows, rows * widest) <= room
        };
        let most_rows = (1..=MOST_ROWS).take_while(|&rows| fits(rows)).last();
        let staged = shared(1, config.experts_used * column_stride(stride)) <= room;
        let stage = |name| Stage::new(device, name);
        Ok(Decode {
            qkv: stage("qkv")?,
            out: stage("out_proj")?,
            router: device.kernel("norm_router")?,
            gate_up: stage("gate_up")?,
            down: stage("down")?,
            head: stage("lm_head")?,
            router_logits: device.alloc(MOST_ROWS * config.experts, "router scores")?,
            swiglu,
            stride,
            most_rows: most_rows.unwrap_or(0),
            staged,
            config: config.clone(),
            device: device.clone(),
        })
    }

    /// Rows at most of a pass, up to [`MOST_ROWS`]: as many as this GPU's shared memory has room for.
    pub fn most_rows(&self) -> usize {
        self.most_rows
    }

    /// Device memory, in bytes, of [`Decode::new`].
    pub fn bytes(config: &Config) -> u64 {
        let rows = MOST_ROWS * config.experts_used + 1;
        let stride = config.expert_width.next_multiple_of(64);
        (2 * rows * stride + 4 * MOST_ROWS * config.experts) as u64
    }

    fn grid(&self, tiles: usize, shared: u32) -> Grid {
        let blocks = (self.device.multiprocessors() as usize).min(tiles).max(1);
        Grid {
            blocks: (blocks as u32, 1, 1),
            threads: (WARPS * 32) as u32,
            shared,
            dependent: true,
        }
    }

    /// One layer: `attention` reads q and writes `attended`; `touched` is a u64 counter of experts read.
    pub fn layer(
        &self,
        weights: &LayerWeights,
        io: &Io,
        cache: Cache,
        rope: u64,
        touched: u64,
        attention: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let (config, device, rows) = (&self.config, &self.device, io.rows);
        let columns = |tiles: &Tiles| rows * column_stride(inputs(tiles));
        let qkv = QkvArgs {
            w: weights.qkv,
            out: QkvOut {
                q: io.q,
                fresh: io.fresh,
                cache,
                bias: weights.qkv_bias,
                rope,
                rows: io.tokens,
                segments: io.segments,
                heads: config.heads as i32,
                kv_heads: config.kv_heads as i32,
            },
            x: io.x,
            norm: weights.attn_norm,
            eps: config.rms_eps,
            rows: rows as i32,
            hidden: config.hidden as i32,
            stages: STAGES as i32,
        };
        let grid = self.grid(qkv.w.tiles as usize, shared(rows, columns(&qkv.w)));
        device.launch(self.qkv.of(&qkv.w), grid, &qkv)?;
        attention()?;
        let out = OutArgs {
            w: weights.out,
            x: io.x,
            attention: io.attended,
            bias: weights.out_bias,
            rows: rows as i32,
            inputs: (config.heads * config.head_dim) as i32,
            stages: STAGES as i32,
            pad: 0,
        };
        let grid = self.grid(out.w.tiles as usize, shared(rows, columns(&out.w)));
        device.launch(self.out.of(&out.w), grid, &out)?;
        self.experts(weights, io, touched)
    }

    fn experts(&self, weights: &LayerWeights, io: &Io, touched: u64) -> Result<()> {
        let (config, device, rows) = (&self.config, &self.device, io.rows);
        let router = RouterArgs {
            x: io.x,
            norm: weights.post_norm,
            w: weights.router,
            bias: weights.router_bias,
            logits: self.router_logits.ptr(),
            eps: config.rms_eps,
            rows: rows as i32,
            hidden: config.hidden as i32,
            experts: config.experts as i32,
        };
        let grid = Grid {
            blocks: (config.experts as u32, 1, 1),
            threads: 256,
            shared: 0,
            dependent: true,
        };
        device.launch(&self.router, grid, &router)?;
        let active = config.experts.min(rows * config.experts_used);
        let gate_up = GateUpArgs {
            w: weights.gate_up,
            x: io.x,
            norm: weights.post_norm,
            logits: self.router_logits.ptr(),
            gate_bias: weights.gate_bias,
            up_bias: weights.up_bias,
            out: self.swiglu.ptr(),
            touched,
            eps: config.rms_eps,
            limit: config.swiglu_limit,
            rows: rows as i32,
            hidden: config.hidden as i32,
            width: config.expert_width as i32,
            experts: config.experts as i32,
            used: config.experts_used as i32,
            out_stride: self.stride as i32,
            stages: STAGES as i32,
            pad: 0,
        };
        let halves = rows * column_stride(inputs(&gate_up.w));
        let grid = self.grid(active * gate_up.w.tiles as usize, shared(rows, halves));
        device.launch(self.gate_up.of(&gate_up.w), grid, &gate_up)?;
        // One row's inputs fit into shared memory; those of more are read where they are.
        let staged = rows == 1 && self.staged;
        let down = DownArgs {
            w: weights.down,
            x: io.x,
            input: self.swiglu.ptr(),
            logits: self.router_logits.ptr(),
            bias: weights.down_bias,
            rows: rows as i32,
            experts: config.experts as i32,
            used: config.experts_used as i32,
            in_stride: self.stride as i32,
            stages: STAGES as i32,
            staged: staged.into(),
        };
        let halves = match staged {
            true => config.experts_used * column_stride(self.stride),
            false => 0,
        };
        let grid = self.grid(down.w.tiles as usize, shared(rows, halves));
        device.launch(self.down.of(&down.w), grid, &down)
    }

    /// f32 logits `[rows, vocab]` of all rows.
    pub fn lm_head(&self, weights: &DeviceWeights, io: &Io, logits: u64) -> Result<()> {
        let args = HeadArgs {
            w: weights.output,
            x: io.x,
            norm: weights.output_norm,
            logits,
            eps: self.config.rms_eps,
            rows: io.rows as i32,
            hidden: self.config.hidden as i32,
            stages: STAGES as i32,
        };
        let halves = io.rows * column_stride(inputs(&args.w));
        let grid = self.grid(args.w.tiles as usize, shared(io.rows, halves));
        self.device.launch(self.head.of(&args.w), grid, &args)
    }
}
