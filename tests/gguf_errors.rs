//! GGUF files that don't load: the error names the file, the tensor or key, what was expected and
//! what was found.

#[path = "common/gguf_file.rs"]
mod gguf_file;

use gguf_file::{GgufFile, Random, Shape, Tensor};
use gossamer::{gguf::Gguf, weights::Model};

fn load(file: &GgufFile) -> Result<Model, String> {
    let gguf = Gguf::from_bytes("test.gguf", &file.bytes()).map_err(|e| e.to_string())?;
    Model::load(&gguf).map_err(|e| e.to_string())
}

/// Loading fails, and the error names the file and says all of `parts`.
#[track_caller]
fn refuses(file: &GgufFile, parts: &[&str]) {
    let Err(error) = load(file) else {
        panic!("loaded, but should say {parts:?}")
    };
    for part in ["test.gguf: "].iter().chain(parts) {
        assert!(error.contains(part), "{error:?} should say {part:?}");
    }
}

/// Edits the tensor `name` of a tiny file.
fn with_tensor(name: &str, edit: impl FnOnce(&mut Tensor)) -> GgufFile {
    let mut file = Shape::TINY.file(gguf_file::Q8_0);
    edit(file.tensors.iter_mut().find(|t| t.name == name).unwrap());
    file
}

#[test]
fn errors_name_the_tensor() {
    let q = "blk.1.attn_q.weight";
    let edit = |edit: fn(&mut Tensor)| with_tensor("blk.1.attn_q.weight", edit);
    refuses(
        &edit(|t| t.dims = vec![64, 96]),
        &[q, "shape: expected [64, 64], found [64, 96]"],
    );
    refuses(
        &edit(|t| t.dims = vec![48, 64]),
        &[q, "multiple of 32 for Q8_0, found 48"],
    );
    refuses(
        &edit(|t| t.dims = vec![64, 0]),
        &[q, "no size a tensor can have"],
    );
    refuses(&edit(|t| t.dims = vec![1 << 40; 4]), &[q, "dimensions"]);
    refuses(
        &edit(|t| t.dims = vec![64; 5]),
        &[q, "expected 1 to 4, found 5"],
    );
    refuses(&edit(|t| t.kind = (99, 1, 1)), &[q, "found id 99"]);
    refuses(
        &edit(|t| t.kind = (16, 32, 17)),
        &[q, "multiple of 256 for IQ2_XXS"],
    );
    refuses(
        &edit(|t| t.kind = (40, 64, 36)),
        &[q, "NVFP4 can't be read", "gossamer pull"],
    );
    refuses(
        &edit(|t| t.kind = (4, 32, 17)),
        &[q, "Ollama", "gossamer pull"],
    );
    refuses(
        &edit(|t| t.offset = Some(32)),
        &["overlap", "`token_embd.weight`"],
    );
    refuses(
        &edit(|t| t.offset = Some(33)),
        &[q, "multiple of 32, found 33"],
    );
    refuses(&edit(|t| t.offset = Some(u64::MAX - 31)), &[q, "truncated"]);
    refuses(
        &edit(|t| t.name = "blk.1.attn_k.weight".into()),
        &["blk.1.attn_k.weight", "found again"],
    );
    refuses(&edit(|t| t.name = "x".into()), &[q, "found no such tensor"]);
    let norm = |kind| with_tensor("blk.0.attn_norm.weight", |t| t.kind = kind);
    refuses(
        &norm(gguf_file::Q8_0),
        &["blk.0.attn_norm.weight", "found Q8_0"],
    );
    load(&norm(gguf_file::F16)).unwrap();
    load(&norm(gguf_file::BF16)).unwrap();
    let nan = with_tensor("blk.0.attn_norm.weight", |t| {
        t.data = Some([vec![0; 4 * 63], f32::NAN.to_le_bytes().into()].concat());
    });
    refuses(&nan, &["blk.0.attn_norm.weight", "found NaN at 63"]);
    let mut both = Shape::TINY.file(gguf_file::Q8_0);
    both.tensor("blk.0.ffn_norm.weight", &[64], gguf_file::F32);
    refuses(&both, &["`blk.0.post_attention_norm.weight`", "found both"]);
    let mut extra = Shape::TINY.file(gguf_file::Q8_0);
    extra.tensor("blk.0.attn_q_norm.weight", &[16], gguf_file::F32);
    refuses(&extra, &["blk.0.attn_q_norm.weight", "besides"]);
    let mut fused = Shape::TINY.file(gguf_file::Q8_0);
    fused.tensor(
        "blk.0.ffn_gate_up_exps.weight",
        &[64, 64, 4],
        gguf_file::MXFP4,
    );
    refuses(
        &fused,
        &["blk.0.ffn_gate_up_exps.weight", "Ollama", "gossamer pull"],
    );
}

