//! What `doctor` finds, on a machine whose cache and port the test owns.

use super::{gossamer, json, out};
use serde_json::Value;
use std::net::TcpListener;

/// The findings about `what`.
fn about<'a>(told: &'a Value, what: &str) -> Vec<&'a Value> {
    let findings = told["findings"].as_array().expect("findings");
    findings.iter().filter(|f| f["what"] == what).collect()
}

#[test]
fn doctor_tells_what_is_here_and_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let doctor = |args: &[&str]| {
        let mut command = gossamer(args);
        let output = command.env("HF_HUB_CACHE", cache.path()).output();
        output.expect("the program starts")
    };
    let told = json(&doctor(&["doctor", "--json"]));
    assert_eq!(told["gossamer"], env!("CARGO_PKG_VERSION"));
    assert!(told["processors"].as_u64() >= Some(1), "{told}");
    assert_eq!(about(&told, "cpu")[0]["state"], "ready", "{told}");
    assert_eq!(about(&told, "cuda").len(), 1, "{told}");
    let models = about(&told, "models");
    assert_eq!(models[0]["state"], "missing", "{told}");
    let advice = models[0]["advice"].as_str().unwrap_or_default();
    assert!(advice.contains("gossamer pull"), "{told}");

    let snapshot = cache.path().join("models--o--n/snapshots/c0");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(snapshot.join("m.gguf"), vec![0; 2_000_000]).unwrap();
    let told = json(&doctor(&["doctor", "--json"]));
    let found = about(&told, "model")[0]["found"].as_str().unwrap();
    assert!(found.starts_with("o/n, 2.00 MB"), "{found}");

    // Where somebody else serves already, it says so.
    let taken = TcpListener::bind(("127.0.0.1", 3000));
    let told = json(&doctor(&["doctor", "--json"]));
    assert_eq!(about(&told, "port")[0]["state"], "problem", "{told}");
    drop(taken);
    let listed = doctor(&["doctor"]);
    assert!(out(&listed).contains("o/n, 2.00 MB"), "{}", out(&listed));
}

#[test]
fn a_report_is_one_file_with_everything_in_it() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("report.json");
    let name = file.to_str().expect("a plain path");
    let mut command = gossamer(&["doctor", "--report", name, "--budget", "4s"]);
    command.env("HF_HUB_CACHE", home.path());
    command.env("HOME", home.path()).env_remove("XDG_DATA_HOME");
    command.env_remove("GOSSAMER_MLX_PYTHON");
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{}", super::err(&output));
    let text = std::fs::read_to_string(&file).unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(about(&told["doctor"], "cpu")[0]["state"], "ready", "{told}");
    // MLX is not set up in this home: there is nothing to compare with.
    assert_eq!(told["compared_with_mlx"], false, "{told}");
    assert_eq!(about(&told["doctor"], "mlx")[0]["state"], "missing");
    let runs = told["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 1, "{told}");
    assert_eq!(runs[0]["name"], "benchmark", "{told}");
    assert_eq!(runs[0]["exit_code"], 0, "{told}");
    assert!(runs[0]["result"].is_object(), "{told}");
    let home = home.path().to_str().expect("a plain path");
    assert!(!text.contains(home), "{text}");
    let left = std::fs::read_dir(file.parent().unwrap()).unwrap();
    assert_eq!(left.count(), 1, "something was left beside the report");
}
