//! tokenizer.json, against the GGUF file's lists and against Hugging Face's own reader.

use crate::common::{fresh_seed, models::Tiny, tool};
use gossamer::{
    gguf::Gguf,
    safetensors::Folder,
    tokenizer::{TokenKind, Tokenizer, sample},
};
use std::{path::Path, process::Command};

/// Text of many kinds, with names of special tokens in it, which are text.
fn texts(seed: u64) -> Vec<String> {
    let mut texts: Vec<String> = (0..20).map(|i| sample::text(2000, seed + i)).collect();
    texts.extend(
        [
            "",
            " ",
            "a\n\n  b",
            "don't I'LL",
            "1234567 12",
            "größer 東京\u{301}x\r\n\tz",
        ]
        .map(String::from),
    );
    texts
}

/// Our ids are the judge's, and what the GGUF file's tokenizer makes.
fn check(folder: &Path, gguf: &Path, texts: &[String]) -> Tokenizer {
    let ours = Folder::open(folder).unwrap().tokenizer().unwrap();
    let file = Tokenizer::from_gguf(&Gguf::open(gguf).unwrap()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let (input, output) = (
        scratch.path().join("texts.json"),
        scratch.path().join("ids.json"),
    );
    std::fs::write(&input, serde_json::to_vec(texts).unwrap()).unwrap();
    tool("judge_folder.py", &[&"tokens", &folder, &input, &output]);
    let judged: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(&output).unwrap()).unwrap();
    for (text, ids) in texts.iter().zip(&judged) {
        assert!(ours.encode(text) == *ids, "{text:?}");
        assert!(file.encode(text) == *ids, "the file: {text:?}");
    }
    assert_eq!(ours.vocab_size(), file.vocab_size());
    assert_eq!(ours.stop_ids(), file.stop_ids());
    for id in 0..ours.vocab_size() as u32 {
        assert_eq!(ours.token_bytes(id), file.token_bytes(id), "token {id}");
        let is_special = |kind| matches!(kind, TokenKind::Control | TokenKind::UserDefined);
        let [a, b] = [ours.kind(id), file.kind(id)];
        assert!(
            a == b || is_special(a) && is_special(b),
            "token {id}: {a:?}, {b:?}"
        );
    }
    ours
}

#[test]
fn a_small_vocabulary_is_the_gguf_files() {
    let seed = fresh_seed();
    let tiny = Tiny::make(seed);
    let ours = check(&tiny.path("mlx"), &tiny.path("tiny.gguf"), &texts(seed));
    assert!(ours.encode("<|start|>").len() > 1);
}

/// The whole of o200k, with its 446,189 merges, out of a folder.
#[test]
fn o200k_is_the_judges() {
    let seed = fresh_seed();
    let scratch = tempfile::tempdir().unwrap();
    let (gguf, folder) = (
        scratch.path().join("o200k.gguf"),
        scratch.path().join("mlx"),
    );
    let made = Command::new(env!("CARGO_BIN_EXE_gossamer"))
        .args(["synth", "--preset", "tiny", "--vocab", "o200k"])
        .arg(&gguf)
        .output()
        .unwrap();
    assert!(made.status.success());
    tool("gguf_to_mlx.py", &[&gguf, &folder]);
    let ours = check(&folder, &gguf, &texts(seed));
    assert_eq!(ours.special("<|return|>"), Some(200_002));
}
