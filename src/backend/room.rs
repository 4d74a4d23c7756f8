//! Memory, counted before any of it is taken: what a model needs on a back end, and the room there is.
//!
//! Each back end says what `Limits` cost ([`Footprint`]); what fits is decided here, alike for all of them, so
//! that `plan`, `run` and `serve` never disagree. Mapped pages of the model's files can be had back by
//! the system at any time; everything else that is counted can't.

use super::{KV_BLOCK, Limits};
use crate::{
    hub::human,
    weights::{Layer, Linear, Matrix, Model},
};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The least context that is made room for when memory is short.
const LEAST_CONTEXT: usize = 4096;
/// Left free beside what is counted: the program itself, requests, and on a GPU graphs, staging and what
/// the driver takes.
pub const RESERVE: u64 = 512 << 20;

/// What takes memory once all of it is in use, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// Weights that are used where the files are mapped.
    pub mapped: u64,
    /// Weights in memory of their own: converted ones, a GPU's layout, norms and biases.
    pub weights: u64,
    /// Keys and values of the full-attention layers.
    pub blocks: u64,
    /// Sliding windows of the sequences.
    pub windows: u64,
    /// Snapshots of sliding windows.
    pub snapshots: u64,
    /// Beginnings that MLX keeps to go on from, each with keys and values of its own.
    #[serde(default)]
    pub prefixes: u64,
    /// Everything between two layers, and the logits.
    pub work: u64,
    /// MLX's process before it has a model: Python and its libraries.
    #[serde(default)]
    pub process: u64,
}

impl Footprint {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.own().saturating_add(self.mapped)
    }

    /// What the system can't take back: all but the files' pages.
    pub fn own(&self) -> u64 {
        [self.weights, self.blocks, self.windows]
            .into_iter()
            .chain([self.snapshots, self.prefixes])
            .chain([self.work, self.process])
            .fold(0, u64::saturating_add)
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} weights, {} KV cache, {} sliding windows",
            human(self.bytes()),
            human(self.mapped.saturating_add(self.weights)),
            human(self.blocks),
            human(self.windows.saturating_add(self.snapshots)),
        )?;
        if self.prefixes > 0 {
            write!(f, ", {} kept beginnings", human(self.prefixes))?;
        }
        write!(
            f,
            ", {} work)",
            human(self.work.saturating_add(self.process))
        )
    }
}

/// Memory that a footprint has to fit into.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Whose it is, in words.
    pub name: String,
    /// Bytes that are free; `None` where the system does not tell.
    pub free: Option<u64>,
}

impl Memory {
    /// Whether it fits, beside what is left free. Of a model that is larger than memory, pages come
    /// from the disk again and again: only the rest has to fit.
    pub fn fits(&self, footprint: &Footprint) -> bool {
        let needed = match self.streams(footprint) {
            true => footprint.own(),
            false => footprint.bytes(),
        };
        self.free
            .is_none_or(|free| needed.saturating_add(RESERVE) <= free)
    }

    /// Whether the model's files alone are larger.
    pub fn streams(&self, footprint: &Footprint) -> bool {
        self.free
            .is_some_and(|free| footprint.mapped.saturating_add(RESERVE) > free)
    }

    /// Whether what can't be had back fits, with nothing to spare.
    fn holds(&self, footprint: &Footprint) -> bool {
        self.free.is_none_or(|free| footprint.own() <= free)
    }
}

/// Tokens of KV cache that may be made room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvRoom {
    /// Most tokens of one sequence.
    pub context: usize,
    /// Most of all sequences together, as far as memory goes: `context` or more.
    pub tokens: usize,
}

/// What is wanted of the room.
pub struct Wanted<'a> {
    /// Tokens of the longest sequence; `None`: as many as fit and the model was made for.
    pub context: Option<usize>,
    /// Memory that is free goes to more KV blocks, as long as the slots could fill them. (On the
    /// processor blocks that are never written cost nothing: it has no use for this.)
    pub spare: bool,
    /// The limits that so many tokens need at least.
    pub limits: &'a dyn Fn(KvRoom) -> Limits,
}

/// What was found to be the room.
#[derive(Debug, Clone)]
pub struct Room {
    /// Tokens of the longest sequence.
    pub context: usize,
    /// The limits to open a back end with.
    pub limits: Limits,
    /// What memory there is, in words, where it bounded the context.
    pub bounded_by: Option<String>,
    /// What the limits cost.
    pub footprint: Footprint,
}

