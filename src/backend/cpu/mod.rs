//! The fast CPU back end: int8 activations on the file's own MXFP4 and Q8_0 blocks, f16 KV cache.
//!
//! Weights are read where the file is mapped, never repacked, so loading costs nothing and memory
//! is the file's size. Every instruction set, thread count and batch composition gives the same
//! bits, because each sum has one order (see [`kernels`] and [`attention`]).

mod attention;
mod buffers;
mod cache;
mod forward;
mod kernels;
pub mod micro;
mod moe;
mod offsets;
mod threads;
mod touch;

use super::{
    Backend, Batch, Footprint, Limits, LogitRows, Windows, Work, kv_block_bytes,
    room::{mapped_bytes, vector_bytes},
    snapshot_bytes,
    windows::check_copy,
};
use crate::{
    config::Config,
    trace::{self, Tap},
    weights::{Check, Model},
};
use anyhow::{Result, anyhow, bail, ensure};
use attention::Plan;
use buffers::{LargeMemory, Local, SmallMemory};
use cache::Cache;
use forward::Pass;
use kernels::Kernels;
use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize};
use threads::{Pool, Queue, Shared};

/// The instruction sets that run on this machine, fastest first.
pub fn isas() -> Vec<&'static str> {
    kernels::available().map(|k| k.name).collect()
}

/// What a model takes with room for `limits` on so many threads (0: one a processor), once all of it has
/// been written.
pub(super) fn footprint(check: &Check, threads: usize, limits: &Limits) -> Footprint {
    let model = &check.model;
    let config = &model.config;
    let windows = |places: usize| (places as u64).saturating_mul(snapshot_bytes(config));
    let rows = limits.batch_tokens;
    let local = Local::bytes(config, rows, forward::ALONE.min(rows), forward::CHUNK);
    let work = SmallMemory::bytes(config, rows)
        + LargeMemory::bytes(config, rows, attention::PARTIALS)
        + local.saturating_mul(threads_of(threads))
        + (limits.slots * config.vocab + rows * config.head_dim) * size_of::<f32>();
    Footprint {
        mapped: mapped_bytes(model),
        weights: check.cost.converted_bytes + vector_bytes(model),
        blocks: (limits.kv_blocks as u64).saturating_mul(kv_block_bytes(config)),
        windows: windows(limits.slots),
        snapshots: windows(limits.snapshots),
        work: work as u64,
        ..Footprint::default()
    }
}

/// Threads that are meant by a number of them: 0 is one for each processor.
fn threads_of(threads: usize) -> usize {
    match threads {
        0 => threads::processors(),
        n => n,
    }
}

/// The CPU back end.
pub struct Cpu {
    model: Arc<Model>,
    limits: Limits,
    kernels: &'static Kernels,
    pool: Pool,
    cache: Cache,
    inv_freq: Vec<f32>,
    small: SmallMemory,
    large: LargeMemory,
    locals: Vec<Local>,
    queues: Vec<Queue>,
    pending: Vec<AtomicUsize>,
    plan: Plan,
    ids: Vec<u32>,
    first_row: Vec<usize>,
    logit_rows: Vec<usize>,
    rope: Vec<f32>,
    logits: Vec<f32>,
    windows: Windows,
    /// By segment, the first position that its rows see in sliding layers.
    window_from: Vec<usize>,
    work: Work,
}

impl Cpu {
    /// Opens the back end with `isa` (`None`: the fastest) and `threads` (0: one a processor).
    pub fn new(
        model: Arc<Model>,
        limits: Limits,
        isa: Option<&str>,
        threads: usize,
    ) -> Result<Cpu> {
        let kernels = kernels::available()
            .find(|k| isa.is_none_or(|isa| isa == k.name))
            .ok_or_else(|| {
                anyhow!(
                    "no instruction set `{}` here; this machine and build have {}",
                    isa.unwrap_or(""),
                    isas().join(", ")
                )
            })?;
        ensure!(
            limits.batch_tokens > 0,
            "a back end for batches of 0 tokens"
        );
        let config = &model.config;
        let threads = threads_of(threads);
        let pool = Pool::new(threads)?;
        touch::touch(&model.weights, &pool);
        let rows = limits.batch_tokens;
        let local = || Local::new(config, rows, forward::ALONE.min(rows), forward::CHUNK);
        Ok(Cpu {
            kernels,
            cache: Cache::new(config, limits)?,
            inv_freq: config.rope.inv_freq(config.head_dim),
            small: SmallMemory::new(config, rows),
            large: LargeMemory::new(config, rows, attention::PARTIALS),
            locals: (0..threads).map(|_| local()).collect(),
            queues: (0..forward::queue_count(config.layers))
                .map(|_| Queue::default())
                .collect(),
            pending: (0..config.layers * config.kv_heads)
                .map(|_| AtomicUsize::new(0))
                .collect(),
            plan: Plan::default(),
            ids: Vec::with_capacity(rows),
            first_row: Vec::new(),
            logit_rows: Vec::new(),
            rope: Vec::with_capacity(rows * config.head_dim),
            logits: Vec::new(),
            windows: Windows::new(config, &limits),
            window_from: Vec::new(),
            work: Work::default(),
            pool,
            limits,
            model,
        })
    }

