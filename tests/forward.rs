//! The forward pass against engines that we did not write: mlx-lm (live, and as a golden file) and
//! llama.cpp (golden file), on a small random model with equal values in each engine's own form.

mod common;

use common::{
    cpu_backends, fresh_seed,
    golden::{Golden, REFERENCE_ERROR, check_weights},
    greedy, max, mean,
    models::Tiny,
    read_npy, row_errors, score_with, tool,
};
use std::sync::Arc;

/// Shape, finite values and agreement with mlx-lm's golden logits, with the YaRN of the release.
#[test]
fn test_forward_pass() {
    let golden = Golden::open();
    golden.check_forward_pass(golden.tiny.load()).unwrap();
    let model = Arc::new(golden.tiny.load());
    for backend in cpu_backends() {
        let logits = score_with(&backend, &model, &golden.tiny.ids);
        assert_eq!(logits.len(), golden.tiny.ids.len(), "{backend}");
        assert!(
            logits.iter().all(|row| row.len() == model.config.vocab),
            "{backend}"
        );
        assert!(logits.iter().flatten().all(|x| x.is_finite()), "{backend}");
    }
}

/// What the forward pass starts from: every tensor of a fresh file, bit for bit.
#[test]
fn loaded_weights_are_the_judges_bit_for_bit() {
    let tiny = Tiny::make(fresh_seed());
    check_weights(&tiny, &tiny.load()).unwrap();
}

/// A fresh model each time: mlx-lm as it is (it rounds YaRN's range) against `--rope-compat`, and with
/// the released frequencies put in against the default.
#[test]
fn reference_agrees_with_mlx_lm_live() {
    let tiny = Tiny::make(fresh_seed());
    for (rope, rounded) in [("rounded", true), ("released", false)] {
        let out = tiny.path("mlx.npy");
        tool(
            "judge_mlx.py",
            &[
                &tiny.path("mlx"),
                &tiny.path("ids.json"),
                &out,
                &"--rope",
                &rope,
            ],
        );
        let judge = read_npy(&out);
        let mut model = tiny.load();
        model.config.rope.rounded = rounded;
        let errors = row_errors(
            &score_with("reference", &Arc::new(model), &tiny.ids),
            &judge,
        );
        println!(
            "{rope}: mean {:.1e}, worst {:.1e}",
            mean(&errors),
            max(&errors)
        );
        assert_eq!(errors.len(), 300);
        assert!(
            max(&errors) <= REFERENCE_ERROR,
            "{rope}: worst {:.1e}",
            max(&errors)
        );
    }
}

/// The fast path is at least as near to the reference as llama.cpp is on the same file, and picks
/// the reference's token wherever that leads by more than the error.
#[test]
fn cpu_error_is_no_larger_than_llama_cpps() {
    let golden = Golden::open();
    let mut model = golden.tiny.load();
    model.config.rope.rounded = true;
    let model = Arc::new(model);
    let reference = score_with("reference", &model, &golden.tiny.ids);
    let theirs = row_errors(&golden.llama, &reference);
    println!(
        "llama.cpp: mean {:.3e}, worst {:.3e}",
        mean(&theirs),
        max(&theirs)
    );
    assert!(
        mean(&theirs) < 0.02,
        "llama.cpp and the reference compute different models"
    );
    for backend in cpu_backends() {
        let logits = score_with(&backend, &model, &golden.tiny.ids);
        let ours = row_errors(&logits, &reference);
        println!(
            "{backend}: mean {:.3e}, worst {:.3e}",
            mean(&ours),
            max(&ours)
        );
        assert!(
            mean(&ours) <= mean(&theirs),
            "{backend}: mean {:.3e}",
            mean(&ours)
        );
        for (position, (row, exact)) in logits.iter().zip(&reference).enumerate() {
            let apart = row
                .iter()
                .zip(exact)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            let (token, lead) = greedy(exact);
            assert!(
                lead <= 2.0 * apart || greedy(row).0 == token,
                "{backend}, position {position}"
            );
        }
    }
}