impl Room {
    /// Tokens of KV cache that all sequences share.
    pub fn kv_tokens(&self) -> usize {
        self.limits.kv_blocks.saturating_mul(KV_BLOCK)
    }
}

/// The room for sequences of up to `most` tokens, the model's own context, where `footprint` says what limits
/// cost.
///
/// # Errors
/// Where the context that is wanted doesn't fit; with one that does.
pub fn room(
    memory: &Memory,
    footprint: &dyn Fn(&Limits) -> Footprint,
    most: usize,
    wanted: &Wanted,
) -> Result<Room> {
    let tokens = tokens(memory, footprint, most, wanted);
    let limits = |context| {
        let tokens = tokens.max(context);
        (wanted.limits)(KvRoom { context, tokens })
    };
    let fits = |context| memory.fits(&footprint(&limits(context)));
    let least = LEAST_CONTEXT.min(most);
    let short = |context| context <= least && memory.holds(&footprint(&limits(context)));
    let context = match wanted.context {
        Some(context) if fits(context) || short(context) => context,
        None if memory.streams(&footprint(&limits(least))) && short(least) => least,
        None => match largest(least, most, fits) {
            Some(context) => context,
            None if short(least) => least,
            None => bail!(does_not_fit(memory, footprint, most, None, &limits)),
        },
        Some(context) => {
            let fitting = largest(least.min(context), context, fits);
            let fitting = fitting.or_else(|| Some(least).filter(|&n| n < context && short(n)));
            bail!(does_not_fit(memory, footprint, context, fitting, &limits))
        }
    };
    let mut limits = limits(context);
    if wanted.spare {
        let each = context.div_ceil(KV_BLOCK);
        let useful = each.saturating_mul(limits.slots).max(limits.kv_blocks);
        let with = |kv_blocks| Limits {
            kv_blocks,
            ..limits
        };
        let blocks = largest(limits.kv_blocks, useful, |n| {
            memory.fits(&footprint(&with(n)))
        });
        limits.kv_blocks = blocks.unwrap_or(limits.kv_blocks);
    }
    let footprint = footprint(&limits);
    let bounded = wanted.context.is_none() && context < most;
    Ok(Room {
        context,
        limits,
        bounded_by: bounded.then(|| {
            let windows = footprint.windows.saturating_add(footprint.snapshots);
            format!(
                "{} free in {}, of which the model takes {} and sliding windows and their snapshots {}",
                human(memory.free.unwrap_or(u64::MAX)),
                memory.name,
                human(footprint.mapped.saturating_add(footprint.weights)),
                human(windows)
            )
        }),
        footprint,
    })
}

/// Tokens of KV cache that memory holds beside everything else. Slots and snapshots don't depend on the
/// context.
fn tokens(
    memory: &Memory,
    footprint: &dyn Fn(&Limits) -> Footprint,
    most: usize,
    wanted: &Wanted,
) -> usize {
    let Some(free) = memory.free else {
        return usize::MAX;
    };
    let context = LEAST_CONTEXT.min(most);
    let limits = (wanted.limits)(KvRoom {
        context,
        tokens: context,
    });
    let with = |kv_blocks| {
        footprint(&Limits {
            kv_blocks,
            ..limits
        })
    };
    let (none, one) = (with(0), with(1));
    let beside = match memory.streams(&none) {
        true => none.own(),
        false => none.bytes(),
    };
    let spare = free.saturating_sub(RESERVE).saturating_sub(beside);
    let blocks = spare / one.blocks.saturating_sub(none.blocks).max(1);
    usize::try_from(blocks)
        .unwrap_or(usize::MAX)
        .saturating_mul(KV_BLOCK)
}

