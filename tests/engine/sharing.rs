//! Many requests at once: who runs when, and what they share.

use crate::{paged::*, support::*};
use gossamer::{
    backend::Limits,
    engine::{Engine, Event, Events, Failure, FinishReason, Request},
};
use std::sync::mpsc;

fn numbers(n: usize, by: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i + by * i) % 89).collect()
}

/// Waits until `events` tells of a token; returns what came before.
fn until_token(events: &mut Events) -> Outcome {
    let mut outcome = Outcome::default();
    for event in events {
        let is_token = matches!(event, Event::Token { .. });
        outcome.push(event);
        if is_token {
            break;
        }
    }
    outcome
}

#[test]
fn sequences_share_steps() {
    let limits = Limits {
        slots: 8,
        kv_blocks: 64,
        batch_tokens: 64,
        snapshots: 8,
    };
    let (engine, seen) = start(limits);
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    let prompts: Vec<Vec<u32>> = (0..8).map(|i| numbers(20, i)).collect();
    let events: Vec<Events> = prompts
        .iter()
        .map(|p| engine.submit(greedy(p, 40)))
        .collect();
    drop(permit);
    for (prompt, events) in prompts.iter().zip(events) {
        assert_eq!(Outcome::of(events).ids, greedily(prompt, 40));
    }
    let steps = &seen.lock().unwrap().steps;
    // 160 prompt tokens in pieces, then 39 steps of eight rows: not eight times that.
    assert!(steps.len() <= 50, "{}", steps.len());
    assert!(steps.iter().any(|step| *step == [1; 8]));
    assert_idle(&engine.stats());
}

/// A short prompt that comes after a long one is answered first, and the long one goes on
/// meanwhile.
#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let limits = Limits {
        slots: 4,
        kv_blocks: 200,
        batch_tokens: 32,
        snapshots: 0,
    };
    let (engine, seen) = start_with(limits, 4096, options());
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    let long = engine.submit(greedy(&numbers(3000, 1), 2));
    for _ in 0..3 {
        permit.send(()).unwrap();
    }
    let short = engine.submit(greedy(&numbers(30, 2), 2));
    while seen.lock().unwrap().steps.len() < 3 {
        std::thread::yield_now();
    }
    drop(permit);
    assert_eq!(Outcome::of(short).ids, greedily(&numbers(30, 2), 2));
    assert_eq!(Outcome::of(long).ids, greedily(&numbers(3000, 1), 2));
    let seen = seen.lock().unwrap();
    let first = seen.step_to(30).unwrap();
    assert!(first <= 6, "its prompt was done in step {first}");
    // The long one had a share of each step.
    let steps = &seen.steps;
    assert!(
        steps
            .iter()
            .all(|step| step.iter().any(|&rows| rows > 4) || *step == [1])
    );
}

#[test]
fn a_stream_of_short_prompts_does_not_starve_a_long_one() {
    let limits = Limits {
        slots: 4,
        kv_blocks: 200,
        batch_tokens: 32,
        snapshots: 0,
    };
    let (engine, seen) = start_with(limits, 4096, options());
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    let long = engine.submit(greedy(&numbers(800, 1), 1));
    let short: Vec<Events> = (0..200)
        .map(|i| engine.submit(greedy(&numbers(40, i + 2), 1)))
        .collect();
    drop(permit);
    assert_eq!(Outcome::of(long).ids, greedily(&numbers(800, 1), 1));
    // A quarter of each step is its own.
    let last = seen.lock().unwrap().step_to(800).unwrap();
    assert!(last <= 100, "its prompt was done in step {last}");
    short.into_iter().for_each(|events| {
        Outcome::of(events).finish();
    });
    assert_idle(&engine.stats());
}

