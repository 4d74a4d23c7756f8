//! Engines held against each other: what traces show, what `gossamer compare` finds, and its report.

#[path = "../common/mod.rs"]
mod common;

mod trace;
