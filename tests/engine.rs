//! The native engine over a back end that checks every rule of the seam and whose logits depend on
//! each token of the sequence through its paged cache: a wrong position, block or prefix shows.

use gossamer::{
    backend::{Backend, Batch, KV_BLOCK, Limits, LogitRows, Work},
    config::{Config, Rope},
    engine::{
        Cancel, Engine, EngineOptions, Event, Events, Failure, FinishReason, NativeEngine, Request,
        Usage,
    },
    sampler::Sampling,
};
use proptest::prelude::*;
use std::sync::{Arc, Mutex, mpsc};

const VOCAB: usize = 97;
const CONTEXT: usize = 200;
const PIECE: usize = 16;

/// What the back end saw, shared with the test.
#[derive(Default)]
struct Seen {
    work: Work,
    /// Lengths of the segments, in order.
    pieces: Vec<usize>,
    /// Fail the call with this number.
    fail_at: Option<usize>,
    /// Wait for this many permits before each call.
    gate: Option<mpsc::Receiver<()>>,
}

struct Paged {
    config: Config,
    /// One token a place.
    cache: Vec<u32>,
    len: usize,
    /// How far `rewind` may go back.
    slack: usize,
    logits: Vec<f32>,
    seen: Arc<Mutex<Seen>>,
}

impl Paged {
    fn new(slack: usize) -> (Box<Paged>, Arc<Mutex<Seen>>) {
        let rope = Rope {
            theta: 150_000.0,
            factor: 1.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            rounded: false,
        };
        let config = Config {
            name: "paged".into(),
            layers: 2,
            hidden: 32,
            heads: 1,
            kv_heads: 1,
            head_dim: 32,
            experts: 1,
            experts_used: 1,
            expert_width: 32,
            vocab: VOCAB,
            context: CONTEXT,
            window: 8,
            rms_eps: 1e-5,
            swiglu_limit: 7.0,
            rope,
        };
        let seen = Arc::new(Mutex::new(Seen::default()));
        let backend = Paged {
            config,
            cache: vec![u32::MAX; CONTEXT.div_ceil(KV_BLOCK) * KV_BLOCK],
            len: 0,
            slack,
            logits: vec![f32::NAN; VOCAB],
            seen: seen.clone(),
        };
        (Box::new(backend), seen)
    }
}

/// Logits of a whole sequence: what the engine must arrive at on every path.
fn logits_of(sequence: &[u32]) -> Vec<f32> {
    let mut hash = 1u64;
    for &token in sequence {
        hash = (hash ^ u64::from(token))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(23);
    }
    (0..VOCAB as u64)
        .map(|i| {
            let h = (hash ^ i).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((h >> 40) % 4001) as f32 / 1000.0
        })
        .collect()
}

