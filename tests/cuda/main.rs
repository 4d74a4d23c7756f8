//! The CUDA back end against the reference, on a machine with a GPU; every name begins with `gpu_`.
//! The kernels' own tests are in the library: `cargo test --release --features cuda gpu_` runs all.
#![cfg(feature = "cuda")]

#[path = "../common/mod.rs"]
mod common;

use common::{
    fresh_seed, greedy,
    models::{Random, odd_shape, random_model},
    open_with, row_errors, score, score_with, segment,
};
use gossamer::{
    backend::{Backend, Batch, KV_BLOCK, Limits, LogitRows, Segment},
    config::Config,
    gguf::Gguf,
    weights::{Format, Model},
};
use std::{path::Path, sync::Arc};

/// Median of the relative errors that f16 products may have.
const MOST: f64 = 3e-3;

/// Room for one sequence of `tokens` tokens in batches of `batch`.
fn room(tokens: usize, batch: usize) -> Limits {
    Limits {
        slots: 1,
        kv_blocks: tokens.div_ceil(KV_BLOCK),
        batch_tokens: batch,
        snapshots: 1,
    }
}

/// Asserts that rows are near the reference's: in the median, and where the router did not flip, all.
fn check(what: &str, got: &[Vec<f32>], reference: &[Vec<f32>]) {
    let mut errors = row_errors(got, reference);
    errors.sort_by(f64::total_cmp);
    let at = |share: f64| errors[((errors.len() - 1) as f64 * share) as usize];
    let line = format!(
        "{what}: {} rows, relative L2 median {:.1e}, 90 % {:.1e}, 99 % {:.1e}, most {:.1e}",
        errors.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
    println!("{line}");
    assert!(at(0.5) <= MOST && at(1.0).is_finite(), "{line}");
}

/// Pieces of the prompt that together take every chain and both kinds of attention.
const PIECES: [usize; 6] = [1, 3, 8, 9, 64, 300];

fn check_pieces(what: &str, model: &Arc<Model>, ids: &[u32]) {
    let reference = score_with("reference", model, ids);
    for piece in PIECES {
        let mut cuda = open_with(model, "cuda", 0, room(ids.len(), piece));
        let got = score(&mut *cuda, ids, piece);
        check(&format!("{what}, pieces of {piece}"), &got, &reference);
    }
}

#[test]
fn gpu_every_format_is_near_the_reference() {
    let mut random = Random(fresh_seed());
    for dense in [
        Format::Q8_0,
        Format::MXFP4,
        Format::F16,
        Format::BF16,
        Format::F32,
    ] {
        for experts in [Format::MXFP4, dense] {
            let model = Arc::new(random_model(&mut random, odd_shape(), &[dense], &[experts]));
            let ids = random.tokens(130, model.config.vocab);
            let what = format!("{} and {}", dense.name(), experts.name());
            check_pieces(&what, &model, &ids);
        }
    }
}

/// The release's formats, head counts and window, so that 300 tokens pass the window's edge.
#[test]
fn gpu_windows_are_near_the_reference() {
    let mut random = Random(fresh_seed());
    let config = Config {
        window: 128,
        layers: 4,
        hidden: 128,
        heads: 16,
        expert_width: 64,
        experts: 32,
        ..odd_shape()
    };
    let model = random_model(&mut random, config, &[Format::Q8_0], &[Format::MXFP4]);
    let (model, ids) = (Arc::new(model), random.tokens(300, 203));
    check_pieces("window of 128", &model, &ids);
}

/// The release's widths (two layers, five experts, a small vocabulary).
#[test]
fn gpu_released_widths_are_near_the_reference() {
    let mut random = Random(fresh_seed());
    let config = Config {
        layers: 2,
        hidden: 2880,
        heads: 64,
        kv_heads: 8,
        experts: 5,
        expert_width: 2880,
        window: 128,
        ..odd_shape()
    };
    let model = random_model(&mut random, config, &[Format::Q8_0], &[Format::MXFP4]);
    let (model, ids) = (Arc::new(model), random.tokens(40, 203));
    check_pieces("released widths", &model, &ids);
}

/// Sequences that decode beside others that are prefilled, in shuffled blocks and slots.
#[test]
fn gpu_ragged_batches_are_near_the_reference() {
    let mut random = Random(fresh_seed());
    let model = Arc::new(random_model(
        &mut random,
        odd_shape(),
        &[Format::Q8_0],
        &[Format::MXFP4],
    ));
    const SLOTS: usize = 12;
    const BLOCKS: usize = 7;
    let limits = Limits {
        slots: SLOTS,
        kv_blocks: SLOTS * BLOCKS,
        batch_tokens: 512,
        snapshots: 1,
    };
    let ids: Vec<Vec<u32>> = (0..SLOTS)
        .map(|_| random.tokens(BLOCKS * KV_BLOCK, model.config.vocab))
        .collect();
    // Block i of slot s: all of them, dealt out in an odd step.
    let blocks = |slot: usize| -> Vec<u32> {
        (0..BLOCKS)
            .map(|i| ((i * SLOTS + slot) * 5 % (SLOTS * BLOCKS)) as u32)
            .collect()
    };
    let mut cuda = open_with(&model, "cuda", 0, limits);
    let mut reference = open_with(&model, "reference", 1, limits);
    let mut done = [0; SLOTS];
    let (mut got, mut expected) = (Vec::new(), Vec::new());
    for step in 0..60 {
        let mut segments = Vec::new();
        for (slot, done) in done.iter_mut().enumerate() {
            let left = BLOCKS * KV_BLOCK - *done;
            // Most decode, some prefill, some rest; at times few enough for the decode chain.
            let len = match random.below(if step % 3 == 0 { 40 } else { 8 }) {
                0 => 1 + random.below(50),
                1..5 => 1,
                5 => 2 + random.below(3),
                _ => 0,
            };
            let len = len.min(left);
            if len == 0 {
                continue;
            }
            segments.push(Segment {
                slot,
                start: *done,
                kept: 0,
                tokens: ids[slot][*done..*done + len].to_vec(),
                blocks: blocks(slot),
                logits: match random.below(3) {
                    0 => LogitRows::All,
                    _ => LogitRows::Last,
                },
            });
            *done += len;
        }
        if segments.is_empty() {
            continue;
        }
        let rows: usize = segments
            .iter()
            .map(|s| match s.logits {
                LogitRows::All => s.tokens.len(),
                _ => 1,
            })
            .sum();
        let batch = Batch { segments };
        cuda.forward(&batch).unwrap();
        reference.forward(&batch).unwrap();
        for row in 0..rows {
            got.push(cuda.logits(row).to_vec());
            expected.push(reference.logits(row).to_vec());
        }
    }
    check("ragged batches", &got, &expected);
}

/// Windows saved, restored in another slot, and rebuilt from kept blocks go on as if nothing had been.
#[test]
fn gpu_snapshots_and_rebuilds_are_near_the_reference() {
    let mut random = Random(fresh_seed());
    let config = Config {
        layers: 4,
        ..odd_shape()
    };
    let model = random_model(&mut random, config, &[Format::Q8_0], &[Format::MXFP4]);
    let (model, ids) = (Arc::new(model), random.tokens(200, 203));
    let limits = Limits {
        slots: 3,
        kv_blocks: 8,
        batch_tokens: 200,
        snapshots: 2,
    };
    let reference = score_with("reference", &model, &ids);
    let mut cuda = open_with(&model, "cuda", 0, limits);
    let run = |cuda: &mut dyn Backend, slot, start: usize, end: usize, kept, logits| {
        let mut one = segment(start, &ids[start..end], logits);
        (one.slot, one.kept) = (slot, kept);
        one.blocks = (0..7).collect();
        cuda.forward(&Batch {
            segments: vec![one],
        })
        .unwrap();
    };
    run(&mut *cuda, 0, 0, 100, 0, LogitRows::Last);
    cuda.save(0, 1).unwrap();
    run(&mut *cuda, 0, 100, 150, 0, LogitRows::Last);
    let mut got = vec![cuda.logits(0).to_vec()];
    cuda.restore(2, 1).unwrap();
    run(&mut *cuda, 2, 100, 150, 0, LogitRows::Last);
    got.push(cuda.logits(0).to_vec());
    // Rebuilt from nothing: the full layers' keys and values stay as they are.
    let field = model.config.receptive_field();
    let start = 150 - field - 1;
    run(&mut *cuda, 1, start, start + field, 150, LogitRows::None);
    run(&mut *cuda, 1, start + field, 150, 150, LogitRows::Last);
    got.push(cuda.logits(0).to_vec());
    let expected = vec![reference[149].clone(); 3];
    check("windows kept and rebuilt", &got, &expected);
}

/// The demo model says the same tokens as the reference, wherever the choice is clear.
#[test]
fn gpu_greedy_tokens_are_the_references() {
    // Cargo runs tests in the repository's root.
    let gguf = Gguf::open(Path::new("models/demo/demo.gguf")).expect("the demo model");
    let model = Arc::new(Model::load(&gguf).expect("loads"));
    let mut random = Random(fresh_seed());
    let ids = random.tokens(400, model.config.vocab);
    let (mut same, mut clear) = (0, 0);
    let mut cuda = open_with(&model, "cuda", 0, room(ids.len(), 400));
    let (got, expected) = (
        score(&mut *cuda, &ids, 400),
        score_with("reference", &model, &ids),
    );
    for (got, expected) in got.iter().zip(&expected) {
        let ((a, _), (b, lead)) = (greedy(got), greedy(expected));
        if lead > 0.1 {
            clear += 1;
            same += usize::from(a == b);
        }
    }
    println!("{same} of {clear} clear choices agree");
    assert!(clear > 20 && same == clear, "{same} of {clear}");
}
