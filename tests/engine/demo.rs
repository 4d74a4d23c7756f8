//! The demo model on the CPU back end: the same request gives the same bytes alone, among others,
//! from the cache and after preemption; a second turn runs the rows that it must.

use crate::{
    common::{self, fresh_seed, models::Random},
    support::{Outcome, assert_idle},
};
use gossamer::{
    backend::{Backend, Batch, KV_BLOCK, Limits, Work},
    config::Config,
    engine::{Engine, EngineOptions, Event, NativeEngine, Request},
    gguf::Gguf,
    harmony::{Channel, Conversation, Message},
    sampler::Sampling,
    tokenizer::{Tokenizer, sample},
    weights::Model,
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

struct Demo {
    model: Arc<Model>,
    tokenizer: Tokenizer,
}

/// The CPU back end, its rows counted where the test sees them.
struct Counted {
    inner: Box<dyn Backend>,
    rows: Arc<AtomicU64>,
}

impl Backend for Counted {
    fn config(&self) -> &Config {
        self.inner.config()
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn forward(&mut self, batch: &Batch) -> anyhow::Result<()> {
        self.inner.forward(batch)?;
        self.rows
            .store(self.inner.work().token_rows, Ordering::Relaxed);
        Ok(())
    }
    fn copy_block(&mut self, from: u32, to: u32) -> anyhow::Result<()> {
        self.inner.copy_block(from, to)
    }
    fn save(&mut self, slot: usize, snapshot: usize) -> anyhow::Result<()> {
        self.inner.save(slot, snapshot)
    }
    fn restore(&mut self, slot: usize, snapshot: usize) -> anyhow::Result<()> {
        self.inner.restore(slot, snapshot)
    }
    fn batch_invariant(&self) -> bool {
        self.inner.batch_invariant()
    }
    fn logits(&self, row: usize) -> &[f32] {
        self.inner.logits(row)
    }
    fn work(&self) -> Work {
        self.inner.work()
    }
}

impl Demo {
    fn load() -> Demo {
        let gguf = Gguf::open(&common::root().join("models/demo/demo.gguf")).unwrap();
        Demo {
            model: Arc::new(Model::load(&gguf).unwrap()),
            tokenizer: Tokenizer::from_gguf(&gguf).unwrap(),
        }
    }

    fn start(&self, limits: Limits, prefix_cache: bool) -> (NativeEngine, Arc<AtomicU64>) {
        let rows = Arc::new(AtomicU64::new(0));
        let backend = Counted {
            inner: common::open_with(&self.model, "cpu", 2, limits),
            rows: rows.clone(),
        };
        let options = EngineOptions {
            padding: self.tokenizer.padding_ids().to_vec(),
            marker: self.tokenizer.special("<|start|>"),
            prefix_cache,
            ..EngineOptions::default()
        };
        (
            NativeEngine::start(Box::new(backend), options).unwrap(),
            rows,
        )
    }

    fn prompt(&self, messages: Vec<Message>) -> Vec<u32> {
        let conversation = Conversation {
            date: Some("2026-01-31".into()),
            messages,
            ..Conversation::default()
        };
        conversation.render(&self.tokenizer).unwrap()
    }
}

/// Every event of an answer, log-probabilities to the bit.
fn tokens(engine: &NativeEngine, request: Request) -> Vec<Event> {
    let events = engine.submit(request);
    events
        .filter(|event| matches!(event, Event::Token { .. } | Event::Error(_)))
        .collect()
}

#[test]
fn an_answer_depends_on_its_request_alone() {
    let demo = Demo::load();
    let mut random = Random(fresh_seed());
    let questions: Vec<(Vec<u32>, u64)> = (0..32)
        .map(|i| {
            let text = sample::text(10 + random.below(600), random.next());
            // Some begin alike.
            let text = if i % 3 == 0 {
                format!("{} {text}", "What is 17 + 25? ".repeat(40))
            } else {
                text
            };
            (demo.prompt(vec![Message::user(text)]), random.next() >> 11)
        })
        .collect();
    let request = |i: usize| Request {
        tokens: questions[i].0.clone(),
        sampling: Sampling {
            seed: Some(questions[i].1),
            ..Sampling::default()
        },
        max_tokens: Some(40),
        logprobs: Some(2),
        ..Request::default()
    };
    let longest = questions.iter().map(|q| q.0.len()).max().unwrap() + 40;
    let room = |slots: usize, sequences: usize, snapshots: usize| Limits {
        slots,
        kv_blocks: sequences * longest.div_ceil(KV_BLOCK),
        batch_tokens: 512,
        snapshots,
    };
    let (engine, _) = demo.start(room(1, 1, 0), false);
    assert!(engine.info().deterministic);
    let alone: Vec<Vec<Event>> = (0..32).map(|i| tokens(&engine, request(i))).collect();
    assert!(alone.iter().all(|answer| answer.len() == 40));
    // Among 32 others, then from the cache; then with room for three, so that they wait for each other.
    for (limits, rounds) in [(room(32, 33, 64), 2), (room(8, 3, 8), 1)] {
        let (engine, _) = demo.start(limits, true);
        let (engine, request) = (&engine, &request);
        for round in 0..rounds {
            let together: Vec<Vec<Event>> = std::thread::scope(|scope| {
                let answers: Vec<_> = (0..32)
                    .map(|i| scope.spawn(move || tokens(engine, request(i))))
                    .collect();
                answers
                    .into_iter()
                    .map(|answer| answer.join().unwrap())
                    .collect()
            });
            for (i, (found, expected)) in together.iter().zip(&alone).enumerate() {
                assert_eq!(found, expected, "question {i}, round {round}, {limits:?}");
            }
        }
        let stats = engine.stats();
        assert_idle(&stats);
        assert!(stats.cached_tokens > 0);
    }
}

/// Answers outgrow the room: the youngest give way, are resumed, and say what they say alone.
#[test]
fn preemption_changes_no_answer() {
    let demo = Demo::load();
    let mut random = Random(fresh_seed());
    let questions: Vec<Vec<u32>> = (0..8)
        .map(|_| demo.prompt(vec![Message::user(sample::text(60, random.next()))]))
        .collect();
    let request = |tokens: &Vec<u32>| Request {
        tokens: tokens.clone(),
        sampling: Sampling {
            seed: Some(5),
            ..Sampling::default()
        },
        max_tokens: Some(160),
        logprobs: Some(2),
        ..Request::default()
    };
    let prompts: usize = questions.iter().map(|q| q.len().div_ceil(KV_BLOCK)).sum();
    let room = |slots: usize| Limits {
        slots,
        kv_blocks: prompts + 8,
        batch_tokens: 512,
        snapshots: 8,
    };
    let (engine, _) = demo.start(room(1), false);
    let alone: Vec<Vec<Event>> = questions
        .iter()
        .map(|q| tokens(&engine, request(q)))
        .collect();
    let (engine, _) = demo.start(room(8), true);
    let (engine, request) = (&engine, &request);
    std::thread::scope(|scope| {
        for (question, alone) in questions.iter().zip(&alone) {
            scope.spawn(move || assert_eq!(tokens(engine, request(question)), *alone));
        }
    });
    let stats = engine.stats();
    assert_idle(&stats);
    assert!(stats.preemptions > 0, "{stats:?}");
}

/// The second turn of a long conversation leaves out the first one's reasoning: it runs what comes
/// after the parting point, and at most one interval between snapshots.
#[test]
fn a_second_turn_runs_its_own_rows() {
    let demo = Demo::load();
    let mut text = String::new();
    let mut random = Random(fresh_seed());
    let question = |text: &str| demo.prompt(vec![Message::user(text.to_string())]);
    while question(&text).len() < 3000 {
        text += &sample::text(500, random.next());
    }
    let first = question(&text);
    let second = demo.prompt(vec![
        Message::user(text),
        Message::assistant(Channel::Final, "Forty-two."),
        Message::user("And 17 + 26?"),
    ]);
    let limits = Limits {
        slots: 4,
        kv_blocks: 400,
        batch_tokens: 512,
        snapshots: 32,
    };
    let greedy = |prompt: &[u32]| Request {
        tokens: prompt.to_vec(),
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        max_tokens: Some(24),
        logprobs: Some(1),
        ..Request::default()
    };
    let (engine, rows) = demo.start(limits, true);
    let answer = Outcome::of(engine.submit(greedy(&first)));
    let before = rows.load(Ordering::Relaxed);
    assert_eq!(before as usize, first.len() + answer.ids.len() - 1);
    let ran = [&first[..], &answer.ids[..answer.ids.len() - 1]].concat();
    let parting = ran.iter().zip(&second).take_while(|(a, b)| a == b).count();
    assert!(parting >= 3000);
    let outcome = Outcome::of(engine.submit(greedy(&second)));
    let cached = outcome.finish().1.cached_tokens;
    let ran = rows.load(Ordering::Relaxed) - before;
    assert_eq!(ran as usize, second.len() - cached + outcome.ids.len() - 1);
    assert!(second.len() - cached <= second.len() - parting + 1024);
    // Better than that: the windows were kept where the prompt ended.
    assert!(parting - cached <= 2, "{cached} of {parting}");
    assert!(outcome.miss.is_some());
    let (uncached, _) = demo.start(limits, false);
    let found = tokens(&engine, greedy(&second));
    assert_eq!(found, tokens(&uncached, greedy(&second)));
    let ids: Vec<u32> = found
        .iter()
        .filter_map(|event| match event {
            Event::Token { id, .. } => Some(*id),
            _ => None,
        })
        .collect();
    assert_eq!(ids, outcome.ids);
}

/// Where two prompts part, without a message beginning there, the second rebuilds the windows; it keeps
/// them, and the third runs its own rows only.
#[test]
fn a_place_where_prompts_part_is_rebuilt_once() {
    let demo = Demo::load();
    let mut random = Random(fresh_seed());
    let field = demo.model.config.receptive_field();
    let document = random.tokens(field + 500, 1000);
    let questions = [1, 2, 3].map(|first| {
        let mut prompt = document.clone();
        prompt.push(1000 + first);
        prompt.extend(random.tokens(40, 1000));
        prompt
    });
    let limits = Limits {
        slots: 2,
        kv_blocks: 200,
        batch_tokens: 512,
        snapshots: 16,
    };
    let (engine, rows) = demo.start(limits, true);
    let (uncached, _) = demo.start(limits, false);
    let request = |prompt: &[u32]| Request {
        tokens: prompt.to_vec(),
        max_tokens: Some(1),
        logprobs: Some(1),
        sampling: Sampling {
            seed: Some(3),
            ..Sampling::default()
        },
        ..Request::default()
    };
    for (prompt, cached) in questions.iter().zip([0, 500, field + 500]) {
        let before = rows.load(Ordering::Relaxed);
        let found = tokens(&engine, request(prompt));
        assert_eq!(found, tokens(&uncached, request(prompt)));
        let ran = rows.load(Ordering::Relaxed) - before;
        assert_eq!(ran as usize, prompt.len() - cached);
    }
}
