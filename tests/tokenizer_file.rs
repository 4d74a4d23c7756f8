//! Vocabularies as files of several converters hold them: merges in an order of their own, Ollama's
//! keys, and everything that must be refused.

#[path = "common/gguf_file.rs"]
mod gguf_file;

use gguf_file::GgufFile;
use gossamer::{
    gguf::Gguf,
    tokenizer::{TokenKind, Tokenizer, to_gpt2},
};
use proptest::prelude::*;
use std::collections::HashMap;

fn array(kind: u32, values: &[i32]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((values.len() as u64).to_le_bytes());
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    bytes
}

/// 256 bytes, `words`, `<|return|>`, `<|start|>`, one padding token.
fn file(words: &[&str]) -> GgufFile {
    let mut file = GgufFile::new();
    let mut tokens: Vec<String> = (0..=255u8).map(|byte| to_gpt2(&[byte])).collect();
    tokens.extend(words.iter().map(|word| to_gpt2(word.as_bytes())));
    let mut types = vec![1; tokens.len()];
    for (name, kind) in [("<|return|>", 3), ("<|start|>", 4), ("[PAD9]", 4)] {
        tokens.push(name.to_owned());
        types.push(kind);
    }
    file.str("tokenizer.ggml.model", "gpt2");
    file.strings("tokenizer.ggml.tokens", tokens.iter());
    file.entry("tokenizer.ggml.token_type", 9, array(5, &types));
    file
}

fn open(file: &GgufFile) -> anyhow::Result<Tokenizer> {
    let bytes = file.bytes();
    Tokenizer::from_gguf(&Gguf::from_bytes("test.gguf", &bytes)?)
}

#[test]
fn ollamas_keys() {
    // No `pre`, several stops, padding typed as user-defined.
    let mut file = file(&["ab"]);
    file.entry("tokenizer.ggml.eos_token_ids", 9, array(5, &[257, 65]));
    let tokenizer = open(&file).unwrap();
    assert_eq!(tokenizer.stop_ids(), [65, 257]);
    assert_eq!(tokenizer.special("<|start|>"), Some(258));
    assert_eq!(tokenizer.kind(258), TokenKind::UserDefined);
    assert!(tokenizer.is_padding(259) && tokenizer.special("[PAD9]").is_none());
    assert_eq!(tokenizer.encode("ab<|start|>")[..2], [256, u32::from(b'<')]);
}

#[test]
fn what_cannot_be_read_says_why() {
    let refuse = |change: &dyn Fn(&mut GgufFile), parts: &[&str]| {
        let mut file = file(&["ab"]);
        change(&mut file);
        let error = format!("{:#}", open(&file).err().expect(parts[0]));
        for part in parts.iter().chain(&["test.gguf"]) {
            assert!(error.contains(part), "{error}: lacks {part}");
        }
    };
    let key = "tokenizer.ggml.model";
    refuse(&|f| f.str(key, "llama"), &[key, "gpt2", "llama"]);
    refuse(&|f| f.entries.retain(|e| e.0 != key), &[key, "nothing"]);
    let key = "tokenizer.ggml.pre";
    refuse(&|f| f.str(key, "qwen2"), &[key, "gpt-4o", "qwen2"]);
    let key = "tokenizer.ggml.tokens";
    refuse(&|f| f.entries.retain(|e| e.0 != key), &[key, "missing"]);
    refuse(&|f| f.u32(key, 3), &[key, "strings", "3"]);
    refuse(
        &|f| f.strings(key, ["a b"; 260].iter()),
        &[key, "[0]", "a b"],
    );
    refuse(&|f| f.strings(key, ["a"; 260].iter()), &["byte 0x00"]);
    refuse(&|f| f.strings(key, [b"\xff"; 260].iter()), &[key, "[0]"]);
    let long = "a".repeat(1025);
    refuse(
        &|f| f.strings(key, std::iter::repeat_n(&long, 260)),
        &["token 0", "1025", "1024"],
    );
    let key = "tokenizer.ggml.token_type";
    refuse(&|f| f.entries.retain(|e| e.0 != key), &[key, "missing"]);
    refuse(&|f| f.entry(key, 9, array(5, &[1; 9])), &[key, "260", "9"]);
    refuse(
        &|f| f.entry(key, 9, array(5, &[7; 260])),
        &[key, "[0]", "7"],
    );
    let key = "tokenizer.ggml.merges";
    refuse(&|f| f.strings(key, ["ab"].iter()), &[key, "ab"]);
    refuse(
        &|f| f.strings(key, ["a b", "a c"].iter()),
        &[key, "[1]", "a c"],
    );
    refuse(
        &|f| f.strings(key, ["a b", "ab bc"].iter()),
        &[key, "[1]", "ab bc"],
    );
    let key = "tokenizer.ggml.eos_token_id";
    refuse(&|f| f.u32(key, 260), &[key, "260"]);
}

/// Byte-pair merging as written on paper: the listed pair of lowest rank, everywhere from the left,
/// until none is left.
fn naive(text: &str, merges: &[(String, String)]) -> Vec<String> {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let rank = |pair: &[String]| merges.iter().position(|m| m.0 == pair[0] && m.1 == pair[1]);
        let Some((_, at)) = (0..parts.len().saturating_sub(1))
            .filter_map(|at| Some((rank(&parts[at..at + 2])?, at)))
            .min()
        else {
            return parts;
        };
        let right = parts.remove(at + 1);
        parts[at] += &right;
    }
}

proptest! {
    /// Merges learned in one order, ids given in another, some merges left out.
    #[test]
    fn merges_go_in_the_files_order(
        picks in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..30),
        shuffle: u64,
        text in "[a-d]{0,60}|[a-d]{120,300}",
    ) {
        let mut known: Vec<String> = ["a", "b", "c", "d"].map(String::from).into();
        let mut merges: Vec<(String, String)> = Vec::new();
        for (left, right) in picks {
            let pair = (left.get(&known).clone(), right.get(&known).clone());
            let made = pair.0.clone() + &pair.1;
            if made.len() <= 40 && !merges.contains(&pair) {
                merges.push(pair);
                if !known.contains(&made) {
                    known.push(made);
                }
            }
        }
        let mut words: Vec<&str> = known[4..].iter().map(String::as_str).collect();
        words.sort_by_key(|word| {
            word.bytes().fold(shuffle, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
        });
        let mut file = file(&words);
        file.strings("tokenizer.ggml.merges", merges.iter().map(|(l, r)| format!("{l} {r}")));
        let tokenizer = open(&file).unwrap();
        let ids: HashMap<&str, u32> = words.iter().zip(256..).map(|(word, id)| (*word, id)).collect();
        let id = |part: &String| match part.as_bytes() {
            [byte] => u32::from(*byte),
            _ => ids[part.as_str()],
        };
        let expected: Vec<u32> = naive(&text, &merges).iter().map(id).collect();
        prop_assert_eq!(tokenizer.encode(&text), expected);
    }
}
