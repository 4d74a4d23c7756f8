//! The program as people and scripts use it: exit codes, streams, JSON, seeds, stops, interrupts.

mod chat;
mod doctor;
mod run;
mod sampling;
mod streams;
mod usage;

use serde_json::Value;
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

fn gossamer(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gossamer"));
    command.args(args).stdin(Stdio::null());
    // Nothing pulled on this machine may answer for a name.
    command.env("HF_HUB_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command.env("NO_COLOR", "1");
    command
}

fn run(args: &[&str]) -> Output {
    gossamer(args).output().expect("the program starts")
}

fn piped(args: &[&str], input: &[u8]) -> Output {
    let mut command = gossamer(args);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("stdout is UTF-8")
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("stderr is UTF-8")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", err(output));
    serde_json::from_slice(&output.stdout).expect("stdout is JSON")
}

/// A model of random weights whose tokens are bytes: its answers are long and mean nothing.
fn random_model() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{}.gguf", std::process::id()));
        let made = run(&[
            "synth",
            path.to_str().unwrap(),
            "--preset",
            "tiny",
            "--seed",
            "3",
        ]);
        assert!(made.status.success(), "{}", err(&made));
        path
    });
    path.to_str().unwrap()
}

/// Fails unless the program exits with `code` after one line `error: …` with all of `words` in it.
fn fails(args: &[&str], code: i32, words: &[&str]) {
    let output = run(args);
    let text = err(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(
        output.stdout.is_empty(),
        "{args:?} prints {:?}",
        out(&output)
    );
    for word in words {
        assert!(
            text.contains(word),
            "{args:?} does not say {word:?}: {text}"
        );
    }
    assert!(
        text.contains("error: ") && !text.contains("panicked"),
        "{text}"
    );
    if code == 1 {
        let errors = text
            .lines()
            .filter(|line| !line.starts_with("This is the small demo"));
        assert_eq!(errors.count(), 1, "{args:?}: {text}");
    }
}
