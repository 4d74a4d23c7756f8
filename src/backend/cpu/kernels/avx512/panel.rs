//! Many tokens: sixteen weight rows unpacked, one lane a row, and up to eight tokens a load.
#![allow(unsafe_code)] // intrinsics
#![allow(clippy::needless_range_loop)] // several arrays are walked together

use super::blocks::Blocks;
use crate::backend::cpu::kernels::{BLOCK, GROUP, Panel, Rows, XRow};
use std::arch::x86_64::*;

/// Unpacks `n` (1..=16) rows at `w` into panel `at` of the panel's memory; rows past `n` repeat the
/// last. The sixteen rows at `ahead`, which will be unpacked next, are asked for line by line, if it is not
/// null.
///
/// # Safety
/// AVX-512 with VBMI is enabled, and `n` rows of `blocks` blocks lie at `w`.
#[inline(always)]
pub unsafe fn unpack<B: Blocks>(
    w: *const u8,
    n: usize,
    blocks: usize,
    panel: &mut Panel,
    at: usize,
    ahead: *const u8,
) {
    let padded = blocks.next_multiple_of(GROUP);
    let weights = &mut panel.weights[at * padded * 8..(at + 1) * padded * 8];
    let scale = &mut panel.scale[at * padded * 16..(at + 1) * padded * 16];
    let row_bytes = blocks * B::BYTES;
    for g in 0..blocks.div_ceil(GROUP) {
        let left = (blocks - g * GROUP).min(GROUP);
        let group_bytes = 16 * GROUP * B::BYTES;
        if !ahead.is_null() {
            for line in (0..group_bytes).step_by(64) {
                let at = ahead.wrapping_add(g * group_bytes + line);
                // SAFETY: a prefetch reads nothing and may point anywhere.
                unsafe { _mm_prefetch(at.cast(), _MM_HINT_T1) };
            }
        }
        // SAFETY: rows and groups are clamped as in `few`; the panel's size is checked above.
        unsafe {
            // By quad of rows, lane b: its first four and last four dwords of block b, and scales.
            let mut dwords = [[_mm512_setzero_si512(); 8]; 4];
            let mut scales = [_mm512_setzero_ps(); 4];
            for quad in 0..4 {
                let row =
                    |r: usize| w.add((quad * 4 + r).min(n - 1) * row_bytes + g * GROUP * B::BYTES);
                let p = [row(0), row(1), row(2), row(3)];
                let [a, b, c, d] = [
                    B::unpack(p[0], left),
                    B::unpack(p[1], left),
                    B::unpack(p[2], left),
                    B::unpack(p[3], left),
                ];
                let (low, high) = dwords[quad].split_at_mut(4);
                low.copy_from_slice(&transpose([a.0, b.0, c.0, d.0]));
                high.copy_from_slice(&transpose([a.1, b.1, c.1, d.1]));
                scales[quad] = B::scales(p, left);
            }
            let to = weights.as_mut_ptr().add(g * GROUP * 8);
            for j in 0..8 {
                let quads = [dwords[0][j], dwords[1][j], dwords[2][j], dwords[3][j]];
                for (b, line) in transpose_lanes(quads).into_iter().enumerate() {
                    _mm512_store_si512(to.add(b * 8 + j).cast(), line);
                }
            }
            let to = scale.as_mut_ptr().add(g * GROUP * 16);
            let lines = transpose_lanes(scales.map(|s| _mm512_castps_si512(s)));
            for (b, line) in lines.into_iter().enumerate() {
                _mm512_storeu_si512(to.add(b * 16).cast(), line);
            }
        }
    }
}

/// Lane q of result b: lane b of `r[q]`.
#[inline(always)]
unsafe fn transpose_lanes(r: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: AVX-512, by the caller's promise.
    unsafe {
        let (a, b) = (
            _mm512_shuffle_i32x4(r[0], r[1], 0x44),
            _mm512_shuffle_i32x4(r[0], r[1], 0xee),
        );
        let (c, d) = (
            _mm512_shuffle_i32x4(r[2], r[3], 0x44),
            _mm512_shuffle_i32x4(r[2], r[3], 0xee),
        );
        [
            _mm512_shuffle_i32x4(a, c, 0x88),
            _mm512_shuffle_i32x4(a, c, 0xdd),
            _mm512_shuffle_i32x4(b, d, 0x88),
            _mm512_shuffle_i32x4(b, d, 0xdd),
        ]
    }
}

/// Lane b of result j: dword j of lane b of the four inputs.
#[inline(always)]
unsafe fn transpose(r: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: AVX-512 and valid pointers, by the caller's promise.
    unsafe {
        let (a, b) = (
            _mm512_unpacklo_epi32(r[0], r[1]),
            _mm512_unpackhi_epi32(r[0], r[1]),
        );
        let (c, d) = (
            _mm512_unpacklo_epi32(r[2], r[3]),
            _mm512_unpackhi_epi32(r[2], r[3]),
        );
        [
            _mm512_unpacklo_epi64(a, c),
            _mm512_unpackhi_epi64(a, c),
            _mm512_unpacklo_epi64(b, d),
            _mm512_unpackhi_epi64(b, d),
        ]
    }
}

