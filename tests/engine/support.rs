//! Requests, their answers by the definition, and what became of them.

use crate::paged::{MARKER, Oracle, PADDING, Paged, Seen, VOCAB};
use gossamer::{
    backend::{KV_BLOCK, Limits},
    engine::{
        Engine, EngineOptions, Event, Events, Failure, FinishReason, Miss, NativeEngine,
        PromptLogprob, Request, Stats, Usage,
    },
    sampler::{Mask, MaskSource, Sampler, Sampling},
};
use std::sync::{Arc, Mutex};

pub const CONTEXT: usize = 200;

/// The room of one sequence of [`CONTEXT`] tokens, in pieces of 16.
pub fn small() -> Limits {
    Limits {
        slots: 1,
        kv_blocks: CONTEXT.div_ceil(KV_BLOCK),
        batch_tokens: 16,
        snapshots: 4,
    }
}

pub fn options() -> EngineOptions {
    EngineOptions {
        padding: vec![PADDING],
        marker: Some(MARKER),
        ..EngineOptions::default()
    }
}

pub fn start(limits: Limits) -> (NativeEngine, Arc<Mutex<Seen>>) {
    start_with(limits, CONTEXT, options())
}

pub fn start_with(
    limits: Limits,
    context: usize,
    options: EngineOptions,
) -> (NativeEngine, Arc<Mutex<Seen>>) {
    let (backend, seen) = Paged::new(context, limits);
    (NativeEngine::start(backend, options).unwrap(), seen)
}

pub fn greedy(tokens: &[u32], max_tokens: usize) -> Request {
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

/// All that came of a request.
#[derive(Debug, Default)]
pub struct Outcome {
    pub ids: Vec<u32>,
    pub scores: Vec<PromptLogprob>,
    pub cached: Option<usize>,
    pub miss: Option<Miss>,
    pub last: Option<Result<(FinishReason, Usage), Failure>>,
}

impl Outcome {
    /// Collects events, and checks their order.
    pub fn of(events: Events) -> Outcome {
        let mut outcome = Outcome::default();
        for event in events {
            outcome.push(event);
        }
        assert!(outcome.last.is_some(), "events ended without a last one");
        outcome
    }

    pub fn push(&mut self, event: Event) {
        assert!(self.last.is_none(), "an event after the last one");
        match event {
            Event::Queued => assert!(self.cached.is_none()),
            Event::Prefill {
                done,
                total,
                cached,
                miss,
            } => {
                assert!(self.ids.is_empty(), "prompt after answer");
                assert!(cached <= done && done <= total);
                if self.cached.is_none() {
                    assert_eq!(done, cached);
                    self.cached = Some(cached);
                    self.miss = miss;
                }
                assert_eq!((self.cached, self.miss), (Some(cached), miss));
            }
            Event::PromptLogprobs(scores) => {
                assert!(self.ids.is_empty(), "prompt after answer");
                self.scores.extend(scores);
            }
            Event::Token { id, .. } => self.ids.push(id),
            Event::Finish { reason, usage } => {
                assert_eq!(usage.generated_tokens, self.ids.len());
                assert_eq!(usage.cached_tokens, self.cached.unwrap_or(0));
                self.last = Some(Ok((reason, usage)));
            }
            Event::Error(failure) => self.last = Some(Err(failure)),
        }
    }

    pub fn finish(&self) -> (FinishReason, Usage) {
        self.last.clone().unwrap().unwrap()
    }

    /// Checks that each token of `prompt` was scored once, with its log-probability by the definition
    /// and the `top` likeliest in its place.
    pub fn assert_scored(&self, prompt: &[u32], top: usize) {
        let ids: Vec<u32> = self.scores.iter().map(|score| score.id).collect();
        assert_eq!(ids, prompt);
        assert_eq!(self.scores[0].logprob, None);
        let mut oracle = Oracle::default();
        for (&token, score) in prompt.iter().zip(&self.scores[1..]) {
            let logits = oracle.push(token);
            // log-softmax in f64.
            let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            let expected = f64::from(logits[score.id as usize]) - total.ln();
            let found = f64::from(score.logprob.unwrap());
            assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
            let mut best: Vec<u32> = (0..VOCAB as u32).filter(|&id| id != PADDING).collect();
            let logit = |id: u32| logits[id as usize];
            best.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
            let found: Vec<u32> = score.top.iter().map(|&(id, _)| id).collect();
            assert_eq!(found, best[..top]);
        }
    }

    pub fn failure(&self) -> Failure {
        self.last.clone().unwrap().unwrap_err()
    }
}

pub fn run(engine: &NativeEngine, request: Request) -> Outcome {
    Outcome::of(engine.submit(request))
}

/// What the request's answer is by the definition: tokens and why it ends.
pub fn expected(
    request: &Request,
    mut rule: Option<Rule>,
    context: usize,
) -> (Vec<u32>, FinishReason) {
    let mut sampler = Sampler::new(&request.sampling, VOCAB, &[PADDING], None, &request.tokens);
    let mut oracle = Oracle::default();
    let mut logits = Vec::new();
    for &token in &request.tokens {
        logits = oracle.push(token);
    }
    let mut ids = Vec::new();
    while ids.len() < request.max_tokens.unwrap_or(usize::MAX)
        && request.tokens.len() + ids.len() < context
    {
        let mask = rule.as_mut().map_or(Mask::Any, |rule| rule.mask().unwrap());
        let id = sampler.sample(&logits, &mask).unwrap().id;
        ids.push(id);
        if request.stop_ids.contains(&id) {
            return (ids, FinishReason::Stop);
        }
        if let Some(rule) = &mut rule {
            rule.accept(id).unwrap();
        }
        logits = oracle.push(id);
    }
    (ids, FinishReason::Length)
}

/// What greedy decoding gives.
pub fn greedily(prompt: &[u32], n: usize) -> Vec<u32> {
    expected(&greedy(prompt, n), None, usize::MAX).0
}

/// A constraint whose masks depend on all tokens before.
#[derive(Debug, Clone, Copy)]
pub struct Rule(pub u64);

impl MaskSource for Rule {
    fn mask(&mut self) -> Result<Mask, String> {
        let ids = (0..VOCAB as u32 - 1).filter(|id| (self.0 >> (id % 48)) & 1 == 1);
        let ids: Vec<u32> = ids.chain([MARKER]).collect();
        Ok(match self.0 % 4 {
            0 => Mask::Any,
            1 => Mask::Only(ids.into()),
            2 => Mask::Except(ids.into()),
            _ => {
                let mut bits = vec![0; VOCAB.div_ceil(32)];
                for id in ids {
                    bits[id as usize / 32] |= 1 << (id % 32);
                }
                Mask::Bits(bits)
            }
        })
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        self.0 = (self.0 ^ u64::from(id))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(17);
        Ok(())
    }
}

/// Nothing runs, waits, or holds a block.
pub fn assert_idle(stats: &Stats) {
    let held = (stats.running, stats.waiting, stats.kv_blocks_in_use);
    assert_eq!(held, (0, 0, 0), "{stats:?}");
    assert!(stats.kv_blocks_cached <= stats.kv_blocks && stats.snapshots_used <= stats.snapshots);
}
