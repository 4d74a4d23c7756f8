//! The worker's own tests: Python, mlx-lm and all. The model is a small random one that
//! `tools/make_tiny_models.py` writes in two forms with equal weights; the reference back end judges.

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

#[test]
fn greedy_text_and_logprobs_are_the_reference_back_ends() -> Result<()> {
    let (mlx, native) = (start(|_| ())?, native(&[])?);
    assert!(
        mlx.info().backend.starts_with("mlx ("),
        "{}",
        mlx.info().backend
    );
    // One token, below and beyond the window, and several pieces.
    for len in [1, 2, 40, 130, 300] {
        let ask = || Request {
            logprobs: Some(3),
            prompt_logprobs: Some(2),
            ..request(&tiny().ids[..len], 20, greedy())
        };
        let (ours, theirs) = (collect(mlx.submit(ask())), collect(native.submit(ask())));
        assert_eq!(ours.tokens, theirs.tokens, "{len} tokens");
        assert_eq!(reason(&ours), Some(FinishReason::Length));
        assert_eq!(ours.prompt.len(), len);
        let told = |p: &PromptLogprob| (p.id, p.logprob.unwrap_or(0.0), p.top.clone());
        let pairs = ours.prompt.iter().zip(&theirs.prompt);
        let pairs = pairs.map(|(a, b)| (told(a), told(b)));
        let answers = ours.logprobs.iter().zip(&theirs.logprobs);
        let answers = answers.map(|(a, b)| ((0, a.0, a.1.clone()), (0, b.0, b.1.clone())));
        for (a, b) in pairs.chain(answers) {
            assert_eq!(a.0, b.0);
            assert!((a.1 - b.1).abs() < 1e-3, "{a:?}, expected {b:?}");
            assert_eq!(a.2.len(), b.2.len());
            for (a, b) in a.2.iter().zip(&b.2) {
                assert!(
                    a.0 == b.0 && (a.1 - b.1).abs() < 1e-3,
                    "{a:?}, expected {b:?}"
                );
            }
        }
    }
    let none = collect(mlx.submit(request(&tiny().ids[..50], 0, greedy())));
    assert_eq!(
        (none.tokens.len(), reason(&none)),
        (0, Some(FinishReason::Length))
    );
    Ok(())
}

