//! Whole GGUF files: what loads, and what the error says when it doesn't.

#[path = "common/gguf_file.rs"]
mod gguf_file;

use gguf_file::{GgufFile, Shape, Tensor};
use gossamer::{
    gguf::{Gguf, Value, ValueType},
    quant::GgmlType,
    weights::{Format, Model},
};

fn open(file: &GgufFile) -> Result<Gguf, String> {
    Gguf::from_bytes("test.gguf", &file.bytes()).map_err(|e| e.to_string())
}

fn load(file: &GgufFile) -> Result<Model, String> {
    Model::load(&open(file)?).map_err(|e| e.to_string())
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

#[test]
fn test_gguf_header() {
    for version in [2, 3] {
        let mut file = Shape::TINY.file(gguf_file::Q8_0);
        file.version = version;
        file.entry("a.u8", 0, vec![200]);
        file.entry("a.i8", 1, vec![200]);
        file.entry("a.u16", 2, 65_000u16.to_le_bytes().into());
        file.entry("a.i16", 3, (-3i16).to_le_bytes().into());
        file.entry("a.i32", 5, (-70_000i32).to_le_bytes().into());
        file.entry("a.bool", 7, vec![1]);
        file.entry("a.u64", 10, u64::MAX.to_le_bytes().into());
        file.entry("a.i64", 11, i64::MIN.to_le_bytes().into());
        file.entry("a.f64", 12, 0.1f64.to_le_bytes().into());
        // [[1, 2], [3]] of u8: an array of arrays.
        let mut nested = [9u32.to_le_bytes().to_vec(), 2u64.to_le_bytes().to_vec()].concat();
        for row in [&[1u8, 2][..], &[3]] {
            nested.extend(0u32.to_le_bytes());
            nested.extend((row.len() as u64).to_le_bytes());
            nested.extend(row);
        }
        file.entry("a.nested", 9, nested);
        let gguf = open(&file).unwrap();
        assert_eq!(gguf.version, version);
        assert_eq!(gguf.alignment, 32);
        assert_eq!(gguf.get("a.u8"), Some(Value::U64(200)));
        assert_eq!(gguf.get("a.i8"), Some(Value::I64(-56)));
        assert_eq!(gguf.get("a.u16"), Some(Value::U64(65_000)));
        assert_eq!(gguf.get("a.i16"), Some(Value::I64(-3)));
        assert_eq!(gguf.get("a.i32"), Some(Value::I64(-70_000)));
        assert_eq!(gguf.get("a.bool"), Some(Value::Bool(true)));
        assert_eq!(gguf.get("a.u64"), Some(Value::U64(u64::MAX)));
        assert_eq!(gguf.get("a.i64"), Some(Value::I64(i64::MIN)));
        assert_eq!(gguf.get("a.f64"), Some(Value::F64(0.1)));
        assert_eq!(gguf.get("a.none"), None);
        assert_eq!(gguf.str("general.name").unwrap(), Some("Test model"));
        assert_eq!(gguf.f32("gpt-oss.rope.freq_base").unwrap(), Some(150_000.0));
        let mut tokens = gguf.strings("tokenizer.ggml.tokens").unwrap().unwrap();
        assert_eq!(tokens.len(), 96);
        assert_eq!(tokens.nth(95), Some(&b"t95"[..]));
        let Some(Value::Array(nested)) = gguf.get("a.nested") else {
            panic!("no array")
        };
        assert_eq!((nested.element, nested.len), (ValueType::Array, 2));
        let rows: Vec<Vec<Value>> = nested
            .iter()
            .map(|row| match row {
                Value::Array(row) => row.iter().collect(),
                other => panic!("{other:?}"),
            })
            .collect();
        let int = Value::U64;
        assert_eq!(rows, [vec![int(1), int(2)], vec![int(3)]]);
        assert_eq!(gguf.metadata().count(), file.entries.len());
        assert_eq!(gguf.tensors.len(), file.tensors.len());
        let embd = gguf.tensor("token_embd.weight").unwrap();
        assert_eq!((embd.kind, embd.bytes), (GgmlType::Q8_0, 64 / 32 * 34 * 96));
        assert_eq!(embd.dims, [64, 96]);
    }
}

#[test]
fn test_layer_shapes() {
    let mut file = Shape::TINY.file(gguf_file::Q8_0);
    file.fill(rng(7));
    let model = load(&file).unwrap();
    let c = &model.config;
    assert_eq!((c.layers, c.hidden, c.heads, c.kv_heads), (2, 64, 4, 2));
    assert_eq!((c.head_dim, c.experts, c.experts_used), (16, 4, 2));
    assert_eq!(
        (c.expert_width, c.vocab, c.context, c.window),
        (32, 96, 131_072, 128)
    );
    assert_eq!((c.rope.theta, c.rope.factor), (150_000.0, 32.0));
    assert_eq!((c.rope.original_context, c.rms_eps), (4096, 1e-5));
    assert_eq!((c.rope.beta_fast, c.rope.beta_slow), (32.0, 1.0));
    assert_eq!(c.name, "Test model");
    for layer in &model.weights.layers {
        assert_eq!(layer.attn_norm.len(), 64);
        assert_eq!(layer.sinks.len(), 4);
        assert_eq!(layer.post_attention_norm.len(), 64);
        for (linear, rows, cols, format) in [
            (&layer.q, 64, 64, Format::Q8_0),
            (&layer.k, 32, 64, Format::Q8_0),
            (&layer.v, 32, 64, Format::Q8_0),
            (&layer.o, 64, 64, Format::Q8_0),
            (&layer.router, 4, 64, Format::F32),
            (&layer.gate, 4 * 32, 64, Format::MXFP4),
            (&layer.up, 4 * 32, 64, Format::MXFP4),
            (&layer.down, 4 * 64, 32, Format::MXFP4),
        ] {
            let w = &linear.weight;
            assert_eq!((w.rows, w.cols, w.format), (rows, cols, format));
            assert_eq!(linear.bias.len(), rows);
            assert_eq!(w.data.len(), rows * format.row_bytes(cols));
        }
    }
    // The bytes are the tensor's own, not merely as many.
    let name = "blk.1.ffn_down_exps.weight";
    let down = file.tensors.iter().find(|t| t.name == name).unwrap();
    let loaded = &model.weights.layers[1].down.weight;
    assert_eq!(&loaded.data[..], down.data.as_deref().unwrap());
    let mut row = [0.0; 32];
    loaded.row_to_f32(5, &mut row);
    assert!(row.iter().any(|v| *v != 0.0));
}

/// A small generator of bytes; the same seed gives the same bytes.
fn rng(mut seed: u64) -> impl FnMut() -> u8 {
    move || {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 56) as u8
    }
}

