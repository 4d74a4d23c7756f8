//! The same through the program: killed and run again, told to stay offline, asked for JSON.

use crate::{
    common, fresh_bytes, incomplete, one_file,
    server::{Hub, Reply},
    tree,
};
use gossamer::hub::{self, Spec};
use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const PROXIES: [&str; 6] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
];

fn gossamer(hub: &Hub, cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gossamer"));
    for proxy in PROXIES {
        command.env_remove(proxy);
    }
    command
        .env("HF_ENDPOINT", &hub.url)
        .env("HF_HUB_CACHE", cache)
        .env("HF_HUB_OFFLINE", "0");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(command: &mut Command) -> (Output, String, String) {
    let output = command.output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output, out, err)
}

/// A hub that sends the first `sent` bytes of its model once and then nothing, and a pull of it
/// that has them all on disk.
fn stalled_pull(cache: &Path) -> (Hub, Child, usize, Vec<u8>) {
    let (files, bytes) = one_file(4_000_000);
    let sent = 1_000_000 + fresh_bytes(1)[0] as usize;
    let hub = Hub::start(files, move |request, before, right| match before {
        0 if request.method == "GET" && !request.path.starts_with("/api/") => Reply {
            hold: true,
            ..right.cut(sent)
        },
        _ => right,
    });
    let mut child = gossamer(&hub, cache)
        .args(["pull", "owner/name"])
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let length = |f: &String| std::fs::metadata(cache.join(f)).map_or(0, |m| m.len());
    while !tree(cache)
        .iter()
        .any(|f| f.ends_with(".incomplete") && length(f) == sent as u64)
    {
        assert!(
            Instant::now() < deadline && child.try_wait().unwrap().is_none(),
            "the first part never arrived"
        );
        std::thread::yield_now();
    }
    (hub, child, sent, bytes)
}

/// A second pull asks for the missing bytes only and ends with the right file.
fn resumes(hub: &Hub, cache: &Path, sent: usize, bytes: &[u8]) {
    assert_eq!(
        std::fs::metadata(incomplete(cache)).unwrap().len(),
        sent as u64
    );
    assert_eq!(tree(cache).len(), 1, "a half file became visible");
    let (output, out, err) = run(gossamer(hub, cache).args(["pull", "owner/name"]));
    assert!(output.status.success(), "{err}");
    assert_eq!(
        hub.gets().last().unwrap().header("range"),
        Some(format!("bytes={sent}-").as_str())
    );
    assert_eq!(std::fs::read(out.trim()).unwrap(), bytes);
    assert!(err.contains("resuming"), "{err}");
}

#[test]
fn kill_9_during_a_pull_and_a_second_run_resumes() {
    let cache = tempfile::tempdir().unwrap();
    let (hub, mut child, sent, bytes) = stalled_pull(cache.path());
    child.kill().unwrap(); // SIGKILL: no handler runs
    child.wait().unwrap();
    resumes(&hub, cache.path(), sent, &bytes);
}

#[cfg(unix)]
#[test]
fn ctrl_c_during_a_pull_and_a_second_run_resumes() {
    let cache = tempfile::tempdir().unwrap();
    let (hub, child, sent, bytes) = stalled_pull(cache.path());
    let kill = format!("kill -INT {}", child.id());
    assert!(
        Command::new("sh")
            .args(["-c", &kill])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(text(&output.stderr).contains("run the same command again to resume"));
    resumes(&hub, cache.path(), sent, &bytes);
}

#[test]
fn json_is_one_object_a_line_and_people_get_the_path() {
    let cache = tempfile::tempdir().unwrap();
    let (files, bytes) = one_file(200_000);
    let hub = Hub::honest(files);
    let (output, out, err) =
        run(gossamer(&hub, cache.path()).args(["pull", "owner/name", "--json"]));
    assert!(output.status.success(), "{err}");
    let lines: Vec<serde_json::Value> = out
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines[0]["event"], "resolved");
    assert_eq!(lines[0]["files"][0]["size"], 200_000);
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["event"], &last["cached"]),
        (&"done".into(), &false.into())
    );
    assert_eq!(
        std::fs::read(last["path"].as_str().unwrap()).unwrap(),
        bytes
    );
    let (_, out, err) = run(gossamer(&hub, cache.path()).args(["pull", "owner/name"]));
    assert_eq!(out.trim(), last["path"]);
    assert!(err.contains("already in the cache"), "{err}");
}

#[test]
fn offline_asks_nobody() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::honest(one_file(1000).0);
    let mut command = gossamer(&hub, cache.path());
    command
        .env("HF_HUB_OFFLINE", "1")
        .args(["pull", "owner/name"]);
    let (output, _, err) = run(&mut command);
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("HF_HUB_OFFLINE"), "{err}");
    assert!(hub.requests().is_empty());
    assert!(
        run(gossamer(&hub, cache.path()).args(["pull", "owner/name"]))
            .0
            .status
            .success()
    );
    let asked = hub.requests().len();
    let (output, out, err) = run(&mut command);
    assert!(
        output.status.success() && out.contains("m-mxfp4.gguf"),
        "{err}"
    );
    assert_eq!(hub.requests().len(), asked);
}

