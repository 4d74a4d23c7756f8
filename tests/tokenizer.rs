//! The tokenizer against tiktoken-rs and bpe-openai, on the true vocabulary.

mod common;

use common::fresh_seed;
use gossamer::{
    gguf::Gguf,
    synth::{Preset, Synth},
    tokenizer::{StreamDecoder, TokenKind, Tokenizer, Vocabulary, lossy, sample},
};
use proptest::prelude::*;
use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

static O200K: LazyLock<Tokenizer> = LazyLock::new(|| {
    let vocabulary = Vocabulary::o200k_harmony().expect("the asset");
    vocabulary.tokenizer().expect("a complete vocabulary")
});

fn judge() -> &'static tiktoken_rs::CoreBPE {
    tiktoken_rs::o200k_base_singleton()
}

/// Our ids equal tiktoken's, and spell the text.
fn check(text: &str) {
    let ids = O200K.encode(text);
    let expected = judge().encode_ordinary(text);
    if ids != expected {
        let at = ids
            .iter()
            .zip(&expected)
            .take_while(|(a, b)| a == b)
            .count();
        let start = O200K.decode(&ids[..at]).len().saturating_sub(20);
        let around = lossy(&text.as_bytes()[start..(start + 80).min(text.len())]);
        panic!("token {at} differs, near {around:?}");
    }
    assert_eq!(O200K.decode(&ids), text.as_bytes());
}

#[test]
fn the_asset_is_tiktokens_table() {
    for id in 0..199_998 {
        let expected = judge().decode_bytes(&[id]).expect("an ordinary token");
        assert_eq!(O200K.token_bytes(id), expected, "token {id}");
    }
    let harmony = tiktoken_rs::o200k_harmony_singleton();
    for id in 199_998..200_019 {
        let name = lossy(O200K.token_bytes(id)).into_owned();
        // tiktoken-rs gives the last one two names, and knows the true one in o200k only.
        let judge = if id == 200_018 { judge() } else { harmony };
        assert_eq!(judge.encode_with_special_tokens(&name), [id], "{name}");
        assert_eq!(O200K.kind(id), TokenKind::Control);
        assert_eq!(O200K.special(&name), Some(id));
    }
}

#[test]
fn specials_padding_and_stops() {
    assert_eq!(O200K.vocab_size(), 201_088);
    let padding: Vec<u32> = (200_019..201_088).collect();
    assert_eq!(O200K.padding_ids(), padding);
    assert!(O200K.is_padding(200_019) && O200K.is_padding(u32::MAX) && !O200K.is_padding(200_018));
    assert_eq!(O200K.stop_ids(), [199_999, 200_002, 200_012]);
    assert_eq!(O200K.special("[PAD200019]"), None);
    assert_eq!(O200K.special("the"), None);
    assert_eq!(O200K.token_bytes(u32::MAX), b"");
    // Text that looks like a special token stays text.
    for name in ["<|start|>", "<|end|>", "[PAD200019]"] {
        assert!(O200K.encode(name).iter().all(|&id| id < 199_998));
        check(name);
    }
    assert_eq!(O200K.decode(&[200_006, 40, 200_007]), b"<|start|>I<|end|>");
}

#[test]
fn a_multilingual_megabyte() {
    check(&sample::text(1 << 20, fresh_seed()));
}

#[test]
fn runs_of_one_letter() {
    check(&"a".repeat(100_000));
    for unit in [
        "A", "é", "中", "9", "!", "ー", "aB", "\u{301}", "🙂", "'s", "\n", " \n", "/\n",
    ] {
        check(&unit.repeat(3_000));
    }
}

#[test]
fn blanks_that_tiktoken_cannot() {
    let judge = bpe_openai::o200k_base();
    for text in [
        " ".repeat(2_000_000),
        " ".repeat(300_000) + "x",
        "\n".repeat(300_000) + &" ".repeat(300_000),
        "\t \u{3000}".repeat(100_000) + "\n\n!",
    ] {
        assert!(O200K.encode(&text) == judge.encode(text.as_str()));
    }
}

