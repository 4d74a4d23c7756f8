//! The commands of README.md and docs/api.md, word for word, against the program.

use crate::{common, program::Program};
use serde_json::Value;
use std::{
    process::Command,
    time::{Duration, Instant},
};

/// An answer of the demo model takes less.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn documented_curl_commands_answer() {
    let program = Program::start(&[]);
    let mut commands = Vec::new();
    for file in ["README.md", "docs/api.md"] {
        let text = std::fs::read_to_string(common::root().join(file)).expect(file);
        let lines = text.lines().filter(|line| line.starts_with("curl "));
        commands.extend(lines.map(str::to_owned));
    }
    commands.sort_unstable();
    commands.dedup();
    assert!(commands.len() >= 5, "{commands:?}");
    for command in commands {
        let here = command.replace("http://localhost:3000", &program.url);
        let started = Instant::now();
        let output = Command::new("sh")
            .args(["-c", &format!("{here} -sS")])
            .output();
        let output = output.expect("a shell");
        let took = started.elapsed();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {said}");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        println!("{took:?} {command}");
        assert!(took < PATIENCE, "{command}: {took:?}");
        if command.contains("/v1/models") {
            assert_eq!(answer["data"][0]["object"], "model", "{text}");
        } else if command.contains("/v1/completions") {
            assert!(
                answer["usage"]["completion_tokens"].as_u64() > Some(0),
                "{text}"
            );
            assert_eq!(answer["object"], "text_completion", "{text}");
        } else if command.contains("\"stream\":true") {
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
            let content = said_in(&text);
            assert!(content.contains("42"), "{content:?} in {text}");
        } else if command.contains("/v1/chat/completions") {
            let content = &answer["choices"][0]["message"]["content"];
            assert!(
                content.as_str().is_some_and(|text| text.contains("42")),
                "{text}"
            );
        } else {
            assert_eq!(answer["status"], "completed", "{text}");
            assert!(answer["output"].to_string().contains("42"), "{text}");
        }
    }
}

/// The content that a stream of chat chunks says.
fn said_in(text: &str) -> String {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let content = events.map(|event| {
        let content = &event["choices"][0]["delta"]["content"];
        content.as_str().unwrap_or_default().to_owned()
    });
    content.collect()
}
