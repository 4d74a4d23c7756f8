//! Tokens drawn on the device (kernels/draw.cu): a few bytes come back in place of a row of logits.

use super::{Buffer, Device, Grid, Kernel, Pinned, Plain};
use crate::sampler;
use anyhow::Result;
use std::{ops::Range, sync::Arc};

/// The same in kernels/draw.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Draw {
    row: i32,
    greedy: i32,
    scale: f32,
    pad: i32,
    u: f64,
}

// SAFETY: numbers; `pad` leaves no gap between them.
#[allow(unsafe_code)]
unsafe impl Plain for Draw {}

/// The same in kernels/draw.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Args {
    logits: u64,
    draws: u64,
    blocks: u64,
    best: u64,
    sums: u64,
    ids: u64,
    vocab: i32,
    count: i32,
}

/// The kernels, what they draw among, and room for a batch's draws.
pub struct Draws {
    device: Arc<Device>,
    kernels: [Kernel; 3],
    vocab: usize,
    count: usize,
    blocks: Buffer<i32>,
    draws: (Pinned<Draw>, Buffer<Draw>),
    best: Buffer<u64>,
    sums: Buffer<f64>,
    ids: (Pinned<i32>, Buffer<i32>),
    /// Draws of the batch under way.
    taken: usize,
}

impl Draws {
    /// Room for `most` draws a batch among the ids of `allowed`, not empty, of logits `[vocab]`.
    pub fn new(
        device: &Arc<Device>,
        vocab: usize,
        allowed: &[Range<usize>],
        most: usize,
    ) -> Result<Draws> {
        let what = "room for draws";
        let blocks = sampler::blocks(allowed);
        let mut staged = device.pinned(2 * blocks.len(), what)?;
        for (i, block) in blocks.iter().enumerate() {
            (staged[2 * i], staged[2 * i + 1]) = (block.start as i32, block.end as i32);
        }
        let on_device = device.alloc(2 * blocks.len(), what)?;
        device.upload_async(&on_device, 0, &staged, 2 * blocks.len())?;
        device.synchronize()?;
        Ok(Draws {
            kernels: [
                device.kernel("draw_max")?,
                device.kernel("draw_sum")?,
                device.kernel("draw_pick")?,
            ],
            vocab,
            count: blocks.len(),
            blocks: on_device,
            draws: (device.pinned(most, what)?, device.alloc(most, what)?),
            best: device.alloc(most * blocks.len(), what)?,
            sums: device.alloc(most * blocks.len(), what)?,
            ids: (device.pinned(most, what)?, device.alloc(most, what)?),
            taken: 0,
            device: device.clone(),
        })
    }

    /// Begins a batch.
    pub fn clear(&mut self) {
        self.taken = 0;
    }

    /// Adds a draw from row `row` of the logits; its number, or none where there is no room.
    pub fn add(&mut self, row: usize, draw: &sampler::Draw) -> Option<usize> {
        let number = self.taken;
        *self.draws.0.get_mut(number)? = Draw {
            row: row as i32,
            greedy: draw.greedy.into(),
            scale: draw.scale,
            pad: 0,
            u: draw.u,
        };
        self.taken += 1;
        Some(number)
    }

    /// Starts the draws from `logits` and their way back.
    pub fn start(&mut self, logits: u64) -> Result<()> {
        if self.taken == 0 {
            return Ok(());
        }
        self.device
            .upload_async(&self.draws.1, 0, &self.draws.0, self.taken)?;
        let args = Args {
            logits,
            draws: self.draws.1.ptr(),
            blocks: self.blocks.ptr(),
            best: self.best.ptr(),
            sums: self.sums.ptr(),
            ids: self.ids.1.ptr(),
            vocab: self.vocab as i32,
            count: self.count as i32,
        };
        let (blocks, rows) = (self.count as u32, self.taken as u32);
        for (kernel, blocks) in
            self.kernels
                .iter()
                .zip([(blocks, rows, 1), (blocks, rows, 1), (rows, 1, 1)])
        {
            let grid = Grid {
                blocks,
                threads: 256,
                shared: 0,
                dependent: true,
            };
            self.device.launch(kernel, grid, &args)?;
        }
        self.device
            .download_async(&self.ids.1, 0, &mut self.ids.0, 0, self.taken)
    }

    /// The token of draw `number` of the last batch, once it has come; none where a logit is not finite.
    pub fn id(&self, number: usize) -> Option<u32> {
        u32::try_from(self.ids.0[number]).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{Mask, Sampler, Sampling};

    /// Flat and peaked rows, ties, holes in the vocabulary, a logit that is not finite.
    #[test]
    fn gpu_draws_the_samplers_tokens() {
        let device = Device::open().expect("a GPU");
        let (vocab, rows) = (201_088, 40);
        let holes = (199_998..200_010).chain([5, 700, 1024]);
        let padding: Vec<u32> = holes.chain(201_000..201_088).collect();
        let mut random = 88_172_645_463_325_252u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 40) as f32 / (1u64 << 24) as f32
        };
        let mut staged = device.pinned(rows * vocab, "logits").expect("room");
        let ranges = sampler::allowed(&padding, vocab);
        let mut draws = Draws::new(&device, vocab, &ranges, rows).expect("room");
        let mut expected = Vec::new();
        for row in 0..rows {
            let logits = &mut staged[row * vocab..][..vocab];
            let spread = [0.5, 3.0, 10.0, 40.0][row % 4];
            logits.fill_with(|| (next() + next() + next() - 1.5) * spread);
            if row % 5 == 1 {
                logits.iter_mut().for_each(|x| *x = x.round());
            }
            if row == 7 {
                logits[12_345] = f32::NAN;
            }
            let sampling = Sampling {
                temperature: [0.0, 1.0, 0.7, 1.5, 0.01][row % 5],
                seed: Some(77 * row as u64),
                ..Sampling::default()
            };
            let mut sampler = Sampler::new(&sampling, vocab, &padding, None, &[]);
            let plain = sampler.plain().expect("nothing but the temperature");
            assert_eq!(draws.add(row, &plain), Some(row));
            expected.push(sampler.sample(logits, &Mask::Any).ok().map(|s| s.id));
        }
        assert_eq!(expected.iter().filter(|id| id.is_none()).count(), 1);
        let logits = device.alloc(rows * vocab, "logits").expect("room");
        device
            .upload_async(&logits, 0, &staged, rows * vocab)
            .expect("a copy");
        draws.start(logits.ptr()).expect("a start");
        device.synchronize().expect("an end");
        let drawn: Vec<_> = (0..rows).map(|row| draws.id(row)).collect();
        assert_eq!(drawn, expected);
    }
}
