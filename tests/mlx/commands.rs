//! Every command that runs a model.

use super::{Demo, common};
use serde_json::Value;
use std::process::{Command, Output, Stdio};

pub fn gossamer(args: &[&str], flags: &[String]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gossamer"))
        .args(args)
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

/// What it printed, if it went well.
pub fn said(args: &[&str], flags: &[String]) -> String {
    let output = gossamer(args, flags);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// What it complained of.
fn failed(args: &[&str], flags: &[String]) -> String {
    let output = gossamer(args, flags);
    assert!(!output.status.success(), "{args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn run_score_and_bench_take_the_mlx_back_end() {
    let demo = Demo::new();
    let flags = demo.flags();
    let ask = ["run", "--temperature", "0", "What is 17 + 25?"];
    assert_eq!(said(&ask, &flags), "42\n");
    // A schema is kept to token by token.
    let schema = r#"{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],"additionalProperties":false}"#;
    let ask = [
        "run",
        "--json-schema",
        schema,
        "-n",
        "300",
        "What is 17 + 25?",
    ];
    let answer: Value = serde_json::from_str(&said(&ask, &flags)).expect("JSON");
    assert!(answer["n"].is_i64(), "{answer}");
    // The same rows as natively, in f32.
    let ids = demo.folder.path().join("ids.json");
    std::fs::write(&ids, "[5, 300, 7, 41, 900, 12]").expect("written");
    let ids = ids.to_str().expect("UTF-8");
    let model = demo.path();
    let native = [
        "--backend",
        "reference",
        "--model",
        model.to_str().expect("UTF-8"),
    ];
    let native: Vec<String> = native.map(str::to_owned).to_vec();
    let rows = |flags: &[String]| -> Vec<Value> {
        let text = said(
            &["score", "--tokens", ids, "--top", "3", "--last", "4"],
            flags,
        );
        let rows = text.lines().map(serde_json::from_str);
        rows.collect::<Result<_, _>>().expect("JSON")
    };
    let (ours, theirs) = (rows(&flags), rows(&native));
    assert_eq!((ours.len(), theirs.len()), (4, 4));
    for (a, b) in ours.iter().zip(&theirs) {
        for top in 0..3 {
            assert_eq!(a["top"][top]["id"], b["top"][top]["id"], "{a} {b}");
            let logprob = |row: &Value| row["top"][top]["logprob"].as_f64().expect("a number");
            assert!((logprob(a) - logprob(b)).abs() < 1e-3, "{a} {b}");
        }
    }
    let bench = [
        "bench",
        "-p",
        "64",
        "-n",
        "32",
        "--depth",
        "0,512",
        "--streams",
        "1,8",
        "-r",
        "2",
        "--json",
    ];
    let report: Value = serde_json::from_str(&said(&bench, &flags)).expect("JSON");
    let tests = report["tests"].as_array().expect("tests");
    assert_eq!(tests.len(), 6);
    for test in tests {
        assert!(
            test["tok_per_s"].as_f64().is_some_and(|speed| speed > 0.0),
            "{test}"
        );
    }
    assert!(
        report["peak_memory_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 1 << 20),
        "{report}"
    );
    let status = ["mlx", "status", "--json", "--mlx-python"];
    let python = common::python().to_str().expect("UTF-8").to_owned();
    let status: Value = serde_json::from_str(&said(&status, &[python])).expect("JSON");
    assert_eq!(status["hello"]["protocol"], 1, "{status}");
}

#[test]
fn what_mlx_can_not_run_is_refused_in_words() {
    let demo = common::root().join("models/demo/demo.gguf");
    let python = common::python().to_str().expect("UTF-8").to_owned();
    let mlx = |model: &str| {
        [
            "--backend",
            "mlx",
            "--mlx-python",
            &python,
            "--model",
            model,
        ]
        .map(str::to_owned)
    };
    let told = failed(&["run", "hi"], &mlx(demo.to_str().expect("UTF-8")));
    assert!(
        told.contains("a GGUF file; --backend mlx runs a folder"),
        "{told}"
    );
    let told = failed(&["run", "hi"], &["--backend".into(), "mlx".into()]);
    assert!(
        told.contains("--backend mlx needs a model in MLX's form"),
        "{told}"
    );
    let folder = Demo::new();
    let mut wrong = folder.flags();
    wrong[3] = "/nowhere/python3".into();
    let told = failed(&["run", "hi"], &wrong);
    assert!(told.contains("can't start /nowhere/python3"), "{told}");
}

#[test]
fn the_long_benchmark_takes_the_mlx_back_end() {
    let demo = Demo::new();
    let flags = demo.flags();
    let output = demo.folder.path().join("long.json");
    let output = output.to_str().expect("UTF-8");
    let ask = [
        "bench",
        "--long",
        "--json",
        "--lengths",
        "256",
        "--budget",
        "60s",
        "-o",
        output,
    ];
    let found: Value = serde_json::from_str(&said(&ask, &flags)).expect("JSON");
    let records = found["records"].as_array().expect("records");
    let depth = records
        .iter()
        .find(|r| r["step"] == "depth")
        .expect("a depth");
    assert_eq!(depth["backend"], "mlx");
    assert!(
        depth["prefill_tok_s"].as_f64() > Some(0.0)
            && depth["device_bytes"].as_u64() > Some(1 << 20)
    );
    assert!(records.iter().any(|r| r["step"] == "streams"), "{found}");
    let targets = found["targets"].as_array().expect("targets");
    let mlx = targets
        .iter()
        .find(|t| t["engine"] == "MLX")
        .expect("MLX's");
    assert!(mlx["found_tok_s"].as_f64() > Some(0.0), "{mlx}");
}

/// The worker fails whenever two decode at once: what needs that is left out, and the rest is reported.
#[cfg(unix)]
#[test]
fn a_step_of_the_long_benchmark_that_fails_is_left_out() {
    use std::{fs, os::unix::fs::PermissionsExt};
    let demo = Demo::new();
    let at = |name: &str| demo.folder.path().join(name);
    let rig = "import sys
boot, sys.argv = sys.argv[3], ['-c', *sys.argv[4:]]
from mlx_lm.models.gpt_oss import Model
real = Model.__call__
def call(self, ids, *rest, **more):
    if ids.shape[0] > 1:
        raise ValueError('seeded')
    return real(self, ids, *rest, **more)
Model.__call__ = call
exec(boot)
";
    fs::write(at("rig.py"), rig).expect("written");
    let script = format!(
        "#!/bin/sh\nexec '{}' '{}' \"$@\"\n",
        common::python().display(),
        at("rig.py").display()
    );
    fs::write(at("python"), script).expect("written");
    fs::set_permissions(at("python"), fs::Permissions::from_mode(0o755)).expect("its mode");
    let text = |name: &str| at(name).to_str().expect("UTF-8").to_owned();
    let mut flags = demo.flags();
    flags[3] = text("python");
    let output = text("long.json");
    let ask = ["bench", "--long", "--json", "--lengths", "256", "-o"];
    let found = said(&[&ask[..], &[&output]].concat(), &flags);
    let found: Value = serde_json::from_str(&found).expect("JSON");
    let records = found["records"].as_array().expect("records");
    let steps: Vec<&str> = records.iter().filter_map(|r| r["step"].as_str()).collect();
    assert!(steps.contains(&"depth") && steps.contains(&"recall"));
    assert!(!steps.contains(&"streams"), "{steps:?}");
    let left = found["left_out"].as_array().expect("left out");
    let names: Vec<&str> = left.iter().filter_map(|l| l["what"].as_str()).collect();
    assert_eq!(names, ["mlx streams 2", "mlx streams 4", "mlx streams 8"]);
    let why = left[0]["why"].as_str().expect("why");
    assert!(why.contains("seeded"), "{why}");
}
