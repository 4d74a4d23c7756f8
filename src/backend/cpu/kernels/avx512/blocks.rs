//! Four blocks of the file's formats as unsigned bytes, which is what `vpdpbusd` multiplies.
#![allow(unsafe_code)] // intrinsics
#![allow(clippy::needless_range_loop)] // several arrays are walked together

use crate::backend::cpu::kernels::Line;
use std::arch::x86_64::*;

/// A block format as four blocks of biased bytes.
pub trait Blocks {
    /// Bytes of a block.
    const BYTES: usize;
    /// Biased weight = integer + BIAS.
    const BIAS: i32;
    /// Lane b: the 16 first, and the 16 last, biased integers of block b of `n` (1..=4) at `p`.
    ///
    /// # Safety
    /// AVX-512 with VBMI is enabled, and `n` blocks lie at each pointer.
    unsafe fn unpack(p: *const u8, n: usize) -> (__m512i, __m512i);
    /// Lane b, element r: scale of block b of row r, from `n` blocks of four rows.
    ///
    /// # Safety
    /// AVX-512 with VBMI is enabled, and `n` blocks lie at each pointer.
    unsafe fn scales(p: [*const u8; 4], n: usize) -> __m512;
    /// `BIAS * sum` for four blocks.
    ///
    /// # Safety
    /// AVX-512 with VBMI is enabled, and `n` blocks lie at each pointer.
    unsafe fn correction(sum: __m128i) -> __m128i;
}

/// MXFP4, doubled values plus 12.
pub struct Mxfp4;
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

/// Q8_0 plus 128.
pub struct Q8_0;
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
