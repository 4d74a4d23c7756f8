//! Which of a folder's tensors is which of the model's, in the two layouts that people publish.
//!
//! MLX's: gate and up apart, a quantized module as `weight` (codes in U32), `scales` and, where affine,
//! `biases`. OpenAI's release on Hugging Face: gate and up in alternating rows of one `gate_up_proj`, experts
//! as `_blocks` and `_scales`. Shapes are compared with what config.json implies, never computed with:
//! afterwards every [`Part`] is as long as its [`Source`] says. Every tensor must be part of the model in the
//! end.

use super::{
    header::Raw,
    settings::{Packing, Settings},
    source::{Affine, Part, Source, Stride},
};
use crate::{
    config::Config,
    gguf::{FileError, TensorInfo},
    quant::GgmlType,
};
use safetensors::Dtype;
use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

/// One tensor of the model.
#[derive(Debug)]
pub(super) struct Tensor {
    /// Name as llama.cpp's converter gives it, dimensions as GGUF writes them, the type it is read as. `bytes`
    /// are those in the folder.
    pub info: TensorInfo,
    /// Its name in the folder.
    pub own: String,
    pub source: Source,
}

/// A layer's modules: llama.cpp's name, MLX's, and whether they have a bias.
const SMALL: [(&str, &str); 3] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_sinks.weight", "self_attn.sinks"),
    (
        "post_attention_norm.weight",
        "post_attention_layernorm.weight",
    ),
];

/// Finds all of the model's tensors among `raw`.
pub(super) fn tensors(
    settings: &Settings,
    config: &Config,
    paths: &[PathBuf],
    raw: &[Raw],
) -> Result<Vec<Tensor>, FileError> {
    let mut by_name = HashMap::new();
    for tensor in raw {
        if by_name.insert(tensor.name.as_str(), tensor).is_some() {
            let what = format!("tensor `{}`: expected once, found again", tensor.name);
            return Err(FileError::new(&paths[tensor.file], what));
        }
    }
    let mut finder = Finder {
        settings,
        paths,
        by_name,
        taken: HashSet::new(),
        found: Vec::new(),
    };
    finder.refuse_others()?;
    finder.model(config)?;
    for tensor in raw {
        if !finder.taken.contains(tensor.name.as_str()) {
            let what = "expected the tensors of gpt-oss only, found this one besides";
            return Err(finder.wrong(tensor, what));
        }
    }
    Ok(finder.found)
}

struct Finder<'a> {
    settings: &'a Settings,
    paths: &'a [PathBuf],
    by_name: HashMap<&'a str, &'a Raw>,
    taken: HashSet<&'a str>,
    found: Vec<Tensor>,
}

impl<'a> Finder<'a> {
    /// Layouts that are known and not read.
    fn refuse_others(&self) -> Result<(), FileError> {
        let has = |name: &str| self.by_name.get(name).copied();
        if let Some(tensor) = has("block.0.attn.qkv.weight").or(has("embedding.weight")) {
            return Err(self.wrong(tensor, ORIGINAL));
        }
        if let Some(tensor) = has("model.layers.0.mlp.experts.gate_up_proj") {
            return Err(self.wrong(tensor, DENSE));
        }
        Ok(())
    }

    fn model(&mut self, c: &Config) -> Result<(), FileError> {
        self.matrix(
            "token_embd.weight",
            "model.embed_tokens",
            &[c.hidden, c.vocab],
        )?;
        for layer in 0..c.layers {
            let gguf = |name: &str| format!("blk.{layer}.{name}");
            let own = |name: &str| format!("model.layers.{layer}.{name}");
            for (name, mlx) in SMALL {
                let len = if name.starts_with("attn_sinks") {
                    c.heads
                } else {
                    c.hidden
                };
                self.vector(&gguf(name), &[&own(mlx)], &[len], Stride::ALL)?;
            }
            let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
            for (name, mlx, dims) in [
                ("attn_q", "self_attn.q_proj", [c.hidden, q]),
                ("attn_k", "self_attn.k_proj", [c.hidden, kv]),
                ("attn_v", "self_attn.v_proj", [c.hidden, kv]),
                ("attn_output", "self_attn.o_proj", [q, c.hidden]),
                ("ffn_gate_inp", "mlp.router", [c.hidden, c.experts]),
            ] {
                let (own, bias) = (own(mlx), format!("{}.bias", own(mlx)));
                self.matrix(&gguf(&format!("{name}.weight")), &own, &dims)?;
                self.vector(
                    &gguf(&format!("{name}.bias")),
                    &[&bias],
                    &dims[1..],
                    Stride::ALL,
                )?;
            }
            let both = own("mlp.experts.gate_up_proj");
            let [gate, up, down] = [
                (
                    "ffn_gate_exps",
                    own("mlp.experts.gate_proj"),
                    [c.hidden, c.expert_width],
                ),
                (
                    "ffn_up_exps",
                    own("mlp.experts.up_proj"),
                    [c.hidden, c.expert_width],
                ),
                (
                    "ffn_down_exps",
                    own("mlp.experts.down_proj"),
                    [c.expert_width, c.hidden],
                ),
            ];
            let halves = [(gate, Stride::EVEN), (up, Stride::ODD)];
            let is_release = self.by_name.contains_key(format!("{both}_blocks").as_str());
            for ((name, own, [cols, rows]), stride) in halves {
                let (own, stride) = if is_release {
                    (&both, stride)
                } else {
                    (&own, Stride::ALL)
                };
                self.experts(&gguf(name), own, [cols, rows, c.experts], stride)?;
            }
            let (name, own, [cols, rows]) = down;
            self.experts(&gguf(name), &own, [cols, rows, c.experts], Stride::ALL)?;
        }
        let norm = "model.norm.weight";
        self.vector("output_norm.weight", &[norm], &[c.hidden], Stride::ALL)?;
        if self.by_name.contains_key("lm_head.weight") {
            self.matrix("output.weight", "lm_head", &[c.hidden, c.vocab])?;
        }
        Ok(())
    }

