//! Engines held against each other: what traces show, what `gossamer compare` finds, and its report.

#[path = "../common/mod.rs"]
mod common;
#[path = "../server/program.rs"]
#[allow(dead_code)] // The server's tests use all of it.
mod program;

mod defects;
mod figures;
mod mlx;
mod report;
mod trace;
mod verdict;

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The demo model's file.
fn demo() -> PathBuf {
    common::root().join("models/demo/demo.gguf")
}

/// The program, with a state folder that nobody else has.
fn gossamer(state: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gossamer"));
    command.args(args).env("XDG_STATE_HOME", state);
    command.env("HF_HUB_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// `gossamer compare`'s exit code, what it found, and what it said.
struct Compared {
    code: Option<i32>,
    found: Value,
    output: Output,
}

impl Compared {
    fn told(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }
}

/// Runs `gossamer compare ARGS --json …`; what it found is null where it wrote nothing.
fn compare(args: &[&str]) -> Compared {
    let folder = tempfile::tempdir().expect("a temporary folder");
    compare_in(folder.path(), args)
}

/// The same, with a folder for its state.
fn compare_in(folder: &Path, args: &[&str]) -> Compared {
    let json = folder.join("found.json");
    let _ = std::fs::remove_file(&json);
    let mut command = gossamer(folder, &["compare"]);
    command.args(args).arg("--json").arg(&json);
    let output = command.output().expect("the program starts");
    let found = std::fs::read(&json).unwrap_or(b"null".into());
    Compared {
        code: output.status.code(),
        found: serde_json::from_slice(&found).expect("JSON"),
        output,
    }
}
