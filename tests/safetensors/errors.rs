//! What a folder must not be: each message names the file, and the field or tensor.

use crate::common::models::Tiny;
use gossamer::{checkpoint::Checkpoint, safetensors::Folder};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A copy of `from` that may be changed.
fn copy(from: &Path) -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let to = scratch.path().join("model");
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    (scratch, to)
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
}

/// Changes the header of a weight file; data stays as it is.
fn edit_header(path: &Path, change: impl FnOnce(&mut Value)) {
    let bytes = fs::read(path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(&bytes[8 + n..]);
    fs::write(path, out).unwrap();
}

fn refused(folder: &Path, parts: &[&str]) {
    let error = Checkpoint::open(folder).and_then(|checkpoint| {
        checkpoint.tokenizer()?;
        checkpoint.load().map(|_| ())
    });
    let error = format!("{:#}", error.expect_err("it was accepted"));
    for part in parts {
        assert!(error.contains(part), "{part:?} in {error}");
    }
}

#[test]
fn config_json_is_checked_as_metadata_is() {
    let tiny = Tiny::make(1);
    let (_scratch, folder) = copy(&tiny.path("mlx"));
    let path = folder.join("config.json");
    let whole = fs::read(&path).unwrap();
    for (field, value, parts) in [
        (
            "/model_type",
            json!("llama"),
            &[
                "config.json",
                "`model_type`",
                "`llama`",
                "gpt-oss models only",
            ][..],
        ),
        (
            "/model_file",
            json!("own.py"),
            &["config.json", "`model_file`", "own.py", "runs no code"],
        ),
        (
            "/num_hidden_layers",
            json!(0),
            &["`num_hidden_layers`", "from 1 to 1024, found 0"],
        ),
        (
            "/num_hidden_layers",
            json!(-1),
            &["`num_hidden_layers`", "non-negative", "-1"],
        ),
        (
            "/num_hidden_layers",
            Value::Null,
            &["`num_hidden_layers`", "no such field"],
        ),
        (
            "/hidden_size",
            json!(100),
            &["`hidden_size`", "a multiple of 32"],
        ),
        (
            "/num_key_value_heads",
            json!(3),
            &["`num_key_value_heads`", "a divisor of the 4 query heads"],
        ),
        ("/head_dim", json!(20), &["`head_dim`", "a multiple of 16"]),
        (
            "/num_experts_per_tok",
            json!(9),
            &["`num_experts_per_tok`", "from 1 to 8"],
        ),
        (
            "/vocab_size",
            json!(1u64 << 40),
            &["`vocab_size`", "1 to 4194304"],
        ),
        (
            "/sliding_window",
            json!("x"),
            &["`sliding_window`", "integer"],
        ),
        (
            "/layer_types/1",
            json!("sliding_attention"),
            &["`layer_types`", "every second layer"],
        ),
        (
            "/rope_scaling/rope_type",
            json!("linear"),
            &["`rope_scaling.rope_type`", "`yarn` or `none`"],
        ),
        (
            "/rope_scaling/beta_fast",
            json!(0.5),
            &["`rope_scaling.beta_fast`", "more than"],
        ),
        (
            "/rope_scaling/truncate",
            json!("no"),
            &["`rope_scaling.truncate`", "true or false"],
        ),
        (
            "/rope_scaling/attention_factor",
            json!(1.0),
            &["`rope_scaling.attention_factor`", "1.34"],
        ),
        (
            "/rope_scaling/mscale",
            json!(1.0),
            &["`rope_scaling.mscale`", "none"],
        ),
        (
            "/swiglu_limit",
            json!(5.0),
            &["`swiglu_limit`", "expected 7"],
        ),
        (
            "/eos_token_id",
            json!(100_000),
            &["eos_token_id", "below 512", "100000"],
        ),
        (
            "/quantization/lm_head/bits",
            json!(4),
            &["lm_head", "affine of 4 bits", "affine of 8 bits"],
        ),
        (
            "/quantization/lm_head/mode",
            json!("nvfp4"),
            &["quantization.lm_head.mode", "`affine` or `mxfp4`"],
        ),
        (
            "/hidden_size",
            json!(224),
            &["model.safetensors", "model.embed_tokens"],
        ),
    ] {
        edit(&path, |json| {
            let (parent, name) = field.rsplit_once('/').unwrap();
            let parent = json.pointer_mut(parent).unwrap();
            match parent {
                Value::Array(list) => list[name.parse::<usize>().unwrap()] = value,
                other => other[name] = value,
            }
        });
        refused(&folder, parts);
        fs::write(&path, &whole).unwrap();
    }
    fs::write(&path, "{").unwrap();
    refused(&folder, &["config.json"]);
    fs::remove_file(&path).unwrap();
    refused(&folder, &["config.json", "No such file"]);
}

/// Rounding the YaRN range is the folder's own setting, and absent means as released.
#[test]
fn truncate_decides_the_rope() {
    let tiny = Tiny::make(1);
    let (_scratch, folder) = copy(&tiny.path("mlx"));
    let rounded = |folder: &Path| {
        Checkpoint::open(folder)
            .unwrap()
            .config()
            .unwrap()
            .rope
            .rounded
    };
    assert!(!rounded(&folder));
    let path = folder.join("config.json");
    edit(&path, |json| json["rope_scaling"]["truncate"] = json!(true));
    assert!(rounded(&folder));
    // As newer versions of transformers write it.
    edit(&path, |json| {
        let mut rope = json["rope_scaling"].take();
        rope["rope_theta"] = json["rope_theta"].take();
        rope.as_object_mut().unwrap().remove("truncate");
        json["rope_parameters"] = rope;
    });
    assert!(!rounded(&folder));
    let config =
        Folder::open(&folder).map(|folder| gossamer::weights::Tensors::config(&folder).unwrap());
    assert_eq!(config.unwrap().rope, tiny.load().config.rope);
}

#[test]
fn every_tensor_is_accounted_for() {
    let tiny = Tiny::make_with(1, "bf16", 1);
    for (from, name, to, parts) in [
        (
            "mlx",
            "model.norm.weight",
            "model.norm.wight",
            &["model.norm.weight", "no such tensor"][..],
        ),
        (
            "mlx",
            "lm_head.weight",
            "head.weight",
            &["head.weight", "found this one besides"],
        ),
        (
            "mlx",
            "model.layers.1.mlp.experts.up_proj.scales",
            "x",
            &["model.layers.1.mlp.experts.up_proj"],
        ),
        (
            "hf",
            "model.layers.0.mlp.experts.down_proj_scales",
            "x",
            &["down_proj_scales", "no such tensor"],
        ),
        (
            "hf",
            "model.layers.0.mlp.router.bias",
            "embedding.weight",
            &["`original`", "point to that one"],
        ),
        (
            "hf",
            "model.layers.0.mlp.experts.gate_up_proj_bias",
            "model.layers.0.mlp.experts.gate_up_proj",
            &["experts as dense"],
        ),
    ] {
        let (_scratch, folder) = copy(&tiny.path(from));
        edit_header(&folder.join("model.safetensors"), |header| {
            let tensor = header.as_object_mut().unwrap().remove(name).expect(name);
            header[to] = tensor;
        });
        refused(&folder, &[&["model.safetensors"], parts].concat());
    }
    for (change, parts) in [
        (
            json!("I16"),
            &["self_attn.sinks", "expected BF16, F16, F32, found I16"][..],
        ),
        (
            json!([2, 2]),
            &["self_attn.sinks", "expected [4], found [2, 2]"],
        ),
    ] {
        let (_scratch, folder) = copy(&tiny.path("hf"));
        edit_header(&folder.join("model.safetensors"), |header| {
            let field = if change.is_array() { "shape" } else { "dtype" };
            header["model.layers.3.self_attn.sinks"][field] = change;
        });
        refused(&folder, parts);
    }
}

#[test]
fn files_are_whole_or_refused() {
    let tiny = Tiny::make_with(1, "affine", 2);
    let (_scratch, folder) = copy(&tiny.path("mlx"));
    let (first, second) = (
        folder.join("model-00001-of-00002.safetensors"),
        folder.join("model-00002-of-00002.safetensors"),
    );
    let whole = fs::read(&first).unwrap();
    fs::write(&first, &whole[..whole.len() - 1]).unwrap();
    refused(
        &folder,
        &[
            "model-00001-of-00002.safetensors",
            "not a whole safetensors file",
        ],
    );
    fs::write(&first, "").unwrap();
    refused(&folder, &["model-00001-of-00002.safetensors", "empty"]);
    fs::write(&first, &whole).unwrap();
    fs::copy(&first, folder.join("model-x.safetensors")).unwrap();
    refused(
        &folder,
        &["model-x.safetensors", "expected once, found again"],
    );
    fs::remove_file(folder.join("model-x.safetensors")).unwrap();
    fs::remove_file(&second).unwrap();
    refused(
        &folder,
        &[
            "model-00002-of-00002.safetensors",
            "the download is incomplete",
        ],
    );
    fs::remove_file(folder.join("model.safetensors.index.json")).unwrap();
    refused(&folder, &["no such tensor"]);
    fs::remove_file(&first).unwrap();
    refused(&folder, &["model*.safetensors, found none"]);
}

/// Values that are no numbers, wherever they stand.
#[test]
fn values_are_finite() {
    let spoil = |tiny: &Tiny, from: &str, name: &str, bytes: &[u8]| {
        let (scratch, folder) = copy(&tiny.path(from));
        let path = folder.join("model.safetensors");
        let mut file = fs::read(&path).unwrap();
        let n = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&file[8..8 + n]).unwrap();
        let at = 8 + n + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
        file[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, file).unwrap();
        refused(&folder, &["model.safetensors", "finite"]);
        drop(scratch);
    };
    let affine = Tiny::make_with(1, "affine", 1);
    let nan = half::bf16::NAN.to_le_bytes();
    spoil(&affine, "mlx", "lm_head.scales", &nan);
    spoil(&affine, "mlx", "model.layers.0.mlp.router.biases", &nan);
    spoil(
        &affine,
        "mlx",
        "model.layers.2.mlp.experts.down_proj.scales",
        &[255],
    );
    let dense = Tiny::make_with(1, "bf16", 1);
    spoil(
        &dense,
        "hf",
        "model.layers.1.mlp.experts.gate_up_proj_bias",
        &nan,
    );
    spoil(
        &dense,
        "hf",
        "model.layers.1.mlp.experts.gate_up_proj_scales",
        &[255],
    );
}