/// Lines to ask for while something else is computed.
struct Ahead {
    from: *const u8,
    lines: usize,
}

/// Sixteen rows of the first panel for `T` tokens: the four chains of blocks one after the other.
#[inline(always)]
unsafe fn tile<const T: usize>(
    panel: &Panel,
    blocks: usize,
    bias: i32,
    x: &[XRow],
    ahead: &Ahead,
) -> [__m512; T] {
    let lines_a_block = ahead.lines.div_ceil(blocks);
    let mut asked = 0;
    // SAFETY: the panel holds `blocks` blocks, and so does each of the T rows of x, by `check`.
    unsafe {
        let mut total = [_mm512_setzero_ps(); T];
        for chain in 0..GROUP.min(blocks) {
            let mut acc = [_mm512_setzero_ps(); T];
            for b in (chain..blocks).step_by(GROUP) {
                for line in asked..ahead.lines.min(asked + lines_a_block) {
                    _mm_prefetch(ahead.from.wrapping_add(line * 64).cast(), _MM_HINT_T1);
                }
                asked += lines_a_block;
                let at = b / GROUP * GROUP * BLOCK + chain * 16;
                let mut w = [_mm512_setzero_si512(); 8];
                for (j, w) in w.iter_mut().enumerate() {
                    *w = _mm512_load_si512(panel.weights.as_ptr().add(b * 8 + j).cast());
                }
                let scale = _mm512_loadu_ps(panel.scale.as_ptr().add(b * 16));
                for t in 0..T {
                    let x = x.get_unchecked(t);
                    let q = x.q.as_ptr().add(at);
                    let mut dot = _mm512_set1_epi32(-bias * *x.sum.get_unchecked(b));
                    for j in 0..4 {
                        let low = q.add(4 * j).cast::<i32>().read_unaligned();
                        dot = _mm512_dpbusd_epi32(dot, w[j], _mm512_set1_epi32(low));
                    }
                    for j in 0..4 {
                        let high = q.add(64 + 4 * j).cast::<i32>().read_unaligned();
                        dot = _mm512_dpbusd_epi32(dot, w[4 + j], _mm512_set1_epi32(high));
                    }
                    let s = _mm512_mul_ps(scale, _mm512_set1_ps(*x.scale.get_unchecked(b)));
                    acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), s, acc[t]);
                }
            }
            for t in 0..T {
                total[t] = _mm512_add_ps(total[t], acc[t]);
            }
        }
        total
    }
}

/// Writes the rows in `mask` of each token's sixteen results.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
pub unsafe fn store<const T: usize>(tile: [__m512; T], out: &mut [f32], rows: usize, mask: u16) {
    for (t, v) in tile.iter().enumerate() {
        assert!(t * rows + (16 - mask.leading_zeros() as usize) <= out.len());
        // SAFETY: the mask's highest row lies in `out`, checked above.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().add(t * rows), mask, *v) }
    }
}

/// Any number of tokens, sixteen rows at a time.
///
/// # Safety
/// AVX-512 with VBMI is enabled, and the lengths have passed `check`.
#[inline(always)]
pub unsafe fn many<B: Blocks>(w: Rows, x: &[XRow], out: &mut [f32], panel: &mut Panel) {
    let (rows, blocks, bias) = (w.rows, w.cols / BLOCK, B::BIAS);
    let row_bytes = blocks * B::BYTES;
    for r0 in (0..rows).step_by(16) {
        let n = (rows - r0).min(16);
        let mask = (!0u16) >> (16 - n);
        // SAFETY: rows r0..r0 + n lie in w, by `check`; the caller enables the instruction set.
        unsafe {
            let from = w.data.as_ptr().add(r0 * row_bytes);
            unpack::<B>(from, n, blocks, panel, 0, std::ptr::null());
            // The next sixteen rows are asked for evenly, while tiles keep the processor busy.
            let (next, tiles) = (w.ahead(r0 + 16, row_bytes), x.len().div_ceil(8));
            let lines = (16 * row_bytes).div_ceil(64).div_ceil(tiles);
            for (i, x) in x.chunks(8).enumerate() {
                let from = next.wrapping_add(i * lines * 64);
                let ahead = &Ahead { from, lines };
                let out = &mut out[i * 8 * rows + r0..];
                match x.len() {
                    8 => store(tile::<8>(panel, blocks, bias, x, ahead), out, rows, mask),
                    7 => store(tile::<7>(panel, blocks, bias, x, ahead), out, rows, mask),
                    6 => store(tile::<6>(panel, blocks, bias, x, ahead), out, rows, mask),
                    5 => store(tile::<5>(panel, blocks, bias, x, ahead), out, rows, mask),
                    4 => store(tile::<4>(panel, blocks, bias, x, ahead), out, rows, mask),
                    3 => store(tile::<3>(panel, blocks, bias, x, ahead), out, rows, mask),
                    2 => store(tile::<2>(panel, blocks, bias, x, ahead), out, rows, mask),
                    _ => store(tile::<1>(panel, blocks, bias, x, ahead), out, rows, mask),
                }
            }
        }
    }
}