#[test]
fn logits_and_layers_are_the_reference_back_ends() -> Result<()> {
    let ids = &tiny().ids;
    let model = Arc::new(Checkpoint::open(&tiny().gguf)?.load()?);
    let limits = Limits {
        slots: 1,
        kv_blocks: ids.len().div_ceil(KV_BLOCK),
        batch_tokens: 64,
        snapshots: 0,
    };
    let mut reference = BackendScorer::new(Box::new(Reference::new(model, limits)), 50);
    let mut mlx = MlxScorer::start(&python(), &tiny().mlx, false, &config()?)?;
    assert_eq!(mlx.vocab(), reference.vocab());
    let distance = |a: &[f32], b: &[f32]| {
        assert_eq!(a.len(), b.len());
        let square = |x: f32| f64::from(x) * f64::from(x);
        let apart: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        (apart / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
    };
    let rows = |scorer: &mut dyn Scorer, first| {
        let mut all = Vec::new();
        scorer.score(ids, first, &mut |position, logits| {
            all.push((position, logits.to_vec()));
            Ok(())
        })?;
        anyhow::Ok(all)
    };
    for first in [0, 70, ids.len() - 1] {
        let (ours, theirs) = (rows(&mut mlx, first)?, rows(&mut reference, first)?);
        assert_eq!(ours.len(), ids.len() - first);
        for ((at, a), (position, b)) in ours.iter().zip(&theirs) {
            assert_eq!(at, position);
            let apart = distance(a, b);
            assert!(apart < 1e-4, "{apart} at {at}");
        }
    }
    type Stages = BTreeMap<(Option<usize>, Stage), Vec<f32>>;
    let stages = |scorer: &mut dyn Scorer| {
        let mut all = Stages::new();
        scorer.trace(ids, &mut |piece| {
            let values = all.entry((piece.layer, piece.stage)).or_default();
            assert_eq!(values.len(), piece.start * piece.width);
            values.extend(piece.values);
            Ok(())
        })?;
        anyhow::Ok(all)
    };
    let (ours, theirs) = (stages(&mut mlx)?, stages(&mut reference)?);
    assert_eq!(ours.len(), 2 + 2 * config()?.layers);
    for (stage, values) in &ours {
        let apart = distance(values, theirs.get(stage).context("a stage of its own")?);
        assert!(apart < 1e-4, "{apart} after {stage:?}");
    }
    // A callback that fails leaves nothing behind for the next question.
    let failed = mlx.score(ids, 0, &mut |_, _| anyhow::bail!("enough"));
    assert_eq!(failed.map_err(|e| e.to_string()), Err("enough".to_owned()));
    assert_eq!(rows(&mut mlx, 299)?.len(), 1);
    assert!(mlx.memory()?.active > 1 << 20);
    // YaRN as mlx-lm has it is another model, a little.
    let mut upstream = MlxScorer::start(&python(), &tiny().mlx, true, &config()?)?;
    let (ours, theirs) = (rows(&mut upstream, 299)?, rows(&mut mlx, 299)?);
    assert!(distance(&ours[0].1, &theirs[0].1) > 1e-4);
    Ok(())
}

/// Every rule of the sampler at once and alone: what the worker chooses is what our sampler chooses from
/// the worker's logits.
#[test]
fn the_worker_samples_by_our_rules() -> Result<()> {
    let padding = [7, 8, 400];
    let mlx = start(|options| options.padding = padding.to_vec())?;
    let mut scorer = MlxScorer::start(&python(), &tiny().mlx, false, &config()?)?;
    let plain = Sampling::default();
    let cases = [
        ("temperature 0", greedy()),
        ("plain", plain.clone()),
        (
            "temperature",
            Sampling {
                temperature: 1.7,
                ..plain.clone()
            },
        ),
        (
            "top_k",
            Sampling {
                top_k: 5,
                ..plain.clone()
            },
        ),
        (
            "top_k 1",
            Sampling {
                top_k: 1,
                ..plain.clone()
            },
        ),
        (
            "top_p",
            Sampling {
                top_p: 0.7,
                temperature: 2.0,
                ..plain.clone()
            },
        ),
        (
            "min_p",
            Sampling {
                min_p: 0.05,
                temperature: 3.0,
                ..plain.clone()
            },
        ),
        (
            "all three",
            Sampling {
                top_k: 40,
                top_p: 0.8,
                min_p: 0.02,
                temperature: 2.5,
                ..plain.clone()
            },
        ),
        (
            "repetition",
            Sampling {
                repetition_penalty: 1.8,
                temperature: 0.0,
                ..plain.clone()
            },
        ),
        (
            "presence",
            Sampling {
                presence_penalty: 2.0,
                temperature: 0.5,
                ..plain.clone()
            },
        ),
        (
            "frequency",
            Sampling {
                frequency_penalty: 2.0,
                temperature: 0.5,
                ..plain.clone()
            },
        ),
        (
            "bias",
            Sampling {
                logit_bias: vec![(3, 100.0), (7, 100.0), (9, 99.9)],
                ..plain.clone()
            },
        ),
    ];
    // All of them together in one batch.
    let prompt = |i: usize| &tiny().ids[i..i + 20 + 10 * i];
    let seeded = |i: usize, sampling: &Sampling| Sampling {
        seed: Some(u64::MAX - i as u64),
        ..sampling.clone()
    };
    let ask = |i: usize, sampling| mlx.submit(request(prompt(i), 25, seeded(i, sampling)));
    let events: Vec<_> = cases
        .iter()
        .enumerate()
        .map(|(i, (_, s))| ask(i, s))
        .collect();
    let mut near = 0;
    for (i, (events, (name, sampling))) in events.into_iter().zip(&cases).enumerate() {
        let answer = collect(events);
        assert_eq!(answer.tokens.len(), 25, "{name}: {answer:?}");
        let ids = [prompt(i), &answer.tokens].concat();
        let sampling = seeded(i, sampling);
        let mut ours = Sampler::new(&sampling, 512, &padding, None, prompt(i));
        let mut expected = Vec::new();
        scorer.score(&ids, prompt(i).len() - 1, &mut |_, logits| {
            // The choice that follows the last token was not asked for.
            if expected.len() < answer.tokens.len() && expected == answer.tokens[..expected.len()] {
                expected.push(ours.sample(logits, &Mask::Any)?.id);
            }
            Ok(())
        })?;
        // Rounding may move a draw over a border, or a token over a limit: hardly ever.
        near += usize::from(expected != answer.tokens);
        assert!(
            answer.tokens.iter().all(|id| !padding.contains(id)),
            "{name}"
        );
        // Alone it is the same as among the others.
        let alone = collect(mlx.submit(request(prompt(i), 25, sampling)));
        near += usize::from(alone.tokens != answer.tokens);
        if name.starts_with("temperature 0") || *name == "repetition" {
            assert_eq!(
                (expected, &alone.tokens),
                (answer.tokens.clone(), &answer.tokens),
                "{name}"
            );
        }
    }
    assert!(near <= 1, "{near} of {} answers differ", 2 * cases.len());
    Ok(())
}

/// Allows one token, the next one of a list; slow where it is told to be.
struct Script {
    next: VecDeque<u32>,
    gate: Option<mpsc::Receiver<()>>,
    fails: bool,
}

impl MaskSource for Script {
    fn mask(&mut self) -> Result<Mask, String> {
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
        }
        match self.next.pop_front() {
            Some(id) if id % 3 == 0 => Ok(Mask::Only(Arc::new([id]))),
            Some(id) if id % 3 == 1 => {
                let mut words = vec![0; 16];
                words[id as usize / 32] = 1 << (id % 32);
                Ok(Mask::Bits(words))
            }
            Some(id) => Ok(Mask::Except(
                (0..512).filter(|&other| other != id).collect(),
            )),
            None if self.fails => Err("the rules are over".into()),
            None => Ok(Mask::Any),
        }
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        Ok(())
    }
}

