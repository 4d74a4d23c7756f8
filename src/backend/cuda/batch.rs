//! A ragged batch and the KV cache as the kernels see them. The same in kernels/common.cuh.
#![allow(unsafe_code)] // plain memory, by promise

use super::Plain;

/// One new token of the batch.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub token: i32,
    /// Its position.
    pub position: i32,
    /// Its segment; -1: no token, a row that only fills up a graph.
    pub segment: i32,
    /// 1: its keys and values are appended to full layers. 0: they are kept there already.
    pub append: i32,
}

/// New tokens of one sequence.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Position of the first.
    pub start: i32,
    /// How many.
    pub len: i32,
    /// Row of the first.
    pub first_row: i32,
    /// Which ring of the sliding layers.
    pub slot: i32,
    /// First position that sliding layers see.
    pub window_from: i32,
    /// Where its block table begins in the batch's table.
    pub blocks: i32,
    /// Nothing.
    pub pad: [i32; 2],
}

/// Where one layer keeps keys and values.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Cache {
    /// Its first step, f16.
    pub base: u64,
    /// i32 block tables of all segments; of use in full layers only.
    pub table: u64,
    /// KV heads.
    pub kv_heads: i32,
    /// Steps in a slot's ring; 0 in a full layer.
    pub ring_steps: i32,
    /// Steps between the rings of two slots.
    pub ring_stride: i32,
    /// Nothing.
    pub pad: i32,
}

// SAFETY: 32-bit numbers without padding.
unsafe impl Plain for Row {}
// SAFETY: as above.
unsafe impl Plain for Segment {}
