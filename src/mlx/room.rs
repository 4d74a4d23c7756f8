//! What a worker takes of memory, counted before it is started.
//!
//! MLX holds integers as the files do and floats as it computes; keys and values of full-attention layers a row
//! each, of which all are as long as the longest; rings for sliding windows; and copies of kept beginnings. What
//! stands between two layers depends on what computes: where attention is not fused (anywhere but on Apple's
//! GPUs, as far as is known), the scores of a piece of a prompt over all that came before. The factors below were
//! measured on the CPU.

use super::frame::Device;
use crate::{
    backend::{self, Footprint, KV_BLOCK, KvRoom, Limits, Memory, Room, Wanted, largest},
    config::Config,
    machine,
    safetensors::Folder,
};
use anyhow::Result;

/// Freed memory that MLX keeps for reuse, on a GPU; on the CPU what it keeps by itself.
pub const POOL: u64 = 512 << 20;
const CPU_POOL: u64 = 32 << 20;
/// Python and its libraries, before a model is there: measured on Linux without a GPU, and more for a driver.
const PROCESS: u64 = 80 << 20;
const GPU_PROCESS: u64 = 512 << 20;
/// What running adds to it.
pub const RUNNING: u64 = 10 << 20;
/// Tokens of a prompt that run at once, as the worker has it: alone, and beside others that decode.
const PIECES: (usize, usize) = (512, 256);
const CPU_PIECES: (usize, usize) = (64, 64);
/// Keys and values grow by so many tokens, as mlx-lm has it.
const STEP: usize = 256;
/// Copies of a piece's scores, and of what its rows take in their experts, that are there at once.
const SCORES: u64 = 3;
const ACTIVATIONS: u64 = 10;
/// Copies of a row of logits while a token is drawn.
const LOGITS: u64 = 8;

/// What a worker is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Requests that run at once.
    pub slots: usize,
    /// Most bytes of kept beginnings.
    pub cache_bytes: u64,
}

/// A model on a device: what it takes of which memory.
pub struct Needs<'a> {
    folder: &'a Folder,
    config: &'a Config,
    device: Device,
}

