//! The kernels alone, on one thread and out of cache-resident data: what they could do if memory
//! were no limit. For `gossamer bench --micro`.

use super::kernels::{self, BLOCK, GROUP, Panel, Rows, XRow};
use crate::weights::Format;
use std::time::{Duration, Instant};

/// One product kernel's speed on one thread.
#[derive(Debug, Clone, serde::Serialize)]
pub struct KernelSpeed {
    /// Instruction set.
    pub isa: &'static str,
    /// Weight format.
    pub format: &'static str,
    /// Tokens that share the weights.
    pub tokens: usize,
    /// Weight bytes consumed a second.
    pub bytes_per_s: f64,
    /// Multiplications and additions a second.
    pub ops_per_s: f64,
}

/// Weight rows of a measurement: with 2880 columns they fit the second-level cache.
const ROWS: usize = 64;
const COLS: usize = 2880;
/// Decoding alone, a few streams to an expert, many, a prompt.
const TOKENS: [usize; 5] = [1, 2, 4, 8, 64];

/// Measures every instruction set of this machine, each figure taking about `each`.
pub fn measure(each: Duration) -> Vec<KernelSpeed> {
    let mut results = Vec::new();
    for kernels in kernels::available() {
        for format in [Format::MXFP4, Format::Q8_0, Format::F32] {
            for tokens in TOKENS {
                let mut seed = 0x5eed_u64 + tokens as u64;
                let mut next = || {
                    seed = seed
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    (seed >> 40) as u32
                };
                let mut w: Vec<u8> = (0..ROWS * format.row_bytes(COLS))
                    .map(|_| next() as u8)
                    .collect();
                match format {
                    Format::F32 => w.chunks_exact_mut(4).for_each(|x| x[3] = 0x3d),
                    Format::Q8_0 => w.chunks_exact_mut(34).for_each(|x| x[1] = 0x1d),
                    _ => w.chunks_exact_mut(17).for_each(|x| x[0] = 120),
                }
                let f: Vec<f32> = (0..tokens * COLS)
                    .map(|_| next() as f32 / (1 << 23) as f32 - 1.0)
                    .collect();
                let blocks = (COLS / BLOCK).next_multiple_of(GROUP);
                let (mut q, mut scale, mut sum) = (
                    vec![0; tokens * blocks * BLOCK],
                    vec![0.0; tokens * blocks],
                    vec![0; tokens * blocks],
                );
                let x: Vec<XRow> = f
                    .chunks_exact(COLS)
                    .zip(q.chunks_exact_mut(blocks * BLOCK))
                    .zip(
                        scale
                            .chunks_exact_mut(blocks)
                            .zip(sum.chunks_exact_mut(blocks)),
                    )
                    .map(|((f, q), (scale, sum))| {
                        kernels.quantize(f, q, scale, sum);
                        XRow { f, q, scale, sum }
                    })
                    .collect();
                let (mut out, mut panel) = (vec![0.0; ROWS * tokens], Panel::new(COLS));
                let weights = Rows {
                    data: &w,
                    next: &[],
                    rows: ROWS,
                    cols: COLS,
                };
                let mut run = || kernels.matmul(format, weights, &x, &mut out, &mut panel);
                run();
                // The best round: others may use the processor too.
                let (start, mut best) = (Instant::now(), each);
                while start.elapsed() < each {
                    let round = Instant::now();
                    run();
                    best = best.min(round.elapsed());
                }
                let per_s = 1.0 / best.as_secs_f64();
                results.push(KernelSpeed {
                    isa: kernels.name,
                    format: format.name(),
                    tokens,
                    bytes_per_s: per_s * w.len() as f64,
                    ops_per_s: per_s * (2 * ROWS * COLS * tokens) as f64,
                });
            }
        }
    }
    results
}
