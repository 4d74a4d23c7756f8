//! NEON, and the dot product instruction of ARMv8.2 where there is one: Apple silicon, Graviton 2
//! and later, Neoverse. Small on purpose: one weight row at a time for up to four tokens. The
//! `sdot` intrinsic is not stable yet, so it is written as assembly.
#![allow(unsafe_code)] // intrinsics, assembly
#![allow(clippy::needless_range_loop)] // several arrays are walked together

use super::{BLOCK, GROUP, check, scalar::mxfp4_scale, simd::F32x16};
use crate::quant::MXFP4_VALUES;
use std::arch::{aarch64::*, asm, is_aarch64_feature_detected};

/// Four 128-bit registers.
#[derive(Clone, Copy)]
struct Lanes([float32x4_t; 4]);

macro_rules! each {
    ($i:ident => $e:expr) => {{
        // SAFETY: NEON is part of the target; pointers by the trait's contract.
        unsafe { let f = |$i: usize| $e; Lanes([f(0), f(1), f(2), f(3)]) }
    }};
}

// SAFETY: NEON intrinsics, which every aarch64 target here enables.
unsafe impl F32x16 for Lanes {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        each!(_i => vdupq_n_f32(x))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        each!(i => vld1q_f32(p.add(4 * i)))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        each!(i => {
            let half = vld1_u16(p.add(4 * i));
            let wide: float32x4_t;
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) half, options(pure, nomem, nostack, preserves_flags));
            wide
        })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        each!(i => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(4 * i)))))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        for i in 0..4 {
            // SAFETY: sixteen values, by contract.
            unsafe { vst1q_f32(p.add(4 * i), self.0[i]) }
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8) {
        let mut lanes = [0f32; 16];
        // SAFETY: sixteen values, by contract.
        unsafe {
            self.store(lanes.as_mut_ptr());
            p.cast::<[i8; 16]>().write_unaligned(lanes.map(|x| x as i8));
        }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        each!(i => vaddq_f32(self.0[i], b.0[i]))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        each!(i => vsubq_f32(self.0[i], b.0[i]))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        each!(i => vmulq_f32(self.0[i], b.0[i]))
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        each!(i => vdivq_f32(self.0[i], b.0[i]))
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        each!(i => vfmaq_f32(b.0[i], self.0[i], a.0[i]))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        each!(i => vbslq_f32(vcgtq_f32(self.0[i], b.0[i]), self.0[i], b.0[i]))
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        each!(i => vbslq_f32(vcltq_f32(self.0[i], b.0[i]), self.0[i], b.0[i]))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        each!(i => vrndnq_f32(self.0[i]))
    }
    #[inline(always)]
    unsafe fn exp2i(self) -> Self {
        each!(i => {
            let n = vaddq_s32(vcvtq_s32_f32(self.0[i]), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(n))
        })
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, a: Self, b: Self) -> Self {
        each!(i => vbslq_f32(vcltq_f32(a.0[i], b.0[i]), vdupq_n_f32(0.0), self.0[i]))
    }
}

/// `acc + dot(a, b)` of sixteen int8, by fours.
///
/// # Safety
/// The processor has `dotprod`.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: only registers; the instruction is there by the caller's promise.
    unsafe {
        asm!(".arch_extension dotprod", "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b,
             options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

trait Block {
    const BYTES: usize;
    /// Scale, and the first and last sixteen integers, of the block at `p`.
    unsafe fn unpack(p: *const u8) -> (f32, int8x16_t, int8x16_t);
}

struct Q8_0;
impl Block for Q8_0 {
    const BYTES: usize = 34;
    #[inline(always)]
    unsafe fn unpack(p: *const u8) -> (f32, int8x16_t, int8x16_t) {
        // SAFETY: a whole block lies at p.
        unsafe {
            let d = half::f16::from_bits(p.cast::<u16>().read_unaligned()).to_f32();
            (d, vld1q_s8(p.add(2).cast()), vld1q_s8(p.add(18).cast()))
        }
    }
}

struct Mxfp4;
impl Block for Mxfp4 {
    const BYTES: usize = 17;
    #[inline(always)]
    unsafe fn unpack(p: *const u8) -> (f32, int8x16_t, int8x16_t) {
        // SAFETY: a whole block lies at p.
        unsafe {
            let values = vld1q_s8(MXFP4_VALUES.as_ptr());
            let packed = vld1q_u8(p.add(1));
            let low = vqtbl1q_s8(values, vandq_u8(packed, vdupq_n_u8(15)));
            (
                mxfp4_scale(*p),
                low,
                vqtbl1q_s8(values, vshrq_n_u8::<4>(packed)),
            )
        }
    }
}

unsafe fn matmul<B: Block>(w: Rows, x: &[XRow], out: &mut [f32], _: &mut Panel) {
    check(w, B::BYTES, x, out);
    let (rows, blocks) = (w.rows, w.cols / BLOCK);
    for r in 0..rows {
        for (i, x) in x.chunks(4).enumerate() {
            let mut acc = [[0f32; GROUP]; 4];
            for b in 0..blocks {
                let at = b / GROUP * GROUP * BLOCK + b % GROUP * 16;
                // SAFETY: block b of row r, and of every x, by `check`; dotprod by `supported`.
                unsafe {
                    let (d, low, high) =
                        B::unpack(w.data.as_ptr().add((r * blocks + b) * B::BYTES));
                    for (t, x) in x.iter().enumerate() {
                        let q = x.q.as_ptr().add(at);
                        let dot = sdot(
                            sdot(vdupq_n_s32(0), low, vld1q_s8(q)),
                            high,
                            vld1q_s8(q.add(64)),
                        );
                        let chain = &mut acc[t][b % GROUP];
                        *chain = (vaddvq_s32(dot) as f32).mul_add(d * x.scale[b], *chain);
                    }
                }
            }
            for t in 0..x.len() {
                out[(i * 4 + t) * rows + r] = ((acc[t][0] + acc[t][1]) + acc[t][2]) + acc[t][3];
            }
        }
    }
}

fn supported() -> bool {
    is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod")
}

super::kernels!("neon", Lanes, [], supported);