#[test]
fn masks_are_kept_to_and_slow_ones_hold_up_nobody_else() -> Result<()> {
    let mlx = start(|_| ())?;
    let wanted: Vec<u32> = (0..12).map(|i| i * 37 % 512).collect();
    let masked = |gate, fails, list: &[u32]| Request {
        constraint: Some(Box::new(Script {
            next: list.iter().copied().collect(),
            gate,
            fails,
        })),
        ..request(&tiny().ids[..30], 12, greedy())
    };
    let answer = collect(mlx.submit(masked(None, false, &wanted)));
    assert_eq!(answer.tokens, wanted);
    // One that has to wait for each mask, and others that come and go meanwhile.
    let (permit, gate) = mpsc::channel();
    let mut slow = mlx.submit(masked(Some(gate), false, &wanted));
    let alone = collect(mlx.submit(request(&tiny().ids[..200], 30, greedy())));
    assert_eq!(alone.tokens.len(), 30);
    for &id in &wanted {
        permit.send(())?;
        let token = slow
            .by_ref()
            .find(|event| matches!(event, Event::Token { .. }));
        assert!(
            matches!(token, Some(Event::Token { id: got, .. }) if got == id),
            "{token:?}"
        );
        let beside = collect(mlx.submit(request(&tiny().ids[..200], 30, greedy())));
        assert_eq!(beside.tokens, alone.tokens);
    }
    let last = slow.last();
    assert!(matches!(last, Some(Event::Finish { .. })), "{last:?}");
    // Rules that end before the answer does.
    let failed = collect(mlx.submit(masked(None, true, &wanted[..3])));
    assert_eq!(failed.tokens, wanted[..3]);
    assert_eq!(
        failed.failure,
        Some(Failure::Invalid("the rules are over".into()))
    );
    // A mask that allows nothing but padding.
    let mlx = start(|options| options.padding = vec![5])?;
    let failed = collect(mlx.submit(masked(None, false, &[5])));
    assert!(
        matches!(&failed.failure, Some(Failure::Broken(why)) if why.contains("allows no token")),
        "{failed:?}"
    );
    Ok(())
}

