//! What MLX's affine matrices have beyond Q8_0: an offset for each group of a row.
//!
//! The groups' sums of the quantized activations are known from quantizing them, so all it takes is a small
//! product in f32, a sixty-fourth as long as the main one.

use super::{
    buffers::Work,
    kernels::{BLOCK, Kernels, Rows, XRow},
};
use crate::weights::{Format, Offsets};
use std::ops::Range;

/// Adds to `out`, `[inputs, rows]`, the offsets of rows `rows` of a matrix of `cols` columns, times each group's
/// sum of the quantized activations.
pub fn add(
    kernels: &Kernels,
    offsets: &Offsets,
    cols: usize,
    rows: Range<usize>,
    inputs: &[XRow],
    out: &mut [f32],
    work: &mut Work,
) {
    let (stride, blocks) = (offsets.stride(cols), offsets.group / BLOCK);
    let mut sums = std::mem::take(&mut work.group_sums);
    sums.clear();
    sums.resize(inputs.len() * stride, 0.0);
    for (sums, x) in sums.chunks_exact_mut(stride).zip(inputs) {
        let of_blocks = x.scale.chunks(blocks).zip(x.sum.chunks(blocks));
        for (sum, (scale, of_block)) in sums.iter_mut().zip(of_blocks) {
            let each = scale.iter().zip(of_block);
            *sum = each.map(|(scale, &sum)| scale * sum as f32).sum();
        }
    }
    let sums_of = |f| XRow {
        f,
        ..XRow::default()
    };
    let inputs: Vec<XRow> = sums.chunks_exact(stride).map(sums_of).collect();
    let data = Rows {
        data: offsets.row_data(rows.clone(), cols),
        next: &[],
        rows: rows.len(),
        cols: stride,
    };
    let mut rest = std::mem::take(&mut work.rest);
    rest.resize(out.len(), 0.0);
    kernels.matmul(Format::F32, data, &inputs, &mut rest, &mut work.panel);
    out.iter_mut().zip(&rest).for_each(|(y, rest)| *y += rest);
    (work.group_sums, work.rest) = (sums, rest);
}
