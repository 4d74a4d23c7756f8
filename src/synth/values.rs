//! Random tensor bytes by position: block `i` of a tensor depends on the seed, the tensor's name and
//! `i` only, so any thread may make any part, on any machine, and the file is the same.

use super::layout::{Tensor, Values};
use half::f16;

/// A counter-based generator: word `i` of stream `key`, well mixed (SplitMix64's finalizer).
fn word(key: u64, i: u64) -> u64 {
    let mut z = key.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The stream of a tensor.
pub(super) fn stream(seed: u64, name: &str) -> u64 {
    let mut key = word(seed, 0x676F_7373);
    for byte in name.bytes() {
        key = word(key, u64::from(byte) + 1);
    }
    key
}

/// From the top 24 bits: uniform in [0, 1), exact in f32.
fn unit(word: u64) -> f32 {
    (word >> 40) as f32 * (1.0 / (1u32 << 24) as f32)
}

/// Fills `out` with blocks `first..` of a tensor; `out` is whole blocks.
pub(super) fn fill(tensor: &Tensor, key: u64, first: u64, out: &mut [u8]) {
    match tensor.values {
        Values::F32 { center, spread } => {
            for (i, value) in out.chunks_exact_mut(4).enumerate() {
                let random = unit(word(key, first + i as u64));
                value.copy_from_slice(&(center + spread * (2.0 * random - 1.0)).to_le_bytes());
            }
        }
        Values::Q8 { rms, quiet_from } => {
            // Uniform bytes have rms 73.3; scales vary by a quarter either way.
            let scale = rms / 73.3;
            let row = tensor.dims[0] / 32;
            for (i, block) in out.chunks_exact_mut(34).enumerate() {
                let at = first + i as u64;
                let quiet = if at / row >= quiet_from { 0.0625 } else { 1.0 };
                let d = scale * quiet * (0.75 + 0.5 * unit(word(key, at * 5 + 4)));
                let (head, values) = block.split_at_mut(2);
                head.copy_from_slice(&f16::from_f32(d).to_le_bytes());
                for (j, eight) in values.chunks_exact_mut(8).enumerate() {
                    let mut bytes = word(key, at * 5 + j as u64).to_le_bytes();
                    // No quantizer makes -128.
                    bytes
                        .iter_mut()
                        .for_each(|b| *b = if *b == 0x80 { 0x81 } else { *b });
                    eight.copy_from_slice(&bytes);
                }
            }
        }
        Values::Mxfp4 { rms } => {
            let lowest = lowest_exponent(rms);
            for (i, block) in out.chunks_exact_mut(17).enumerate() {
                let at = (first + i as u64) * 3;
                let (head, codes) = block.split_at_mut(1);
                head[0] = lowest + (word(key, at) >> 62) as u8;
                codes[..8].copy_from_slice(&word(key, at + 1).to_le_bytes());
                codes[8..].copy_from_slice(&word(key, at + 2).to_le_bytes());
            }
        }
    }
}

/// The E8M0 byte of the smallest of four scales, each twice the one before, that together give
/// uniform e2m1 codes about this rms. Only exact arithmetic: the same anywhere.
fn lowest_exponent(rms: f32) -> u8 {
    // rms of the codes is 2.926, of the scales 1, 2, 4, 8 it is 4.61; 0.707 centers the rounding.
    let target = rms / (2.926 * 4.61) * 0.707;
    let (mut exponent, mut scale) = (127u8, 1.0f32);
    while scale > target && exponent > 1 {
        scale *= 0.5;
        exponent -= 1;
    }
    while scale < target && exponent < 250 {
        scale *= 2.0;
        exponent += 1;
    }
    exponent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_follow_the_rms() {
        let of_scale = |lowest: u8| 2.926 * 4.61 * 2f32.powi(i32::from(lowest) - 127);
        for rms in [1e-4, 3.95e-4, 0.0466, 0.1, 1.0, 7.0] {
            let ratio = of_scale(lowest_exponent(rms)) / rms;
            assert!((0.7..1.42).contains(&ratio), "{rms}: {ratio}");
        }
    }
}
