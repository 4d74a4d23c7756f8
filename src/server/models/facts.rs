//! What a model is, from its file's header, and which published model that is.

use crate::{
    checkpoint::Checkpoint,
    cli::inspect::{main_type, parameters},
    config::Config,
};
use anyhow::Result;
use std::time::{SystemTime, UNIX_EPOCH};

/// The published models.
pub const FAMILIES: [&str; 2] = ["gpt-oss-20b", "gpt-oss-120b"];

/// What a model is: known before it is loaded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Type of most of its bytes: `MXFP4`, `Q8_0` …
    pub quantization: Option<String>,
    /// Bytes of its files.
    pub file_bytes: u64,
    /// Tensors in them.
    pub tensors: usize,
    /// Parameters, all experts counted.
    pub parameters: u64,
    /// Most tokens of a sequence, prompt and answer together.
    pub context: usize,
    /// Seconds since 1970 at which its file was last written; the program's start for a model
    /// without a file.
    pub created: u64,
    /// `gpt-oss-20b` or `gpt-oss-120b`, if it has that shape.
    pub family: Option<&'static str>,
    /// It is the model inside this program.
    pub is_demo: bool,
}

impl Facts {
    /// Reads the header; no weight is touched.
    ///
    /// # Errors
    /// When it is no gpt-oss model, naming the key that says so.
    pub fn read(checkpoint: &Checkpoint) -> Result<(Facts, Config)> {
        let config = checkpoint.config()?;
        let written = checkpoint.files().iter().filter_map(|(path, _)| {
            let metadata = std::fs::metadata(path).ok()?;
            metadata.modified().ok()
        });
        let created = written.max().unwrap_or_else(SystemTime::now);
        let since = created.duration_since(UNIX_EPOCH).unwrap_or_default();
        let facts = Facts {
            quantization: main_type(checkpoint.tensors()).map(|kind| kind.name().to_string()),
            file_bytes: checkpoint.file_bytes(),
            tensors: checkpoint.tensors().len(),
            parameters: parameters(checkpoint.tensors(), Some(&config)).0,
            context: config.context,
            created: since.as_secs(),
            family: shape(&config),
            is_demo: false,
        };
        Ok((facts, config))
    }
}

/// The published model of this shape.
fn shape(config: &Config) -> Option<&'static str> {
    let found = (
        config.layers,
        config.hidden,
        config.experts,
        config.experts_used,
    );
    match found {
        (24, 2880, 32, 4) => Some(FAMILIES[0]),
        (36, 2880, 128, 4) => Some(FAMILIES[1]),
        _ => None,
    }
}

/// The published model that `name` means: `gpt-oss-20b`, `openai/gpt-oss-20b` or `gpt-oss:20b`.
pub fn family(name: &str) -> Option<&'static str> {
    let name = name.strip_prefix("openai/").unwrap_or(name);
    let same = |family: &str| match name.split_once(':') {
        Some(("gpt-oss", size)) => family.strip_prefix("gpt-oss-") == Some(size),
        _ => family == name,
    };
    FAMILIES.into_iter().find(|family| same(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_names_are_known_in_three_spellings() {
        for name in ["gpt-oss-20b", "openai/gpt-oss-20b", "gpt-oss:20b"] {
            assert_eq!(family(name), Some("gpt-oss-20b"), "{name}");
        }
        assert_eq!(family("gpt-oss:120b"), Some("gpt-oss-120b"));
        for name in [
            "",
            "gpt-oss",
            "gpt-oss:",
            "gpt-oss-",
            "20b",
            "gpt-4o",
            "gpt-oss:21b",
        ] {
            assert_eq!(family(name), None, "{name}");
        }
    }
}
