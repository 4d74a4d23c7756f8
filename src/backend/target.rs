//! Which back end a name means, and the room it has: asked before any memory is taken.

use super::{Backend, KV_BLOCK, Limits, cpu, kv_block_bytes, reference, snapshot_bytes};
use crate::{config::Config, hub::human, machine, weights::Model};
use anyhow::{Result, bail};
use indicatif::ProgressBar;
use std::sync::Arc;

/// The least context that is made room for when memory is short.
pub(super) const LEAST_CONTEXT: usize = 4096;
/// Left free beside weights and KV cache in the machine's memory.
const RESERVE: u64 = 512 << 20;

/// What computes: a back end that can be had here, not yet opened.
pub enum Target {
    /// The processor, with the instruction set that was asked for.
    Cpu(Option<String>),
    /// The scalar reference.
    Reference,
    /// A GPU, by the CUDA driver.
    #[cfg(feature = "cuda")]
    Cuda(Arc<super::cuda::Device>),
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
    /// What a GPU's memory will hold.
    pub plan: Option<String>,
}

/// Tokens of KV cache that may be made room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvRoom {
    /// Most tokens of one sequence.
    pub context: usize,
    /// Most of all sequences together, as far as memory goes: `context` or more.
    pub tokens: usize,
}

impl KvRoom {
    /// What fits into `free` bytes: those left beside the file's pages, which are mapped and so count
    /// as available, but are needed.
    fn within(free: u64, bytes_per_token: u64, model_context: usize) -> KvRoom {
        let fits = free.saturating_sub(RESERVE) / bytes_per_token;
        let fits = usize::try_from(fits).unwrap_or(usize::MAX) / KV_BLOCK * KV_BLOCK;
        let context = model_context.min(fits.max(LEAST_CONTEXT));
        let tokens = fits.max(context);
        KvRoom { context, tokens }
    }
}

impl Target {
    /// The back end named `name`: `auto`, `cpu`, `cpu:ISA`, `reference`, `cuda` or `cuda:N` (the GPU of
    /// that number). `auto` is a GPU where there is one that this build can use, else the processor.
    pub fn of(name: &str) -> Result<Target> {
        let (kind, part) = match name.split_once(':') {
            Some((kind, part)) => (kind, Some(part)),
            None => (name, None),
        };
        match (kind, part) {
            ("auto", None) => Ok(Target::auto()),
            ("cpu", isa) => Ok(Target::Cpu(isa.map(str::to_owned))),
            ("reference", None) => Ok(Target::Reference),
            ("cuda", part) => Target::cuda(part),
            _ => bail!(
                "no back end `{name}`; there are auto, cpu, reference{}, cpu:{}",
                if cfg!(feature = "cuda") { ", cuda" } else { "" },
                cpu::isas().join(", cpu:")
            ),
        }
    }

