//! Writing GGUF files: metadata in order, the tensor directory, padding to the data; under a temporary
//! name until the file is whole.

use crate::{config::Config, tokenizer::TokenKind};
use anyhow::{Context, Result, bail, ensure};
use std::{fs, path::Path};

/// Data and every tensor start at a multiple of this.
pub(crate) const ALIGNMENT: u64 = 32;

/// Metadata as it accumulates.
#[derive(Default)]
pub(crate) struct Metadata {
    pub bytes: Vec<u8>,
    keys: u64,
}

impl Metadata {
    /// A string's length and bytes: an element of an array.
    pub fn text(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.keys += 1;
        self.text(key);
        self.bytes.extend(kind.to_le_bytes());
    }

    pub fn u32(&mut self, key: &str, value: usize) {
        self.key(key, 4);
        self.bytes.extend((value as u32).to_le_bytes());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend(value.to_le_bytes());
    }

    pub fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        self.text(value);
    }

    /// Starts an array of `count` elements of type `kind`; its bytes follow.
    fn array(&mut self, key: &str, kind: u32, count: usize) {
        self.key(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((count as u64).to_le_bytes());
    }

    pub fn strings<T: AsRef<str>>(&mut self, key: &str, values: impl ExactSizeIterator<Item = T>) {
        self.array(key, 8, values.len());
        values.for_each(|value| self.text(value.as_ref()));
    }

    /// Appends other metadata.
    pub fn extend(&mut self, other: Metadata) {
        self.bytes.extend(other.bytes);
        self.keys += other.keys;
    }

    /// The shape, under llama.cpp's keys for gpt-oss.
    pub fn shape(&mut self, config: &Config) {
        let (c, rope) = (config, &config.rope);
        self.u32("gpt-oss.block_count", c.layers);
        self.u32("gpt-oss.context_length", c.context);
        self.u32("gpt-oss.embedding_length", c.hidden);
        self.u32("gpt-oss.feed_forward_length", c.expert_width);
        self.u32("gpt-oss.attention.head_count", c.heads);
        self.u32("gpt-oss.attention.head_count_kv", c.kv_heads);
        self.f32("gpt-oss.rope.freq_base", rope.theta);
        self.f32("gpt-oss.attention.layer_norm_rms_epsilon", c.rms_eps);
        self.u32("gpt-oss.expert_count", c.experts);
        self.u32("gpt-oss.expert_used_count", c.experts_used);
        self.u32("gpt-oss.attention.key_length", c.head_dim);
        self.u32("gpt-oss.attention.value_length", c.head_dim);
        self.u32("gpt-oss.attention.sliding_window", c.window);
        self.u32("gpt-oss.expert_feed_forward_length", c.expert_width);
        if rope.factor <= 1.0 {
            return self.string("gpt-oss.rope.scaling.type", "none");
        }
        self.string("gpt-oss.rope.scaling.type", "yarn");
        self.f32("gpt-oss.rope.scaling.factor", rope.factor);
        let original = "gpt-oss.rope.scaling.original_context_length";
        self.u32(original, rope.original_context);
        // What llama.cpp takes where the keys are absent.
        if (rope.beta_fast, rope.beta_slow) != (32.0, 1.0) {
            self.f32("gpt-oss.rope.scaling.yarn_beta_fast", rope.beta_fast);
            self.f32("gpt-oss.rope.scaling.yarn_beta_slow", rope.beta_slow);
        }
    }

    /// The vocabulary, in GPT-2's spelling.
    pub fn vocabulary<T: AsRef<str>>(
        &mut self,
        tokens: &[String],
        kinds: &[TokenKind],
        merges: impl ExactSizeIterator<Item = T>,
    ) {
        self.string("tokenizer.ggml.model", "gpt2");
        self.string("tokenizer.ggml.pre", "gpt-4o");
        self.strings("tokenizer.ggml.tokens", tokens.iter());
        self.array("tokenizer.ggml.token_type", 5, kinds.len());
        for kind in kinds {
            self.bytes.extend(kind.ggml().to_le_bytes());
        }
        self.strings("tokenizer.ggml.merges", merges);
    }
}

/// The tensor directory as it accumulates.
#[derive(Default)]
pub(crate) struct Directory {
    pub bytes: Vec<u8>,
    tensors: u64,
}

impl Directory {
    /// Adds a tensor: dimensions innermost first, ggml's number of its type, its offset in the data.
    pub fn push(&mut self, name: &str, dims: &[u64], kind: u32, offset: u64) {
        self.tensors += 1;
        self.bytes.extend((name.len() as u64).to_le_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.extend((dims.len() as u32).to_le_bytes());
        for dim in dims {
            self.bytes.extend(dim.to_le_bytes());
        }
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(offset.to_le_bytes());
    }
}

/// Everything before the tensors' data.
pub(crate) fn front(metadata: Metadata, directory: Directory) -> Vec<u8> {
    let mut front = Vec::with_capacity(metadata.bytes.len() + directory.bytes.len() + 64);
    front.extend(b"GGUF");
    front.extend(3u32.to_le_bytes());
    front.extend(directory.tensors.to_le_bytes());
    front.extend(metadata.keys.to_le_bytes());
    front.extend(metadata.bytes);
    front.extend(directory.bytes);
    front.resize(front.len().next_multiple_of(ALIGNMENT as usize), 0);
    front
}

/// Has `write` make a file beside `path` under a temporary name, and renames it to `path` when it is whole.
///
/// # Errors
/// When the disk has less than `needed` bytes free, or writing fails; the temporary file is removed.
pub(crate) fn replace(
    path: &Path,
    needed: u64,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if needed > 0 {
        let free = fs4::available_space(folder)
            .with_context(|| format!("{}: asking for free space", folder.display()))?;
        ensure!(
            free >= needed,
            "{}: the file takes {} MB, the disk has {} MB free",
            folder.display(),
            needed / 1_000_000,
            free / 1_000_000
        );
    }
    let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
        bail!("{}: expected a file name", path.display());
    };
    let mut name = name.to_owned();
    name.push(".incomplete");
    let partial = folder.join(name);
    let written = write(&partial).and_then(|()| fs::rename(&partial, path).map_err(Into::into));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&partial);
    }
    written.with_context(|| format!("writing {}", path.display()))
}
