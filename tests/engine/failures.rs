//! What goes wrong ends the request that it concerns, with words, and nothing else.

use crate::support::*;
use gossamer::{
    backend::Limits,
    engine::{Cancel, Engine, Event, Events, Failure, FinishReason, Request},
    sampler::{Mask, MaskSource, Sampling},
};
use std::sync::mpsc;

fn numbers(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i * i % 89).collect()
}

fn two() -> Limits {
    Limits {
        slots: 2,
        kv_blocks: 14,
        batch_tokens: 16,
        snapshots: 4,
    }
}

#[test]
fn bad_requests_are_errors_and_the_engine_goes_on() {
    let (engine, _) = start(small());
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
        match run(&engine, request).failure() {
            Failure::Invalid(error) => assert!(error.contains(word), "{error}"),
            other => panic!("{other}"),
        }
    }
    let failure = run(&engine, greedy(&[5; 200], 1)).failure();
    let expected = Failure::ContextLength {
        prompt: 200,
        context: 200,
    };
    assert_eq!(failure, expected);
    assert!(failure.to_string().contains("200 tokens"));
    assert_eq!(run(&engine, greedy(&[1], 3)).ids, greedily(&[1], 3));
}

#[test]
fn a_failed_step_is_an_error_and_spoils_nothing() {
    for panics in [false, true] {
        let (engine, seen) = start(two());
        let prompt = numbers(50);
        run(&engine, greedy(&prompt, 2));
        let steps = seen.lock().unwrap().steps.len();
        seen.lock().unwrap().fail_at = Some((steps + 3, panics));
        let (permit, gate) = mpsc::channel();
        seen.lock().unwrap().gate = Some(gate);
        let failing = [numbers(90), vec![3; 60]].map(|p| engine.submit(greedy(&p, 9)));
        drop(permit);
        for events in failing {
            match Outcome::of(events).failure() {
                Failure::Broken(error) => {
                    assert!(
                        error.contains("fell off") || error.contains("caught fire"),
                        "{error}"
                    );
                }
                other => panic!("{other}"),
            }
        }
        assert_idle(&engine.stats());
        // What is in the blocks and windows now is unknown: nothing of it is used.
        let outcome = run(&engine, greedy(&prompt, 9));
        assert_eq!(outcome.cached, Some(0));
        assert_eq!(outcome.ids, greedily(&prompt, 9));
    }
}

/// Wherever in a step: who ran is told, who waited is served, and nothing is left of what was known.
#[test]
fn a_panic_in_the_engine_ends_who_ran_and_nothing_else() {
    let (engine, seen) = start(two());
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    let scored = engine.submit(Request {
        prompt_logprobs: Some(0),
        ..greedy(&numbers(150), 1)
    });
    let other = engine.submit(greedy(&[3; 10], 100));
    let waiting = engine.submit(greedy(&numbers(50), 9));
    for _ in 0..5 {
        permit.send(()).unwrap();
    }
    while seen.lock().unwrap().steps.len() < 5 {
        std::thread::yield_now();
    }
    // The prompt is not through: the next logits are asked for to score it.
    seen.lock().unwrap().logits_panic = true;
    drop(permit);
    for events in [scored, other] {
        match Outcome::of(events).failure() {
            Failure::Broken(error) => assert!(error.contains("the logits are lost"), "{error}"),
            other => panic!("{other}"),
        }
    }
    let outcome = Outcome::of(waiting);
    assert_eq!(outcome.ids, greedily(&numbers(50), 9));
    assert_eq!(outcome.cached, Some(0));
    assert_idle(&engine.stats());
    // All slots and blocks are there, and what is cached now is right.
    let again = [numbers(50), vec![3; 60]].map(|p| (engine.submit(greedy(&p, 9)), p));
    for (events, prompt) in again {
        assert_eq!(Outcome::of(events).ids, greedily(&prompt, 9));
    }
    assert_idle(&engine.stats());
}

