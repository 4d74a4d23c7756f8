//! The kernels' arguments, laid out as they take them.

use crate::backend::cuda::batch::Cache;

/// What becomes of q, k and v. The same in kernels/qkv.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct QkvOut {
    /// f16 `[rows, heads, 64]`.
    pub q: u64,
    /// f16 `[rows, kv_heads, 2, 64]`, or 0: straight to the cache.
    pub fresh: u64,
    /// The layer's.
    pub cache: Cache,
    /// f32 `[heads + 2 kv_heads, 64]`.
    pub bias: u64,
    /// f32 `[context, 2, 32]`.
    pub rope: u64,
    /// [`Row`](super::batch::Row)s.
    pub rows: u64,
    /// [`Segment`](super::batch::Segment)s.
    pub segments: u64,
    /// Query heads.
    pub heads: i32,
    /// KV heads.
    pub kv_heads: i32,
}

impl QkvOut {
    pub(super) const NONE: QkvOut = QkvOut {
        q: 0,
        fresh: 0,
        cache: Cache {
            base: 0,
            table: 0,
            kv_heads: 0,
            ring_steps: 0,
            ring_stride: 0,
            pad: 0,
        },
        bias: 0,
        rope: 0,
        rows: 0,
        segments: 0,
        heads: 0,
        kv_heads: 0,
    };
}

/// The same in kernels/gemm.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct GemmArgs {
    pub weights: u64,
    pub exponents: u64,
    pub input: u64,
    pub order: u64,
    pub chosen: u64,
    pub work: u64,
    pub work_count: u64,
    pub bias: u64,
    pub up_bias: u64,
    pub out: u64,
    pub qkv: QkvOut,
    pub epilogue: i32,
    pub rows: i32,
    pub tile: i32,
    pub tiles: i32,
    pub units: i32,
    pub stride: i32,
    pub outputs: i32,
    pub out_stride: i32,
    pub used: i32,
    pub split: i32,
    pub limit: f32,
    pub pad: i32,
}

/// The same in kernels/route.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RouteArgs {
    pub ids: u64,
    pub order: u64,
    pub work: u64,
    pub work_count: u64,
    pub touched: u64,
    pub pairs: i32,
    pub experts: i32,
    pub tile: i32,
    pub pad: i32,
}

/// The same in kernels/route.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ExponentArgs {
    pub data: u64,
    pub exponents: u64,
    pub format: i32,
    pub count: i32,
    pub units: i32,
    pub cols: i32,
}
