//! AMX int8 tiles on top of AVX-512: Sapphire Rapids and later Xeons, for prefill.
//!
//! A tile multiplies sixteen tokens by sixteen unpacked weight rows over one block of 32, so each
//! result is the block's exact dot product and the sums keep the order of every other table. Rust
//! has no stable intrinsics for tiles yet: the five instructions are assembly.
#![allow(unsafe_code)] // intrinsics, assembly
#![allow(clippy::needless_range_loop)] // several arrays are walked together

use super::{
    BLOCK, GROUP, PANELS, avx512,
    avx512::{
        Lanes,
        blocks::{Blocks, Mxfp4, Q8_0},
        panel::{store, unpack},
    },
    check,
};
use std::{
    arch::{asm, x86_64::*},
    sync::OnceLock,
};

/// Tokens of a tile, and from how many on tiles are used.
const TOKENS: usize = 16;

/// Blocks that the tile unit is ahead of the sums.
const AHEAD: usize = 3;

/// The tile configuration: 0 holds products `[16 tokens, 16 rows]` i32, 1 the inputs
/// `[16 tokens, 32]`, 2 the weights `[8 dwords, 16 rows]`.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = {
    let mut c = Config {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        bytes: [0; 16],
        rows: [0; 16],
    };
    c.bytes[0] = 64;
    c.bytes[1] = 32;
    c.bytes[2] = 64;
    c.rows[0] = 16;
    c.rows[1] = 16;
    c.rows[2] = 8;
    c
};

/// Products of one block: `[16 tokens][16 rows]`.
#[repr(C, align(64))]
struct Dots([[i32; 16]; TOKENS]);

/// Lays out sixteen tokens: inputs `[block][token][32]`, then per block sixteen corrections and
/// sixteen scales.
#[inline(always)]
unsafe fn lay_out<B: Blocks>(x: &[XRow], blocks: usize, panel: &mut Panel) {
    assert!(x.len() == TOKENS && panel.inputs.len() >= blocks * 10);
    let to = panel.inputs.as_mut_ptr().cast::<u8>();
    for (t, x) in x.iter().enumerate() {
        for b in 0..blocks {
            let at = b / GROUP * GROUP * BLOCK + b % GROUP * 16;
            // SAFETY: block b lies in x, by `check`, and its places in the inputs, asserted above.
            unsafe {
                let q = x.q.as_ptr().add(at);
                let place = to.add((b * TOKENS + t) * BLOCK).cast::<__m128i>();
                _mm_store_si128(place, _mm_loadu_si128(q.cast()));
                _mm_store_si128(place.add(1), _mm_loadu_si128(q.add(64).cast()));
                let values = to.add((blocks * 8 + b * 2) * 64);
                *values.cast::<i32>().add(t) = -B::BIAS * x.sum[b];
                *values.cast::<f32>().add(TOKENS + t) = x.scale[b];
            }
        }
    }
}