#[test]
fn cancel_ends_within_one_step() {
    let (engine, seen) = start(small());
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    // In the prompt: one piece was allowed, the second is running when the switch is thrown.
    let cancel = Cancel::default();
    let request = Request {
        cancel: cancel.clone(),
        ..greedy(&[3; 100], 50)
    };
    let mut events = engine.submit(request);
    let mut outcome = Outcome::default();
    permit.send(()).unwrap();
    for event in events.by_ref() {
        let done = matches!(event, Event::Prefill { done: 16, .. });
        outcome.push(event);
        if done {
            break;
        }
    }
    cancel.cancel();
    permit.send(()).unwrap();
    events.for_each(|event| outcome.push(event));
    assert!(outcome.ids.is_empty());
    assert_eq!(outcome.finish().0, FinishReason::Cancelled);
    assert!(seen.lock().unwrap().steps.len() <= 2);
    assert_idle(&engine.stats());
    // In the answer; the next request is served as ever.
    drop(permit);
    let cancel = Cancel::default();
    let request = Request {
        cancel: cancel.clone(),
        max_tokens: None,
        ..greedy(&[3; 10], 0)
    };
    let (permit, gate) = mpsc::channel();
    let mut outcome = Outcome::default();
    let (mut events, mut sent) = (None, false);
    seen.lock().unwrap().gate = Some(gate);
    permit.send(()).unwrap();
    permit.send(()).unwrap();
    for event in events.insert(engine.submit(request)) {
        outcome.push(event);
        if outcome.ids.len() == 2 && !sent {
            sent = true;
            cancel.cancel();
            permit.send(()).unwrap();
        }
    }
    drop(permit);
    assert_eq!(outcome.finish().0, FinishReason::Cancelled);
    assert!(
        (2..=3).contains(&outcome.ids.len()),
        "{}",
        outcome.ids.len()
    );
    assert_idle(&engine.stats());
    assert_eq!(run(&engine, greedy(&[3; 11], 4)).ids, greedily(&[3; 11], 4));
}

#[test]
fn who_waits_can_be_cancelled() {
    let (engine, seen) = start(small());
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    let running = engine.submit(greedy(&[1, 2, 3], 5));
    let cancel = Cancel::default();
    let waiting = engine.submit(Request {
        cancel: cancel.clone(),
        ..greedy(&[4, 5], 5)
    });
    cancel.cancel();
    drop(permit);
    let outcome = Outcome::of(waiting);
    assert_eq!(outcome.finish().0, FinishReason::Cancelled);
    assert_eq!(Outcome::of(running).ids, greedily(&[1, 2, 3], 5));
}

#[test]
fn nobody_listening_cancels() {
    let (engine, seen) = start(small());
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    drop(engine.submit(Request {
        max_tokens: None,
        ..greedy(&[3; 100], 0)
    }));
    drop(permit);
    assert_eq!(run(&engine, greedy(&[1, 2], 2)).ids, greedily(&[1, 2], 2));
    // One piece of the first request at most; prompt, and one token, of the second.
    assert!(seen.lock().unwrap().steps.len() <= 3);
}

#[test]
fn dropping_the_engine_ends_its_requests() {
    let (engine, seen) = start(two());
    let (permit, gate) = mpsc::channel();
    seen.lock().unwrap().gate = Some(gate);
    let request = || Request {
        max_tokens: None,
        ..greedy(&[3; 100], 0)
    };
    let mut events: Vec<Events> = (0..5).map(|_| engine.submit(request())).collect();
    permit.send(()).unwrap();
    for event in events[0].by_ref() {
        if matches!(event, Event::Prefill { done: 16, .. }) {
            break;
        }
    }
    let dropping = std::thread::spawn(move || drop(engine));
    // The step that runs ends; the engine is told by then, or by the next one.
    drop(permit);
    for events in events {
        let mut last = None;
        events.for_each(|event| last = Some(event));
        assert_eq!(last, Some(Event::Error(Failure::Stopped)));
    }
    dropping.join().unwrap();
}

