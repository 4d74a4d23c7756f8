//! `gossamer plan`: what is predicted, what is refused, and what the system says afterwards.

use super::{err, gossamer, json, synth};
use serde_json::Value;
use std::io::{Read, Seek, SeekFrom, Write};

fn number(value: &Value, path: &str) -> f64 {
    let found = value.pointer(path).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number at {path} of {value}"))
}

/// A released shape without its weights: the header, and a hole of the true size.
fn released(name: &str, preset: &str) -> String {
    let path = synth(name, &["--preset", preset, "--sparse"]);
    path.to_str().expect("a name").to_owned()
}

#[test]
fn gpt_oss_20b_is_counted_as_its_shape_says() {
    let model = released("20b.gguf", "20b");
    let flags = ["--model", &model, "--backend", "cpu", "--threads", "2"];
    let plan = |more: &[&str]| json(&[&["plan", "--json"], &flags[..], more].concat());
    let whole = plan(&["--memory", "64GB"]);
    let cpu = &whole["outcomes"][0];
    assert_eq!(cpu["context"], 131_072, "{whole}");
    // 24 KiB of keys and values a token; 12 rings of 160 positions.
    assert_eq!(cpu["footprint"]["blocks"], 131_072u64 * 24 * 1024);
    assert_eq!(cpu["footprint"]["windows"], 16u64 * 12 * 160 * 2048);
    let file = number(&whole, "/file_bytes");
    let mapped = number(cpu, "/footprint/mapped");
    assert!(mapped < file && mapped > 0.99 * file, "{mapped} of {file}");
    // What is said to fit fits, and nothing more.
    let tight = plan(&["--memory", "14GB"]);
    let context = number(&tight, "/outcomes/0/longest") as usize;
    assert!((20_000..131_072).contains(&context), "{tight}");
    for (context, fits) in [(context, true), (context + 64, false)] {
        let context = context.to_string();
        let one = [
            "--max-seqs",
            "1",
            "--cache-bytes",
            "0",
            "--ctx-size",
            &context,
        ];
        let args = [&["plan"], &flags[..], &["--memory", "14GB"], &one].concat();
        let output = gossamer(&args);
        assert_eq!(output.status.success(), fits, "{context}: {}", err(&output));
    }
    // Sequences: half as many of twice the length, about.
    let most = |plan: &Value, i: usize| number(plan, &format!("/outcomes/0/sequences/{i}/most"));
    let ample = plan(&["--memory", "40GB"]);
    assert!(most(&ample, 0) > 7.0 * most(&ample, 1) && most(&ample, 1) > 3.0 * most(&ample, 2));
    std::fs::remove_file(&model).expect("removed");
}