/// The products of block `b` of panel `at` with the laid out tokens.
#[inline(always)]
unsafe fn multiply(panel: &Panel, at: usize, padded: usize, b: usize, dots: &mut Dots) {
    // SAFETY: the tiles are configured, and read 512 bytes each of inputs and weights and write
    // 1024 of products, all inside their buffers.
    unsafe {
        let inputs = panel.inputs.as_ptr().cast::<u8>().add(b * TOKENS * BLOCK);
        let weights = panel.weights.as_ptr().add((at * padded + b) * 8);
        asm!(
            "tilezero tmm0",
            "tileloadd tmm1, [{inputs} + {half}]",
            "tileloadd tmm2, [{weights} + {line}]",
            "tdpbsud tmm0, tmm1, tmm2",
            "tilestored [{dots} + {line}], tmm0",
            inputs = in(reg) inputs,
            weights = in(reg) weights,
            dots = in(reg) dots.0.as_mut_ptr(),
            half = in(reg) BLOCK,
            line = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
    }
}

/// Sixteen tokens by panel `at`.
#[inline(always)]
unsafe fn tile(panel: &Panel, at: usize, blocks: usize) -> [__m512; TOKENS] {
    let padded = blocks.next_multiple_of(GROUP);
    // SAFETY: the caller has unpacked panel `at`, laid out the tokens and configured the tiles.
    unsafe {
        let mut dots = [const { Dots([[0; 16]; TOKENS]) }; AHEAD + 1];
        let mut total = [_mm512_setzero_ps(); TOKENS];
        for chain in 0..GROUP.min(blocks) {
            let mut acc = [_mm512_setzero_ps(); TOKENS];
            // The tile unit works on the next blocks while one's products are added up: a tile's
            // stores take long to come back as loads.
            for i in 0..AHEAD {
                if chain + i * GROUP < blocks {
                    multiply(panel, at, padded, chain + i * GROUP, &mut dots[i]);
                }
            }
            for (i, b) in (chain..blocks).step_by(GROUP).enumerate() {
                if b + AHEAD * GROUP < blocks {
                    multiply(
                        panel,
                        at,
                        padded,
                        b + AHEAD * GROUP,
                        &mut dots[(i + AHEAD) % (AHEAD + 1)],
                    );
                }
                let dots = &dots[i % (AHEAD + 1)];
                let values = panel.inputs.as_ptr().add(blocks * 8 + b * 2);
                let (bias, scale_x) = (values.cast::<i32>(), values.add(1).cast::<f32>());
                let scale = _mm512_loadu_ps(panel.scale.as_ptr().add((at * padded + b) * 16));
                for t in 0..TOKENS {
                    let dot = _mm512_load_si512(dots.0[t].as_ptr().cast());
                    let dot = _mm512_add_epi32(dot, _mm512_set1_epi32(*bias.add(t)));
                    let s = _mm512_mul_ps(scale, _mm512_set1_ps(*scale_x.add(t)));
                    acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), s, acc[t]);
                }
            }
            for t in 0..TOKENS {
                total[t] = _mm512_add_ps(total[t], acc[t]);
            }
        }
        total
    }
}

#[inline(always)]
unsafe fn matmul<B: Blocks>(w: Rows, x: &[XRow], out: &mut [f32], panel: &mut Panel) {
    check(w, B::BYTES, x, out);
    let (rows, blocks) = (w.rows, w.cols / BLOCK);
    let whole = x.len() / TOKENS * TOKENS;
    // SAFETY: lengths are checked; the table is offered only where tiles may be used.
    unsafe {
        if whole > 0 {
            asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, preserves_flags, readonly));
            for first in (0..rows).step_by(16 * PANELS) {
                let panels = (rows - first).min(16 * PANELS).div_ceil(16);
                for at in 0..panels {
                    let r0 = first + at * 16;
                    let from = w.data.as_ptr().add(r0 * blocks * B::BYTES);
                    let n = (rows - r0).min(16);
                    unpack::<B>(
                        from,
                        n,
                        blocks,
                        panel,
                        at,
                        w.ahead(r0 + 16, blocks * B::BYTES),
                    );
                }
                for (i, x) in x[..whole].chunks_exact(TOKENS).enumerate() {
                    lay_out::<B>(x, blocks, panel);
                    for at in 0..panels {
                        let r0 = first + at * 16;
                        let mask = (!0u16) >> (16 - (rows - r0).min(16));
                        let tokens = tile(panel, at, blocks);
                        store(tokens, &mut out[i * TOKENS * rows + r0..], rows, mask);
                    }
                }
            }
            asm!("tilerelease", options(nostack, preserves_flags, nomem));
        }
        let (x, out) = (&x[whole..], &mut out[whole * rows..]);
        avx512::matmul::<B>(w, x, out, panel);
    }
}

/// Whether the processor has int8 tiles and the kernel lets this process use them (asked once).
fn supported() -> bool {
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        // SAFETY: every x86-64 processor has cpuid. (A safe function since Rust 1.94.)
        #[allow(unused_unsafe)]
        let leaf = unsafe { __cpuid_count(7, 0) };
        let tiles = leaf.edx >> 24 & 1 == 1 && leaf.edx >> 25 & 1 == 1;
        // SAFETY: a request for permission; it changes nothing else.
        let allowed = || unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_REQ_XCOMP_PERM,
                XFEATURE_XTILEDATA,
            ) == 0
        };
        tiles && avx512::supported() && allowed()
    })
}

super::kernels!(
    "amx",
    Lanes,
    ["avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,f16c,fma"],
    supported
);
