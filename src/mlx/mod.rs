//! MLX, Apple's array library, as a second engine: a Python process that runs mlx-lm's gpt-oss.
//!
//! Token ids go in, token ids come out ([`frame`]); the model, continuous batching and the choice of
//! tokens are the worker's (`python/mlx_worker/`), Harmony, grammars and HTTP stay here. The worker is a
//! guest that may die at any time: [`process`] keeps it on a leash, [`watch`] says when it is given up,
//! [`driver`] fails the requests that were in it, and only those, and starts another. [`room`] counts its memory
//! before there is one.

mod driver;
mod engine;
mod frame;
mod live;
mod process;
mod room;
mod scorer;
mod setup;
mod watch;

pub use engine::{MlxEngine, MlxOptions, describe};
pub use frame::{Device, Held, Hello, Memory};
pub use room::{Needs, RUNNING, Space};
pub use scorer::{MlxScorer, device, hello};
pub use setup::{Environment, PYTHON_VARIABLE, Status, Variant, find, status};
pub use watch::Patience;

use room::POOL;

/// The worker's word for a variant of YaRN.
fn rope(upstream: bool) -> &'static str {
    match upstream {
        true => "upstream",
        false => "released",
    }
}

#[cfg(test)]
mod tests;
