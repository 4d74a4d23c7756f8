//! One back end with the model on it, opened phase by phase.

use super::{limit::Reads, record::Load};
use crate::{
    backend::{KV_BLOCK, KvRoom, Limits, Target, kv_block_bytes, snapshot_bytes},
    bandwidth,
    cli::model::Common,
    config::Config,
    engine::{Engine, EngineOptions, NativeEngine},
    machine, measure,
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

/// An engine to be measured.
pub struct Subject {
    pub engine: Box<dyn Engine>,
    pub tokenizer: Arc<Tokenizer>,
    pub config: Config,
    pub reads: Reads,
    pub load: Load,
    /// The GPU, if one computes, and what was free of its memory before.
    device: Option<(Target, u64)>,
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
        let bandwidth = match backend.read_bandwidth()? {
            Some(speed) => speed,
            None => processor_bandwidth(common.threads, &checkpoint)?,
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
        let device = free.filter(|_| target.is_gpu()).map(|free| (target, free));
        Ok(Subject {
            engine: Box::new(engine),
            tokenizer,
            config,
            reads,
            load,
            device,
            streams,
        })
    }

    /// What is taken of the GPU's memory, if one computes.
    pub fn device_bytes(&self) -> Option<u64> {
        let (target, before) = self.device.as_ref()?;
        Some(before.saturating_sub(target.memory().free?))
    }

    /// Bytes of keys and values of a sequence of so many tokens.
    pub fn kv_bytes(&self, tokens: usize) -> u64 {
        let blocks = tokens.div_ceil(KV_BLOCK) as u64;
        blocks * kv_block_bytes(&self.config) + snapshot_bytes(&self.config)
    }
}

/// Bytes a second that the machine reads: from memory of its own, and from the model's mapping if that is
/// large; the best counts.
fn processor_bandwidth(threads: usize, checkpoint: &crate::checkpoint::Checkpoint) -> Result<f64> {
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
