//! Exponentials over long rows, in plain Rust that compilers vectorize: the same bits everywhere.

use std::ops::Range;

const LANES: usize = 16;

/// e^x for x <= 0 (any x up to 88), to about 2 ulp; 0 below -87.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to the integer n and leaves it
    // in the low bits of the float.
    const ROUND: f32 = 12_582_912.0;
    let t = x.max(-87.0) * std::f32::consts::LOG2_E + ROUND;
    let n = t - ROUND;
    let r = (x.max(-87.0) - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let tail = 1.398_199_9e-3 + r * 1.987_569_1e-4;
    let tail = 4.166_579_6e-2 + r * (8.333_452e-3 + r * tail);
    let p = 1.0 + (r + r * r * (0.5 + r * (1.666_666_5e-1 + r * tail)));
    let scale = f32::from_bits(t.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * scale }
}

/// Sum of exp((x - max) * scale) over `ranges`.
pub fn sum_exp(logits: &[f32], ranges: &[Range<usize>], max: f32, scale: f32) -> f64 {
    let pieces = ranges
        .iter()
        .flat_map(|range| logits[range.clone()].chunks(LANES * 16));
    pieces.map(|piece| piece_sum(piece, max, scale)).sum()
}

/// The same over a short piece: f32 lanes, and f64 across them: as exact as the exponentials themselves.
pub fn piece_sum(piece: &[f32], max: f32, scale: f32) -> f64 {
    let (rows, rest) = piece.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for row in rows {
        for (sum, &x) in lanes.iter_mut().zip(row) {
            *sum += exp((x - max) * scale);
        }
    }
    let add = |sum: f64, value: f32| sum + f64::from(value);
    let rest = rest.iter().map(|&x| exp((x - max) * scale));
    lanes.iter().copied().fold(0.0, add) + rest.fold(0.0, add)
}

/// Whether no value is NaN or infinite.
pub fn all_finite(values: &[f32]) -> bool {
    // 0 * x is NaN exactly for those; the sum keeps it.
    let (rows, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for row in rows {
        for (sum, &x) in lanes.iter_mut().zip(row) {
            *sum += x * 0.0;
        }
    }
    lanes.iter().chain(rest).all(|x| x.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0f64;
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.4e-7, "relative error {worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MIN), 0.0);
    }

    #[test]
    fn finds_what_is_not_finite_anywhere() {
        for n in [1, 15, 16, 17, 1000] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, n / 2, n - 1] {
                    let mut values = vec![1.5f32; n];
                    assert!(all_finite(&values));
                    values[at] = bad;
                    assert!(!all_finite(&values), "{bad} at {at} of {n}");
                }
            }
        }
    }
}