/// The public 20b file, weights a hole: 459 tensors, exactly as many bytes. Loading reads its header
/// and copies the small tensors; the 12 GB of matrices stay untouched in the map.
#[test]
fn test_load_gpt_oss_20b_gguf() {
    const FILE_BYTES: u64 = 12_109_566_400;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gpt-oss-20b-mxfp4.gguf");
    let mut file = Shape::OSS_20B.file(gguf_file::Q8_0);
    // As many merges and tokens as the public file, then filler up to its length.
    file.strings(
        "tokenizer.ggml.merges",
        (0..446_189).map(|i| format!("Ġa b{i}")),
    );
    file.str("tokenizer.chat_template", "");
    let (head, data) = file.head();
    let filler = FILE_BYTES - data - head.len() as u64;
    file.str("tokenizer.chat_template", &"x".repeat(filler as usize));
    assert_eq!(file.write_sparse(&path).unwrap(), FILE_BYTES);

    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.tensors.len(), 459);
    let of = |kind| gguf.tensors.iter().filter(|t| t.kind == kind).count();
    let by_kind = [GgmlType::F32, GgmlType::Q8_0, GgmlType::MXFP4].map(of);
    assert_eq!(by_kind, [289, 98, 72]);
    let model = Model::load(&gguf).unwrap();
    let c = &model.config;
    assert_eq!(
        (c.layers, c.hidden, c.heads, c.kv_heads, c.head_dim),
        (24, 2880, 64, 8, 64)
    );
    assert_eq!(
        (c.experts, c.experts_used, c.expert_width, c.vocab),
        (32, 4, 2880, 201_088)
    );
    assert_eq!(model.weights.layers.len(), 24);
    let down = &model.weights.layers[23].down.weight;
    assert_eq!(
        (down.rows, down.cols, down.format),
        (32 * 2880, 2880, Format::MXFP4)
    );
    let resident = resident_bytes(&path);
    assert!(
        resident.is_none_or(|bytes| bytes < 150 << 20),
        "loading touched {resident:?} bytes of the map; the header and F32 tensors are 50 MB"
    );
}

