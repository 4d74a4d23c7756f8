//! Any ids at all: the parser keeps its promises, in linear time.
//!
//! `GOSSAMER_FUZZ_CASES` sets the number of cases, 500 if unset.

use super::common::fresh_seed;
use super::random::Rng;
use super::support::{CONTROLS, ids, names, parse, tokenizer};
use gossamer::harmony::{Builtin, Parser, ToolNames};
use std::time::{Duration, Instant};

fn cases() -> usize {
    match std::env::var("GOSSAMER_FUZZ_CASES") {
        Ok(text) => text.parse().expect("GOSSAMER_FUZZ_CASES is a number"),
        Err(_) => 500,
    }
}

fn tools(rng: &mut Rng) -> ToolNames {
    match rng.below(3) {
        0 => names(&[], &[]),
        1 => names(&["f", "shell"], &[]),
        _ => names(&["f", "web-search"], &[Builtin::Browser, Builtin::Python]),
    }
}

/// Ids of pieces that headers are made of, and of what breaks them.
fn fragment(rng: &mut Rng) -> Vec<u32> {
    const PIECES: [&str; 32] = [
        "assistant",
        "analysis",
        "commentary",
        "final",
        " to=functions.f",
        " to=assistant",
        "to=",
        " to=",
        "functions.",
        " json",
        " code",
        "json",
        "?",
        "??",
        " 2",
        "–",
        "\n",
        " ",
        "user",
        "tool",
        "bash",
        " Hello there",
        "{\"a\":",
        "}",
        "<",
        "|",
        "<|constrain|>",
        "é",
        "日本",
        "fin",
        "Final",
        "web_search",
    ];
    if rng.chance(45) {
        return ids(rng.pick(&CONTROLS));
    }
    tokenizer().encode(rng.pick(&PIECES))
}

#[test]
fn uniform_ids() {
    let mut rng = Rng(fresh_seed());
    let top = tokenizer().vocab_size() + 50;
    for case in 0..cases() {
        let n = rng.below(60);
        let ids: Vec<u32> = (0..n).map(|_| rng.below(top) as u32).collect();
        parse(&tools(&mut rng), &ids, case as u64);
    }
}

#[test]
fn control_tokens_and_fragments() {
    let mut rng = Rng(fresh_seed());
    for case in 0..cases() {
        let mut input = Vec::new();
        for _ in 0..rng.below(40) {
            match rng.below(12) {
                0 => input.push(rng.below(256) as u32),
                1 => input.push(199_990 + rng.below(1200) as u32),
                _ => input.extend(fragment(&mut rng)),
            }
        }
        parse(&tools(&mut rng), &input, case as u64);
    }
}

#[test]
fn mutated_turns() {
    let mut rng = Rng(fresh_seed());
    for case in 0..cases() {
        let mut input = rng.completion();
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(input.len().max(1)).min(input.len());
            match rng.below(4) {
                0 if at < input.len() => {
                    input.remove(at);
                }
                1 if at < input.len() => input.insert(at, input[at]),
                2 => input.truncate(at),
                _ => {
                    let more = fragment(&mut rng);
                    input.splice(at..at, more);
                }
            }
        }
        parse(&tools(&mut rng), &input, case as u64);
    }
}

#[test]
fn hundred_thousand_tokens_take_linear_time() {
    let mut rng = Rng(fresh_seed());
    let mut inputs: Vec<Vec<u32>> = [
        "<|channel|>",
        "<|start|>",
        "<|constrain|>",
        "<|message|>",
        "<|end|>",
        " assistant",
        "assistant",
        " to=functions.f",
        "to=",
        "?",
        " ",
        "\n\n",
        "7",
        "é",
        "<|channel|>commentary",
        " commentary",
        "<|channel|>final Hello",
        "<|start|>bash to=f",
        "<|channel|>commentary to=functions.f<|end|>",
        "<|start|>assistant?<|end|>",
    ]
    .iter()
    .map(|piece| ids(piece))
    .collect();
    inputs.push(tokenizer().encode("<|constrain|>"));
    // Bytes of cut characters.
    inputs.push(vec![tokenizer().encode("🧬")[0]]);
    inputs.push((0..5_000).flat_map(|_| fragment(&mut rng)).collect());
    for (i, piece) in inputs.iter().enumerate() {
        for head in [
            "",
            "<|channel|>commentary",
            "<|channel|>analysis<|message|>x",
        ] {
            let input = |n: usize| -> Vec<u32> {
                let repeated = piece.iter().copied().cycle();
                ids(head).into_iter().chain(repeated).take(n).collect()
            };
            let (short, long) = (input(10_000), input(100_000));
            // Ten times the tokens, with room for a busy machine.
            let mut ratio = f64::INFINITY;
            for _ in 0..3 {
                ratio = ratio.min(time(&long).as_secs_f64() / time(&short).as_secs_f64().max(0.01));
                if ratio < 25.0 {
                    break;
                }
            }
            assert!(
                ratio < 25.0,
                "input {i} after {head:?}: {ratio:.0} times as long"
            );
        }
    }
}

fn time(ids: &[u32]) -> Duration {
    let mut parser = Parser::new(tokenizer(), names(&["f"], &[])).expect("a Harmony vocabulary");
    let begin = Instant::now();
    for &id in ids {
        parser.push(id);
    }
    let (_, turn) = parser.finish();
    let time = begin.elapsed();
    assert_eq!(turn.account.tokens(), ids.len());
    time
}
