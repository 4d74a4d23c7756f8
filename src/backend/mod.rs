//! The second seam: a back end runs the whole model over one ragged batch.
//!
//! Stages, spelled alike in every back end, test and profile (docs/model.md): `embed`,
//! `norm_qkv_rope_append`, `attention_partial`, `attention_reduce`, `out_proj_residual`,
//! `norm_router_topk`, `expert_gate_up_swiglu`, `expert_down_residual`, `norm_lm_head`.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
mod room;
mod target;
mod windows;

pub use room::{Footprint, KvRoom, Memory, RESERVE, Room, Wanted, largest, room};
pub use target::Target;
pub use windows::Windows;

use crate::{config::Config, sampler::Draw, trace, weights::Model};
use anyhow::{Result, bail, ensure};
use indicatif::ProgressBar;
use std::{ops::Range, sync::Arc};

/// Positions in one block of the paged KV cache of full-attention layers.
pub const KV_BLOCK: usize = 32;

/// Which rows of a segment need logits. The LM head runs for those only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LogitRows {
    /// No row: an inner piece of a chunked prefill.
    None,
    /// The last row.
    Last,
    /// The last row, of which only the token drawn is wanted: [`Backend::drawn`].
    Draw(Draw),
    /// Every row, for scoring.
    All,
}

/// New tokens of one sequence: a piece of its prompt, or one token to decode.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The sequence's slot: which ring its sliding-window layers use; below [`Limits::slots`].
    pub slot: usize,
    /// Position of the first new token; everything before it is in the KV cache already. It is 0, or
    /// where the slot's sliding windows end (so also after [`Backend::restore`]), or any position
    /// with the next [`Config::receptive_field`] tokens kept: the windows are then rebuilt from
    /// nothing, and rows until there can't be asked for logits.
    pub start: usize,
    /// Full-attention layers' keys and values of positions below this are in `blocks` already and
    /// stay as they are: those rows only fill the sliding windows again. Nothing is kept beyond
    /// `start` when it is `start` or less.
    pub kept: usize,
    /// The new token ids, at least one.
    pub tokens: Vec<u32>,
    /// Block table of the full-attention layers: position `p` lives in `blocks[p / KV_BLOCK]`. A
    /// block may stand in several tables at once, where no segment writes the positions they share.
    pub blocks: Vec<u32>,
    /// Rows that need logits.
    pub logits: LogitRows,
}

/// One ragged batch: prefill pieces and decoding sequences together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The segments; no two share a slot.
    pub segments: Vec<Segment>,
}

impl Batch {
    /// The first position and the rows of a batch that can be traced: one segment whose rows all have logits.
    fn traced(&self) -> Result<(usize, usize)> {
        match &self.segments[..] {
            [only] if only.logits == LogitRows::All => Ok((only.start, only.tokens.len())),
            _ => bail!("a trace is of one segment that wants all logits"),
        }
    }

    /// New tokens in all.
    pub fn tokens(&self) -> usize {
        self.segments.iter().map(|s| s.tokens.len()).sum()
    }

    /// Checks the batch against the model and the room made; every back end's `forward` begins so.
    pub fn check(&self, config: &Config, limits: &Limits) -> Result<()> {
        let tokens = self.tokens();
        let most = limits.batch_tokens;
        ensure!(
            tokens <= most,
            "a batch of {tokens} tokens; this back end has room for {most}"
        );
        let mut taken = vec![false; limits.slots];
        for segment in &self.segments {
            let slot = segment.slot;
            ensure!(slot < limits.slots, "slot {slot} of {}", limits.slots);
            ensure!(
                !std::mem::replace(&mut taken[slot], true),
                "slot {slot} twice in one batch"
            );
            ensure!(
                !segment.tokens.is_empty(),
                "a segment without tokens (slot {slot})"
            );
            let bad = segment
                .tokens
                .iter()
                .find(|&&id| id as usize >= config.vocab);
            if let Some(id) = bad {
                bail!("token id {id}; the vocabulary has {}", config.vocab);
            }
            let end = segment.start.saturating_add(segment.tokens.len());
            ensure!(
                end <= config.context,
                "{end} tokens; the model's context is {}",
                config.context
            );
            let room = segment.blocks.len() * KV_BLOCK;
            ensure!(
                end <= room,
                "{end} tokens in a block table for {room} (slot {slot})"
            );
            ensure!(
                segment.kept <= room,
                "{} tokens kept in a block table for {room} (slot {slot})",
                segment.kept
            );
            let bad = segment
                .blocks
                .iter()
                .find(|&&block| block as usize >= limits.kv_blocks);
            if let Some(block) = bad {
                bail!("KV block {block} of {} (slot {slot})", limits.kv_blocks);
            }
        }
        Ok(())
    }
}

/// What a back end was opened with room for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sequences at once.
    pub slots: usize,
    /// Blocks of the paged cache, shared by all sequences.
    pub kv_blocks: usize,
    /// Most new tokens in one batch.
    pub batch_tokens: usize,
    /// Places for snapshots of a slot's sliding windows, [`snapshot_bytes`] each once it is used.
    pub snapshots: usize,
}

