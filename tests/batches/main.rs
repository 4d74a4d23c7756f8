//! How tokens are fed must not show: pieces, ragged batches, slots and shuffled blocks give the
//! logits of one long prefill, bit for bit, for every back end and instruction set.

#[path = "../common/mod.rs"]
mod common;
mod prefix;

use common::{
    cpu_backends, fresh_seed,
    models::{Random, odd_shape, random_model},
    open, open_with, score, score_with, segment,
};
use gossamer::{
    backend::{Batch, KV_BLOCK, Limits, LogitRows, Segment},
    config::Config,
    weights::{Format, Model},
};
use std::sync::Arc;

const DENSE: [Format; 4] = [Format::Q8_0, Format::F16, Format::BF16, Format::F32];

fn backends() -> Vec<String> {
    let mut names = vec!["reference".to_owned()];
    names.extend(cpu_backends());
    names
}

/// The release's formats and window, so that 300 tokens pass the window's edge.
fn release_like(random: &mut Random) -> Arc<Model> {
    let config = Config {
        window: 128,
        layers: 2,
        hidden: 128,
        expert_width: 64,
        ..odd_shape()
    };
    Arc::new(random_model(
        random,
        config,
        &[Format::Q8_0],
        &[Format::MXFP4],
    ))
}

/// Odd block counts, a window that no block divides, every format.
fn odd(random: &mut Random) -> Arc<Model> {
    let experts = [Format::MXFP4, Format::Q8_0, Format::F16];
    Arc::new(random_model(random, odd_shape(), &DENSE, &experts))
}

fn assert_same(name: &str, what: &str, a: &[Vec<f32>], b: &[Vec<f32>]) {
    assert_eq!(a.len(), b.len(), "{name}, {what}");
    for (row, (a, b)) in a.iter().zip(b).enumerate() {
        let same = a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(
            same,
            "{name}, {what}: row {row} differs by {:.1e}",
            common::relative_l2(a, b)
        );
    }
}

#[test]
fn prefill_in_pieces_equals_one_piece() {
    let mut random = Random(fresh_seed());
    for (model, tokens) in [(release_like(&mut random), 300), (odd(&mut random), 100)] {
        let ids = random.tokens(tokens, model.config.vocab);
        for name in backends() {
            let whole = score_with(&name, &model, &ids);
            assert!(whole.iter().flatten().all(|x| x.is_finite()), "{name}");
            for piece in [1, 7, 64] {
                let pieces = score(&mut *open(&model, &name, 1, ids.len()), &ids, piece);
                assert_same(&name, &format!("pieces of {piece}"), &pieces, &whole);
            }
        }
    }
}

/// As the engine feeds a prompt: inner pieces without logits, the last row's only, then decode.
#[test]
fn prefill_then_decode_equals_scoring() {
    let mut random = Random(fresh_seed());
    let model = odd(&mut random);
    let ids = random.tokens(80, model.config.vocab);
    for name in backends() {
        let whole = score_with(&name, &model, &ids);
        let mut backend = open(&model, &name, 1, ids.len());
        for (start, end, logits) in [(0, 33, LogitRows::None), (33, 70, LogitRows::Last)] {
            let segments = vec![segment(start, &ids[start..end], logits)];
            backend.forward(&Batch { segments }).unwrap();
        }
        assert_same(
            &name,
            "last row of a prefill",
            &[backend.logits(0).to_vec()],
            &whole[69..70],
        );
        for (i, row) in whole.iter().enumerate().skip(70) {
            let segments = vec![segment(i, &ids[i..=i], LogitRows::Last)];
            backend.forward(&Batch { segments }).unwrap();
            let decoded = backend.logits(0).to_vec();
            assert_same(
                &name,
                &format!("decode at {i}"),
                &[decoded],
                std::slice::from_ref(row),
            );
        }
    }
}

/// One sequence of a ragged run: its tokens, its scattered blocks, the rows got so far.
struct Sequence {
    ids: Vec<u32>,
    blocks: Vec<u32>,
    rows: Vec<Vec<f32>>,
}

/// Sequences that come and go in a few slots, pieces of random length beside single tokens, blocks
/// dealt from a shuffled pool: every row equals the one of the sequence run alone.
#[test]
fn ragged_batches_equal_solo_runs() {
    let mut random = Random(fresh_seed());
    for model in [release_like(&mut random), odd(&mut random)] {
        for name in backends() {
            ragged(&name, &model, &mut random);
        }
    }
}

fn ragged(name: &str, model: &Arc<Model>, random: &mut Random) {
    const SLOTS: usize = 3;
    let mut pool: Vec<u32> = (0..64).collect();
    for i in (1..pool.len()).rev() {
        pool.swap(i, random.below(i + 1));
    }
    let limits = Limits {
        slots: SLOTS,
        kv_blocks: pool.len(),
        batch_tokens: 120,
        snapshots: 0,
    };
    let mut backend = open_with(model, name, 2, limits);
    let mut slots: [Option<Sequence>; SLOTS] = [None, None, None];
    let mut waiting = 7;
    while waiting > 0 || slots.iter().any(Option::is_some) {
        let mut segments = Vec::new();
        for (slot, place) in slots.iter_mut().enumerate() {
            if place.is_none() && waiting > 0 {
                waiting -= 1;
                let len = 1 + random.below(180);
                let blocks = pool.split_off(pool.len() - len.div_ceil(KV_BLOCK));
                let ids = random.tokens(len, model.config.vocab);
                *place = Some(Sequence {
                    ids,
                    blocks,
                    rows: Vec::new(),
                });
            }
            let Some(sequence) = place else { continue };
            let left = sequence.ids.len() - sequence.rows.len();
            let take = [0, 1, 1, 2, 40][random.below(5)].min(left);
            if take == 0 {
                continue;
            }
            let start = sequence.rows.len();
            segments.push(Segment {
                slot,
                start,
                kept: 0,
                tokens: sequence.ids[start..start + take].to_vec(),
                blocks: sequence.blocks.clone(),
                logits: LogitRows::All,
            });
        }
        if segments.is_empty() {
            continue;
        }
        // The order of segments is the caller's.
        let first = random.below(segments.len());
        segments.rotate_left(first);
        let batch = Batch { segments };
        backend.forward(&batch).unwrap();
        let mut row = 0;
        for segment in &batch.segments {
            let Some(sequence) = &mut slots[segment.slot] else {
                unreachable!("it was fed")
            };
            for _ in &segment.tokens {
                sequence.rows.push(backend.logits(row).to_vec());
                row += 1;
            }
        }
        for place in &mut slots {
            if let Some(done) = place.take_if(|s| s.rows.len() == s.ids.len()) {
                let solo = score_with(name, model, &done.ids);
                assert_same(name, "ragged", &done.rows, &solo);
                pool.splice(0..0, done.blocks);
            }
        }
    }
}

