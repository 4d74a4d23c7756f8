//! Device memory, told before any of it is taken, and the room that there is.

use super::{Device, check_shape, weights::device_bytes};
use crate::{
    backend::{KV_BLOCK, Limits, Room, kv_block_bytes, snapshot_bytes, target::LEAST_CONTEXT},
    hub::human,
    weights::Model,
};
use anyhow::{Result, bail};

/// Left free of the GPU's memory: staging of weights, graphs, and what the driver takes for itself.
const RESERVE: u64 = 512 << 20;

/// What takes device memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Weights in tiles, and what is computed from them.
    pub weights: u64,
    /// Keys and values of the full-attention layers.
    pub blocks: u64,
    /// Sliding windows of the slots, and snapshots of them.
    pub windows: u64,
    /// Everything between two layers, and the logits.
    pub work: u64,
}

impl Plan {
    /// What `model` needs with room for `limits`.
    pub fn new(model: &Model, limits: &Limits) -> Plan {
        let config = &model.config;
        let places = limits.slots as u64 + limits.snapshots as u64;
        Plan {
            weights: device_bytes(model),
            blocks: (limits.kv_blocks as u64).saturating_mul(kv_block_bytes(config)),
            windows: places.saturating_mul(snapshot_bytes(config)),
            work: super::work_bytes(config, limits),
        }
    }

    /// All of it.
    pub fn bytes(&self) -> u64 {
        [self.weights, self.blocks, self.windows, self.work]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// Whether it fits into `free` bytes, beside what is left free.
    pub fn fits(&self, free: u64) -> bool {
        self.bytes().saturating_add(RESERVE) <= free
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ({} weights, {} KV cache, {} sliding windows, {} work)",
            human(self.bytes()),
            human(self.weights),
            human(self.blocks),
            human(self.windows),
            human(self.work)
        )
    }
}

/// The room on `device`, as [`Target::room`](crate::backend::Target::room) promises.
pub fn room(
    device: &Device,
    model: &Model,
    asked: Option<usize>,
    spare: bool,
    limits: &dyn Fn(usize) -> Limits,
) -> Result<Room> {
    check_shape(&model.config)?;
    let (free, _) = device.memory()?;
    let fits = |limits: &Limits| Plan::new(model, limits).fits(free);
    let most = asked.unwrap_or(model.config.context);
    let context = largest(LEAST_CONTEXT.min(most), most, |n| fits(&limits(n)));
    let (context, bounded) = match context {
        Some(context) if asked.is_none() => (context, context < most),
        Some(context) if context == most => (context, false),
        fitting => bail!(does_not_fit(device, model, most, free, fitting, limits)),
    };
    let mut limits = limits(context);
    if spare {
        let each = context.div_ceil(KV_BLOCK);
        let useful = each.saturating_mul(limits.slots).max(limits.kv_blocks);
        let with = |kv_blocks| Limits {
            kv_blocks,
            ..limits
        };
        let blocks = largest(limits.kv_blocks, useful, |n| fits(&with(n)));
        limits.kv_blocks = blocks.unwrap_or(limits.kv_blocks);
    }
    Ok(Room {
        context,
        limits,
        bounded_by: bounded.then(|| format!("{} free on {}", human(free), device.name())),
        plan: Some(Plan::new(model, &limits).to_string()),
    })
}

/// Says what is missing, and which flag would make room.
fn does_not_fit(
    device: &Device,
    model: &Model,
    context: usize,
    free: u64,
    fitting: Option<usize>,
    limits: &dyn Fn(usize) -> Limits,
) -> String {
    let needed = Plan::new(model, &limits(context));
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
            match Plan::new(model, &one).fits(free) {
                true => "a smaller --max-seqs, or --cache-bytes of serve, would make room".into(),
                false => {
                    "the weights alone leave no room: stop what else uses this GPU, or run with \
                          --backend cpu"
                        .to_owned()
                }
            }
        }
    };
    format!(
        "{}: {needed} needed for {context} tokens of context, and {} to spare; {} are free. {way}",
        device.name(),
        human(RESERVE),
        human(free)
    )
}

/// The largest number from `least` to `most`, in steps of a block below `most`, that fits, if one does:
/// what fits a number fits smaller ones.
fn largest(least: usize, most: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
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
    Some(least.max(low / KV_BLOCK * KV_BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

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
