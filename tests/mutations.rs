//! The golden tests notice small mistakes: each mutation of the model that they check makes the very
//! check that the named test makes fail.

mod common;

use common::golden::Golden;
use gossamer::{
    gguf::Bytes,
    weights::{Format, Matrix, Model},
};

/// `test_forward_pass` passes on the model as it is, and fails on each of these.
#[test]
fn test_forward_pass_fails_on_a_wrong_model() {
    let golden = Golden::open();
    golden
        .check_forward_pass(golden.tiny.load())
        .expect("the model as it is passes");
    let mutations: [(&str, fn(&mut Model)); 9] = [
        ("window 127", |m| m.config.window -= 1),
        ("window 129", |m| m.config.window += 1),
        ("no sink", |m| {
            m.weights
                .layers
                .iter_mut()
                .for_each(|l| l.sinks.fill(f32::NEG_INFINITY))
        }),
        ("no sink in one layer", |m| {
            m.weights.layers[2].sinks.fill(f32::NEG_INFINITY)
        }),
        ("top-3", |m| m.config.experts_used = 3),
        ("no clamp", |m| m.config.swiglu_limit = f32::INFINITY),
        ("rounded YaRN", |m| m.config.rope.rounded = true),
        ("no YaRN", |m| m.config.rope.factor = 1.0),
        ("Q8 scales of the LM head off by one ulp", |m| {
            next_scale(&mut m.weights.output, 0..m.config.vocab);
        }),
    ];
    for (name, mutate) in mutations {
        let mut model = golden.tiny.load();
        mutate(&mut model);
        let verdict = golden.check_forward_pass(model);
        println!("{name}: {verdict:?}");
        assert!(
            verdict.is_err(),
            "test_forward_pass does not notice: {name}"
        );
    }
}

/// Every Q8_0 scale of these rows becomes the next greater f16.
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
