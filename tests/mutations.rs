//! The golden tests notice small mistakes: each mutation of the model that they check makes the very
//! check that the named test makes fail.

mod common;

use common::{
    cpu_backends, fresh_seed,
    golden::{Golden, check_near, check_weights, most_error},
    models::{Random, Tiny, odd_shape, random_model},
    score_with,
};
use gossamer::{
    gguf::Bytes,
    weights::{Format, Matrix, Model},
};
use std::sync::Arc;

type Mutation = (&'static str, fn(&mut Model));

/// Mistakes in what is computed.
const MISTAKES: [Mutation; 7] = [
    ("window shorter by 1", |m| m.config.window -= 1),
    ("window longer by 1", |m| m.config.window += 1),
    ("no sink", |m| {
        m.weights
            .layers
            .iter_mut()
            .for_each(|l| l.sinks.fill(f32::NEG_INFINITY))
    }),
    ("no sink in one layer", |m| {
        m.weights.layers[1].sinks.fill(f32::NEG_INFINITY)
    }),
    ("top-3", |m| m.config.experts_used = 3),
    ("no clamp", |m| m.config.swiglu_limit = f32::INFINITY),
    ("no YaRN", |m| m.config.rope.factor = 1.0),
];

/// `test_forward_pass` passes on the model as it is (window 128), and fails on each of these.
#[test]
fn test_forward_pass_fails_on_a_wrong_model() {
    let golden = Golden::open();
    golden
        .check_forward_pass(golden.tiny.load())
        .expect("the model as it is passes");
    // Small ones, that only f32 agreement shows.
    let small: [Mutation; 2] = [
        ("rounded YaRN", |m| m.config.rope.rounded = true),
        ("Q8 scales of the LM head off by one ulp", |m| {
            next_scale(&mut m.weights.output, 0..m.config.vocab);
        }),
    ];
    for (mistake, make) in MISTAKES.into_iter().chain(small) {
        let mut model = golden.tiny.load();
        make(&mut model);
        let verdict = golden.check_forward_pass(model);
        println!("{mistake}: {verdict:?}");
        assert!(
            verdict.is_err(),
            "test_forward_pass does not notice: {mistake}"
        );
    }
}

/// `loaded_weights_are_the_judges_bit_for_bit` passes on the file as it is, and fails when the scale
/// of one block is off by one ulp.
#[test]
fn test_loaded_weights_fails_on_one_wrong_scale() {
    let tiny = Tiny::make(1);
    let mut model = tiny.load();
    check_weights(&tiny, &model).expect("the weights as they are pass");
    next_scale(&mut model.weights.layers[3].k.weight, 77..78);
    check_weights(&tiny, &model).expect_err("a scale off by one ulp");
}

/// `every_format_is_near_the_reference` notices those mistakes in the fast CPU path, on any
/// instruction set.
#[test]
fn test_near_the_reference_fails_on_a_wrong_cpu_path() {
    let seed = fresh_seed();
    let model = || {
        let mut random = Random(seed);
        random_model(&mut random, odd_shape(), &[Format::F32], &[Format::F32])
    };
    let ids = Random(seed ^ 1).tokens(200, odd_shape().vocab);
    let (right, most) = (Arc::new(model()), most_error(Format::F32));
    let reference = score_with("reference", &right, &ids);
    for name in cpu_backends() {
        check_near(&name, &right, &ids, &reference, most).expect("the right model passes");
        for (mistake, make) in MISTAKES {
            let mut wrong = model();
            make(&mut wrong);
            let verdict = check_near(&name, &Arc::new(wrong), &ids, &reference, most);
            assert!(verdict.is_err(), "{name}: not noticed: {mistake}");
        }
    }
}

/// Every Q8_0 scale of these rows becomes the next f16.
fn next_scale(matrix: &mut Matrix, rows: std::ops::Range<usize>) {
    assert_eq!(matrix.format, Format::Q8_0);
    let row = matrix.format.row_bytes(matrix.cols);
    let mut data = matrix.data.to_vec();
    for block in data[rows.start * row..rows.end * row].chunks_exact_mut(34) {
        let next = u16::from_le_bytes([block[0], block[1]]) + 1;
        block[..2].copy_from_slice(&next.to_le_bytes());
    }
    matrix.data = Bytes::Owned(data.into());
}
