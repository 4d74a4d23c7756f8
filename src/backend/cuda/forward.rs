//! One forward pass: the batch to the device, the layers by one of two chains, logits back.
//!
//! Up to eight rows take the decode chain (decode.rs), recorded once as a graph and replayed; more take the
//! batch chain (batched.rs). Both share attention and the cache. A pass ends with the host waiting for its
//! logits, so whatever the host stages for the next one is free.

use super::{
    Buffer, Device, Graph, Grid, Pinned,
    attention::{self, Attention, Plan},
    batch::{Row, Segment},
    batched::{Batched, Step},
    cache::{self, KvCache},
    decode::{self, Decode},
    draw::Draws,
    gemm::QkvOut,
    rows::Rows,
    weights::DeviceWeights,
};
use crate::{
    backend::{Backend, Batch, Limits, LogitRows, Windows, Work, windows::check_copy},
    config::Config,
    weights::Model,
};
use anyhow::Result;
use half::f16;
use indicatif::ProgressBar;
use std::{collections::HashMap, ops::Range, sync::Arc};

/// Graphs that are kept; past it all are recorded anew.
const MOST_GRAPHS: usize = 64;

/// Graphs are made for sequences of a multiple of so many positions.
const LONGER: usize = 512;

/// The CUDA back end.
pub struct Cuda {
    model: Arc<Model>,
    limits: Limits,
    device: Arc<Device>,
    weights: DeviceWeights,
    cache: KvCache,
    windows: Windows,
    attention: Attention,
    decode: Decode,
    batched: Batched,
    /// By rows and how attention goes over them.
    graphs: HashMap<(usize, Plan, bool), Graph>,
    inputs: Inputs,
    /// f32 `[rows, hidden]`.
    x: Buffer<f32>,
    /// f16 `[rows, heads, 64]`.
    q: Buffer<f16>,
    attended: Buffer<f16>,
    /// f16 `[rows, kv_heads, 2, 64]`.
    fresh: Buffer<f16>,
    /// `[rows asked for, vocab]`, on the device and here.
    logits: Buffer<f32>,
    host_logits: Pinned<f32>,
    /// Of each row asked for.
    asked: Vec<Asked>,
    /// Where tokens are drawn here.
    draws: Option<Draws>,
    /// Experts whose weights were read, counted by the device.
    touched: Buffer<u64>,
    host_touched: Pinned<u64>,
    work: Work,
}

/// A batch's rows, segments, block tables and wanted rows, staged here and copied to the device.
struct Inputs {
    rows: (Pinned<Row>, Buffer<Row>),
    segments: (Pinned<Segment>, Buffer<Segment>),
    table: (Pinned<i32>, Buffer<i32>),
    wanted: (Pinned<i32>, Buffer<i32>),
}

/// Blocks in all block tables of a batch: each segment's covers its sequence.
fn table_entries(config: &Config, limits: &Limits) -> usize {
    limits.slots * config.context.div_ceil(crate::backend::KV_BLOCK)
}

impl Inputs {
    fn new(device: &Arc<Device>, config: &Config, limits: &Limits) -> Result<Inputs> {
        let what = "room for a batch";
        let (rows, slots) = (limits.batch_tokens, limits.slots);
        let table = table_entries(config, limits);
        Ok(Inputs {
            rows: (device.pinned(rows, what)?, device.alloc(rows, what)?),
            segments: (device.pinned(slots, what)?, device.alloc(slots, what)?),
            table: (device.pinned(table, what)?, device.alloc(table, what)?),
            wanted: (device.pinned(rows, what)?, device.alloc(rows, what)?),
        })
    }