/// Bytes of the mappings of `path` that are in memory, where the system tells (Linux).
fn resident_bytes(path: &std::path::Path) -> Option<u64> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let mut inside = false;
    let mut total = 0;
    for line in smaps.lines() {
        if line
            .split_once('-')
            .is_some_and(|(a, _)| u64::from_str_radix(a, 16).is_ok())
        {
            inside = line.ends_with(path.to_str()?);
        } else if let Some(kb) = line.strip_prefix("Rss:").filter(|_| inside) {
            total += kb.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
        }
    }
    assert!(total > 0, "the map of {path:?} isn't listed");
    Some(total)
}

#[test]
fn gpt_oss_120b_loads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gpt-oss-120b.gguf");
    Shape::OSS_120B
        .file(gguf_file::Q8_0)
        .write_sparse(&path)
        .unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.tensors.len(), 687);
    let model = Model::load(&gguf).unwrap();
    assert_eq!((model.config.layers, model.config.experts), (36, 128));
    assert_eq!(model.weights.layers[35].gate.weight.rows, 128 * 2880);
}

#[test]
fn names_of_other_converters() {
    let original = Shape::TINY.file(gguf_file::Q8_0);
    let mut file = original.clone();
    rename(&mut file, "post_attention_norm", "ffn_norm");
    load(&file).unwrap();
    // Ollama: another prefix, attn_out, sinks without a suffix, no scaling type.
    let mut file = Shape {
        arch: "gptoss",
        ..Shape::TINY
    }
    .file(gguf_file::BF16);
    rename(&mut file, "post_attention_norm", "ffn_norm");
    rename(&mut file, "attn_output", "attn_out");
    rename(&mut file, "attn_sinks.weight", "attn_sinks");
    file.entries.retain(|(k, ..)| {
        k != "gptoss.rope.scaling.type" && k != "gptoss.expert_feed_forward_length"
    });
    file.f32("gptoss.rope.scaling.yarn_beta_fast", 16.0);
    let model = load(&file).unwrap();
    assert_eq!(
        (model.config.rope.factor, model.config.rope.beta_fast),
        (32.0, 16.0)
    );
    // Ollama's fused attn_qkv: rows of q, then k, then v.
    let mut file = original.clone();
    file.tensors.retain(|t| {
        !["_q.", "_k.", "_v."]
            .iter()
            .any(|p| t.name.contains(&format!("attn{p}")))
    });
    for layer in 0..2 {
        file.tensor(
            &format!("blk.{layer}.attn_qkv.weight"),
            &[64, 64 + 32 + 32],
            gguf_file::Q8_0,
        );
        file.tensor(
            &format!("blk.{layer}.attn_qkv.bias"),
            &[64 + 32 + 32],
            gguf_file::F32,
        );
    }
    file.fill(rng(5));
    let model = load(&file).unwrap();
    let layer = &model.weights.layers[1];
    let data = |name: &str| {
        let tensor = file.tensors.iter().find(|t| t.name == name).unwrap();
        tensor.data.clone().unwrap()
    };
    let parts = [&layer.q, &layer.k, &layer.v];
    assert_eq!(parts.map(|l| l.weight.rows), [64, 32, 32]);
    assert_eq!(
        parts.map(|l| &l.weight.data[..]).concat(),
        data("blk.1.attn_qkv.weight")
    );
    let bias: Vec<u8> = parts
        .iter()
        .flat_map(|l| &l.bias)
        .flat_map(|v| v.to_le_bytes())
        .collect();
    assert_eq!(bias, data("blk.1.attn_qkv.bias"));
    // Both names at once: which one is meant?
    let mut file = original.clone();
    file.tensor("blk.0.ffn_norm.weight", &[64], gguf_file::F32);
    refuses(&file, &["`blk.0.post_attention_norm.weight`", "found both"]);
    // A tied head is read in a small model, missed in one of the release's size.
    let mut file = original.clone();
    file.tensors.retain(|t| t.name != "output.weight");
    let (_, notes) = Model::load_with_notes(&open(&file).unwrap()).unwrap();
    assert!(notes[0].contains("token_embd.weight"), "{notes:?}");
}

