//! The worker's own tests: Python, mlx-lm and all. The model is a small random one that
//! `tools/make_tiny_models.py` writes in two forms with equal weights; the reference back end judges.

mod answers;
mod failures;
mod room;
mod rope;
mod seam;

use super::*;
use crate::{
    backend::{KV_BLOCK, Limits, reference::Reference},
    checkpoint::Checkpoint,
    config::Config,
    engine::{
        Engine, EngineOptions, Event, Events, Failure, FinishReason, MissReason, NativeEngine,
        PromptLogprob, Request, Usage,
    },
    sampler::{Mask, MaskSource, Sampler, Sampling},
    score::{BackendScorer, Scorer},
    trace::Stage,
};
use anyhow::{Context, Result};
use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock, mpsc},
    time::Duration,
};

/// For what should come at once.
const PATIENCE: Duration = Duration::from_secs(120);

/// The judges' Python, which `tools/test.sh` installs.
fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let given = std::env::var_os("GOSSAMER_PYTHON").map(PathBuf::from);
    let python = given.unwrap_or_else(|| root.join(".venv/bin/python3"));
    assert!(
        python.exists(),
        "{} is missing: run ./tools/test.sh, which installs it",
        python.display()
    );
    python
}

/// An executable `python3` in `folder`: this shell script. Written by another process: nobody who forks meanwhile
/// can hold it open, which would keep it from being run.
#[cfg(unix)]
pub(super) fn script(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("python3");
    let write = r#"printf '#!/bin/sh\n%s\n' "$2" > "$1" && chmod +x "$1""#;
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", write, "sh"]).arg(&path).arg(text);
    assert!(shell.status().is_ok_and(|written| written.success()));
    path
}

/// The judges' Python, that runs `code` before it becomes a worker: to make MLX fail.
#[cfg(unix)]
fn rigged(folder: &Path, code: &str) -> PathBuf {
    let boot = "import sys\nboot, sys.argv = sys.argv[3], ['-c', *sys.argv[4:]]\n";
    let file = folder.join("rig.py");
    std::fs::write(&file, format!("{boot}{code}\nexec(boot)\n")).expect("written");
    let (python, file) = (python(), file.display());
    script(
        folder,
        &format!("exec '{}' '{file}' \"$@\"", python.display()),
    )
}

struct Tiny {
    _folder: tempfile::TempDir,
    mlx: PathBuf,
    gguf: PathBuf,
    ids: Vec<u32>,
}

/// The model, made once.
fn tiny() -> &'static Tiny {
    static TINY: OnceLock<Tiny> = OnceLock::new();
    TINY.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/make_tiny_models.py");
        let made = Command::new(python())
            .arg(script)
            .arg(folder.path())
            .status();
        assert!(made.is_ok_and(|made| made.success()), "no model was made");
        let text = std::fs::read(folder.path().join("ids.json")).expect("ids.json");
        Tiny {
            mlx: folder.path().join("mlx"),
            gguf: folder.path().join("tiny.gguf"),
            ids: serde_json::from_slice(&text).expect("token ids"),
            _folder: folder,
        }
    })
}

fn config() -> Result<Config> {
    Ok(Checkpoint::open(&tiny().gguf)?.config()?)
}

fn options() -> MlxOptions {
    MlxOptions::new(python(), tiny().mlx.clone())
}

fn start(change: impl FnOnce(&mut MlxOptions)) -> Result<MlxEngine> {
    let mut options = options();
    change(&mut options);
    MlxEngine::start(&config()?, options)
}

fn native(padding: &[u32]) -> Result<NativeEngine> {
    let model = Arc::new(Checkpoint::open(&tiny().gguf)?.load()?);
    let limits = Limits {
        slots: 2,
        kv_blocks: 1024usize.div_ceil(KV_BLOCK),
        batch_tokens: 64,
        snapshots: 0,
    };
    let options = EngineOptions {
        padding: padding.to_vec(),
        ..EngineOptions::default()
    };
    NativeEngine::start(Box::new(Reference::new(model, limits)), options)
}

fn greedy() -> Sampling {
    Sampling {
        temperature: 0.0,
        ..Sampling::default()
    }
}

fn request(prompt: &[u32], tokens: usize, sampling: Sampling) -> Request {
    Request {
        tokens: prompt.to_vec(),
        max_tokens: Some(tokens),
        sampling,
        ..Request::default()
    }
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<(f32, Vec<(u32, f32)>)>,
    prompt: Vec<PromptLogprob>,
    end: Option<(FinishReason, Usage)>,
    failure: Option<Failure>,
}

/// All of a request's events, whose order is checked.
fn collect(events: Events) -> Answer {
    let mut answer = Answer::default();
    let (mut queued, mut done, mut cached) = (false, None, 0);
    for event in events {
        assert!(answer.end.is_none() && answer.failure.is_none());
        match event {
            Event::Queued => {
                assert!(!queued && done.is_none());
                queued = true;
            }
            Event::Prefill {
                done: now,
                total,
                cached: saved,
                miss,
            } => {
                assert!(queued && answer.tokens.is_empty());
                assert!(done.is_none_or(|then| now > then) && now <= total, "{now}");
                assert!(miss.is_some() || saved + 1 >= total);
                (done, cached) = (Some(now), saved);
            }
            Event::PromptLogprobs(some) => {
                assert!(done.is_some() && answer.tokens.is_empty());
                answer.prompt.extend(some);
            }
            Event::Token { id, logprob, top } => {
                assert!(done.is_some());
                answer.tokens.push(id);
                answer
                    .logprobs
                    .extend(logprob.map(|logprob| (logprob, top)));
            }
            Event::Finish { reason, usage } => {
                assert_eq!(usage.generated_tokens, answer.tokens.len());
                assert_eq!(usage.cached_tokens, cached);
                answer.end = Some((reason, usage));
            }
            Event::Error(failure) => answer.failure = Some(failure),
        }
    }
    answer
}

fn reason(answer: &Answer) -> Option<FinishReason> {
    answer.end.map(|(reason, _)| reason)
}

/// Waits for the first token.
fn until_token(events: &mut Events) {
    let last = events.by_ref().find(|event| {
        matches!(
            event,
            Event::Token { .. } | Event::Finish { .. } | Event::Error(_)
        )
    });
    assert!(matches!(last, Some(Event::Token { .. })), "{last:?}");
}