    /// Stages `batch` and starts its way to the device.
    fn stage(&mut self, device: &Device, batch: &Batch, windows: &Windows) -> Result<Staged> {
        let mut staged = Staged::default();
        for (number, segment) in batch.segments.iter().enumerate() {
            let first_row = staged.rows;
            for (i, &token) in segment.tokens.iter().enumerate() {
                let position = segment.start + i;
                self.rows.0[staged.rows] = Row {
                    token: token as i32,
                    position: position as i32,
                    segment: number as i32,
                    append: (position >= segment.kept).into(),
                };
                let wanted = match segment.logits {
                    LogitRows::None => false,
                    LogitRows::Last | LogitRows::Draw(_) => i + 1 == segment.tokens.len(),
                    LogitRows::All => true,
                };
                if wanted {
                    self.wanted.0[staged.wanted] = staged.rows as i32;
                    staged.wanted += 1;
                }
                staged.rows += 1;
            }
            let end = segment.start + segment.tokens.len();
            self.segments.0[number] = Segment {
                start: segment.start as i32,
                len: segment.tokens.len() as i32,
                first_row: first_row as i32,
                slot: segment.slot as i32,
                window_from: windows.from(segment) as i32,
                blocks: staged.table as i32,
                pad: [0; 2],
            };
            // A block table may be longer than what the segment reaches.
            let blocks = &segment.blocks[..end.div_ceil(crate::backend::KV_BLOCK)];
            for (to, &block) in self.table.0[staged.table..].iter_mut().zip(blocks) {
                *to = block as i32;
            }
            staged.table += blocks.len();
            staged.longest = staged.longest.max(end);
            staged.most_rows = staged.most_rows.max(segment.tokens.len());
        }
        let segments = batch.segments.len();
        device.upload_async(&self.rows.1, 0, &self.rows.0, staged.rows)?;
        device.upload_async(&self.segments.1, 0, &self.segments.0, segments)?;
        device.upload_async(&self.table.1, 0, &self.table.0, staged.table)?;
        device.upload_async(&self.wanted.1, 0, &self.wanted.0, staged.wanted)?;
        Ok(staged)
    }
}

/// Where the result of a row is.
struct Asked {
    /// Its row of logits, here and on the device.
    logits: usize,
    /// Its draw, if only its token is wanted.
    draw: Option<usize>,
}

/// What was staged.
#[derive(Default)]
struct Staged {
    rows: usize,
    wanted: usize,
    table: usize,
    /// Positions of the longest sequence.
    longest: usize,
    /// Rows of the longest segment.
    most_rows: usize,
}

/// Device memory, in bytes, that a batch needs between layers, with its logits.
pub fn work_bytes(config: &Config, limits: &Limits) -> u64 {
    let rows = limits.batch_tokens;
    let heads = 2 * rows * (2 * config.heads + 2 * config.kv_heads) * config.head_dim;
    let own = 4 * rows * config.hidden + heads + 4 * first_logits(limits) * config.vocab;
    let staged = rows * 20 + limits.slots * 32 + 4 * table_entries(config, limits);
    (own + staged) as u64
        + Batched::bytes(config, rows)
        + Decode::bytes(config)
        + Attention::bytes_for(config, rows, limits.slots)
}

/// Rows of logits that there is room for from the start; scoring makes room for more.
fn first_logits(limits: &Limits) -> usize {
    limits.slots.max(decode::MOST_ROWS)
}

impl Cuda {
    /// Copies the weights to `device` and makes room for `limits`; `progress` counts the file's bytes.
    pub fn new(
        device: Arc<Device>,
        model: Arc<Model>,
        limits: Limits,
        progress: &ProgressBar,
    ) -> Result<Cuda> {
        let config = &model.config;
        let weights = DeviceWeights::upload(&device, &model, progress)?;
        let (rows, heads) = (limits.batch_tokens, config.heads * config.head_dim);
        let kv = config.kv_heads * 2 * config.head_dim;
        let what = "room for the activations of a batch";
        let logits = first_logits(&limits) * config.vocab;
        let mut touched = device.alloc(1, what)?;
        touched.zero()?;
        Ok(Cuda {
            cache: KvCache::new(&device, config, &limits)?,
            windows: Windows::new(config, &limits),
            attention: Attention::new(&device, config, rows.max(decode::MOST_ROWS), limits.slots)?,
            decode: Decode::new(&device, config, &weights)?,
            batched: Batched::new(&device, config, &weights, rows)?,
            graphs: HashMap::new(),
            inputs: Inputs::new(&device, config, &limits)?,
            x: device.alloc(rows * config.hidden, what)?,
            q: device.alloc(rows * heads, what)?,
            attended: device.alloc(rows * heads, what)?,
            fresh: device.alloc(rows * kv, what)?,
            logits: device.alloc(logits, "logits")?,
            host_logits: device.pinned(logits, "logits")?,
            asked: Vec::new(),
            draws: None,
            touched,
            host_touched: device.pinned(1, what)?,
            work: Work::default(),
            weights,
            device,
            limits,
            model,
        })
    }