/// Requests with one long beginning compute it once, even when they come together.
#[test]
fn twins_prefill_their_common_beginning_once() {
    let limits = Limits {
        slots: 32,
        kv_blocks: 400,
        batch_tokens: 128,
        snapshots: 16,
    };
    let (engine, seen) = start_with(limits, 4096, options());
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    let prompt = numbers(1000, 1);
    let same: Vec<Events> = (0..8).map(|_| engine.submit(greedy(&prompt, 3))).collect();
    drop(permit);
    let answer = greedily(&prompt, 3);
    let mut cached = Vec::new();
    for events in same {
        let outcome = Outcome::of(events);
        assert_eq!(outcome.ids, answer);
        cached.push(outcome.cached.unwrap());
    }
    cached.sort_unstable();
    assert_eq!(cached, [0, 999, 999, 999, 999, 999, 999, 999]);
    assert_eq!(seen.lock().unwrap().rows(), 1000 + 7 + 8 * 2);

    // Another system prompt, and a question each.
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    let before = seen.lock().unwrap().rows();
    let mut system = numbers(900, 2);
    system.push(MARKER);
    let users: Vec<Vec<u32>> = (0..32)
        .map(|i| [system.clone(), numbers(20, i + 3)].concat())
        .collect();
    let events: Vec<Events> = users.iter().map(|p| engine.submit(greedy(p, 1))).collect();
    drop(permit);
    for (prompt, events) in users.iter().zip(events) {
        assert_eq!(Outcome::of(events).ids, greedily(prompt, 1));
    }
    let rows = seen.lock().unwrap().rows() - before;
    assert!(rows <= 901 + 32 * 21, "{rows} rows");
    assert_idle(&engine.stats());
}

/// Who waits for a beginning that a long prompt computes has it before prompts that are longer than
/// that beginning, though the long one's own turn is much later.
#[test]
fn a_short_prompt_does_not_wait_for_the_long_one_that_it_follows() {
    let limits = Limits {
        slots: 64,
        kv_blocks: 1000,
        batch_tokens: 32,
        snapshots: 16,
    };
    let (engine, seen) = start_with(limits, 4096, options());
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    // The oldest has a quarter of each step, whatever the others need.
    let oldest = engine.submit(greedy(&numbers(1500, 1), 1));
    let long = numbers(1200, 2);
    let short = [&long[..200], &[94; 30]].concat();
    let events = [&long, &short].map(|p| (engine.submit(greedy(p, 1)), p));
    let others: Vec<Events> = (0..50)
        .map(|i| engine.submit(greedy(&numbers(210, i + 3), 1)))
        .collect();
    drop(permit);
    for (events, prompt) in events {
        assert_eq!(Outcome::of(events).ids, greedily(prompt, 1));
    }
    let last = seen.lock().unwrap().step_to(230).unwrap();
    assert!(last <= 20, "its prompt was done in step {last}");
    others.into_iter().chain([oldest]).for_each(|events| {
        Outcome::of(events).finish();
    });
    assert_idle(&engine.stats());
}

/// Too few blocks for all: the youngest give way and lose nothing.
#[test]
fn preempted_sequences_resume_without_loss() {
    let limits = Limits {
        slots: 4,
        kv_blocks: 8,
        batch_tokens: 32,
        snapshots: 6,
    };
    let (engine, _) = start(limits);
    let prompts: Vec<Vec<u32>> = (0..4).map(|i| numbers(20, i)).collect();
    let events: Vec<Events> = prompts
        .iter()
        .map(|p| engine.submit(greedy(p, 120)))
        .collect();
    let mut preemptions = 0;
    for (prompt, events) in prompts.iter().zip(events) {
        let outcome = Outcome::of(events);
        assert_eq!(outcome.ids, greedily(prompt, 120));
        preemptions += outcome.finish().1.preemptions;
    }
    assert!(preemptions > 0);
    assert_eq!(engine.stats().preemptions, preemptions as u64);
    assert_idle(&engine.stats());
}

