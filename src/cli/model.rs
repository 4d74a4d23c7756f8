//! The flags that every command which runs a model shares, and how they become a model.

use crate::{gguf::Gguf, weights::Model};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use std::path::Path;

/// Which model, how and with what room.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Model options")]
pub struct Common {
    /// A GGUF file (the first part of a split one), or the name of a pulled model such as
    /// gpt-oss-20b. Without it: the small demo model inside this program
    #[arg(long, short = 'm', value_name = "FILE|NAME")]
    pub model: Option<String>,
    /// What computes: auto, cpu, cpu:ISA (one instruction set, such as cpu:avx2) or reference
    /// (slow, exact, f32)
    #[arg(long, default_value = "auto")]
    pub backend: String,
    /// Worker threads; 0 means one for each physical core
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub threads: usize,
    /// Tokens of context to make room for. Default: the model's own, bounded by free memory
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub ctx_size: Option<usize>,
    /// Format of the KV cache (the reference back end keeps f32)
    #[arg(long, value_enum, default_value_t = KvType::F16)]
    pub kv_type: KvType,
    /// Seed of random choices; the same seed gives the same tokens on any number of threads
    #[arg(long)]
    pub seed: Option<u64>,
    /// Round the YaRN range as llama.cpp and mlx-lm do; the released model does not
    #[arg(long)]
    pub rope_compat: bool,
    /// Say more on stderr: model, back end, memory, timing
    #[arg(long, short = 'v')]
    pub verbose: bool,
}

/// Formats of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvType {
    /// Half precision.
    F16,
}

/// A whole number of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("must be a whole number of at least 1".into()),
    }
}

impl Common {
    /// Opens the model's file.
    pub fn open_gguf(&self) -> Result<Gguf> {
        let name = self.model.as_deref().context("no --model given")?;
        Ok(Gguf::open(Path::new(name))?)
    }

    /// Loads shape and weights, with the RoPE variant that was asked for.
    pub fn load(&self, gguf: &Gguf) -> Result<Model> {
        let mut model = Model::load(gguf)?;
        model.config.rope.rounded |= self.rope_compat;
        Ok(model)
    }
}
