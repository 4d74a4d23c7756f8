//! Few tokens: four weight rows at a time, straight from the file's blocks.
#![allow(unsafe_code)] // intrinsics
#![allow(clippy::needless_range_loop)] // several arrays are walked together

use super::blocks::Blocks;
use crate::backend::cpu::kernels::{BLOCK, GROUP, Panel, Rows, XRow};
use std::arch::x86_64::*;

/// Lane b, element r: the sum of the four dwords of lane b of `d[r]`.
#[inline(always)]
unsafe fn sum_dwords(d: [__m512i; 4]) -> __m512i {
    // SAFETY: AVX-512 and valid pointers, by the caller's promise.
    unsafe {
        let a = _mm512_add_epi32(
            _mm512_unpacklo_epi32(d[0], d[1]),
            _mm512_unpackhi_epi32(d[0], d[1]),
        );
        let b = _mm512_add_epi32(
            _mm512_unpacklo_epi32(d[2], d[3]),
            _mm512_unpackhi_epi32(d[2], d[3]),
        );
        _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
    }
}

/// Groups of four rows that weights are fetched ahead, into the second-level cache. The processor's
/// own prefetchers stop at page ends and lose four interleaved streams; the first-level cache can
/// wait for too few lines at a time to keep memory busy.
const ROWS_AHEAD: usize = 2 * 4;

/// Lays out a token's bias corrections and scales in the panel's memory, by lanes, one a block:
/// `[groups]` of 16 i32, the first of each four minus the correction and the others 0, then
/// `[groups]` of 16 f32, four equal ones a block.
#[inline(always)]
unsafe fn spread<B: Blocks>(x: &XRow, groups: usize, to: *mut u8) {
    // SAFETY: the caller has room for `groups * 128` bytes; x has four blocks a group, by `check`.
    unsafe {
        let index = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        for g in 0..groups {
            let sums = B::correction(_mm_loadu_si128(x.sum.as_ptr().add(g * GROUP).cast()));
            let minus = _mm512_castsi128_si512(_mm_sub_epi32(_mm_setzero_si128(), sums));
            let bias = _mm512_maskz_permutexvar_epi32(0x1111, index, minus);
            let scale = _mm512_castps128_ps512(_mm_loadu_ps(x.scale.as_ptr().add(g * GROUP)));
            _mm512_store_si512(to.add(g * 64).cast(), bias);
            _mm512_store_ps(
                to.add((groups + g) * 64).cast(),
                _mm512_permutexvar_ps(index, scale),
            );
        }
    }
}

/// One group of `left` blocks of four rows at `p`, added to each token's sums: lane b, element r is
/// row r's sum over the blocks b, b + 4, b + 8 …
#[inline(always)]
unsafe fn few_group<B: Blocks, const T: usize>(
    p: [*const u8; 4],
    left: usize,
    g: usize,
    groups: usize,
    x: &[*const i8; T],
    spread: *const u8,
    acc: &mut [__m512; T],
) {
    // SAFETY: `left` blocks lie at each p, group g in each x and in `spread`.
    unsafe {
        let weights = [
            B::unpack(p[0], left),
            B::unpack(p[1], left),
            B::unpack(p[2], left),
            B::unpack(p[3], left),
        ];
        let scales = B::scales(p, left);
        for t in 0..T {
            let low = _mm512_loadu_si512(x[t].add(g * 128).cast());
            let high = _mm512_loadu_si512(x[t].add(g * 128 + 64).cast());
            let spread = spread.add(t * groups * 128);
            let mut dots = [_mm512_load_si512(spread.add(g * 64).cast()); 4];
            for r in 0..4 {
                let half = _mm512_dpbusd_epi32(dots[r], weights[r].0, low);
                dots[r] = _mm512_dpbusd_epi32(half, weights[r].1, high);
            }
            let scale = _mm512_mul_ps(scales, _mm512_load_ps(spread.add((groups + g) * 64).cast()));
            let dots = _mm512_cvtepi32_ps(sum_dwords(dots));
            acc[t] = _mm512_fmadd_ps(dots, scale, acc[t]);
        }
    }
}

/// Four rows at a time for `T` tokens, from the file's own blocks.
///
/// # Safety
/// AVX-512 is enabled, and the lengths have passed `check`.
#[inline(always)]
pub unsafe fn few<B: Blocks, const T: usize>(
    w: Rows,
    x: &[XRow],
    out: &mut [f32],
    panel: &mut Panel,
) {
    assert_eq!(x.len(), T);
    let (rows, blocks) = (w.rows, w.cols / BLOCK);
    let groups = blocks.div_ceil(GROUP);
    assert!(panel.weights.len() >= groups * 2 * T);
    let row_bytes = blocks * B::BYTES;
    let mut q = [std::ptr::null(); T];
    let spread_to = panel.weights.as_mut_ptr().cast::<u8>();
    for t in 0..T {
        q[t] = x[t].q.as_ptr();
        // SAFETY: room by the assertion above.
        unsafe { spread::<B>(&x[t], groups, spread_to.add(t * groups * 128)) };
    }
    for r0 in (0..rows).step_by(4) {
        let n = (rows - r0).min(4);
        // SAFETY: rows are clamped to the last, groups to the row's blocks; lengths by `check`.
        unsafe {
            let row = |r: usize| w.data.as_ptr().add((r0 + r.min(n - 1)) * row_bytes);
            let mut p = [row(0), row(1), row(2), row(3)];
            let mut acc = [_mm512_setzero_ps(); T];
            // Rows lie one after the other, so the rows ahead are walked line by line; past the
            // last they are the next product's.
            let ahead = w.ahead(r0 + ROWS_AHEAD, row_bytes);
            for g in 0..blocks / GROUP {
                let group_bytes = 4 * GROUP * B::BYTES;
                for line in (0..group_bytes).step_by(64) {
                    let at = ahead.wrapping_add(g * group_bytes + line);
                    _mm_prefetch(at.cast(), _MM_HINT_T1);
                }
                few_group::<B, T>(p, GROUP, g, groups, &q, spread_to, &mut acc);
                for p in &mut p {
                    *p = p.add(GROUP * B::BYTES);
                }
            }
            if !blocks.is_multiple_of(GROUP) {
                let g = blocks / GROUP;
                few_group::<B, T>(p, blocks % GROUP, g, groups, &q, spread_to, &mut acc);
            }
            for (t, acc) in acc.iter().enumerate() {
                let sum = _mm_add_ps(
                    _mm512_castps512_ps128(*acc),
                    _mm512_extractf32x4_ps(*acc, 1),
                );
                let sum = _mm_add_ps(sum, _mm512_extractf32x4_ps(*acc, 2));
                let sum = _mm_add_ps(sum, _mm512_extractf32x4_ps(*acc, 3));
                let mut four = [0f32; 4];
                _mm_storeu_ps(four.as_mut_ptr(), sum);
                out[t * rows + r0..][..n].copy_from_slice(&four[..n]);
            }
        }
    }
}
