//! `gossamer plan` and the long-context benchmark, the programs: what they say fits, fits, and what they
//! measure can be resumed.

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod plan;

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn gossamer(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gossamer"));
    command.args(args);
    // Nothing pulled on this machine may answer for a name.
    command.env("HF_HUB_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command.output().expect("the program starts")
}

/// What it printed, if it went well.
fn json(args: &[&str]) -> Value {
    let output = gossamer(args);
    assert!(output.status.success(), "{args:?}: {}", err(&output));
    serde_json::from_slice(&output.stdout).expect("stdout is JSON")
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A place for a test's own file, empty.
fn place(name: &str) -> PathBuf {
    let name = format!("long-{}-{name}", std::process::id());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_file(&path);
    path
}

/// A model with random weights of these flags of `synth`.
fn synth(name: &str, flags: &[&str]) -> PathBuf {
    let path = place(name);
    let out = path.to_str().expect("a name");
    let made = gossamer(&[&["synth", out], flags].concat());
    assert!(made.status.success(), "{}", err(&made));
    path
}