#[test]
fn tokenizer_json_is_ours_or_refused() {
    let tiny = Tiny::make(1);
    let (_scratch, folder) = copy(&tiny.path("mlx"));
    let path = folder.join("tokenizer.json");
    let whole = fs::read(&path).unwrap();
    for (field, value, parts) in [
        ("/model/type", json!("Unigram"), &["model.type", "BPE"][..]),
        (
            "/model/byte_fallback",
            json!(true),
            &["byte-level BPE without"],
        ),
        (
            "/normalizer",
            json!({"type": "NFC"}),
            &["normalizer: expected none"],
        ),
        (
            "/pre_tokenizer/pretokenizers/0/pattern/Regex",
            json!("\\s+"),
            &["pre_tokenizer", "o200k"],
        ),
        (
            "/added_tokens/0/id",
            json!(512),
            &["expected an id below 512, found 512"],
        ),
        ("/model/vocab/zz", json!(5), &["one token of id 5"]),
        ("/model/merges/0", json!(["e", "\u{20ac}"]), &["merges[0]"]),
    ] {
        edit(&path, |json| {
            let (parent, name) = field.rsplit_once('/').unwrap();
            match json.pointer_mut(parent).unwrap() {
                Value::Array(list) => list[name.parse::<usize>().unwrap()] = value,
                other => other[name] = value,
            }
        });
        refused(&folder, &[&["tokenizer.json"], parts].concat());
        fs::write(&path, &whole).unwrap();
    }
}
