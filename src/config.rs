//! The gpt-oss shape, read from a file's metadata and checked.
//!
//! Invariant: a [`Config`] that exists is one that the kernels can run: dimensions are multiples of
//! what they step by, and so bounded that products of any few of them fit in a usize.

use crate::gguf::{FileError, Gguf, Value};
use std::ops::RangeInclusive;

/// gpt-oss clamps gate and up projections at this value.
pub const SWIGLU_LIMIT: f32 = 7.0;

/// The model's shape. Field names follow docs/model.md.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Name from the file, or its architecture.
    pub name: String,
    /// Transformer layers.
    pub layers: usize,
    /// Residual width.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head (even; 64 in the release).
    pub head_dim: usize,
    /// Experts a layer.
    pub experts: usize,
    /// Experts a token uses.
    pub experts_used: usize,
    /// Expert width.
    pub expert_width: usize,
    /// Vocabulary, padding included.
    pub vocab: usize,
    /// Longest context the model was made for.
    pub context: usize,
    /// Sliding window on even layers, the token itself included.
    pub window: usize,
    /// RMSNorm epsilon.
    pub rms_eps: f32,
    /// The clamp of SwiGLU, [`SWIGLU_LIMIT`] in every gpt-oss model (no metadata key names it).
    pub swiglu_limit: f32,
    /// Rotary embedding.
    pub rope: Rope,
}

/// RoPE with YaRN scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base, 150000.
    pub theta: f32,
    /// YaRN factor, 32; 1 means plain RoPE.
    pub factor: f32,
    /// Context before scaling, 4096.
    pub original_context: usize,
    /// YaRN beta_fast, 32.
    pub beta_fast: f32,
    /// YaRN beta_slow, 1.
    pub beta_slow: f32,
    /// Round the correction range as llama.cpp and mlx-lm do (`--rope-compat`); the release does not.
    pub rounded: bool,
}

impl Config {
    /// Reads the shape from metadata, `gpt-oss.*` or (Ollama's) `gptoss.*`. Errors name the key,
    /// what was expected and what was found. Shapes of tensors are checked by
    /// [`Model::load`](crate::weights::Model::load).
    pub fn from_gguf(gguf: &Gguf) -> Result<Config, FileError> {
        let arch = gguf.str("general.architecture")?.ok_or_else(|| {
            gguf.error("key `general.architecture`: expected `gpt-oss`, found no such key")
        })?;
        if !["gpt-oss", "gptoss"].contains(&arch) {
            return Err(gguf.error(format!(
                "key `general.architecture`: expected `gpt-oss`, found `{arch}`: Gossamer runs \
                 gpt-oss models only"
            )));
        }
        let keys = Keys { gguf, arch };
        let layers = keys.size("block_count", 1..=1024)?;
        let hidden = keys.blocks("embedding_length", 1 << 16)?;
        let heads = keys.size("attention.head_count", 1..=1024)?;
        let kv_heads = keys.size("attention.head_count_kv", 1..=1024)?;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of the {heads} query heads");
            return Err(keys.wrong("attention.head_count_kv", &expected, kv_heads));
        }
        let head_dim = keys.head_dim()?;
        if !(heads * head_dim).is_multiple_of(32) {
            let expected = format!("heads x head width (x {head_dim}) to be a multiple of 32");
            return Err(keys.wrong("attention.head_count", &expected, heads));
        }
        let experts = keys.size("expert_count", 1..=4096)?;
        let experts_used = keys.size("expert_used_count", 1..=experts.min(64))?;
        let width = match keys.get("expert_feed_forward_length") {
            Some(_) => "expert_feed_forward_length",
            None => "feed_forward_length",
        };
        let expert_width = keys.blocks(width, 1 << 16)?;
        let context = keys.size("context_length", 1..=1 << 24)?;
        let window = keys.size("attention.sliding_window", 1..=1 << 20)?;
        keys.alternating_layers(layers)?;
        let rms_eps = keys.float("attention.layer_norm_rms_epsilon", None, 1e-12..=0.1)?;
        let rope = keys.rope()?;
        Ok(Config {
            name: gguf
                .str("general.name")
                .ok()
                .flatten()
                .unwrap_or(arch)
                .to_owned(),
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
            experts,
            experts_used,
            expert_width,
            vocab: keys.vocab()?,
            context,
            window,
            rms_eps,
            swiglu_limit: SWIGLU_LIMIT,
            rope,
        })
    }

    /// Whether layer `layer` attends to the last `window` positions only (0, 2, 4 …).
    pub fn is_sliding(&self, layer: usize) -> bool {
        layer.is_multiple_of(2)
    }
    /// Layers that attend to the last `window` positions only.
    pub fn sliding_layers(&self) -> usize {
        self.layers.div_ceil(2)
    }
    /// How far back a row depends on other rows where the full-attention layers' keys and values are
    /// given: each sliding layer looks `window - 1` positions back. 1,524 in gpt-oss-20b.
    pub fn receptive_field(&self) -> usize {
        self.sliding_layers() * (self.window - 1)
    }
    /// Query heads that share one KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

