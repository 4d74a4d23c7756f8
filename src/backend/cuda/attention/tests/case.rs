//! One layer's attention on random keys and values, on the GPU and in f64 on the host.

use super::super::*;
use crate::{
    backend::{KV_BLOCK, cuda::batch::Row, window_steps},
    config::{Rope, SWIGLU_LIMIT},
};
use half::f16;

const DIM: usize = 64;
/// Halves of a step of one KV head.
const STEP: usize = 2 * KV_BLOCK * DIM;

/// Which plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Rows,
    Plan,
    Fresh,
}

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize) % n
    }

    /// About normal, of that deviation.
    fn value(&mut self, deviation: f64) -> f16 {
        let sum: usize = (0..4).map(|_| self.below(1 << 16)).sum();
        f16::from_f64((sum as f64 / 65536.0 - 2.0) * 1.732 * deviation)
    }

    fn values(&mut self, n: usize, deviation: f64) -> Vec<f16> {
        (0..n).map(|_| self.value(deviation)).collect()
    }
}

fn config(kv_heads: usize, group: usize, window: usize) -> Config {
    Config {
        name: "test".into(),
        layers: 2,
        hidden: 64,
        heads: kv_heads * group,
        kv_heads,
        head_dim: DIM,
        experts: 4,
        experts_used: 2,
        expert_width: 64,
        vocab: 32,
        context: 1 << 18,
        window,
        rms_eps: 1e-5,
        swiglu_limit: SWIGLU_LIMIT,
        rope: Rope {
            theta: 150_000.0,
            factor: 32.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            rounded: false,
        },
    }
}

/// One layer and a ragged batch on it.
pub struct Case {
    config: Config,
    sliding: bool,
    segments: Vec<Segment>,
    pub rows: Vec<Row>,
    table: Vec<i32>,
    pub ring_steps: usize,
    ring_stride: usize,
    cache: Vec<f16>,
    q: Vec<f16>,
    fresh: Vec<f16>,
    sinks: Vec<f32>,
}

impl Case {
    /// `shape`: of each segment start, length and how far before its start the window begins.
    /// `window` 0: a full layer.
    pub fn new(
        kv_heads: usize,
        group: usize,
        window: usize,
        shape: &[(usize, usize, usize)],
        random: &mut Random,
    ) -> Case {
        let config = config(kv_heads, group, if window == 0 { 128 } else { window });
        let steps_of = |&(start, len, _): &(usize, usize, usize)| (start + len).div_ceil(KV_BLOCK);
        let blocks = shape.iter().map(steps_of).sum::<usize>() + 3;
        let mut ids: Vec<i32> = (0..blocks as i32).collect();
        for i in (1..blocks).rev() {
            ids.swap(i, random.below(i + 1));
        }
        let (mut segments, mut rows, mut used) = (Vec::new(), Vec::new(), 0);
        for (i, part) in shape.iter().enumerate() {
            let &(start, len, before) = part;
            segments.push(Segment {
                start: start as i32,
                len: len as i32,
                first_row: rows.len() as i32,
                slot: ((i * 7 + 3) % shape.len().next_power_of_two()) as i32,
                window_from: start.saturating_sub(before) as i32,
                blocks: used as i32,
                pad: [0; 2],
            });
            used += steps_of(part);
            rows.extend((start..start + len).map(|position| Row {
                token: 0,
                position: position as i32,
                segment: i as i32,
                append: 1,
            }));
        }
        let ring_steps = if window == 0 { 0 } else { window_steps(window) };
        let ring_stride = ring_steps * 2; // as between the layers of a slot
        let steps = match window {
            0 => blocks,
            _ => shape.len().next_power_of_two() * ring_stride,
        };
        let mut cache = random.values(steps * kv_heads * STEP, 1.0);
        if window == 0 {
            // What no table names is never read; what lies beyond the last position counts for nothing.
            for &free in &ids[used..] {
                let at = free as usize * kv_heads * STEP;
                cache[at..at + kv_heads * STEP].fill(f16::NAN);
            }
            for (s, part) in segments.iter().zip(shape) {
                let end = part.0 + part.1;
                let last = ids[s.blocks as usize + (end - 1) / KV_BLOCK] as usize;
                for head in 0..kv_heads {
                    for row in (end - 1) % KV_BLOCK + 1..KV_BLOCK {
                        for half in [0, KV_BLOCK] {
                            let at = (last * kv_heads + head) * STEP + (half + row) * DIM;
                            cache[at..at + DIM].fill(f16::from_f32(60_000.0));
                        }
                    }
                }
            }
        }
        let heads = config.heads;
        Case {
            q: random.values(rows.len() * heads * DIM, 0.3),
            fresh: random.values(rows.len() * kv_heads * 2 * DIM, 1.0),
            sinks: (0..heads)
                .map(|_| random.below(1000) as f32 / 200.0 - 1.0)
                .collect(),
            table: ids[..used].to_vec(),
            sliding: window > 0,
            config,
            segments,
            rows,
            ring_steps,
            ring_stride,
            cache,
        }
    }