#[test]
fn what_cannot_fit_is_refused_before_anything_is_loaded() {
    let model = released("120b.gguf", "120b");
    let on = |more: &[&str]| {
        let flags = ["--model", &model, "--backend", "cpu"];
        gossamer(&[more, &flags[..]].concat())
    };
    let refused = on(&["plan", "--memory", "66GB", "--ctx-size", "131072"]);
    let table = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{table}");
    assert!(
        table.contains("does not fit") && table.contains("--ctx-size "),
        "{table}"
    );
    let named = table.split("--ctx-size ").nth(1).expect("a way out");
    let named = named.split(' ').next().expect("a number");
    let fits = on(&["plan", "--memory", "66GB", "--ctx-size", named]);
    assert!(fits.status.success(), "{named}: {}", err(&fits));
    // A model larger than memory can stream, but its KV cache can't: 256 whole contexts are 1.2 TB.
    let streamed = on(&["plan", "--memory", "16GB", "--json"]);
    let streamed: Value = serde_json::from_slice(&streamed.stdout).expect("JSON");
    assert_eq!(streamed["outcomes"][0]["streams"], true, "{streamed}");
    // The same sums for `bench`, on whatever machine this is.
    let bench = on(&[
        "bench",
        "--depth",
        "131000",
        "-p",
        "0",
        "-n",
        "8",
        "--streams",
        "256",
    ]);
    let said = err(&bench);
    assert_eq!(bench.status.code(), Some(1), "{said}");
    assert!(
        said.contains("for 131008 tokens of context") && said.contains("are free"),
        "{said}"
    );
    // More than the model's own context is wrong usage, wherever it comes from.
    let wrong = on(&["plan", "--ctx-size", "131073"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", err(&wrong));
    std::fs::remove_file(&model).expect("removed");
}

#[test]
fn run_and_serve_refuse_what_cannot_fit() {
    // The longest context that a model may have, with 200 full-attention layers: terabytes of keys and values.
    let path = synth(
        "deep.gguf",
        &[
            "--preset",
            "20b",
            "--layers",
            "400",
            "--experts",
            "4",
            "--vocab",
            "demo",
            "--sparse",
        ],
    );
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("opens");
    let mut head = vec![0; 1 << 16];
    file.read_exact(&mut head).expect("a header");
    let key = b"gpt-oss.context_length";
    let at = head
        .windows(key.len())
        .position(|bytes| bytes == key)
        .expect("the key");
    // After the name its type, then the number.
    file.seek(SeekFrom::Start((at + key.len() + 4) as u64))
        .expect("seeks");
    file.write_all(&(1u32 << 24).to_le_bytes())
        .expect("written");
    drop(file);
    let model = path.to_str().expect("a name");
    for command in [&["run", "hi"][..], &["serve", "--port", "0"]] {
        let flags = [
            "--model",
            model,
            "--backend",
            "cpu",
            "--ctx-size",
            "16777216",
        ];
        let output = gossamer(&[command, &flags].concat());
        let said = err(&output);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(
            said.contains("for 16777216 tokens of context") && said.contains("are free"),
            "{command:?}: {said}"
        );
        let fits = said
            .split("--ctx-size ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let fits: usize = fits
            .and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("{said}"));
        assert!((4096..16_777_216).contains(&fits), "{said}");
        // No weight was read, no port was bound.
        assert!(!said.contains("listening"), "{said}");
    }
    std::fs::remove_file(model).expect("removed");
}

#[cfg(target_os = "linux")]
#[test]
fn predicted_is_measured_within_3_percent() {
    let mid = synth(
        "mid.gguf",
        &[
            "--preset",
            "20b",
            "--layers",
            "4",
            "--experts",
            "4",
            "--vocab",
            "demo",
        ],
    );
    // A folder's weights are rearranged: its own pages are not held besides.
    let folder = mid.with_extension("mlx");
    crate::common::tool("gguf_to_mlx.py", &[&mid, &folder]);
    let folder = ["--model", folder.to_str().expect("a name")];
    let mid = ["--model", mid.to_str().expect("a name")];
    let many = ["--max-seqs", "24", "--ctx-size", "20000"];
    let bare = [
        "--max-seqs",
        "3",
        "--cache-bytes",
        "0",
        "--ctx-size",
        "40000",
    ];
    for (what, flags) in [
        ("demo", &[][..]),
        ("demo, no snapshots", &bare),
        ("mid", &[&mid[..], &many].concat()),
        ("mid, no snapshots", &[&mid[..], &bare].concat()),
        ("mid, a folder", &[&folder[..], &bare].concat()),
    ] {
        let args = [&["plan", "--measure", "--json", "--backend", "cpu"], flags].concat();
        let found = json(&args);
        let off = number(&found, "/off");
        println!("{what}: {found}");
        assert!(
            off.abs() < 0.03,
            "{what}: {:.2} % off: {found}",
            off * 100.0
        );
        let parts = [
            "mapped",
            "weights",
            "blocks",
            "windows",
            "snapshots",
            "work",
        ];
        let parts = parts.map(|part| number(&found, &format!("/footprint/{part}")));
        let sum = parts.iter().sum::<f64>() + number(&found, "/program");
        assert_eq!(sum, number(&found, "/predicted"));
        let held = number(&found, "/resident/anonymous") + number(&found, "/resident/files");
        assert_eq!(held, number(&found, "/measured"));
    }
    std::fs::remove_file(mid[1]).expect("removed");
    std::fs::remove_dir_all(folder[1]).expect("removed");
}
