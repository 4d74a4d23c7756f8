//! AVX2 with FMA and F16C: x86-64 since Haswell and Zen. Four weight rows at a time straight from
//! the file's blocks, four blocks in two registers, for up to four tokens.
#![allow(unsafe_code)] // intrinsics
#![allow(clippy::needless_range_loop)] // several arrays are walked together

use super::{BLOCK, GROUP, check, scalar::mxfp4_scale, simd::F32x16};
use std::arch::x86_64::*;

/// Two 256-bit registers.
#[derive(Clone, Copy)]
struct Lanes(__m256, __m256);

macro_rules! both {
    ($f:ident, $a:expr, $b:expr) => {
        // SAFETY: AVX2 and FMA, by the trait's contract.
        unsafe { Lanes($f($a.0, $b.0), $f($a.1, $b.1)) }
    };
}

// SAFETY: AVX2, FMA and F16C intrinsics; callers hold the trait's contract.
unsafe impl F32x16 for Lanes {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe { Lanes(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe { Lanes(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            Lanes(
                _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            let low = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())), 16);
            let high =
                _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast())), 16);
            Lanes(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8) {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            let words = _mm256_permute4x64_epi64(words, 0b11_01_10_00);
            let bytes = _mm_packs_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256(words, 1),
            );
            _mm_storeu_si128(p.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        both!(_mm256_add_ps, self, b)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        both!(_mm256_sub_ps, self, b)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        both!(_mm256_mul_ps, self, b)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        both!(_mm256_div_ps, self, b)
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            Lanes(
                _mm256_fmadd_ps(self.0, a.0, b.0),
                _mm256_fmadd_ps(self.1, a.1, b.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        both!(_mm256_max_ps, self, b)
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        both!(_mm256_min_ps, self, b)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            Lanes(
                _mm256_round_ps(self.0, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(self.1, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            )
        }
    }
    #[inline(always)]
    unsafe fn exp2i(self) -> Self {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias), 23);
            let high = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias), 23);
            Lanes(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, a: Self, b: Self) -> Self {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            Lanes(
                _mm256_and_ps(self.0, _mm256_cmp_ps(a.0, b.0, _CMP_NLT_UQ)),
                _mm256_and_ps(self.1, _mm256_cmp_ps(a.1, b.1, _CMP_NLT_UQ)),
            )
        }
    }
}

/// Four blocks of one row: the first and the last 16 integers of blocks 0, 1 and of blocks 2, 3.
#[derive(Clone, Copy)]
struct Four {
    low: [__m256i; 2],
    high: [__m256i; 2],
}

trait Blocks {
    const BYTES: usize;
    unsafe fn unpack(p: *const u8, n: usize) -> Four;
    unsafe fn scale(p: *const u8) -> f32;
    /// Four i32 per block whose sum is the dot product with the activations.
    unsafe fn dot(low: __m256i, high: __m256i, xl: __m256i, xh: __m256i) -> __m256i;
}

/// Sixteen bytes of block `b`, or zeros past the `n`-th.
#[inline(always)]
unsafe fn block(p: *const u8, b: usize, n: usize) -> __m128i {
    // SAFETY: AVX2 and valid pointers, by the caller's promise.
    unsafe {
        if b < n {
            _mm_loadu_si128(p.cast())
        } else {
            _mm_setzero_si128()
        }
    }
}

