//! Gossamer: an engine for OpenAI's open-weight gpt-oss models.
//!
//! Modules read in the order in which data flows: bytes on disk ([`gguf`], [`quant`]) become a
//! checked model ([`checkpoint`], [`config`], [`weights`]), text becomes tokens ([`tokenizer`], [`harmony`]), a
//! [`backend`] turns tokens into logits, the [`sampler`] picks one, the [`engine`] repeats.
#![deny(unsafe_code)]

/// A line on stderr: see [`notice`].
macro_rules! tell {
    ($($text:tt)*) => {
        crate::notice::tell(format_args!($($text)*))
    };
}

pub mod backend;
pub mod bandwidth;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod convert;
pub mod energy;
pub mod engine;
pub mod gguf;
pub mod grammar;
pub mod harmony;
pub mod hub;
pub mod kv;
pub mod machine;
pub mod measure;
pub mod mlx;
mod notice;
pub mod quant;
pub mod report;
pub mod safetensors;
pub mod sampler;
mod scheduler;
pub mod score;
pub mod server;
pub mod stop;
pub mod synth;
pub mod tokenizer;
pub mod trace;
pub mod weights;
