//! Products of tiled weights with many rows of activations: which kernel, in what shape, and the launches
//! (kernels/gemm.cuh).

mod args;
mod shape;

pub use args::QkvOut;
pub use shape::Shape;

use super::{Device, Grid, Kernel, tiles::Tiles};
use anyhow::{Result, anyhow, ensure};
use args::{ExponentArgs, GemmArgs, RouteArgs};
use shape::{FEW, Kind, TILED, WARPS, few_bytes, smallest, tiled_bytes, wide_bytes};
use std::sync::Arc;

/// Most experts that `route` and the router sort.
pub const MOST_EXPERTS: usize = 128;

#[cfg(test)]
pub(super) mod tests;

/// A tiled matrix, or one for each expert, and the largest scale of each of its rows.
#[derive(Debug, Clone, Copy)]
pub struct Scaled {
    /// The values.
    pub tiles: Tiles,
    /// u8 `[experts, tiles, 16]`, made by [`Products::exponents`].
    pub exponents: u64,
}

/// (row, slot) pairs by expert, as `route` left them: addresses on the device.
#[derive(Debug, Clone, Copy)]
pub struct Routes {
    /// i32 `[rows, used]`: the experts; below 0: none.
    pub ids: u64,
    /// f32 `[rows, used]`: their weights.
    pub chosen: u64,
    /// i32 `[rows * used]`: pairs by expert.
    pub order: u64,
    /// Pieces of work, [`Products::pieces`] of them at most, 16 bytes each.
    pub work: u64,
    /// i32: how many.
    pub count: u64,
    /// u64 that counts the experts that have pairs, or 0.
    pub touched: u64,
    /// Experts.
    pub experts: usize,
    /// Experts of a row.
    pub used: usize,
    /// From [`Products::shape`], for as many rows.
    pub shape: Shape,
}

/// What becomes of the sums. Addresses on the device; biases are f32, in the file's order.
#[derive(Debug, Clone, Copy)]
pub enum Output {
    /// Bias, RoPE, cache.
    Qkv(QkvOut),
    /// Added to the residual, with the bias.
    OutProj {
        /// f32 `[rows, width]`.
        out: u64,
        /// Outputs.
        width: usize,
        /// `[width]`.
        bias: u64,
    },
    /// Logits.
    LmHead {
        /// f32 `[rows, width]`.
        out: u64,
        /// Outputs.
        width: usize,
    },
    /// SwiGLU, times the expert's weight.
    GateUp {
        /// f16 `[pairs, stride]` in the order of `routes`, each row in paired order.
        out: u64,
        /// Values from one row to the next.
        stride: usize,
        /// Outputs.
        width: usize,
        /// Of gate, `[experts, width]`.
        bias: u64,
        /// Of up, `[experts, width]`.
        up_bias: u64,
        /// SwiGLU's clamp.
        limit: f32,
        /// Which rows each expert takes.
        routes: Routes,
    },
    /// With the bias times the expert's weight.
    Down {
        /// f32 `[rows, used, width]`.
        out: u64,
        /// Outputs.
        width: usize,
        /// `[experts, width]`.
        bias: u64,
        /// Which rows each expert takes.
        routes: Routes,
    },
}

/// f16 rows in paired order.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// Their address.
    pub h: u64,
    /// How many: of [`Output::Down`], rows of the batch, each with `used` rows here.
    pub rows: usize,
    /// Values from one to the next: a multiple of 64, zero beyond the matrix's inputs.
    pub stride: usize,
}

/// The kernels.
pub struct Products {
    device: Arc<Device>,
    /// By format and [`FEW`].
    few: [[Kernel; 3]; 3],
    /// By format and [`TILED`].
    tiled: [[Kernel; 4]; 3],
    /// By format, where the GPU has wgmma.
    wide: Option<[Kernel; 3]>,
    route: Kernel,
    exponents: Kernel,
}

impl Products {
    /// Finds the kernels.
    pub fn new(device: &Arc<Device>) -> Result<Products> {
        let few = |format: &str| -> Result<[Kernel; 3]> {
            let kernel = |n| device.kernel(&format!("gemm_few_{format}_{n}"));
            Ok([kernel(8)?, kernel(16)?, kernel(24)?])
        };
        let tiled = |format: &str| -> Result<[Kernel; 4]> {
            let kernel = |n| device.kernel(&format!("gemm_{format}_{n}"));
            Ok([kernel(16)?, kernel(32)?, kernel(64)?, kernel(128)?])
        };
        let wide = |format: &str| device.kernel(&format!("gemm_wide_{format}"));
        Ok(Products {
            few: [few("mxfp4")?, few("q8_0")?, few("f16")?],
            tiled: [tiled("mxfp4")?, tiled("q8_0")?, tiled("f16")?],
            wide: match device.arch() {
                90 => Some([wide("mxfp4")?, wide("q8_0")?, wide("f16")?]),
                _ => None,
            },
            route: device.kernel("route")?,
            exponents: device.kernel("row_exponents")?,
            device: device.clone(),
        })
    }

    /// Bytes that the exponents of `experts` matrices take.
    pub fn exponent_bytes(tiles: &Tiles, experts: usize) -> usize {
        experts * tiles.tiles as usize * 16
    }

    /// Most pieces of work that `pairs` pairs make, in any shape.
    pub fn pieces(pairs: usize, experts: usize) -> usize {
        pairs / FEW[0] + experts.min(pairs)
    }

