//! The CPU's kernels: algorithms once over lanes ([`float`], [`attention`]), the int8 products once
//! per instruction set, and a table of functions chosen once at run time.
//!
//! Every instruction set gives the same bits. Quantized products fix one order of accumulation:
//! activations are int8 blocks of 32 with an f32 scale, a block's dot product is an exact i32, and
//! four chains take every fourth block each, `acc = fma(dot as f32, weight_scale *
//! activation_scale, acc)`, and end as `((a0 + a1) + a2) + a3`: the four lanes of a register.
//! The scalar table is the oracle of the others.
#![allow(unsafe_code)] // calls functions that need an instruction set

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod float;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
pub mod simd;
#[cfg(test)]
mod tests;

use crate::weights::Format;
use attention::Tile;

/// Values of one quantization block.
pub const BLOCK: usize = 32;
/// Blocks stored together, see [`XRow`].
pub const GROUP: usize = 4;

/// One row of activations, as f32 and as int8.
///
/// `q` holds groups of four blocks: 16 first values of each of the four, then their 16 last values
/// (128 bytes). `scale` and `sum` (of the int8 values) are per block. Padding blocks are zero.
#[derive(Clone, Copy, Default)]
pub struct XRow<'a> {
    /// `[cols]`.
    pub f: &'a [f32],
    /// `[groups * 128]`.
    pub q: &'a [i8],
    /// `[groups * 4]`.
    pub scale: &'a [f32],
    /// `[groups * 4]`.
    pub sum: &'a [i32],
}

/// Working memory of products with many tokens: panels of sixteen unpacked weight rows,
/// `[block][8 dwords][16 rows]` with scales `[block][16 rows]`, and sixteen inputs laid out for tiles.
pub struct Panel {
    /// A line is a dword of each of sixteen rows.
    pub weights: Vec<Line>,
    /// Scales of the weights.
    pub scale: Vec<f32>,
    /// Inputs, their bias corrections and scales.
    pub inputs: Vec<Line>,
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

/// Panels that [`Panel`] has room for.
const PANELS: usize = 4;

impl Panel {
    /// Room for rows of `cols` values.
    pub fn new(cols: usize) -> Panel {
        let blocks = cols.div_ceil(BLOCK).next_multiple_of(GROUP);
        Panel {
            weights: vec![Line([0; 64]); PANELS * blocks * 8],
            scale: vec![0.0; PANELS * blocks * 16],
            inputs: vec![Line([0; 64]); blocks * 10],
        }
    }

    /// Bytes that [`Panel::new`] takes.
    pub fn bytes(cols: usize) -> usize {
        let blocks = cols.div_ceil(BLOCK).next_multiple_of(GROUP);
        blocks * (PANELS * (8 * size_of::<Line>() + 16 * size_of::<f32>()) + 10 * size_of::<Line>())
    }
}

/// Weight rows of a product: `rows * row_bytes` bytes, and those that the caller will read next,
/// which kernels may fetch ahead.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// `[rows]` rows of `cols` values in the file's blocks.
    pub data: &'a [u8],
    /// The next product's rows; empty if unknown.
    pub next: &'a [u8],
    /// Rows of `data`.
    pub rows: usize,
    /// Values of a row.
    pub cols: usize,
}

impl Rows<'_> {
    /// Where row `row` lies; past the last, the next product's rows. For prefetches only.
    #[cfg(target_arch = "x86_64")]
    fn ahead(&self, row: usize, row_bytes: usize) -> *const u8 {
        let (from, row) = if row < self.rows {
            (self.data, row)
        } else {
            (self.next, row - self.rows)
        };
        from.as_ptr().wrapping_add(row * row_bytes)
    }
}

/// `(weights, x, out, panel)`: `out[t * rows + r] = W[r] . x[t]`.
type Matmul = unsafe fn(Rows, &[XRow], &mut [f32], &mut Panel);

/// `(x, quantized, scales, sums)`, see [`XRow`].
type Quantize = unsafe fn(&[f32], &mut [i8], &mut [f32], &mut [i32]);

/// The kernels of one instruction set.
pub struct Kernels {
    /// `scalar`, `avx2`, `avx512` …
    pub name: &'static str,
    supported: fn() -> bool,
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    quantize: Quantize,
    swiglu: unsafe fn(&mut [f32], &[f32], f32),
    attend: unsafe fn(&mut Tile, usize, &[u16], &[u16], usize),
    merge: unsafe fn(&mut attention::Partial, &attention::Partial),
    f32: Matmul,
    f16: Matmul,
    bf16: Matmul,
    q8_0: Matmul,
    mxfp4: Matmul,
}

