//! AVX-512 with VNNI and VBMI: Ice Lake and later Xeons, Zen 4 and later.
//!
//! Few tokens: four weight rows at a time straight from the file's blocks, four blocks a register.
//! Many tokens: sixteen rows are unpacked into a [`Panel`], one lane a row, and up to eight tokens
//! share each weight load. Integers are made unsigned by a bias, as `vpdpbusd` wants; the bias times
//! the activations' sum is taken off again, exactly.
#![allow(unsafe_code)] // intrinsics
#![allow(clippy::needless_range_loop)] // several arrays are walked together

use super::{BLOCK, GROUP, Line, check, simd::F32x16};
use std::arch::x86_64::*;

/// One 512-bit register.
#[derive(Clone, Copy)]
struct Lanes(__m512);

// SAFETY: AVX-512F intrinsics; callers hold the trait's contract.
unsafe impl F32x16 for Lanes {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { Lanes(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { Lanes(_mm512_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { Lanes(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe {
            Lanes(_mm512_castsi512_ps(_mm512_slli_epi32(
                _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())),
                16,
            )))
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8) {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(self.0))) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { Lanes(_mm512_add_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { Lanes(_mm512_sub_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { Lanes(_mm512_mul_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { Lanes(_mm512_div_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { Lanes(_mm512_fmadd_ps(self.0, a.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { Lanes(_mm512_max_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { Lanes(_mm512_min_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe {
            Lanes(_mm512_roundscale_ps(
                self.0,
                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC,
            ))
        }
    }
    #[inline(always)]
    unsafe fn exp2i(self) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe {
            let n = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Lanes(_mm512_castsi512_ps(_mm512_slli_epi32(n, 23)))
        }
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, a: Self, b: Self) -> Self {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe {
            Lanes(_mm512_maskz_mov_ps(
                _mm512_cmp_ps_mask(a.0, b.0, _CMP_NLT_UQ),
                self.0,
            ))
        }
    }
}

/// A block format as four blocks of biased bytes.
trait Blocks {
    const BYTES: usize;
    /// Biased weight = integer + BIAS.
    const BIAS: i32;
    /// Lane b: the 16 first, and the 16 last, biased integers of block b of `n` (1..=4) at `p`.
    unsafe fn unpack(p: *const u8, n: usize) -> (__m512i, __m512i);
    /// Lane b, element r: scale of block b of row r, from `n` blocks of four rows.
    unsafe fn scales(p: [*const u8; 4], n: usize) -> __m512;
    /// `BIAS * sum` for four blocks.
    unsafe fn correction(sum: __m128i) -> __m128i;
}

struct Mxfp4;
impl Blocks for Mxfp4 {
    const BYTES: usize = 17;
    const BIAS: i32 = 12;
    #[inline(always)]
    unsafe fn unpack(p: *const u8, n: usize) -> (__m512i, __m512i) {
        // Byte 16 b + j of the packed nibbles is byte 17 b + 1 + j of the file; the last four, past
        // the first 64 bytes, come by a second load that is aligned to the same lanes.
        static NIBBLES: Line = {
            let mut i = [0u8; 64];
            let mut k = 0;
            while k < 64 {
                i[k] = (k / 16 * 17 + 1 + k % 16) as u8;
                k += 1;
            }
            Line(i)
        };
        /// Doubled e2m1 + 12, four times over: `vpermb` then needs no mask, it ignores two bits.
        static VALUES: Line = {
            let v = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
            let mut t = [0u8; 64];
            let mut k = 0;
            while k < 64 {
                t[k] = v[k % 16];
                k += 1;
            }
            Line(t)
        };
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe {
            let nibbles = _mm512_load_si512((&raw const NIBBLES).cast());
            let values = _mm512_load_si512((&raw const VALUES).cast());
            let packed = if n == 4 {
                let low = _mm512_permutexvar_epi8(nibbles, _mm512_loadu_si512(p.cast()));
                _mm512_mask_loadu_epi32(low, 0x8000, p.add(4).cast())
            } else {
                let bytes = _mm512_maskz_loadu_epi8((1u64 << (17 * n)) - 1, p.cast());
                _mm512_permutexvar_epi8(nibbles, bytes)
            };
            let high = _mm512_srli_epi16(packed, 4);
            (
                _mm512_permutexvar_epi8(packed, values),
                _mm512_permutexvar_epi8(high, values),
            )
        }
    }
    #[inline(always)]
    unsafe fn scales(p: [*const u8; 4], n: usize) -> __m512 {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe {
            // Exponent bytes lie at 0, 17, 34, 51: all in the first 64 bytes. Dword 4 b + r of the
            // result takes row r's byte 17 b.
            let mut e = _mm512_setzero_si512();
            let index =
                _mm512_setr_epi32(0, 0, 0, 0, 17, 17, 17, 17, 34, 34, 34, 34, 51, 51, 51, 51);
            let mask = if n == 4 {
                !0u64
            } else {
                (1u64 << (17 * n)) - 1
            };
            for r in 0..4 {
                let bytes = if n == 4 {
                    _mm512_loadu_si512(p[r].cast())
                } else {
                    _mm512_maskz_loadu_epi8(mask, p[r].cast())
                };
                e = _mm512_mask_permutexvar_epi8(
                    e,
                    0x0001_0001_0001_0001u64 << (4 * r),
                    index,
                    bytes,
                );
            }
            // 2^(e - 128), as the scalar `mxfp4_scale`.
            let e = _mm512_subs_epu8(e, _mm512_set1_epi32(1));
            _mm512_castsi512_ps(_mm512_slli_epi32(e, 23))
        }
    }
    #[inline(always)]
    unsafe fn correction(sum: __m128i) -> __m128i {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { _mm_add_epi32(_mm_slli_epi32(sum, 3), _mm_slli_epi32(sum, 2)) }
    }
}

struct Q8_0;
impl Blocks for Q8_0 {
    const BYTES: usize = 34;
    const BIAS: i32 = 128;
    #[inline(always)]
    unsafe fn unpack(p: *const u8, n: usize) -> (__m512i, __m512i) {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe {
            let (mut low, mut high) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            for b in 0..4 {
                if b < n {
                    let at = p.add(34 * b + 2).cast::<__m128i>();
                    low = _mm512_mask_broadcast_i32x4(low, 0xf << (4 * b), _mm_loadu_si128(at));
                    high = _mm512_mask_broadcast_i32x4(
                        high,
                        0xf << (4 * b),
                        _mm_loadu_si128(at.add(1)),
                    );
                }
            }
            let flip = _mm512_set1_epi8(-128);
            (_mm512_xor_si512(low, flip), _mm512_xor_si512(high, flip))
        }
    }
    #[inline(always)]
    unsafe fn scales(p: [*const u8; 4], n: usize) -> __m512 {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe {
            let mut d = [0u64; 4];
            for (b, d) in d.iter_mut().enumerate() {
                if b < n {
                    for (r, p) in p.iter().enumerate() {
                        *d |= u64::from(p.add(34 * b).cast::<u16>().read_unaligned()) << (16 * r);
                    }
                }
            }
            _mm512_cvtph_ps(_mm256_setr_epi64x(
                d[0] as i64,
                d[1] as i64,
                d[2] as i64,
                d[3] as i64,
            ))
        }
    }
    #[inline(always)]
    unsafe fn correction(sum: __m128i) -> __m128i {
        // SAFETY: AVX-512 and valid pointers, by the caller's promise.
        unsafe { _mm_slli_epi32(sum, 7) }
    }
}

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

/// Bytes ahead that a row is prefetched: hardware prefetchers stop at page ends.
const AHEAD: usize = 6144;

/// Spreads a token's bias corrections and scales over lanes, four equal ones a block, into the
/// panel's memory: `[groups]` of 16 i32, then `[groups]` of 16 f32.
#[inline(always)]
unsafe fn spread<B: Blocks>(x: &XRow, groups: usize, to: *mut u8) {
    // SAFETY: the caller has room for `groups * 128` bytes; x has four blocks a group, by `check`.
    unsafe {
        let index = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        for g in 0..groups {
            let sums = B::correction(_mm_loadu_si128(x.sum.as_ptr().add(g * GROUP).cast()));
            let bias = _mm512_permutexvar_epi32(index, _mm512_castsi128_si512(sums));
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
            let mut dots = [_mm512_setzero_si512(); 4];
            for r in 0..4 {
                let half = _mm512_dpbusd_epi32(dots[r], weights[r].0, low);
                dots[r] = _mm512_dpbusd_epi32(half, weights[r].1, high);
            }
            let spread = spread.add(t * groups * 128);
            let bias = _mm512_load_si512(spread.add(g * 64).cast());
            let scale = _mm512_mul_ps(scales, _mm512_load_ps(spread.add((groups + g) * 64).cast()));
            let dots = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum_dwords(dots), bias));
            acc[t] = _mm512_fmadd_ps(dots, scale, acc[t]);
        }
    }
}

/// Four rows at a time for `T` tokens, from the file's own blocks.
#[inline(always)]
unsafe fn few<B: Blocks, const T: usize>(
    w: &[u8],
    rows: usize,
    cols: usize,
    x: &[XRow],
    out: &mut [f32],
    panel: &mut Panel,
) {
    assert_eq!(x.len(), T);
    let blocks = cols / BLOCK;
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
            let row = |r: usize| w.as_ptr().add((r0 + r.min(n - 1)) * row_bytes);
            let mut p = [row(0), row(1), row(2), row(3)];
            let mut acc = [_mm512_setzero_ps(); T];
            for g in 0..blocks / GROUP {
                for p in &mut p {
                    _mm_prefetch(p.wrapping_add(AHEAD).cast(), _MM_HINT_T0);
                    if B::BYTES > 17 {
                        _mm_prefetch(p.wrapping_add(AHEAD + 64).cast(), _MM_HINT_T0);
                    }
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

/// Unpacks `n` (1..=16) rows at `w` into the panel; rows past `n` repeat the last.
#[inline(always)]
unsafe fn unpack<B: Blocks>(w: *const u8, n: usize, blocks: usize, panel: &mut Panel) {
    assert!(panel.weights.len() >= blocks.next_multiple_of(GROUP) * 8);
    assert!(panel.scale.len() >= blocks.next_multiple_of(GROUP) * 16);
    let row_bytes = blocks * B::BYTES;
    for quad in 0..4 {
        for g in 0..blocks.div_ceil(GROUP) {
            let left = (blocks - g * GROUP).min(GROUP);
            // SAFETY: rows and groups are clamped as in `few`; the panel's size is checked above.
            unsafe {
                let row =
                    |r: usize| w.add((quad * 4 + r).min(n - 1) * row_bytes + g * GROUP * B::BYTES);
                let p = [row(0), row(1), row(2), row(3)];
                let [a, b, c, d] = [
                    B::unpack(p[0], left),
                    B::unpack(p[1], left),
                    B::unpack(p[2], left),
                    B::unpack(p[3], left),
                ];
                let low = transpose([a.0, b.0, c.0, d.0]);
                let high = transpose([a.1, b.1, c.1, d.1]);
                let scales = B::scales(p, left);
                let to = panel
                    .weights
                    .as_mut_ptr()
                    .cast::<u8>()
                    .add(g * GROUP * 8 * 64 + quad * 16);
                let to_scale = panel.scale.as_mut_ptr().add(g * GROUP * 16 + quad * 4);
                macro_rules! block {
                    ($b:literal) => {
                        for j in 0..4 {
                            let at = to.add(($b * 8 + j) * 64);
                            _mm_store_si128(at.cast(), _mm512_extracti32x4_epi32(low[j], $b));
                            _mm_store_si128(
                                at.add(4 * 64).cast(),
                                _mm512_extracti32x4_epi32(high[j], $b),
                            );
                        }
                        _mm_storeu_ps(to_scale.add($b * 16), _mm512_extractf32x4_ps(scales, $b));
                    };
                }
                block!(0);
                block!(1);
                block!(2);
                block!(3);
            }
        }
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

/// Sixteen rows of the panel for `T` tokens: the four chains of blocks one after the other.
#[inline(always)]
unsafe fn tile<const T: usize>(panel: &Panel, blocks: usize, bias: i32, x: &[XRow]) -> [__m512; T] {
    // SAFETY: the panel holds `blocks` blocks, and so does each of the T rows of x, by `check`.
    unsafe {
        let mut total = [_mm512_setzero_ps(); T];
        for chain in 0..GROUP.min(blocks) {
            let mut acc = [_mm512_setzero_ps(); T];
            for b in (chain..blocks).step_by(GROUP) {
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
#[inline(always)]
unsafe fn store<const T: usize>(tile: [__m512; T], out: &mut [f32], rows: usize, mask: u16) {
    for (t, v) in tile.iter().enumerate() {
        assert!(t * rows + (16 - mask.leading_zeros() as usize) <= out.len());
        // SAFETY: the mask's highest row lies in `out`, checked above.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().add(t * rows), mask, *v) }
    }
}

/// From this many tokens on, unpacking a panel pays.
const PANEL_FROM: usize = 6;

#[inline(always)]
unsafe fn matmul<B: Blocks>(
    w: &[u8],
    rows: usize,
    cols: usize,
    x: &[XRow],
    out: &mut [f32],
    panel: &mut Panel,
) {
    check(w, rows, cols, B::BYTES, x, out);
    // SAFETY: lengths are checked; the caller enables the instruction set.
    unsafe {
        if x.len() < PANEL_FROM {
            for (i, x) in x.chunks(4).enumerate() {
                let out = &mut out[i * 4 * rows..];
                match x.len() {
                    1 => few::<B, 1>(w, rows, cols, x, out, panel),
                    2 => few::<B, 2>(w, rows, cols, x, out, panel),
                    3 => few::<B, 3>(w, rows, cols, x, out, panel),
                    _ => few::<B, 4>(w, rows, cols, x, out, panel),
                }
            }
            return;
        }
        let blocks = cols / BLOCK;
        for r0 in (0..rows).step_by(16) {
            let n = (rows - r0).min(16);
            unpack::<B>(w.as_ptr().add(r0 * blocks * B::BYTES), n, blocks, panel);
            let mask = (!0u16) >> (16 - n);
            for (i, x) in x.chunks(8).enumerate() {
                let out = &mut out[i * 8 * rows + r0..];
                match x.len() {
                    8 => store(tile::<8>(panel, blocks, B::BIAS, x), out, rows, mask),
                    7 => store(tile::<7>(panel, blocks, B::BIAS, x), out, rows, mask),
                    6 => store(tile::<6>(panel, blocks, B::BIAS, x), out, rows, mask),
                    5 => store(tile::<5>(panel, blocks, B::BIAS, x), out, rows, mask),
                    4 => store(tile::<4>(panel, blocks, B::BIAS, x), out, rows, mask),
                    3 => store(tile::<3>(panel, blocks, B::BIAS, x), out, rows, mask),
                    2 => store(tile::<2>(panel, blocks, B::BIAS, x), out, rows, mask),
                    _ => store(tile::<1>(panel, blocks, B::BIAS, x), out, rows, mask),
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,f16c,fma")]
unsafe fn q8_0(w: &[u8], rows: usize, cols: usize, x: &[XRow], out: &mut [f32], panel: &mut Panel) {
    // SAFETY: this function enables the instruction set.
    unsafe { matmul::<Q8_0>(w, rows, cols, x, out, panel) }
}
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,f16c,fma")]
unsafe fn mxfp4(
    w: &[u8],
    rows: usize,
    cols: usize,
    x: &[XRow],
    out: &mut [f32],
    panel: &mut Panel,
) {
    // SAFETY: as above.
    unsafe { matmul::<Mxfp4>(w, rows, cols, x, out, panel) }
}

fn supported() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
}

super::kernels!(
    "avx512",
    Lanes,
    ["avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,f16c,fma"],
    supported,
    q8_0,
    mxfp4
);
