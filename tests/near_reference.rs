//! The fast back ends against the reference: every weight format, the released widths, long contexts,
//! and weights that overflow.

mod common;

use common::{
    cpu_backends, fresh_seed,
    golden::{check_near, most_error},
    models::{Random, odd_shape, random_model},
    open_with, score, score_with, segment,
};
use gossamer::{
    backend::{Batch, KV_BLOCK, Limits, LogitRows},
    config::Config,
    gguf::Bytes,
    weights::Format,
};
use std::sync::Arc;

const FORMATS: [Format; 5] = [
    Format::Q8_0,
    Format::MXFP4,
    Format::F16,
    Format::BF16,
    Format::F32,
];

/// Every weight format, on every instruction set, near the reference.
#[test]
fn every_format_is_near_the_reference() {
    let mut random = Random(fresh_seed());
    for format in FORMATS {
        let config = Config {
            layers: 2,
            ..odd_shape()
        };
        let model = Arc::new(random_model(&mut random, config, &[format], &[format]));
        let ids = random.tokens(200, model.config.vocab);
        let reference = score_with("reference", &model, &ids);
        for name in cpu_backends() {
            check_near(&name, &model, &ids, &reference, most_error(format)).unwrap();
        }
    }
}

/// The release's widths, head counts and formats (fewer layers and experts, a small vocabulary).
#[test]
fn released_widths_are_near_the_reference() {
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
    let (model, ids) = (Arc::new(model), random.tokens(6, 203));
    let reference = score_with("reference", &model, &ids);
    for name in cpu_backends() {
        check_near(&name, &model, &ids, &reference, most_error(Format::Q8_0)).unwrap();
    }
}

/// Thousands of keys on the full layer, in prefill and in decode, many times round the sliding ring.
#[test]
fn long_contexts_are_near_the_reference() {
    let mut random = Random(fresh_seed());
    let config = Config {
        layers: 2,
        hidden: 64,
        heads: 2,
        kv_heads: 1,
        expert_width: 32,
        window: 128,
        ..odd_shape()
    };
    let model = random_model(&mut random, config, &[Format::F32], &[Format::F32]);
    let (model, ids) = (Arc::new(model), random.tokens(3000, 203));
    let limits = Limits {
        slots: 1,
        kv_blocks: ids.len().div_ceil(KV_BLOCK),
        batch_tokens: 512,
        snapshots: 0,
    };
    let ends = |name: &str| {
        let mut backend = open_with(&model, name, 2, limits);
        let mut rows = score(&mut *backend, &ids[..2990], 512);
        for at in 2990..3000 {
            let segments = vec![segment(at, &ids[at..=at], LogitRows::Last)];
            backend.forward(&Batch { segments }).unwrap();
            rows.push(backend.logits(0).to_vec());
        }
        rows
    };
    let reference = ends("reference");
    for name in cpu_backends() {
        let errors = common::row_errors(&ends(&name), &reference);
        for part in [0..1000, 1000..2990, 2990..3000] {
            let mut errors = errors[part.clone()].to_vec();
            errors.sort_by(f64::total_cmp);
            let median = errors[errors.len() / 2];
            println!("{name}, positions {part:?}: median {median:.1e}");
            assert!(
                median < most_error(Format::F32),
                "{name}, {part:?}: median {median:.1e}"
            );
        }
    }
}

/// Scales at their greatest overflow f32. No back end panics, and none makes plausible logits of it:
/// what is not finite is still not finite at the end, where the sampler says so.
#[test]
fn weights_that_overflow_are_seen_and_panic_nowhere() {
    let mut random = Random(fresh_seed());
    let mut model = random_model(&mut random, odd_shape(), &[Format::Q8_0], &[Format::MXFP4]);
    let (ids, down) = (
        random.tokens(40, 203),
        &mut model.weights.layers[0].down.weight,
    );
    let mut data = down.data.to_vec();
    data.chunks_exact_mut(17).for_each(|block| block[0] = 255);
    down.data = Bytes::Owned(data.into());
    let model = Arc::new(model);
    let reference = score_with("reference", &model, &ids);
    assert!(
        reference.iter().flatten().any(|x| !x.is_finite()),
        "nothing overflowed"
    );
    for name in cpu_backends() {
        let logits = score_with(&name, &model, &ids);
        assert_eq!(logits.len(), ids.len(), "{name}");
        let finite = |row: &[f32]| row.iter().all(|x| x.is_finite());
        for (position, (row, exact)) in logits.iter().zip(&reference).enumerate() {
            assert!(
                finite(exact) || !finite(row),
                "{name}, position {position}: an overflow has become finite logits"
            );
        }
    }
}

/// A sequence that has overflowed leaves nothing behind for the next one in its place.
#[test]
fn an_overflow_does_not_outlive_its_sequence() {
    let mut random = Random(fresh_seed());
    let mut model = random_model(&mut random, odd_shape(), &[Format::F32], &[Format::MXFP4]);
    let embedding = &mut model.weights.token_embd;
    let mut data = embedding.data.to_vec();
    let row = embedding.format.row_bytes(embedding.cols);
    data[7 * row..7 * row + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    embedding.data = Bytes::Owned(data.into());
    let model = Arc::new(model);
    let broken = vec![7; 60];
    let mut good = random.tokens(37, 203);
    good.iter_mut().for_each(|id| *id += u32::from(*id == 7));
    for name in cpu_backends() {
        let mut backend = common::open(&model, &name, 1, 60);
        let rows = score(&mut *backend, &broken, 60);
        assert!(!rows[59].iter().any(|x| x.is_finite()), "{name}");
        let again = score(&mut *backend, &good, 37);
        assert_eq!(again, score_with(&name, &model, &good), "{name}");
        assert!(again.iter().flatten().all(|x| x.is_finite()), "{name}");
    }
}