#[test]
fn prefixes_are_kept_and_change_no_answer() -> Result<()> {
    let mlx = start(|_| ())?;
    let ids = &tiny().ids;
    let ask = |len| collect(mlx.submit(request(&ids[..len], 15, greedy())));
    let (first, again) = (ask(220), ask(220));
    assert_eq!(first.end.map(|e| e.1.cached_tokens), Some(0));
    assert_eq!(again.end.map(|e| e.1.cached_tokens), Some(219));
    assert_eq!(first.tokens, again.tokens);
    // What went on from a prefix left it as it was.
    assert_eq!(ask(220).tokens, first.tokens);
    // Longer: it goes on from there. Shorter: the window can't go back.
    let longer = ask(300);
    assert_eq!(longer.end.map(|e| e.1.cached_tokens), Some(219));
    let mut shorter = mlx.submit(request(&ids[..150], 1, greedy()));
    let miss = shorter.find_map(|event| match event {
        Event::Prefill { miss, .. } => Some(miss),
        _ => None,
    });
    let miss = miss.flatten().context("all was cached")?;
    assert_eq!((miss.at, miss.reason), (149, MissReason::Window));
    // An agent's next turn: prompt and answer, up to a stop token, and more.
    let stop = Request {
        stop_ids: vec![first.tokens[9]],
        ..request(&ids[..220], 100, greedy())
    };
    let turn = collect(mlx.submit(stop));
    assert_eq!(reason(&turn), Some(FinishReason::Stop));
    let next = [&ids[..220], &turn.tokens, &ids[..10]].concat();
    let next = collect(mlx.submit(request(&next, 5, greedy())));
    assert_eq!(
        next.end.map(|e| e.1.cached_tokens),
        Some(220 + turn.tokens.len())
    );
    let stats = mlx.stats();
    assert!(
        stats.cached_tokens >= 219 * 4 && stats.finished == 7,
        "{stats:?}"
    );
    // Without a cache nothing is kept.
    let mlx = start(|options| options.cache_bytes = 0)?;
    for _ in 0..2 {
        let answer = collect(mlx.submit(request(&ids[..220], 15, greedy())));
        assert_eq!(answer.end.map(|e| e.1.cached_tokens), Some(0));
        assert_eq!(answer.tokens, first.tokens);
    }
    let anew = collect(mlx.submit(request(&ids[..300], 15, greedy())));
    assert_eq!(anew.tokens, longer.tokens);
    Ok(())
}

#[test]
fn requests_end_as_the_seam_says() -> Result<()> {
    let mlx = start(|options| {
        (options.context, options.slots, options.max_waiting) = (200, 2, 1);
    })?;
    let ids = &tiny().ids;
    let whole = |tokens: Option<usize>| Request {
        max_tokens: tokens,
        ..request(&ids[..150], 0, greedy())
    };
    let full = collect(mlx.submit(whole(None)));
    let (reason_, usage) = full.end.context("no end")?;
    assert_eq!(
        (reason_, full.tokens.len(), usage.context_full),
        (FinishReason::Length, 50, true)
    );
    let full = collect(mlx.submit(whole(Some(50))));
    assert!(full.end.is_some_and(|(_, usage)| !usage.context_full));
    let refused = |request| collect(mlx.submit(request)).failure;
    let long = Failure::ContextLength {
        prompt: 200,
        context: 200,
    };
    assert_eq!(refused(request(&ids[..200], 1, greedy())), Some(long));
    let bad = |request| matches!(refused(request), Some(Failure::Invalid(_)));
    assert!(bad(request(&[], 1, greedy())) && bad(request(&[512], 1, greedy())));
    let hot = Sampling {
        temperature: 1e9,
        ..greedy()
    };
    assert!(bad(request(&[1], 1, hot)));
    // Two run, one waits, one is too many; who leaves makes room.
    let endless = || mlx.submit(request(&ids[..20], 170, greedy()));
    let (mut one, two, three, four) = (endless(), endless(), endless(), endless());
    assert!(matches!(
        collect(four).failure,
        Some(Failure::Busy { waiting: 1, .. })
    ));
    until_token(&mut one);
    drop(one);
    assert_eq!(reason(&collect(three)), Some(FinishReason::Length));
    assert_eq!(reason(&collect(two)), Some(FinishReason::Length));
    let stopped = request(&ids[..20], 170, greedy());
    let cancel = stopped.cancel.clone();
    let mut events = mlx.submit(stopped);
    until_token(&mut events);
    cancel.cancel();
    let last = events.last();
    assert!(
        matches!(
            last,
            Some(Event::Finish {
                reason: FinishReason::Cancelled,
                ..
            })
        ),
        "{last:?}"
    );
    let mut events = endless();
    until_token(&mut events);
    drop(mlx);
    assert_eq!(events.last(), Some(Event::Error(Failure::Stopped)));
    Ok(())
}