impl Backend for Paged {
    fn config(&self) -> &Config {
        &self.config
    }
    fn describe(&self) -> String {
        "a test's paged back end".into()
    }
    fn limits(&self) -> Limits {
        Limits {
            slots: 1,
            kv_blocks: CONTEXT.div_ceil(KV_BLOCK),
            batch_tokens: PIECE,
            snapshots: 0,
        }
    }
    fn forward(&mut self, batch: &Batch) -> anyhow::Result<()> {
        batch.check(&self.config, &self.limits())?;
        let [segment] = &batch.segments[..] else {
            anyhow::bail!("one segment at a time")
        };
        anyhow::ensure!(
            segment.start == 0 || segment.start == self.len,
            "start {} in a cache of {}",
            segment.start,
            self.len
        );
        let gate = self.seen.lock().unwrap().gate.take();
        if let Some(gate) = gate {
            let _ = gate.recv();
            self.seen.lock().unwrap().gate = Some(gate);
        }
        let mut seen = self.seen.lock().unwrap();
        seen.pieces.push(segment.tokens.len());
        anyhow::ensure!(
            seen.fail_at != Some(seen.pieces.len()),
            "the device fell off the bus"
        );
        seen.work.token_rows += segment.tokens.len() as u64;
        let place = |p: usize| segment.blocks[p / KV_BLOCK] as usize * KV_BLOCK + p % KV_BLOCK;
        for (i, &token) in segment.tokens.iter().enumerate() {
            self.cache[place(segment.start + i)] = token;
        }
        self.len = segment.start + segment.tokens.len();
        self.logits.fill(f32::NAN);
        match segment.logits {
            LogitRows::None => {}
            LogitRows::Last => {
                seen.work.logit_rows += 1;
                let sequence: Vec<u32> = (0..self.len).map(|p| self.cache[place(p)]).collect();
                self.logits = logits_of(&sequence);
            }
            LogitRows::All => anyhow::bail!("nobody asked for all"),
        }
        Ok(())
    }
    fn rewind(&mut self, _slot: usize, len: usize) -> usize {
        let back = self.len - len;
        self.len = if back <= self.slack { len } else { 0 };
        self.len
    }
    fn copy_block(&mut self, _from: u32, _to: u32) -> anyhow::Result<()> {
        anyhow::bail!("nobody shares blocks")
    }
    fn save(&mut self, _slot: usize, _snapshot: usize) -> anyhow::Result<()> {
        anyhow::bail!("room for no snapshot")
    }
    fn restore(&mut self, _slot: usize, _snapshot: usize) -> anyhow::Result<()> {
        anyhow::bail!("room for no snapshot")
    }
    fn batch_invariant(&self) -> bool {
        true
    }
    fn logits(&self, _row: usize) -> &[f32] {
        &self.logits
    }
    fn work(&self) -> Work {
        self.seen.lock().unwrap().work
    }
}

fn start(slack: usize) -> (NativeEngine, Arc<Mutex<Seen>>) {
    let (backend, seen) = Paged::new(slack);
    (
        NativeEngine::start(
            backend,
            EngineOptions {
                padding: vec![96],
                ..EngineOptions::default()
            },
        )
        .unwrap(),
        seen,
    )
}

fn greedy(tokens: &[u32], max_tokens: usize) -> Request {
    Request {
        tokens: tokens.to_vec(),
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        max_tokens: Some(max_tokens),
        ..Request::default()
    }
}

fn collect(events: Events) -> (Vec<u32>, Result<(FinishReason, Usage), Failure>) {
    let mut ids = Vec::new();
    let mut last = None;
    for event in events {
        assert!(last.is_none(), "an event after the last one");
        match event {
            Event::Token { id, .. } => ids.push(id),
            Event::Finish { reason, usage } => last = Some(Ok((reason, usage))),
            Event::Error(error) => last = Some(Err(error)),
            Event::Queued | Event::Prefill { .. } | Event::PromptLogprobs(_) => {}
        }
    }
    (ids, last.expect("a last event"))
}

/// What greedy decoding gives by the definition.
fn expected(prompt: &[u32], n: usize) -> Vec<u32> {
    let mut sequence = prompt.to_vec();
    for _ in 0..n {
        let logits = logits_of(&sequence);
        let best = (0..96)
            .rev()
            .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
            .unwrap();
        sequence.push(best as u32);
    }
    sequence[prompt.len()..].to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    /// Whatever the cache holds from earlier requests, the answer is that of an empty one.
    #[test]
    fn reuse_never_changes_an_answer(
        slack in 0usize..120,
        requests in prop::collection::vec((0usize..80, prop::collection::vec(0u32..3, 1..90), 0usize..12), 1..8),
    ) {
        let (engine, _) = start(slack);
        let mut previous: Vec<u32> = Vec::new();
        for (keep, more, n) in requests {
            // Share a prefix with what was there, as a conversation does.
            let mut prompt = previous[..keep.min(previous.len())].to_vec();
            prompt.extend(more);
            prompt.truncate(150);
            let (ids, last) = collect(engine.submit(greedy(&prompt, n)));
            let (reason, usage) = last.unwrap();
            prop_assert_eq!(reason, FinishReason::Length);
            prop_assert!(!usage.context_full);
            prop_assert_eq!(&ids, &expected(&prompt, n));
            prop_assert!(usage.cached_tokens < prompt.len());
            prop_assert_eq!((usage.prompt_tokens, usage.generated_tokens), (prompt.len(), n));
            previous = prompt;
            previous.extend(ids);
        }
    }
}

