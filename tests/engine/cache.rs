//! What the cache spares, and that it never changes an answer.

use crate::{paged::*, support::*};
use gossamer::engine::{Engine, EngineOptions, Miss, MissReason};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    /// Whatever the cache holds from earlier requests, the answer is that of an empty one.
    #[test]
    fn reuse_never_changes_an_answer(
        snapshots in 0usize..5,
        kv_blocks in 5usize..12,
        requests in prop::collection::vec((0usize..120, prop::collection::vec(0u32..3, 1..90), 0usize..12), 1..10),
    ) {
        let limits = gossamer::backend::Limits { snapshots, kv_blocks, ..small() };
        let (engine, seen) = start(limits);
        let mut previous: Vec<u32> = Vec::new();
        for (keep, more, n) in requests {
            // Share a prefix with what was there, as a conversation does.
            let mut prompt = previous[..keep.min(previous.len())].to_vec();
            prompt.extend(more.iter().map(|&id| if id == 2 { MARKER } else { id }));
            prompt.truncate(140);
            let before = seen.lock().unwrap().rows();
            let outcome = run(&engine, greedy(&prompt, n));
            let (_, usage) = outcome.finish();
            prop_assert_eq!(&outcome.ids, &greedily(&prompt, n));
            prop_assert!(usage.cached_tokens < prompt.len());
            // It is what it says: the rows that did not run.
            let rows = (prompt.len() - usage.cached_tokens + n.saturating_sub(1)) as u64;
            prop_assert_eq!(seen.lock().unwrap().rows() - before, rows);
            assert_idle(&engine.stats());
            previous = prompt;
            previous.extend(outcome.ids);
        }
    }
}

fn long() -> gossamer::backend::Limits {
    gossamer::backend::Limits {
        slots: 2,
        kv_blocks: 400,
        batch_tokens: 512,
        snapshots: 40,
    }
}

fn numbers(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i * i % 89).collect()
}

#[test]
fn a_conversation_goes_on_where_the_answer_ended() {
    let (engine, _) = start(small());
    let mut prompt = numbers(40);
    let ids = run(&engine, greedy(&prompt, 5)).ids;
    // A tool's result follows the call that was generated, the reasoning before it kept.
    prompt.extend(&ids);
    prompt.extend([7, 8, 9]);
    let outcome = run(&engine, greedy(&prompt, 1));
    // The answer's last token never ran.
    assert_eq!(outcome.cached, Some(44));
    let expected = Miss {
        at: 44,
        reason: MissReason::Unknown,
    };
    assert_eq!(outcome.miss, Some(expected));
}

#[test]
fn a_conversation_goes_on_where_the_prompt_ended() {
    let (engine, seen) = start_with(long(), 4096, options());
    let mut prompt = numbers(2999);
    prompt.push(MARKER);
    let ids = run(&engine, greedy(&prompt, 50)).ids;
    // The next turn leaves out the reasoning: it parts from the answer at once.
    let mut next = prompt.clone();
    next.extend(std::iter::repeat_n((ids[0] + 1) % 90, 20));
    let before = seen.lock().unwrap().rows();
    let outcome = run(&engine, greedy(&next, 4));
    assert_eq!(outcome.cached, Some(3000));
    assert_eq!(outcome.ids, greedily(&next, 4));
    assert_eq!(seen.lock().unwrap().rows() - before, 20 + 3);
    let reason = MissReason::Parted {
        cached: ids[0],
        found: next[3000],
    };
    assert_eq!(outcome.miss, Some(Miss { at: 3000, reason }));
}

/// An edited last message goes on from its beginning; a place in the middle from the last snapshot.
#[test]
fn what_parts_inside_goes_on_from_the_last_snapshot() {
    let (engine, _) = start_with(long(), 4096, options());
    let mut prompt = numbers(1500);
    prompt.push(MARKER);
    prompt.extend(numbers(300));
    run(&engine, greedy(&prompt, 1));
    let mut edited = prompt.clone();
    edited[1700] = 94;
    let outcome = run(&engine, greedy(&edited, 1));
    // The receptive field of this model is short: from nothing, that many rows before 1700.
    assert_eq!(outcome.cached, Some(1700 - RECEPTIVE_FIELD));
    assert_eq!(outcome.ids, greedily(&edited, 1));
    let mut edited = prompt.clone();
    edited[1501 + 5] = 94;
    let outcome = run(&engine, greedy(&edited, 1));
    assert_eq!(outcome.cached, Some(1500));
    assert_eq!(outcome.ids, greedily(&edited, 1));
    // Without snapshots there is only the way from nothing.
    let limits = gossamer::backend::Limits {
        snapshots: 0,
        ..long()
    };
    let (engine, _) = start_with(limits, 4096, options());
    run(&engine, greedy(&prompt, 1));
    let outcome = run(&engine, greedy(&edited, 1));
    assert_eq!(outcome.cached, Some(1506 - RECEPTIVE_FIELD));
    assert_eq!(outcome.ids, greedily(&edited, 1));
}

#[test]
fn a_miss_is_explained() {
    let limits = gossamer::backend::Limits {
        slots: 1,
        kv_blocks: 7,
        batch_tokens: 16,
        snapshots: 4,
    };
    let (engine, _) = start(limits);
    let first = numbers(100);
    let miss = |prompt: &[u32]| {
        let outcome = run(&engine, greedy(prompt, 1));
        assert_eq!(outcome.ids, greedily(prompt, 1));
        (outcome.cached.unwrap(), outcome.miss)
    };
    let is = |at, reason| Some(Miss { at, reason });
    assert_eq!(miss(&first), (0, is(0, MissReason::Unknown)));
    // All there, but for the windows.
    assert_eq!(
        miss(&first),
        (99 - RECEPTIVE_FIELD, is(99, MissReason::Window))
    );
    let mut parted = first.clone();
    parted[70] = 90;
    let reason = MissReason::Parted {
        cached: first[70],
        found: 90,
    };
    assert_eq!(miss(&parted), (70 - RECEPTIVE_FIELD, is(70, reason)));
    // Something large takes all the room but a block.
    miss(&[3; 190]);
    assert_eq!(miss(&first).1, is(32, MissReason::Evicted));
}

#[test]
fn a_disabled_cache_spares_nothing() {
    let options = EngineOptions {
        prefix_cache: false,
        ..options()
    };
    let (engine, seen) = start_with(small(), CONTEXT, options);
    for round in 1..=2 {
        let outcome = run(&engine, greedy(&numbers(60), 1));
        assert_eq!(outcome.cached, Some(0));
        assert_eq!(outcome.miss.unwrap().reason, MissReason::Disabled);
        assert_eq!(seen.lock().unwrap().rows(), 60 * round);
    }
    let stats = engine.stats();
    assert_eq!((stats.kv_blocks_cached, stats.snapshots), (0, 0));
}