#[test]
fn errors_name_the_key() {
    type Case<'a> = (&'a str, u32, &'a str);
    let cases: [Case; 14] = [
        ("block_count", 0, "from 1 to 1024, found 0"),
        ("embedding_length", 72, "multiple of 32, found 72"),
        (
            "embedding_length",
            u32::MAX,
            "from 32 to 65536, found 4294967295",
        ),
        (
            "attention.head_count_kv",
            3,
            "divisor of the 4 query heads, found 3",
        ),
        ("attention.key_length", 24, "multiple of 16, found 24"),
        (
            "attention.value_length",
            32,
            "expected 16, as gpt-oss.attention.key_length, found 32",
        ),
        ("attention.head_count", 1025, "from 1 to 1024, found 1025"),
        ("attention.sliding_window", 0, "found 0"),
        ("expert_used_count", 5, "from 1 to 4, found 5"),
        ("expert_feed_forward_length", 33, "multiple of 32, found 33"),
        ("context_length", 0, "found 0"),
        ("rope.scaling.original_context_length", 0, "found 0"),
        ("attention.sliding_window_pattern", 6, "every second layer"),
        ("rope.dimension_count", 8, "expected 16"),
    ];
    for (key, value, says) in cases {
        let key = format!("gpt-oss.{key}");
        let mut file = Shape::TINY.file(gguf_file::Q8_0);
        file.u32(&key, value);
        refuses(&file, &[&format!("key `{key}`"), says]);
    }
    let floats = [
        ("attention.layer_norm_rms_epsilon", f32::NAN),
        ("rope.freq_base", -1.0),
        ("rope.scaling.factor", f32::INFINITY),
        ("rope.scaling.yarn_beta_fast", 0.5),
        ("rope.scaling.yarn_attn_factor", 0.5),
    ];
    for (key, value) in floats {
        let key = format!("gpt-oss.{key}");
        let mut file = Shape::TINY.file(gguf_file::Q8_0);
        file.f32(&key, value);
        refuses(&file, &[&format!("key `{key}`"), &value.to_string()]);
    }
    let required: Vec<String> = Shape::TINY
        .file(gguf_file::F32)
        .entries
        .into_iter()
        .map(|e| e.0)
        .collect();
    let optional = [
        "name",
        "tokens",
        "rope.scaling.type",
        "value_length",
        "feed_forward_length",
    ];
    for key in required {
        let mut file = Shape::TINY.file(gguf_file::Q8_0);
        file.entries.retain(|(k, ..)| *k != key);
        // What has a second source: the key is optional.
        if optional.iter().any(|o| key.ends_with(o)) || key.ends_with("key_length") {
            load(&file).unwrap();
        } else {
            refuses(&file, &[&key, "found no such key"]);
        }
    }
    let mut file = Shape::TINY.file(gguf_file::Q8_0);
    file.str("gpt-oss.block_count", "two");
    refuses(
        &file,
        &["`gpt-oss.block_count`", "found the string \"two\""],
    );
    file.str("general.architecture", "llama");
    refuses(&file, &["`general.architecture`", "found `llama`"]);
    let mut file = Shape::TINY.file(gguf_file::Q8_0);
    file.strings("tokenizer.ggml.tokens", (0..95).map(|i| i.to_string()));
    refuses(
        &file,
        &["`tokenizer.ggml.tokens`", "expected 96 tokens", "found 95"],
    );
}

#[test]
fn damaged_files() {
    let file = Shape::TINY.file(gguf_file::Q8_0);
    let whole = file.bytes();
    let error = |bytes: &[u8]| match Gguf::from_bytes("test.gguf", bytes) {
        Ok(_) => panic!("opened"),
        Err(e) => e.to_string(),
    };
    let edited = |at: usize, with: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        error(&bytes)
    };
    // Every prefix is refused: each of the header's, then some.
    let header = file.head().0.len();
    for len in (0..header).chain((header..whole.len()).step_by(509)) {
        let message = error(&whole[..len]);
        assert!(message.starts_with("test.gguf: "), "{message}");
    }
    assert!(edited(0, b"GGML").contains("expected it to start with \"GGUF\", found \"GGML\""));
    assert!(edited(4, &1u32.to_le_bytes()).contains("expected 2 or 3, found 1"));
    assert!(edited(4, &3u32.to_be_bytes()).contains("big-endian"));
    assert!(
        edited(8, &u64::MAX.to_le_bytes()).contains("tensor count: found 18446744073709551615")
    );
    assert!(edited(16, &(1u64 << 50).to_le_bytes()).contains("metadata count"));
    assert!(edited(24, &u64::MAX.to_le_bytes()).contains("length of key of metadata entry 0"));
    let with = |edit: &dyn Fn(&mut GgufFile)| {
        let mut file = file.clone();
        edit(&mut file);
        error(&file.bytes())
    };
    let array = |element: u32, len: u64| {
        [element.to_le_bytes().to_vec(), len.to_le_bytes().into()].concat()
    };
    assert!(with(&|f| f.entry("k", 13, vec![])).contains("key `k`: value type"));
    assert!(with(&|f| f.entry("k", 9, array(4, u64::MAX))).contains("key `k`: length of an array"));
    assert!(with(&|f| f.entry("k", 9, array(8, 1 << 40))).contains("key `k`"));
    assert!(
        with(&|f| f.entry("k", 8, u64::MAX.to_le_bytes().into()))
            .contains("key `k`: length of a string")
    );
    assert!(with(&|f| f.entries.push(f.entries[0].clone())).contains("found again"));
    let mut deep = array(9, 1).repeat(30);
    deep.extend(array(4, 0));
    assert!(with(&|f| f.entry("k", 9, deep.clone())).contains("key `k`: arrays nested deeper"));
    assert!(with(&|f| f.u32("general.alignment", 24)).contains("`general.alignment`"));
    assert!(with(&|f| f.u32("general.alignment", 0)).contains("power of two"));
    let mut aligned = file.clone();
    aligned.alignment = 256;
    aligned.u32("general.alignment", 256);
    aligned.fill(&mut Random(3));
    let model = load(&aligned).unwrap();
    let output = aligned.tensors.last().unwrap().data.as_deref().unwrap();
    assert_eq!(&model.weights.output.data[..], output);
}

#[test]
fn paths_that_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let error = |name: &str| Gguf::open(&dir.path().join(name)).unwrap_err().to_string();
    assert!(error("absent.gguf").contains("absent.gguf"));
    assert!(error("").contains("directory"));
    std::fs::write(dir.path().join("empty.gguf"), b"").unwrap();
    assert!(error("empty.gguf").contains("empty"));
}
