//! AVX-512 with VNNI and VBMI: Ice Lake and later Xeons, Zen 4 and later.
//!
//! Few tokens: four weight rows at a time straight from the file's blocks, four blocks a register.
//! Many tokens: sixteen rows are unpacked into a [`Panel`], one lane a row, and up to eight tokens
//! share each weight load. Integers are made unsigned by a bias, as `vpdpbusd` wants; the bias times
//! the activations' sum is taken off again, exactly.
#![allow(unsafe_code)] // intrinsics

pub mod blocks;
mod few;
mod lanes;
pub mod panel;

use super::check;
use blocks::{Blocks, Mxfp4, Q8_0};
use few::few;
pub use lanes::Lanes;
use panel::many;

/// Any number of tokens. From nine on, unpacking a panel pays; up to eight, the sums of four rows stay
/// in registers.
///
/// # Safety
/// [`supported`], in a function that enables the instruction set.
#[inline(always)]
pub unsafe fn matmul<B: Blocks>(w: Rows, x: &[XRow], out: &mut [f32], panel: &mut Panel) {
    check(w, B::BYTES, x, out);
    // SAFETY: lengths are checked; the caller enables the instruction set.
    unsafe {
        match x.len() {
            0 => {}
            1 => few::<B, 1>(w, x, out, panel),
            2 => few::<B, 2>(w, x, out, panel),
            3 => few::<B, 3>(w, x, out, panel),
            4 => few::<B, 4>(w, x, out, panel),
            5 => few::<B, 5>(w, x, out, panel),
            6 => few::<B, 6>(w, x, out, panel),
            7 => few::<B, 7>(w, x, out, panel),
            8 => few::<B, 8>(w, x, out, panel),
            _ => many::<B>(w, x, out, panel),
        }
    }
}

/// Whether this machine has all of it.
pub fn supported() -> bool {
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
    supported
);
