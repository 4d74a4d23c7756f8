//! Pulls against a hub that cuts connections, lies about sizes and hashes, and flips bytes.

#[path = "../common/mod.rs"]
mod common;
mod program;
mod refusals;
mod server;

use gossamer::hub::{self, Event, Settings, Spec};
use server::{COMMIT, Files, Hub, Reply, Request, serve};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Fresh bytes each run; the seed is printed, so that a failure can be repeated.
pub fn fresh_bytes(len: usize) -> Vec<u8> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let mut x = now.as_nanos() as u64 | 1;
    println!("seed {x}");
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A repository with one model, and that model's bytes.
pub fn one_file(len: usize) -> (Files, Vec<u8>) {
    let bytes = fresh_bytes(len);
    (
        vec![
            ("README.md".into(), b"# m".to_vec()),
            ("m-mxfp4.gguf".into(), bytes.clone()),
        ],
        bytes,
    )
}

fn settings(hub: &Hub, cache: &Path) -> Settings {
    Settings {
        endpoint: hub.url.clone(),
        token: None,
        cache: cache.into(),
        offline: false,
        backoff: Duration::from_millis(1),
        attempts: 4,
    }
}

/// Pulls `name` into `cache`; the path or the whole error text.
fn pull(hub: &Hub, cache: &Path, name: &str) -> Result<PathBuf, String> {
    let spec = Spec::parse(name).unwrap();
    hub::pull(
        &settings(hub, cache),
        &spec,
        "main",
        &AtomicBool::new(false),
        &mut |_| {},
    )
    .map_err(|e| format!("{e:#}"))
}

/// Every file under the cache but the locks, relative.
pub fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_none_or(|e| e != "lock") {
                found.push(
                    entry
                        .path()
                        .strip_prefix(root)
                        .unwrap()
                        .to_string_lossy()
                        .into_owned(),
                );
            }
        }
    }
    found.sort();
    found
}

/// The one `.incomplete` file in the cache.
pub fn incomplete(cache: &Path) -> PathBuf {
    let found: Vec<_> = tree(cache)
        .into_iter()
        .filter(|f| f.ends_with(".incomplete"))
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    cache.join(&found[0])
}

fn is_body(request: &Request) -> bool {
    request.method == "GET" && request.path.ends_with(".gguf")
}

fn is_head(request: &Request) -> bool {
    request.method == "HEAD"
}

#[test]
fn pull_places_a_checked_file_where_other_tools_find_it() {
    let cache = tempfile::tempdir().unwrap();
    let (files, bytes) = one_file(700_001);
    let hub = Hub::honest(files);
    let path = pull(&hub, cache.path(), "owner/name").unwrap();
    let root = cache.path().join("models--owner--name");
    assert_eq!(
        path,
        root.join("snapshots").join(COMMIT).join("m-mxfp4.gguf")
    );
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(
        std::fs::read_to_string(root.join("refs/main")).unwrap(),
        COMMIT
    );
    if cfg!(unix) {
        assert!(
            std::fs::read_link(&path)
                .unwrap()
                .starts_with("../../blobs")
        );
    }
    let found = hub::find_in(cache.path(), &Spec::parse("owner/name").unwrap(), None).unwrap();
    assert_eq!(found, Some(path.clone()));
    assert_eq!(pull(&hub, cache.path(), "owner/name").unwrap(), path);
    assert_eq!(hub.gets().len(), 1, "the second pull downloaded again");
}

#[test]
fn cut_connections_are_resumed_where_they_ended() {
    let cache = tempfile::tempdir().unwrap();
    let (files, bytes) = one_file(900_000);
    let hub = Hub::start(files, |request, before, right| match before {
        0..3 if is_body(request) => right.cut(100_000 + before * 77_777),
        _ => right,
    });
    let path = pull(&hub, cache.path(), "owner/name/m-mxfp4.gguf").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    let offsets: Vec<usize> = hub.gets().iter().map(Request::offset).collect();
    assert_eq!(offsets, [0, 100_000, 277_777, 533_331]);
    assert!(
        tree(cache.path())
            .iter()
            .all(|f| !f.ends_with(".incomplete"))
    );
}

#[test]
fn a_dead_server_is_given_up_and_the_part_kept() {
    let cache = tempfile::tempdir().unwrap();
    let (files, bytes) = one_file(300_000);
    let hub = Hub::start(files.clone(), |request, before, right| match before {
        0 if is_body(request) => right.cut(200_000),
        _ if is_body(request) => right.cut(0),
        _ => right,
    });
    let told = pull(&hub, cache.path(), "owner/name").unwrap_err();
    assert!(
        told.contains("gave up after 4 attempts") && told.contains("resume"),
        "{told}"
    );
    assert_eq!(hub.gets().len(), 5);
    assert_eq!(
        std::fs::metadata(incomplete(cache.path())).unwrap().len(),
        200_000
    );
    let hub = Hub::honest(files);
    assert_eq!(
        std::fs::read(pull(&hub, cache.path(), "owner/name").unwrap()).unwrap(),
        bytes
    );
    assert_eq!(hub.gets()[0].offset(), 200_000);
}