impl Rope {
    /// Inverse frequencies, `[head_dim / 2]`, computed in f64.
    ///
    /// YaRN keeps the fast dimensions (below `low`), divides the slow ones (above `high`) by
    /// `factor`, and ramps between. The release leaves `low` and `high` as they fall (8.093 and
    /// 17.398); [`Rope::rounded`] takes floor and ceiling.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let (d, theta) = (head_dim as f64, self.theta as f64);
        let correction = |beta: f32| {
            let turns = self.original_context as f64 / (beta as f64 * std::f64::consts::TAU);
            d * turns.ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (correction(self.beta_fast), correction(self.beta_slow));
        if self.rounded {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d - 1.0));
        let width = (high - low).max(1e-3);
        (0..head_dim / 2)
            .map(|i| {
                let kept = theta.powf(-2.0 * i as f64 / d);
                if self.factor <= 1.0 {
                    return kept as f32;
                }
                let slow = ((i as f64 - low) / width).clamp(0.0, 1.0);
                (kept * (1.0 - slow) + kept / self.factor as f64 * slow) as f32
            })
            .collect()
    }
    /// What cos and sin are multiplied by: `0.1 ln(factor) + 1`.
    pub fn concentration(&self) -> f32 {
        if self.factor <= 1.0 {
            1.0
        } else {
            0.1 * self.factor.ln() + 1.0
        }
    }
}

