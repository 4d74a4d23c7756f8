//! One back end with the model on it, opened phase by phase.

use super::{limit::Reads, record::Load};
use crate::{
    backend::{KV_BLOCK, KvRoom, Limits, Target, kv_block_bytes, snapshot_bytes},
    bandwidth,
    checkpoint::Checkpoint,
    cli::{engine::PREFIXES, model::Common},
    config::Config,
    engine::{Engine, EngineOptions, NativeEngine},
    machine, measure,
    mlx::{MlxEngine, Space},
    tokenizer::Tokenizer,
};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use std::{sync::Arc, time::Instant};

/// Snapshots of sliding windows that are made room for: a long prompt takes one every 1,024 tokens, and only
/// the last ones are needed.
const SNAPSHOTS: usize = 64;
/// Tokens of KV cache beside one whole context: for streams, and for facts in shorter texts.
const BESIDE: usize = 16_384;
/// Bytes that the machine's bandwidth is read from.
const BUFFER: u64 = 512 << 20;
/// Most bytes of the model's mapping that it is read from too.
const MAPPING: usize = 1 << 30;

/// Where memory is taken besides this process.
enum Taken {
    Nowhere,
    /// On a GPU, of which so much was free before.
    Gpu(Target, u64),
    /// In MLX's process.
    Worker(Arc<MlxEngine>),
}

/// An engine to be measured.
pub struct Subject {
    pub engine: Arc<dyn Engine>,
    pub tokenizer: Arc<Tokenizer>,
    pub config: Config,
    pub reads: Reads,
    pub load: Load,
    /// Bytes of keys and values: of a position in all full-attention layers, and of the sliding windows.
    kv_bytes: (u64, u64),
    /// What it takes, beside this process.
    taken: Taken,
    /// The model's files, where the processor reads its weights; so many threads measure how fast.
    files: Option<Checkpoint>,
    threads: usize,
    /// Numbers of streams that are worth measuring.
    pub streams: Vec<usize>,
}

impl Subject {
    /// Opens the back end `name`, and times each phase.
    pub fn open(name: &str, target: Target, common: &Common) -> Result<Subject> {
        let lap = |since: &mut Instant| {
            let took = since.elapsed().as_secs_f64();
            *since = Instant::now();
            took
        };
        let mut since = Instant::now();
        let checkpoint = common.open_checkpoint()?;
        let open_s = lap(&mut since);
        let tokenizer = Arc::new(checkpoint.tokenizer()?);
        let tokenizer_s = lap(&mut since);
        let check = checkpoint.check()?;
        let config = check.model.config.clone();
        let streams = match target.is_gpu() {
            true => vec![2, 8, 32, 64],
            false => vec![2, 4, 8],
        };
        let slots = streams.iter().max().copied().unwrap_or(1);
        let limits = |KvRoom { context, tokens }: KvRoom, batch_tokens: usize| Limits {
            slots,
            kv_blocks: context
                .saturating_add(BESIDE)
                .min(tokens)
                .div_ceil(KV_BLOCK),
            batch_tokens,
            snapshots: SNAPSHOTS,
        };
        let memory = target.memory();
        let free = memory.free;
        let room = common.room_on(&target, &memory, &check, false, &limits)?;
        let reads = Reads::of(&check.model);
        drop(check);
        since = Instant::now();
        let model = Arc::new(common.load(&checkpoint)?);
        let weights_s = lap(&mut since);
        let hidden = ProgressBar::hidden();
        let mut backend = target.open(model, common.threads, room.limits, &hidden)?;
        let backend_s = lap(&mut since);
        let (bandwidth, files) = match backend.read_bandwidth()? {
            Some(speed) => (speed, None),
            None => (
                processor_bandwidth(common.threads, &checkpoint)?,
                Some(checkpoint),
            ),
        };
        let options = EngineOptions {
            context: room.context,
            padding: tokenizer.padding_ids().to_vec(),
            marker: tokenizer.special("<|start|>"),
            ..EngineOptions::default()
        };
        let engine = NativeEngine::start(backend, options)?;
        let first = measure::time(&engine, measure::request(&[0], 1, 1))?;
        let first = first.first_token().context("no token came")?;
        let load = Load {
            backend: name.to_owned(),
            engine: engine.info().backend.clone(),
            open_s,
            tokenizer_s,
            weights_s,
            backend_s,
            first_token_s: first.as_secs_f64(),
            bandwidth,
            context: engine.info().context,
            footprint: room.footprint,
        };
        let taken = match free.filter(|_| target.is_gpu()) {
            Some(free) => Taken::Gpu(target, free),
            None => Taken::Nowhere,
        };
        Ok(Subject {
            engine: Arc::new(engine),
            tokenizer,
            kv_bytes: (per_token(&config), snapshot_bytes(&config)),
            config,
            reads,
            load,
            taken,
            files,
            threads: common.threads,
            streams,
        })
    }

