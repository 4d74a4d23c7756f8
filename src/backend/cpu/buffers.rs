//! Activations: what the stages hand to each other.
//!
//! All memory is allocated once, for [`Limits::batch_tokens`](crate::backend::Limits); the views
//! here only say who owns which part. With few rows every thread has [`Small`] buffers of its own.
#![allow(unsafe_code)] // views of shared buffers

use super::{
    attention::tile_rows,
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
    /// What `new` takes.
    fn bytes(rows: usize, cols: usize) -> usize {
        let width = padded(cols);
        rows * (width + width / BLOCK * (size_of::<f32>() + size_of::<i32>()))
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
    /// Bytes that [`SmallMemory::new`] takes.
    pub fn bytes(config: &Config, rows: usize) -> usize {
        let pairs = rows * config.experts_used;
        2 * rows * config.hidden * size_of::<f32>()
            + QuantizedMemory::bytes(rows, config.hidden.max(config.heads * config.head_dim))
            + QuantizedMemory::bytes(pairs, config.expert_width)
            + pairs * size_of::<(u32, f32)>()
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
    /// Bytes that [`LargeMemory::new`] takes.
    pub fn bytes(config: &Config, rows: usize, partials: usize) -> usize {
        let q = config.heads * config.head_dim;
        let row = 2 * q + 2 * config.kv_heads * config.head_dim + config.hidden;
        let pair = config.expert_width + config.hidden;
        let values = rows * (row + config.experts_used * pair)
            + partials * config.heads * (config.head_dim + 2);
        values * size_of::<f32>()
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
    pub fn new(config: &Config, rows: usize, alone: usize, chunk: usize) -> Local {
        let (cols, tile_rows) = (widest(config), tile_rows(config));
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

impl Local {
    /// Bytes that [`Local::new`] takes.
    pub fn bytes(config: &Config, rows: usize, alone: usize, chunk: usize) -> usize {
        let (tile_rows, pairs) = (tile_rows(config), rows * config.experts_used);
        SmallMemory::bytes(config, alone)
            + Panel::bytes(widest(config))
            + Tile::bytes(tile_rows, config.head_dim)
            + 2 * rows * chunk * size_of::<f32>()
            + rows * size_of::<XRow>()
            + tile_rows * (size_of::<(f32, f32)>() + config.head_dim * size_of::<f32>())
            + (2 * config.experts + 1 + pairs) * size_of::<u32>()
            + config.experts * size_of::<f32>()
    }
}

/// Values of the widest input row of a product.
fn widest(config: &Config) -> usize {
    config
        .hidden
        .max(config.expert_width)
        .max(config.heads * config.head_dim)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backend::cpu::attention::PARTIALS, synth::Preset};

    /// Bytes that the buffers of a vector hold.
    fn of<T>(values: &[T]) -> usize {
        size_of_val(values)
    }

    #[test]
    fn what_is_counted_is_what_is_allocated() {
        let quantized = |m: &QuantizedMemory| of(&m.q) + of(&m.scale) + of(&m.sum);
        let small = |m: &SmallMemory| {
            of(&m.x) + of(&m.h) + quantized(&m.input) + quantized(&m.pairs) + of(&m.choices)
        };
        for (preset, rows) in [(Preset::B20, 512), (Preset::B120, 3), (Preset::Tiny, 100)] {
            let config = preset.config(1000);
            let memory = SmallMemory::new(&config, rows);
            assert_eq!(SmallMemory::bytes(&config, rows), small(&memory));
            let m = LargeMemory::new(&config, rows, PARTIALS);
            let large = [&m.qkv, &m.attention, &m.projected];
            let large = large
                .into_iter()
                .chain([&m.swiglu, &m.experts, &m.partials]);
            let large: usize = large.map(|values| of(values)).sum();
            assert_eq!(LargeMemory::bytes(&config, rows, PARTIALS), large);
            let local = Local::new(&config, rows, 3, 64);
            let (work, tile, panel) = (&local.work, &local.work.tile, &local.work.panel);
            let out: usize = work.out.iter().map(|out| of(out)).sum();
            let inputs = work.inputs.capacity() * size_of::<XRow>();
            let merged = of(&work.merged) + of(&work.merged_acc);
            let panel = of(&panel.weights) + of(&panel.scale) + of(&panel.inputs);
            let allocated = small(&local.small) + out + inputs + merged + panel;
            let allocated =
                allocated + tile.allocated() + work.routing.allocated() + of(&work.router);
            assert_eq!(Local::bytes(&config, rows, 3, 64), allocated);
        }
    }
}