    /// Where the position's key lies in the cache.
    fn place(&self, s: &Segment, position: usize, head: usize) -> usize {
        let step = position / KV_BLOCK;
        let step = match self.sliding {
            true => s.slot as usize * self.ring_stride + step % self.ring_steps,
            false => self.table[s.blocks as usize + step] as usize,
        };
        (step * self.config.kv_heads + head) * STEP + position % KV_BLOCK * DIM
    }

    /// Key and value of a position.
    fn key_value(
        &self,
        s: &Segment,
        position: usize,
        head: usize,
        fresh: bool,
    ) -> (&[f16], &[f16]) {
        if fresh && position >= s.start as usize {
            let row = s.first_row as usize + position - s.start as usize;
            let both = &self.fresh[(row * self.config.kv_heads + head) * 2 * DIM..][..2 * DIM];
            return both.split_at(DIM);
        }
        let at = self.place(s, position, head);
        (
            &self.cache[at..at + DIM],
            &self.cache[at + KV_BLOCK * DIM..][..DIM],
        )
    }

    /// What a row's head must come to.
    fn expected(&self, row: usize, head: usize, fresh: bool) -> Vec<f64> {
        let Row {
            position, segment, ..
        } = self.rows[row];
        let (position, s) = (position as usize, &self.segments[segment as usize]);
        let first = match self.sliding {
            true => (position + 1)
                .saturating_sub(self.config.window)
                .max(s.window_from as usize),
            false => 0,
        };
        let q = &self.q[(row * self.config.heads + head) * DIM..][..DIM];
        let kv_head = head / self.config.group();
        let (mut out, mut sum) = (vec![0.0; DIM], f64::from(self.sinks[head]).exp());
        for position in first..=position {
            let (k, v) = self.key_value(s, position, kv_head, fresh);
            let score: f64 = q.iter().zip(k).map(|(q, k)| q.to_f64() * k.to_f64()).sum();
            let p = score.exp();
            sum += p;
            out.iter_mut()
                .zip(v)
                .for_each(|(out, v)| *out += p * v.to_f64());
        }
        out.iter_mut().for_each(|out| *out /= sum);
        out
    }

