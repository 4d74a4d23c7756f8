//! The native engine: over a back end that checks every rule of the seam, and over the demo model.

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod cache;
mod demo;
mod failures;
mod paged;
mod sharing;
mod soak;
mod support;
