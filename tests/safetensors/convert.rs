//! `gossamer convert`, through the program, and other commands on folders.

use crate::common::{fresh_seed, golden::tensors, models::Tiny, root, score_with, tool};
use gossamer::{
    gguf::{Gguf, Value},
    quant::GgmlType,
    safetensors::Folder,
    weights::Model,
};
use std::{collections::BTreeMap, path::Path, process::Command, sync::Arc};

fn gossamer(args: &[&dyn AsRef<std::ffi::OsStr>]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gossamer"));
    let output = command
        .args(args.iter().map(|a| a.as_ref()))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn metadata(path: &Path) -> BTreeMap<String, String> {
    let gguf = Gguf::open(path).unwrap();
    let show = |value: Value<'_>| match value {
        Value::Array(a) => format!(
            "{:?}",
            a.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>()
        ),
        other => format!("{other:?}"),
    };
    gguf.metadata()
        .map(|(key, value)| (key.to_owned(), show(value)))
        .collect()
}

/// The file gives the folder's logits bit for bit on the reference back end, in every form; types are the
/// smallest that hold the values; the metadata is that of the file that the same script wrote.
#[test]
fn converted_files_hold_the_folders_values() {
    let seed = fresh_seed();
    for (dense, folder, dense_type) in [
        ("q8", "mlx", GgmlType::Q8_0),
        ("bf16", "mlx", GgmlType::BF16),
        ("bf16", "hf", GgmlType::BF16),
        ("affine", "mlx", GgmlType::F32),
    ] {
        let tiny = Tiny::make_with(seed, dense, 1);
        let out = tiny.path("out.gguf");
        let (code, _, err) = gossamer(&[&"convert", &tiny.path(folder), &out]);
        assert_eq!(code, 0, "{err}");
        assert!(!tiny.path("out.gguf.incomplete").exists());
        assert_eq!(err.contains("as F32, exact"), dense == "affine", "{err}");
        let gguf = Gguf::open(&out).unwrap();
        assert_eq!(gguf.tensor("blk.2.attn_q.weight").unwrap().kind, dense_type);
        assert_eq!(
            gguf.tensor("blk.2.ffn_gate_exps.weight").unwrap().kind,
            GgmlType::MXFP4
        );
        assert_eq!(
            gguf.tensor("blk.2.ffn_gate_inp.weight").unwrap().kind,
            GgmlType::F32
        );
        let [a, b] = [Model::load(&gguf), Model::load(&tiny.open(folder))]
            .map(|model| score_with("reference", &Arc::new(model.unwrap()), &tiny.ids[..30]));
        assert!(a == b, "{dense} {folder}");

        let (ours, theirs) = (metadata(&out), metadata(&tiny.path("tiny.gguf")));
        for (key, value) in &theirs {
            let differs = ["general.name", "tokenizer.ggml.add_bos_token"].contains(&key.as_str());
            assert!(
                differs || ours.get(key) == Some(value),
                "{key}: {:?}, {value}",
                ours.get(key)
            );
        }
        assert_eq!(
            ours["general.name"],
            format!("Str({:?})", folder.as_bytes())
        );
        // The package that llama.cpp's converter stands on reads it.
        let judged = tempfile::tempdir().unwrap();
        tool("judge_gguf.py", &[&"read", &out, &judged.path()]);
        assert_eq!(
            std::fs::read_dir(judged.path()).unwrap().count(),
            gguf.tensors.len()
        );
    }
}