    /// Runs the case by `plan` and compares up to `most` rows; the greatest relative L2 of a row's head.
    pub fn run(&self, device: &Arc<Device>, how: How, most: usize, random: &mut Random) -> f64 {
        let config = &self.config;
        let mut attention =
            Attention::new(device, config, self.rows.len() + 2, self.segments.len()).expect("room");
        assert_eq!(
            Attention::bytes_for(config, self.rows.len() + 2, self.segments.len()),
            attention.partial.bytes() + attention.counters.bytes() + attention.words.bytes()
        );
        fn upload<T: crate::backend::cuda::Plain>(device: &Arc<Device>, data: &[T]) -> Buffer<T> {
            let mut buffer = device.alloc(data.len(), "test").expect("memory");
            buffer.upload(0, data).expect("a copy");
            buffer
        }
        // Two rows that only fill up, where the plan has them.
        let mut rows = self.rows.clone();
        rows.extend(
            [Row {
                token: 0,
                position: 0,
                segment: -1,
                append: 0,
            }; 2],
        );
        let width = config.heads * DIM;
        let out = upload(device, &vec![f16::NAN; rows.len() * width]);
        let q = upload(
            device,
            &[self.q.clone(), vec![f16::ZERO; 2 * width]].concat(),
        );
        let (cache, fresh) = (upload(device, &self.cache), upload(device, &self.fresh));
        let (table, sinks) = (upload(device, &self.table), upload(device, &self.sinks));
        let (segments, rows) = (upload(device, &self.segments), upload(device, &rows));
        let longest = self
            .rows
            .iter()
            .map(|r| r.position as usize + 1)
            .max()
            .expect("a row");
        let plan = match how {
            How::Rows => attention.plan_rows(rows.len(), longest),
            _ => attention
                .plan(&self.segments, how == How::Fresh)
                .expect("a plan"),
        };
        let io = Io {
            q: q.ptr(),
            out: out.ptr(),
            fresh: fresh.ptr(),
            rows: rows.ptr(),
            segments: segments.ptr(),
            sinks: sinks.ptr(),
            cache: Cache {
                base: cache.ptr(),
                table: table.ptr(),
                kv_heads: config.kv_heads as i32,
                ring_steps: self.ring_steps as i32,
                ring_stride: self.ring_stride as i32,
                pad: 0,
            },
        };
        attention
            .launch(&plan, self.sliding, &io)
            .expect("a launch");
        let mut got = vec![f16::ZERO; out.len()];
        out.download(0, &mut got).expect("a copy");
        let (told, idle) = got.split_at(self.rows.len() * width);
        assert!(idle.iter().all(|x| x.is_nan()), "an idle row was written");
        let mut counters = vec![1; attention.counters.len()];
        attention
            .counters
            .download(0, &mut counters)
            .expect("a copy");
        assert!(
            counters.iter().all(|&c| c == 0),
            "a counter isn't zero again"
        );
        if how == How::Fresh {
            self.check_rings(&cache);
        }
        let mut worst = 0.0f64;
        for i in 0..self.rows.len().min(most) {
            // All of few rows; of many the first, the last and some between.
            let row = match (self.rows.len() > most, i) {
                (false, i) => i,
                (true, 0) => 0,
                (true, 1) => self.rows.len() - 1,
                _ => random.below(self.rows.len()),
            };
            for head in 0..config.heads {
                let expected = self.expected(row, head, how == How::Fresh);
                let got = &told[row * width + head * DIM..][..DIM];
                let square = |x: f64| x * x;
                let error: f64 = got
                    .iter()
                    .zip(&expected)
                    .map(|(g, e)| square(g.to_f64() - e))
                    .sum();
                let norm: f64 = expected.iter().map(|&e| square(e)).sum();
                let error = (error / norm).sqrt();
                worst = if error > worst || error.is_nan() {
                    error
                } else {
                    worst
                };
            }
        }
        worst
    }

    /// The rings hold each segment's last positions, and else what they held.
    fn check_rings(&self, cache: &Buffer<f16>) {
        let mut expected = self.cache.clone();
        for s in &self.segments {
            let end = (s.start + s.len) as usize;
            for position in
                (s.start as usize).max(end.saturating_sub(self.ring_steps * KV_BLOCK))..end
            {
                for head in 0..self.config.kv_heads {
                    let (k, v) = self.key_value(s, position, head, true);
                    let at = self.place(s, position, head);
                    expected[at..at + DIM].copy_from_slice(k);
                    expected[at + KV_BLOCK * DIM..][..DIM].copy_from_slice(v);
                }
            }
        }
        let mut got = vec![f16::ZERO; cache.len()];
        cache.download(0, &mut got).expect("a copy");
        assert!(got == expected, "rings differ");
    }
}
