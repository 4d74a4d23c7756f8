//! Harmony: rendering and parsing, judged by openai-harmony, by vectors from the field, and by fuzzing.

#[path = "../common/mod.rs"]
mod common;

mod fuzz;
mod judge;
mod render;
mod support;
mod vectors;
