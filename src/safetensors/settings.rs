//! A folder's config.json: the shape, and how its matrices are quantized.

use super::json;
use crate::{
    config::{Config, Fields, SWIGLU_LIMIT},
    gguf::FileError,
};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Most bytes of a config.json; the released one has two thousand.
const MOST_BYTES: u64 = 16 << 20;

/// GGUF's key and config.json's names for it.
const NAMES: &[(&str, &[&str])] = &[
    ("block_count", &["num_hidden_layers"]),
    ("embedding_length", &["hidden_size"]),
    ("attention.head_count", &["num_attention_heads"]),
    ("attention.head_count_kv", &["num_key_value_heads"]),
    ("attention.key_length", &["head_dim"]),
    ("attention.value_length", &["head_dim"]),
    ("expert_count", &["num_local_experts", "num_experts"]),
    (
        "expert_used_count",
        &["num_experts_per_tok", "experts_per_token"],
    ),
    ("feed_forward_length", &["intermediate_size"]),
    ("context_length", &["max_position_embeddings"]),
    ("attention.sliding_window", &["sliding_window"]),
    ("attention.sliding_window_pattern", &["layer_types"]),
    ("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    (
        "rope.freq_base",
        &["rope_theta", "rope_parameters.rope_theta"],
    ),
    (
        "rope.scaling.type",
        &[
            "rope_scaling.rope_type",
            "rope_scaling.type",
            "rope_parameters.rope_type",
        ],
    ),
    (
        "rope.scaling.factor",
        &["rope_scaling.factor", "rope_parameters.factor"],
    ),
    (
        "rope.scaling.original_context_length",
        &[
            "rope_scaling.original_max_position_embeddings",
            "rope_parameters.original_max_position_embeddings",
            "initial_context_length",
        ],
    ),
    (
        "rope.scaling.yarn_beta_fast",
        &["rope_scaling.beta_fast", "rope_parameters.beta_fast"],
    ),
    (
        "rope.scaling.yarn_beta_slow",
        &["rope_scaling.beta_slow", "rope_parameters.beta_slow"],
    ),
];

/// A config.json that was read.
#[derive(Debug)]
pub(super) struct Settings {
    path: PathBuf,
    /// The model's name, from the folder's.
    name: String,
    json: Value,
}

/// How a module's matrix is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packing {
    pub group: usize,
    pub bits: usize,
    pub mxfp4: bool,
}

impl Settings {
    /// Reads `folder`'s config.json.
    pub fn read(folder: &Path) -> Result<Settings, FileError> {
        let path = folder.join("config.json");
        let json = json::read(&path, MOST_BYTES)?;
        let settings = Settings {
            name: model_name(folder),
            path,
            json,
        };
        if let Some(found) = settings.at("model_file") {
            // mlx-lm may run it.
            let found = json::short(found);
            return Err(settings.error(format!(
                "field `model_file`: expected none, found {found}: Gossamer runs no code that comes with a model"
            )));
        }
        match settings.at("model_type").and_then(Value::as_str) {
            Some("gpt_oss") => Ok(settings),
            found => Err(settings.error(format!(
                "field `model_type`: expected `gpt_oss`, found {}: Gossamer runs gpt-oss models only",
                found.map_or("none".into(), |name| format!("`{name}`"))
            ))),
        }
    }

    /// The shape, checked as a GGUF file's.
    pub fn config(&self) -> Result<Config, FileError> {
        let mut config = Config::read(self)?;
        let near = |a: f64, b: f32| (a - f64::from(b)).abs() <= 1e-5 * f64::from(b).abs();
        // Settings that gpt-oss doesn't have: refused rather than ignored.
        for (name, only) in [
            ("swiglu_limit", SWIGLU_LIMIT),
            ("rope_scaling.attention_factor", config.rope.concentration()),
            (
                "rope_parameters.attention_factor",
                config.rope.concentration(),
            ),
        ] {
            if let Some(found) = self.at(name)
                && !found.as_f64().is_some_and(|found| near(found, only))
            {
                return Err(self.error(format!("field `{name}`: expected {only}, found {found}")));
            }
        }
        for name in ["rope_scaling", "rope_parameters"] {
            for other in ["mscale", "mscale_all_dim"] {
                if let Some(found) = self.at(&format!("{name}.{other}")) {
                    let what = format!("field `{name}.{other}`: expected none, found {found}");
                    return Err(self.error(what));
                }
            }
        }
        let truncate = ["rope_scaling.truncate", "rope_parameters.truncate"];
        config.rope.rounded = match truncate
            .iter()
            .find_map(|name| Some((name, self.at(name)?)))
        {
            // As the released model was trained.
            None => false,
            Some((name, found)) => found.as_bool().ok_or_else(|| {
                self.error(format!(
                    "field `{name}`: expected true or false, found {found}"
                ))
            })?,
        };
        Ok(config)
    }

