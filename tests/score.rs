//! `gossamer score`, the program: what it writes is what the library computes, NumPy reads it, and
//! what cannot be scored is a clear error.

mod common;

use common::{fresh_seed, models::Tiny, python, read_npy, score_with};
use std::{
    fs::File,
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

fn score(tiny: &Tiny, tokens: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gossamer"))
        .args(["score", "--model"])
        .arg(tiny.path("tiny.gguf"))
        .arg("--tokens")
        .arg(tokens)
        .args(more)
        .output()
        .expect("gossamer starts")
}

#[test]
fn scores_rows_and_likeliest_tokens() {
    let tiny = Tiny::make(fresh_seed());
    let mut model = tiny.load();
    model.config.rope.rounded = true;
    let expected = score_with("reference", &Arc::new(model), &tiny.ids);
    let out = tiny.path("logits.npy");
    let npy = out.to_str().expect("a path in UTF-8");
    let common = ["--backend", "reference", "--rope-compat", "--chunk", "37"];

    let all = score(
        &tiny,
        &tiny.path("ids.json"),
        &[&common[..], &["--logits", npy]].concat(),
    );
    assert!(
        all.status.success(),
        "{}",
        String::from_utf8_lossy(&all.stderr)
    );
    assert!(all.stdout.is_empty());
    assert_eq!(read_npy(&out), expected);
    let script = "import numpy, sys; a = numpy.load(sys.argv[1]); print(a.shape, a.dtype, a.argmax(1).tolist())";
    let judge = Command::new(python())
        .args(["-c", script, npy])
        .output()
        .expect("python starts");
    let greedy: Vec<usize> = expected.iter().map(|row| common::greedy(row).0).collect();
    assert_eq!(
        String::from_utf8_lossy(&judge.stdout).trim(),
        format!("(300, 512) float32 {greedy:?}")
    );

    let last = [&common[..], &["--last", "5", "--top", "3", "--logits", npy]].concat();
    let last = score(&tiny, &tiny.path("ids.json"), &last);
    assert!(
        last.status.success(),
        "{}",
        String::from_utf8_lossy(&last.stderr)
    );
    assert_eq!(read_npy(&out), expected[295..]);
    let lines = String::from_utf8(last.stdout).expect("UTF-8");
    let lines: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"))
        .collect();
    assert_eq!(lines.len(), 5);
    for (line, position) in lines.iter().zip(295..) {
        let row = &expected[position];
        let sum: f64 = row.iter().map(|&x| (x as f64).exp()).sum();
        let close = |value: &serde_json::Value, id: usize| {
            let logprob = row[id] as f64 - sum.ln();
            (value.as_f64().expect("a number") - logprob).abs() < 1e-6
        };
        assert_eq!(line["position"], position);
        assert_eq!(line["token"], tiny.ids[position]);
        assert_eq!(line["top"].as_array().map(Vec::len), Some(3));
        assert_eq!(line["top"][0]["id"], common::greedy(row).0);
        assert!(close(&line["top"][0]["logprob"], common::greedy(row).0));
        match tiny.ids.get(position + 1) {
            Some(&next) => {
                assert_eq!(line["next"], next);
                assert!(close(&line["next_logprob"], next as usize));
            }
            None => assert!(line["next"].is_null() && line["next_logprob"].is_null()),
        }
    }
}

#[test]
fn what_cannot_be_scored_is_a_clear_error() {
    let tiny = Tiny::make(1);
    let tokens = tiny.path("tokens.json");
    let out = tiny.path("logits.npy");
    let npy = ["--logits", out.to_str().expect("a path in UTF-8")];
    for (content, says) in [
        ("", "expected a JSON array of token ids"),
        ("[1, -2]", "expected a JSON array of token ids"),
        ("[1, 2.5]", "expected a JSON array of token ids"),
        ("{\"ids\": [1]}", "expected a JSON array of token ids"),
        ("[]", "no token ids"),
        (
            "[0, 511, 512]",
            "id 512 at index 2; the model's vocabulary has 512",
        ),
    ] {
        std::fs::write(&tokens, content).expect("a file in the temporary folder");
        let output = score(&tiny, &tokens, &npy);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{content}: {error}");
        assert!(
            error.contains(says) && error.contains("tokens.json"),
            "{content}: {error}"
        );
    }
    std::fs::write(&tokens, "[1, 2, 3]").expect("a file in the temporary folder");
    for (more, code, says) in [
        (vec![], 2, "--logits"),
        (vec!["--top", "0"], 2, "--top"),
        (vec!["--chunk", "0", npy[0], npy[1]], 2, "--chunk"),
        (
            vec!["--ctx-size", "2", npy[0], npy[1]],
            1,
            "3 tokens; the context is 2",
        ),
        (
            vec!["--logits", "/no/such/folder/x.npy"],
            1,
            "/no/such/folder/x.npy",
        ),
        (vec!["--backend", "abacus", npy[0], npy[1]], 1, "abacus"),
    ] {
        let output = score(&tiny, &tokens, &more);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{more:?}: {error}");
        assert!(error.contains(says), "{more:?}: {error}");
    }
    let endless = File::create(&tokens).expect("a file in the temporary folder");
    endless.set_len(65 << 20).expect("a hole");
    let output = score(&tiny, &tokens, &npy);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("more than 64 MiB"), "{error}");
    assert!(!out.exists(), "a failed run leaves no logits behind");
}
