//! Hundreds of random requests at once over caches that are too small for them: each answer that is
//! finished is the one by the definition, and nothing is left behind.

use crate::{
    common::{fresh_seed, models::Random},
    paged::MARKER,
    support::*,
};
use gossamer::{
    backend::{KV_BLOCK, Limits},
    engine::{Cancel, Engine, Event, FinishReason, NativeEngine, Request},
    sampler::Sampling,
};

/// Requests of a round.
const REQUESTS: usize = 150;
const ROUNDS: usize = 12;
const CONTEXT: usize = 160;

/// What a test knows of a request.
struct Plan {
    tokens: Vec<u32>,
    temperature: f32,
    seed: u64,
    max_tokens: Option<usize>,
    stop_ids: Vec<u32>,
    rule: Option<Rule>,
    scored: bool,
    /// Throw the switch, or stop listening, after so many events.
    leaves: Option<(usize, bool)>,
}

impl Plan {
    fn random(random: &mut Random, known: &[Vec<u32>]) -> Plan {
        let mut tokens = Vec::new();
        // Most prompts begin as another one did.
        if random.below(8) > 0 && !known.is_empty() {
            let old = &known[random.below(known.len())];
            tokens.extend(&old[..random.below(old.len() + 1)]);
        }
        for _ in 0..random.below(50) {
            tokens.push([1, 2, MARKER][random.below(3)]);
        }
        tokens.truncate(CONTEXT - 30);
        if tokens.is_empty() {
            tokens.push(3);
        }
        let max_tokens = match random.below(10) {
            0 => None,
            1 => Some(0),
            _ => Some(1 + random.below(60)),
        };
        Plan {
            tokens,
            temperature: [0.0, 1.0][random.below(2)],
            seed: random.next(),
            max_tokens,
            stop_ids: (0..random.below(3))
                .map(|_| random.below(90) as u32)
                .collect(),
            rule: (random.below(4) == 0).then(|| Rule(random.next())),
            scored: random.below(6) == 0,
            leaves: (random.below(4) == 0).then(|| (random.below(20), random.below(2) == 0)),
        }
    }

    fn request(&self, cancel: Cancel) -> Request {
        Request {
            tokens: self.tokens.clone(),
            sampling: Sampling {
                temperature: self.temperature,
                seed: Some(self.seed),
                ..Sampling::default()
            },
            max_tokens: self.max_tokens,
            stop_ids: self.stop_ids.clone(),
            logprobs: None,
            prompt_logprobs: self.scored.then_some(1),
            constraint: self.rule.map(|rule| Box::new(rule) as _),
            cancel,
        }
    }

    /// Runs it, as a client would, and judges the answer.
    fn check(&self, engine: &NativeEngine) {
        let cancel = Cancel::default();
        let mut outcome = Outcome::default();
        let (answer, reason) = expected(&self.request(Cancel::default()), self.rule, CONTEXT);
        for (n, event) in engine.submit(self.request(cancel.clone())).enumerate() {
            outcome.push(event);
            match self.leaves {
                Some((at, true)) if at == n => cancel.cancel(),
                Some((at, false)) if at == n => {
                    assert_eq!(outcome.ids, answer[..outcome.ids.len()]);
                    return;
                }
                _ => {}
            }
        }
        let (found, usage) = outcome.finish();
        if found == FinishReason::Cancelled {
            assert!(self.leaves.is_some());
            assert_eq!(outcome.ids, answer[..outcome.ids.len()]);
            return;
        }
        assert_eq!((&outcome.ids, found), (&answer, reason));
        assert!(usage.cached_tokens < self.tokens.len());
        if self.scored {
            outcome.assert_scored(&self.tokens, 1);
        }
    }
}

#[test]
fn every_answer_is_its_solo_answer() {
    let mut random = Random(fresh_seed());
    let mut preemptions = 0;
    for _ in 0..ROUNDS {
        let limits = Limits {
            slots: 1 + random.below(9),
            kv_blocks: CONTEXT / KV_BLOCK + random.below(8),
            batch_tokens: [6, 16, 24, 64][random.below(4)],
            snapshots: random.below(7),
        };
        let (engine, seen) = start_with(limits, CONTEXT, options());
        let mut known: Vec<Vec<u32>> = Vec::new();
        let mut plans: Vec<Plan> = Vec::new();
        while plans.len() < REQUESTS {
            let plan = Plan::random(&mut random, &known);
            let answer = expected(&plan.request(Cancel::default()), plan.rule, CONTEXT).0;
            known.push([&plan.tokens[..], &answer].concat());
            // Twins: the same prompt several times, as `n` asks for it.
            for _ in 0..[0, 0, 0, 3][random.below(4)] {
                plans.push(Plan {
                    tokens: plan.tokens.clone(),
                    seed: random.next(),
                    stop_ids: plan.stop_ids.clone(),
                    ..plan
                });
            }
            plans.push(plan);
        }
        // A dozen clients, each one request after the other.
        let next = std::sync::Mutex::new(plans.iter());
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    loop {
                        let plan = next.lock().unwrap().next();
                        let Some(plan) = plan else { return };
                        plan.check(&engine);
                    }
                });
            }
        });
        // Those whose clients left may take one more step.
        let last = engine.submit(greedy(&[1], 1));
        assert!(matches!(last.last(), Some(Event::Finish { .. })));
        let stats = engine.stats();
        assert_idle(&stats);
        preemptions += stats.preemptions;
        let rows = seen.lock().unwrap().rows();
        println!("{limits:?}: {rows} rows, {stats:?}");
    }
    assert!(preemptions > 0, "nothing was ever preempted");
}