fn rename(file: &mut GgufFile, from: &str, to: &str) {
    for t in &mut file.tensors {
        t.name = t.name.replace(from, to);
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
    aligned.fill(rng(3));
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

#[test]
fn split_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = Shape::TINY.file(gguf_file::Q8_0);
    whole.fill(rng(11));
    let parts = split(&whole, 3);
    let path = |i: usize| dir.path().join(format!("m-{:05}-of-00003.gguf", i + 1));
    let write = |i: usize, part: &GgufFile| std::fs::write(path(i), part.bytes()).unwrap();
    parts.iter().enumerate().for_each(|(i, p)| write(i, p));
    // Any part opens all.
    for i in 0..3 {
        let gguf = Gguf::open(&path(i)).unwrap();
        assert_eq!(gguf.files.len(), 3);
        assert_eq!(gguf.tensors.len(), whole.tensors.len());
        for t in &whole.tensors {
            let found = gguf.tensor(&t.name).unwrap();
            assert_eq!(&gguf.data(found)[..], t.data.as_deref().unwrap());
        }
        Model::load(&gguf).unwrap();
    }
    let error = || Gguf::open(&path(0)).unwrap_err().to_string();
    std::fs::remove_file(path(2)).unwrap();
    assert!(error().contains("m-00003-of-00003.gguf: "), "{}", error());
    write(2, &parts[1]);
    assert!(
        error().contains("`split.no`: expected 2, found 1"),
        "{}",
        error()
    );
    let mut other = parts[2].clone();
    other.u32("split.count", 4);
    write(2, &other);
    assert!(
        error().contains("`split.count`: expected 3, found 4"),
        "{}",
        error()
    );
    let mut fewer = parts[2].clone();
    fewer.tensors.pop();
    write(2, &fewer);
    assert!(error().contains("`split.tensors.count`"), "{}", error());
    let mut twice = parts[2].clone();
    twice.tensors.last_mut().unwrap().name = "token_embd.weight".into();
    write(2, &twice);
    assert!(
        error().contains("m-00003-of-00003.gguf: tensor `token_embd.weight`"),
        "{}",
        error()
    );
    // A part under another name.
    std::fs::write(dir.path().join("part.gguf"), parts[0].bytes()).unwrap();
    let error = Gguf::open(&dir.path().join("part.gguf"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("keep its name"), "{error}");
}

/// The parts as llama.cpp's gguf-split writes them: metadata in the first only.
fn split(whole: &GgufFile, count: usize) -> Vec<GgufFile> {
    let per_part = whole.tensors.len().div_ceil(count);
    let part = |i: usize| {
        let mut part = if i == 0 {
            whole.clone()
        } else {
            GgufFile::new()
        };
        part.entry("split.no", 2, (i as u16).to_le_bytes().into());
        part.entry("split.count", 2, (count as u16).to_le_bytes().into());
        part.entry(
            "split.tensors.count",
            5,
            (whole.tensors.len() as i32).to_le_bytes().into(),
        );
        part.tensors = whole.tensors.chunks(per_part).nth(i).unwrap().to_vec();
        part
    };
    (0..count).map(part).collect()
}
