//! Verdicts: chosen by rules, stored for the machine and the model, followed by `--backend auto`, forgotten;
//! between back ends on one model, and between files.

use crate::{
    common::{self, python},
    compare_in, demo, gossamer,
    program::Program,
};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

/// Flags that `auto` does not know, back ends that it is never to take, a model that has no file, or a pair that says
/// nothing of what it takes now: nothing is stored.
#[test]
fn only_what_auto_can_follow_is_stored() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path();
    let copy = state.join("copy.gguf");
    fs::copy(demo(), &copy).expect("a copy");
    let model = copy.to_str().expect("UTF-8");
    let mlx = self::folder(state);
    let (reference, cpu) = (format!("reference={model}"), format!("cpu={model}"));
    let (by_mlx, scalar) = (format!("mlx={mlx}"), format!("cpu:scalar={mlx}"));
    let limited = format!("cpu={mlx},threads=1");
    for (sides, prefer, winner, says) in [
        ([&*cpu, &reference], "fidelity", "B", ""),
        (["cpu", "reference"], "fidelity", "B", ""),
        ([&scalar, &by_mlx], "fidelity", "B", ""),
        ([&limited, &by_mlx], "fidelity", "B", ""),
        // Whoever runs the folder has it on the processor: that MLX takes more for it is nothing to them.
        (
            [&cpu, &by_mlx],
            "memory",
            "A",
            "`--backend auto` does not take mlx for",
        ),
    ] {
        let mut command = compare_two(state, sides, prefer);
        let output = command.output().expect("the program starts");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{sides:?}: {told}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains(&format!("use {winner}: ")),
            "{sides:?}: {text}"
        );
        assert!(!told.contains("stored"), "{sides:?}: {told}");
        assert!(told.contains(says), "{sides:?}: {told}");
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

