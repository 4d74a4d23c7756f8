//! Portable kernels: the oracle of every other table, and the fallback of every other machine.
#![allow(unsafe_code)] // the table's function types

use super::{BLOCK, GROUP, check, simd::Array};
use crate::quant::MXFP4_VALUES;

/// A block format, decoded to signed integers and a scale.
pub trait Block {
    /// Bytes of a block.
    const BYTES: usize;
    /// The block's scale and its 32 integers; value = scale * integer.
    fn decode(block: &[u8]) -> (f32, [i8; BLOCK]);
}

/// Q8_0.
pub struct Q8_0;
impl Block for Q8_0 {
    const BYTES: usize = 34;
    #[inline(always)]
    fn decode(block: &[u8]) -> (f32, [i8; BLOCK]) {
        let d = half::f16::from_le_bytes([block[0], block[1]]).to_f32();
        (d, std::array::from_fn(|i| block[2 + i] as i8))
    }
}

/// MXFP4; the integers are doubled e2m1 values, so the scale is `2^(e - 128)`.
pub struct Mxfp4;
impl Block for Mxfp4 {
    const BYTES: usize = 17;
    #[inline(always)]
    fn decode(block: &[u8]) -> (f32, [i8; BLOCK]) {
        let code = |i: usize| {
            if i < 16 {
                block[1 + i] & 15
            } else {
                block[1 + i - 16] >> 4
            }
        };
        (
            mxfp4_scale(block[0]),
            std::array::from_fn(|i| MXFP4_VALUES[usize::from(code(i))]),
        )
    }
}

/// `2^(e - 128)`, but zero for e = 0 and 1, where it would be subnormal: less than any sum of
/// activations can show.
#[inline(always)]
pub fn mxfp4_scale(e: u8) -> f32 {
    f32::from_bits(u32::from(e.saturating_sub(1)) << 23)
}

/// Unsafe only as the other tables' products are: these need no instruction set.
unsafe fn matmul<B: Block>(w: Rows, x: &[XRow], out: &mut [f32], _: &mut Panel) {
    check(w, B::BYTES, x, out);
    let (rows, row_bytes) = (w.rows, w.cols / BLOCK * B::BYTES);
    for r in 0..rows {
        let row = &w.data[r * row_bytes..(r + 1) * row_bytes];
        for (t, x) in x.iter().enumerate() {
            let mut acc = [0f32; GROUP];
            for (b, block) in row.chunks_exact(B::BYTES).enumerate() {
                let (d, q) = B::decode(block);
                let at = b / GROUP * GROUP * BLOCK + b % GROUP * 16;
                let mut dot = 0i32;
                for i in 0..16 {
                    dot += i32::from(q[i]) * i32::from(x.q[at + i]);
                    dot += i32::from(q[i + 16]) * i32::from(x.q[at + 64 + i]);
                }
                let chain = &mut acc[b % GROUP];
                *chain = (dot as f32).mul_add(d * x.scale[b], *chain);
            }
            out[t * rows + r] = ((acc[0] + acc[1]) + acc[2]) + acc[3];
        }
    }
}

super::kernels!("scalar", Array, [], || true);
