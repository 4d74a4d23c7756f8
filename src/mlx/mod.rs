//! MLX, Apple's array library, as a second engine: a Python process that runs mlx-lm's gpt-oss.
//!
//! Token ids go in, token ids come out ([`frame`]); the model, continuous batching and the choice of
//! tokens are the worker's (`python/mlx_worker/`), Harmony, grammars and HTTP stay here. The worker is a
//! guest that may die at any time: [`process`] keeps it on a leash, [`watch`] says when it is given up,
//! [`driver`] fails the requests that were in it, and only those, and starts another.

use crate::config::Config;

mod driver;
mod engine;
mod frame;
mod process;
mod scorer;
mod setup;
mod watch;

pub use engine::{MlxEngine, MlxOptions, describe};
pub use frame::{Hello, Memory};
pub use scorer::{MlxScorer, hello};
pub use setup::{Environment, PYTHON_VARIABLE, Status, Variant, find, status};
pub use watch::Patience;

/// Bytes of KV cache that a token takes in the layers with full attention; sliding ones have rings.
pub fn token_bytes(config: &Config) -> u64 {
    let full = config.layers.saturating_sub(config.sliding_layers());
    let values = 2 * config.kv_heads * config.head_dim * full.max(1);
    // Half precision on GPUs, f32 on the CPU.
    let bytes = if cfg!(target_os = "macos") { 2 } else { 4 };
    (values * bytes) as u64
}

/// The worker's word for a variant of YaRN.
fn rope(upstream: bool) -> &'static str {
    match upstream {
        true => "upstream",
        false => "released",
    }
}

#[cfg(test)]
mod tests;