    /// Opens MLX's engine. Its process loads all at once: the phases are those that this one sees.
    /// Its cache is to hold what the next of `lengths`, in ascending order, goes on from.
    pub fn open_mlx(common: &Common, lengths: &[usize]) -> Result<Subject> {
        let started = Instant::now();
        let streams = vec![2, 4, 8];
        let slots = streams.iter().max().copied().unwrap_or(1);
        let space = mlx_space(common, slots, lengths)?;
        let opened = common.open_mlx(space, |_| {})?;
        let check = opened.checkpoint.check()?;
        let engine = Arc::new(opened.engine);
        let backend_s = started.elapsed().as_secs_f64();
        let bandwidth = processor_bandwidth(common.threads, &opened.checkpoint)?;
        let first = measure::time(&*engine, measure::request(&[0], 1, 1))?;
        let first = first.first_token().context("no token came")?;
        let (config, reads) = (check.model.config.clone(), Reads::of(&check.model));
        let context = engine.info().context;
        let load = Load {
            backend: "mlx".to_owned(),
            engine: engine.info().backend.clone(),
            open_s: 0.0,
            tokenizer_s: 0.0,
            weights_s: 0.0,
            backend_s,
            first_token_s: first.as_secs_f64(),
            bandwidth,
            context,
            footprint: opened.room.footprint,
        };
        Ok(Subject {
            engine: engine.clone(),
            tokenizer: opened.tokenizer,
            kv_bytes: opened.kv_bytes,
            config,
            reads,
            load,
            taken: Taken::Worker(engine),
            files: Some(opened.checkpoint),
            threads: common.threads,
            streams,
        })
    }

    /// What is taken of the GPU's memory, if one computes, or by MLX's process.
    pub fn device_bytes(&self) -> Option<u64> {
        match &self.taken {
            Taken::Nowhere => None,
            Taken::Gpu(target, before) => Some(before.saturating_sub(target.memory().free?)),
            Taken::Worker(engine) => engine.held().map(|held| held.now),
        }
    }

    /// Bytes a second that the machine's memory reads at now. A GPU's belongs to its engine, which was asked at
    /// the start: its clock does not drift as a shared machine does.
    pub fn bandwidth(&self) -> Result<Option<f64>> {
        let files = self.files.as_ref();
        files
            .map(|files| processor_bandwidth(self.threads, files))
            .transpose()
    }

    /// Bytes of keys and values of a sequence of so many tokens.
    pub fn kv_bytes(&self, tokens: usize) -> u64 {
        let (token, windows) = self.kv_bytes;
        tokens.next_multiple_of(KV_BLOCK) as u64 * token + windows
    }
}

/// What MLX is asked for: a cache for the longest of `lengths` that memory has room for then.
fn mlx_space(common: &Common, slots: usize, lengths: &[usize]) -> Result<Space> {
    let checkpoint = common.open_checkpoint()?;
    let config = checkpoint.config()?;
    let space = |cache_bytes| Space { slots, cache_bytes };
    let (_, needs, most) = common.plan_mlx(&checkpoint, &config, space(0))?;
    let kv_bytes = (needs.token_bytes(), needs.window_bytes());
    let memory = needs.memory();
    for (at, &longest) in lengths.iter().enumerate().rev() {
        let space = space(beginnings(&lengths[..=at], kv_bytes));
        let room = common.mlx_room(&needs, &memory, space);
        if room.is_ok_and(|room| room.context >= longest.min(most.context)) {
            return Ok(space);
        }
    }
    Ok(space(PREFIXES))
}

/// Bytes of beginnings to keep: of the longest prompt; or of the one before it and of that with a turn after it,
/// since a later turn goes on from the former. Not less than is kept elsewhere.
fn beginnings(lengths: &[usize], kv_bytes: (u64, u64)) -> u64 {
    let (token, windows) = kv_bytes;
    // mlx-lm allots keys and values by 256 tokens; a turn takes a few.
    let of = |length: usize| (length as u64 + 512).saturating_mul(token) + windows;
    let mut longest_first = lengths.iter().rev();
    let mut next = || longest_first.next().map_or(0, |&length| of(length));
    next().max(next().saturating_mul(2)).max(PREFIXES)
}

/// Bytes of keys and values of a position, in f16, in all full-attention layers.
fn per_token(config: &Config) -> u64 {
    (kv_block_bytes(config) / KV_BLOCK as u64).max(1)
}

/// Bytes a second that the machine reads: from memory of its own, and from the model's mapping if that is
/// large; the best counts.
fn processor_bandwidth(threads: usize, checkpoint: &Checkpoint) -> Result<f64> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let free = machine::available_memory().unwrap_or(BUFFER);
    let bytes = (free / 4).clamp(16 << 20, BUFFER);
    let buffer = bandwidth::Buffer::new(usize::try_from(bytes)?, threads)?;
    let own = bandwidth::read(buffer.bytes(), threads, 4);
    let maps = checkpoint.files().iter().map(|(_, map)| &map[..]);
    let mapping = maps.max_by_key(|map| map.len()).unwrap_or_default();
    let mapped = match mapping.len() {
        MAPPING.. => bandwidth::read(&mapping[..MAPPING], threads, 2),
        _ => 0.0,
    };
    match own.max(mapped) {
        speed if speed > 0.0 => Ok(speed),
        _ => bail!("memory could not be timed: this system's clock stands still"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_holds_what_the_next_depth_goes_on_from() {
        let kv_bytes = (50_000, 3_000_000);
        let of = |tokens: u64| tokens * kv_bytes.0 + kv_bytes.1;
        let depths = [1 << 10, 1 << 15, 1 << 16, 1 << 17];
        let cache = beginnings(&depths, kv_bytes);
        // The deepest alone; the one before it beside a turn.
        assert!(cache >= of(1 << 17) && cache >= 2 * of((1 << 16) + 256));
        assert!(cache < of(1 << 17) + of(1 << 11));
        assert!(beginnings(&[100_000, 120_000], kv_bytes) >= 2 * of(100_256));
        // Short ones leave room for those of streams.
        assert_eq!(beginnings(&[512], kv_bytes), PREFIXES);
        assert_eq!(beginnings(&[], kv_bytes), PREFIXES);
    }
}
