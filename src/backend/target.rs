//! Which back end a name means, what it would take of which memory, and how it is opened.

use super::{
    Backend, Limits, cpu, reference,
    room::{self, Footprint, Memory, Room, Wanted},
};
use crate::{
    machine,
    weights::{Check, Model},
};
use anyhow::{Result, bail};
use indicatif::ProgressBar;
use std::sync::Arc;

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

    /// The name of what `auto` means here, for a model that it can run.
    pub fn auto_name() -> &'static str {
        match Target::auto().is_gpu() {
            true => "cuda",
            false => "cpu",
        }
    }

    /// Names of the GPUs that this build can use.
    pub fn gpu_names() -> Vec<String> {
        #[cfg(feature = "cuda")]
        return super::cuda::names();
        #[cfg(not(feature = "cuda"))]
        Vec::new()
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

    /// All that can be had here, by the names that [`Target::of`] reads, the best first; why a GPU can't be
    /// used is said on stderr.
    pub fn all() -> Vec<(String, Target)> {
        let mut all = Target::gpus();
        all.push(("cpu".to_owned(), Target::Cpu(None)));
        all
    }

    #[cfg(feature = "cuda")]
    fn gpus() -> Vec<(String, Target)> {
        let mut gpus = Vec::new();
        for number in 0.. {
            match super::cuda::Device::open_nth(number) {
                Ok(device) => gpus.push((format!("cuda:{number}"), Target::Cuda(device))),
                Err(why) => {
                    if number == 0 && super::cuda::is_there() {
                        tell!("{why:#}");
                    }
                    break;
                }
            }
        }
        gpus
    }

    #[cfg(not(feature = "cuda"))]
    fn gpus() -> Vec<(String, Target)> {
        Vec::new()
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

    /// The memory that it keeps a model in, and what is free of it now.
    pub fn memory(&self) -> Memory {
        match self {
            Target::Cpu(_) | Target::Reference => Memory {
                name: "this machine's memory".into(),
                free: machine::available_memory(),
            },
            #[cfg(feature = "cuda")]
            Target::Cuda(device) => Memory {
                name: device.name().into(),
                free: device.memory().ok().map(|(free, _)| free),
            },
        }
    }

    /// What the model takes with room for `limits`, on so many threads (0: one a processor).
    pub fn footprint(&self, check: &Check, threads: usize, limits: &Limits) -> Footprint {
        match self {
            Target::Cpu(_) => cpu::footprint(check, threads, limits),
            Target::Reference => reference::footprint(check, limits),
            #[cfg(feature = "cuda")]
            Target::Cuda(_) => super::cuda::footprint(&check.model, limits),
        }
    }

    /// The room for what is wanted. An error, with what would fit, where it doesn't.
    pub fn room(
        &self,
        memory: &Memory,
        check: &Check,
        threads: usize,
        wanted: &Wanted,
    ) -> Result<Room> {
        let config = &check.model.config;
        #[cfg(feature = "cuda")]
        if let Target::Cuda(_) = self {
            super::cuda::check_shape(config)?;
        }
        let footprint = |limits: &Limits| self.footprint(check, threads, limits);
        room::room(memory, &footprint, config.context, wanted)
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