/// Says what is missing, and which flag would make room.
fn does_not_fit(
    memory: &Memory,
    footprint: &dyn Fn(&Limits) -> Footprint,
    context: usize,
    fitting: Option<usize>,
    limits: &dyn Fn(usize) -> Limits,
) -> String {
    let needed = footprint(&limits(context));
    let way = match fitting {
        Some(context) => format!("--ctx-size {context} fits"),
        None => {
            let least = limits(LEAST_CONTEXT.min(context));
            let one = Limits {
                slots: 1,
                kv_blocks: LEAST_CONTEXT.min(context).div_ceil(KV_BLOCK),
                snapshots: 0,
                ..least
            };
            match memory.fits(&footprint(&one)) {
                true => "A smaller --max-seqs, or --cache-bytes of serve, would make room",
                false => {
                    "The weights leave no room: end what else takes memory there, or run with another \
                     --backend"
                }
            }
            .into()
        }
    };
    format!(
        "{}: {needed} needed for {context} tokens of context, and {} to spare; {} are free. {way} \
         (`gossamer plan` shows all)",
        memory.name,
        human(RESERVE),
        human(memory.free.unwrap_or(u64::MAX))
    )
}

/// The largest number from `least` to `most`, in steps of a block below `most`, that fits, if one does:
/// what fits a number fits smaller ones.
pub fn largest(least: usize, most: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    if fits(most) {
        return Some(most);
    }
    if !fits(least) {
        return None;
    }
    let (mut low, mut high) = (least, most);
    while high - low > KV_BLOCK {
        let middle = low + (high - low) / 2;
        match fits(middle) {
            true => low = middle,
            false => high = middle,
        }
    }
    let low = low / KV_BLOCK * KV_BLOCK;
    let next = low + KV_BLOCK;
    Some(least.max(if fits(next) { next } else { low }))
}

/// Bytes of a model's matrices that lie in its files, where [`check`](Model::check)ed: none that are
/// converted.
pub(super) fn mapped_bytes(model: &Model) -> u64 {
    let bytes = |matrix: &Matrix| matrix.data.len() as u64;
    let weights = &model.weights;
    let tied = weights.output.data.as_ptr() == weights.token_embd.data.as_ptr();
    let output = if tied { 0 } else { bytes(&weights.output) };
    let layers = weights.layers.iter().flat_map(linears);
    output + bytes(&weights.token_embd) + layers.map(|l| bytes(&l.weight)).sum::<u64>()
}

/// Bytes of its norms, biases and sinks in f32.
pub(super) fn vector_bytes(model: &Model) -> u64 {
    let layer = |layer: &Layer| {
        let norms = layer.attn_norm.len() + layer.post_attention_norm.len() + layer.sinks.len();
        norms + linears(layer).map(|l| l.bias.len()).iter().sum::<usize>()
    };
    let layers = model.weights.layers.iter().map(layer);
    let values = layers.sum::<usize>() + model.weights.output_norm.len();
    (values * size_of::<f32>()) as u64
}