/// Work done so far; lets tests and the benchmark count instead of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows that went through the layers' projections (tokens, summed over calls).
    pub token_rows: u64,
    /// Rows that went through the LM head.
    pub logit_rows: u64,
    /// Weight and KV bytes read, each touched matrix once a call.
    pub bytes: u64,
}

impl Work {
    /// Counts a batch that has run, with the bytes of every matrix that all rows go through and of keys
    /// and values in f16. Experts are the back end's to count: it knows which were touched.
    fn add(&mut self, model: &Model, batch: &Batch, token_rows: usize, logit_rows: usize) {
        let (config, weights) = (&model.config, &model.weights);
        self.token_rows += token_rows as u64;
        self.logit_rows += logit_rows as u64;
        for layer in &weights.layers {
            let dense = [&layer.q, &layer.k, &layer.v, &layer.o, &layer.router];
            let bytes = dense.iter().map(|l| l.weight.bytes() as u64);
            self.bytes += bytes.sum::<u64>();
        }
        if logit_rows > 0 {
            self.bytes += weights.output.bytes() as u64;
        }
        let position = (2 * config.kv_heads * config.head_dim * 2) as u64;
        for segment in &batch.segments {
            let end = segment.start + segment.tokens.len();
            let seen = end.min(config.window + segment.tokens.len() - 1);
            let sliding = config.sliding_layers();
            self.bytes += position * (sliding * seen + (config.layers - sliding) * end) as u64;
        }
    }
}

/// A whole-model back end. It owns the KV bytes; block ids and slots are the caller's.
pub trait Backend: Send {
    /// The model's shape.
    fn config(&self) -> &Config;
    /// What runs: back end, instruction set, threads.
    fn describe(&self) -> String;
    /// The room it was opened with.
    fn limits(&self) -> Limits;
    /// Appends the batch's tokens to the KV cache and computes the logits asked for.
    fn forward(&mut self, batch: &Batch) -> Result<()>;
    /// [`Backend::forward`] of a batch of one segment that wants all logits, and gives `sink` what each stage computed.
    fn forward_traced(&mut self, _batch: &Batch, _sink: &mut trace::Sink) -> Result<()> {
        bail!(
            "{}: this back end has no trace of its stages",
            self.describe()
        )
    }
    /// Copies all positions of block `from` to block `to`, in every full-attention layer.
    fn copy_block(&mut self, from: u32, to: u32) -> Result<()>;
    /// Copies the slot's sliding windows, and the length they belong to, into place `snapshot`, below
    /// [`Limits::snapshots`]. An error where they are still being rebuilt.
    fn save(&mut self, slot: usize, snapshot: usize) -> Result<()>;
    /// Makes the slot's windows and length those of the snapshot, which stays; any slot may take it.
    fn restore(&mut self, slot: usize, snapshot: usize) -> Result<()>;
    /// Whether a row's bits depend on its own sequence only, not on the rest of the batch.
    fn batch_invariant(&self) -> bool;
    /// f32 logits `[vocab]` of the `row`-th row asked for in the last batch, in batch order.
    fn logits(&self, row: usize) -> &[f32];
    /// Prepares for [`LogitRows::Draw`] among the ids of `allowed`; false: it draws nothing itself.
    fn prepare_draws(&mut self, _allowed: &[Range<usize>]) -> Result<bool> {
        Ok(false)
    }
    /// The token drawn for the `row`-th row asked for, where it was to be and all its logits are finite. Otherwise the
    /// row has logits.
    fn drawn(&self, _row: usize) -> Option<u32> {
        None
    }
    /// Work counted since the back end was opened.
    fn work(&self) -> Work;
    /// Bytes a second that the memory it keeps weights in can be read at, measured now. None: it is the machine's own.
    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        Ok(None)
    }
}

/// Bytes of one block of the paged cache, in all full-attention layers together, kept in f16.
pub fn kv_block_bytes(config: &Config) -> u64 {
    let full = config.layers - config.sliding_layers();
    let position = 2 * config.kv_heads * config.head_dim * size_of::<half::f16>();
    (full * KV_BLOCK * position) as u64
}

/// Bytes of one snapshot where windows are kept in f16, in whole steps of [`KV_BLOCK`] positions.
pub fn snapshot_bytes(config: &Config) -> u64 {
    let steps = window_steps(config.window.min(config.context));
    let position = 2 * config.kv_heads * config.head_dim * size_of::<half::f16>();
    config.sliding_layers() as u64 * (steps * KV_BLOCK * position) as u64
}

/// Steps of [`KV_BLOCK`] positions that the rows of one step can see: the window, rounded up, and their own.
fn window_steps(window: usize) -> usize {
    window.saturating_sub(1).div_ceil(KV_BLOCK) + 1
}

/// How to open a back end.
#[derive(Debug, Clone)]
pub struct Options {
    /// As [`Target::of`] reads it: `auto`, `cuda`, `cpu`, `reference` …
    pub backend: String,
    /// Worker threads; 0 means one for each processor that this process may use.
    pub threads: usize,
    /// The room to make.
    pub limits: Limits,
}

/// Opens the back end named in `options`, or says which are built in.
pub fn open(model: Arc<Model>, options: &Options) -> Result<Box<dyn Backend>> {
    let target = Target::of(&options.backend)?;
    target.open(
        model,
        options.threads,
        options.limits,
        &ProgressBar::hidden(),
    )
}