/// The number of threads does not show either.
#[test]
fn threads_do_not_change_logits() {
    let mut random = Random(fresh_seed());
    let model = odd(&mut random);
    let ids = random.tokens(70, model.config.vocab);
    let limits = Limits {
        slots: 1,
        kv_blocks: 3,
        batch_tokens: 70,
        snapshots: 0,
    };
    for name in cpu_backends() {
        let alone = score(&mut *open_with(&model, &name, 1, limits), &ids, 64);
        for threads in [2, 3, 5] {
            let together = score(&mut *open_with(&model, &name, threads, limits), &ids, 64);
            assert_same(&name, &format!("{threads} threads"), &together, &alone);
        }
    }
}

/// Counts work, not seconds: with the cache, decoding one more token sends one row through the
/// projections and one through the LM head, however long the context; without it, all of them.
#[test]
fn test_cache_improves_speed() {
    let mut random = Random(fresh_seed());
    let model = release_like(&mut random);
    let ids = random.tokens(96, model.config.vocab);
    for name in backends() {
        let mut cached = open(&model, &name, 1, ids.len());
        let prompt = vec![segment(0, &ids[..64], LogitRows::Last)];
        cached.forward(&Batch { segments: prompt }).unwrap();
        assert_eq!(
            (cached.work().token_rows, cached.work().logit_rows),
            (64, 1),
            "{name}"
        );
        let mut uncached = open(&model, &name, 1, ids.len());
        for end in 65..=ids.len() {
            let (before, before_uncached) = (cached.work(), uncached.work());
            let one = vec![segment(end - 1, &ids[end - 1..end], LogitRows::Last)];
            cached.forward(&Batch { segments: one }).unwrap();
            let all = vec![segment(0, &ids[..end], LogitRows::Last)];
            uncached.forward(&Batch { segments: all }).unwrap();
            assert_eq!(cached.work().token_rows - before.token_rows, 1, "{name}");
            assert_eq!(cached.work().logit_rows - before.logit_rows, 1, "{name}");
            let rows = uncached.work().token_rows - before_uncached.token_rows;
            assert_eq!(rows, end as u64, "{name}");
            let bytes = cached.work().bytes - before.bytes;
            assert!(
                bytes > 0 && bytes <= uncached.work().bytes - before_uncached.bytes,
                "{name}"
            );
            let (a, b) = (cached.logits(0).to_vec(), uncached.logits(0).to_vec());
            assert_same(&name, "with and without cache", &[a], &[b]);
        }
    }
}

/// A batch that cannot be run is an error that says why, and the next good one runs.
#[test]
fn impossible_batches_are_errors() {
    let mut random = Random(fresh_seed());
    let model = odd(&mut random);
    let ids = random.tokens(40, model.config.vocab);
    let good = segment(0, &ids, LogitRows::Last);
    let with = |change: &dyn Fn(&mut Segment)| {
        let mut segment = good.clone();
        change(&mut segment);
        vec![segment]
    };
    let bad = [
        ("slot 1 of 1", with(&|s| s.slot = 1)),
        ("without tokens", with(&|s| s.tokens.clear())),
        (
            "token id 203; the vocabulary has 203",
            with(&|s| s.tokens[3] = 203),
        ),
        (
            "40 tokens in a block table for 32",
            with(&|s| s.blocks.truncate(1)),
        ),
        ("KV block 2 of 2", with(&|s| s.blocks[1] = 2)),
        ("the model's context is 131072", with(&|s| s.start = 131072)),
        (
            "the model's context is 131072",
            with(&|s| s.start = usize::MAX),
        ),
        ("a batch of 64 tokens", with(&|s| s.tokens = vec![0; 64])),
        (
            "twice",
            vec![
                segment(0, &ids[..2], LogitRows::Last),
                segment(0, &ids[..2], LogitRows::Last),
            ],
        ),
        (
            "holds 0 tokens",
            with(&|s| (s.start, s.tokens) = (5, vec![1])),
        ),
    ];
    for name in backends() {
        let mut backend = open(&model, &name, 1, 40);
        for (says, segments) in &bad {
            let error = backend.forward(&Batch {
                segments: segments.clone(),
            });
            let error = error.expect_err(says).to_string();
            assert!(
                error.contains(says),
                "{name}: {error:?} should say {says:?}"
            );
        }
        let rows = score(&mut *backend, &ids, 40);
        assert_same(
            &name,
            "after errors",
            &rows,
            &score_with(&name, &model, &ids),
        );
    }
}
