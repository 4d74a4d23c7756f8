//! The flags that every command which runs a model shares, and how they become a model.

use super::{
    Usage,
    compare::{Stored, Verdicts},
};
use crate::{
    backend::{Backend, Footprint, KV_BLOCK, KvRoom, Limits, Memory, Room, Target, Wanted},
    checkpoint::Checkpoint,
    engine::{EngineOptions, NativeEngine},
    gguf::Gguf,
    hub,
    tokenizer::Tokenizer,
    weights::{Check, Model},
};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Prompt tokens that go through the model at once.
pub const BATCH_TOKENS: usize = 512;

/// Which model, how and with what room.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Model options")]
pub struct Common {
    /// A GGUF file (the first part of a split one), a folder of safetensors (MLX's, or OpenAI's release), or
    /// the name of a pulled model such as gpt-oss-20b. Without it: the small demo model inside this program
    #[arg(long, short = 'm', value_name = "FILE|NAME")]
    pub model: Option<String>,
    /// What computes: auto (what `gossamer compare` found best for this model here; else a GPU if this build and
    /// machine have one, else the processor), cuda, cuda:N
    /// (the GPU of that number), cpu, cpu:ISA (one instruction set, such as cpu:avx2) or reference
    /// (slow, exact, f32); mlx (a folder in MLX's form, by mlx-lm in a process of its own: `gossamer mlx setup`)
    #[arg(long, default_value = "auto")]
    pub backend: String,
    /// The Python that has mlx-lm, for --backend mlx. Default: GOSSAMER_MLX_PYTHON, else what `gossamer mlx setup`
    /// made
    #[arg(long, value_name = "FILE")]
    pub mlx_python: Option<PathBuf>,
    /// Worker threads; 0 means one for each processor (hardware thread) that the system allows
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = threads)]
    pub threads: usize,
    /// Tokens of context to make room for. Default: the model's own, bounded by free memory
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub ctx_size: Option<usize>,
    /// Format of the KV cache (the reference back end keeps f32)
    #[arg(long, value_enum, default_value_t = KvType::F16)]
    pub kv_type: KvType,
    /// Seed of random choices; the same seed gives the same tokens on any number of threads
    #[arg(long)]
    pub seed: Option<u64>,
    /// Round the YaRN range as llama.cpp and mlx-lm do; the released model does not
    #[arg(long)]
    pub rope_compat: bool,
    /// Say more on stderr: model, back end, memory, timing
    #[arg(long, short = 'v')]
    pub verbose: bool,
}

impl Default for Common {
    /// As without any flag.
    fn default() -> Common {
        Common {
            model: None,
            backend: "auto".into(),
            mlx_python: None,
            threads: 0,
            ctx_size: None,
            kv_type: KvType::F16,
            seed: None,
            rope_compat: false,
            verbose: false,
        }
    }
}

/// Formats of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvType {
    /// Half precision.
    F16,
}

/// A whole number from 1 to `MOST`.
pub fn up_to<const MOST: usize>(text: &str) -> Result<usize, String> {
    match positive(text)? {
        n if n <= MOST => Ok(n),
        _ => Err(format!("must be at most {MOST}")),
    }
}

/// A whole number of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("must be a whole number of at least 1".into()),
    }
}

/// A number of threads that a machine may have; 0 leaves it to the back end.
fn threads(text: &str) -> Result<usize, String> {
    const MOST: usize = 1024;
    match text.parse() {
        Ok(n) if n <= MOST => Ok(n),
        _ => Err(format!("must be a whole number up to {MOST}")),
    }
}

/// A model in memory, with what is needed to run it.
pub struct Loaded {
    /// Shape and weights.
    pub model: Arc<Model>,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// The back end, with room for [`Loaded::context`] tokens.
    pub backend: Box<dyn Backend>,
    /// Its files.
    pub checkpoint: Checkpoint,
    /// Size of its files.
    pub file_bytes: u64,
    /// Most tokens of a sequence.
    pub context: usize,
    /// What was planned for it.
    pub footprint: Footprint,
    /// What was taken of the GPU's memory, if one computes.
    pub device_bytes: Option<u64>,
    /// It is the model inside this program.
    pub is_demo: bool,
    /// From opening the file to a back end that is ready.
    pub load_time: Duration,
}

