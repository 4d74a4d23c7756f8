//! A model's weights on the device: where each is, and how it gets there.

use super::{
    Buffer, Device, Grid,
    attention::QUERIES,
    gemm::MOST_EXPERTS,
    tiles::{Order, TileFormat, Tiles},
    upload::{Job, Target, sent, upload},
};
use crate::{
    config::Config,
    weights::{Layer, Matrix, Model},
};
use anyhow::{Result, ensure};
use indicatif::ProgressBar;
use std::sync::Arc;

/// Width of a head, which kernels are made for.
const HEAD_DIM: usize = 64;
/// Experts of a token that the decode chain's kernels have room for.
const MOST_USED: usize = 8;
/// Everything begins at a multiple of this.
const ALIGN: u64 = 256;

/// Where one layer's weights are. Vectors are f32 in the file's order.
#[derive(Debug, Clone, Copy)]
pub struct LayerWeights {
    /// `[hidden]`.
    pub attn_norm: u64,
    /// q, k and v as one matrix, [`Order::Heads`](super::tiles::Order::Heads).
    pub qkv: Tiles,
    /// `[heads + 2 kv_heads, 64]`.
    pub qkv_bias: u64,
    /// `[heads]`.
    pub sinks: u64,
    /// The output projection.
    pub out: Tiles,
    /// `[hidden]`.
    pub out_bias: u64,
    /// `[hidden]`.
    pub post_norm: u64,
    /// `[experts, hidden]`, f32.
    pub router: u64,
    /// `[experts]`.
    pub router_bias: u64,
    /// gate and up of each expert as one matrix, [`Order::Pairs`](super::tiles::Order::Pairs).
    pub gate_up: Tiles,
    /// `[experts, expert_width]`.
    pub gate_bias: u64,
    /// `[experts, expert_width]`.
    pub up_bias: u64,
    /// Of each expert.
    pub down: Tiles,
    /// `[experts, hidden]`.
    pub down_bias: u64,
}

/// Where a model's weights are.
pub struct DeviceWeights {
    /// By layer.
    pub layers: Vec<LayerWeights>,
    /// `[vocab, hidden]`, rows as in the file.
    pub token_embd: u64,
    /// Its type, ggml's id.
    pub embd_format: i32,
    /// `[hidden]`.
    pub output_norm: u64,
    /// The LM head.
    pub output: Tiles,
    /// f32 `[context, 2, 32]`: cos, then sin, times the concentration.
    pub rope: u64,
    /// Device memory of all, in bytes.
    pub bytes: u64,
    /// What the addresses point into.
    memory: (Vec<Buffer<u8>>, [Buffer<f32>; 2]),
}

/// Whether kernels are made for this shape.
pub fn check_shape(config: &Config) -> Result<()> {
    let need = |holds: bool, expected: String, found: usize| -> Result<()> {
        ensure!(
            holds,
            "the CUDA back end expected {expected}, found {found}; run this model with --backend cpu"
        );
        Ok(())
    };
    let (dim, group) = (config.head_dim, config.group());
    need(
        dim == HEAD_DIM,
        format!("heads of {HEAD_DIM} dimensions"),
        dim,
    )?;
    let most = format!("at most {QUERIES} query heads to a KV head");
    need(group <= QUERIES, most, group)?;
    let most = format!("up to {MOST_EXPERTS} experts");
    need(config.experts <= MOST_EXPERTS, most, config.experts)?;
    let most = format!("up to {MOST_USED} experts for a token");
    need(config.experts_used <= MOST_USED, most, config.experts_used)
}

/// Device memory that a model's weights take, in bytes.
pub fn device_bytes(model: &Model) -> u64 {
    Sizes::of(model).sum()
}

/// Bytes of each allocation.
struct Sizes {
    layers: Vec<u64>,
    tables: u64,
    vectors: u64,
    rope: u64,
}

impl Sizes {
    fn of(model: &Model) -> Sizes {
        let mut place = Place::default();
        let layers = model.weights.layers.iter().enumerate();
        let layers = layers
            .map(|(i, layer)| {
                place.matrices = 0;
                place.layer(&model.config, i, layer);
                place.matrices
            })
            .collect();
        place.matrices = 0;
        place.tables(model);
        Sizes {
            layers,
            tables: place.matrices,
            vectors: place.vectors,
            rope: (model.config.context * HEAD_DIM * size_of::<f32>()) as u64,
        }
    }

    fn sum(&self) -> u64 {
        self.layers.iter().sum::<u64>() + self.tables + self.vectors + self.rope
    }
}

impl DeviceWeights {
    /// Where the layers' matrices are, with their bytes.
    pub fn regions(&self) -> impl Iterator<Item = (u64, u64)> {
        let (matrices, _) = &self.memory;
        matrices.iter().map(|buffer| (buffer.ptr(), buffer.bytes()))
    }

