//! Every instruction set against the scalar table, bit for bit, on fresh random inputs.
#![allow(clippy::needless_range_loop)] // several arrays are walked together

use super::*;
use attention::{Partial, STEP};
use proptest::{prelude::*, test_runner::TestRunner};
use std::ops::Range;

/// A small generator, so that a failing case is its seed.
struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Roughly normal.
    fn float(&mut self) -> f32 {
        (0..4)
            .map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5)
            .sum::<f32>()
            * 1.7
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// Rows of random weights in `format`.
fn weights(random: &mut Random, format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..rows * format.row_bytes(cols))
        .map(|_| random.next() as u8)
        .collect();
    match format {
        Format::F32 => {
            bytes = random
                .floats(rows * cols)
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect()
        }
        Format::F16 => {
            let half = |x: &f32| half::f16::from_f32(*x).to_le_bytes();
            bytes = random.floats(rows * cols).iter().flat_map(half).collect();
        }
        Format::BF16 => {
            let half = |x: &f32| half::bf16::from_f32(*x).to_le_bytes();
            bytes = random.floats(rows * cols).iter().flat_map(half).collect();
        }
        Format::Q8_0 => {
            for block in bytes.chunks_exact_mut(34) {
                block[..2]
                    .copy_from_slice(&half::f16::from_f32(random.float() * 0.01).to_le_bytes());
            }
        }
        Format::MXFP4 => {
            for block in bytes.chunks_exact_mut(17) {
                block[0] = match random.next() % 16 {
                    0 => 0,
                    1 => 1,
                    _ => 110 + (random.next() % 20) as u8,
                };
            }
        }
    }
    bytes
}

/// Activations with their quantized form.
struct Activations {
    f: Vec<f32>,
    q: Vec<i8>,
    scale: Vec<f32>,
    sum: Vec<i32>,
}
impl Activations {
    fn new(kernels: &Kernels, f: Vec<f32>) -> Activations {
        let blocks = (f.len() / BLOCK).next_multiple_of(GROUP);
        let mut a = Activations {
            f,
            q: vec![1; blocks * BLOCK],
            scale: vec![1.0; blocks],
            sum: vec![1; blocks],
        };
        kernels.quantize(&a.f, &mut a.q, &mut a.scale, &mut a.sum);
        a
    }
    fn row(&self) -> XRow<'_> {
        XRow {
            f: &self.f,
            q: &self.q,
            scale: &self.scale,
            sum: &self.sum,
        }
    }
}

fn others() -> impl Iterator<Item = &'static Kernels> {
    available().filter(|k| k.name != "scalar")
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Runs `test(seed, rows, blocks, tokens)` on random shapes.
fn check(cases: u32, test: impl Fn(u64, usize, usize, usize)) {
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..Default::default()
    });
    // Past every width at which a kernel changes its way: 64 rows, 12 blocks, 32 tokens.
    let blocks = prop_oneof![1usize..9, 9usize..30];
    let input = (any::<u64>(), 1usize..80, blocks, 1usize..40);
    runner
        .run(&input, |(seed, rows, blocks, tokens)| {
            test(seed, rows, blocks, tokens);
            Ok(())
        })
        .expect("kernels agree");
}

#[test]
fn products_agree_bit_for_bit_on_every_instruction_set_and_batch_size() {
    for format in [
        Format::MXFP4,
        Format::Q8_0,
        Format::F32,
        Format::F16,
        Format::BF16,
    ] {
        check(60, |seed, rows, blocks, tokens| {
            let mut random = Random(seed);
            let cols = blocks * BLOCK;
            let w = weights(&mut random, format, rows, cols);
            let w_rows = Rows {
                data: &w,
                next: &[],
                rows,
                cols,
            };
            let scalar = &scalar::KERNELS;
            let x: Vec<_> = (0..tokens)
                .map(|_| Activations::new(scalar, random.floats(cols)))
                .collect();
            let x: Vec<_> = x.iter().map(Activations::row).collect();
            let mut panel = Panel::new(cols);
            let mut expected = vec![0.0; rows * tokens];
            scalar.matmul(format, w_rows, &x, &mut expected, &mut panel);
            for kernels in others() {
                let mut out = vec![f32::NAN; rows * tokens];
                kernels.matmul(format, w_rows, &x, &mut out, &mut panel);
                assert_eq!(bits(&out), bits(&expected), "{} {format:?}", kernels.name);
                // Each token alone, whatever its company was.
                for t in 0..tokens {
                    let mut out = vec![f32::NAN; rows];
                    kernels.matmul(format, w_rows, &x[t..t + 1], &mut out, &mut panel);
                    assert_eq!(
                        bits(&out),
                        bits(&expected[t * rows..(t + 1) * rows]),
                        "{} {format:?}",
                        kernels.name
                    );
                }
            }
        });
    }
}