impl Loaded {
    /// Starts the engine, and keeps what is used beside it.
    pub fn into_engine(self) -> Result<(NativeEngine, Arc<Tokenizer>)> {
        let options = EngineOptions {
            context: self.context,
            padding: self.tokenizer.padding_ids().to_vec(),
            marker: self.tokenizer.special("<|start|>"),
            ..EngineOptions::default()
        };
        let engine = NativeEngine::start(self.backend, options)?;
        Ok((engine, self.tokenizer))
    }
}

impl Common {
    /// Opens the model's files.
    pub fn open_checkpoint(&self) -> Result<Checkpoint> {
        match &self.model {
            None => Ok(demo()?.into()),
            Some(name) => Checkpoint::open(&find(name)?),
        }
    }

    /// Loads shape and weights, with the RoPE variant that was asked for.
    pub fn load(&self, checkpoint: &Checkpoint) -> Result<Model> {
        let mut model = checkpoint.load()?;
        model.config.rope.rounded |= self.rope_compat;
        Ok(model)
    }

    /// Everything up to a back end that is ready, with room for `slots` sequences at once that share
    /// one context's blocks, and for `snapshots`. The demo model introduces itself on stderr.
    pub fn open(&self, slots: usize, snapshots: usize) -> Result<Loaded> {
        self.open_with(false, |KvRoom { context, .. }, batch_tokens| Limits {
            slots,
            kv_blocks: context.div_ceil(KV_BLOCK),
            batch_tokens: batch_tokens.min(context),
            snapshots,
        })
    }

