//! MLX beside the native engine, on the same folder in f32: they agree, and where a worker is broken on
//! purpose, the first stage that shows it is named.

use crate::{
    Compared,
    common::{self, fresh_seed, models::Tiny, python},
    gossamer,
};
use std::path::Path;

/// `compare reference=FOLDER mlx=FOLDER`, with a defect in the worker or without.
fn against_mlx(folder: &Path, model: &Path, defect: &str, more: &[&str]) -> Compared {
    let sides = ["reference", "mlx"].map(|b| format!("{b}={}", model.display()));
    let json = folder.join("found.json");
    let mut command = gossamer(folder, &["compare", &sides[0], &sides[1], "--trace"]);
    command.args(more).arg("--json").arg(&json);
    command.env("GOSSAMER_MLX_PYTHON", python());
    command.env("GOSSAMER_MLX_DEFECT", defect);
    let output = command.output().expect("the program starts");
    let found = std::fs::read(&json).unwrap_or(b"null".into());
    Compared {
        code: output.status.code(),
        found: serde_json::from_slice(&found).expect("JSON"),
        output,
    }
}

fn agrees(compared: &Compared) {
    assert_eq!(
        compared.code,
        Some(0),
        "{}{}",
        compared.told(),
        compared.text()
    );
    let trace = &compared.found["trace"];
    assert_eq!(trace["tolerance"], 1e-4, "both compute in f32");
    let stages = trace["stages"].as_array().expect("stages");
    assert!(stages.len() > 8, "{trace}");
    for stage in stages {
        assert!(stage["relative_l2"].as_f64() < Some(1e-4), "{stage}");
    }
    assert!(
        compared.found["fidelity"]["max_kl"].as_f64() < Some(1e-6),
        "{}",
        compared.text()
    );
}

#[test]
fn mlx_and_the_reference_agree_on_a_random_model() {
    let tiny = Tiny::make(fresh_seed());
    let (ids, folder) = (tiny.path("ids.json"), tiny.path("state"));
    std::fs::create_dir(&folder).expect("a folder");
    let ids = [
        "--no-speed",
        "--max-tokens",
        "0",
        "--ids",
        ids.to_str().expect("UTF-8"),
    ];
    agrees(&against_mlx(&folder, &tiny.path("mlx"), "", &ids));
    // (layer, stage): the first of what MLX shows that the defect touches.
    for (defect, stage) in [
        ("window", "out_proj_residual"),
        ("sinks", "out_proj_residual"),
        ("rope", "out_proj_residual"),
        ("top3", "expert_down_residual"),
    ] {
        let compared = against_mlx(&folder, &tiny.path("mlx"), defect, &ids);
        let told = compared.told();
        assert_eq!(
            compared.code,
            Some(1),
            "{defect}: {told}{}",
            compared.text()
        );
        let beyond = &compared.found["trace"]["first_beyond"];
        assert_eq!(
            (&beyond["layer"], &beyond["stage"]),
            (&0.into(), &stage.into()),
            "{defect}"
        );
        if defect == "window" {
            assert!(beyond["worst_position"].as_u64() >= Some(127), "{beyond}");
        }
        assert!(
            told.contains(&format!("layer 0, {stage}")),
            "{defect}: {told}"
        );
    }
}

/// With the demo model in MLX's form: the built-in prompts, continued by the native engine, and timed on both.
#[test]
fn mlx_and_the_reference_agree_on_the_demo_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = folder.path().join("mlx");
    common::tool("gguf_to_mlx.py", &[&crate::demo(), &model]);
    let quick = [
        "--max-tokens",
        "4",
        "--trace-tokens",
        "200",
        "-p",
        "16",
        "-n",
        "4",
        "-r",
        "1",
    ];
    let compared = against_mlx(folder.path(), &model, "", &quick);
    agrees(&compared);
    assert!(
        compared.found["b"]["backend"]
            .as_str()
            .is_some_and(|b| b.starts_with("mlx (cpu"))
    );
    let speed = &compared.found["b"]["speed"];
    assert!(speed["decode_tok_per_s"][0].as_f64() > Some(0.0), "{speed}");
    // The worker's memory counts: Python and MLX alone take more than this.
    if cfg!(target_os = "linux") {
        assert!(
            speed["peak_memory_bytes"].as_u64() > Some(100_000_000),
            "{speed}"
        );
    }
}

/// The folder and the GGUF file hold the same values, and the native engine finds the same in both.
#[test]
fn a_folder_and_a_file_are_one_model() {
    let tiny = Tiny::make(fresh_seed());
    let ids = tiny.path("ids.json");
    let side = |name: &str| format!("cpu={}", tiny.path(name).display());
    let (a, b) = (side("tiny.gguf"), side("mlx"));
    let compared = crate::compare(&[
        &a,
        &b,
        "--trace",
        "--no-speed",
        "--max-tokens",
        "0",
        "--ids",
        ids.to_str().expect("UTF-8"),
    ]);
    assert_eq!(
        compared.code,
        Some(0),
        "{}{}",
        compared.told(),
        compared.text()
    );
    assert!(
        compared.found["fidelity"]["max_kl"].as_f64() < Some(1e-9),
        "{}",
        compared.text()
    );
}