/// The architecture's keys of one file.
struct Keys<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn get(&self, key: &str) -> Option<Value<'_>> {
        self.gguf.get(&self.full(key))
    }

    fn wrong(&self, key: &str, expected: &str, found: impl std::fmt::Display) -> FileError {
        let key = self.full(key);
        self.gguf
            .error(format!("key `{key}`: expected {expected}, found {found}"))
    }

    /// An integer in `range`.
    fn size(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, FileError> {
        let expected = || format!("an integer from {} to {}", range.start(), range.end());
        let Some(found) = self.gguf.u64(&self.full(key))? else {
            return Err(self.wrong(key, &expected(), "no such key"));
        };
        match usize::try_from(found) {
            Ok(size) if range.contains(&size) => Ok(size),
            _ => Err(self.wrong(key, &expected(), found)),
        }
    }

    /// A row length: a multiple of 32, the values of a quantized block.
    fn blocks(&self, key: &str, most: usize) -> Result<usize, FileError> {
        let size = self.size(key, 32..=most)?;
        if size.is_multiple_of(32) {
            Ok(size)
        } else {
            Err(self.wrong(key, "a multiple of 32", size))
        }
    }

    /// A number in `range`, or `default` when the key is absent.
    fn float(
        &self,
        key: &str,
        default: Option<f32>,
        range: RangeInclusive<f32>,
    ) -> Result<f32, FileError> {
        let expected = || format!("a number from {} to {}", range.start(), range.end());
        let found = match (self.gguf.f32(&self.full(key))?, default) {
            (Some(found), _) => found,
            (None, Some(default)) => return Ok(default),
            (None, None) => return Err(self.wrong(key, &expected(), "no such key")),
        };
        if range.contains(&found) {
            Ok(found)
        } else {
            Err(self.wrong(key, &expected(), found))
        }
    }

    fn head_dim(&self) -> Result<usize, FileError> {
        let (key, other) = match self.get("attention.key_length") {
            Some(_) => ("attention.key_length", "attention.value_length"),
            None => ("attention.value_length", "attention.key_length"),
        };
        let head_dim = self.size(key, 16..=256)?;
        if !head_dim.is_multiple_of(16) {
            return Err(self.wrong(key, "a multiple of 16", head_dim));
        }
        for same in [other, "rope.dimension_count"] {
            if self.get(same).is_some() {
                let found = self.size(same, 1..=1 << 16)?;
                if found != head_dim {
                    let expected = format!("{head_dim}, as {}", self.full(key));
                    return Err(self.wrong(same, &expected, found));
                }
            }
        }
        Ok(head_dim)
    }

    /// gpt-oss slides on every even layer. Files need not say so; one that says otherwise is refused.
    fn alternating_layers(&self, layers: usize) -> Result<(), FileError> {
        let key = "attention.sliding_window_pattern";
        let fits = match self.get(key) {
            None => true,
            Some(Value::Array(pattern)) => {
                pattern.len >= layers
                    && pattern
                        .iter()
                        .take(layers)
                        .enumerate()
                        .all(|(layer, value)| {
                            let slides = value.as_bool().or(value.as_u64().map(|v| v != 0));
                            slides == Some(layer.is_multiple_of(2))
                        })
            }
            Some(period) => period.as_u64() == Some(2),
        };
        if fits {
            Ok(())
        } else {
            Err(self.wrong(key, "every second layer from layer 0 on", "another pattern"))
        }
    }

    fn rope(&self) -> Result<Rope, FileError> {
        let theta = self.float("rope.freq_base", None, 1.5..=1e12)?;
        let key = "rope.scaling.type";
        let kind = self.gguf.str(&self.full(key))?;
        let yarn = match kind {
            Some("yarn") => true,
            Some("none") => false,
            // Ollama's files give the factor only.
            None => self.get("rope.scaling.factor").is_some(),
            Some(other) => return Err(self.wrong(key, "`yarn` or `none`", format!("`{other}`"))),
        };
        let mut rope = Rope {
            theta,
            factor: 1.0,
            original_context: 0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            rounded: false,
        };
        if !yarn {
            return Ok(rope);
        }
        rope.factor = self.float("rope.scaling.factor", None, 1.0..=65536.0)?;
        rope.original_context = self.size("rope.scaling.original_context_length", 1..=1 << 24)?;
        rope.beta_fast = self.float("rope.scaling.yarn_beta_fast", Some(32.0), 1e-3..=1e6)?;
        rope.beta_slow = self.float("rope.scaling.yarn_beta_slow", Some(1.0), 1e-3..=1e6)?;
        if rope.beta_fast <= rope.beta_slow {
            let expected = format!("more than yarn_beta_slow, {}", rope.beta_slow);
            return Err(self.wrong("rope.scaling.yarn_beta_fast", &expected, rope.beta_fast));
        }
        // Settings that gpt-oss doesn't have: refused rather than ignored.
        for (key, neutral) in [
            ("rope.scaling.yarn_ext_factor", 1.0),
            ("rope.scaling.yarn_attn_factor", 1.0),
            ("rope.scaling.attn_factor", 1.0),
            ("rope.scaling.yarn_log_multiplier", 0.0),
        ] {
            let found = self.float(key, Some(neutral), f32::MIN..=f32::MAX)?;
            if found != neutral {
                return Err(self.wrong(key, &format!("{neutral}"), found));
            }
        }
        Ok(rope)
    }

    /// Rows of the vocabulary: the tokenizer's tokens and the embedding agree, or one is absent.
    fn vocab(&self) -> Result<usize, FileError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = self.gguf.strings(key)?.map(|s| s.len());
        let rows = self
            .gguf
            .tensor("token_embd.weight")
            .and_then(|t| t.dims.get(1).copied());
        let (what, found) = match (tokens, rows) {
            (Some(tokens), Some(rows)) if tokens as u64 != rows => {
                return Err(self.gguf.error(format!(
                    "key `{key}`: expected {rows} tokens, one for each row of tensor \
                     `token_embd.weight`, found {tokens}"
                )));
            }
            (Some(tokens), _) => (format!("key `{key}`"), tokens as u64),
            (None, Some(rows)) => ("tensor `token_embd.weight`".to_owned(), rows),
            (None, None) => {
                return Err(self
                    .gguf
                    .error(format!("key `{key}`: expected, found no such key")));
            }
        };
        match usize::try_from(found) {
            Ok(n @ 1..=4_194_304) => Ok(n),
            _ => Err(self.gguf.error(format!(
                "{what}: expected a vocabulary of 1 to 4194304, found {found}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two variants differ on the ramp only, most (by 76 %) in dimension 17.
    #[test]
    fn yarn_ramp_is_unrounded_unless_asked() {
        let mut rope = Rope {
            theta: 150000.0,
            factor: 32.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            rounded: false,
        };
        let released = rope.inv_freq(64);
        rope.rounded = true;
        let rounded = rope.inv_freq(64);
        let differs: Vec<usize> = (0..32).filter(|&i| released[i] != rounded[i]).collect();
        assert_eq!(differs, (9..=17).collect::<Vec<_>>());
        assert_eq!(released[0], 1.0);
        let relative = rounded[17] / released[17] - 1.0;
        assert!((relative.abs() - 0.76).abs() < 0.01, "{relative}");
        rope.factor = 1.0;
        assert_eq!(rope.inv_freq(64)[31], 150000f64.powf(-62.0 / 64.0) as f32);
    }
}
