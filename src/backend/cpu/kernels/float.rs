//! Float kernels over sixteen lanes: normalization, quantization of activations, SwiGLU and
//! products with F32, F16 and BF16 matrices. Sums over k go lane by lane, 16 at a time, and end in
//! one fixed tree, so a row's result does not depend on its company.
#![allow(unsafe_code)] // generic over intrinsics

use super::{BLOCK, GROUP, XRow, simd::F32x16};

/// `out = x * w / rms(x)`; all `[n]`, n a multiple of 16.
///
/// # Safety
/// Call where `V`'s instruction set is enabled.
#[inline(always)]
pub unsafe fn rms_norm<V: F32x16>(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    let n = x.len();
    assert!(n.is_multiple_of(16) && w.len() == n && out.len() == n);
    // SAFETY: indices stay below n, checked above.
    unsafe {
        let mut squares = V::splat(0.0);
        for i in (0..n).step_by(16) {
            let v = V::load(x.as_ptr().add(i));
            squares = v.fma(v, squares);
        }
        let r = V::splat(1.0 / (squares.sum() / n as f32 + eps).sqrt());
        for i in (0..n).step_by(16) {
            let v = V::load(x.as_ptr().add(i)).mul(r);
            v.mul(V::load(w.as_ptr().add(i)))
                .store(out.as_mut_ptr().add(i));
        }
    }
}

/// Quantizes activations to int8 blocks of 32 with f32 scales, in the order [`XRow`] describes.
///
/// `q` is `[groups * 128]`, `scale` and `sum` `[groups * 4]`; padding blocks are zeroed.
///
/// # Safety
/// Call where `V`'s instruction set is enabled.
#[inline(always)]
pub unsafe fn quantize<V: F32x16>(x: &[f32], q: &mut [i8], scale: &mut [f32], sum: &mut [i32]) {
    let blocks = x.len() / BLOCK;
    let padded = blocks.next_multiple_of(GROUP);
    assert!(x.len().is_multiple_of(BLOCK) && q.len() == padded * BLOCK);
    assert!(scale.len() == padded && sum.len() == padded);
    for b in 0..padded {
        let at = b / GROUP * GROUP * BLOCK + b % GROUP * 16;
        if b >= blocks {
            q[at..at + 16].fill(0);
            q[at + 64..at + 80].fill(0);
            (scale[b], sum[b]) = (0.0, 0);
            continue;
        }
        // SAFETY: block b lies in x; `at + 80` lies in its group of 128 bytes of q.
        unsafe {
            let low = V::load(x.as_ptr().add(b * BLOCK));
            let high = V::load(x.as_ptr().add(b * BLOCK + 16));
            let largest = low.abs().max(high.abs()).largest();
            let (d, inverse) = if largest > 0.0 {
                (largest / 127.0, 127.0 / largest)
            } else {
                (0.0, 0.0)
            };
            // A subnormal largest makes the inverse infinite: such a block counts as zero.
            let (d, inverse) = if inverse.is_finite() {
                (d, inverse)
            } else {
                (0.0, 0.0)
            };
            let (low, high) = (
                low.mul(V::splat(inverse)).round(),
                high.mul(V::splat(inverse)).round(),
            );
            low.store_i8(q.as_mut_ptr().add(at));
            high.store_i8(q.as_mut_ptr().add(at + 64));
            let total = low.add(high).sum(); // exact: below 2^24
            sum[b] = total as i32;
            // An infinity or NaN has no int8: it makes the block's products NaN, never a silent zero.
            scale[b] = if total.is_nan() { f32::NAN } else { d };
        }
    }
}

/// The gate's sigmoid slope in the release.
pub const SWIGLU_ALPHA: f32 = 1.702;

