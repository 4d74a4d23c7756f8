//! Streams that are closed early, and interrupts.

use super::{gossamer, out, sampling::random_args};
use std::{
    io::Read,
    process::{Command, Stdio},
};

#[test]
fn a_closed_stdout_is_no_panic() {
    for args in [
        &["run", "What is 17 + 25?"][..],
        &["run", "--json", "hi"],
        &["bench", "-p", "8", "-n", "2"],
    ] {
        let mut command = gossamer(args);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut text = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert!(child.wait().unwrap().success(), "{args:?}: {text}");
        assert!(
            !text.contains("panicked") && !text.contains("error"),
            "{args:?}: {text}"
        );
    }
}

#[test]
fn a_closed_stderr_loses_no_answer() {
    let mut command = gossamer(&["run", "What is 17 + 25?"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(out(&output), "42\n");
}

#[cfg(unix)]
#[test]
fn one_interrupt_ends_the_answer_two_quit() {
    let interrupt = |pid: u32| {
        let status = Command::new("kill")
            .args(["-INT", &pid.to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    };
    let args = random_args(&["--ctx-size", "100000"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut child = gossamer(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    let mut stdout = child.stdout.take().unwrap();
    // The first byte of the answer: generation is on its way, and far from its end.
    stdout.read_exact(&mut first).unwrap();
    interrupt(child.id());
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{text}");
    assert!(
        text.contains("stopping") && text.contains("tok/s"),
        "{text}"
    );
}