/// With the cache, the n-th token costs one row through the projections, whatever came before it.
#[test]
fn test_cache_improves_speed() {
    let (engine, seen) = start(0);
    let prompt: Vec<u32> = (0..70).map(|i| i % 50).collect();
    collect(engine.submit(greedy(&prompt, 40))).1.unwrap();
    let work = seen.lock().unwrap().work;
    // 39 of the 40 tokens run; the last one's logits are nobody's.
    assert_eq!(work.token_rows, 70 + 39);
    assert_eq!(work.logit_rows, 40);
    let pieces = std::mem::take(&mut seen.lock().unwrap().pieces);
    assert_eq!(pieces[..5], [16, 16, 16, 16, 6]);
    assert!(pieces[5..].iter().all(|&n| n == 1));
}

#[test]
fn a_conversation_goes_on_from_the_cache() {
    let (engine, seen) = start(0);
    let mut prompt: Vec<u32> = (0..40).collect();
    let (ids, _) = collect(engine.submit(greedy(&prompt, 5)));
    prompt.extend(&ids[..4]);
    prompt.extend([7, 8, 9]);
    seen.lock().unwrap().work = Work::default();
    let (_, last) = collect(engine.submit(greedy(&prompt, 1)));
    assert_eq!(last.unwrap().1.cached_tokens, 44);
    assert_eq!(seen.lock().unwrap().work.token_rows, 3);
    // The same prompt again: all but its last token are there, if the back end can go back.
    let (_, last) = collect(engine.submit(greedy(&prompt, 1)));
    assert_eq!(last.unwrap().1.cached_tokens, 0);
    let (engine, _) = start(1);
    collect(engine.submit(greedy(&prompt, 1))).1.unwrap();
    let (_, last) = collect(engine.submit(greedy(&prompt, 1)));
    assert_eq!(last.unwrap().1.cached_tokens, prompt.len() - 1);
}

#[test]
fn prefill_is_reported_piece_by_piece() {
    let (engine, _) = start(0);
    let mut reported = Vec::new();
    for event in engine.submit(greedy(&[1; 40], 1)) {
        if let Event::Prefill {
            done,
            total,
            cached,
            ..
        } = event
        {
            reported.push((done, total, cached));
        }
    }
    assert_eq!(
        reported,
        [(0, 40, 0), (16, 40, 0), (32, 40, 0), (40, 40, 0)]
    );
}

#[test]
fn a_full_context_is_said() {
    let (engine, _) = start(0);
    assert_eq!(engine.info().context, CONTEXT);
    let request = Request {
        max_tokens: None,
        ..greedy(&[5; 190], 0)
    };
    let (ids, last) = collect(engine.submit(request));
    let (reason, usage) = last.unwrap();
    assert_eq!(
        (ids.len(), reason, usage.context_full),
        (10, FinishReason::Length, true)
    );
    assert_eq!(ids, expected(&[5; 190], 10));
    let (ids, last) = collect(engine.submit(greedy(&[5; 200], 1)));
    assert!(ids.is_empty());
    let error = last.unwrap_err().to_string();
    assert!(
        error.contains("200 tokens") && error.contains("holds 200"),
        "{error}"
    );
}

#[test]
fn stop_ids_end_the_answer_and_are_events() {
    let (engine, _) = start(0);
    let all = expected(&[1, 2, 3], 20);
    let stop = all[6];
    let at = all.iter().position(|&id| id == stop).unwrap();
    let request = Request {
        stop_ids: vec![stop],
        ..greedy(&[1, 2, 3], 20)
    };
    let (ids, last) = collect(engine.submit(request));
    assert_eq!(ids, all[..=at]);
    assert_eq!(last.unwrap().0, FinishReason::Stop);
}

