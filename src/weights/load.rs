//! Finds each tensor under the names converters give it, checks its shape, takes it as it is or
//! converts it.
//!
//! Names are those of llama.cpp's converter (Unsloth's files share them) and, where they can't be
//! misread, Ollama's older ones. Every tensor of a file must have been asked for in the end: one that
//! wasn't would be part of a model that we don't compute.

use super::{Cost, Format, Layer, Linear, Matrix, Tensors, Weights, convert::convert};
use crate::{
    config::Config,
    gguf::{Bytes, FileError, TensorInfo},
    quant::{self, GgmlType},
};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

/// Tensors of one type that were converted.
#[derive(Default)]
struct Converted {
    tensors: usize,
    from_bytes: usize,
    to_bytes: usize,
}

/// Takes tensors out of a file one by one.
pub(super) struct Loader<'a, T> {
    files: &'a T,
    config: &'a Config,
    /// Look at names, shapes and types only: converted matrices come back empty, vectors as zeros.
    dry: bool,
    taken: HashSet<&'a str>,
    converted: BTreeMap<(GgmlType, &'static str), Converted>,
    /// Memory for matrices that were rearranged.
    repacked_bytes: usize,
    notes: Vec<String>,
}

impl<'a, T: Tensors> Loader<'a, T> {
    pub(super) fn new(files: &'a T, config: &'a Config, dry: bool) -> Loader<'a, T> {
        Loader {
            files,
            config,
            dry,
            taken: HashSet::new(),
            converted: BTreeMap::new(),
            repacked_bytes: 0,
            notes: Vec::new(),
        }
    }

    /// All weights, and what they cost.
    pub(super) fn weights(mut self) -> Result<(Weights, Cost), FileError> {
        let c = self.config;
        let token_embd = self.matrix(&["token_embd.weight"], &[c.hidden, c.vocab])?;
        let layers = (0..c.layers)
            .map(|layer| self.layer(layer))
            .collect::<Result<Vec<_>, _>>()?;
        let output_norm = self.vector(&["output_norm.weight"], &[c.hidden])?;
        let output = self.output(&token_embd)?;
        for tensor in self.files.tensors() {
            if !self.taken.contains(tensor.name.as_str()) {
                let what = "expected the tensors of gpt-oss only, found this one besides";
                return Err(self.files.tensor_error(tensor, what));
            }
        }
        let weights = Weights {
            token_embd,
            layers,
            output_norm,
            output,
        };
        Ok((weights, self.into_cost()))
    }

    /// The LM head. A small model may tie it to the embedding by leaving it out; the released models
    /// don't, so a file of their size without it is incomplete.
    fn output(&mut self, token_embd: &Matrix) -> Result<Matrix, FileError> {
        let c = self.config;
        let released = c.hidden == 2880 && c.vocab > 200_000;
        if self.files.tensor("output.weight").is_none() && !released {
            let tied = "no tensor `output.weight`: using `token_embd.weight` for it (tied)";
            self.notes.push(tied.to_owned());
            return Ok(token_embd.clone());
        }
        self.matrix(&["output.weight"], &[c.hidden, c.vocab])
    }

    fn layer(&mut self, layer: usize) -> Result<Layer, FileError> {
        let c = self.config;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let gate_up = name("ffn_gate_up_exps.weight");
        if let Some(fused) = self.files.tensor(&gate_up) {
            return Err(self.files.tensor_error(fused, OLLAMA_FUSED));
        }
        let (q_rows, kv_rows) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let attn_norm = self.vector(&[&name("attn_norm.weight")], &[c.hidden])?;
        let [q, k, v] = if self.files.tensor(&name("attn_qkv.weight")).is_some() {
            self.fused_qkv(&name("attn_qkv"), q_rows, kv_rows)?
        } else {
            [
                self.linear(&[&name("attn_q")], &[c.hidden, q_rows])?,
                self.linear(&[&name("attn_k")], &[c.hidden, kv_rows])?,
                self.linear(&[&name("attn_v")], &[c.hidden, kv_rows])?,
            ]
        };
        Ok(Layer {
            attn_norm,
            q,
            k,
            v,
            o: self.linear(
                &[&name("attn_output"), &name("attn_out")],
                &[q_rows, c.hidden],
            )?,
            sinks: self.vector(
                &[&name("attn_sinks.weight"), &name("attn_sinks")],
                &[c.heads],
            )?,
            post_attention_norm: self.vector(
                &[
                    &name("post_attention_norm.weight"),
                    &name("ffn_norm.weight"),
                ],
                &[c.hidden],
            )?,
            router: self.linear(&[&name("ffn_gate_inp")], &[c.hidden, c.experts])?,
            gate: self.linear(
                &[&name("ffn_gate_exps")],
                &[c.hidden, c.expert_width, c.experts],
            )?,
            up: self.linear(
                &[&name("ffn_up_exps")],
                &[c.hidden, c.expert_width, c.experts],
            )?,
            down: self.linear(
                &[&name("ffn_down_exps")],
                &[c.expert_width, c.hidden, c.experts],
            )?,
        })
    }

    /// Ollama's `attn_qkv`: the rows of q, then of k, then of v.
    fn fused_qkv(
        &mut self,
        name: &str,
        q_rows: usize,
        kv_rows: usize,
    ) -> Result<[Linear; 3], FileError> {
        let fused = self.linear(&[name], &[self.config.hidden, q_rows + 2 * kv_rows])?;
        let part = |from: usize, rows: usize| Linear {
            weight: match fused.weight.data.is_empty() {
                true => Matrix {
                    rows,
                    ..fused.weight.clone()
                },
                false => fused.weight.rows(from..from + rows),
            },
            bias: fused.bias[from..from + rows].to_vec(),
        };
        Ok([
            part(0, q_rows),
            part(q_rows, kv_rows),
            part(q_rows + kv_rows, kv_rows),
        ])
    }

    /// `NAME.weight` of `dims` (innermost first) and `NAME.bias` of the same without the first.
    fn linear(&mut self, names: &[&str], dims: &[usize]) -> Result<Linear, FileError> {
        let with = |suffix: &str| -> Vec<String> {
            let name = |n: &&str| format!("{n}.{suffix}");
            names.iter().map(name).collect()
        };
        Ok(Linear {
            weight: self.matrix(&with("weight"), dims)?,
            bias: self.vector(&with("bias"), &dims[1..])?,
        })
    }

    /// The tensor that has one of `names`, of exactly these dimensions.
    fn take(
        &mut self,
        names: &[impl AsRef<str>],
        dims: &[usize],
    ) -> Result<&'a TensorInfo, FileError> {
        let files = self.files;
        let mut found = names.iter().filter_map(|n| files.tensor(n.as_ref()));
        let Some(tensor) = found.next() else {
            let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
            let names = names.join("` or `");
            return Err(files.error(format!("tensor `{names}`: expected, found no such tensor")));
        };
        if let Some(second) = found.next() {
            let what = format!("expected it or `{}`, found both", second.name);
            return Err(files.tensor_error(tensor, &what));
        }
        let mut shape = tensor.dims.as_slice();
        while let [front @ .., 1] = shape
            && front.len() >= dims.len()
        {
            shape = front;
        }
        if !shape.iter().copied().eq(dims.iter().map(|&d| d as u64)) {
            let what = format!("shape: expected {dims:?}, found {:?}", tensor.dims);
            return Err(files.tensor_error(tensor, &what));
        }
        self.taken.insert(&tensor.name);
        Ok(tensor)
    }

    /// A small tensor, copied to f32. Its values must be finite: one that isn't would silently turn
    /// every logit into NaN.
    fn vector(&mut self, names: &[impl AsRef<str>], dims: &[usize]) -> Result<Vec<f32>, FileError> {
        let tensor = self.take(names, dims)?;
        let bytes = self.files.data(tensor);
        if !matches!(tensor.kind, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) {
            let what = format!("type: expected F32, F16 or BF16, found {}", tensor.kind);
            return Err(self.files.tensor_error(tensor, &what));
        }
        let mut values = vec![0.0; dims.iter().product()];
        if self.dry {
            return Ok(values); // Memory that is never written costs nothing.
        }
        quant::dequantize(tensor.kind, &bytes, &mut values);
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let what = format!("expected finite values, found {} at {i}", values[i]);
            return Err(self.files.tensor_error(tensor, &what));
        }
        Ok(values)
    }

    /// A large tensor: as the file has it where back ends compute with its type, else converted.
    fn matrix(&mut self, names: &[impl AsRef<str>], dims: &[usize]) -> Result<Matrix, FileError> {
        let tensor = self.take(names, dims)?;
        let (cols, rows) = (dims[0], dims[1..].iter().product());
        if let Some(matrix) = self.files.repacked(tensor, self.dry)? {
            return Ok(self.count_repacked(tensor, matrix));
        }
        let as_it_is = |format| Matrix {
            format,
            rows,
            cols,
            data: self.files.data(tensor),
            offsets: None,
        };
        Ok(match tensor.kind {
            GgmlType::F32 => as_it_is(Format::F32),
            GgmlType::F16 => as_it_is(Format::F16),
            GgmlType::BF16 => as_it_is(Format::BF16),
            GgmlType::Q8_0 => as_it_is(Format::Q8_0),
            GgmlType::MXFP4 => as_it_is(Format::MXFP4),
            kind if kind.is_readable() => self.converted(tensor, rows, cols)?,
            GgmlType::OLLAMA_MXFP4 => return Err(self.files.tensor_error(tensor, OLLAMA_MXFP4)),
            kind => {
                let what = format!("type: {kind} can't be read. {READABLE}");
                return Err(self.files.tensor_error(tensor, &what));
            }
        })
    }

    fn converted(
        &mut self,
        tensor: &TensorInfo,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix, FileError> {
        let (format, data) = if self.dry {
            (Format::F16, Bytes::Owned(Arc::new([])))
        } else {
            convert(tensor.kind, &self.files.data(tensor), cols)
                .map_err(|what| self.files.tensor_error(tensor, &what))?
        };
        let sum = self
            .converted
            .entry((tensor.kind, format.name()))
            .or_default();
        sum.tensors += 1;
        sum.from_bytes += tensor.bytes;
        sum.to_bytes += rows * format.row_bytes(cols);
        Ok(Matrix {
            format,
            rows,
            cols,
            data,
            offsets: None,
        })
    }

    /// What a matrix takes that was rearranged. Dry, it stands for the form that is usual.
    fn count_repacked(&mut self, tensor: &TensorInfo, matrix: Matrix) -> Matrix {
        let data = matrix.rows * matrix.format.row_bytes(matrix.cols);
        let offsets = matrix.offsets.as_ref().map_or(0, |offsets| {
            matrix.rows * offsets.stride(matrix.cols) * size_of::<f32>()
        });
        self.repacked_bytes += data + offsets;
        if !self.dry && matrix.format == Format::F32 && tensor.kind == GgmlType::Q8_0 {
            let what = "has scales that no Q8_0 block can hold: kept as F32, four times as slow";
            self.notes.push(self.files.tensor_error(tensor, what).what);
        }
        matrix
    }

    fn into_cost(mut self) -> Cost {
        let converted = self.converted.values();
        let converted_bytes: u64 = converted.map(|sum| sum.to_bytes as u64).sum();
        let gb = |bytes: usize| bytes as f64 / 1e9;
        for ((kind, format), sum) in &self.converted {
            self.notes.push(format!(
                "{} {kind} tensors are converted to {format} at load: {:.2} GB in the file become \
                 {:.2} GB of memory, read as such for every token; a file of MXFP4 and Q8_0 \
                 (gossamer pull gpt-oss-20b) is smaller and faster",
                sum.tensors,
                gb(sum.from_bytes),
                gb(sum.to_bytes)
            ));
        }
        if self.dry && self.repacked_bytes > 0 {
            self.notes.push(format!(
                "rearranged at load, without rounding, into {} of memory; a GGUF file (gossamer convert) is only \
                 mapped",
                crate::hub::human(self.repacked_bytes as u64)
            ));
        }
        Cost {
            notes: self.notes,
            converted_bytes: converted_bytes + self.repacked_bytes as u64,
        }
    }
}

const READABLE: &str = "Gossamer reads F32, F16, BF16, Q8_0, MXFP4, and by converting Q4_0, Q4_1, \
    Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, IQ4_NL; `gossamer pull gpt-oss-20b` fetches a file it runs best";
const OLLAMA_FUSED: &str = "gate and up fused in one tensor, as Ollama's older converters write \
    them, can't be read; fetch llama.cpp's file with `gossamer pull gpt-oss-20b`";
const OLLAMA_MXFP4: &str = "type: Ollama's own MXFP4 (id 4) can't be read; fetch llama.cpp's file \
    with `gossamer pull gpt-oss-20b`";