    #[cfg(feature = "cuda")]
    fn auto() -> Target {
        if !super::cuda::is_there() {
            return Target::Cpu(None);
        }
        match super::cuda::Device::open() {
            Ok(device) => Target::Cuda(device),
            Err(why) => {
                tell!("{why:#}; running on the processor");
                Target::Cpu(None)
            }
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn auto() -> Target {
        Target::Cpu(None)
    }

    #[cfg(feature = "cuda")]
    fn cuda(number: Option<&str>) -> Result<Target> {
        let number = match number.map(str::parse) {
            None => 0,
            Some(Ok(number)) => number,
            Some(Err(_)) => bail!("--backend cuda:N: expected the number of a GPU, from 0 on"),
        };
        super::cuda::Device::open_nth(number).map(Target::Cuda)
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_number: Option<&str>) -> Result<Target> {
        bail!(
            "this build has no CUDA back end: build it with `cargo build --release --features cuda` \
             (README, \"On an NVIDIA GPU\"), or run with --backend cpu"
        )
    }

    /// Rows of one batch that it runs well with.
    pub fn batch_tokens(&self) -> usize {
        match self {
            Target::Cpu(_) | Target::Reference => 512,
            #[cfg(feature = "cuda")]
            Target::Cuda(_) => 2048,
        }
    }

    /// Whether it is a GPU, with memory of its own.
    pub fn is_gpu(&self) -> bool {
        !matches!(self, Target::Cpu(_) | Target::Reference)
    }

    /// The room for sequences of `asked` tokens, or as many as fit and the model was made for. `limits`
    /// says what so many tokens need at least; with `spare`, memory that is known to be free goes to
    /// more KV blocks, as long as the slots could fill them. An error where `asked` doesn't fit.
    pub fn room(
        &self,
        model: &Model,
        file_bytes: u64,
        asked: Option<usize>,
        spare: bool,
        limits: &dyn Fn(KvRoom) -> Limits,
    ) -> Result<Room> {
        match self {
            #[cfg(feature = "cuda")]
            Target::Cuda(device) => {
                // It is looked at as a whole whether the limits fit.
                let tokens = usize::MAX;
                let limits = |context| limits(KvRoom { context, tokens });
                super::cuda::plan::room(device, model, asked, spare, &limits)
            }
            Target::Cpu(_) | Target::Reference => {
                let _ = spare; // Pages of the machine's memory that are never written cost nothing.
                Ok(self.on_cpu(&model.config, file_bytes, asked, limits))
            }
        }
    }

    fn on_cpu(
        &self,
        config: &Config,
        file_bytes: u64,
        asked: Option<usize>,
        limits: &dyn Fn(KvRoom) -> Limits,
    ) -> Room {
        // Slots and snapshots don't depend on the context.
        let least = LEAST_CONTEXT.min(config.context);
        let fixed = limits(KvRoom {
            context: least,
            tokens: least,
        });
        let places = (fixed.slots as u64).saturating_add(fixed.snapshots as u64);
        let windows = places.saturating_mul(snapshot_bytes(config));
        // The reference keeps f32.
        let elements = if matches!(self, Target::Reference) {
            2
        } else {
            1
        };
        let per_token = (elements * kv_block_bytes(config) / KV_BLOCK as u64).max(1);
        let available = machine::available_memory();
        let beside = file_bytes.saturating_add(windows);
        let free = available.map_or(u64::MAX, |available| available.saturating_sub(beside));
        let fits = KvRoom::within(free, per_token, config.context);
        let room = match asked {
            Some(context) => KvRoom {
                context,
                tokens: fits.tokens.max(context),
            },
            None => fits,
        };
        let bounded = asked.is_none() && room.context < config.context;
        Room {
            context: room.context,
            limits: limits(room),
            bounded_by: bounded.then(|| {
                format!(
                    "{} of free memory, of which the model takes {} and sliding windows and their \
                     snapshots {}",
                    human(available.unwrap_or(u64::MAX)),
                    human(file_bytes),
                    human(windows)
                )
            }),
            plan: None,
        }
    }

    /// Bytes free on the GPU, if it is one.
    pub fn free_memory(&self) -> Option<u64> {
        match self {
            Target::Cpu(_) | Target::Reference => None,
            #[cfg(feature = "cuda")]
            Target::Cuda(device) => device.memory().ok().map(|(free, _)| free),
        }
    }

    /// Opens the back end; `progress` counts bytes of weights that are moved, if any are.
    pub fn open(
        &self,
        model: Arc<Model>,
        threads: usize,
        limits: Limits,
        progress: &ProgressBar,
    ) -> Result<Box<dyn Backend>> {
        let _ = progress; // Only a GPU has weights moved to it.
        Ok(match self {
            Target::Cpu(isa) => Box::new(cpu::Cpu::new(model, limits, isa.as_deref(), threads)?),
            Target::Reference => Box::new(reference::Reference::new(model, limits)),
            #[cfg(feature = "cuda")]
            Target::Cuda(device) => super::cuda::open(device.clone(), model, limits, progress)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_is_bounded_by_memory() {
        // gpt-oss-20b: 24 KiB a token.
        const TOKEN: u64 = 24 << 10;
        let room = |free| KvRoom::within(free, TOKEN, 131_072);
        let bounded = |free| room(free).context;
        assert_eq!(bounded(u64::MAX), 131_072);
        assert_eq!(bounded(RESERVE + TOKEN * 131_072), 131_072);
        assert_eq!(bounded(RESERVE + TOKEN * 131_071), 131_040);
        assert_eq!(bounded(RESERVE + TOKEN * 10_000), 9_984);
        // Little or nothing left: a short context is still tried.
        assert_eq!(bounded(0), LEAST_CONTEXT);
        assert_eq!(KvRoom::within(0, TOKEN, 512).context, 512);
        // All that fits, and never less than one context.
        assert_eq!(room(RESERVE + TOKEN * 10_000).tokens, 9_984);
        assert_eq!(room(RESERVE + TOKEN * 200_000).tokens, 200_000);
        assert_eq!(room(0).tokens, LEAST_CONTEXT);
    }
}
