//! The long benchmark: it measures, keeps within its budget, says what it left out, and goes on where it was.

use super::{err, gossamer, place, synth};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn bench(output: &Path, flags: &[&str]) -> Output {
    let output = output.to_str().expect("a name");
    let given = [
        "bench",
        "--long",
        "--backend",
        "cpu",
        "--json",
        "-o",
        output,
    ];
    gossamer(&[&given[..], flags].concat())
}

fn result(output: &Output) -> Value {
    assert!(output.status.success(), "{}", err(output));
    serde_json::from_slice(&output.stdout).expect("stdout is JSON")
}

fn records<'a>(result: &'a Value, step: &str) -> Vec<&'a Value> {
    let records = result["records"].as_array().expect("records");
    records.iter().filter(|r| r["step"] == step).collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key]
        .as_f64()
        .unwrap_or_else(|| panic!("no {key}: {value}"))
}

#[test]
fn the_demo_model_is_measured_and_remembers() {
    let output = place("demo.json");
    let found = result(&bench(
        &output,
        &["--lengths", "512,2048", "--budget", "5m"],
    ));
    let written = fs::read_to_string(&output).expect("the result is written");
    assert_eq!(
        serde_json::from_str::<Value>(&written).expect("JSON"),
        found
    );
    assert_eq!(found["left_out"], serde_json::json!([]));
    let depths = records(&found, "depth");
    assert_eq!(depths.len(), 2);
    assert_eq!(number(depths[0], "tokens"), 512.0);
    assert_eq!(number(depths[1], "tokens"), 2048.0);
    // The second goes on from the first: it is not read again.
    assert!(number(depths[1], "cached") >= 500.0, "{}", depths[1]);
    for depth in depths {
        let rows = number(depth, "tokens") - number(depth, "cached");
        let speed = rows / number(depth, "prefill_s");
        assert!((speed / number(depth, "prefill_tok_s") - 1.0).abs() < 1e-6);
        // 2 KV heads of 64 in 3 full layers and 3 rings, in f16.
        let (blocks, rings) = (number(depth, "tokens") * 1536.0, 3.0 * 160.0 * 512.0);
        assert_eq!(number(depth, "kv_bytes"), blocks + rings);
        assert!(number(depth, "turn_rows") <= 64.0, "{depth}");
        assert!(!depth["decode_tok_s"].as_array().expect("runs").is_empty());
    }
    // Of a conversation that is cached only the turn was read, above; of another one all of it.
    let uncached = records(&found, "turn");
    assert!(number(uncached[0], "rows") >= 512.0);
    let recalled = records(&found, "recall");
    assert_eq!(recalled.len(), 6);
    let right = recalled.iter().filter(|r| r["right"] == true).count();
    assert!(right >= 5, "{right} of 6: {recalled:?}");
    let streams = records(&found, "streams");
    let counts: Vec<f64> = streams.iter().map(|s| number(s, "streams")).collect();
    assert_eq!(counts, [2.0, 4.0, 8.0]);
    for at in found["roofline"][0]["depths"].as_array().expect("depths") {
        let share = number(at, "best_tok_s") / number(at, "limit_tok_s");
        assert!((share / number(at, "share_of_bandwidth") - 1.0).abs() < 1e-9);
    }
    for target in found["targets"].as_array().expect("targets") {
        assert!(
            ["met", "missed", "not run"].contains(&target["verdict"].as_str().expect("a word"))
        );
    }
    // The memory is timed before, after each depth, and at the end; the best is the limit.
    let timed = records(&found, "bandwidth");
    let after: Vec<&str> = timed.iter().filter_map(|r| r["after"].as_str()).collect();
    assert_eq!(after, ["depth 512", "depth 2048", "all"]);
    let load = number(records(&found, "load")[0], "bandwidth");
    let best = timed
        .iter()
        .map(|r| number(r, "bandwidth"))
        .fold(load, f64::max);
    assert_eq!(number(&found["roofline"][0], "bandwidth_bytes_per_s"), best);
    let page = fs::read_to_string(output.with_extension("html")).expect("the page");
    for part in [
        "<svg",
        "limit of memory",
        "Facts found again",
        "Targets",
        "Left out",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // Neither names a folder or a machine.
    let folder = env!("CARGO_TARGET_TMPDIR");
    assert!(!written.contains(folder) && !page.contains(folder));
    // Again: nothing is left to do, and the figures are those.
    let again = result(&bench(
        &output,
        &["--lengths", "512,2048", "--budget", "5m"],
    ));
    assert_eq!(again["records"], found["records"]);
    let before = found["records"].as_array().map(Vec::len);
    assert_eq!(
        number(&again, "measured_before") as usize,
        before.unwrap_or(0)
    );
}

#[test]
fn an_interrupted_benchmark_goes_on_and_a_budget_leaves_out() {
    let model = synth("bench.gguf", &["--preset", "tiny", "--seed", "9"]);
    let model = model.to_str().expect("a name");
    let output = place("resumed.json");
    let state = output.with_extension("jsonl");
    let short = ["--model", model, "--lengths", "256,512", "--budget", "60s"];
    let first = result(&bench(&output, &short));
    assert_eq!(records(&first, "depth").len(), 2);
    // Random weights remember nothing: they are not asked.
    assert!(records(&first, "recall").is_empty());
    // As if it had been ended while it wrote the third record.
    let text = fs::read_to_string(&state).expect("the state");
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let half = &lines[3][..lines[3].len() / 2];
    fs::write(&state, lines[..3].concat() + half).expect("written");
    let resumed = bench(&output, &short);
    assert!(
        err(&resumed).contains("going on after 2 measurements"),
        "{}",
        err(&resumed)
    );
    let second = result(&resumed);
    assert_eq!(number(&second, "measured_before"), 2.0);
    assert_eq!(second["records"][0], first["records"][0]);
    assert_eq!(second["records"][1], first["records"][1]);
    let count = |found: &Value| found["records"].as_array().map(Vec::len);
    assert_eq!(count(&second), count(&first));
    // The whole context of the shape takes longer than this: it is left out, and said.
    let whole = [
        "--model",
        model,
        "--lengths",
        "256,131072",
        "--budget",
        "3s",
        "--fresh",
    ];
    let tight = result(&bench(&output, &whole));
    assert_eq!(number(&tight, "measured_before"), 0.0);
    let left = tight["left_out"].as_array().expect("left out");
    let deep = left.iter().find(|l| l["what"] == "cpu depth 131072");
    let why = deep.expect("the deepest is left out")["why"]
        .as_str()
        .expect("why");
    assert!(
        why.contains("it would take about") && why.contains("of the budget"),
        "{why}"
    );
    assert!(number(&tight, "took_s") < 30.0, "{tight}");
    // What the context can't hold is left out too.
    let small = [
        "--model",
        model,
        "--lengths",
        "256,8192",
        "--ctx-size",
        "1024",
    ];
    let small = result(&bench(&output, &small));
    let why = small["left_out"][0]["why"].as_str().expect("why");
    assert!(why.contains("a context of 1024 tokens"), "{small}");
    fs::remove_file(model).expect("removed");
}

#[test]
fn the_program_of_its_own_does_the_same() {
    let output = place("program.json");
    let mut program = Command::new(env!("CARGO_BIN_EXE_gpt-oss-128k-benchmark"));
    program.env("HF_HUB_CACHE", env!("CARGO_TARGET_TMPDIR"));
    let flags = [
        "--backend",
        "cpu",
        "--lengths",
        "256",
        "--budget",
        "1m",
        "-o",
    ];
    let ran = program
        .args(flags)
        .arg(&output)
        .output()
        .expect("it starts");
    assert!(ran.status.success(), "{}", err(&ran));
    let (said, table) = (err(&ran), String::from_utf8_lossy(&ran.stdout).into_owned());
    assert!(
        said.contains("demo model") && said.contains("gossamer pull gpt-oss-20b"),
        "{said}"
    );
    assert!(
        table.contains("next turn") && table.contains("target, MLX"),
        "{table}"
    );
    for wrong in [
        &["--output", "x.txt"][..],
        &["--budget", "soon"],
        &["--lengths", "0"],
    ] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_gpt-oss-128k-benchmark"));
        let refused = program.args(wrong).output().expect("it starts");
        assert_eq!(
            refused.status.code(),
            Some(2),
            "{wrong:?}: {}",
            err(&refused)
        );
    }
    let alone = gossamer(&["bench", "--budget", "5m"]);
    assert_eq!(alone.status.code(), Some(2));
    assert!(err(&alone).contains("bench --long"), "{}", err(&alone));
}
