//! `chat`: line by line, with its commands.

use super::{err, json, out, piped, run};
use serde_json::Value;
use std::path::Path;

#[test]
fn chat_answers_line_by_line() {
    let file =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chat-{}.json", std::process::id()));
    let _ = std::fs::remove_file(&file);
    let input = format!(
        "What is 17 + 25?\n/stats\n/reasoning high\n/system Be brief.\n\nWhat is \\\n8 + 9?\n/save {}\n/reset\nWhat is 17 + 25?\n/quit\nnever\n",
        file.display()
    );
    let output = piped(&["chat", "--date", "2026-01-31"], input.as_bytes());
    assert!(output.status.success(), "{}", err(&output));
    let answers: Vec<&str> = out(&output).lines().collect();
    assert_eq!(answers.len(), 3, "{answers:?} {}", err(&output));
    assert_eq!((answers[0], answers[2]), ("42", "42"));
    for word in [
        "context: ",
        "Reasoning: high",
        "Instructions: Be brief.",
        "Saved 6 messages",
        "forgotten",
    ] {
        assert!(
            err(&output).contains(word),
            "no {word:?} in {}",
            err(&output)
        );
    }
    let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let roles: Vec<_> = saved["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["role"].clone())
        .collect();
    assert_eq!(roles.iter().filter(|role| *role == "user").count(), 2);
    assert_eq!(saved["messages"][0]["content"], "What is 17 + 25?");
    assert_eq!(saved["instructions"], "Be brief.");
    // A file that is there is not written over, and a pipe that fails says so with its exit code.
    let again = piped(&["chat"], format!("/save {}\n", file.display()).as_bytes());
    assert_eq!(again.status.code(), Some(1));
    assert!(err(&again).contains("/save"), "{}", err(&again));
    std::fs::remove_file(file).unwrap();
    let unknown = piped(&["chat"], b"/frobnicate\n");
    assert_eq!(unknown.status.code(), Some(1));
    assert!(err(&unknown).contains("/frobnicate") && err(&unknown).contains("/help"));
}

#[test]
fn chat_keeps_what_was_said_before_a_stop_string() {
    let file =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stop-{}.json", std::process::id()));
    let _ = std::fs::remove_file(&file);
    let input = format!("What is the capital of France?\n/save {}\n", file.display());
    let output = piped(&["chat", "--stop", "capital"], input.as_bytes());
    assert_eq!(out(&output), "The \n", "{}", err(&output));
    let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let last = saved["messages"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(
        (&last["channel"], &last["content"]),
        (&"final".into(), &"The ".into())
    );
    std::fs::remove_file(file).unwrap();
}

/// The second turn computes its own tokens only: the first prompt is in the cache, though the
/// reasoning that followed it is not part of the conversation any more.
#[test]
fn chat_goes_on_from_the_cache() {
    let input = b"Say hello.\nWhat is 17 + 25?\n/stats\n";
    let output = piped(&["chat", "--date", "2026-01-31"], input);
    let told = err(&output);
    let cached = told
        .split_once("(+ ")
        .and_then(|(_, rest)| rest.split_once(" cached)"));
    let cached: usize = cached
        .unwrap_or_else(|| panic!("{told}"))
        .0
        .parse()
        .unwrap();
    let first = json(&run(&[
        "run",
        "--json",
        "--date",
        "2026-01-31",
        "Say hello.",
    ]));
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert!(
        (prompt..prompt + 3).contains(&cached),
        "{cached} of {prompt}: {told}"
    );
}