/// `gossamer run --backend auto` on the model, where MLX is installed or not: which back end answered, and what was
/// told beside the lines about loading.
fn auto_with(state: &Path, model: &str, mlx: bool) -> (String, String) {
    let args = ["run", "-v", "--model", model, "-n", "1", "--json", "Hello"];
    let mut command = gossamer(state, &args);
    command.env("XDG_DATA_HOME", state.join("no-data"));
    command.env_remove("GOSSAMER_MLX_PYTHON");
    if mlx {
        command.env("GOSSAMER_MLX_PYTHON", python());
    }
    let output = command.output().expect("the program starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let backend = json["backend"].as_str().expect("a back end");
    let loading = |line: &&str| line.contains("loaded in") || line.contains("rearranged at load");
    let told: Vec<_> = told.lines().filter(|line| !loading(line)).collect();
    (backend.to_owned(), told.join("\n"))
}

/// Which of `sides` is nearer to the reference, or takes less memory: decided however busy the machine is.
fn compare_two(state: &Path, sides: [&str; 2], prefer: &str) -> Command {
    let mut command = gossamer(state, &["compare", sides[0], sides[1], "--prefer", prefer]);
    command.args(["--max-tokens", "0"]);
    match prefer {
        "fidelity" => command.arg("--no-speed"),
        _ => command.args(["-p", "8", "-n", "4", "-r", "1"]),
    };
    command.env("GOSSAMER_MLX_PYTHON", python());
    command
}

/// The verdict between `sides`, which is stored.
fn compare_sides(state: &Path, sides: [&str; 2], prefer: &str) -> Value {
    let json = state.join("found.json");
    let mut command = compare_two(state, sides, prefer);
    let output = command.arg("--json").arg(&json).output();
    let output = output.expect("the program starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("stored: "), "{told}");
    let found: Value = serde_json::from_slice(&fs::read(json).expect("JSON")).expect("JSON");
    found["verdict"].clone()
}

/// The demo model in MLX's form.
fn folder(state: &Path) -> String {
    let folder = state.join("demo-mlx");
    common::tool("gguf_to_mlx.py", &[&demo(), &folder]);
    folder.to_str().expect("UTF-8").to_owned()
}

#[test]
fn auto_follows_a_verdict_for_mlx() {
    let state = tempfile::tempdir().expect("a temporary folder");
    let state = state.path();
    let model = folder(state);
    let (cpu, mlx) = (format!("cpu={model}"), format!("mlx={model}"));
    assert!(auto_with(state, &model, true).0.starts_with("cpu ("));
    // f32 is nearer to the reference than int8.
    assert_eq!(
        compare_sides(state, [&cpu, &mlx], "fidelity")["winner"],
        "B"
    );
    let (chosen, told) = auto_with(state, &model, true);
    assert!(chosen.starts_with("mlx (cpu "), "{chosen}");
    assert!(
        told.contains("back end mlx, as `gossamer compare` found"),
        "{told}"
    );
    assert!(told.contains("mean KL from the reference"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    let program = Program::start_with(&["--model", &model], |command| {
        command.env("XDG_STATE_HOME", state);
        command.env("GOSSAMER_MLX_PYTHON", python());
    });
    let body = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4});
    let (status, text) = program.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{text}");
    let said = program.end();
    assert!(
        said.iter().any(|line| line.contains("back end mlx, as")),
        "{said:?}"
    );
    let ids = state.join("ids.json");
    fs::write(&ids, "[5, 300, 7]").expect("a file");
    let ids = ids.to_str().expect("UTF-8");
    let args = ["score", "--model", &model, "--tokens", ids, "--top", "1"];
    let mut score = gossamer(state, &args);
    let output = score.env("GOSSAMER_MLX_PYTHON", python()).output();
    let output = output.expect("the program starts");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("back end mlx, as"));
    // What is measured is what it says.
    let mut bench = gossamer(state, &["bench", "--model", &model, "--json"]);
    bench.args(["-p", "16", "-n", "4", "-r", "1", "--streams", "1"]);
    let output = bench.env("GOSSAMER_MLX_PYTHON", python()).output();
    let output = output.expect("the program starts");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let measured = found["backend"].as_str().expect("a back end");
    assert!(measured.starts_with("mlx (cpu "), "{measured}");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(told.matches("back end mlx, as").count(), 1, "{told}");

    // No longer installed: one sentence, and the processor.
    let (chosen, told) = auto_with(state, &model, false);
    assert!(chosen.starts_with("cpu ("), "{chosen}");
    assert!(told.contains("gossamer mlx setup"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");

    // Of another machine or model, or by a program that wrote something else: ignored.
    let verdicts = state.join("gossamer/verdicts.json");
    let whole = fs::read(&verdicts).expect("verdicts");
    let all: Value = serde_json::from_slice(&whole).expect("JSON");
    let (key, _) = all
        .as_object()
        .and_then(|all| all.iter().next())
        .expect("one");
    let other = String::from_utf8_lossy(&whole).replace(key.as_str(), &"0".repeat(key.len()));
    let older = json!({key: {"backend": "mlx", "why": "so", "model": "demo-mlx"}}).to_string();
    for ignored in [&*other, &older, "[]", "{", ""] {
        fs::write(&verdicts, ignored).expect("a file");
        let (chosen, told) = auto_with(state, &model, true);
        assert!(chosen.starts_with("cpu ("), "{ignored}: {chosen}");
        assert_eq!(told, "", "{ignored}");
    }
    fs::write(&verdicts, &whole).expect("a file");
    assert!(auto_with(state, &model, true).0.starts_with("mlx (cpu "));
    // A later version of the model.
    let weights = Path::new(&model).join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let middle = bytes.len() / 16 * 9;
    bytes[middle] ^= 1;
    fs::write(&weights, &bytes).expect("a file");
    assert!(auto_with(state, &model, true).0.starts_with("cpu ("));
    bytes[middle] ^= 1;
    fs::write(&weights, &bytes).expect("a file");

    // A later verdict, in which one side says that it is what `auto` takes.
    let auto = format!("auto={model}");
    let later = compare_sides(state, [&cpu, &auto], "memory");
    assert_eq!(later["winner"], "A");
    let (chosen, told) = auto_with(state, &model, true);
    assert!(chosen.starts_with("cpu ("), "{chosen}");
    assert!(told.contains("back end cpu, as"), "{told}");

    // It is the content that counts, not the name; and only `auto` asks.
    let renamed = state.join("renamed");
    fs::rename(&model, &renamed).expect("a new name");
    let renamed = renamed.to_str().expect("UTF-8");
    assert!(auto_with(state, renamed, true).1.contains("back end cpu"));
    let args = ["run", "-v", "--model", renamed, "--backend", "cpu", "Hello"];
    let output = gossamer(state, &args).args(["-n", "1"]).output();
    let told = output.expect("the program starts").stderr;
    let told = String::from_utf8_lossy(&told);
    assert!(!told.contains("gossamer compare"), "{told}");
    let forget = ["compare", "--forget", "--model", renamed];
    let output = gossamer(state, &forget).output();
    let output = output.expect("the program starts");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("forgot 1 verdict"));
    assert_eq!(auto_with(state, renamed, true).1, "");
}

/// GGUF against MLX: who runs the worse file is told of the better one, and no file is exchanged for another.
#[test]
fn two_files_of_one_model_know_of_each_other() {
    let state = tempfile::tempdir().expect("a temporary folder");
    let state = state.path();
    let model = folder(state);
    let copy = state.join("copy.gguf");
    fs::copy(demo(), &copy).expect("a copy");
    let copy = copy.to_str().expect("UTF-8");
    let (cpu, mlx) = (format!("cpu={copy}"), format!("mlx={model}"));
    assert_eq!(
        compare_sides(state, [&cpu, &mlx], "fidelity")["winner"],
        "B"
    );
    let (chosen, told) = auto_with(state, copy, true);
    assert!(chosen.starts_with("cpu ("), "{chosen}");
    for part in [
        &*format!("--model {model} --backend mlx was better (mean KL from the reference"),
        " nats against ",
        "by --prefer fidelity",
        "--forget",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!(told.lines().count(), 1, "{told}");
    let (chosen, told) = auto_with(state, &model, true);
    assert!(chosen.starts_with("mlx (cpu "), "{chosen}");
    assert!(
        told.contains("back end mlx, as") && told.contains(copy),
        "{told}"
    );
    assert_eq!(told.lines().count(), 1, "{told}");

    // The other way round: the file is told of, the folder keeps the one back end that was compared on it.
    assert_eq!(compare_sides(state, [&cpu, &mlx], "memory")["winner"], "A");
    let (chosen, told) = auto_with(state, copy, true);
    assert!(chosen.starts_with("cpu ("), "{chosen}");
    assert!(!told.contains("was better"), "{told}");
    let (chosen, told) = auto_with(state, &model, true);
    assert!(chosen.starts_with("mlx (cpu "), "{chosen}");
    let better = format!("--model {copy} --backend cpu was better (peak memory");
    assert!(told.contains(&better), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    // What is gone is not advised.
    fs::remove_file(copy).expect("it goes");
    assert!(!auto_with(state, &model, true).1.contains("was better"));
}