fn linears(layer: &Layer) -> [&Linear; 8] {
    [
        &layer.q,
        &layer.k,
        &layer.v,
        &layer.o,
        &layer.router,
        &layer.gate,
        &layer.up,
        &layer.down,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a block of gpt-oss-20b, 24 KiB a token, and of one sequence's windows.
    const BLOCK: u64 = 768 << 10;
    const WINDOWS: u64 = 4 << 20;
    const FILE: u64 = 12 << 30;

    fn footprint(limits: &Limits) -> Footprint {
        Footprint {
            mapped: FILE,
            weights: 26 << 20,
            blocks: limits.kv_blocks as u64 * BLOCK,
            windows: limits.slots as u64 * WINDOWS,
            snapshots: limits.snapshots as u64 * WINDOWS,
            work: 100 << 20,
            ..Footprint::default()
        }
    }

    /// Room for one sequence in so many free bytes.
    fn one(free: u64, context: Option<usize>) -> Result<Room> {
        let limits = |KvRoom { context, .. }: KvRoom| Limits {
            slots: 1,
            kv_blocks: context.div_ceil(KV_BLOCK),
            batch_tokens: 512,
            snapshots: 0,
        };
        let wanted = Wanted {
            context,
            spare: false,
            limits: &limits,
        };
        room(&memory(free), &footprint, 131_072, &wanted)
    }

    fn memory(free: u64) -> Memory {
        Memory {
            name: "memory".into(),
            free: Some(free),
        }
    }

    /// Bytes that a context of so many blocks needs, with what is left free.
    fn needed(blocks: u64) -> u64 {
        FILE + (126 << 20) + WINDOWS + RESERVE + blocks * BLOCK
    }

    #[test]
    fn the_context_is_bounded_by_memory() -> Result<()> {
        let found = |free| one(free, None).map(|room| (room.context, room.bounded_by.is_some()));
        assert_eq!(found(u64::MAX)?, (131_072, false));
        assert_eq!(found(needed(4096))?, (131_072, false));
        assert_eq!(found(needed(4096) - 1)?, (131_040, true));
        assert_eq!(found(needed(1000) + 5)?, (32_000, true));
        // Little left: a short context is still tried, and where the files don't fit, nothing more.
        assert_eq!(found(needed(10))?, (4096, true));
        assert_eq!(found(FILE)?, (4096, true));
        assert_eq!(found(2 << 30)?, (4096, true));
        // What can't be had back must fit.
        let refused = found(100 << 20).expect_err("nothing fits").to_string();
        assert!(
            refused.contains("The weights leave no room") && refused.contains("104.86 MB are free"),
            "{refused}"
        );
        Ok(())
    }

    #[test]
    fn a_context_that_cannot_fit_is_refused_with_what_would() -> Result<()> {
        let free = needed(1000);
        assert_eq!(one(free, Some(32_000))?.context, 32_000);
        assert_eq!(one(free, Some(7))?.context, 7);
        let refused = one(free, Some(32_001)).expect_err("too long").to_string();
        assert!(refused.contains("for 32001 tokens"), "{refused}");
        assert!(refused.contains("--ctx-size 32000 fits"), "{refused}");
        assert_eq!(
            one(free, Some(32_001)).err().map(|e| e.to_string()),
            Some(refused)
        );
        // What is said to fit does.
        for free in (0..40).map(|i| needed(0) + i * 300_000_123) {
            let Err(refused) = one(free, Some(131_072)) else {
                continue;
            };
            let refused = refused.to_string();
            let named = refused.split("--ctx-size ").nth(1).expect("a way");
            let named: usize = named.split(' ').next().unwrap_or_default().parse()?;
            assert_eq!(one(free, Some(named))?.context, named);
        }
        // A model larger than memory: pages come and go, the rest must fit.
        assert_eq!(one(6 << 30, Some(131_072))?.context, 131_072);
        assert!(one(3 << 30, Some(131_072)).is_err());
        Ok(())
    }

    #[test]
    fn many_sequences_share_what_there_is() -> Result<()> {
        let limits = |KvRoom { context, tokens }: KvRoom| Limits {
            slots: 16,
            kv_blocks: context.max(4096 * 16).min(tokens).div_ceil(KV_BLOCK),
            batch_tokens: 512,
            snapshots: 4,
        };
        let found = |free, spare| {
            let wanted = Wanted {
                context: None,
                spare,
                limits: &limits,
            };
            let room = room(&memory(free), &footprint, 131_072, &wanted)?;
            Ok::<_, anyhow::Error>((room.context, room.limits.kv_blocks, room.footprint))
        };
        let free = needed(1000) + 19 * WINDOWS;
        assert_eq!(
            found(free, false)?,
            (
                32_000,
                1000,
                footprint(&limits(KvRoom {
                    context: 32_000,
                    tokens: 32_000,
                }))
            )
        );
        // What is free goes to more blocks, where asked for, up to every sequence's whole context.
        let ample = needed(10_000) + 19 * WINDOWS;
        assert_eq!(found(ample, false)?.1, 4096);
        assert_eq!(found(ample, true)?.1, 10_000 / KV_BLOCK * KV_BLOCK);
        assert_eq!(found(u64::MAX, true)?.1, 16 * 4096);
        Ok(())
    }

    #[test]
    fn the_largest_that_fits_is_found() {
        for limit in [
            0,
            4095,
            4096,
            4097,
            9_999,
            10_016,
            131_071,
            131_072,
            1 << 30,
        ] {
            let found = largest(4096, 131_072, |n| n <= limit);
            match limit {
                0..4096 => assert_eq!(found, None),
                131_072.. => assert_eq!(found, Some(131_072)),
                _ => {
                    let found = found.expect("some");
                    assert!((4096..=limit).contains(&found) && found.is_multiple_of(32));
                    assert!(limit - found < 2 * KV_BLOCK, "{found} of {limit}");
                }
            }
        }
        assert_eq!(largest(100, 100, |_| true), Some(100));
    }
}