/// `gate = min(g, limit) * sigmoid(1.702 min(g, limit)) * (clamp(u, -limit, limit) + 1)`, in place
/// over `gate`.
///
/// # Safety
/// Call where `V`'s instruction set is enabled.
#[inline(always)]
pub unsafe fn swiglu<V: F32x16>(gate: &mut [f32], up: &[f32], limit: f32) {
    assert!(gate.len() == up.len());
    let whole = gate.len() / 16 * 16;
    // SAFETY: indices stay below `whole`; the tail goes through an array of sixteen.
    unsafe {
        for i in (0..whole).step_by(16) {
            let at = gate.as_mut_ptr().add(i);
            swiglu_lanes(V::load(at), V::load(up.as_ptr().add(i)), limit).store(at);
        }
        let tail = gate.len() - whole;
        if tail > 0 {
            let (mut g, mut u) = ([0f32; 16], [0f32; 16]);
            g[..tail].copy_from_slice(&gate[whole..]);
            u[..tail].copy_from_slice(&up[whole..]);
            swiglu_lanes(V::load(g.as_ptr()), V::load(u.as_ptr()), limit).store(g.as_mut_ptr());
            gate[whole..].copy_from_slice(&g[..tail]);
        }
    }
}

#[inline(always)]
unsafe fn swiglu_lanes<V: F32x16>(g: V, u: V, limit: f32) -> V {
    // SAFETY: the caller's instruction set.
    unsafe {
        let one = V::splat(1.0);
        let g = g.min(V::splat(limit));
        let u = u.min(V::splat(limit)).max(V::splat(-limit));
        let e = V::splat(0.0)
            .sub(g.mul(V::splat(SWIGLU_ALPHA)))
            .min(V::splat(88.0))
            .exp();
        g.div(one.add(e)).mul(u.add(one))
    }
}

/// Loads sixteen weights of one float format.
pub trait FloatRow {
    /// Bytes of one value.
    const BYTES: usize;
    /// Sixteen values at `p`, unaligned.
    ///
    /// # Safety
    /// As [`F32x16::load`].
    unsafe fn load<V: F32x16>(p: *const u8) -> V;
}
/// F32 weights.
pub struct RowF32;
/// F16 weights.
pub struct RowF16;
/// BF16 weights.
pub struct RowBF16;
impl FloatRow for RowF32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<V: F32x16>(p: *const u8) -> V {
        // SAFETY: by contract.
        unsafe { V::load(p.cast()) }
    }
}
impl FloatRow for RowF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: F32x16>(p: *const u8) -> V {
        // SAFETY: by contract.
        unsafe { V::load_f16(p.cast()) }
    }
}
impl FloatRow for RowBF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: F32x16>(p: *const u8) -> V {
        // SAFETY: by contract.
        unsafe { V::load_bf16(p.cast()) }
    }
}

/// `out[t * rows + r] = W[r] . x[t]` for float weights, from the unquantized activations.
///
/// # Safety
/// Call where `V`'s instruction set is enabled.
#[inline(always)]
pub unsafe fn matmul<V: F32x16, R: FloatRow>(
    w: &[u8],
    rows: usize,
    cols: usize,
    x: &[XRow],
    out: &mut [f32],
) {
    assert!(cols.is_multiple_of(16) && w.len() == rows * cols * R::BYTES);
    assert!(out.len() == rows * x.len() && x.iter().all(|x| x.f.len() == cols));
    let row_bytes = cols * R::BYTES;
    for first in (0..x.len()).step_by(4) {
        let tokens = (x.len() - first).min(4);
        for r0 in (0..rows).step_by(2) {
            let pair = (rows - r0).min(2);
            // A lone last row or short tile computes its last member again and drops it.
            let p: [*const u8; 2] =
                std::array::from_fn(|i| w[(r0 + i.min(pair - 1)) * row_bytes..].as_ptr());
            let xs: [*const f32; 4] =
                std::array::from_fn(|t| x[first + t.min(tokens - 1)].f.as_ptr());
            // SAFETY: every pointer has `cols` values after it, checked above.
            unsafe {
                let mut acc = [[V::splat(0.0); 2]; 4];
                for k in (0..cols).step_by(16) {
                    let w: [V; 2] = [
                        R::load(p[0].add(k * R::BYTES)),
                        R::load(p[1].add(k * R::BYTES)),
                    ];
                    for t in 0..4 {
                        if t < tokens {
                            let v = V::load(xs[t].add(k));
                            acc[t][0] = w[0].fma(v, acc[t][0]);
                            acc[t][1] = w[1].fma(v, acc[t][1]);
                        }
                    }
                }
                for t in 0..tokens {
                    for i in 0..pair {
                        out[(first + t) * rows + r0 + i] = acc[t][i].sum();
                    }
                }
            }
        }
    }
}