struct Mxfp4;
impl Blocks for Mxfp4 {
    const BYTES: usize = 17;
    #[inline(always)]
    unsafe fn unpack(p: *const u8, n: usize) -> Four {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            let values = _mm256_setr_epi8(
                0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12, 0, 1, 2, 3, 4, 6, 8, 12,
                0, -1, -2, -3, -4, -6, -8, -12,
            );
            let mask = _mm256_set1_epi8(15);
            let zero = _mm256_setzero_si256();
            let mut four = Four {
                low: [zero; 2],
                high: [zero; 2],
            };
            for i in 0..2 {
                let packed = _mm256_set_m128i(
                    block(p.wrapping_add(34 * i + 18), 2 * i + 1, n),
                    block(p.wrapping_add(34 * i + 1), 2 * i, n),
                );
                four.low[i] = _mm256_shuffle_epi8(values, _mm256_and_si256(packed, mask));
                four.high[i] = _mm256_shuffle_epi8(
                    values,
                    _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask),
                );
            }
            four
        }
    }
    #[inline(always)]
    unsafe fn scale(p: *const u8) -> f32 {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe { mxfp4_scale(*p) }
    }
    #[inline(always)]
    unsafe fn dot(low: __m256i, high: __m256i, xl: __m256i, xh: __m256i) -> __m256i {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            // Four products of at most 12 * 127 fit i16.
            let a = _mm256_maddubs_epi16(_mm256_abs_epi8(low), _mm256_sign_epi8(xl, low));
            let b = _mm256_maddubs_epi16(_mm256_abs_epi8(high), _mm256_sign_epi8(xh, high));
            _mm256_madd_epi16(_mm256_add_epi16(a, b), _mm256_set1_epi16(1))
        }
    }
}

struct Q8_0;
impl Blocks for Q8_0 {
    const BYTES: usize = 34;
    #[inline(always)]
    unsafe fn unpack(p: *const u8, n: usize) -> Four {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            let zero = _mm256_setzero_si256();
            let mut four = Four {
                low: [zero; 2],
                high: [zero; 2],
            };
            for i in 0..2 {
                let at = p.wrapping_add(68 * i + 2);
                four.low[i] = _mm256_set_m128i(
                    block(at.wrapping_add(34), 2 * i + 1, n),
                    block(at, 2 * i, n),
                );
                four.high[i] = _mm256_set_m128i(
                    block(at.wrapping_add(50), 2 * i + 1, n),
                    block(at.wrapping_add(16), 2 * i, n),
                );
            }
            four
        }
    }
    #[inline(always)]
    unsafe fn scale(p: *const u8) -> f32 {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(
                p.cast::<u16>().read_unaligned(),
            ))))
        }
    }
    #[inline(always)]
    unsafe fn dot(low: __m256i, high: __m256i, xl: __m256i, xh: __m256i) -> __m256i {
        // SAFETY: AVX2 and valid pointers, by the caller's promise.
        unsafe {
            // Two products of at most 128 * 127 fit i16 (the activations never reach -128).
            let one = _mm256_set1_epi16(1);
            let a = _mm256_maddubs_epi16(_mm256_abs_epi8(low), _mm256_sign_epi8(xl, low));
            let b = _mm256_maddubs_epi16(_mm256_abs_epi8(high), _mm256_sign_epi8(xh, high));
            _mm256_add_epi32(_mm256_madd_epi16(a, one), _mm256_madd_epi16(b, one))
        }
    }
}

/// Rows that weights are fetched ahead, into the second-level cache.
const ROWS_AHEAD: usize = 2 * 4;

/// Lane b, element r: the sum of the four dwords of lane b of `d[r]`.
#[inline(always)]
unsafe fn sum_dwords(d: [__m256i; 4]) -> __m256i {
    // SAFETY: AVX2 and valid pointers, by the caller's promise.
    unsafe { _mm256_hadd_epi32(_mm256_hadd_epi32(d[0], d[1]), _mm256_hadd_epi32(d[2], d[3])) }
}

