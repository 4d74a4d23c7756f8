//! Which kernel multiplies how many activations at a time, by what was measured, and the shared memory it takes.

use super::{Products, Routes};
use crate::backend::cuda::tiles::{Tiles, UNIT_BYTES};

/// Activations that gemm.cu's kernels are made for.
pub(super) const TILED: [usize; 4] = [16, 32, 64, 128];
/// Activations that gemm_few.cu's kernels are made for.
pub(super) const FEW: [usize; 3] = [8, 16, 24];
/// Most activations of a block of gemm_hopper.cu.
const WIDE: usize = 160;
/// Warps of a block of gemm.cu.
pub(super) const WARPS: usize = 8;

/// Which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// gemm_few.cu, for experts: one block a multiprocessor, up to 24 activations.
    Few,
    /// gemm.cu, with so many warps sharing a tile's inputs.
    Tiled { split: usize },
    /// gemm_hopper.cu.
    Wide,
}

/// The shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub(super) kind: Kind,
    /// Most activations of a block, or of a piece of work.
    pub(super) columns: usize,
}

impl Products {
    /// The shape for one matrix and some rows.
    pub(super) fn dense(&self, w: &Tiles, rows: usize) -> Shape {
        let sms = self.device.multiprocessors() as usize;
        let (tiles, format) = (w.tiles as usize, w.format as usize);
        // The LM head: every multiprocessor has many tiles.
        let tall = tiles > 16 * sms;
        if self.wide.is_some() && rows > if tall { 48 } else { 160 } {
            // Whole waves of blocks count; half of a block's time is the same however wide it is.
            let time = |n: usize| (tiles.div_ceil(16) * rows.div_ceil(n)).div_ceil(sms) * (n + 160);
            let columns = [160, 144, 128, 96, 64].into_iter().min_by_key(|&n| time(n));
            return Shape::wide(columns.unwrap_or(WIDE));
        }
        let most = if tall || rows > 160 { 128 } else { 32 };
        let columns = TILED[smallest(&TILED, rows.min(most))].min(self.most_tiled(format));
        let pieces = rows.div_ceil(columns);
        // A wave of blocks needs as many as the device runs at once: let more warps share the inputs.
        let enough = |split: &usize| tiles.div_ceil(WARPS / split) * pieces >= 2 * sms;
        let shared = self.most_shared(110 << 10);
        let fits = |split: &usize| tiled_bytes(format, columns, *split) <= shared;
        let mut splits = [1, 2, 4].into_iter().filter(|s| columns < 128 && fits(s));
        let split = splits.clone().find(enough).or(splits.next_back());
        Shape {
            kind: Kind::Tiled {
                split: split.unwrap_or(1),
            },
            columns,
        }
    }

    /// The shape for the experts of `rows` rows, about evenly chosen. `formats`, `stride`: of both
    /// matrices, and of the wider input.
    pub fn shape(
        &self,
        formats: [i32; 2],
        stride: usize,
        rows: usize,
        (used, experts): (usize, usize),
    ) -> Shape {
        let each = (rows * used) as f64 / experts as f64;
        if each >= 36.0 && self.wide.is_some() {
            return Shape::wide(WIDE);
        }
        // Most experts in one piece, though some are chosen more often than others.
        let most = (each + 1.3 * each.sqrt()).ceil() as usize;
        let few = FEW[smallest(&FEW, most.div_ceil(most.div_ceil(FEW[2])))];
        if each < 48.0 && self.few_warps(few, stride).is_some() {
            return Shape::few(few);
        }
        let columns = TILED[smallest(&TILED, most)];
        let fit = formats.map(|format| self.most_tiled(format as usize));
        Shape {
            kind: Kind::Tiled { split: 1 },
            columns: columns.min(fit[0]).min(fit[1]),
        }
    }

    /// Most columns of gemm.cu that the device has shared memory for.
    fn most_tiled(&self, format: usize) -> usize {
        let fits = |n: &usize| tiled_bytes(format, *n, 1) <= self.most_shared(usize::MAX);
        TILED.into_iter().rfind(fits).unwrap_or(TILED[0])
    }

    /// Warps of a block of gemm_few.cu, if the device has shared memory for it.
    pub(super) fn few_warps(&self, columns: usize, stride: usize) -> Option<usize> {
        let fits =
            |&warps: &usize| few_bytes(columns, stride, warps) <= self.most_shared(usize::MAX);
        [16, 12, 8].into_iter().find(fits)
    }

    fn most_shared(&self, most: usize) -> usize {
        most.min(self.device.shared_bytes() as usize)
    }
}

impl Shape {
    pub(in super::super) fn few(columns: usize) -> Shape {
        let kind = Kind::Few;
        Shape { kind, columns }
    }

    fn wide(columns: usize) -> Shape {
        let kind = Kind::Wide;
        Shape { kind, columns }
    }

    /// Most pieces of work that the pairs of `rows` rows make.
    pub(super) fn pieces(&self, routes: &Routes, rows: usize) -> usize {
        let pairs = rows * routes.used;
        pairs / self.columns + routes.experts.min(pairs)
    }
}

/// The first of `sizes` that holds `n`, or the last.
pub(super) fn smallest(sizes: &[usize], n: usize) -> usize {
    let found = sizes.iter().position(|&size| size >= n);
    found.unwrap_or(sizes.len() - 1)
}

// Shared memory of the kernels' blocks, in bytes, as their files lay it out. 64 inputs of a tile take 544 bytes of
// MXFP4, twice as many of Q8_0, four times of F16.

pub(super) fn few_bytes(columns: usize, stride: usize, warps: usize) -> usize {
    columns * (stride * 2 + 12) + warps * (5 * 2 * UNIT_BYTES + columns * 64)
}

pub(super) fn tiled_bytes(format: usize, columns: usize, split: usize) -> usize {
    let (tall, stages) = match (columns, format) {
        (128, _) => (2, 3),
        (n, 0) => (1, 6 - n / 64),
        (_, 1) => (1, 4),
        _ => (1, 3),
    };
    let stage = WARPS * tall * (UNIT_BYTES << format) + split * columns * 128;
    stages * stage + columns * 12
}

pub(super) fn wide_bytes(format: usize, columns: usize) -> usize {
    let stages = if format == 2 { 4 } else { 6 };
    2048 + stages * (columns.next_multiple_of(16).max(64) * 128 + 16 * (UNIT_BYTES << format))
}
