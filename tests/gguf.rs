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
    assert_eq!(&loaded.data[..], &down.data.as_deref().unwrap()[..]);
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
