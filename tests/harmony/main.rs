//! Harmony: rendering and parsing, judged by openai-harmony, by vectors from the field, and by fuzzing.

#[path = "../common/mod.rs"]
mod common;

mod case;
mod fuzz;
mod judge;
mod random;
mod render;
mod support;
mod vectors_headers;
mod vectors_turns;
