//! Whole GGUF files that load: every layout and naming in the wild, in the released sizes too.

#[path = "common/gguf_file.rs"]
mod gguf_file;

use gguf_file::{GgufFile, Random, Shape};
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
    file.fill(&mut Random(7));
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
    file.fill(&mut Random(5));
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

#[test]
fn split_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = Shape::TINY.file(gguf_file::Q8_0);
    whole.fill(&mut Random(11));
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
