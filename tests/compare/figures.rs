//! What the figures say, recomputed by NumPy from `gossamer score`'s logits; what can't be compared.

use crate::{common::python, compare, compare_in, gossamer};
use serde_json::Value;
use std::process::Command;

/// KL, agreement and the rest from two files of logits, written for this test alone.
const JUDGE: &str = r#"
import json, sys
import numpy as np
a, b = (np.load(p).astype(np.float64) for p in sys.argv[1:3])
ids = json.load(open(sys.argv[3]))
def logprobs(x):
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))
a, b = logprobs(a), logprobs(b)
kl = (np.exp(a) * (a - b)).sum(1)
rows = np.arange(len(ids) - 1)
delta = b[rows, ids[1:]] - a[rows, ids[1:]]
print(json.dumps({"kl": kl.tolist(), "delta": delta.tolist(),
    "a_top": a.argmax(1).tolist(), "b_top": b.argmax(1).tolist()}))
"#;

#[test]
fn figures_are_what_numpy_computes_from_the_logits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let compared = compare(&["cpu", "reference", "--no-speed", "--max-tokens", "8"]);
    assert_eq!(compared.code, Some(0), "{}", compared.told());
    let found = &compared.found;
    let sequences = found["sequences"].as_array().expect("sequences");
    assert_eq!(sequences.len(), 7);
    let sequence = &sequences[0];
    let ids = sequence["ids"].as_array().expect("ids");
    let continued = ids.len() as u64 - sequence["prompt_tokens"].as_u64().expect("a number");
    assert!((1..=8).contains(&continued), "{continued}");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    std::fs::write(at("ids.json"), sequence["ids"].to_string()).expect("a file");
    for backend in ["cpu", "reference"] {
        let (tokens, logits) = (at("ids.json"), at(backend));
        let args = [
            "score",
            "--backend",
            backend,
            "--tokens",
            &tokens,
            "--logits",
            &logits,
        ];
        let status = gossamer(folder.path(), &args).status().expect("it starts");
        assert!(status.success());
    }
    let judge = Command::new(python())
        .args(["-c", JUDGE, &at("cpu"), &at("reference"), &at("ids.json")])
        .output()
        .expect("python starts");
    assert!(
        judge.status.success(),
        "{}",
        String::from_utf8_lossy(&judge.stderr)
    );
    let judge: Value = serde_json::from_slice(&judge.stdout).expect("JSON");
    let positions = found["positions"].as_array().expect("positions");
    let close = |found: &Value, expected: &Value| {
        let (found, expected) = (
            found.as_f64().expect("a number"),
            expected.as_f64().unwrap(),
        );
        assert!(
            (found - expected).abs() < 1e-9 + 1e-6 * expected.abs(),
            "{found}, {expected}"
        );
    };
    for (i, p) in positions.iter().take(ids.len()).enumerate() {
        assert_eq!((&p["sequence"], &p["position"]), (&0.into(), &i.into()));
        close(&p["kl"], &judge["kl"][i]);
        assert_eq!(p["a_top"], judge["a_top"][i]);
        assert_eq!(p["b_top"], judge["b_top"][i]);
        match ids.get(i + 1) {
            Some(next) => {
                assert_eq!(&p["next"], next);
                close(&p["delta_logprob"], &judge["delta"][i]);
            }
            None => assert!(p["next"].is_null() && p["delta_logprob"].is_null()),
        }
    }
    // The sums are of these positions.
    let all: usize = sequences
        .iter()
        .filter_map(|s| Some(s["ids"].as_array()?.len()))
        .sum();
    assert_eq!(
        (positions.len(), &found["fidelity"]["positions"]),
        (all, &all.into())
    );
    let kls: Vec<f64> = positions.iter().filter_map(|p| p["kl"].as_f64()).collect();
    close(
        &found["fidelity"]["mean_kl"],
        &(kls.iter().sum::<f64>() / all as f64).into(),
    );
    close(
        &found["fidelity"]["max_kl"],
        &kls.iter().copied().fold(0.0, f64::max).into(),
    );
    let same = positions
        .iter()
        .filter(|p| p["a_top"] == p["b_top"])
        .count();
    close(
        &found["fidelity"]["agreement"],
        &(same as f64 / all as f64).into(),
    );
    let first = positions.iter().find(|p| p["a_top"] != p["b_top"]);
    assert_eq!(
        &found["fidelity"]["first_divergence"],
        first.unwrap_or(&Value::Null)
    );
}

/// The greatest number that a flag may hold.
const MOST: &str = "18446744073709551615";

/// A prompt and an answer that are just what the context holds; nothing was waited for, and nothing is said of it.
#[test]
fn one_token_has_no_decode_speed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (ids, model) = (at("ids.json"), at("short.gguf"));
    std::fs::write(&ids, "[1, 2, 3]").expect("a file");
    let tiny = crate::common::models::Tiny::make(1);
    let mut bytes = std::fs::read(tiny.path("tiny.gguf")).expect("a model");
    let key = b"gpt-oss.context_length";
    let name = bytes.windows(key.len()).position(|at| at == key);
    // After the name its type, then the number.
    let number = name.expect("the key") + key.len() + 4;
    bytes[number..number + 4].copy_from_slice(&64u32.to_le_bytes());
    std::fs::write(&model, bytes).expect("a file");
    let sides = ["--model", &model, "cpu", "reference", "--ids", &ids];
    let run = ["-p", "63", "-n", "1", "-r", "1", "--max-tokens", "1"];
    let compared = compare(&[&sides[..], &run].concat());
    assert_eq!(compared.code, Some(0), "{}", compared.told());
    for side in ["a", "b"] {
        let speed = &compared.found[side]["speed"];
        assert!(speed["decode_tok_per_s"].is_null() && speed["token_p50_s"].is_null());
        assert!(speed["prefill_tok_per_s"][0].as_f64() > Some(0.0));
    }
    let text = compared.text();
    let decode = text.lines().find(|line| line.starts_with("decode"));
    let cells: Vec<&str> = decode.expect("a row").split_whitespace().collect();
    assert_eq!(cells, ["decode", "-", "-"], "{text}");
    assert!(!text.contains("NaN"), "{text}");
}

