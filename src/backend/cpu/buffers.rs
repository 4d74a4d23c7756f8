//! Activations: what the stages hand to each other.
//!
//! All memory is allocated once, for [`Limits::batch_tokens`](crate::backend::Limits); the views
//! here only say who owns which part. With few rows every thread has [`Small`] buffers of its own.
#![allow(unsafe_code)] // views of shared buffers

use super::{
    kernels::{BLOCK, GROUP, Kernels, Panel, XRow, attention::Tile},
    moe::Routing,
    threads::Shared,
};
use crate::config::Config;

/// Rows of quantized activations, each at most `width` values.
#[derive(Clone, Copy)]
pub struct Quantized<'a> {
    width: usize,
    q: Shared<'a, i8>,
    scale: Shared<'a, f32>,
    sum: Shared<'a, i32>,
}

/// Values that a quantized row of `cols` takes.
fn padded(cols: usize) -> usize {
    cols.next_multiple_of(BLOCK * GROUP)
}

impl<'a> Quantized<'a> {
    /// Quantizes `x` into row `row`.
    ///
    /// # Safety
    /// No other thread uses this row.
    pub unsafe fn quantize(&self, kernels: &Kernels, row: usize, x: &[f32]) {
        let n = padded(x.len());
        assert!(n <= self.width);
        // SAFETY: this row's range, by the caller's promise.
        unsafe {
            kernels.quantize(
                x,
                self.q.get_mut(row * self.width, n),
                self.scale.get_mut(row * self.width / BLOCK, n / BLOCK),
                self.sum.get_mut(row * self.width / BLOCK, n / BLOCK),
            );
        }
    }

    /// Row `row`, quantized from `f`.
    ///
    /// # Safety
    /// No thread writes this row while it is used.
    pub unsafe fn row(&self, row: usize, f: &'a [f32]) -> XRow<'a> {
        let n = padded(f.len());
        // SAFETY: by the caller's promise.
        unsafe {
            XRow {
                f,
                q: self.q.get(row * self.width, n),
                scale: self.scale.get(row * self.width / BLOCK, n / BLOCK),
                sum: self.sum.get(row * self.width / BLOCK, n / BLOCK),
            }
        }
    }
}

/// Memory of a [`Quantized`].
struct QuantizedMemory {
    width: usize,
    q: Vec<i8>,
    scale: Vec<f32>,
    sum: Vec<i32>,
}

impl QuantizedMemory {
    fn new(rows: usize, cols: usize) -> QuantizedMemory {
        let width = padded(cols);
        let blocks = rows * width / BLOCK;
        QuantizedMemory {
            width,
            q: vec![0; rows * width],
            scale: vec![0.0; blocks],
            sum: vec![0; blocks],
        }
    }
    fn view(&mut self) -> Quantized<'_> {
        Quantized {
            width: self.width,
            q: Shared::new(&mut self.q),
            scale: Shared::new(&mut self.scale),
            sum: Shared::new(&mut self.sum),
        }
    }
}

/// Results of the small stages: everyone's, or one thread's own.
#[derive(Clone, Copy)]
pub struct Small<'a> {
    /// The residual, `[rows, hidden]`.
    pub x: Shared<'a, f32>,
    /// The normed residual, `[rows, hidden]`.
    pub h: Shared<'a, f32>,
    /// Quantized input of the next projection: `h`, or the attention output.
    pub input: Quantized<'a>,
    /// Quantized SwiGLU outputs, one a pair of row and expert.
    pub pairs: Quantized<'a>,
    /// Expert and weight, `[rows, experts_used]`, best first.
    pub choices: Shared<'a, (u32, f32)>,
}

/// Memory of a [`Small`].
pub struct SmallMemory {
    x: Vec<f32>,
    h: Vec<f32>,
    input: QuantizedMemory,
    pairs: QuantizedMemory,
    choices: Vec<(u32, f32)>,
}

impl SmallMemory {
    /// Room for `rows` rows.
    pub fn new(config: &Config, rows: usize) -> SmallMemory {
        let pairs = rows * config.experts_used;
        SmallMemory {
            x: vec![0.0; rows * config.hidden],
            h: vec![0.0; rows * config.hidden],
            input: QuantizedMemory::new(rows, config.hidden.max(config.heads * config.head_dim)),
            pairs: QuantizedMemory::new(pairs, config.expert_width),
            choices: vec![(0, 0.0); pairs],
        }
    }
    /// The view that stages use.
    pub fn view(&mut self) -> Small<'_> {
        Small {
            x: Shared::new(&mut self.x),
            h: Shared::new(&mut self.h),
            input: self.input.view(),
            pairs: self.pairs.view(),
            choices: Shared::new(&mut self.choices),
        }
    }
}

