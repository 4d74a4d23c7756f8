//! One request at a time: tokens, reasons, figures.

use crate::support::*;
use gossamer::{
    engine::{Engine, Event, FinishReason, Request},
    sampler::Sampling,
};

/// With the cache, the n-th token costs one row through the projections, whatever came before it.
#[test]
fn test_cache_improves_speed() {
    let (engine, seen) = start(small());
    let prompt: Vec<u32> = (0..70).map(|i| i % 50).collect();
    run(&engine, greedy(&prompt, 40)).finish();
    let seen = seen.lock().unwrap();
    // 39 of the 40 tokens run; the last one's logits are nobody's.
    assert_eq!(seen.work.token_rows, 70 + 39);
    assert_eq!(seen.work.logit_rows, 40);
    let pieces: Vec<usize> = seen.steps.concat();
    assert_eq!(pieces[..5], [16, 16, 16, 16, 6]);
    assert!(pieces[5..].iter().all(|&n| n == 1));
}

/// A back end that draws is asked for tokens where nothing but the temperature matters, and only there; the answers stay.
#[test]
fn a_back_end_that_draws_gives_the_same_answers() {
    let prompt: Vec<u32> = (0..30).collect();
    let seeded = |top_p| Sampling {
        top_p,
        seed: Some(5),
        ..Sampling::default()
    };
    let greedily = greedy(&prompt, 0).sampling;
    let biased = Sampling {
        logit_bias: vec![(3, 1.0)],
        ..greedily.clone()
    };
    // Here the back end has logits where it is asked for a token that is not the likeliest.
    for (sampling, logprobs, drawn) in [
        (greedily.clone(), None, 20),
        (greedily, Some(2), 0),
        (biased, None, 0),
        (seeded(0.9), None, 0),
        (seeded(1.0), None, 0),
    ] {
        let request = || Request {
            sampling: sampling.clone(),
            logprobs,
            ..greedy(&prompt, 20)
        };
        let answer = |draws| {
            let (engine, seen) = start(small());
            seen.lock().unwrap().draws = draws;
            let outcome = run(&engine, request());
            outcome.finish();
            let drawn = seen.lock().unwrap().drawn;
            (outcome.ids, drawn)
        };
        let (ids, none) = answer(false);
        assert_eq!(none, 0);
        assert_eq!(answer(true), (ids, drawn), "{sampling:?}");
    }
}

#[test]
fn prefill_is_reported_piece_by_piece() {
    let (engine, _) = start(small());
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
    let (engine, _) = start(small());
    assert_eq!(engine.info().context, CONTEXT);
    let request = Request {
        max_tokens: None,
        ..greedy(&[5; 190], 0)
    };
    let outcome = run(&engine, request);
    let (reason, usage) = outcome.finish();
    assert_eq!(
        (outcome.ids.len(), reason, usage.context_full),
        (10, FinishReason::Length, true)
    );
    assert_eq!(outcome.ids, greedily(&[5; 190], 10));
}

#[test]
fn stop_ids_end_the_answer_and_are_events() {
    let (engine, _) = start(small());
    let all = greedily(&[1, 2, 3], 20);
    let stop = all[6];
    let at = all.iter().position(|&id| id == stop).unwrap();
    let request = Request {
        stop_ids: vec![stop],
        ..greedy(&[1, 2, 3], 20)
    };
    let outcome = run(&engine, request);
    assert_eq!(outcome.ids, all[..=at]);
    assert_eq!(outcome.finish().0, FinishReason::Stop);
}

#[test]
fn a_prompt_alone_runs_without_logits_and_fills_the_cache() {
    let (engine, seen) = start(small());
    let prompt: Vec<u32> = (0..60).collect();
    let outcome = run(&engine, greedy(&prompt, 0));
    let (reason, usage) = outcome.finish();
    assert_eq!((reason, usage.generated_tokens), (FinishReason::Length, 0));
    let work = seen.lock().unwrap().work;
    assert_eq!((work.token_rows, work.logit_rows), (60, 0));
    let mut longer = prompt.clone();
    longer.push(9);
    let outcome = run(&engine, greedy(&longer, 3));
    assert_eq!(outcome.cached, Some(60));
    assert_eq!(outcome.ids, greedily(&longer, 3));
}

#[test]
fn a_seed_reproduces_an_answer_and_is_reported() {
    let (engine, _) = start(small());
    let answer = |seed| {
        let sampling = Sampling {
            seed,
            ..Sampling::default()
        };
        let outcome = run(
            &engine,
            Request {
                sampling,
                ..greedy(&[4, 5], 30)
            },
        );
        let seed = outcome.finish().1.seed;
        (outcome.ids, seed)
    };
    let (first, seed) = answer(None);
    assert_eq!(answer(Some(seed)), (first.clone(), seed));
    assert_ne!(answer(Some(seed + 1)).0, first);
    assert_eq!(answer(Some(7)).1, 7);
}

/// Every token of the prompt gets its log-probability, whatever the cache holds, in steps of few
/// rows.
#[test]
fn prompts_are_scored() {
    let mut limits = small();
    limits.batch_tokens = 100;
    let (engine, seen) = start(limits);
    let prompt: Vec<u32> = (0..150).map(|i| i * 7 % 90).collect();
    run(&engine, greedy(&prompt, 1)).finish();
    seen.lock().unwrap().steps.clear();
    let request = Request {
        prompt_logprobs: Some(3),
        ..greedy(&prompt, 2)
    };
    let outcome = run(&engine, request);
    assert_eq!(outcome.ids, greedily(&prompt, 2));
    assert_eq!(outcome.finish().1.cached_tokens, 0);
    assert!(
        outcome
            .miss
            .unwrap()
            .to_string()
            .contains("nothing from the cache")
    );
    assert!(
        seen.lock()
            .unwrap()
            .steps
            .concat()
            .iter()
            .all(|&rows| rows <= 32)
    );
    outcome.assert_scored(&prompt, 3);
    // Nothing is sampled from a prompt that is only scored.
    let request = Request {
        prompt_logprobs: Some(0),
        ..greedy(&prompt[..50], 0)
    };
    let outcome = run(&engine, request);
    assert_eq!((outcome.scores.len(), outcome.ids.len()), (50, 0));
}