    /// Makes room for `rows` rows of logits.
    fn reserve_logits(&mut self, rows: usize) -> Result<()> {
        let values = rows * self.model.config.vocab;
        if self.logits.len() < values {
            // Both or none: what is here goes on to serve where there is no room for more.
            let logits = self.device.alloc(values, "logits")?;
            self.host_logits = self.device.pinned(values, "logits")?;
            self.logits = logits;
            self.graphs.clear(); // they point to the old ones
        }
        Ok(())
    }

    /// Starts the pass of up to eight rows.
    fn run_decode(&mut self, staged: &Staged, segments: usize, fresh: bool) -> Result<()> {
        let wanted = staged.wanted > 0;
        if staged.most_rows > 1 {
            let plan = self
                .attention
                .plan(&self.inputs.segments.0[..segments], fresh)?;
            return self.decode_layers(staged.rows, &plan, fresh, wanted);
        }
        // A plan for somewhat longer sequences, so that it lasts for a while.
        let longest = staged.longest.next_multiple_of(LONGER);
        let plan = self.attention.plan_rows(staged.rows, longest);
        let key = (staged.rows, plan, wanted);
        if !self.graphs.contains_key(&key) {
            // The first launch of a kernel may have to set it up, which can't be recorded.
            self.decode_layers(staged.rows, &plan, false, wanted)?;
            let graph = self
                .device
                .capture(|| self.decode_layers(staged.rows, &plan, false, wanted))?;
            if self.graphs.len() == MOST_GRAPHS {
                self.graphs.clear();
            }
            self.graphs.insert(key, graph);
            return Ok(());
        }
        self.device.replay(&self.graphs[&key])
    }

    /// Finds where the results of the rows asked for are, and adds the draws among them.
    fn find_asked(&mut self, batch: &Batch, few: bool, wanted: usize) {
        self.asked.clear();
        if let Some(draws) = &mut self.draws {
            draws.clear();
        }
        let mut next = 0;
        for segment in &batch.segments {
            let rows = match segment.logits {
                LogitRows::None => 0,
                LogitRows::Last | LogitRows::Draw(_) => 1,
                LogitRows::All => segment.tokens.len(),
            };
            for i in next..next + rows {
                // Few rows have the logits of all.
                let logits = match few {
                    true => self.inputs.wanted.0[i] as usize,
                    false => i,
                };
                let draw = match (&mut self.draws, &segment.logits) {
                    (Some(draws), LogitRows::Draw(draw)) => draws.add(logits, draw),
                    _ => None,
                };
                self.asked.push(Asked { logits, draw });
            }
            next += rows;
        }
        debug_assert_eq!(next, wanted);
    }

    /// Starts the way here of the logits of those rows asked for that `which` names, neighbours together.
    fn fetch_logits(&mut self, which: impl Fn(&Asked) -> bool) -> Result<()> {
        let vocab = self.model.config.vocab;
        let rows = self.asked.iter().filter(|asked| which(asked));
        let rows: Vec<usize> = rows.map(|asked| asked.logits).collect();
        for run in rows.chunk_by(|a, b| a + 1 == *b) {
            let (at, values) = (run[0] * vocab, run.len() * vocab);
            self.device
                .download_async(&self.logits, at, &mut self.host_logits, at, values)?;
        }
        Ok(())
    }

