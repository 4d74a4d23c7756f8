//! Sixteen lanes in one 512-bit register.
#![allow(unsafe_code)] // intrinsics

use crate::backend::cpu::kernels::simd::F32x16;
use std::arch::x86_64::*;

/// One 512-bit register.
#[derive(Clone, Copy)]
pub struct Lanes(__m512);

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