#[test]
fn speed_is_of_each_side() {
    let compared = compare(&[
        "cpu",
        "cpu,threads=1",
        "--max-tokens",
        "1",
        "-p",
        "40",
        "-n",
        "6",
        "-r",
        "2",
    ]);
    assert_eq!(compared.code, Some(0), "{}", compared.told());
    for side in ["a", "b"] {
        let side = &compared.found[side];
        let speed = &side["speed"];
        let runs = speed["runs"].as_array().expect("runs");
        assert_eq!(runs.len(), 2, "the warm-up is not counted");
        for run in runs {
            assert!(run["ttft_s"].as_f64() > Some(0.0) && run["prefill"].as_f64() > Some(0.0));
            assert_eq!(run["gaps_s"].as_array().map(Vec::len), Some(5));
        }
        let (p50, p99) = (speed["token_p50_s"].as_f64(), speed["token_p99_s"].as_f64());
        assert!(p50 > Some(0.0) && p50 <= p99, "{speed}");
        assert!(speed["decode_tok_per_s"][0].as_f64() > Some(0.0));
        assert!(side["load_s"].as_f64() > Some(0.0));
        if cfg!(target_os = "linux") {
            assert!(speed["peak_memory_bytes"].as_u64() > Some(7_000_000));
        }
    }
    assert!(compared.found["a"]["backend"] != compared.found["b"]["backend"]);
    let text = compared.text();
    for fact in [
        "top-1 agreement",
        "decode",
        "token latency, p99",
        "peak memory",
        "energy",
    ] {
        assert!(text.contains(fact), "{fact}: {text}");
    }
}

#[test]
fn prompts_and_ids_are_taken_from_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("file");
    let path = file.to_str().expect("UTF-8");
    let quick = ["cpu", "cpu:scalar", "--no-speed", "--max-tokens", "3"];
    std::fs::write(&file, "[5, 6, 7]").expect("a file");
    let compared = compare_in(folder.path(), &[&quick[..], &["--ids", path]].concat());
    let sequence = &compared.found["sequences"][0];
    assert_eq!(sequence["prompt_tokens"], 3, "{}", compared.told());
    assert_eq!(sequence["ids"].as_array().map(Vec::len), Some(6));
    assert_eq!(compared.found["fidelity"]["agreement"], 1.0);
    let line = r#"{"messages":[{"role":"user","content":"Hello"}]}"#;
    std::fs::write(&file, format!("{line}\n{line}\n")).expect("a file");
    let compared = compare_in(folder.path(), &[&quick[..], &["--prompts", path]].concat());
    assert_eq!(
        compared.found["sequences"].as_array().map(Vec::len),
        Some(2)
    );
}

#[test]
fn what_cannot_be_compared_is_a_clear_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tiny = crate::common::models::Tiny::make(1);
    let tiny = format!("cpu={}", tiny.path("tiny.gguf").display());
    let ids = folder.path().join("ids.json");
    std::fs::write(&ids, "[1, 2, 2048]").expect("a file");
    let ids = ids.to_str().expect("UTF-8");
    for (args, code, says) in [
        (&["cpu"][..], 2, "<B>"),
        (&["cpu", ""], 2, "expected a back end"),
        (&["cpu", "cpu,threads=many"], 2, "threads=many"),
        (&["cpu", "cpu", "--min-agreement", "1.5"], 2, "from 0 to 1"),
        (&["cpu", "cpu", "--prompts", "x", "--ids", "y"], 2, "--ids"),
        (&["cpu", "cpu", "-p", "131072"], 2, "the context is 131072"),
        (&["cpu", "cpu", "-p", MOST], 2, "the context is 131072"),
        (&["cpu", "cpu", "-n", MOST], 2, "the context is 131072"),
        (
            &["cpu", "cpu", "--max-tokens", MOST],
            2,
            "the context is 131072",
        ),
        (&["cpu", "cpu", "-r", MOST], 2, "tokens of prompts at most"),
        (&["cpu", "no-such-model", "--no-speed"], 1, "no-such-model"),
        (&["cpu", &tiny, "--no-speed"], 1, "vocabulary"),
        (
            &["cpu", "cpu", "--ids", ids, "--no-speed"],
            1,
            "id 2048 at index 2",
        ),
        (&["cpu", "cpu:abacus", "--no-speed"], 1, "abacus"),
        (
            &["cpu", "cpu,program=/bin/cat", "--no-speed"],
            1,
            "/bin/cat",
        ),
        (
            &["cpu", "cpu,program=/no/such/program", "--no-speed"],
            1,
            "/no/such/program",
        ),
    ] {
        let compared = compare(args);
        let told = compared.told();
        assert_eq!(compared.code, Some(code), "{args:?}: {told}");
        assert!(told.contains(says), "{args:?}: {told}");
        assert!(compared.found.is_null(), "{args:?}");
    }
}

/// Another program is run as given, and checked.
#[test]
fn a_side_may_be_another_build() {
    let this = env!("CARGO_BIN_EXE_gossamer");
    let side = format!("cpu,program={this}");
    let compared = compare(&[
        "cpu",
        &side,
        "--no-speed",
        "--max-tokens",
        "0",
        "--min-agreement",
        "1",
    ]);
    assert_eq!(compared.code, Some(0), "{}", compared.told());
    assert_eq!(compared.found["b"]["side"], side);
}