    fn decode_layers(&self, rows: usize, plan: &Plan, fresh: bool, wanted: bool) -> Result<()> {
        let config = &self.model.config;
        let io = decode::Io {
            tokens: self.inputs.rows.1.ptr(),
            rows,
            segments: self.inputs.segments.1.ptr(),
            x: self.x.ptr(),
            q: self.q.ptr(),
            fresh: 0,
            attended: self.attended.ptr(),
        };
        self.batched.embed(&self.weights, &self.step(rows, 0))?;
        for (i, layer) in self.weights.layers.iter().enumerate() {
            let sliding = config.is_sliding(i);
            let cache = self.cache.layer(i, sliding, self.inputs.table.1.ptr());
            let io = decode::Io {
                fresh: if fresh && sliding {
                    self.fresh.ptr()
                } else {
                    0
                },
                ..io
            };
            let (rope, touched) = (self.weights.rope, self.touched.ptr());
            self.decode.layer(layer, &io, cache, rope, touched, || {
                self.attend(plan, layer.sinks, sliding, cache)
            })?;
        }
        match wanted {
            true => self.decode.lm_head(&self.weights, &io, self.logits.ptr()),
            false => Ok(()),
        }
    }

    /// Starts the pass of more rows.
    fn run_batched(&mut self, staged: &Staged, segments: usize, fresh: bool) -> Result<()> {
        let plan = self
            .attention
            .plan(&self.inputs.segments.0[..segments], fresh)?;
        let config = &self.model.config;
        let step = self.step(staged.rows, staged.wanted);
        self.batched.embed(&self.weights, &step)?;
        for (i, layer) in self.weights.layers.iter().enumerate() {
            let sliding = config.is_sliding(i);
            let cache = self.cache.layer(i, sliding, self.inputs.table.1.ptr());
            let qkv = QkvOut {
                q: self.q.ptr(),
                fresh: if fresh && sliding {
                    self.fresh.ptr()
                } else {
                    0
                },
                cache,
                bias: layer.qkv_bias,
                rope: self.weights.rope,
                rows: self.inputs.rows.1.ptr(),
                segments: self.inputs.segments.1.ptr(),
                heads: config.heads as i32,
                kv_heads: config.kv_heads as i32,
            };
            let attended = self.attended.ptr();
            self.batched.layer(i, layer, &step, qkv, attended, || {
                self.attend(&plan, layer.sinks, sliding, cache)
            })?;
        }
        self.batched
            .lm_head(&self.weights, &step, self.logits.ptr())
    }

    fn step(&self, rows: usize, wanted: usize) -> Step {
        Step {
            tokens: self.inputs.rows.1.ptr(),
            rows,
            x: self.x.ptr(),
            touched: self.touched.ptr(),
            wanted: Rows {
                list: self.inputs.wanted.1.ptr(),
                count: wanted,
            },
        }
    }

    fn attend(
        &self,
        plan: &Plan,
        sinks: u64,
        sliding: bool,
        cache: super::batch::Cache,
    ) -> Result<()> {
        let io = attention::Io {
            q: self.q.ptr(),
            out: self.attended.ptr(),
            fresh: self.fresh.ptr(),
            rows: self.inputs.rows.1.ptr(),
            segments: self.inputs.segments.1.ptr(),
            sinks,
            cache,
        };
        self.attention.launch(plan, sliding, &io)
    }

    /// Runs the batch and waits for its logits.
    fn run(&mut self, batch: &Batch) -> Result<()> {
        self.device.synchronize()?; // also after a pass that failed on its way
        let staged = self.inputs.stage(&self.device, batch, &self.windows)?;
        let config = &self.model.config;
        let ring = cache::ring_positions(config);
        // A longer segment would overwrite window positions that its first rows still need.
        let fresh = staged.most_rows > ring + 1 - config.window.min(ring);
        let few = staged.rows <= self.decode.most_rows();
        // Few rows get the logits of all.
        let got = match (few, staged.wanted) {
            (_, 0) => 0,
            (true, _) => staged.rows,
            (false, wanted) => wanted,
        };
        self.reserve_logits(got)?;
        let segments = batch.segments.len();
        match few {
            true => self.run_decode(&staged, segments, fresh)?,
            false => self.run_batched(&staged, segments, fresh)?,
        }
        self.find_asked(batch, few, staged.wanted);
        if let Some(draws) = &mut self.draws {
            draws.start(self.logits.ptr())?;
        }
        self.fetch_logits(|asked| asked.draw.is_none())?;
        self.device
            .download_async(&self.touched, 0, &mut self.host_touched, 0, 1)?;
        // Also without logits: errors belong to this pass, and nothing is under way when it has ended.
        self.device.synchronize()?;
        if let Some(draws) = self.draws.take() {
            // Where nothing could be drawn the logits tell why.
            let fetched = self
                .fetch_logits(|asked| asked.draw.is_some_and(|number| draws.id(number).is_none()));
            self.draws = Some(draws);
            fetched?;
            self.device.synchronize()?;
        }
        self.work
            .add(&self.model, batch, staged.rows, staged.wanted);
        Ok(())
    }
}