    /// All experts' matrices and biases; `dims` are those of the part that `stride` takes.
    fn experts(
        &mut self,
        gguf: &str,
        own: &str,
        dims: [usize; 3],
        stride: Stride,
    ) -> Result<(), FileError> {
        let [cols, rows, experts] = dims;
        let weight = format!("{gguf}.weight");
        let blocks = format!("{own}_blocks");
        if self.by_name.contains_key(blocks.as_str()) {
            let shape = [experts, rows * stride.step, cols / 32];
            let codes = self.take(&blocks, &[&shape[..], &[16]].concat(), &[Dtype::U8])?;
            let scales = self.take(&format!("{own}_scales"), &shape, E8M0)?;
            let source = Source::Mxfp4 {
                codes: Part::of(codes),
                scales: Part::of(scales),
                rows: stride,
            };
            let bytes = (codes.range.len() + scales.range.len()) / stride.step;
            self.found(
                &weight,
                &blocks,
                &dims,
                GgmlType::MXFP4,
                codes,
                bytes,
                source,
            );
        } else {
            self.matrix(&weight, own, &dims)?;
        }
        let names = [format!("{own}.bias"), format!("{own}_bias")];
        let names = [names[0].as_str(), names[1].as_str()];
        self.vector(&format!("{gguf}.bias"), &names, &dims[1..], stride)
    }

    /// `OWN.weight` of `dims` (innermost first), as floats or as MLX packs them.
    fn matrix(&mut self, gguf: &str, own: &str, dims: &[usize]) -> Result<(), FileError> {
        let name = format!("{own}.weight");
        let (cols, outer) = (dims[0], dims[1..].iter().rev().copied().collect::<Vec<_>>());
        let shape = |last: usize| [&outer[..], &[last]].concat();
        if !self.by_name.contains_key(format!("{own}.scales").as_str()) {
            let values = self.take(&name, &shape(cols), FLOATS)?;
            let source = Source::Float {
                values: Part::of(values),
                rows: Stride::ALL,
            };
            let kind = float(values.dtype);
            self.found(gguf, &name, dims, kind, values, values.range.len(), source);
            return Ok(());
        }
        let packing = self.packing(own, cols)?;
        let groups = shape(cols / packing.group);
        let codes = self.take(&name, &shape(cols * packing.bits / 32), &[Dtype::U32])?;
        let scales = format!("{own}.scales");
        if packing.mxfp4 {
            let scales = self.take(&scales, &groups, E8M0)?;
            let source = Source::Mxfp4 {
                codes: Part::of(codes),
                scales: Part::of(scales),
                rows: Stride::ALL,
            };
            let bytes = codes.range.len() + scales.range.len();
            self.found(gguf, &name, dims, GgmlType::MXFP4, codes, bytes, source);
            return Ok(());
        }
        let scales = self.take(&scales, &groups, FLOATS)?;
        let biases = self.take(&format!("{own}.biases"), &groups, FLOATS)?;
        let source = Source::Affine(Affine {
            codes: Part::of(codes),
            scales: Part::of(scales),
            biases: Part::of(biases),
            bits: packing.bits,
            group: packing.group,
        });
        let bytes = codes.range.len() + scales.range.len() + biases.range.len();
        // The router is a thousandth of the weights, and decides which of the rest are used.
        let kind = match gguf.ends_with("ffn_gate_inp.weight") {
            true => GgmlType::F32,
            false => GgmlType::Q8_0,
        };
        self.found(gguf, &name, dims, kind, codes, bytes, source);
        Ok(())
    }

