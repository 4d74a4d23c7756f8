//! Verdicts: chosen by rules, stored for the machine and the model, followed by `--backend auto`, forgotten.

use crate::{compare_in, demo, gossamer};
use serde_json::Value;
use std::path::Path;

/// What the reference wins, however busy the machine is.
const BY_FIDELITY: [&str; 5] = ["--no-speed", "--max-tokens", "0", "--prefer", "fidelity"];

/// `gossamer run --backend auto` on the model: which back end answered, and what was told.
fn auto(state: &Path, model: &str) -> (String, String) {
    let args = ["run", "-v", "--model", model, "-n", "1", "--json", "Hello"];
    let output = gossamer(state, &args).output().expect("the program starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    (
        json["backend"].as_str().expect("a back end").to_owned(),
        told,
    )
}

#[test]
fn auto_follows_a_stored_verdict() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path();
    let copy = state.join("copy.gguf");
    std::fs::copy(demo(), &copy).expect("a copy");
    let model = copy.to_str().expect("UTF-8");
    let (plain, told) = auto(state, model);
    assert!(plain.starts_with("cpu ("), "{plain}");
    assert!(!told.contains("compare"), "{told}");

    let sides = ["--model", model, "cpu", "reference"];
    let compared = compare_in(state, &[&sides[..], &BY_FIDELITY].concat());
    assert_eq!(compared.code, Some(0), "{}", compared.told());
    let text = compared.text();
    assert_eq!(compared.found["verdict"]["winner"], "B", "{text}");
    assert!(compared.told().contains("stored"), "{}", compared.told());
    let (chosen, told) = auto(state, model);
    assert!(chosen.starts_with("reference"), "{chosen}");
    assert!(told.contains("gossamer compare --forget"), "{told}");
    // It is the content that counts, not the name; and only `auto` asks.
    let renamed = state.join("renamed.gguf");
    std::fs::rename(&copy, &renamed).expect("a new name");
    let model = renamed.to_str().expect("UTF-8");
    assert!(auto(state, model).0.starts_with("reference"));
    let args = [
        "run",
        "-v",
        "--model",
        model,
        "--backend",
        "cpu",
        "-n",
        "1",
        "--json",
        "Hello",
    ];
    let output = gossamer(state, &args).output().expect("the program starts");
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(answer.contains("cpu ("), "{answer}");

    let forget = ["compare", "--forget", "--model", model];
    let output = gossamer(state, &forget)
        .output()
        .expect("the program starts");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("forgot 1 verdict"));
    assert_eq!(auto(state, model).0, plain);
}

/// Two models, or flags that `auto` does not know: nothing is stored.
#[test]
fn only_what_auto_can_follow_is_stored() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path();
    let copy = state.join("copy.gguf");
    std::fs::copy(demo(), &copy).expect("a copy");
    let model = copy.to_str().expect("UTF-8");
    let side = format!("reference={model}");
    for sides in [
        &["cpu", &side][..],
        &["cpu", "reference"],
        &["--model", model, "cpu,threads=1", "reference"],
    ] {
        let compared = compare_in(state, &[sides, &BY_FIDELITY].concat());
        assert_eq!(compared.code, Some(0), "{sides:?}: {}", compared.told());
        assert_eq!(compared.found["verdict"]["winner"], "B", "{sides:?}");
        assert!(
            !compared.told().contains("stored"),
            "{sides:?}: {}",
            compared.told()
        );
    }
    assert!(!state.join("gossamer").exists());
}

/// Nearness to the reference is measured.
#[test]
fn fidelity_is_judged_by_the_reference() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let args = [
        "cpu",
        "reference",
        "--no-speed",
        "--max-tokens",
        "0",
        "--prefer",
        "fidelity",
    ];
    let compared = compare_in(folder.path(), &args);
    assert_eq!(compared.code, Some(0), "{}", compared.told());
    let judged = &compared.found["judged"];
    assert_eq!(
        (&judged["positions"], &judged["b_mean_kl"]),
        (&48.into(), &0.0.into())
    );
    assert!(judged["a_mean_kl"].as_f64() > Some(0.0));
    assert_eq!(compared.found["verdict"]["winner"], "B");
}