#[test]
fn bad_requests_are_errors_and_the_engine_goes_on() {
    let (engine, _) = start(0);
    let wrong = [
        (greedy(&[], 1), "empty"),
        (greedy(&[97], 1), "97"),
        (
            Request {
                sampling: Sampling {
                    top_p: 0.0,
                    ..Sampling::default()
                },
                ..greedy(&[1], 1)
            },
            "top_p",
        ),
    ];
    for (request, word) in wrong {
        let error = collect(engine.submit(request)).1.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(collect(engine.submit(greedy(&[1], 3))).0, expected(&[1], 3));
}

#[test]
fn a_failed_step_is_an_error_and_spoils_nothing() {
    let (engine, seen) = start(100);
    let prompt: Vec<u32> = (0..50).collect();
    seen.lock().unwrap().fail_at = Some(6);
    let error = collect(engine.submit(greedy(&prompt, 9)))
        .1
        .unwrap_err()
        .to_string();
    assert!(error.contains("fell off"), "{error}");
    let (ids, last) = collect(engine.submit(greedy(&prompt, 9)));
    assert_eq!(last.unwrap().1.cached_tokens, 0);
    assert_eq!(ids, expected(&prompt, 9));
}

#[test]
fn cancel_ends_within_one_step() {
    let (engine, seen) = start(0);
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    // In the prompt: one piece was allowed, the second is running when the switch is thrown.
    let cancel = Cancel::default();
    let request = Request {
        cancel: cancel.clone(),
        ..greedy(&[3; 100], 50)
    };
    let mut events = engine.submit(request);
    permit.send(()).unwrap();
    for event in events.by_ref() {
        if matches!(event, Event::Prefill { done: PIECE, .. }) {
            break;
        }
    }
    cancel.cancel();
    permit.send(()).unwrap();
    let (ids, last) = collect(events);
    assert!(ids.is_empty());
    assert_eq!(last.unwrap().0, FinishReason::Cancelled);
    assert!(seen.lock().unwrap().pieces.len() <= 2);
    // In the answer; the next request is served as ever.
    drop(permit);
    let cancel = Cancel::default();
    let request = Request {
        cancel: cancel.clone(),
        max_tokens: None,
        ..greedy(&[3; 10], 0)
    };
    let mut ids = Vec::new();
    let mut reason = None;
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    permit.send(()).unwrap();
    permit.send(()).unwrap();
    for event in engine.submit(request) {
        match event {
            Event::Token { id, .. } => {
                ids.push(id);
                if ids.len() == 2 {
                    cancel.cancel();
                    permit.send(()).unwrap();
                }
            }
            Event::Finish { reason: r, .. } => reason = Some(r),
            _ => {}
        }
    }
    drop(permit);
    assert_eq!(reason, Some(FinishReason::Cancelled));
    assert!((2..=3).contains(&ids.len()), "{}", ids.len());
    assert_eq!(
        collect(engine.submit(greedy(&[3; 11], 4))).0,
        expected(&[3; 11], 4)
    );
}

#[test]
fn nobody_listening_cancels() {
    let (engine, seen) = start(0);
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    drop(engine.submit(Request {
        max_tokens: None,
        ..greedy(&[3; 100], 0)
    }));
    drop(permit);
    assert_eq!(
        collect(engine.submit(greedy(&[1, 2], 2))).0,
        expected(&[1, 2], 2)
    );
    // One piece of the first request at most; prompt, and one token, of the second.
    assert!(seen.lock().unwrap().pieces.len() <= 3);
}

#[test]
fn dropping_the_engine_ends_its_requests() {
    let (engine, _) = start(0);
    let events: Vec<Events> = (0..3)
        .map(|_| {
            engine.submit(Request {
                max_tokens: None,
                ..greedy(&[3; 100], 0)
            })
        })
        .collect();
    drop(engine);
    for events in events {
        let (_, last) = collect(events);
        if let Ok((reason, usage)) = last {
            assert!(reason == FinishReason::Cancelled || usage.context_full);
        }
    }
}

#[test]
fn a_seed_reproduces_an_answer_and_is_reported() {
    let (engine, _) = start(0);
    let run = |seed| {
        let sampling = Sampling {
            seed,
            ..Sampling::default()
        };
        let (ids, last) = collect(engine.submit(Request {
            sampling,
            ..greedy(&[4, 5], 30)
        }));
        (ids, last.unwrap().1.seed)
    };
    let (first, seed) = run(None);
    assert_eq!(run(Some(seed)), (first.clone(), seed));
    assert_ne!(run(Some(seed + 1)).0, first);
    assert_eq!(run(Some(7)).1, 7);
}