    /// How MLX packed `module`, if config.json says anything about it.
    pub fn packing(&self, module: &str) -> Result<Option<Packing>, FileError> {
        let Some((field, all)) = ["quantization", "quantization_config"]
            .into_iter()
            .find_map(|field| Some((field, self.at(field)?)))
        else {
            return Ok(None);
        };
        let (of, from) = match all.get(module) {
            Some(of) if of.is_object() => (of, format!("{field}.{module}")),
            _ => (all, field.to_owned()),
        };
        let number = |name: &str| match of.get(name) {
            None => Ok(None),
            Some(found) => found
                .as_u64()
                .map(|n| Some(n.min(1 << 20) as usize))
                .ok_or_else(|| {
                    let what = format!("field `{from}.{name}`: expected an integer, found {found}");
                    self.error(what)
                }),
        };
        let (Some(group), Some(bits)) = (number("group_size")?, number("bits")?) else {
            return Ok(None); // another program's: OpenAI's release says `quant_method: mxfp4` only
        };
        let mxfp4 = match of.get("mode").map(|mode| mode.as_str()) {
            None | Some(Some("affine")) => false,
            Some(Some("mxfp4")) => true,
            Some(_) => {
                let what = format!("field `{from}.mode`: expected `affine` or `mxfp4`");
                return Err(self.error(what));
            }
        };
        Ok(Some(Packing { group, bits, mxfp4 }))
    }

    /// Ids that end an answer: `eos_token_id`, one or a list.
    pub fn stops(&self) -> Result<Vec<u64>, FileError> {
        stops(&self.path, &self.json)
    }

    /// An id that config.json names.
    pub fn id(&self, name: &str) -> Option<u64> {
        self.at(name)?.as_u64()
    }

    /// The value at a path of names joined by dots; `null` counts as absent.
    fn at(&self, path: &str) -> Option<&Value> {
        let mut value = &self.json;
        for name in path.split('.') {
            value = value.get(name)?;
        }
        (!value.is_null()).then_some(value)
    }

    /// The first of the names for GGUF's `key` that is there.
    fn find(&self, key: &str) -> Option<(&'static str, &Value)> {
        let (_, names) = NAMES.iter().find(|(gguf, _)| *gguf == key)?;
        names.iter().find_map(|name| Some((*name, self.at(name)?)))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FileError> {
        let Some((name, value)) = self.find(key) else {
            return Ok(None);
        };
        convert(value).map(Some).ok_or_else(|| {
            self.error(format!(
                "field `{name}`: expected {expected}, found {}",
                json::short(value)
            ))
        })
    }
}

/// `eos_token_id` of a config.json or generation_config.json.
pub(super) fn stops(path: &Path, json: &Value) -> Result<Vec<u64>, FileError> {
    let list = match json.get("eos_token_id") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(Value::as_u64).collect(),
        Some(id) => id.as_u64().map(|id| vec![id]),
    };
    let wrong = "field `eos_token_id`: expected a token id or a list of them";
    list.ok_or_else(|| FileError::new(path, wrong))
}

impl Fields for Settings {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn label(&self, key: &str) -> String {
        let names = NAMES.iter().find(|(gguf, _)| *gguf == key);
        let first = names.and_then(|(_, names)| names.first()).unwrap_or(&key);
        format!(
            "field `{}`",
            self.find(key).map_or(*first, |(name, _)| name)
        )
    }

    fn error(&self, what: String) -> FileError {
        FileError::new(&self.path, what)
    }

    fn u64(&self, key: &str) -> Result<Option<u64>, FileError> {
        self.typed(key, "a non-negative integer", Value::as_u64)
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, FileError> {
        self.typed(key, "a number", |value| value.as_f64().map(|v| v as f32))
    }

    fn str(&self, key: &str) -> Result<Option<&str>, FileError> {
        let text = self.typed(key, "a string", Value::as_str)?;
        Ok(text.map(|text| if text == "default" { "none" } else { text }))
    }

    fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    fn alternates(&self, layers: usize) -> bool {
        let Some((_, types)) = self.find("attention.sliding_window_pattern") else {
            return true;
        };
        let expected = ["sliding_attention", "full_attention"];
        types.as_array().is_some_and(|types| {
            types.len() == layers
                && (types.iter().zip(expected.iter().cycle())).all(|(a, b)| a.as_str() == Some(b))
        })
    }

    fn vocab(&self) -> Result<(String, u64), FileError> {
        let found = self.at("vocab_size").and_then(Value::as_u64);
        let missing = "field `vocab_size`: expected an integer, found none";
        let size = found.ok_or_else(|| self.error(missing.to_owned()))?;
        Ok(("field `vocab_size`".to_owned(), size))
    }
}

/// What people call the model: the folder's name, or the repository's whose snapshot it is.
fn model_name(folder: &Path) -> String {
    let whole = folder
        .canonicalize()
        .unwrap_or_else(|_| folder.to_path_buf());
    let name = |path: Option<&Path>| {
        let name = path?.file_name()?;
        Some(name.to_string_lossy().into_owned())
    };
    let cached = (name(whole.parent()).as_deref() == Some("snapshots"))
        .then(|| name(whole.parent().and_then(Path::parent)))
        .flatten()
        .and_then(|repo| {
            Some(
                repo.strip_prefix("models--")?
                    .rsplit("--")
                    .next()?
                    .to_owned(),
            )
        });
    cached
        .or(name(Some(&whole)))
        .unwrap_or_else(|| "gpt-oss".into())
}