#[test]
fn products_are_exact_sums_of_dequantized_weights() {
    for (format, kind) in [
        (Format::MXFP4, crate::quant::GgmlType::MXFP4),
        (Format::Q8_0, crate::quant::GgmlType::Q8_0),
    ] {
        check(40, |seed, rows, blocks, _| {
            let mut random = Random(seed);
            let cols = blocks * BLOCK;
            let w = weights(&mut random, format, rows, cols);
            let w_rows = Rows {
                data: &w,
                next: &[],
                rows,
                cols,
            };
            let mut values = vec![0.0; rows * cols];
            crate::quant::dequantize(kind, &w, &mut values);
            let x = Activations::new(&scalar::KERNELS, random.floats(cols));
            let mut out = vec![0.0; rows];
            scalar::KERNELS.matmul(format, w_rows, &[x.row()], &mut out, &mut Panel::new(cols));
            for r in 0..rows {
                let (mut exact, mut size) = (0f64, 0f64);
                for c in 0..cols {
                    let at = c / 128 * 128 + c % 128 / BLOCK * 16 + c % BLOCK / 16 * 64 + c % 16;
                    let x = f64::from(x.scale[c / BLOCK]) * f64::from(x.q[at]);
                    exact += f64::from(values[r * cols + c]) * x;
                    size += (f64::from(values[r * cols + c]) * x).abs();
                }
                assert!(
                    (f64::from(out[r]) - exact).abs() <= size * 1e-6 + 1e-30,
                    "{} {exact}",
                    out[r]
                );
            }
        });
    }
}

#[test]
fn quantization_keeps_each_value_within_half_a_step() {
    check(60, |seed, _, blocks, _| {
        let mut random = Random(seed);
        let mut f = random.floats(blocks * BLOCK);
        f[..BLOCK].fill(0.0);
        let expected = Activations::new(&scalar::KERNELS, f.clone());
        for (i, x) in f.iter().enumerate() {
            let at = i / 128 * 128 + i % 128 / BLOCK * 16 + i % BLOCK / 16 * 64 + i % 16;
            let d = expected.scale[i / BLOCK];
            assert!((x - d * f32::from(expected.q[at])).abs() <= d * 0.5001);
        }
        for kernels in others() {
            let a = Activations::new(kernels, f.clone());
            assert_eq!(
                (&a.q, &a.sum, bits(&a.scale)),
                (&expected.q, &expected.sum, bits(&expected.scale)),
                "{}",
                kernels.name
            );
        }
    });
}

#[test]
fn norm_and_swiglu_agree_and_are_right() {
    check(60, |seed, n, blocks, _| {
        let mut random = Random(seed);
        let (x, w) = (random.floats(blocks * 32), random.floats(blocks * 32));
        let gate: Vec<f32> = random.floats(n).iter().map(|x| x * 8.0).collect();
        let up: Vec<f32> = random.floats(n).iter().map(|x| x * 8.0).collect();
        let run = |kernels: &Kernels| {
            let mut h = vec![0.0; x.len()];
            kernels.rms_norm(&x, &w, 1e-5, &mut h);
            let mut g = gate.clone();
            kernels.swiglu(&mut g, &up, 7.0);
            (h, g)
        };
        let (h, g) = run(&scalar::KERNELS);
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
        for i in 0..x.len() {
            let exact = f64::from(x[i]) * f64::from(w[i]) / (mean + 1e-5).sqrt();
            assert!((f64::from(h[i]) - exact).abs() <= exact.abs() * 1e-6);
        }
        for i in 0..n {
            let (a, b) = (
                f64::from(gate[i]).min(7.0),
                f64::from(up[i]).clamp(-7.0, 7.0),
            );
            let exact = a / (1.0 + (-1.702 * a).exp()) * (b + 1.0);
            assert!(
                (f64::from(g[i]) - exact).abs() <= exact.abs() * 2e-6 + 1e-9,
                "{} {exact}",
                g[i]
            );
        }
        for kernels in others() {
            let (oh, og) = run(kernels);
            assert_eq!(
                (bits(&oh), bits(&og)),
                (bits(&h), bits(&g)),
                "{}",
                kernels.name
            );
        }
    });
}

/// One row of attention in f64 over all positions that it sees.
fn exact_attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d: usize,
    (start, end): (usize, usize),
    sink: f32,
) -> Vec<f64> {
    let score = |p: usize| {
        (0..d)
            .map(|i| f64::from(q[i]) * f64::from(k[p * d + i]))
            .sum::<f64>()
    };
    let max = (start..end).map(score).fold(f64::from(sink), f64::max);
    let weight: Vec<f64> = (start..end).map(|p| (score(p) - max).exp()).collect();
    let sum = weight.iter().sum::<f64>() + (f64::from(sink) - max).exp();
    (0..d)
        .map(|i| {
            (start..end)
                .zip(&weight)
                .map(|(p, w)| w * f64::from(v[p * d + i]))
                .sum::<f64>()
                / sum
        })
        .collect()
}