/// A prompt that is being scored gives way too, and every token is scored once.
#[test]
fn a_preempted_prompt_is_scored_once() {
    for snapshots in [0, 3] {
        let limits = Limits {
            slots: 2,
            kv_blocks: 7,
            batch_tokens: 4,
            snapshots,
        };
        let (engine, seen) = start_with(limits, 160, options());
        let (permit, gate) = mpsc::channel();
        seen.lock().unwrap().gate = Some(gate);
        let older = engine.submit(greedy(&numbers(20, 1), 60));
        let scored = engine.submit(Request {
            prompt_logprobs: Some(0),
            ..greedy(&numbers(150, 2), 3)
        });
        drop(permit);
        assert_eq!(Outcome::of(older).ids, greedily(&numbers(20, 1), 60));
        let outcome = Outcome::of(scored);
        assert_eq!(outcome.ids, greedily(&numbers(150, 2), 3));
        outcome.assert_scored(&numbers(150, 2), 0);
        assert!(outcome.finish().1.preemptions > 0);
        assert_idle(&engine.stats());
    }
}

#[test]
fn a_full_queue_is_said_at_once() {
    let limits = Limits {
        slots: 1,
        ..small()
    };
    let mut options = options();
    options.max_waiting = 2;
    let (engine, seen) = start_with(limits, CONTEXT, options);
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    let accepted: Vec<Events> = (0..3).map(|_| engine.submit(greedy(&[1, 2], 2))).collect();
    let refused = Outcome::of(engine.submit(greedy(&[1, 2], 2)));
    match refused.failure() {
        Failure::Busy {
            waiting,
            retry_after,
        } => {
            assert_eq!(waiting, 2);
            assert!((1..=60).contains(&retry_after.as_secs()));
        }
        other => panic!("{other}"),
    }
    drop(permit);
    for events in accepted {
        assert_eq!(Outcome::of(events).ids, greedily(&[1, 2], 2));
    }
    // There is room again as soon as a client knows of the end of another request.
    for _ in 0..20 {
        run(&engine, greedy(&[1, 2], 2)).finish();
    }
    assert_eq!(engine.stats().finished, 23);
}

/// A running answer does not wait for more of somebody's prompt than half a second takes.
#[test]
fn decoding_goes_on_while_a_prompt_runs() {
    let limits = Limits {
        slots: 2,
        kv_blocks: 200,
        batch_tokens: 512,
        snapshots: 0,
    };
    let (engine, seen) = start_with(limits, 4096, options());
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    let mut first = engine.submit(greedy(&numbers(10, 1), 150));
    permit.send(()).unwrap();
    let mut outcome = until_token(&mut first);
    let second = engine.submit(greedy(&numbers(3000, 2), 1));
    drop(permit);
    first.for_each(|event| outcome.push(event));
    assert_eq!(outcome.ids, greedily(&numbers(10, 1), 150));
    assert_eq!(Outcome::of(second).finish().0, FinishReason::Length);
    let steps = &seen.lock().unwrap().steps;
    // Every step after the first has the first one's row, until that is over; some have both.
    assert!(steps[1..150].iter().all(|step| step.contains(&1)));
    // Some have both: the first of them, when nobody knows what a row costs, few of the prompt's.
    let both: Vec<_> = steps[1..150].iter().filter(|s| s.len() == 2).collect();
    assert_eq!(both[0].iter().max(), Some(&64));
}

#[test]
fn statistics_count() {
    let (engine, _) = start(small());
    let prompt = numbers(40, 1);
    run(&engine, greedy(&prompt, 5));
    run(
        &engine,
        Request {
            max_tokens: Some(2),
            ..greedy(&[prompt.clone(), vec![90]].concat(), 2)
        },
    );
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.cached_tokens), (81, 40));
    assert_eq!((stats.generated_tokens, stats.finished), (7, 2));
    assert_eq!((stats.slots, stats.kv_blocks, stats.snapshots), (1, 7, 4));
    assert!(stats.steps > 5 && stats.snapshots_used > 0 && stats.snapshot_bytes > 0);
    assert_idle(&stats);
}