#[test]
fn a_server_without_ranges_starts_again() {
    let cache = tempfile::tempdir().unwrap();
    let (files, bytes) = one_file(400_000);
    let whole = bytes.clone();
    let hub = Hub::start(files, move |request, before, right| match before {
        0 if is_body(request) => right.cut(150_000),
        _ if is_body(request) => Reply {
            status: 200,
            body: whole.clone(),
            ..right
        }
        .without("content-range"),
        _ => right,
    });
    assert_eq!(
        std::fs::read(pull(&hub, cache.path(), "owner/name").unwrap()).unwrap(),
        bytes
    );
}

#[test]
fn a_server_without_ranges_that_always_cuts_ends_the_pull() {
    let cache = tempfile::tempdir().unwrap();
    let (files, bytes) = one_file(100_000);
    let hub = Hub::start(files, move |request, _, right| match is_body(request) {
        true => Reply {
            status: 200,
            body: bytes.clone(),
            ..right
        }
        .without("content-range")
        .cut(50_000),
        false => right,
    });
    let told = pull(&hub, cache.path(), "owner/name").unwrap_err();
    assert!(told.contains("gave up"), "{told}");
}

#[test]
fn a_busy_server_is_asked_again() {
    let cache = tempfile::tempdir().unwrap();
    let (files, bytes) = one_file(10_000);
    let hub = Hub::start(files, |_, before, right| match before {
        0 => Reply::new(429, "").with("retry-after", 0),
        1 => Reply::new(503, ""),
        _ => right,
    });
    assert_eq!(
        std::fs::read(pull(&hub, cache.path(), "owner/name").unwrap()).unwrap(),
        bytes
    );
}

#[test]
fn split_files_come_with_all_parts() {
    let cache = tempfile::tempdir().unwrap();
    let files: Files = (1..=3)
        .map(|i| {
            (
                format!("q/m-0000{i}-of-00003.gguf"),
                fresh_bytes(10_000 + i),
            )
        })
        .collect();
    let hub = Hub::honest(files.clone());
    for name in ["owner/name", "owner/name/q/m-00002-of-00003.gguf"] {
        let path = pull(&hub, cache.path(), name).unwrap();
        assert!(
            path.ends_with("q/m-00001-of-00003.gguf"),
            "{}",
            path.display()
        );
        for (file, bytes) in &files {
            assert_eq!(
                &std::fs::read(path.parent().unwrap().parent().unwrap().join(file)).unwrap(),
                bytes
            );
        }
    }
    assert_eq!(hub.gets().len(), 3);
}

#[test]
fn the_token_goes_to_the_hub_only() {
    let cache = tempfile::tempdir().unwrap();
    let (files, bytes) = one_file(50_000);
    let content = bytes.clone();
    let store = Hub::start(Vec::new(), move |request, _, _| {
        serve(request, &content).without("x-repo-commit")
    });
    let location = format!("{}/store/blob?signature=s", store.url);
    let hub = Hub::start(files, move |request, _, right| {
        match request.path.starts_with("/api/") {
            true => right,
            false => Reply {
                status: 302,
                body: Vec::new(),
                ..right
            }
            .with("location", &location),
        }
    });
    let settings = Settings {
        token: Some("hf_secret".into()),
        ..settings(&hub, cache.path())
    };
    assert!(!format!("{settings:?}").contains("hf_secret"));
    let spec = Spec::parse("owner/name").unwrap();
    let path = hub::pull(
        &settings,
        &spec,
        "main",
        &AtomicBool::new(false),
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    assert!(hub.requests().len() >= 3);
    assert!(
        hub.requests()
            .iter()
            .all(|r| r.header("authorization") == Some("Bearer hf_secret"))
    );
    assert_eq!(store.requests().len(), 1);
    assert!(
        store
            .requests()
            .iter()
            .all(|r| r.header("authorization").is_none()),
        "the token left the hub"
    );
}

#[test]
fn two_pulls_at_once_download_once() {
    let cache = tempfile::tempdir().unwrap();
    let (files, bytes) = one_file(3_000_000);
    let hub = Hub::honest(files);
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| pull(&hub, cache.path(), "owner/name").unwrap()))
            .collect();
        for one in pulls {
            assert_eq!(std::fs::read(one.join().unwrap()).unwrap(), bytes);
        }
    });
    assert_eq!(hub.gets().len(), 1);
}

