//! A trace shows every stage of every layer, the same ones from every back end, and changes nothing.

use crate::common::{
    cpu_backends, fresh_seed,
    models::{Random, odd_shape, random_model},
    open, relative_l2, score_with,
};
use gossamer::{
    backend::{Batch, LogitRows},
    score::{BackendScorer, Scorer},
    trace::Stage,
    weights::{Format, Model},
};
use std::{collections::BTreeMap, sync::Arc};

/// By layer and stage: the rows of all positions.
type Stages = BTreeMap<(Option<usize>, Stage), Vec<Vec<f32>>>;

fn scorer(name: &str, model: &Arc<Model>, tokens: usize, piece: usize) -> BackendScorer {
    BackendScorer::new(open(model, name, 1, tokens), piece)
}

fn trace(name: &str, model: &Arc<Model>, ids: &[u32], piece: usize) -> Stages {
    let mut stages = Stages::new();
    let mut scorer = scorer(name, model, ids.len(), piece);
    scorer
        .trace(ids, &mut |piece| {
            let rows = stages.entry((piece.layer, piece.stage)).or_default();
            for (position, row) in piece.rows() {
                assert_eq!(position, rows.len(), "{:?} {}", piece.layer, piece.stage);
                rows.push(row.to_vec());
            }
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{name}: {e:#}"));
    stages
}

/// Every stage of every back end, in pieces that every thread repeats (4 rows and less) and that are shared
/// out, is the reference's.
#[test]
fn every_back_end_shows_the_same_stages() {
    let mut random = Random(fresh_seed());
    let config = odd_shape();
    let model = random_model(&mut random, config.clone(), &[Format::F32], &[Format::F32]);
    let model = Arc::new(model);
    let ids = random.tokens(70, config.vocab);
    let reference = trace("reference", &model, &ids, 70);
    assert_eq!(reference.len(), 2 + 6 * config.layers);
    let (q, kv) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let widths = |layer, stage| reference[&(layer, stage)][0].len();
    assert_eq!(widths(Some(1), Stage::NormQkvRopeAppend), q + 2 * kv);
    assert_eq!(widths(Some(2), Stage::NormRouterTopk), config.experts);
    let pairs = config.experts_used * config.expert_width;
    assert_eq!(widths(Some(0), Stage::ExpertGateUpSwiglu), pairs);
    assert_eq!(widths(None, Stage::NormLmHead), config.vocab);
    for name in cpu_backends() {
        for piece in [70, 33, 3, 1] {
            let stages = trace(&name, &model, &ids, piece);
            assert!(stages.keys().eq(reference.keys()), "{name}");
            for (key, rows) in &stages {
                assert_eq!(rows.len(), ids.len(), "{name} {key:?}");
                for (position, (a, b)) in rows.iter().zip(&reference[key]).enumerate() {
                    let error = relative_l2(a, b);
                    // The cache is f16, all else f32.
                    assert!(
                        error < 2e-3,
                        "{name}, pieces of {piece}, {key:?}, {position}: {error}"
                    );
                }
            }
        }
    }
}

/// A traced pass computes what an untraced one does, bit for bit, and leaves the cache as that does.
#[test]
fn looking_changes_nothing() {
    let mut random = Random(fresh_seed());
    let model = random_model(&mut random, odd_shape(), &[Format::Q8_0], &[Format::MXFP4]);
    let model = Arc::new(model);
    let ids = random.tokens(50, model.config.vocab);
    let names = cpu_backends().into_iter().chain(["reference".into()]);
    for name in names {
        let plain = score_with(&name, &model, &ids);
        let stages = trace(&name, &model, &ids, 20);
        assert_eq!(stages[&(None, Stage::NormLmHead)], plain, "{name}");
    }
}

#[test]
fn rows_are_scored_from_anywhere_on() {
    let mut random = Random(fresh_seed());
    let model = random_model(&mut random, odd_shape(), &[Format::Q8_0], &[Format::MXFP4]);
    let model = Arc::new(model);
    let ids = random.tokens(40, model.config.vocab);
    let plain = score_with("cpu", &model, &ids);
    let mut scorer = scorer("cpu", &model, 40, 16);
    // The second time over the first's cache.
    for first in [0, 1, 16, 17, 39, 40] {
        let mut positions = Vec::new();
        let score = scorer.score(&ids, first, &mut |position, row| {
            assert_eq!(row, plain[position]);
            positions.push(position);
            Ok(())
        });
        score.unwrap();
        assert_eq!(positions, (first..40).collect::<Vec<_>>());
    }
}

#[test]
fn what_cannot_be_scored_or_traced_is_an_error() {
    let mut random = Random(1);
    let model = random_model(&mut random, odd_shape(), &[Format::F32], &[Format::F32]);
    let model = Arc::new(model);
    let mut scorer = scorer("cpu", &model, 32, 8);
    let mut ignore = |_: usize, _: &[f32]| Ok(());
    let error = scorer.score(&[0; 33], 0, &mut ignore).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("33 tokens to score; the context is 32")
    );
    let error = scorer.score(&[1, 203], 0, &mut ignore).unwrap_err();
    assert!(error.to_string().contains("id 203 at index 1"), "{error}");
    // Whoever looks may stop it.
    for name in ["cpu", "reference"] {
        let mut scorer = self::scorer(name, &model, 32, 8);
        let mut calls = 0;
        let stopped = scorer.trace(&[1, 2, 3], &mut |_| {
            calls += 1;
            anyhow::bail!("the disk is full")
        });
        assert_eq!(stopped.unwrap_err().to_string(), "the disk is full");
        assert_eq!(calls, 1, "{name}");
    }
    let mut backend = open(&model, "cpu", 1, 32);
    let mut batch = Batch {
        segments: vec![crate::common::segment(0, &[1, 2], LogitRows::Last)],
    };
    assert!(backend.forward_traced(&batch, &mut |_| Ok(())).is_err());
    batch.segments[0].logits = LogitRows::All;
    assert!(backend.forward_traced(&batch, &mut |_| Ok(())).is_ok());
}
