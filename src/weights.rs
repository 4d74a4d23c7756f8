//! Tensors to named, shape-checked fields.
//!
//! Loading copies norms, biases and sinks (small) and touches nothing else of a file whose weights
//! are all of a [`Format`]: they stay in the map.

mod convert;
mod load;
mod tensors;

pub use tensors::Tensors;

use crate::{
    config::Config,
    gguf::Bytes,
    quant::{self, GgmlType},
};

/// Element formats that back ends compute with; every other type is converted at load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Format {
    F32,
    F16,
    BF16,
    Q8_0,
    MXFP4,
}

impl Format {
    /// The same format as a tensor type.
    pub fn kind(self) -> GgmlType {
        match self {
            Format::F32 => GgmlType::F32,
            Format::F16 => GgmlType::F16,
            Format::BF16 => GgmlType::BF16,
            Format::Q8_0 => GgmlType::Q8_0,
            Format::MXFP4 => GgmlType::MXFP4,
        }
    }

    /// Its name, as ggml spells it.
    pub fn name(self) -> &'static str {
        self.kind().name()
    }

    /// Bytes of a row of `cols` values.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            Format::F32 => cols * 4,
            Format::F16 | Format::BF16 => cols * 2,
            Format::Q8_0 => cols / 32 * 34,
            Format::MXFP4 => cols / 32 * 17,
        }
    }
}

/// A row-major matrix `[rows, cols]` in the file's own blocks. `y = W x` has `rows` outputs.
#[derive(Clone)]
pub struct Matrix {
    /// Element format.
    pub format: Format,
    /// Outputs (for experts: experts x outputs, expert-major).
    pub rows: usize,
    /// Inputs; a multiple of 32.
    pub cols: usize,
    /// `rows * format.row_bytes(cols)` bytes, unaligned.
    pub data: Bytes,
    /// What is added to the values of each group of a row: what MLX's affine matrices have beyond Q8_0.
    pub offsets: Option<Offsets>,
}

/// A number for each group of a matrix's rows, to be added to its values.
#[derive(Clone)]
pub struct Offsets {
    /// Values of a group: 32, 64 or 128.
    pub group: usize,
    /// f32 `[rows, stride(cols)]`; those beyond a row's groups are zero.
    pub data: Bytes,
}

impl Offsets {
    /// Numbers of a row of `cols` values: its groups, rounded up to what the kernels step by.
    pub fn stride(&self, cols: usize) -> usize {
        (cols / self.group).next_multiple_of(16)
    }

    /// The bytes of rows `rows` of a matrix of `cols` columns.
    pub fn row_data(&self, rows: std::ops::Range<usize>, cols: usize) -> &[u8] {
        let n = self.stride(cols) * size_of::<f32>();
        &self.data[rows.start * n..rows.end * n]
    }
}

impl Matrix {
    /// Bytes of all of it.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.offsets.as_ref().map_or(0, |o| o.data.len())
    }

    /// The bytes of rows `rows`.
    pub fn row_data(&self, rows: std::ops::Range<usize>) -> &[u8] {
        let n = self.format.row_bytes(self.cols);
        &self.data[rows.start * n..rows.end * n]
    }

    /// Rows `rows` as a matrix of their own, sharing the bytes.
    ///
    /// # Panics
    /// When there are no such rows.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Matrix {
        let n = self.format.row_bytes(self.cols);
        Matrix {
            format: self.format,
            rows: rows.len(),
            cols: self.cols,
            data: self.data.slice(rows.start * n..rows.end * n),
            offsets: self.offsets.as_ref().map(|offsets| {
                let n = offsets.stride(self.cols) * size_of::<f32>();
                let data = offsets.data.slice(rows.start * n..rows.end * n);
                Offsets { data, ..*offsets }
            }),
        }
    }

    /// Decodes row `row` to f32, `[cols]`.
    ///
    /// # Panics
    /// When there is no such row or `out` isn't `cols` long.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        quant::dequantize(self.format.kind(), self.row_data(row..row + 1), out);
        if let Some(offsets) = &self.offsets {
            let groups = offsets.row_data(row..row + 1, self.cols).chunks_exact(4);
            for (out, offset) in out.chunks_exact_mut(offsets.group).zip(groups) {
                let offset = f32::from_le_bytes([offset[0], offset[1], offset[2], offset[3]]);
                out.iter_mut().for_each(|value| *value += offset);
            }
        }
    }
}

