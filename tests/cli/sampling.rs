//! What ends an answer, and what it depends on: a model of random weights goes on with a prompt.

use super::{err, json, out, random_model, run};
use serde_json::Value;

/// What keeps the random model from ending its answer: its tokens from 256 on are specials.
fn no_specials() -> Vec<String> {
    (256..288)
        .map(|id| format!("--logit-bias={id}=-100"))
        .collect()
}

/// Arguments for the random model to go on with a fixed prompt.
pub fn random_args(more: &[&str]) -> Vec<String> {
    let args = ["run", "--raw", "-m", random_model(), "Once upon a time"];
    let args = args.iter().chain(more).map(|arg| arg.to_string());
    args.chain(no_specials()).collect()
}

/// The random model's answer to a fixed prompt.
fn random_answer(more: &[&str]) -> Value {
    let args = random_args(&[&["--json", "-n", "60"], more].concat());
    json(&run(&args.iter().map(String::as_str).collect::<Vec<_>>()))
}

#[test]
fn a_seed_gives_the_same_answer_on_any_number_of_threads() {
    let first = random_answer(&["--seed", "5", "--threads", "1"]);
    assert_eq!(first["usage"]["completion_tokens"], 60);
    for threads in ["1", "2", "3"] {
        let again = random_answer(&["--seed", "5", "--threads", threads]);
        assert_eq!(again["answer"], first["answer"], "{threads} threads");
    }
    assert_ne!(random_answer(&["--seed", "6"])["answer"], first["answer"]);
    // A made-up seed is told, and reproduces the answer.
    let free = random_answer(&[]);
    let seed = free["seed"].as_u64().unwrap().to_string();
    assert_eq!(random_answer(&["--seed", &seed])["answer"], free["answer"]);
}

#[test]
fn a_stop_string_ends_the_answer_before_itself() {
    let whole = random_answer(&["--seed", "11"]);
    let whole = whole["answer"].as_str().unwrap();
    // Four characters from the middle: tokens are bytes here, so it is split over several.
    let characters: Vec<char> = whole.chars().collect();
    let middle = characters.len() / 2;
    let stop: String = characters[middle..middle + 4].iter().collect();
    let expected = &whole[..whole.find(&stop).unwrap()];
    let stopped = random_answer(&["--seed", "11", "--stop", &stop]);
    assert_eq!(stopped["answer"], expected);
    assert_eq!(stopped["finish_reason"], "stop");
    let args = random_args(&["-n", "60", "--seed", "11", "--stop", &stop]);
    let streamed = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(
        out(&streamed).trim_end_matches('\n'),
        expected.trim_end_matches('\n')
    );
    // A stop string that never comes loses nothing, not even what looked like its beginning.
    let tail: String = characters[characters.len() - 1..].iter().collect();
    let never = random_answer(&[
        "--seed",
        "11",
        "--stop",
        &format!("{tail}{}", "\u{1}".repeat(9)),
    ]);
    assert_eq!(never["answer"], whole);
}

#[test]
fn a_full_context_ends_the_answer_and_says_so() {
    let args = random_args(&["--ctx-size", "64", "--seed", "1"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let full = json(&run(&[&args[..], &["--json"]].concat()));
    assert_eq!(full["finish_reason"], "length");
    assert_eq!(full["context_full"], true);
    let usage = &full["usage"];
    let tokens = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(tokens("prompt_tokens") + tokens("completion_tokens"), 64);
    let output = run(&args);
    assert!(
        output.status.success() && err(&output).contains("context is full"),
        "{}",
        err(&output)
    );
}