/// Rounding is asked for, and its error told: half a unit in F16's last place at most.
#[test]
fn f16_says_its_error() {
    let tiny = Tiny::make_with(fresh_seed(), "affine", 2);
    let out = tiny.path("out.gguf");
    let (code, _, err) = gossamer(&[&"convert", &tiny.path("mlx"), &out, &"--f16"]);
    assert_eq!(code, 0, "{err}");
    let gguf = Gguf::open(&out).unwrap();
    let (file, folder) = (
        Model::load(&gguf).unwrap(),
        Model::load(&tiny.open("mlx")).unwrap(),
    );
    let (mut most, mut largest) = (0f32, 0f32);
    let pairs = [
        (&file.weights.output, &folder.weights.output),
        (&file.weights.token_embd, &folder.weights.token_embd),
    ];
    for (file, folder) in pairs {
        let (mut a, mut b) = (vec![0.0; file.cols], vec![0.0; file.cols]);
        for row in 0..file.rows {
            file.row_to_f32(row, &mut a);
            folder.row_to_f32(row, &mut b);
            for (a, b) in a.iter().zip(&b) {
                (most, largest) = (most.max((a - b).abs()), largest.max(b.abs()));
            }
        }
    }
    assert!(
        most > 0.0 && most <= largest / 2048.0,
        "{most:e} of {largest:e}"
    );
    let told = err
        .split("rounded by at most ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let told: f32 = told.expect(&err).parse().unwrap();
    assert!(told >= most * 0.95, "{told:e} told, {most:e} found");
}

#[test]
fn what_cannot_be_converted_says_why() {
    let demo = root().join("models/demo/demo.gguf");
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out.gguf");
    let (code, _, err) = gossamer(&[&"convert", &demo, &out]);
    assert!(code == 2 && err.contains("found a GGUF file"), "{err}");
    let (code, _, err) = gossamer(&[&"convert", &scratch.path(), &out]);
    assert!(code == 1 && err.contains("config.json"), "{err}");
    let tiny = Tiny::make(fresh_seed());
    // The folder's own files are not to be replaced.
    for own in ["model.safetensors", "config.json"] {
        let own = tiny.path("mlx").join(own);
        let whole = std::fs::read(&own).unwrap();
        let (code, _, err) = gossamer(&[&"convert", &tiny.path("mlx"), &own]);
        assert!(code == 2 && err.contains("is no GGUF file"), "{err}");
        assert!(std::fs::read(&own).unwrap() == whole, "{}", own.display());
    }
    std::fs::remove_file(tiny.path("mlx/tokenizer.json")).unwrap();
    let (code, _, err) = gossamer(&[&"convert", &tiny.path("mlx"), &out]);
    assert!(code == 1 && err.contains("tokenizer.json"), "{err}");
    assert!(!out.exists() && !scratch.path().join("out.gguf.incomplete").exists());
}

/// The demo model's scales are bf16's, so its folder of MLX's usual types holds the very weights of its file, and
/// every command runs on it.
#[test]
fn the_demo_model_runs_out_of_a_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("demo-mlx");
    let demo = root().join("models/demo/demo.gguf");
    tool("gguf_to_mlx.py", &[&demo, &folder]);
    let ask = |model: &dyn AsRef<std::ffi::OsStr>| {
        let question = "What is 17 + 25?";
        let (code, out, err) =
            gossamer(&[&"run", &"--model", model, &question, &"--temperature", &"0"]);
        assert_eq!(code, 0, "{err}");
        out
    };
    let answer = ask(&folder);
    assert!(answer.contains("42"), "{answer}");
    assert_eq!(answer, ask(&demo));
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let n = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&weights[8..8 + n]).unwrap();
    for (name, tensor) in header.as_object().unwrap() {
        let is_affine = header.get(name.replace(".scales", ".biases")).is_some();
        assert!(
            !name.ends_with(".scales") || !is_affine || tensor["dtype"] == "BF16",
            "{name}"
        );
    }
    let folder_model = Model::load(&Folder::open(&folder).unwrap()).unwrap();
    let file_model = Model::load(&Gguf::open(&demo).unwrap()).unwrap();
    assert!(tensors(&folder_model) == tensors(&file_model));

    let bench = ["--prompt", "16", "--tokens", "2", "--repeat", "1", "--json"];
    let output = Command::new(env!("CARGO_BIN_EXE_gossamer"))
        .args(["bench", "--model"])
        .arg(&folder)
        .args(bench)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("demo-mlx"),
        "{text}"
    );

    let (code, out, err) = gossamer(&[&"inspect", &folder]);
    assert_eq!(code, 0, "{err}");
    for line in [
        "model      demo-mlx (gpt_oss)",
        "folder     safetensors",
        "affine8/32",
        "runs       yes",
    ] {
        assert!(out.contains(line), "{line:?} in\n{out}");
    }
    let (_, out, _) = gossamer(&[&"inspect", &folder, &"--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["runs"], true);
    assert_eq!(json["tensors"][0]["name"], "model.embed_tokens.weight");
    assert_eq!(json["tensors"][0]["type"], "affine8/32");
}