/// Outputs of the large stages, written by rows of weights and read by rows of tokens.
#[derive(Clone, Copy)]
pub struct Large<'a> {
    /// `[rows, q | k | v]`.
    pub qkv: Shared<'a, f32>,
    /// `[rows, heads * head_dim]`.
    pub attention: Shared<'a, f32>,
    /// `[rows, hidden]`.
    pub projected: Shared<'a, f32>,
    /// `[pairs, expert_width]`.
    pub swiglu: Shared<'a, f32>,
    /// `[pairs, hidden]`.
    pub experts: Shared<'a, f32>,
    /// Attention partials, see `attention.rs`.
    pub partials: Shared<'a, f32>,
}

/// Memory of a [`Large`].
pub struct LargeMemory {
    qkv: Vec<f32>,
    attention: Vec<f32>,
    projected: Vec<f32>,
    swiglu: Vec<f32>,
    experts: Vec<f32>,
    partials: Vec<f32>,
}

impl LargeMemory {
    /// Room for `rows` rows and `partials` partial results of all heads.
    pub fn new(config: &Config, rows: usize, partials: usize) -> LargeMemory {
        let q = config.heads * config.head_dim;
        let pairs = rows * config.experts_used;
        LargeMemory {
            qkv: vec![0.0; rows * (q + 2 * config.kv_heads * config.head_dim)],
            attention: vec![0.0; rows * q],
            projected: vec![0.0; rows * config.hidden],
            swiglu: vec![0.0; pairs * config.expert_width],
            experts: vec![0.0; pairs * config.hidden],
            partials: vec![0.0; partials * config.heads * (config.head_dim + 2)],
        }
    }
    /// The view that stages use.
    pub fn view(&mut self) -> Large<'_> {
        Large {
            qkv: Shared::new(&mut self.qkv),
            attention: Shared::new(&mut self.attention),
            projected: Shared::new(&mut self.projected),
            swiglu: Shared::new(&mut self.swiglu),
            experts: Shared::new(&mut self.experts),
            partials: Shared::new(&mut self.partials),
        }
    }
}

/// One thread's own working memory.
pub struct Local {
    /// Small stages of few rows.
    pub small: SmallMemory,
    /// What a thread's items use.
    pub work: Work,
}

/// Working memory of items.
pub struct Work {
    /// Unpacked weights.
    pub panel: Panel,
    /// Output of a chunk of weight rows, twice.
    pub out: [Vec<f32>; 2],
    /// Sums of activations by group, and their products with offsets.
    pub group_sums: Vec<f32>,
    /// See `group_sums`.
    pub rest: Vec<f32>,
    /// Inputs of an item; empty between items.
    pub inputs: Vec<XRow<'static>>,
    /// Query rows of an attention item.
    pub tile: Tile,
    /// Merged softmax state: maximum and sum by row, values `[rows, head_dim]`.
    pub merged: Vec<(f32, f32)>,
    /// See `merged`.
    pub merged_acc: Vec<f32>,
    /// Rows by expert.
    pub routing: Routing,
    /// Router logits of a row.
    pub router: Vec<f32>,
    /// Expert weight bytes read, counted by thread 0.
    pub expert_bytes: u64,
}

impl Local {
    /// Room for `rows` rows in large stages and `alone` in small ones; `chunk` weight rows an item.
    pub fn new(
        config: &Config,
        rows: usize,
        alone: usize,
        chunk: usize,
        tile_rows: usize,
    ) -> Local {
        let cols = config
            .hidden
            .max(config.expert_width)
            .max(config.heads * config.head_dim);
        Local {
            small: SmallMemory::new(config, alone),
            work: Work {
                panel: Panel::new(cols),
                out: [vec![0.0; rows * chunk], vec![0.0; rows * chunk]],
                group_sums: Vec::new(),
                rest: Vec::new(),
                inputs: Vec::with_capacity(rows),
                tile: Tile::new(tile_rows, config.head_dim),
                merged: vec![(0.0, 0.0); tile_rows],
                merged_acc: vec![0.0; tile_rows * config.head_dim],
                routing: Routing::new(config.experts, rows * config.experts_used),
                router: vec![0.0; config.experts],
                expert_bytes: 0,
            },
        }
    }
}

impl Work {
    /// Runs `item` with the input rows of `rows`, keeping the list's memory.
    pub fn with_inputs<'a>(
        &mut self,
        rows: impl Iterator<Item = XRow<'a>>,
        item: impl FnOnce(&mut Work, &[XRow<'a>]),
    ) {
        let mut inputs: Vec<XRow<'a>> = std::mem::take(&mut self.inputs);
        inputs.extend(rows);
        item(self, &inputs);
        inputs.clear();
        // An empty list of one lifetime becomes one of another; `collect` reuses its memory.
        self.inputs = inputs.into_iter().map(|_| XRow::default()).collect();
    }
}