    /// How `own` is packed: as its shapes say, which config.json must not contradict.
    fn packing(&self, own: &str, cols: usize) -> Result<Packing, FileError> {
        let last = |name: String| {
            self.by_name
                .get(name.as_str())
                .and_then(|raw| raw.shape.last())
        };
        let mxfp4 = !self.by_name.contains_key(format!("{own}.biases").as_str());
        let (codes, groups) = (last(format!("{own}.weight")), last(format!("{own}.scales")));
        let bits = [4, 8]
            .into_iter()
            .find(|bits| codes == Some(&(cols * bits / 32)));
        let group = ([32, 64, 128].into_iter())
            .find(|group| cols.is_multiple_of(*group) && groups == Some(&(cols / group)));
        let found = match (bits, group) {
            (Some(bits), Some(group)) => Packing { group, bits, mxfp4 },
            _ => return Err(self.settings_error(own, PACKINGS)),
        };
        if found.mxfp4 && (found.bits, found.group) != (4, 32) {
            return Err(self.settings_error(own, PACKINGS));
        }
        match self.settings.packing(own)? {
            Some(said) if said != found => Err(self.settings_error(
                own,
                &format!(
                    "config.json says {}, its tensors are {}",
                    show(said),
                    show(found)
                ),
            )),
            _ => Ok(found),
        }
    }

    /// A small tensor that has one of `names`.
    fn vector(
        &mut self,
        gguf: &str,
        names: &[&str],
        dims: &[usize],
        rows: Stride,
    ) -> Result<(), FileError> {
        let there = names.iter().find(|name| self.by_name.contains_key(**name));
        let name = there.or(names.first()).copied().unwrap_or_default();
        let mut shape: Vec<usize> = dims.iter().rev().copied().collect();
        if let Some(last) = shape.last_mut() {
            *last *= rows.step;
        }
        let values = self.take(name, &shape, FLOATS)?;
        let source = Source::Float {
            values: Part::of(values),
            rows,
        };
        let bytes = values.range.len() / rows.step;
        self.found(gguf, name, dims, float(values.dtype), values, bytes, source);
        Ok(())
    }

    /// The tensor `name`, of exactly this shape (outermost first) and one of `types`. Halves of one tensor are
    /// taken twice.
    fn take(&mut self, name: &str, shape: &[usize], types: &[Dtype]) -> Result<&'a Raw, FileError> {
        let Some(&tensor) = self.by_name.get(name) else {
            return Err(self.settings_error(name, "expected, found no such tensor"));
        };
        if tensor.shape != shape {
            let what = format!("shape: expected {shape:?}, found {:?}", tensor.shape);
            return Err(self.wrong(tensor, &what));
        }
        if !types.contains(&tensor.dtype) {
            let types: Vec<String> = types.iter().map(|t| format!("{t:?}")).collect();
            let what = format!(
                "type: expected {}, found {:?}",
                types.join(", "),
                tensor.dtype
            );
            return Err(self.wrong(tensor, &what));
        }
        self.taken.insert(&tensor.name);
        Ok(tensor)
    }

    #[allow(clippy::too_many_arguments)] // a constructor
    fn found(
        &mut self,
        gguf: &str,
        own: &str,
        dims: &[usize],
        kind: GgmlType,
        at: &Raw,
        bytes: usize,
        source: Source,
    ) {
        let info = TensorInfo {
            name: gguf.to_owned(),
            dims: dims.iter().map(|&d| d as u64).collect(),
            kind,
            file: at.file,
            offset: at.range.start,
            bytes,
        };
        let own = own.to_owned();
        self.found.push(Tensor { info, own, source });
    }

    fn wrong(&self, tensor: &Raw, what: &str) -> FileError {
        let what = format!("tensor `{}`: {what}", tensor.name);
        FileError::new(&self.paths[tensor.file], what)
    }

    /// About a tensor that need not be there: names the file that would hold it, or the first.
    fn settings_error(&self, name: &str, what: &str) -> FileError {
        let file = self
            .by_name
            .get(format!("{name}.weight").as_str())
            .map_or(0, |raw| raw.file);
        let path = self.paths.get(file).cloned().unwrap_or_default();
        FileError::new(&path, format!("tensor `{name}`: {what}"))
    }
}

fn float(dtype: Dtype) -> GgmlType {
    match dtype {
        Dtype::F32 => GgmlType::F32,
        Dtype::F16 => GgmlType::F16,
        _ => GgmlType::BF16,
    }
}

fn show(packing: Packing) -> String {
    let mode = if packing.mxfp4 { "mxfp4" } else { "affine" };
    format!(
        "{mode} of {} bits in groups of {}",
        packing.bits, packing.group
    )
}

const FLOATS: &[Dtype] = &[Dtype::BF16, Dtype::F16, Dtype::F32];
const E8M0: &[Dtype] = &[Dtype::U8, Dtype::F8_E8M0];
const PACKINGS: &str = "Gossamer reads MLX's mxfp4 (4 bits, groups of 32) and affine matrices of 4 or 8 bits \
    in groups of 32, 64 or 128; this one is packed otherwise";
const ORIGINAL: &str = "this is the layout of the release's folder `original`, which can't be read; the folder \
    around it holds the same weights under Hugging Face's names: point to that one";
const DENSE: &str = "experts as dense matrices, as fine-tuning leaves them, can't be read; the MXFP4 release can \
    (gossamer pull gpt-oss-20b), or what `mlx_lm.convert` makes of this folder";
