//! `gossamer serve` as a user starts it: its flags, variables and file, several models, the end.

use super::{common, program::Program};
use serde_json::json;
use std::{
    io::Write as _,
    process::{Command, Output},
    time::Duration,
};

/// Runs it to its end, which wrong usage reaches at once.
fn refused(args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gossamer"));
    command.args(["serve", "--port", "0"]).args(args);
    command.envs(env.iter().copied());
    let Output { status, stderr, .. } = command.output().expect("the program starts");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn wrong_usage_says_what_to_do() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    writeln!(file, "max-sequences = 4").expect("written");
    let file = file.path().to_str().expect("a plain path");
    let empty = tempfile::NamedTempFile::new().expect("a file");
    let empty = empty.path().to_str().expect("a plain path");
    for (args, env, code, says) in [
        (&["--host", "0.0.0.0"][..], None, 2, "--api-key"),
        (&["--host", "0.0.0.0"], None, 2, "--insecure"),
        (&["--config", file], None, 2, "unknown key `max-sequences`"),
        (
            &[],
            Some(("GOSSAMER_CONFIG", "/no/such/file")),
            1,
            "/no/such/file",
        ),
        (
            &[],
            Some(("GOSSAMER_MAX_SEQS", "0")),
            2,
            "GOSSAMER_MAX_SEQS",
        ),
        (&["--max-seqs", "257"], None, 2, "at most 256"),
        (
            &["--max-connections", "18446744073709551615"],
            None,
            2,
            "--max-connections",
        ),
        (&["--request-timeout", "0"], None, 2, "--request-timeout"),
        (&["--max-body", "0"], None, 2, "--max-body"),
        (&["--api-key-file", empty], None, 2, "holds no key"),
        (&["--api-key", "two words"], None, 1, "--api-key"),
        (&["--tls-key", "key.pem"], None, 2, "--tls-cert"),
        (
            &["--tls-key", "key.pem", "--tls-cert", "/no/such"],
            None,
            1,
            "/no/such",
        ),
        (&["--models", "a"], None, 2, "NAME=FILE"),
        (
            &["--models", "a=/no/such.gguf"],
            None,
            1,
            "--models a=/no/such.gguf",
        ),
        (&["--model", "/no/such.gguf"], None, 1, "/no/such.gguf"),
        (&["--ctx-size", "999999999"], None, 2, "--ctx-size"),
        (&["--log-level", "loud=soft=x"], None, 2, "--log-level"),
        (&["--log-level", "verbose"], None, 2, "error, warn, info"),
        (&["--log-level", "info,gossamer"], None, 2, "'gossamer'"),
        (&[], Some(("GOSSAMER_API_KEY", "")), 2, "GOSSAMER_API_KEY"),
        (&["--host", "256.1.1.1"], None, 1, "--host 256.1.1.1"),
    ] {
        let env: Vec<(&str, &str)> = env.into_iter().collect();
        let (found, said) = refused(args, &env);
        assert_eq!(found, Some(code), "{args:?} {env:?}: {said}");
        assert!(said.contains(says), "{args:?} {env:?}: {said}");
        assert!(said.contains("error: "), "{said}");
    }
}

#[test]
fn extreme_limits_and_fine_log_levels_are_taken() {
    let most = u64::MAX.to_string();
    let args = ["--max-body", &most, "--rate-limit", "4000000000"];
    let log = ["--log-level", "WARN,gossamer::request=off"];
    let program = Program::start(&[&args[..], &log].concat());
    let (status, text) = program.post(
        "/v1/completions",
        &json!({"prompt": "Hello", "max_tokens": 1}),
    );
    assert_eq!(status, 200, "{text}");
}

/// Without TLS, as reverse proxies do.
#[test]
fn http_2_is_spoken() {
    let program = Program::start(&[]);
    let output = Command::new("curl")
        .args([
            "-sS",
            "--http2-prior-knowledge",
            "-w",
            " HTTP/%{http_version}",
        ])
        .args(["-d", "{\"prompt\":\"Hello\",\"stream\":true}"])
        .arg(format!("{}/v1/completions", program.url))
        .output()
        .expect("curl");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("data: [DONE]\n\n HTTP/2"), "{output:?}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gossamer"));
    let output = command.args(["serve", "--port", &port]).output();
    let output = output.expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&port) && said.contains("--port"), "{said}");
}

#[test]
fn several_models_answer_by_their_names() {
    let demo = common::root().join("models/demo/demo.gguf");
    let demo = demo.display();
    let (one, two) = (format!("one={demo}"), format!("two={demo}"));
    let program = Program::start(&[
        "--models",
        &one,
        "--models",
        &two,
        // Room for one: they take turns.
        "--model-memory",
        "1",
        "--ctx-size",
        "512",
        "--served-model-name",
        "alpha",
        "--served-model-name",
        "beta",
    ]);
    let (status, list) = program.get("/v1/models");
    assert_eq!(status, 200, "{list}");
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let models = list["data"].as_array().expect("models");
    let ids: Vec<_> = models.iter().map(|model| model["id"].clone()).collect();
    assert_eq!(ids, ["alpha", "beta", "two"]);
    assert_eq!(models[0]["max_model_len"], 512);
    assert_eq!(models[2]["loaded"], false);
    for (name, answers) in [
        (None, "alpha"),
        (Some("two"), "two"),
        (Some("beta"), "alpha"),
        (Some("one"), "alpha"),
        (Some("two"), "two"),
    ] {
        let mut body = json!({
            "messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0,
        });
        if let Some(name) = name {
            body["model"] = name.into();
        }
        let (status, answer) = program.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{name:?}: {answer}");
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["model"], answers, "{name:?}");
        assert_eq!(answer["choices"][0]["message"]["content"], "42", "{answer}");
    }
}

/// An answer that takes much longer than these tests.
fn long_answer(program: &Program) -> super::program::Stream {
    let body = json!({
        "prompt": "Hello", "max_tokens": 100_000, "temperature": 1, "stream": true,
        "logit_bias": no_end(),
    });
    let mut stream = program.stream("/v1/completions", &body).expect("a stream");
    stream.next().expect("an event");
    stream
}

/// Forbids the tokens that end an answer.
pub fn no_end() -> serde_json::Value {
    let ends = super::puppet::tokenizer().stop_ids().into_iter();
    ends.map(|id| (id.to_string(), json!(-100)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[test]
fn the_end_waits_for_answers_until_it_may_not() {
    let program = Program::start(&["--drain-timeout", "500ms"]);
    let mut stream = long_answer(&program);
    program.terminate();
    let mut events = Vec::new();
    while let Some(event) = stream.next().expect("a proper end") {
        events.push(event);
    }
    let [.., error, done] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert!(error.contains("server_shutting_down"), "{error}");
    assert_eq!(done, "[DONE]");
    let status = program.wait(Duration::from_secs(30));
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let program = Program::start(&["--drain-timeout", "10m"]);
    let stream = long_answer(&program);
    program.terminate();
    // The first has been seen when nobody can connect any more.
    let address = program.url.trim_start_matches("http://").to_owned();
    while std::net::TcpStream::connect(&address).is_ok() {
        std::thread::yield_now();
    }
    program.terminate();
    let status = program.wait(Duration::from_secs(30));
    assert_eq!(status.code(), Some(130));
    drop(stream);
}
