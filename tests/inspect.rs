//! `gossamer inspect`, through the program.

#[path = "common/gguf_file.rs"]
mod gguf_file;

use gguf_file::{GgufFile, Shape, string};
use std::{path::Path, process::Command};

fn inspect(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gossamer"))
        .arg("inspect")
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

fn written(dir: &Path, file: &GgufFile) -> String {
    let path = dir.join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn tells_what_a_file_holds() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = Shape::TINY.file(gguf_file::Q8_0);
    file.entry("a.bytes", 8, string(b"\x1b[31m\xff"));
    let path = written(dir.path(), &file);
    let (code, out, err) = inspect(&[&path]);
    assert_eq!((code, err.as_str()), (0, ""));
    for line in [
        "model      Test model (gpt-oss)",
        "shape      2 layers, hidden 64, 4 query and 2 KV heads of 16, 4 experts of 32 (2 a token), vocabulary 96",
        "context    131072 (YaRN 32 x 4096), sliding window 128 on even layers",
        "runs       yes",
    ] {
        assert!(out.contains(line), "{line:?} in\n{out}");
    }
    assert!(
        out.contains("96 x string [\"t0\", \"t1\", \"t2\", \"t3\", \"t4\", \"t5\", …]"),
        "{out}"
    );
    assert!(out.contains("MXFP4        64 x 32 x 4"), "{out}");
    assert!(
        !out.contains('\x1b'),
        "what a terminal would obey is escaped"
    );
    assert_eq!(out.matches("blk.1.").count(), 19);

    let (code, out, _) = inspect(&[&path, "--json"]);
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["runs"], true);
    assert_eq!(json["version"], 3);
    assert_eq!(json["model"]["experts_used"], 2);
    assert_eq!(json["metadata"]["gpt-oss.rope.freq_base"], 150_000.0);
    assert_eq!(json["metadata"]["tokenizer.ggml.tokens"]["length"], 96);
    let tensors = json["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), file.tensors.len());
    let sizes = |key: &str| {
        let sum = |list: &serde_json::Value| -> u64 {
            list.as_array()
                .unwrap()
                .iter()
                .map(|t| t["bytes"].as_u64().unwrap())
                .sum()
        };
        sum(&json[key])
    };
    let expected: u64 = file.tensors.iter().map(|t| t.bytes()).sum();
    assert_eq!((sizes("tensors"), sizes("types")), (expected, expected));
    let values: u64 = file
        .tensors
        .iter()
        .map(|t| t.dims.iter().product::<u64>())
        .sum();
    assert_eq!(json["parameters"]["all"], values);
    // Half of the experts rest, and the embedding is looked up, not multiplied.
    let resting = 2 * 3 * (64 * 32 * 4) / 2 + 2 * (2 * 32 + 64) * 4 / 2 + 64 * 96;
    assert_eq!(json["parameters"]["active"], values - resting);
}

/// Files that Gossamer doesn't run are shown too, with the reason; what is no GGUF file is an error.
#[test]
fn tells_why_a_file_does_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = Shape::TINY.file(gguf_file::Q8_0);
    file.str("general.architecture", "llama");
    file.tensor("extra", &[256], (16, 256, 66));
    let path = written(dir.path(), &file);
    let (code, out, _) = inspect(&[&path]);
    assert_eq!(code, 0);
    assert!(
        out.contains("runs       no: ") && out.contains("found `llama`"),
        "{out}"
    );
    assert!(out.contains("IQ2_XXS"), "{out}");
    let (_, out, _) = inspect(&[&path, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&json["runs"], &json["model"]),
        (&false.into(), &serde_json::Value::Null)
    );
    assert!(
        json["error"]
            .as_str()
            .unwrap()
            .contains("general.architecture")
    );

    std::fs::write(&path, "no model").unwrap();
    let (code, out, err) = inspect(&[&path]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("model.gguf: not a GGUF file"), "{err}");
    let (code, _, err) = inspect(&["no-such-file.gguf"]);
    assert_eq!(code, 1);
    assert!(err.contains("no-such-file.gguf"), "{err}");
    assert_eq!(inspect(&[]).0, 2);
}
