//! GGUF reading judged by the PyPI package `gguf`: its files are read, its dequantizer's values are
//! met bit for bit, on random inputs that are fresh in every run. (NaN is compared as NaN: which of
//! its many bit patterns comes out is the processor's choice.)

mod common;
#[path = "common/gguf_file.rs"]
mod gguf_file;

use common::{fresh_seed, tool};
use gguf_file::{GgufFile, Random, Shape};
use gossamer::{
    gguf::{Gguf, Value},
    quant::{GgmlType, dequantize},
    weights::{Format, Matrix, Model},
};
use half::f16;
use std::path::Path;

/// Types that are read, with where their f16 scales stand in a block.
const READ: [(GgmlType, &[usize]); 13] = [
    (GgmlType::F32, &[]),
    (GgmlType::F16, &[0]),
    (GgmlType::BF16, &[]),
    (GgmlType::Q8_0, &[0]),
    (GgmlType::MXFP4, &[]),
    (GgmlType::Q4_0, &[0]),
    (GgmlType::Q4_1, &[0, 2]),
    (GgmlType::Q5_0, &[0]),
    (GgmlType::Q5_1, &[0, 2]),
    (GgmlType::Q4_K, &[0, 2]),
    (GgmlType::Q5_K, &[0, 2]),
    (GgmlType::Q6_K, &[208]),
    (GgmlType::IQ4_NL, &[0]),
];

fn writer_kind(kind: GgmlType) -> (u32, usize, usize) {
    (kind as u32, kind.block_values(), kind.block_bytes())
}