    /// As [`Common::open`], with the limits that `limits` makes of the room for KV cache that memory has,
    /// for batches of about so many tokens; with `spare`, what a GPU has free goes to the KV cache.
    pub fn open_with(
        &self,
        spare: bool,
        limits: impl Fn(KvRoom, usize) -> Limits,
    ) -> Result<Loaded> {
        let started = Instant::now();
        let is_demo = self.model.is_none();
        let checkpoint = self.open_checkpoint()?;
        let file_bytes = checkpoint.file_bytes();
        if is_demo {
            tell!(
                "This is the small demo model. For gpt-oss-20b: `gossamer pull gpt-oss-20b`, then \
                 add `--model gpt-oss-20b`."
            );
        }
        let check = checkpoint.check()?;
        let name = self.backend_for(&checkpoint);
        let (target, room) = self.room(&name, &check, spare, &limits)?;
        let context = room.context;
        let spinner = loading(file_bytes);
        let (tokenizer, model) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| checkpoint.tokenizer());
            let model = self.load(&checkpoint);
            let tokenizer = tokenizer.join();
            (tokenizer, model)
        });
        let model = Arc::new(model?);
        let tokenizer = match tokenizer {
            Ok(tokenizer) => Arc::new(tokenizer?),
            Err(_) => bail!("building the tokenizer panicked"),
        };
        show_bytes(&spinner);
        let free = target.memory().free;
        let backend = target.open(model.clone(), self.threads, room.limits, &spinner)?;
        spinner.finish_and_clear();
        let device_bytes = free
            .filter(|_| target.is_gpu())
            .zip(target.memory().free)
            .map(|(then, now)| then.saturating_sub(now));
        if target.is_gpu() && (self.verbose || spare) {
            tell!(
                "GPU memory: {}; taken {}",
                room.footprint,
                hub::human(device_bytes.unwrap_or(0))
            );
        }
        let load_time = started.elapsed();
        if self.verbose {
            tell!(
                "{}: {}, {}, loaded in {:.2} s; {}; context {context} tokens",
                model.config.name,
                checkpoint.path().display(),
                hub::human(file_bytes),
                load_time.as_secs_f64(),
                backend.describe(),
            );
        }
        Ok(Loaded {
            model,
            tokenizer,
            backend,
            checkpoint,
            file_bytes,
            context,
            footprint: room.footprint,
            device_bytes,
            is_demo,
            load_time,
        })
    }

    /// The back end of this process to open: where it is left open, the one that `gossamer compare` found best for
    /// this model on this machine, if it did, which is said. (Whoever can run MLX has asked for it before.)
    pub fn backend_for(&self, checkpoint: &Checkpoint) -> String {
        let stored = self.stored(checkpoint).filter(|s| !s.is_best("mlx"));
        if let Some(advice) = stored.as_ref().and_then(Stored::advice) {
            tell!("{advice}");
        }
        self.native_backend(stored)
    }

    /// The same, when what is stored is known, and nothing is said.
    pub fn native_backend(&self, stored: Option<Stored>) -> String {
        let best = stored.and_then(|stored| stored.best);
        best.filter(|best| best.backend != "mlx")
            .map_or_else(|| self.backend.clone(), |best| best.backend)
    }

    /// What `gossamer compare` found about this model on this machine, where the back end is left open.
    pub fn stored(&self, checkpoint: &Checkpoint) -> Option<Stored> {
        if self.backend != "auto" || self.model.is_none() {
            return None;
        }
        Verdicts::open()?.get(checkpoint).cloned()
    }

    /// What computes, and the room there is, said on stderr where memory bounds it.
    fn room(
        &self,
        backend: &str,
        check: &Check,
        spare: bool,
        limits: &dyn Fn(KvRoom, usize) -> Limits,
    ) -> Result<(Target, Room)> {
        let (target, room) = self.planned(backend, check, spare, limits)?;
        if let Some(memory) = &room.bounded_by {
            tell!(
                "context: {} of the model's {} tokens, for {memory}",
                room.context,
                check.model.config.context
            );
        }
        Ok((target, room))
    }

    /// What computes, and the room there is. Where `auto` finds a GPU that can't run this model, the processor
    /// does.
    pub fn planned(
        &self,
        backend: &str,
        check: &Check,
        spare: bool,
        limits: &dyn Fn(KvRoom, usize) -> Limits,
    ) -> Result<(Target, Room)> {
        let mut target = match Target::of(backend) {
            // What was found best is not to be had any more.
            Err(why) if self.backend == "auto" => {
                tell!("{why:#}");
                Target::of("auto")?
            }
            other => other?,
        };
        let room = match self.room_on(&target, &target.memory(), check, spare, limits) {
            Err(why) if self.backend == "auto" && target.is_gpu() => {
                tell!("{why:#}; running on the processor");
                target = Target::Cpu(None);
                self.room_on(&target, &target.memory(), check, spare, limits)?
            }
            other => other?,
        };
        Ok((target, room))
    }

    /// The room for these limits in `memory`, if `target` keeps the model there.
    pub fn room_on(
        &self,
        target: &Target,
        memory: &Memory,
        check: &Check,
        spare: bool,
        limits: &dyn Fn(KvRoom, usize) -> Limits,
    ) -> Result<Room> {
        let most = check.model.config.context;
        if let Some(asked) = self.ctx_size.filter(|&asked| asked > most) {
            let text = format!("--ctx-size {asked}: this model's context is {most} tokens");
            return Err(Usage(text).into());
        }
        let batch_tokens = target.batch_tokens();
        let wanted = Wanted {
            context: self.ctx_size,
            spare: spare && target.is_gpu(),
            limits: &|room| limits(room, batch_tokens),
        };
        let room = target.room(memory, check, self.threads, &wanted);
        match check.cost.notes.as_slice() {
            [] => room,
            // What conversion takes may be why.
            notes => room.with_context(|| notes.join("; ")),
        }
    }
}

/// A file by its path, or a pulled model by its name.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    if let Some(path) = hub::find(name) {
        return Ok(path);
    }
    let is_path = name.to_ascii_lowercase().ends_with(".gguf") || path.is_absolute();
    if is_path || name.starts_with('.') {
        bail!("{name}: no such file");
    }
    bail!("{name}: neither a file nor a pulled model; `gossamer pull {name}` fetches it")
}

/// The model inside this program.
pub(super) fn demo() -> Result<Gguf> {
    const DEMO: &[u8] = include_bytes!("../../models/demo/demo.gguf");
    Ok(Gguf::from_bytes("demo.gguf (built in)", DEMO)?)
}

/// A sign of life while a model loads, on a terminal only.
pub(super) fn loading(file_bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let spinner = ProgressBar::new_spinner().with_style(style);
    spinner.set_message(format!("loading {}", hub::human(file_bytes)));
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// The same sign of life, with a bar once a back end says how many bytes it moves.
fn show_bytes(spinner: &ProgressBar) {
    let style = "{spinner} {msg} {wide_bar} {bytes}/{total_bytes} {elapsed}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        spinner.set_style(style);
    }
}
