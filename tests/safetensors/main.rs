//! Folders of safetensors, MLX's and OpenAI's: judged by MLX, Hugging Face's `tokenizers` and the GGUF file
//! with equal weights; converted; damaged in every way.

#[path = "../common/mod.rs"]
mod common;

mod convert;
mod damaged;
mod errors;
mod tokens;
mod values;
