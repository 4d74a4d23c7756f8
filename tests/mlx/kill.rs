//! A worker that is killed while the server is under load.

use super::{Demo, PATIENCE, program::Program};
use gossamer::checkpoint::Checkpoint;
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt, process::Command, time::Instant};

/// The server's workers, by the name that they give themselves, and the state that the system knows them in.
fn workers(server: u32) -> Vec<(u32, char)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // `pid (name) state parent …`
        let Some((name, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        // What ends a worker with the server.
        if name.ends_with("(sh") {
            continue;
        }
        let mut words = rest.split(' ');
        let (state, parent) = (words.next(), words.next());
        if parent.and_then(|parent| parent.parse().ok()) == Some(server) {
            found.push((id, state.and_then(|s| s.chars().next()).unwrap_or('?')));
        }
    }
    found
}

#[test]
fn a_killed_worker_fails_its_requests_alone() {
    let demo = Demo::new();
    let stop_ids = Checkpoint::open(&demo.path()).expect("the folder");
    let stop_ids = stop_ids.tokenizer().expect("a vocabulary").stop_ids();
    // Answers that do not end by themselves.
    let never: Value = stop_ids
        .iter()
        .map(|id| (id.to_string(), json!(-100)))
        .collect();
    let ask = |model: &str, tokens: usize, stream: bool| {
        json!({
            "model": model, "prompt": "What is 17 + 25?", "max_tokens": tokens, "stream": stream,
            "temperature": 0, "logit_bias": never,
        })
    };
    let mut flags = demo.flags();
    let other = format!("other={}", demo.path().display());
    flags.extend(["--served-model-name", "demo", "--models", &other].map(str::to_owned));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let program = Program::start(&flags);
    let expected = program.post("/v1/completions", &ask("demo", 20, false));
    assert_eq!(expected.0, 200, "{}", expected.1);
    let text = |(status, body): (u16, String)| {
        assert_eq!(status, 200, "{body}");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        body["choices"][0]["text"].clone()
    };
    let expected = text(expected);
    let [(first, _)] = workers(program.id())[..] else {
        panic!("{:?}", workers(program.id()));
    };

    let path = "/v1/completions";
    let begin = |model| {
        let mut stream = program
            .stream(path, &ask(model, 4000, true))
            .expect("a stream");
        let begun = stream.next().expect("a connection");
        assert!(begun.is_some_and(|data| data.contains("text")));
        stream
    };
    let mut bystander = begin("other");
    let live: Vec<_> = (0..3).map(|_| begin("demo")).collect();
    let (whole, status) = std::thread::scope(|scope| {
        let whole = scope.spawn(|| program.post(path, &ask("demo", 4000, false)));
        let start = Instant::now();
        while program.metric("vllm:num_requests_running") < 5.0 {
            assert!(start.elapsed() < PATIENCE, "the requests don't run");
            std::thread::yield_now();
        }
        let status = Command::new("kill")
            .args(["-9", &first.to_string()])
            .status();
        (whole.join().expect("no panic"), status)
    });
    assert!(status.expect("kill runs").success());
    // One that had no answer yet: 503, with the worker's last words.
    assert_eq!(whole.0, 503, "{}", whole.1);
    let error: Value = serde_json::from_str(&whole.1).expect("JSON");
    assert_eq!(error["error"]["code"], "engine_unavailable", "{error}");
    let message = error["error"]["message"].as_str().expect("text");
    assert!(
        message.contains("the MLX worker failed") && message.contains("signal 9"),
        "{message}"
    );
    // Those that had begun end with the same.
    for mut stream in live {
        let mut last = String::new();
        while let Some(data) = stream.next().expect("a whole stream") {
            last = if data == "[DONE]" { last } else { data };
        }
        assert!(last.contains("engine_unavailable"), "{last}");
    }
    // Another model's goes on.
    for _ in 0..20 {
        let data = bystander.next().expect("a connection").expect("no end");
        assert!(!data.contains("error"), "{data}");
    }
    // The next one works, in another worker, and of the old one nothing is left.
    assert_eq!(text(program.post(path, &ask("demo", 20, false))), expected);
    let now = workers(program.id());
    assert!(
        now.len() == 2 && now.iter().all(|&(id, state)| id != first && state != 'Z'),
        "{now:?}"
    );
    drop(bystander);
    program.terminate();
    assert!(program.wait(PATIENCE).success());
    let left = now
        .iter()
        .filter(|(id, _)| fs::exists(format!("/proc/{id}")).unwrap_or(true));
    assert_eq!(left.count(), 0, "{now:?}");
}

#[test]
fn a_worker_that_hangs_goes_with_a_program_that_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let python = folder.path().join("python3");
    let script = format!(
        "#!/bin/sh\necho $$ > {0}/new && mv {0}/new {0}/id\nexec sleep 1000\n",
        folder.path().display()
    );
    fs::write(&python, script).expect("written");
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("executable");
    let mut program = Command::new(env!("CARGO_BIN_EXE_gossamer"))
        .args(["mlx", "status", "--mlx-python"])
        .arg(&python)
        .spawn()
        .expect("the program runs");
    let start = Instant::now();
    let worker = loop {
        if let Ok(id) = fs::read_to_string(folder.path().join("id")) {
            break id.trim().to_owned();
        }
        assert!(start.elapsed() < PATIENCE, "no worker");
        std::thread::yield_now();
    };
    program.kill().expect("killed");
    program.wait().expect("waited for");
    // Gone, or dead until somebody waits for it.
    let is_alive = || {
        let stat = fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    let start = Instant::now();
    while is_alive() {
        assert!(start.elapsed() < PATIENCE, "{worker} is left");
        std::thread::yield_now();
    }
}