/// Builds a [`Kernels`] table, compiled with `$feature`: the float algorithms over `$lanes`, and the
/// calling module's int8 product `matmul` over its own block formats `Q8_0` and `Mxfp4`.
macro_rules! kernels {
    ($name:literal, $lanes:ty, [$($feature:literal)?], $supported:expr) => {
        use crate::backend::cpu::kernels::{Kernels, Panel, Rows, XRow, attention, float};
        $(#[target_feature(enable = $feature)])?
        unsafe fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
            // SAFETY: this function enables the lanes' instruction set; so below.
            unsafe { float::rms_norm::<$lanes>(x, w, eps, out) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn quantize(x: &[f32], q: &mut [i8], scale: &mut [f32], sum: &mut [i32]) {
            // SAFETY: as above.
            unsafe { float::quantize::<$lanes>(x, q, scale, sum) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn swiglu(gate: &mut [f32], up: &[f32], limit: f32) {
            // SAFETY: as above.
            unsafe { float::swiglu::<$lanes>(gate, up, limit) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn attend(tile: &mut attention::Tile, rows: usize, k: &[u16], v: &[u16], position: usize) {
            // SAFETY: as above.
            unsafe { attention::attend::<$lanes>(tile, rows, k, v, position) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn merge(into: &mut attention::Partial, part: &attention::Partial) {
            // SAFETY: as above.
            unsafe { attention::merge::<$lanes>(into, part) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn f32_rows(w: Rows, x: &[XRow], out: &mut [f32], _: &mut Panel) {
            // SAFETY: as above.
            unsafe { float::matmul::<$lanes, float::RowF32>(w.data, w.rows, w.cols, x, out) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn f16_rows(w: Rows, x: &[XRow], out: &mut [f32], _: &mut Panel) {
            // SAFETY: as above.
            unsafe { float::matmul::<$lanes, float::RowF16>(w.data, w.rows, w.cols, x, out) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn bf16_rows(w: Rows, x: &[XRow], out: &mut [f32], _: &mut Panel) {
            // SAFETY: as above.
            unsafe { float::matmul::<$lanes, float::RowBF16>(w.data, w.rows, w.cols, x, out) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn q8_0(w: Rows, x: &[XRow], out: &mut [f32], panel: &mut Panel) {
            // SAFETY: as above.
            unsafe { matmul::<Q8_0>(w, x, out, panel) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn mxfp4(w: Rows, x: &[XRow], out: &mut [f32], panel: &mut Panel) {
            // SAFETY: as above.
            unsafe { matmul::<Mxfp4>(w, x, out, panel) }
        }
        /// This instruction set's kernels.
        pub static KERNELS: Kernels = Kernels {
            name: $name,
            supported: $supported,
            rms_norm,
            quantize,
            swiglu,
            attend,
            merge,
            f32: f32_rows,
            f16: f16_rows,
            bf16: bf16_rows,
            q8_0,
            mxfp4,
        };
    };
}
use kernels;

/// The instruction sets that this build holds, fastest first as measured (docs/performance.md):
/// tiles have not beaten plain AVX-512 yet.
static ALL: &[&Kernels] = &[
    #[cfg(target_arch = "x86_64")]
    &avx512::KERNELS,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    &amx::KERNELS,
    #[cfg(target_arch = "x86_64")]
    &avx2::KERNELS,
    #[cfg(target_arch = "aarch64")]
    &neon::KERNELS,
    &scalar::KERNELS,
];

/// The tables that run on this machine, fastest first; never empty.
pub fn available() -> impl Iterator<Item = &'static Kernels> {
    ALL.iter().copied().filter(|k| (k.supported)())
}

// SAFETY of every call below: a table reaches its user through `available` only, which has checked
// the instruction set; the kernels check the lengths of their slices.
impl Kernels {
    /// `out = x * w / rms(x)`.
    pub fn rms_norm(&self, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        // SAFETY: see above the impl.
        unsafe { (self.rms_norm)(x, w, eps, out) }
    }
    /// Quantizes one row of activations, see [`XRow`].
    pub fn quantize(&self, x: &[f32], q: &mut [i8], scale: &mut [f32], sum: &mut [i32]) {
        // SAFETY: see above the impl.
        unsafe { (self.quantize)(x, q, scale, sum) }
    }
    /// Clamped SwiGLU in place over `gate`.
    pub fn swiglu(&self, gate: &mut [f32], up: &[f32], limit: f32) {
        // SAFETY: see above the impl.
        unsafe { (self.swiglu)(gate, up, limit) }
    }
    /// Adds one step of cached positions to a tile of query rows.
    pub fn attend(&self, tile: &mut Tile, rows: usize, k: &[u16], v: &[u16], position: usize) {
        // SAFETY: see above the impl.
        unsafe { (self.attend)(tile, rows, k, v, position) }
    }
    /// Merges the softmax state of a later partition into that of the earlier ones.
    pub fn merge(&self, into: &mut attention::Partial, part: &attention::Partial) {
        // SAFETY: see above the impl.
        unsafe { (self.merge)(into, part) }
    }
    /// `out[t * rows + r] = W[r] . x[t]`; `w` holds its rows in `format`.
    pub fn matmul(&self, format: Format, w: Rows, x: &[XRow], out: &mut [f32], panel: &mut Panel) {
        let kernel = match format {
            Format::F32 => self.f32,
            Format::F16 => self.f16,
            Format::BF16 => self.bf16,
            Format::Q8_0 => self.q8_0,
            Format::MXFP4 => self.mxfp4,
        };
        // SAFETY: see above the impl.
        unsafe { kernel(w, x, out, panel) }
    }
}

/// What every quantized product checks before it uses pointers.
fn check(w: Rows, block_bytes: usize, x: &[XRow], out: &[f32]) {
    let blocks = w.cols / BLOCK;
    assert!(w.cols.is_multiple_of(BLOCK) && w.data.len() == w.rows * blocks * block_bytes);
    assert_eq!(out.len(), w.rows * x.len());
    let padded = blocks.next_multiple_of(GROUP);
    for x in x {
        assert!(x.q.len() == padded * BLOCK && x.scale.len() == padded && x.sum.len() == padded);
    }
}