/// Doubling hostile input doubles the time, about; quadratic work would quadruple it.
#[test]
fn hostile_text_takes_linear_time() {
    let time = |text: &str| {
        let fastest = (0..3).map(|_| {
            let start = Instant::now();
            O200K.encode(text);
            start.elapsed()
        });
        fastest.min().unwrap_or(Duration::MAX)
    };
    for unit in ["a", "A", " ", "!", "中", "\n ", "zq", "\u{301}", "1"] {
        let n = 200_000 / unit.len();
        let (short, long) = (unit.repeat(n), unit.repeat(8 * n));
        let ratio = time(&long).as_secs_f64() / time(&short).as_secs_f64().max(1e-4);
        assert!(
            ratio < 32.0,
            "8 times as much {unit:?} takes {ratio:.1} times as long"
        );
    }
}

proptest! {
    #[test]
    fn any_text_comes_back(text in "\\PC*|.*|[ a\\n\\r\\t'sS1中é!/]{0,60}") {
        check(&text);
    }

    #[test]
    fn streaming_does_not_depend_on_cuts(bytes: Vec<u8>, text in ".*", cuts: Vec<prop::sample::Index>) {
        for bytes in [bytes, text.into_bytes()] {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut decoder = StreamDecoder::default();
            let (mut start, mut streamed) = (0, String::new());
            for cut in cuts {
                streamed += &decoder.push(&bytes[start..cut]);
                start = cut;
            }
            streamed += &decoder.finish();
            prop_assert_eq!(streamed, String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn the_door_replaces_what_is_not_text() {
    check(&lossy(b"ok \xff\xfe \xed\xa0\x80 \xf0\x9f\x98 caf\xc3\xa9"));
    assert_eq!(lossy(b"a\xed\xb0\x80b\xc3"), "a\u{fffd}b\u{fffd}");
}

/// The merges that a file of the released layout lists, read back from one.
#[test]
fn merges_are_derived_as_the_converter_does() {
    let merges = O200K.derive_merges();
    assert_eq!(merges.len(), 446_189);
    let spell = |id| String::from_utf8_lossy(O200K.token_bytes(id)).into_owned();
    let first: Vec<_> = merges[..3]
        .iter()
        .map(|&(l, r)| (spell(l), spell(r)))
        .collect();
    // As programs print the released file's list: "Ġ Ġ", "Ġ ĠĠĠ", "ĠĠ ĠĠ".
    let blanks = |l: usize, r: usize| (" ".repeat(l), " ".repeat(r));
    assert_eq!(first, [blanks(1, 1), blanks(1, 3), blanks(2, 2)]);
}

#[test]
fn a_file_gives_the_same_tokenizer() {
    let vocabulary = Vocabulary::o200k_harmony().expect("the asset");
    let mut config = Preset::Tiny.config(vocabulary.tokens.len());
    (config.layers, config.hidden) = (1, 32);
    let file = Synth::new(&config, &vocabulary, 1)
        .expect("a valid shape")
        .to_bytes();
    let gguf = Gguf::from_bytes("o200k", &file).expect("a valid file");
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("a valid vocabulary");
    let text = sample::text(100_000, fresh_seed());
    assert_eq!(tokenizer.encode(&text), O200K.encode(&text));
    assert_eq!(tokenizer.padding_ids(), O200K.padding_ids());
    assert_eq!(tokenizer.stop_ids(), O200K.stop_ids());
    assert_eq!(
        Vocabulary::from_gguf(&gguf).expect("it has all specials"),
        vocabulary
    );
}

/// llama.cpp reads a file that `synth` wrote and gives the same ids.
#[test]
fn llama_cpp_agrees() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tokenizer.json");
    let golden = std::fs::read_to_string(path).expect("the golden file");
    let golden: serde_json::Value = serde_json::from_str(&golden).expect("JSON");
    let cases = golden["cases"].as_array().expect("cases");
    assert!(cases.len() > 100);
    for case in cases {
        let text = case["text"].as_str().expect("a text");
        let ids = case["ids"].as_array().expect("ids");
        let ids: Vec<u32> = ids
            .iter()
            .filter_map(|id| id.as_u64())
            .map(|id| id as u32)
            .collect();
        assert_eq!(O200K.encode(text), ids, "{text:?}");
    }
}
