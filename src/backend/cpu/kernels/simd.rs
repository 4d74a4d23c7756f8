//! Sixteen f32 lanes, told once per instruction set.
//!
//! Every float kernel is written over [`F32x16`] and compiled for each instruction set, so that all
//! of them add in the same order and give the same bits: one 512-bit register, two of 256, four of
//! 128, or an array. Each method is one rounding per lane, `fma` included.
#![allow(unsafe_code)] // intrinsics

/// Sixteen f32 lanes.
///
/// # Safety
/// Methods may be called only where the implementor's instruction set is present, inside a function
/// that enables it; pointers must be valid for 16 elements.
pub unsafe trait F32x16: Copy {
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self;
    /// Sixteen f32, unaligned.
    unsafe fn load(p: *const f32) -> Self;
    /// Sixteen f16 bit patterns, unaligned, widened.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// Sixteen bf16 bit patterns, unaligned, widened.
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// Stores all lanes, unaligned.
    unsafe fn store(self, p: *mut f32);
    /// Stores integral lanes in -128..=127 as i8.
    unsafe fn store_i8(self, p: *mut i8);
    /// `self + b`.
    unsafe fn add(self, b: Self) -> Self;
    /// `self - b`.
    unsafe fn sub(self, b: Self) -> Self;
    /// `self * b`.
    unsafe fn mul(self, b: Self) -> Self;
    /// `self / b`.
    unsafe fn div(self, b: Self) -> Self;
    /// `self * a + b`, rounded once.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// The larger; `b` where `self` is NaN.
    unsafe fn max(self, b: Self) -> Self;
    /// The smaller; `b` where `self` is NaN.
    unsafe fn min(self, b: Self) -> Self;
    /// Nearest integer, ties to even, as f32.
    unsafe fn round(self) -> Self;
    /// Absolute values.
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: the caller's instruction set.
        unsafe { self.max(Self::splat(0.0).sub(self)) }
    }
    /// `2^self` for integral lanes in -126..=127.
    unsafe fn exp2i(self) -> Self;

    /// Sum of the lanes as a fixed tree: 8+8, 4+4, 2+2, 1+1.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut v = [0f32; 16];
        // SAFETY: the array holds sixteen lanes.
        unsafe { self.store(v.as_mut_ptr()) };
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }

    /// The largest lane.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut v = [0f32; 16];
        // SAFETY: the array holds sixteen lanes.
        unsafe { self.store(v.as_mut_ptr()) };
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] = if v[i] > v[i + half] {
                    v[i]
                } else {
                    v[i + half]
                };
            }
        }
        v[0]
    }

    /// `e^self` for lanes at most 88; exactly 1 at 0 and 0 below -87.3. Error under 1 ulp or so.
    ///
    /// Cody-Waite reduction by ln 2 in two parts, then the degree-6 polynomial of Cephes' expf.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the caller's instruction set.
        unsafe {
            let low = Self::splat(-87.3);
            let x = self.max(low).min(Self::splat(88.0));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            let r = n.fma(Self::splat(-0.693_359_4), x);
            let r = n.fma(Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_2e-4);
            for c in [
                1.398_2e-3,
                8.333_452e-3,
                4.166_579_6e-2,
                1.666_666_5e-1,
                0.5,
            ] {
                p = p.fma(r, Self::splat(c));
            }
            let y = p.fma(r.mul(r), r).add(Self::splat(1.0)).mul(n.exp2i());
            y.zero_where_less(self, low)
        }
    }

    /// `self`, but 0 in lanes where `a < b`.
    unsafe fn zero_where_less(self, a: Self, b: Self) -> Self;
}

/// The portable lanes: an array.
#[derive(Clone, Copy)]
pub struct Array([f32; 16]);

impl Array {
    #[inline(always)]
    fn map2(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Array(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

// SAFETY: plain arithmetic; pointers by the trait's contract.
unsafe impl F32x16 for Array {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Array([x; 16])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: valid for sixteen elements, by contract.
        Array(unsafe { p.cast::<[f32; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: as above.
        let v = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        Array(v.map(|h| half::f16::from_bits(h).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: as above.
        let v = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        Array(v.map(|h| f32::from_bits(u32::from(h) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as above.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8) {
        // SAFETY: as above.
        unsafe {
            p.cast::<[i8; 16]>()
                .write_unaligned(self.0.map(|x| x as i8))
        }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.map2(b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self.map2(b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.map2(b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self.map2(b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        Array(std::array::from_fn(|i| self.0[i].mul_add(a.0[i], b.0[i])))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        self.map2(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        self.map2(b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Array(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    unsafe fn exp2i(self) -> Self {
        Array(
            self.0
                .map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23)),
        )
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, a: Self, b: Self) -> Self {
        Array(std::array::from_fn(|i| {
            if a.0[i] < b.0[i] { 0.0 } else { self.0[i] }
        }))
    }
}