/// How far one row of attention in f32 may be from the exact one: an error `e` in each score changes each weight by a factor of at most
/// exp(2e), and a sum of `n` products is off by at most `n` roundings of the sum of their magnitudes (Higham, Accuracy and Stability, 3.1).
fn attention_bound(q: &[f32], k: &[f32], v: &[f32], d: usize, (start, end): (usize, usize)) -> f64 {
    let rounding = f64::from(f32::EPSILON) / 2.0;
    let magnitude = |p: usize| {
        (0..d)
            .map(|i| f64::from(q[i] * k[p * d + i]).abs())
            .sum::<f64>()
    };
    let score = (start..end).map(magnitude).fold(0.0, f64::max) * d as f64 * rounding;
    let largest = v[start * d..end * d]
        .iter()
        .fold(0f32, |m, x| m.max(x.abs()));
    // 16 roundings more for the exponential and the division.
    (2.0 * score + (end - start + 16) as f64 * 2.0 * rounding) * f64::from(largest)
}

#[test]
fn attention_agrees_on_every_instruction_set_and_is_right() {
    check(40, |seed, rows, _, tokens| {
        let mut random = Random(seed);
        let d = [16, 32, 48, 64][(seed % 4) as usize];
        let positions = tokens.div_ceil(4) * STEP;
        let half = |x: f32| half::f16::from_f32(x).to_f32();
        let k: Vec<f32> = random.floats(positions * d).into_iter().map(half).collect();
        let v: Vec<f32> = random.floats(positions * d).into_iter().map(half).collect();
        let q = random.floats(rows * d);
        let sinks = random.floats(rows);
        let visible: Vec<(usize, usize)> = (0..rows)
            .map(|_| {
                let end = 1 + random.next() as usize % positions;
                (random.next() as usize % end, end)
            })
            .collect();
        let run = |kernels: &Kernels, rows: Range<usize>| {
            let mut tile = Tile::new(rows.len(), d);
            tile.q.copy_from_slice(&q[rows.start * d..rows.end * d]);
            tile.visible.copy_from_slice(&visible[rows.clone()]);
            tile.max.copy_from_slice(&sinks[rows.clone()]);
            tile.sum.iter_mut().for_each(|s| s[0] = 1.0);
            for p in (0..positions).step_by(STEP) {
                let mut keys = vec![0u16; STEP * d];
                let mut values = vec![0u16; STEP * d];
                for j in 0..STEP {
                    for i in 0..d {
                        keys[(j / 16 * d + i) * 16 + j % 16] =
                            half::f16::from_f32(k[(p + j) * d + i]).to_bits();
                        values[j * d + i] = half::f16::from_f32(v[(p + j) * d + i]).to_bits();
                    }
                }
                kernels.attend(&mut tile, rows.len(), &keys, &values, p);
            }
            tile
        };
        let expected = run(&scalar::KERNELS, 0..rows);
        for r in 0..rows {
            let query = &q[r * d..(r + 1) * d];
            let exact = exact_attention(query, &k, &v, d, visible[r], sinks[r]);
            let bound = attention_bound(query, &k, &v, d, visible[r]);
            let sum: f32 = expected.sum[r].iter().sum();
            for i in 0..d {
                let error = (f64::from(expected.acc[r * d + i] / sum) - exact[i]).abs();
                assert!(error < bound, "{error:e} of {bound:e}");
            }
        }
        for kernels in others() {
            let tile = run(kernels, 0..rows);
            assert_eq!(bits(&tile.acc), bits(&expected.acc), "{}", kernels.name);
            assert_eq!(
                bits(tile.sum.as_flattened()),
                bits(expected.sum.as_flattened()),
                "{}",
                kernels.name
            );
            // A row alone.
            let alone = run(kernels, rows - 1..rows);
            assert_eq!(
                bits(&alone.acc),
                bits(&expected.acc[(rows - 1) * d..]),
                "{}",
                kernels.name
            );
        }
        let states = |kernels: &Kernels| {
            let (mut a, mut b) = (
                expected.acc[..d].to_vec(),
                expected.acc[(rows - 1) * d..].to_vec(),
            );
            let mut into = Partial {
                max: expected.max[0],
                sum: 1.5,
                acc: &mut a,
            };
            kernels.merge(
                &mut into,
                &Partial {
                    max: expected.max[rows - 1],
                    sum: 2.5,
                    acc: &mut b,
                },
            );
            let (max, sum) = (into.max, into.sum);
            (bits(&a), max.to_bits(), sum.to_bits())
        };
        others().for_each(|k| assert_eq!(states(k), states(&scalar::KERNELS), "{}", k.name));
    });
}