impl<'a> Needs<'a> {
    /// Of a folder's model, whose shape is `config`.
    pub fn new(folder: &'a Folder, config: &'a Config, device: Device) -> Needs<'a> {
        Needs {
            folder,
            config,
            device,
        }
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.config
    }

    /// The memory that bounds it: the machine's, and what a GPU lets it have.
    pub fn memory(&self) -> Memory {
        let machine = machine::available_memory();
        let (name, free) = match (self.device.gpu, self.device.metal) {
            (false, _) => ("this machine's memory".to_owned(), machine),
            // Apple's GPUs take of the machine's.
            (true, true) => {
                let free = machine.into_iter().chain(self.device.free).min();
                (format!("memory for {}", self.device.name), free)
            }
            (true, false) => (self.device.name.clone(), self.device.free),
        };
        Memory { name, free }
    }

    /// Bytes of a value of an activation, and of keys and values.
    fn value(&self) -> u64 {
        if self.device.gpu { 2 } else { 4 }
    }

    /// Bytes of keys and values of a position in one layer.
    fn position(&self) -> u64 {
        (2 * self.config.kv_heads * self.config.head_dim) as u64 * self.value()
    }

    fn full_layers(&self) -> u64 {
        let full = self.config.layers - self.config.sliding_layers();
        full as u64
    }

    /// Bytes of keys and values of a position in all layers with full attention.
    pub fn token_bytes(&self) -> u64 {
        self.position() * self.full_layers()
    }

    /// Bytes of one sequence's sliding windows.
    pub fn window_bytes(&self) -> u64 {
        self.position() * (self.config.sliding_layers() * self.config.window) as u64
    }

    /// Tokens of a prompt that run at once: alone, and beside others that decode.
    pub fn pieces(&self) -> (usize, usize) {
        if self.device.gpu { PIECES } else { CPU_PIECES }
    }

    /// Most bytes of freed memory that MLX may keep.
    pub fn pool_bytes(&self) -> u64 {
        if self.device.gpu { POOL } else { CPU_POOL }
    }

    /// What it takes with `kv_tokens` of KV cache for sequences of up to `context` tokens.
    pub fn footprint(&self, context: usize, kv_tokens: usize, space: Space) -> Footprint {
        let (config, value) = (self.config, self.value());
        let times = |factors: &[usize]| {
            factors
                .iter()
                .map(|&n| n as u64)
                .fold(1, u64::saturating_mul)
        };
        let tokens = (kv_tokens as u64).saturating_add(times(&[STEP, space.slots]));
        let (piece, shared_piece) = self.pieces();
        let prefill = |piece: usize| {
            let rows = piece.min(context);
            let scores = match self.device.metal {
                true => 0,
                false => times(&[config.heads, rows, context]).saturating_mul(SCORES * value),
            };
            let widest = config.expert_width.max(config.hidden);
            let experts = times(&[rows, config.experts_used, widest]) * ACTIVATIONS * value;
            scores.saturating_add(experts)
        };
        // A layer whose rows grow or become more is there twice for a moment; of the row that joins there is a copy.
        let rows = tokens.saturating_add(context as u64);
        let layer = rows.saturating_mul(self.position());
        let logits = times(&[space.slots, config.vocab]) * LOGITS * 4;
        // Who reads alone takes longer pieces, but leaves the room of the others.
        let others = (kv_tokens.saturating_sub(context) as u64).saturating_mul(self.token_bytes());
        let alone = prefill(piece).saturating_sub(others);
        let work = alone
            .max(prefill(shared_piece))
            .max(layer.saturating_add(logits));
        Footprint {
            weights: self.folder.bytes_with((!self.device.gpu).then_some(4)),
            blocks: tokens.saturating_mul(self.token_bytes()),
            windows: self.window_bytes() * space.slots as u64,
            prefixes: space.cache_bytes,
            work: work.saturating_add(self.pool_bytes()),
            process: if self.device.gpu {
                GPU_PROCESS
            } else {
                PROCESS
            } + RUNNING,
            ..Footprint::default()
        }
    }

    /// The room in `memory`: for sequences of `context` tokens, or as many as fit; what is left over goes to KV cache
    /// for more of them at once.
    ///
    /// # Errors
    /// Where it doesn't fit; with what does.
    pub fn room(&self, memory: &Memory, context: Option<usize>, space: Space) -> Result<Room> {
        // One place for all kept beginnings, so that what would make room without them is found.
        let snapshots = usize::from(space.cache_bytes > 0);
        let one = |limits: &Limits| {
            let tokens = limits.kv_blocks.saturating_mul(KV_BLOCK);
            let cache_bytes = space.cache_bytes * limits.snapshots as u64;
            let slots = limits.slots;
            self.footprint(tokens, tokens, Space { slots, cache_bytes })
        };
        let wanted = Wanted {
            context,
            spare: false,
            limits: &|KvRoom { context, .. }| Limits {
                slots: space.slots,
                kv_blocks: context.div_ceil(KV_BLOCK),
                batch_tokens: self.pieces().0.min(context),
                snapshots,
            },
        };
        let mut room = backend::room(memory, &one, self.config.context, &wanted)?;
        let (context, least) = (room.context, room.limits.kv_blocks);
        let with = |blocks: usize| self.footprint(context, blocks.saturating_mul(KV_BLOCK), space);
        let most = least.saturating_mul(space.slots);
        let blocks = largest(least, most, |blocks| memory.fits(&with(blocks)));
        room.limits.kv_blocks = blocks.unwrap_or(least);
        room.footprint = with(room.limits.kv_blocks);
        Ok(room)
    }
}