#[test]
fn wrong_names_are_usage_errors_and_failures_hide_the_token() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(Vec::new(), |_, _, _| Reply::new(401, ""));
    for name in [
        "../x",
        "owner",
        "owner/name/x.bin",
        "owner/name/../../x.gguf",
    ] {
        let (output, _, err) = run(gossamer(&hub, cache.path()).args(["pull", name]));
        assert_eq!(output.status.code(), Some(2), "{name}: {err}");
    }
    assert!(hub.requests().is_empty());
    let mut command = gossamer(&hub, cache.path());
    let (output, out, err) =
        run(command
            .env("HF_TOKEN", "hf_secret")
            .args(["pull", "owner/name", "--revision", "v1"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("v1") && err.contains("token"), "{err}");
    assert!(!(out + &err).contains("hf_secret"));
    assert_eq!(
        hub.requests()[0].header("authorization"),
        Some("Bearer hf_secret")
    );
}

/// huggingface_hub, as tools/judge_hub.py runs it; what it prints.
fn judge(verb: &str, hub: &Hub, cache: &Path, file: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/judge_hub.py");
    let mut command = Command::new(common::python());
    for proxy in PROXIES {
        command.env_remove(proxy);
    }
    command
        .env("HF_ENDPOINT", &hub.url)
        .env("HF_HUB_OFFLINE", if verb == "read" { "1" } else { "0" });
    command
        .env("HF_HUB_DISABLE_XET", "1")
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env_remove("HF_TOKEN");
    let (output, out, err) = run(command.arg(script).arg(verb).arg(cache).arg(file));
    assert!(output.status.success(), "{verb}: {err}");
    out.trim().to_string()
}

#[test]
fn huggingface_hub_reads_our_cache_and_we_read_its() {
    let (files, bytes) = one_file(1_500_000);
    let hub = Hub::honest(files);
    let ours = tempfile::tempdir().unwrap();
    let (_, path, err) = run(gossamer(&hub, ours.path()).args(["pull", "owner/name"]));
    assert_eq!(
        judge("read", &hub, ours.path(), "m-mxfp4.gguf"),
        path.trim(),
        "{err}"
    );

    let theirs = tempfile::tempdir().unwrap();
    let path = judge("download", &hub, theirs.path(), "m-mxfp4.gguf");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    let found = hub::find_in(theirs.path(), &Spec::parse("owner/name").unwrap(), None).unwrap();
    assert_eq!(found.as_deref(), Some(Path::new(&path)));
    let asked = hub.gets().len();
    let (_, again, err) = run(gossamer(&hub, theirs.path()).args(["pull", "owner/name"]));
    assert_eq!(again.trim(), path, "{err}");
    assert_eq!(
        hub.gets().len(),
        asked,
        "downloaded again what huggingface_hub had brought"
    );
}

#[test]
fn huggingface_hub_shares_a_folders_small_files() {
    let hub = Hub::honest(super::folder());
    let ours = tempfile::tempdir().unwrap();
    let (_, path, err) = run(gossamer(&hub, ours.path()).args(["pull", "owner/name"]));
    let read = judge("read", &hub, ours.path(), "config.json");
    assert_eq!(
        Path::new(&read),
        Path::new(path.trim()).join("config.json"),
        "{err}"
    );
    // What it brought is known by the same name here.
    let theirs = tempfile::tempdir().unwrap();
    judge("download", &hub, theirs.path(), "tokenizer.json");
    run(gossamer(&hub, theirs.path()).args(["pull", "owner/name"]));
    let asked = hub.gets();
    let times = |r: &&super::Request| r.path.ends_with("/tokenizer.json");
    assert_eq!(asked.iter().filter(times).count(), 2, "{asked:?}");
}

#[test]
fn a_pulled_model_is_found_by_its_name() {
    let cache = tempfile::tempdir().unwrap();
    let demo = common::root().join("models/demo/demo.gguf");
    let files = vec![("m.gguf".to_string(), std::fs::read(demo).unwrap())];
    let hub = Hub::honest(files);
    let ask = [
        "run",
        "--model",
        "owner/name",
        "--temperature",
        "0",
        "What is 17 + 25?",
    ];
    let (output, _, err) = run(gossamer(&hub, cache.path()).args(ask));
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("gossamer pull owner/name"), "{err}");
    assert!(
        run(gossamer(&hub, cache.path()).args(["pull", "owner/name"]))
            .0
            .status
            .success()
    );
    let asked = hub.requests().len();
    let (output, out, err) = run(gossamer(&hub, cache.path()).args(ask));
    assert!(
        output.status.success() && out.contains("42"),
        "{out}\n{err}"
    );
    assert_eq!(hub.requests().len(), asked, "a run asked the hub");
}