/// What the judge makes of tensor `name`.
fn judged(dir: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(dir.join(format!("{name}.f32"))).unwrap();
    let (values, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    values.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[track_caller]
fn same_bits(name: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(same, "{name}[{i}]: {a:e} here, {b:e} by the judge");
    }
}

/// Every type, on blocks of random bytes: all nibbles, all scales; and on chosen scales.
#[test]
fn every_type_decodes_as_the_judge_does() {
    let mut random = Random(fresh_seed());
    let dir = tempfile::tempdir().unwrap();
    let mut file = GgufFile::new();
    file.str("general.architecture", "test");
    let scales = [
        0u16, 0x8000, 1, 0x83ff, 0x0400, 0x3c00, 0xbc01, 0x7bff, 0xfbff, 0x7c00, 0xfc00,
    ];
    for (kind, scale_at) in READ {
        file.tensor(kind.name(), &[256, 64], writer_kind(kind));
        let tensor = file.tensors.last_mut().unwrap();
        let mut data: Vec<u8> = (0..tensor.bytes()).map(|_| random.byte()).collect();
        for (i, block) in data.chunks_exact_mut(kind.block_bytes()).enumerate() {
            if kind == GgmlType::MXFP4 {
                // All 256 exponents, 255 and the subnormal 0 and 1 among them.
                block[0] = i as u8;
            }
            for (k, &at) in scale_at.iter().enumerate() {
                if let Some(scale) = scales.get((i + 5 * k) % 16) {
                    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
        tensor.data = Some(data);
    }
    let path = dir.path().join("blocks.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    tool("judge_gguf.py", &[&"read", &path, &dir.path()]);

    let gguf = Gguf::open(&path).unwrap();
    for (kind, _) in READ {
        let tensor = gguf.tensor(kind.name()).unwrap();
        let mut ours = vec![0.0; 256 * 64];
        dequantize(kind, &gguf.data(tensor), &mut ours);
        let theirs = judged(dir.path(), kind.name());
        assert!(
            theirs
                .iter()
                .filter(|v| v.is_finite() && **v != 0.0)
                .count()
                > 5_000
        );
        same_bits(kind.name(), &ours, &theirs);
    }
}

/// Files that the package writes: metadata of every type, split, aligned otherwise, big-endian.
#[test]
fn files_of_the_judge_are_read() {
    let seed = fresh_seed();
    let dir = tempfile::tempdir().unwrap();
    tool("judge_gguf.py", &[&"write", &seed.to_string(), &dir.path()]);
    let expected = std::fs::read_to_string(dir.path().join("metadata.json")).unwrap();
    let expected: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&expected).unwrap();
    assert_eq!(expected.len(), 16);
    for (name, files) in [("plain", 1), ("aligned", 1), ("split-00002-of-00003", 3)] {
        let path = dir.path().join(format!("{name}.gguf"));
        let gguf = Gguf::open(&path).unwrap();
        assert_eq!(gguf.files.len(), files);
        assert_eq!(gguf.alignment, if name == "aligned" { 128 } else { 32 });
        for (key, value) in &expected {
            same_value(key, gguf.get(key).unwrap(), value);
        }
        assert_eq!(gguf.tensors.len(), 9);
        for (path, _) in &gguf.files {
            tool("judge_gguf.py", &[&"read", path, &dir.path()]);
        }
        for tensor in &gguf.tensors {
            assert_eq!(tensor.dims, [64, 2, 3]);
            let mut ours = vec![0.0; 64 * 2 * 3];
            dequantize(tensor.kind, &gguf.data(tensor), &mut ours);
            same_bits(&tensor.name, &ours, &judged(dir.path(), &tensor.name));
        }
    }
    let error = Gguf::open(&dir.path().join("big-endian.gguf")).unwrap_err();
    assert!(error.to_string().contains("big-endian"), "{error}");
}

#[track_caller]
fn same_value(key: &str, ours: Value<'_>, expected: &serde_json::Value) {
    let float = || expected.as_str().unwrap().parse::<f64>().unwrap();
    match ours {
        Value::U64(v) => assert_eq!(expected.as_u64(), Some(v), "{key}"),
        Value::I64(v) => assert_eq!(expected.as_i64(), Some(v), "{key}"),
        Value::F32(v) => assert_eq!(float(), f64::from(v), "{key}"),
        Value::F64(v) => assert_eq!(float(), v, "{key}"),
        Value::Bool(v) => assert_eq!(expected.as_bool(), Some(v), "{key}"),
        Value::Str(v) => assert_eq!(expected.as_str().map(str::as_bytes), Some(v), "{key}"),
        Value::Array(a) => {
            let expected = expected.as_array().unwrap();
            assert_eq!(expected.len(), a.len, "{key}");
            a.iter()
                .zip(expected)
                .for_each(|(v, e)| same_value(key, v, e));
        }
    }
}

/// A model whose matrices are of the eight types that are converted.
fn converted_model(random: &mut Random) -> GgufFile {
    let shape = Shape {
        hidden: 256,
        heads: 16,
        kv_heads: 4,
        expert_width: 256,
        vocab: 512,
        ..Shape::TINY
    };
    let mut file = shape.file(gguf_file::Q8_0);
    let kinds = [
        ("token_embd", GgmlType::Q4_0),
        ("attn_q", GgmlType::Q4_1),
        ("attn_k", GgmlType::Q5_0),
        ("attn_v", GgmlType::Q5_1),
        ("attn_output", GgmlType::Q4_K),
        ("ffn_gate_exps", GgmlType::Q5_K),
        ("ffn_up_exps", GgmlType::Q6_K),
        ("ffn_down_exps", GgmlType::IQ4_NL),
    ];
    for t in &mut file.tensors {
        let named = |(part, _): &&(&str, GgmlType)| t.name.contains(&format!("{part}.weight"));
        if let Some((_, kind)) = kinds.iter().find(named) {
            t.kind = writer_kind(*kind);
        }
    }
    file.fill(random);
    for t in &mut file.tensors {
        let scales = READ
            .iter()
            .find(|(kind, _)| *kind as u32 == t.kind.0)
            .unwrap()
            .1;
        for block in t.data.as_deref_mut().unwrap().chunks_exact_mut(t.kind.2) {
            scales
                .iter()
                .for_each(|at| block[at + 1] = block[at + 1] & 0x80 | 0x24);
        }
    }
    file
}

/// Conversion at load keeps what the judge decodes, rounded to f16 once; where f16 is too narrow,
/// every bit of it.
#[test]
fn conversions_keep_the_judges_values() {
    let mut random = Random(fresh_seed());
    let dir = tempfile::tempdir().unwrap();
    let mut file = converted_model(&mut random);
    let name = "blk.1.attn_q.weight";
    let q = file.tensors.iter_mut().find(|t| t.name == name).unwrap();
    let wide = 0x7a00u16.to_le_bytes(); // 49152: times a code of 2 or more, it is beyond f16
    q.data.as_mut().unwrap()[..2].copy_from_slice(&wide);
    let path = dir.path().join("converted.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    tool("judge_gguf.py", &[&"read", &path, &dir.path()]);

    let (model, notes) = Model::load_with_notes(&Gguf::open(&path).unwrap()).unwrap();
    assert_eq!(notes.len(), 9, "{notes:#?}");
    assert!(
        notes
            .iter()
            .any(|n| n.contains("1 Q4_1 tensors are converted to F32")),
        "{notes:#?}"
    );
    let check = |name: &str, matrix: &Matrix, format: Format| {
        assert_eq!(matrix.format, format, "{name}");
        let mut expected = judged(dir.path(), name);
        if format == Format::F16 {
            expected
                .iter_mut()
                .for_each(|v| *v = f16::from_f32(*v).to_f32());
        }
        let mut row = vec![0.0; matrix.cols];
        for (i, expected) in expected.chunks_exact(matrix.cols).enumerate() {
            matrix.row_to_f32(i, &mut row);
            same_bits(&format!("{name} row {i}"), &row, expected);
        }
        assert_eq!(expected.len(), matrix.rows * matrix.cols);
    };
    let w = &model.weights;
    check("token_embd.weight", &w.token_embd, Format::F16);
    check("output.weight", &w.output, Format::Q8_0);
    for (i, layer) in w.layers.iter().enumerate() {
        let q = if i == 1 { Format::F32 } else { Format::F16 };
        for (part, linear, format) in [
            ("attn_q", &layer.q, q),
            ("attn_k", &layer.k, Format::F16),
            ("attn_v", &layer.v, Format::F16),
            ("attn_output", &layer.o, Format::F16),
            ("ffn_gate_exps", &layer.gate, Format::F16),
            ("ffn_up_exps", &layer.up, Format::F16),
            ("ffn_down_exps", &layer.down, Format::F16),
        ] {
            check(&format!("blk.{i}.{part}.weight"), &linear.weight, format);
        }
    }
}

/// An infinite or NaN scale in a tensor that is converted is found, and named.
#[test]
fn converting_finds_damage() {
    for scale in [0x7c00u16, 0x7e00] {
        let mut file = converted_model(&mut Random(5));
        let name = "blk.0.ffn_up_exps.weight";
        let up = file.tensors.iter_mut().find(|t| t.name == name).unwrap();
        let block = 210 * 700; // row 700, one block a row
        up.data.as_mut().unwrap()[block + 208..][..2].copy_from_slice(&scale.to_le_bytes());
        let gguf = Gguf::from_bytes("test.gguf", &file.bytes()).unwrap();
        let error = format!("{:#}", Model::load(&gguf).err().unwrap());
        assert!(error.contains(name) && error.contains("row 700"), "{error}");
    }
}