/// Sends the worker a signal.
#[cfg(unix)]
fn signal(mlx: &MlxEngine, signal: rustix::process::Signal) -> Result<u32> {
    let id = mlx.worker().context("no worker")?;
    let pid = rustix::process::Pid::from_raw(id as i32).context("no process id")?;
    rustix::process::kill_process(pid, signal)?;
    Ok(id)
}

#[cfg(unix)]
#[test]
fn a_worker_that_is_killed_fails_its_requests_and_is_replaced() -> Result<()> {
    let mlx = start(|options| options.slots = 3)?;
    let ids = &tiny().ids;
    let ask = |tokens| mlx.submit(request(&ids[..50], tokens, greedy()));
    let expected = collect(ask(5)).tokens;
    let mut live: Vec<_> = (0..3).map(|_| ask(400)).collect();
    live.iter_mut().for_each(until_token);
    let waits = ask(5);
    let killed = signal(&mlx, rustix::process::Signal::KILL)?;
    for events in live {
        match events.last() {
            Some(Event::Error(Failure::Unavailable { message, .. })) => {
                assert!(message.contains("signal 9"), "{message}")
            }
            other => panic!("{other:?}"),
        }
    }
    // It was not in the worker: the next one answers.
    assert_eq!(collect(waits).tokens, expected);
    assert_eq!(collect(ask(5)).tokens, expected);
    assert_ne!(mlx.worker(), Some(killed));
    #[cfg(target_os = "linux")]
    assert!(
        !Path::new(&format!("/proc/{killed}")).exists(),
        "{killed} is a zombie"
    );
    let worker = mlx.worker().context("no worker")?;
    drop(mlx);
    #[cfg(target_os = "linux")]
    assert!(
        !Path::new(&format!("/proc/{worker}")).exists(),
        "{worker} is left"
    );
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_worker_that_hangs_is_replaced_and_one_that_keeps_dying_is_not() -> Result<()> {
    let mlx = start(|options| {
        (options.patience.ping, options.patience.pong) = (Duration::from_millis(50), PATIENCE / 12);
    })?;
    let ids = &tiny().ids;
    let ask = || mlx.submit(request(&ids[..50], 400, greedy()));
    let mut live = ask();
    until_token(&mut live);
    signal(&mlx, rustix::process::Signal::STOP)?;
    let Some(Event::Error(Failure::Unavailable { message, .. })) = live.last() else {
        panic!("the hung worker's request ended otherwise");
    };
    assert!(message.contains("no sign of life"), "{message}");
    for _ in 0..2 {
        let mut live = ask();
        until_token(&mut live);
        signal(&mlx, rustix::process::Signal::KILL)?;
        assert!(matches!(
            live.last(),
            Some(Event::Error(Failure::Unavailable { .. }))
        ));
    }
    match collect(ask()).failure {
        Some(Failure::Unavailable {
            message,
            retry_after,
        }) => {
            assert!(message.contains("too often"), "{message}");
            assert!(retry_after > Duration::from_secs(60), "{retry_after:?}");
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

#[test]
fn what_can_not_be_loaded_is_told_by_its_last_words() -> Result<()> {
    let wrong = |change: &dyn Fn(&mut MlxOptions)| match start(change) {
        Ok(_) => String::new(),
        Err(error) => format!("{error:#}"),
    };
    let told = wrong(&|options| options.folder = PathBuf::from("/nowhere"));
    assert!(told.contains("no config.json in it"), "{told}");
    let told = wrong(&|options| options.python = PathBuf::from("/bin/ls"));
    assert!(told.contains("exit code 2"), "{told}");
    let broken = tempfile::tempdir()?;
    for (file, to) in [("config.json", 1.0), ("model.safetensors", 0.5)] {
        let bytes = std::fs::read(tiny().mlx.join(file))?;
        let end = (bytes.len() as f64 * to) as usize;
        std::fs::write(broken.path().join(file), &bytes[..end])?;
    }
    let told = wrong(&|options| options.folder = broken.path().to_path_buf());
    assert!(told.contains("the MLX worker failed"), "{told}");
    let hello = hello(&python())?;
    assert_eq!(hello.protocol, frame::PROTOCOL);
    Ok(())
}