impl Backend for Cuda {
    fn config(&self) -> &Config {
        &self.model.config
    }

    fn describe(&self) -> String {
        let arch = self.device.arch();
        format!("cuda ({}, sm_{arch} kernels)", self.device.name())
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: &Batch) -> Result<()> {
        batch.check(&self.model.config, &self.limits)?;
        self.windows.check(batch)?;
        if batch.segments.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.run(batch) {
            self.windows.failed(batch);
            return Err(error);
        }
        self.windows.ran(batch);
        Ok(())
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<()> {
        check_copy(from, to, &self.limits)?;
        self.cache.copy_block(from, to)
    }

    fn save(&mut self, slot: usize, snapshot: usize) -> Result<()> {
        self.windows.save(slot, snapshot)?;
        self.cache.save(slot, snapshot)
    }

    fn restore(&mut self, slot: usize, snapshot: usize) -> Result<()> {
        self.windows.restore(slot, snapshot)?;
        self.cache.restore(slot, snapshot)
    }

    fn batch_invariant(&self) -> bool {
        false
    }

    fn logits(&self, row: usize) -> &[f32] {
        let vocab = self.model.config.vocab;
        &self.host_logits[self.asked[row].logits * vocab..][..vocab]
    }

    fn prepare_draws(&mut self, allowed: &[Range<usize>]) -> Result<bool> {
        if allowed.iter().all(Range::is_empty) {
            return Ok(false);
        }
        let (vocab, most) = (self.model.config.vocab, self.limits.slots);
        self.draws = Some(Draws::new(&self.device, vocab, allowed, most)?);
        Ok(true)
    }

    fn drawn(&self, row: usize) -> Option<u32> {
        let draws = self.draws.as_ref()?;
        draws.id(self.asked.get(row)?.draw?)
    }

    fn work(&self) -> Work {
        let (config, mut work) = (&self.model.config, self.work);
        // All experts have the same shape, in every layer of a file that we know.
        if let Some(layer) = self.model.weights.layers.first() {
            let matrices = [&layer.gate, &layer.up, &layer.down];
            let bytes: usize = matrices.iter().map(|l| l.weight.data.len()).sum();
            work.bytes += self.host_touched[0] * (bytes / config.experts) as u64;
        }
        work
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        let kernel = self.device.kernel("read_all")?;
        let grid = Grid {
            blocks: (4 * self.device.multiprocessors(), 1, 1),
            threads: 512,
            shared: 0,
            dependent: false,
        };
        let bytes: u64 = self.weights.regions().map(|(_, bytes)| bytes).sum();
        let mut best = 0.0f64;
        for _ in 0..4 {
            let begin = self.device.record()?;
            for (from, bytes) in self.weights.regions() {
                let args = ReadArgs {
                    from,
                    count: (bytes / 16) as i64,
                    sink: self.x.ptr(),
                };
                self.device.launch(&kernel, grid, &args)?;
            }
            let end = self.device.record()?;
            end.wait()?;
            best = best.max(bytes as f64 / end.seconds_since(&begin)?);
        }
        Ok(Some(best))
    }
}

/// The same in kernels/read.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct ReadArgs {
    from: u64,
    count: i64,
    sink: u64,
}