#[test]
fn events_reach_async_code() {
    let (engine, _) = start(small());
    let mut events = engine.submit(greedy(&[1, 2], 3));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let ids = runtime.block_on(async {
        let mut outcome = Outcome::default();
        while let Some(event) = events.next_event().await {
            outcome.push(event);
        }
        assert_eq!(events.next_event().await, None);
        outcome.finish();
        outcome.ids
    });
    assert_eq!(ids, greedily(&[1, 2], 3));
}

/// A constraint that waits to be let go, fails, or panics.
struct Trouble {
    gate: Option<mpsc::Receiver<()>>,
    left: usize,
    panics: bool,
}

impl MaskSource for Trouble {
    fn mask(&mut self) -> Result<Mask, String> {
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
            return Ok(Mask::Any);
        }
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None if self.panics => panic!("a bug in the grammar"),
            None => return Err("nothing can follow".into()),
        }
        Ok(Mask::Except([5].into()))
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        assert_ne!(id, 5);
        Ok(())
    }
}

#[test]
fn a_failing_constraint_ends_its_request_alone() {
    let (engine, seen) = start(two());
    for panics in [false, true] {
        let (permit, gate) = mpsc::channel();
        seen.lock().unwrap().gate = Some(gate);
        let trouble = Trouble {
            gate: None,
            left: 4,
            panics,
        };
        let failing = engine.submit(Request {
            constraint: Some(Box::new(trouble)),
            ..greedy(&numbers(20), 30)
        });
        let other = engine.submit(greedy(&[7, 8], 30));
        drop(permit);
        let outcome = Outcome::of(failing);
        assert_eq!(outcome.ids.len(), 4);
        match (outcome.failure(), panics) {
            (Failure::Invalid(error), false) => {
                assert!(error.contains("nothing can follow"), "{error}");
            }
            (Failure::Broken(error), true) => assert!(error.contains("a bug"), "{error}"),
            (other, _) => panic!("{other}"),
        }
        assert_eq!(Outcome::of(other).ids, greedily(&[7, 8], 30));
    }
    let constraint: Option<Box<dyn MaskSource>> = Some(Box::new(NothingAllowed));
    let request = Request {
        constraint,
        ..greedy(&[1], 3)
    };
    assert!(matches!(
        run(&engine, request).failure(),
        Failure::Broken(_)
    ));
    assert_idle(&engine.stats());
}

struct NothingAllowed;

impl MaskSource for NothingAllowed {
    fn mask(&mut self) -> Result<Mask, String> {
        Ok(Mask::Only([].into()))
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        Ok(())
    }
}

/// A mask that takes long holds up its own request only, which goes on when it is there.
#[test]
fn a_slow_mask_holds_up_nobody_else() {
    let (engine, _) = start(two());
    let (permit, gate) = mpsc::channel();
    let trouble = Trouble {
        gate: Some(gate),
        left: 0,
        panics: false,
    };
    let slow = engine.submit(Request {
        constraint: Some(Box::new(trouble)),
        ..greedy(&numbers(20), 3)
    });
    for _ in 0..3 {
        let other = run(&engine, greedy(&[7, 8], 30));
        assert_eq!(other.ids, greedily(&[7, 8], 30));
    }
    drop(permit);
    assert_eq!(Outcome::of(slow).ids, greedily(&numbers(20), 3));
    // While all that runs waits for a mask, a cancelled request is still seen.
    let (permit, gate) = mpsc::channel();
    let trouble = Trouble {
        gate: Some(gate),
        left: 0,
        panics: false,
    };
    let cancel = Cancel::default();
    let stuck = engine.submit(Request {
        constraint: Some(Box::new(trouble)),
        cancel: cancel.clone(),
        ..greedy(&numbers(20), 3)
    });
    cancel.cancel();
    assert_eq!(Outcome::of(stuck).finish().0, FinishReason::Cancelled);
    assert_idle(&engine.stats());
    drop(permit);
}
