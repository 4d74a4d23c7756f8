//! Attention on a GPU against a softmax in f64 on the host.

mod case;

use super::*;
use crate::backend::KV_BLOCK;
use case::{Case, How, Random};

/// KV heads, heads of each, window (0: a full layer), and [`Case::new`]'s segments.
type Shape<'a> = (usize, usize, usize, &'a [(usize, usize, usize)]);

/// Runs shapes by every plan that may run them.
fn check(shapes: &[Shape], most: usize, seed: u64) {
    let device = Device::open().expect("a GPU");
    let mut random = Random(seed);
    for &(kv_heads, group, window, shape) in shapes {
        let case = Case::new(kv_heads, group, window, shape, &mut random);
        for how in [How::Rows, How::Plan, How::Fresh] {
            if how == How::Fresh && window == 0 || how == How::Rows && case.rows.len() > 64 {
                continue;
            }
            let longest = shape.iter().map(|s| s.1).max().unwrap_or(0);
            if how != How::Fresh && window > 0 && longest > case.ring_steps * KV_BLOCK + 1 - window
            {
                continue; // the ring can't hold what all rows see
            }
            let error = case.run(&device, how, most, &mut random);
            let what = format!(
                "{how:?}: {kv_heads} KV heads, {group} each, window {window}, {shape:?}: {error:.1e}"
            );
            println!("{what}");
            assert!(error < 1e-3, "{what}");
        }
    }
}

#[test]
fn gpu_attention_sees_windows_to_their_edges() {
    let single: Vec<_> = [0, 1, 31, 32, 126, 127, 128, 129, 130, 159, 160, 161, 1000]
        .iter()
        .map(|&start| (start, 1, start))
        .collect();
    let rebuilt = [
        (500, 1, 0),
        (501, 3, 1),
        (700, 2, 100),
        (900, 33, 126),
        (901, 33, 127),
        (902, 33, 128),
    ];
    for window in [127, 128, 129, 130] {
        check(
            &[
                (2, 8, window, &single),
                (2, 8, window, &rebuilt),
                (1, 2, window, &rebuilt[..2]),
                (1, 8, window, &[(64, 30, 3), (64, 4, 1000)]),
            ],
            100,
            window as u64,
        );
    }
    check(
        &[
            (2, 4, 1, &[(9, 1, 9), (40, 5, 40)]),
            (2, 4, 33, &[(9, 1, 9), (400, 20, 400)]),
        ],
        100,
        3,
    );
}

#[test]
fn gpu_attention_of_ragged_segments() {
    let few: Vec<_> = (1..=9).map(|len| (len * 37, len, 0)).collect();
    let mixed = [
        (0, 300, 0),
        (77, 1, 0),
        (1000, 1, 0),
        (5000, 9, 0),
        (31, 2, 0),
        (640, 33, 0),
    ];
    let windows: Vec<_> = mixed
        .iter()
        .map(|&(start, len, _)| (start, len, start))
        .collect();
    for group in [1, 2, 3, 8, 16] {
        check(
            &[
                (2, group, 0, &few),
                (3, group, 0, &mixed),
                (2, group, 128, &windows),
            ],
            40,
            group as u64,
        );
    }
    check(
        &[(8, 8, 0, &mixed), (8, 8, 128, &windows), (1, 128, 0, &few)],
        12,
        99,
    );
}

#[test]
fn gpu_attention_deep() {
    let streams: Vec<_> = (0..64).map(|i| (i * i, 1, 0)).collect();
    check(
        &[
            (8, 8, 0, &[(4999, 1, 0)]),
            (2, 8, 0, &[(4000, 1, 0), (20_000, 40, 0), (3, 1, 0)]),
            (2, 8, 0, &streams),
            (1, 8, 0, &[(131_071, 1, 0)]),
            (1, 8, 0, &[(131_000, 72, 0)]),
        ],
        4,
        5,
    );
}
