//! Reads the shape from whatever names it: each value is found, typed and bounded here, whichever file
//! it comes from.

use super::{Config, Rope, SWIGLU_LIMIT};
use crate::gguf::{FileError, Gguf, Value};
use std::{fmt::Display, ops::RangeInclusive};

/// Where a shape is read from. Keys are GGUF's without the architecture: `block_count`.
pub(crate) trait Fields {
    /// The model's name.
    fn name(&self) -> String;
    /// How the file itself calls `key`, for errors.
    fn label(&self, key: &str) -> String;
    /// An error about the file.
    fn error(&self, what: String) -> FileError;
    /// A non-negative integer, if the key is there.
    fn u64(&self, key: &str) -> Result<Option<u64>, FileError>;
    /// A number, if the key is there.
    fn f32(&self, key: &str) -> Result<Option<f32>, FileError>;
    /// A string, if the key is there.
    fn str(&self, key: &str) -> Result<Option<&str>, FileError>;
    /// Whether the file gives `key` a value, of any type.
    fn has(&self, key: &str) -> bool;
    /// Whether the sliding layers, as far as the file names them, are 0, 2, 4 … of `layers`.
    fn alternates(&self, layers: usize) -> bool;
    /// Rows of the vocabulary, and what says so.
    fn vocab(&self) -> Result<(String, u64), FileError>;
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
        Config::read(&Keys { gguf, arch })
    }

    /// Reads and checks every value.
    pub(crate) fn read(fields: &impl Fields) -> Result<Config, FileError> {
        let keys = Checked(fields);
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
        let width = match fields.has("expert_feed_forward_length") {
            true => "expert_feed_forward_length",
            false => "feed_forward_length",
        };
        let expert_width = keys.blocks(width, 1 << 16)?;
        let context = keys.size("context_length", 1..=1 << 24)?;
        let window = keys.size("attention.sliding_window", 1..=1 << 20)?;
        // gpt-oss slides on every even layer. Files need not say so; one that says otherwise is refused.
        if !fields.alternates(layers) {
            return Err(keys.wrong(
                "attention.sliding_window_pattern",
                "every second layer from layer 0 on",
                "another pattern",
            ));
        }
        let rms_eps = keys.float("attention.layer_norm_rms_epsilon", None, 1e-12..=0.1)?;
        Ok(Config {
            name: fields.name(),
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
            rope: keys.rope()?,
        })
    }
}

/// The architecture's keys of one GGUF file.
struct Keys<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }
}

impl Fields for Keys<'_> {
    fn name(&self) -> String {
        let name = self.gguf.str("general.name").ok().flatten();
        name.unwrap_or(self.arch).to_owned()
    }

    fn label(&self, key: &str) -> String {
        format!("key `{}`", self.full(key))
    }

    fn error(&self, what: String) -> FileError {
        self.gguf.error(what)
    }

    fn u64(&self, key: &str) -> Result<Option<u64>, FileError> {
        self.gguf.u64(&self.full(key))
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, FileError> {
        self.gguf.f32(&self.full(key))
    }

    fn str(&self, key: &str) -> Result<Option<&str>, FileError> {
        self.gguf.str(&self.full(key))
    }

    fn has(&self, key: &str) -> bool {
        self.gguf.get(&self.full(key)).is_some()
    }

    fn alternates(&self, layers: usize) -> bool {
        match self
            .gguf
            .get(&self.full("attention.sliding_window_pattern"))
        {
            None => true,
            Some(Value::Array(pattern)) => {
                let mut layer_values = pattern.iter().take(layers).enumerate();
                pattern.len >= layers
                    && layer_values.all(|(layer, value)| {
                        let slides = value.as_bool().or(value.as_u64().map(|v| v != 0));
                        slides == Some(layer.is_multiple_of(2))
                    })
            }
            Some(period) => period.as_u64() == Some(2),
        }
    }

    /// The tokenizer's tokens and the embedding agree, or one is absent.
    fn vocab(&self) -> Result<(String, u64), FileError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = self.gguf.strings(key)?.map(|s| s.len());
        let rows = self
            .gguf
            .tensor("token_embd.weight")
            .and_then(|t| t.dims.get(1).copied());
        match (tokens, rows) {
            (Some(tokens), Some(rows)) if tokens as u64 != rows => Err(self.gguf.error(format!(
                "key `{key}`: expected {rows} tokens, one for each row of tensor \
                 `token_embd.weight`, found {tokens}"
            ))),
            (Some(tokens), _) => Ok((format!("key `{key}`"), tokens as u64)),
            (None, Some(rows)) => Ok(("tensor `token_embd.weight`".to_owned(), rows)),
            (None, None) => Err(self
                .gguf
                .error(format!("key `{key}`: expected, found no such key"))),
        }
    }
}

/// Typed, bounded access.
struct Checked<'a, F>(&'a F);

impl<F: Fields> Checked<'_, F> {
    fn wrong(&self, key: &str, expected: &str, found: impl Display) -> FileError {
        let label = self.0.label(key);
        self.0
            .error(format!("{label}: expected {expected}, found {found}"))
    }

    fn missing(&self, key: &str, expected: &str) -> FileError {
        let kind = self.0.label(key);
        let kind = kind.split(' ').next().unwrap_or("key");
        self.wrong(key, expected, format!("no such {kind}"))
    }

    /// An integer in `range`.
    fn size(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, FileError> {
        let expected = || format!("an integer from {} to {}", range.start(), range.end());
        let Some(found) = self.0.u64(key)? else {
            return Err(self.missing(key, &expected()));
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
        let found = match (self.0.f32(key)?, default) {
            (Some(found), _) => found,
            (None, Some(default)) => return Ok(default),
            (None, None) => return Err(self.missing(key, &expected())),
        };
        if range.contains(&found) {
            Ok(found)
        } else {
            Err(self.wrong(key, &expected(), found))
        }
    }

    fn head_dim(&self) -> Result<usize, FileError> {
        let (key, other) = match self.0.has("attention.key_length") {
            true => ("attention.key_length", "attention.value_length"),
            false => ("attention.value_length", "attention.key_length"),
        };
        let head_dim = self.size(key, 16..=256)?;
        if !head_dim.is_multiple_of(16) {
            return Err(self.wrong(key, "a multiple of 16", head_dim));
        }
        for same in [other, "rope.dimension_count"] {
            if self.0.has(same) {
                let found = self.size(same, 1..=1 << 16)?;
                if found != head_dim {
                    let label = self.0.label(key);
                    let name = label.split('`').nth(1).unwrap_or(key);
                    return Err(self.wrong(same, &format!("{head_dim}, as {name}"), found));
                }
            }
        }
        Ok(head_dim)
    }

    fn rope(&self) -> Result<Rope, FileError> {
        let theta = self.float("rope.freq_base", None, 1.5..=1e12)?;
        let key = "rope.scaling.type";
        let yarn = match self.0.str(key)? {
            Some("yarn") => true,
            Some("none") => false,
            // Ollama's files give the factor only.
            None => self.0.has("rope.scaling.factor"),
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

    fn vocab(&self) -> Result<usize, FileError> {
        let (what, found) = self.0.vocab()?;
        match usize::try_from(found) {
            Ok(n @ 1..=4_194_304) => Ok(n),
            _ => Err(self.0.error(format!(
                "{what}: expected a vocabulary of 1 to 4194304, found {found}"
            ))),
        }
    }
}