/// `y = W x + b`.
#[derive(Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Matrix,
    /// `[out]` (for experts `[experts * out]`).
    pub bias: Vec<f32>,
}

/// One layer.
pub struct Layer {
    /// `[hidden]`.
    pub attn_norm: Vec<f32>,
    /// `[heads * head_dim, hidden]`.
    pub q: Linear,
    /// `[kv_heads * head_dim, hidden]`.
    pub k: Linear,
    /// `[kv_heads * head_dim, hidden]`.
    pub v: Linear,
    /// `[hidden, heads * head_dim]`.
    pub o: Linear,
    /// `[heads]`: the learned sink logits.
    pub sinks: Vec<f32>,
    /// `[hidden]`.
    pub post_attention_norm: Vec<f32>,
    /// `[experts, hidden]`.
    pub router: Linear,
    /// `[experts * expert_width, hidden]`.
    pub gate: Linear,
    /// `[experts * expert_width, hidden]`.
    pub up: Linear,
    /// `[experts * hidden, expert_width]`.
    pub down: Linear,
}

/// All weights of a model.
pub struct Weights {
    /// `[vocab, hidden]`.
    pub token_embd: Matrix,
    /// The layers.
    pub layers: Vec<Layer>,
    /// `[hidden]`.
    pub output_norm: Vec<f32>,
    /// `[vocab, hidden]`, the LM head.
    pub output: Matrix,
}

/// A loaded model: shape and weights.
pub struct Model {
    /// The shape.
    pub config: Config,
    /// The weights.
    pub weights: Weights,
}

/// What [`Model::check`] finds before any weight is read.
pub struct Check {
    /// The shape, and weights of which only shapes, formats and places in the map mean something: converted
    /// matrices are empty, vectors zeros. Enough for a back end to count what they will take.
    pub model: Model,
    /// What loading it will cost.
    pub cost: Cost,
}

/// What loading takes beside the map.
pub struct Cost {
    /// What the user should know: conversions of other quantizations and their cost.
    pub notes: Vec<String>,
    /// Memory that loading takes for converted and repacked weights; all others stay in the map.
    pub converted_bytes: u64,
}

impl Model {
    /// Reads and checks shape and weights. What the user should know about them is told on stderr,
    /// before the work is done.
    pub fn load(files: &impl Tensors) -> anyhow::Result<Model> {
        let tell = |note: &str| tell!("{}: {note}", files.path().display());
        let before = Model::check(files)?.cost.notes;
        before.iter().for_each(|note| tell(note));
        let (model, after) = Model::load_with_notes(files)?;
        // A tensor that F16 couldn't hold became F32.
        let new = after.iter().filter(|note| !before.contains(note));
        new.for_each(|note| tell(note));
        Ok(model)
    }

    /// As [`Model::load`], with the notes returned instead of told.
    pub fn load_with_notes(files: &impl Tensors) -> anyhow::Result<(Model, Vec<String>)> {
        let config = files.config()?;
        let (weights, cost) = load::Loader::new(files, &config, false).weights()?;
        Ok((Model { config, weights }, cost.notes))
    }

    /// Whether [`Model::load`] would succeed, as far as metadata, names, shapes and types tell, and
    /// what it would cost. Reads no weight.
    pub fn check(files: &impl Tensors) -> anyhow::Result<Check> {
        let config = files.config()?;
        let (weights, cost) = load::Loader::new(files, &config, true).weights()?;
        let model = Model { config, weights };
        Ok(Check { model, cost })
    }
}
