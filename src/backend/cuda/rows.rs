//! The kernels over whole rows: embedding, RMSNorm, router, order of activations (kernels/norm.cu).

use super::{Device, Grid, Kernel, gemm::Routes};
use crate::config::Config;
use anyhow::{Result, ensure};
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// The same in kernels/norm.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct EmbedArgs {
    table: u64,
    rows: u64,
    x: u64,
    hidden: i32,
    format: i32,
    count: i32,
    pad: i32,
}

/// The same in kernels/norm.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct NormArgs {
    x: u64,
    y: u64,
    h: u64,
    weight: u64,
    list: u64,
    hidden: i32,
    stride: i32,
    used: i32,
    eps: f32,
}

/// The same in kernels/norm.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct RouterArgs {
    x: u64,
    h: u64,
    weight: u64,
    list: u64,
    tokens: u64,
    router: u64,
    bias: u64,
    ids: u64,
    chosen: u64,
    rows: i32,
    hidden: i32,
    stride: i32,
    experts: i32,
    used: i32,
    eps: f32,
}

/// The same in kernels/norm.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct PairArgs {
    h: u64,
    blocks: i64,
}

/// Some of the batch's rows, or all.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// i32 numbers of rows, or 0: all in order.
    pub list: u64,
    /// How many.
    pub count: usize,
}

/// A layer's router: addresses on the device, all f32.
#[derive(Debug, Clone, Copy)]
pub struct Router {
    /// `[hidden]`, of the RMSNorm before it.
    pub norm: u64,
    /// `[experts, hidden]`.
    pub weight: u64,
    /// `[experts]`.
    pub bias: u64,
}

/// Widths of rows in paired order: whole slices of 64.
pub fn padded(width: usize) -> usize {
    width.next_multiple_of(64)
}

/// The kernels, and the model's widths.
pub struct RowKernels {
    device: Arc<Device>,
    embed: Kernel,
    norm: Kernel,
    pair: Kernel,
    /// For one row a block, and for eight.
    routers: [Kernel; 2],
    hidden: usize,
    experts: usize,
    used: usize,
    eps: f32,
}

impl RowKernels {
    /// Finds the kernels.
    pub fn new(device: &Arc<Device>, config: &Config) -> Result<RowKernels> {
        let kernels = RowKernels {
            embed: device.kernel("embed")?,
            norm: device.kernel("norm_rows")?,
            pair: device.kernel("pair_rows")?,
            routers: [
                device.kernel("norm_router_topk_1")?,
                device.kernel("norm_router_topk_8")?,
            ],
            hidden: config.hidden,
            experts: config.experts,
            used: config.experts_used,
            eps: config.rms_eps,
            device: device.clone(),
        };
        ensure!(
            kernels.router_shared(1) <= device.shared_bytes() as usize,
            "CUDA: rows of {} values; the router's kernel has shared memory for {}",
            config.hidden,
            device.shared_bytes() as usize / size_of::<f32>() - config.experts
        );
        Ok(kernels)
    }

    /// f32 `x[r]` = row `token` of `table` (its address and ggml's type), for `count` rows of `tokens`.
    pub fn embed(&self, table: (u64, i32), tokens: u64, x: u64, count: usize) -> Result<()> {
        let args = EmbedArgs {
            table: table.0,
            rows: tokens,
            x,
            hidden: self.hidden as i32,
            format: table.1,
            count: count as i32,
            pad: 0,
        };
        self.launch(&self.embed, count, &args)
    }

    /// f32 `x` of the rows += the sum of `y`'s `[count, used, hidden]`, if any;
    /// f16 `h[count, padded hidden]` = rmsnorm(x) * weight, in paired order.
    pub fn norm(&self, x: u64, y: Option<u64>, h: u64, weight: u64, rows: Rows) -> Result<()> {
        let args = NormArgs {
            x,
            y: y.unwrap_or(0),
            h,
            weight,
            list: rows.list,
            hidden: self.hidden as i32,
            stride: padded(self.hidden) as i32,
            used: self.used as i32,
            eps: self.eps,
        };
        self.launch(&self.norm, rows.count, &args)
    }

    /// h as [`RowKernels::norm`], and the experts of each row with their weights, to `routes`.
    pub fn router(
        &self,
        x: u64,
        h: u64,
        router: &Router,
        tokens: u64,
        rows: Rows,
        routes: &Routes,
    ) -> Result<()> {
        let args = RouterArgs {
            x,
            h,
            weight: router.norm,
            list: rows.list,
            tokens,
            router: router.weight,
            bias: router.bias,
            ids: routes.ids,
            chosen: routes.chosen,
            rows: rows.count as i32,
            hidden: self.hidden as i32,
            stride: padded(self.hidden) as i32,
            experts: self.experts as i32,
            used: self.used as i32,
            eps: self.eps,
        };
        // Eight rows read the router's matrix once, but few rows need every multiprocessor.
        let many = rows.count > 2 * self.device.multiprocessors() as usize
            && self.router_shared(8) <= self.device.shared_bytes() as usize;
        let (kernel, each, threads) = if many {
            (&self.routers[1], 8, 256)
        } else {
            (&self.routers[0], 1, 512)
        };
        let grid = Grid {
            blocks: (rows.count.div_ceil(each) as u32, 1, 1),
            threads,
            shared: self.router_shared(each) as u32,
            dependent: true,
        };
        self.device.launch(kernel, grid, &args)
    }

    /// Puts `values` f16 values, whole rows, into paired order where they are.
    pub fn pair(&self, h: u64, values: usize) -> Result<()> {
        let blocks = values / 32;
        let args = PairArgs {
            h,
            blocks: blocks as i64,
        };
        self.launch(&self.pair, blocks.div_ceil(256), &args)
    }

    fn router_shared(&self, rows: usize) -> usize {
        rows * (self.hidden + self.experts) * size_of::<f32>()
    }

    fn launch<A: Copy>(&self, kernel: &Kernel, blocks: usize, args: &A) -> Result<()> {
        let grid = Grid {
            blocks: (blocks as u32, 1, 1),
            threads: 256,
            shared: 0,
            dependent: true,
        };
        self.device.launch(kernel, grid, args)
    }
}
