//! The OpenAI-compatible server, above the [engine](crate::engine) seam: it sees no tensor.

pub mod error;