    /// Lists the batch's rows, their rotations and the rows that need logits.
    fn prepare(&mut self, batch: &Batch) {
        let config = &self.model.config;
        self.ids.clear();
        self.first_row.clear();
        self.logit_rows.clear();
        self.rope.clear();
        self.window_from.clear();
        let windows = batch.segments.iter().map(|s| self.windows.from(s));
        self.window_from.extend(windows);
        let concentration = config.rope.concentration();
        for segment in &batch.segments {
            self.first_row.push(self.ids.len());
            for (i, &id) in segment.tokens.iter().enumerate() {
                let wanted = match segment.logits {
                    LogitRows::None => false,
                    LogitRows::Last | LogitRows::Draw(_) => i + 1 == segment.tokens.len(),
                    LogitRows::All => true,
                };
                if wanted {
                    self.logit_rows.push(self.ids.len());
                }
                self.ids.push(id);
                let position = (segment.start + i) as f64;
                let angles = self.inv_freq.iter().map(|&f| position * f64::from(f));
                self.rope
                    .extend(angles.clone().map(|a| a.cos() as f32 * concentration));
                self.rope
                    .extend(angles.map(|a| a.sin() as f32 * concentration));
            }
        }
        self.plan.make(config, batch);
        self.queues.iter().for_each(Queue::reset);
        let items = forward::qkv_items(config) + 1;
        self.pending.iter_mut().for_each(|p| *p.get_mut() = items);
        let logits = self.logit_rows.len() * config.vocab;
        if self.logits.len() < logits {
            self.logits.resize(logits, 0.0);
        }
    }

    /// Runs a batch; `look` sees what each stage computed.
    fn walk(&mut self, batch: &Batch, look: Option<&forward::Look>) -> Result<()> {
        batch.check(&self.model.config, &self.limits)?;
        self.windows.check(batch)?;
        if batch.segments.is_empty() {
            return Ok(());
        }
        self.prepare(batch);
        let locals = Shared::new(&mut self.locals);
        let pass = Pass {
            config: &self.model.config,
            weights: &self.model.weights,
            kernels: self.kernels,
            pool: &self.pool,
            cache: &self.cache,
            batch,
            plan: &self.plan,
            first_row: &self.first_row,
            window_from: &self.window_from,
            ids: &self.ids,
            logit_rows: &self.logit_rows,
            rope: &self.rope,
            small: self.small.view(),
            large: self.large.view(),
            logits: Shared::new(&mut self.logits),
            queues: &self.queues,
            pending: &self.pending,
            look,
        };
        if !pass.run_on_all(locals) {
            self.windows.failed(batch);
            bail!("a worker thread of the CPU back end panicked; its message is above");
        }
        self.windows.ran(batch);
        self.work.bytes += std::mem::take(&mut self.locals[0].work.expert_bytes);
        let (rows, logits) = (self.ids.len(), self.logit_rows.len());
        self.work.add(&self.model, batch, rows, logits);
        Ok(())
    }
}

impl Backend for Cpu {
    fn config(&self) -> &Config {
        &self.model.config
    }

    fn describe(&self) -> String {
        let threads = self.pool.threads();
        format!(
            "cpu ({}, {threads} thread{})",
            self.kernels.name,
            if threads == 1 { "" } else { "s" }
        )
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: &Batch) -> Result<()> {
        self.walk(batch, None)
    }

    fn forward_traced(&mut self, batch: &Batch, sink: &mut trace::Sink) -> Result<()> {
        let (start, rows) = batch.traced()?;
        let tap = Mutex::new(Tap::new(Some(sink), start, rows));
        self.walk(
            batch,
            Some(&|layer, stage, values| {
                let mut tap = tap.lock().unwrap_or_else(PoisonError::into_inner);
                tap.show(layer, stage, || values);
            }),
        )?;
        tap.into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .finish()
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<()> {
        check_copy(from, to, &self.limits)?;
        self.cache.copy_block(from, to);
        Ok(())
    }

    fn save(&mut self, slot: usize, snapshot: usize) -> Result<()> {
        self.windows.save(slot, snapshot)?;
        self.cache.save(slot, snapshot);
        Ok(())
    }

    fn restore(&mut self, slot: usize, snapshot: usize) -> Result<()> {
        self.windows.restore(slot, snapshot)?;
        self.cache.restore(slot, snapshot);
        Ok(())
    }

    fn batch_invariant(&self) -> bool {
        true
    }

    fn logits(&self, row: usize) -> &[f32] {
        let vocab = self.model.config.vocab;
        &self.logits[row * vocab..(row + 1) * vocab]
    }

    fn work(&self) -> Work {
        self.work
    }
}