#[inline(always)]
unsafe fn few<B: Blocks, const T: usize>(w: Rows, x: &[XRow], out: &mut [f32]) {
    assert_eq!(x.len(), T);
    let (rows, blocks) = (w.rows, w.cols / BLOCK);
    let row_bytes = blocks * B::BYTES;
    for r0 in (0..rows).step_by(4) {
        let n = (rows - r0).min(4);
        // SAFETY: rows are clamped to the last, groups to the row's blocks; lengths by `check`.
        unsafe {
            let row = |r: usize| w.data.as_ptr().add((r0 + r.min(n - 1)) * row_bytes);
            let mut p = [row(0), row(1), row(2), row(3)];
            let mut acc = [[_mm_setzero_ps(); GROUP]; T];
            // As in the AVX-512 kernel: the rows ahead line by line, then the next product's.
            let ahead = w.ahead(r0 + ROWS_AHEAD, row_bytes);
            for g in 0..blocks.div_ceil(GROUP) {
                let left = (blocks - g * GROUP).min(GROUP);
                let group_bytes = 4 * GROUP * B::BYTES;
                for line in (0..group_bytes).step_by(64) {
                    let at = ahead.wrapping_add(g * group_bytes + line);
                    _mm_prefetch(at.cast(), _MM_HINT_T1);
                }
                let weights = [
                    B::unpack(p[0], left),
                    B::unpack(p[1], left),
                    B::unpack(p[2], left),
                    B::unpack(p[3], left),
                ];
                let mut scales = [_mm_setzero_ps(); GROUP];
                for (b, s) in scales.iter_mut().enumerate().take(left) {
                    let at = b * B::BYTES;
                    *s = _mm_setr_ps(
                        B::scale(p[0].add(at)),
                        B::scale(p[1].add(at)),
                        B::scale(p[2].add(at)),
                        B::scale(p[3].add(at)),
                    );
                }
                for t in 0..T {
                    let x = x.get_unchecked(t);
                    let q = x.q.as_ptr().add(g * 128).cast::<__m256i>();
                    for i in 0..2 {
                        let (low, high) = (
                            _mm256_loadu_si256(q.add(i)),
                            _mm256_loadu_si256(q.add(2 + i)),
                        );
                        let mut dots = [_mm256_setzero_si256(); 4];
                        for r in 0..4 {
                            dots[r] = B::dot(weights[r].low[i], weights[r].high[i], low, high);
                        }
                        let dots = _mm256_cvtepi32_ps(sum_dwords(dots));
                        let sx = x.scale.as_ptr().add(g * GROUP + 2 * i);
                        let s = _mm_mul_ps(scales[2 * i], _mm_set1_ps(*sx));
                        acc[t][2 * i] =
                            _mm_fmadd_ps(_mm256_castps256_ps128(dots), s, acc[t][2 * i]);
                        let s = _mm_mul_ps(scales[2 * i + 1], _mm_set1_ps(*sx.add(1)));
                        acc[t][2 * i + 1] =
                            _mm_fmadd_ps(_mm256_extractf128_ps(dots, 1), s, acc[t][2 * i + 1]);
                    }
                }
                for p in &mut p {
                    *p = p.wrapping_add(GROUP * B::BYTES);
                }
            }
            for (t, acc) in acc.iter().enumerate() {
                let mut four = [0f32; 4];
                let sum = _mm_add_ps(_mm_add_ps(acc[0], acc[1]), acc[2]);
                _mm_storeu_ps(four.as_mut_ptr(), _mm_add_ps(sum, acc[3]));
                out[t * rows + r0..][..n].copy_from_slice(&four[..n]);
            }
        }
    }
}

#[inline(always)]
unsafe fn matmul<B: Blocks>(w: Rows, x: &[XRow], out: &mut [f32], _: &mut Panel) {
    check(w, B::BYTES, x, out);
    for (i, x) in x.chunks(4).enumerate() {
        let out = &mut out[i * 4 * w.rows..];
        // SAFETY: lengths are checked; the caller enables the instruction set.
        unsafe {
            match x.len() {
                1 => few::<B, 1>(w, x, out),
                2 => few::<B, 2>(w, x, out),
                3 => few::<B, 3>(w, x, out),
                _ => few::<B, 4>(w, x, out),
            }
        }
    }
}

fn supported() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

super::kernels!("avx2", Lanes, ["avx2,fma,f16c"], supported);
