//! The clients that people use, as judges: their own packages, against this program over a real socket
//! with the demo model, whose answers are facts. The suites are tests/clients/; what they need is
//! installed there by tools/test.sh. (Coding agents: `loops`.)

use crate::{
    common::{fresh_seed, root},
    program::Program,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The key that the clients bring.
const KEY: &str = "sk-of-the-tests";

fn server(args: &[&str]) -> Program {
    Program::start(&[&["--api-key", KEY], args].concat())
}

fn folder() -> PathBuf {
    root().join("tests/clients")
}

/// A program that tools/test.sh installed.
fn installed(path: &str) -> PathBuf {
    let path = folder().join(path);
    assert!(
        path.exists(),
        "no {}: run the test command of README.md, which installs the clients",
        path.display()
    );
    path
}

/// Runs a suite; what it says is shown when it fails.
fn suite(program: &Path, args: &[&str], server: &Program) {
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(folder())
        .env("GOSSAMER_URL", format!("{}/v1", server.url))
        .env("OPENAI_API_KEY", KEY)
        .env("NO_PROXY", "127.0.0.1");
    let output = command.output().expect("the suite starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    // The last lines tell how many tests there were, and how long they took.
    let lines: Vec<&str> = said.lines().collect();
    println!("{}", lines[lines.len().saturating_sub(12)..].join("\n"));
}

fn pytest(files: &[&str], server: &Program) {
    let python = installed(".venv/bin/python3");
    let options = [
        "-m",
        "pytest",
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        "--tb=short",
    ];
    suite(&python, &[&options[..], files].concat(), server);
}

#[test]
fn openai_python() {
    pytest(
        &["test_openai_chat.py", "test_openai_responses.py"],
        &server(&[]),
    );
}

#[test]
fn litellm() {
    pytest(&["test_litellm.py"], &server(&[]));
}

#[test]
fn langchain_openai() {
    pytest(&["test_langchain.py"], &server(&[]));
}

#[test]
fn openai_node_and_the_ai_sdk() {
    installed("node_modules/.package-lock.json");
    let node = installed(".venv/bin/node");
    let args = ["--test", "openai.test.mjs", "ai_sdk.test.mjs"];
    suite(&node, &args, &server(&[]));
}

#[test]
fn schemathesis_finds_no_failure_that_is_ours() {
    let seed = format!("--hypothesis-seed={}", fresh_seed());
    // A small context: what is asked for without a limit is answered to the end.
    let program = server(&["--ctx-size", "256"]);
    pytest(&["test_schema.py", &seed], &program);
}