    /// Copies a model's weights to the device; `progress` counts the file's bytes.
    pub fn upload(
        device: &Arc<Device>,
        model: &Model,
        progress: &ProgressBar,
    ) -> Result<DeviceWeights> {
        let config = &model.config;
        check_shape(config)?;
        let sizes = Sizes::of(model);
        let floats = |bytes: u64| bytes as usize / size_of::<f32>();
        let mut vectors = device.alloc::<f32>(floats(sizes.vectors), "norms and biases")?;
        let rope = device.alloc::<f32>(floats(sizes.rope), "the RoPE table")?;
        let mut place = Place {
            vectors: vectors.ptr(),
            ..Place::default()
        };
        let mut matrices = Vec::new();
        let mut layers = Vec::new();
        for (i, (layer, &bytes)) in model.weights.layers.iter().zip(&sizes.layers).enumerate() {
            let buffer = device.alloc::<u8>(bytes as usize, &format!("weights of layer {i}"))?;
            place.matrices = buffer.ptr();
            matrices.push(buffer);
            layers.push(place.layer(config, i, layer));
        }
        let buffer = device.alloc::<u8>(sizes.tables as usize, "the embedding and LM head")?;
        place.matrices = buffer.ptr();
        matrices.push(buffer);
        let tables = place.tables(model);
        progress.set_length(
            place
                .jobs
                .iter()
                .map(|j| (j.matrix.rows * sent(j.matrix).row_bytes(j.matrix.cols)) as u64)
                .sum(),
        );
        let values = place.values(vectors.ptr(), vectors.len());
        vectors.upload(0, &values)?;
        rope_table(device, config, tables.inv_freq, &rope)?;
        upload(device, &place.jobs, progress)?;
        Ok(DeviceWeights {
            layers,
            token_embd: tables.token_embd,
            embd_format: sent(&model.weights.token_embd).kind() as i32,
            output_norm: tables.output_norm,
            output: tables.output,
            rope: rope.ptr(),
            bytes: sizes.sum(),
            memory: (matrices, [vectors, rope]),
        })
    }
}

#[cfg(test)]
impl DeviceWeights {
    /// `len` bytes from an address on.
    pub(super) fn read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let (bytes, floats) = &self.memory;
        let mut out = vec![0; len];
        let inside = |start: u64, size: u64| at >= start && at + len as u64 <= start + size;
        if let Some(buffer) = bytes.iter().find(|b| inside(b.ptr(), b.bytes())) {
            buffer.download((at - buffer.ptr()) as usize, &mut out)?;
            return Ok(out);
        }
        let buffer = floats.iter().find(|b| inside(b.ptr(), b.bytes()));
        let buffer = buffer.ok_or_else(|| anyhow::anyhow!("no such address"))?;
        let mut values = vec![0f32; len / 4];
        buffer.download((at - buffer.ptr()) as usize / 4, &mut values)?;
        Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
}

/// What belongs to no layer.
struct Tables {
    token_embd: u64,
    output_norm: u64,
    output: Tiles,
    inv_freq: u64,
}

/// Gives each weight its address, and notes what goes there.
#[derive(Default)]
struct Place<'a> {
    /// The next free address of matrices.
    matrices: u64,
    /// The next free address of vectors.
    vectors: u64,
    jobs: Vec<Job<'a>>,
    notes: Vec<(u64, Values<'a>)>,
}

