//! What MLX takes of memory: predicted, refused, and measured.

use super::{
    Demo,
    commands::{gossamer, said},
    common,
};
use serde_json::Value;

fn json(args: &[&str], flags: &[String]) -> Value {
    serde_json::from_str(&said(args, flags)).expect("JSON")
}

fn number(value: &Value, path: &str) -> u64 {
    let found = value.pointer(path).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no number at {path} of {value}"))
}

#[test]
fn a_folder_is_planned_for_mlx_too() {
    let demo = Demo::new();
    let flags = demo.flags();
    let both: Vec<String> = flags[2..].to_vec();
    let plan = json(&["plan", "--json", "--memory", "16GB"], &both);
    let outcomes = plan["outcomes"].as_array().expect("outcomes");
    let names: Vec<_> = outcomes
        .iter()
        .filter_map(|o| o["backend"].as_str())
        .collect();
    assert!(
        names.contains(&"cpu") && names.last() == Some(&"mlx"),
        "{names:?}"
    );
    let asked = [
        "plan",
        "--json",
        "--max-seqs",
        "4",
        "--cache-bytes",
        "64MiB",
    ];
    let on = |more: &[&str]| json(&[&asked[..], more].concat(), &flags);
    let plan = on(&["--memory", "16GB", "--ctx-size", "4096"]);
    let mlx = &plan["outcomes"][0];
    assert_eq!(plan["outcomes"].as_array().map(Vec::len), Some(1));
    // Keys and values of 2 heads of 64 in f32, in 3 layers; each row 256 tokens longer; windows of 128 in 3 more.
    assert_eq!(number(mlx, "/kv_tokens"), 4 * 4096);
    assert_eq!(number(mlx, "/footprint/blocks"), 4 * (4096 + 256) * 3072);
    assert_eq!(number(mlx, "/footprint/windows"), 4 * 128 * 3072);
    assert_eq!(number(mlx, "/footprint/prefixes"), 64 << 20);
    // Scales and norms in bf16 become f32.
    let file = number(&plan, "/file_bytes");
    assert!(
        (file..file * 5 / 4).contains(&number(mlx, "/footprint/weights")),
        "{plan}"
    );
    // What is said to fit fits, and nothing more.
    let tight = on(&["--memory", "1500MB"]);
    let context = number(&tight, "/outcomes/0/context") as usize;
    assert!((4096..100_000).contains(&context), "{tight}");
    for (context, fits) in [(context, true), (context + 64, false)] {
        let context = context.to_string();
        let more = ["--memory", "1500MB", "--ctx-size", &context];
        let output = gossamer(&[&asked[..], &more].concat(), &flags);
        assert_eq!(output.status.success(), fits, "{context}");
    }
    // A GGUF file is nothing for MLX.
    let gguf = common::root().join("models/demo/demo.gguf");
    let mut wrong = flags.clone();
    wrong[5] = gguf.to_str().expect("UTF-8").to_owned();
    let output = gossamer(&["plan"], &wrong);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("a GGUF file; --backend mlx runs a folder"),
        "{told}"
    );
}

#[test]
fn what_cannot_fit_is_refused_before_a_worker_loads() {
    let demo = Demo::new();
    let flags = demo.flags();
    // The longest context that a model may have: 50 GB of keys and values, and 800 of scores.
    let config = demo.path().join("config.json");
    let text = std::fs::read_to_string(&config).expect("config.json");
    let long = text.replace(
        "\"max_position_embeddings\": 131072",
        "\"max_position_embeddings\": 16777216",
    );
    assert_ne!(long, text);
    std::fs::write(&config, long).expect("written");
    for command in [&["run", "hi"][..], &["serve", "--port", "0"]] {
        let output = gossamer(&[command, &["--ctx-size", "16777216"]].concat(), &flags);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {told}");
        assert!(
            told.contains("for 16777216 tokens of context"),
            "{command:?}: {told}"
        );
        let fits = told
            .split("--ctx-size ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let fits: usize = fits
            .and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("{told}"));
        assert!((4096..16_777_216).contains(&fits), "{told}");
    }
    let many = ["serve", "--port", "0", "--cache-bytes", "1000000GiB"];
    let output = gossamer(&many, &flags);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("--max-seqs") && told.contains("--cache-bytes"),
        "{told}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn predicted_is_measured_within_3_percent() {
    let demo = Demo::new();
    let gguf = demo.folder.path().join("wide.gguf");
    let wide = demo.folder.path().join("wide");
    let shape = [
        "--preset",
        "20b",
        "--layers",
        "4",
        "--experts",
        "4",
        "--vocab",
        "demo",
    ];
    let made = gossamer(
        &[&["synth", gguf.to_str().expect("UTF-8")], &shape[..]].concat(),
        &[],
    );
    assert!(made.status.success());
    common::tool("gguf_to_mlx.py", &[&gguf, &wide]);
    let mut flags = demo.flags();
    let many = [
        "--ctx-size",
        "4096",
        "--max-seqs",
        "6",
        "--cache-bytes",
        "64MiB",
    ];
    // Full width is slow in f32: few tokens.
    let few = ["--ctx-size", "64", "--max-seqs", "2", "--cache-bytes", "0"];
    for (folder, room) in [(demo.path(), many), (wide, few)] {
        flags[5] = folder.to_str().expect("UTF-8").to_owned();
        let found = json(
            &[&["plan", "--measure", "--json"][..], &room].concat(),
            &flags,
        );
        println!("{found}");
        let off = found["off"].as_f64().expect("a number");
        assert!(off.abs() < 0.03, "{:.2} % off: {found}", off * 100.0);
        assert!(
            number(&found, "/mlx_peak") < number(&found, "/measured"),
            "{found}"
        );
        let parts = found["footprint"].as_object().expect("parts");
        let sum: u64 = parts.values().filter_map(Value::as_u64).sum();
        assert_eq!(sum, number(&found, "/predicted"));
    }
}