    /// Finds the largest scale of each row of tiles, once the weights are there. `cols`: their inputs.
    pub fn exponents(&self, tiles: Tiles, experts: usize, cols: usize, to: u64) -> Result<Scaled> {
        let count = tiles.tiles as usize * experts;
        let args = ExponentArgs {
            data: tiles.data,
            exponents: to,
            format: tiles.format,
            count: count as i32,
            units: tiles.units,
            cols: cols as i32,
        };
        let blocks = (count * 16).div_ceil(256);
        self.launch(&self.exponents, (blocks, 1), (256, 0), &args)?;
        Ok(Scaled {
            tiles,
            exponents: to,
        })
    }

    /// Sorts the pairs of `rows` rows by expert, in pieces for the products that follow.
    pub fn route(&self, routes: &Routes, rows: usize) -> Result<()> {
        ensure!(
            routes.experts <= MOST_EXPERTS,
            "CUDA: {} experts; the kernels sort at most {MOST_EXPERTS}",
            routes.experts
        );
        let args = RouteArgs {
            ids: routes.ids,
            order: routes.order,
            work: routes.work,
            work_count: routes.count,
            touched: routes.touched,
            pairs: (rows * routes.used) as i32,
            experts: routes.experts as i32,
            tile: routes.shape.columns as i32,
            pad: 0,
        };
        self.launch(&self.route, (1, 1), (1024, 0), &args)
    }

    /// Multiplies, and does with the sums what `output` says.
    pub fn multiply(&self, w: &Scaled, input: Input, output: Output) -> Result<()> {
        let mut args = GemmArgs {
            weights: w.tiles.data,
            exponents: w.exponents,
            input: input.h,
            order: 0,
            chosen: 0,
            work: 0,
            work_count: 0,
            bias: 0,
            up_bias: 0,
            out: 0,
            qkv: QkvOut::NONE,
            epilogue: 0,
            rows: input.rows as i32,
            tile: 0,
            tiles: w.tiles.tiles,
            units: w.tiles.units,
            stride: input.stride as i32,
            outputs: w.tiles.outputs,
            out_stride: 0,
            used: 1,
            split: 1,
            limit: 0.0,
            pad: 0,
        };
        let mut grouped = None;
        match output {
            Output::Qkv(qkv) => args.qkv = qkv,
            Output::OutProj { out, width, bias } => {
                (args.epilogue, args.out, args.bias) = (1, out, bias);
                (args.outputs, args.out_stride) = (width as i32, width as i32);
            }
            Output::LmHead { out, width } => {
                (args.epilogue, args.out) = (2, out);
                (args.outputs, args.out_stride) = (width as i32, width as i32);
            }
            Output::GateUp {
                out,
                stride,
                width,
                bias,
                up_bias,
                limit,
                routes,
            } => {
                (args.epilogue, args.out, args.limit) = (3, out, limit);
                (args.bias, args.up_bias) = (bias, up_bias);
                (args.outputs, args.out_stride) = (width as i32, stride as i32);
                grouped = Some(routes);
            }
            Output::Down {
                out,
                width,
                bias,
                routes,
            } => {
                (args.epilogue, args.out, args.bias) = (4, out, bias);
                (args.outputs, args.out_stride) = (width as i32, width as i32);
                grouped = Some(routes);
            }
        }
        let (shape, pieces) = match grouped {
            Some(routes) => {
                (args.order, args.chosen) = (routes.order, routes.chosen);
                (args.work, args.work_count) = (routes.work, routes.count);
                args.used = routes.used as i32;
                (routes.shape, routes.shape.pieces(&routes, input.rows))
            }
            None => {
                let shape = self.dense(&w.tiles, input.rows);
                (shape, input.rows.div_ceil(shape.columns))
            }
        };
        args.tile = shape.columns as i32;
        let (format, tiles) = (w.tiles.format as usize, w.tiles.tiles as usize);
        match shape.kind {
            Kind::Few => {
                let n = smallest(&FEW, shape.columns);
                let warps = self.few_warps(FEW[n], input.stride).unwrap_or(8);
                let block = (warps * 32, few_bytes(FEW[n], input.stride, warps));
                let blocks = self.device.multiprocessors() as usize;
                self.launch(&self.few[format][n], (blocks, 1), block, &args)
            }
            Kind::Tiled { split } => {
                args.split = split as i32;
                let n = smallest(&TILED, shape.columns);
                let block = (WARPS * 32, tiled_bytes(format, TILED[n], split));
                let tall = if TILED[n] == 128 { 2 } else { 1 };
                let blocks = (tiles.div_ceil(WARPS / split * tall), pieces);
                self.launch(&self.tiled[format][n], blocks, block, &args)
            }
            Kind::Wide => {
                let wide = self.wide.as_ref();
                let wide = wide.ok_or_else(|| anyhow!("CUDA: wgmma on a GPU without it"))?;
                let block = (384, wide_bytes(format, shape.columns));
                self.launch(&wide[format], (tiles.div_ceil(16), pieces), block, &args)
            }
        }
    }

    fn launch<A: Copy>(
        &self,
        kernel: &Kernel,
        (x, y): (usize, usize),
        (threads, shared): (usize, usize),
        args: &A,
    ) -> Result<()> {
        let grid = Grid {
            blocks: (x as u32, y as u32, 1),
            threads: threads as u32,
            shared: shared as u32,
            dependent: true,
        };
        self.device.launch(kernel, grid, args)
    }
}
