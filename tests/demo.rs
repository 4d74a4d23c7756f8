//! The demo model answers what it was never trained on (models/demo/README.md): through the program
//! itself, greedily, at least nine in ten of every kind, word for word (JSON and arguments: value for
//! value). 200 of the 1,160 items; GOSSAMER_DEMO_ITEMS=all runs them all.

mod common;

use flate2::read::GzDecoder;
use gossamer::{gguf::Gguf, harmony::Conversation, tokenizer::Tokenizer};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

/// Shards of training text that the demo model saw (models/demo/README.md).
const SHARDS: u64 = 883;

fn items() -> Vec<Value> {
    let path = common::root().join("models/demo/heldout.jsonl.gz");
    let file = File::open(path).expect("the held-out items");
    let items: Vec<Value> = BufReader::new(GzDecoder::new(file))
        .lines()
        .map(|line| serde_json::from_str(&line.expect("text")).expect("JSON"))
        .collect();
    assert!(items.len() >= 1000);
    items
}

fn kind(item: &Value) -> &str {
    item["kind"].as_str().expect("a kind")
}

/// What came is what must come.
fn right(expected: &Value, answer: &Value) -> bool {
    let text = answer["answer"].as_str().unwrap_or_default();
    let calls = answer["tool_calls"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    if let Some(call) = expected.get("call") {
        let [found] = calls else { return false };
        let arguments = found["arguments"].as_str().unwrap_or_default();
        let name = found["name"].as_str().unwrap_or_default();
        return call.as_str().map(|c| c.trim_start_matches("functions."))
            == Some(name.trim_start_matches("functions."))
            && serde_json::from_str(arguments).is_ok_and(|a: Value| a == expected["arguments"]);
    }
    if !calls.is_empty() {
        return false;
    }
    match expected.get("json") {
        Some(json) => serde_json::from_str(text).is_ok_and(|found: Value| found == *json),
        None => expected["text"] == text,
    }
}

#[test]
fn test_demo_answers_held_out_items() {
    let all = items();
    let wanted = match std::env::var("GOSSAMER_DEMO_ITEMS").as_deref() {
        Ok("all") => all.len(),
        Ok(other) => panic!("GOSSAMER_DEMO_ITEMS={other}: expected `all`"),
        Err(_) => 200,
    };
    // Evenly through the file, which is sorted by kind.
    let share = |i: usize| i * wanted / all.len();
    let items: Vec<&Value> = (0..all.len())
        .filter(|&i| share(i) != share(i + 1))
        .map(|i| &all[i])
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("items.jsonl");
    let lines: Vec<String> = items
        .iter()
        .map(|i| i["conversation"].to_string())
        .collect();
    std::fs::write(&file, lines.join("\n")).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_gossamer"))
        .args(["batch", "--temperature", "0", "--max-tokens", "1000"])
        .args(["--ctx-size", "6144"])
        .arg(&file)
        .stderr(Stdio::inherit())
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{}", output.status);
    let answers: Vec<Value> = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str(&line.expect("text")).expect("JSON"))
        .collect();
    assert_eq!(answers.len(), items.len());

    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (item, answer) in items.iter().zip(&answers) {
        let (good, of) = kinds.entry(kind(item)).or_default();
        *of += 1;
        if right(&item["expected"], answer) {
            *good += 1;
        } else {
            let question = &item["conversation"]["messages"];
            let question = question
                .as_array()
                .and_then(|m| m.last())
                .expect("a message");
            let tail: String = question.to_string().chars().rev().take(200).collect();
            let tail: String = tail.chars().rev().collect();
            println!("{} wrong: …{tail}", kind(item));
            println!("  expected {}", item["expected"]);
            println!("  found {} {}", answer["answer"], answer["tool_calls"]);
        }
    }
    println!("{kinds:?}");
    assert_eq!(kinds.len(), 9);
    for (kind, (good, of)) in kinds {
        assert!(
            good * 10 >= of * 9,
            "{kind}: {good} of {of}, expected nine in ten"
        );
    }
}

#[test]
fn test_demo_items_render_as_trained() {
    let model = common::root().join("models/demo/demo.gguf");
    let gguf = Gguf::open(&model).expect("the demo model");
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("its vocabulary");
    let mut of_kind: BTreeMap<String, usize> = BTreeMap::new();
    for item in items() {
        let conversation: Conversation =
            serde_json::from_value(item["conversation"].clone()).expect("a conversation");
        let text = conversation.render_text(&tokenizer).expect("a prompt");
        let digest: String = Sha256::digest(text.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(item["prompt_sha256"], *digest, "{text}");
        *of_kind.entry(kind(&item).to_owned()).or_default() += 1;
    }
    assert!(of_kind.values().all(|&n| n >= 100), "{of_kind:?}");
}

#[test]
fn test_demo_items_are_not_in_the_training_text() {
    let first = common::fresh_seed() % (SHARDS - 12);
    common::tool("check_demo.py", &[&"overlap", &first.to_string(), &"12"]);
}