#[test]
fn a_wish_to_stop_keeps_the_part() {
    let cache = tempfile::tempdir().unwrap();
    let (files, bytes) = one_file(2_000_000);
    let hub = Hub::honest(files);
    let stop = AtomicBool::new(false);
    let spec = Spec::parse("owner/name").unwrap();
    let told = hub::pull(
        &settings(&hub, cache.path()),
        &spec,
        "main",
        &stop,
        &mut |event| {
            if matches!(event, Event::Progress { .. }) {
                stop.store(true, Ordering::Relaxed);
            }
        },
    );
    assert!(told.unwrap_err().to_string().contains("resume"));
    let kept = std::fs::metadata(incomplete(cache.path())).unwrap().len() as usize;
    assert!(kept > 0 && kept < bytes.len());
    assert_eq!(
        std::fs::read(pull(&hub, cache.path(), "owner/name").unwrap()).unwrap(),
        bytes
    );
    assert_eq!(hub.gets()[1].offset(), kept);
}

#[test]
fn variables_are_those_of_every_hugging_face_tool() {
    let read = |vars: &'static [(&str, &str)]| {
        Settings::from_vars(move |name| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| v.to_string())
        })
    };
    let none = read(&[("HOME", "/h")]).unwrap();
    assert_eq!(none.endpoint, "https://huggingface.co");
    assert_eq!(none.cache, Path::new("/h/.cache/huggingface/hub"));
    assert!(!none.offline && none.token.is_none());
    assert_eq!(
        read(&[("XDG_CACHE_HOME", "/x")]).unwrap().cache,
        Path::new("/x/huggingface/hub")
    );
    let set = read(&[
        ("HF_HOME", "/f"),
        ("HF_HUB_OFFLINE", "1"),
        ("HF_TOKEN", " t\n"),
        ("HF_ENDPOINT", "http://e/"),
    ])
    .unwrap();
    assert_eq!(
        (set.cache.as_path(), set.offline, set.token.as_deref()),
        (Path::new("/f/hub"), true, Some("t"))
    );
    assert_eq!(set.endpoint, "http://e");
    assert_eq!(
        read(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")])
            .unwrap()
            .cache,
        Path::new("/c")
    );
    assert!(read(&[]).is_err() && read(&[("HOME", "/h"), ("HF_ENDPOINT", "e")]).is_err());
    assert!(read(&[("HOME", "/h"), ("HF_TOKEN", "a\r\nX: y")]).is_err());
}

/// A repository without GGUF files, as OpenAI's and MLX's are.
fn folder() -> Files {
    let index = r#"{"weight_map":{"a":"model-00000-of-00001.safetensors","b":"model-00001-of-00001.safetensors"}}"#;
    [
        ("README.md", b"# m".to_vec()),
        ("config.json", b"{\"model_type\":\"gpt_oss\"}".to_vec()),
        ("tokenizer.json", fresh_bytes(300_000)),
        ("model.safetensors.index.json", index.into()),
        ("model-00000-of-00001.safetensors", fresh_bytes(400_000)),
        ("model-00001-of-00001.safetensors", fresh_bytes(10)),
        ("original/model.safetensors", fresh_bytes(10)),
    ]
    .map(|(name, bytes)| (name.to_string(), bytes))
    .into()
}

#[test]
fn a_folder_of_safetensors_comes_whole() {
    let cache = tempfile::tempdir().unwrap();
    let files = folder();
    let hub = Hub::honest(files.clone());
    let path = pull(&hub, cache.path(), "owner/name").unwrap();
    assert_eq!(
        path,
        cache
            .path()
            .join("models--owner--name/snapshots")
            .join(COMMIT)
    );
    for (name, bytes) in &files {
        let here = std::fs::read(path.join(name)).ok();
        let wanted = name != "README.md" && !name.starts_with("original/");
        assert_eq!(here.as_ref(), wanted.then_some(bytes), "{name}");
    }
    let spec = Spec::parse("owner/name").unwrap();
    let found = || hub::find_in(cache.path(), &spec, None).unwrap();
    assert_eq!(found(), Some(path.clone()));
    std::fs::remove_file(path.join("model-00001-of-00001.safetensors")).unwrap();
    assert_eq!(found(), None, "half a folder was found");
}

#[test]
fn a_small_file_is_checked_too() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(folder(), |request, _, mut right| {
        if request.method == "GET" && request.path.ends_with("/tokenizer.json") {
            right.body[1000] ^= 1;
        }
        right
    });
    let told = pull(&hub, cache.path(), "owner/name").unwrap_err();
    assert!(
        told.contains("tokenizer.json arrived damaged: its git hash"),
        "{told}"
    );
    let left = tree(cache.path());
    assert!(!left.iter().any(|f| f.contains("tokenizer")), "{left:?}");
}
