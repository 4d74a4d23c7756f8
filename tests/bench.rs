//! `gossamer bench`, the program: it measures what it was asked for, and its figures fit together.

use serde_json::Value;
use std::process::Command;

/// What the program prints on stdout.
fn bench(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_gossamer"))
        .arg("bench")
        .args(args)
        .output()
        .expect("the program starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    String::from_utf8(output.stdout).expect("stdout is UTF-8")
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&bench(&[&["--json"], args].concat())).expect("stdout is JSON")
}

#[test]
fn bench_measures_what_was_asked_for() {
    let report = json(&["-p", "24", "-n", "5", "--depth", "0,40", "-r", "2"]);
    assert!(report["model"]["bytes"].as_u64() > Some(1_000_000));
    assert!(report["bandwidth"]["memory_bytes_per_s"].as_f64() > Some(1e8));
    assert!(report["load_s"].as_f64() > Some(0.0));
    if cfg!(target_os = "linux") {
        assert!(report["peak_memory_bytes"].as_u64() > Some(1_000_000));
    }
    let tests = report["tests"].as_array().unwrap();
    let names: Vec<_> = tests
        .iter()
        .map(|t| {
            (
                t["test"].as_str().unwrap(),
                t["tokens"].as_u64().unwrap(),
                t["depth"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        names,
        [
            ("prefill", 24, 0),
            ("decode", 5, 0),
            ("prefill", 24, 40),
            ("decode", 5, 40)
        ]
    );
    for test in tests {
        let runs: Vec<f64> = test["runs_tok_per_s"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r.as_f64().unwrap())
            .collect();
        assert_eq!(runs.len(), 2);
        let mean = test["tok_per_s"].as_f64().unwrap();
        assert!(((runs[0] + runs[1]) / 2.0 - mean).abs() < 1e-6 * mean);
        assert!(
            test["bytes_per_s"].as_f64() > Some(0.0)
                && test["share_of_bandwidth"].as_f64() > Some(0.0)
        );
    }
    let table = bench(&["-p", "8", "-n", "0", "-r", "1"]);
    assert!(
        table.contains("prefill") && !table.contains("decode "),
        "{table}"
    );
}

#[test]
fn bench_measures_many_streams() {
    let report = json(&[
        "-p",
        "40",
        "-n",
        "5",
        "--streams",
        "1,3",
        "--depth",
        "0,33",
        "-r",
        "1",
    ]);
    let tests = report["tests"].as_array().unwrap();
    let number = |t: &Value, key: &str| t[key].as_u64().unwrap();
    let found: Vec<_> = tests
        .iter()
        .map(|t| {
            let name = t["test"].as_str().unwrap();
            (
                name,
                number(t, "streams"),
                number(t, "tokens"),
                number(t, "depth"),
            )
        })
        .collect();
    let at = |depth| {
        [
            ("prefill", 1, 40, depth),
            ("decode", 1, 5, depth),
            ("decode", 3, 15, depth),
            ("mixed", 3, 3 + 40, depth),
        ]
    };
    assert_eq!(found, [at(0), at(33)].concat());
    for test in tests {
        let steps = if test["test"] == "decode" { 5.0 } else { 1.0 };
        let seconds = steps * test["step_s"].as_f64().unwrap();
        let speed = number(test, "tokens") as f64 / seconds;
        assert!(
            (speed / test["tok_per_s"].as_f64().unwrap() - 1.0).abs() < 1e-6,
            "{test}"
        );
    }
    for wrong in ["0", "257", "x", ""] {
        let output = Command::new(env!("CARGO_BIN_EXE_gossamer"))
            .args(["bench", "--streams", wrong])
            .output()
            .expect("the program starts");
        assert_eq!(output.status.code(), Some(2), "--streams {wrong}");
    }
}

#[test]
fn bench_measures_the_parts_by_themselves() {
    let micro = json(&["--micro", "-p", "1", "-n", "0", "-r", "1"])["micro"].take();
    for time in ["tokenizer_build_s", "encode_s", "parse_s"] {
        assert!(micro[time].as_f64() > Some(0.0), "{time}: {micro}");
    }
    let masks = micro["masks"].as_array().unwrap();
    assert_eq!(masks.len(), 3);
    for mask in masks {
        let time = |name: &str| mask[name].as_f64().unwrap();
        assert!(
            0.0 < time("mean_s") && time("mean_s") <= time("max_s"),
            "{mask}"
        );
        assert!(
            time("p95_s") <= time("max_s") && mask["tokens"].as_u64() > Some(20),
            "{mask}"
        );
    }
    let kernels = micro["kernels"].as_array().unwrap();
    for isa in gossamer::backend::cpu::isas() {
        for format in ["MXFP4", "Q8_0", "F32"] {
            let speeds: Vec<&Value> = kernels
                .iter()
                .filter(|k| k["isa"] == isa && k["format"] == format)
                .collect();
            assert_eq!(speeds.len(), 5, "{isa}, {format}");
            for speed in speeds {
                assert!(speed["bytes_per_s"].as_f64() > Some(1e4), "{speed}");
                // Every weight is read once a product and used once a token.
                let tokens = speed["tokens"].as_f64().unwrap();
                let ratio = speed["ops_per_s"].as_f64().unwrap()
                    / speed["bytes_per_s"].as_f64().unwrap()
                    / tokens;
                let bytes = match format {
                    "MXFP4" => 17.0 / 32.0,
                    "Q8_0" => 34.0 / 32.0,
                    _ => 4.0,
                };
                assert!((ratio * bytes - 2.0).abs() < 1e-6, "{speed}");
            }
        }
    }
}