/// f32 values to be.
enum Values<'a> {
    /// One after another.
    Joined(Vec<&'a [f32]>),
    /// A matrix, decoded.
    Rows(&'a Matrix),
    Owned(Vec<f32>),
}

impl<'a> Place<'a> {
    fn layer(&mut self, config: &Config, index: usize, layer: &'a Layer) -> LayerWeights {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let (q, k, v) = (&layer.q, &layer.k, &layer.v);
        let qkv = [&q.weight, &k.weight, &v.weight];
        let heads = config.heads + 2 * config.kv_heads;
        let firsts = [0, config.heads, config.heads + config.kv_heads];
        let names = ["attn_q", "attn_k", "attn_v"].map(name);
        let fused = self.fused(1, heads * HEAD_DIM, Order::Heads, qkv, firsts, names);
        let (gate, up) = (&layer.gate, &layer.up);
        let names = ["ffn_gate_exps", "ffn_up_exps"].map(name);
        let halves = [&gate.weight, &up.weight];
        let rows = 2 * config.expert_width;
        let gate_up = self.fused(config.experts, rows, Order::Pairs, halves, [0, 1], names);
        let qkv_bias = self.joined([&q.bias, &k.bias, &v.bias]);
        LayerWeights {
            attn_norm: self.slice(&layer.attn_norm),
            qkv: fused,
            qkv_bias,
            sinks: self.slice(&layer.sinks),
            out: self.natural(1, &layer.o.weight, name("attn_output")),
            out_bias: self.slice(&layer.o.bias),
            post_norm: self.slice(&layer.post_attention_norm),
            router: self.note(
                layer.router.weight.rows * layer.router.weight.cols,
                Values::Rows(&layer.router.weight),
            ),
            router_bias: self.slice(&layer.router.bias),
            gate_up,
            gate_bias: self.slice(&gate.bias),
            up_bias: self.slice(&up.bias),
            down: self.natural(config.experts, &layer.down.weight, name("ffn_down_exps")),
            down_bias: self.slice(&layer.down.bias),
        }
    }

    fn tables(&mut self, model: &'a Model) -> Tables {
        let weights = &model.weights;
        let token_embd = self.matrices;
        let embd = &weights.token_embd;
        let bytes = embd.rows * sent(embd).row_bytes(embd.cols);
        self.matrices += (bytes as u64).next_multiple_of(ALIGN);
        self.jobs.push(Job {
            name: "token_embd.weight".into(),
            matrix: embd,
            to: Target::Raw(token_embd),
        });
        let inv_freq = Values::Owned(model.config.rope.inv_freq(HEAD_DIM));
        Tables {
            token_embd,
            output_norm: self.slice(&weights.output_norm),
            output: self.natural(1, &weights.output, "output.weight".into()),
            inv_freq: self.note(HEAD_DIM / 2, inv_freq),
        }
    }

    /// Several matrices as one, each of `count` experts with `rows` rows in all. Where they differ in
    /// format, all become F16.
    fn fused<const N: usize>(
        &mut self,
        count: usize,
        rows: usize,
        order: Order,
        parts: [&'a Matrix; N],
        offsets: [usize; N],
        names: [String; N],
    ) -> Tiles {
        let format = TileFormat::of(sent(parts[0]));
        let same = parts.iter().all(|p| TileFormat::of(sent(p)) == format);
        let format = if same { format } else { TileFormat::F16 };
        let tiles = self.tiles(count, Tiles::shape(format, rows, parts[0].cols));
        for ((matrix, offset), name) in parts.into_iter().zip(offsets).zip(names) {
            let to = Target::Tiles {
                tiles,
                format,
                order,
                offset,
            };
            self.jobs.push(Job { name, matrix, to });
        }
        tiles
    }

    fn natural(&mut self, count: usize, matrix: &'a Matrix, name: String) -> Tiles {
        self.fused(
            count,
            matrix.rows / count,
            Order::Natural,
            [matrix],
            [0],
            [name],
        )
    }

    /// Room for `count` matrices.
    fn tiles(&mut self, count: usize, shape: Tiles) -> Tiles {
        let data = self.matrices;
        self.matrices += ((count * shape.stride()) as u64).next_multiple_of(ALIGN);
        Tiles { data, ..shape }
    }

    fn slice(&mut self, values: &'a [f32]) -> u64 {
        self.joined([values])
    }

    fn joined<const N: usize>(&mut self, parts: [&'a [f32]; N]) -> u64 {
        let len = parts.iter().map(|p| p.len()).sum();
        self.note(len, Values::Joined(parts.into()))
    }

    fn note(&mut self, len: usize, values: Values<'a>) -> u64 {
        let at = self.vectors;
        self.vectors += ((len * size_of::<f32>()) as u64).next_multiple_of(ALIGN);
        self.notes.push((at, values));
        at
    }

    /// The vectors' values, `len` floats from address `base` on.
    fn values(&self, base: u64, len: usize) -> Vec<f32> {
        let mut all = vec![0.0; len];
        for (at, values) in &self.notes {
            let out = &mut all[(at - base) as usize / size_of::<f32>()..];
            match values {
                Values::Joined(parts) => {
                    let values = parts.iter().copied().flatten();
                    out.iter_mut().zip(values).for_each(|(o, v)| *o = *v);
                }
                Values::Owned(values) => out[..values.len()].copy_from_slice(values),
                Values::Rows(matrix) => {
                    for (row, out) in out.chunks_mut(matrix.cols).take(matrix.rows).enumerate() {
                        matrix.row_to_f32(row, out);
                    }
                }
            }
        }
        all
    }
}

/// What the kernel `rope_table` takes, as in kernels/repack.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct RopeTableArgs {
    table: u64,
    inv_freq: u64,
    positions: i32,
    concentration: f32,
}

fn rope_table(device: &Device, config: &Config, inv_freq: u64, table: &Buffer<f32>) -> Result<()> {
    let args = RopeTableArgs {
        table: table.ptr(),
        inv_freq,
        positions: config.context as i32,
        concentration: config.rope.concentration(),
    };
    let grid = Grid {
        blocks: (config.context.div_ceil(4) as u32, 1, 1),
        threads: 128,
        shared: 0,
        dependent: false,
    };
    device.launch(&device.kernel("rope_table")?, grid, &args)
}
