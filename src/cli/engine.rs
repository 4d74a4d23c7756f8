//! An engine for the flags of a command: a back end of this process, or MLX's.

use super::{
    Usage,
    compare::Verdicts,
    model::{Common, Loaded},
};
use crate::{
    backend::{self, Footprint, KV_BLOCK, KvRoom, Limits, Memory, Options, Wanted},
    checkpoint::Checkpoint,
    config::Config,
    engine::Engine,
    hub, machine,
    mlx::{self, MlxEngine, MlxOptions, MlxScorer},
    score::{BackendScorer, Scorer},
    tokenizer::Tokenizer,
};
use anyhow::{Result, bail};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// What Python, MLX and its activations take beside a model and its KV cache.
const WORKER: u64 = 512 << 20;

/// An engine that is ready, and what is used beside it.
pub struct Opened {
    /// Answers.
    pub engine: Arc<dyn Engine>,
    /// The same, if it is MLX's.
    pub mlx: Option<Arc<MlxEngine>>,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// From opening the files to an engine that is ready.
    pub load_time: Duration,
}

/// An MLX engine that is ready, and what is used beside it.
pub struct OpenedMlx {
    /// Answers.
    pub engine: MlxEngine,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// The model's files.
    pub checkpoint: Checkpoint,
    /// From opening the files to an engine that is ready.
    pub load_time: Duration,
}

impl Common {
    /// Whether MLX is to compute.
    pub fn is_mlx(&self) -> bool {
        self.backend == "mlx"
    }

    /// Everything up to an engine that is ready, with room for `slots` sequences at once that share one
    /// context's memory, and for `snapshots` of sliding windows.
    pub fn open_engine(&self, slots: usize, snapshots: usize) -> Result<Opened> {
        if let Some(opened) = self.open_mlx_if_wanted(|options| options.slots = slots)? {
            let engine = Arc::new(opened.engine);
            return Ok(Opened {
                mlx: Some(engine.clone()),
                engine,
                tokenizer: opened.tokenizer,
                load_time: opened.load_time,
            });
        }
        let loaded = self.open(slots, snapshots)?;
        let load_time = loaded.load_time;
        let (engine, tokenizer) = Loaded::into_engine(loaded)?;
        Ok(Opened {
            engine: Arc::new(engine),
            mlx: None,
            tokenizer,
            load_time,
        })
    }

    /// MLX's engine, where MLX was asked for, or `gossamer compare` found it best for this model and it can
    /// still be had.
    pub fn open_mlx_if_wanted(
        &self,
        change: impl FnOnce(&mut MlxOptions),
    ) -> Result<Option<OpenedMlx>> {
        if self.is_mlx() {
            return self.open_mlx(change).map(Some);
        }
        if self.backend != "auto" || self.model.is_none() {
            return Ok(None);
        }
        let checkpoint = self.open_checkpoint()?;
        let verdict = Verdicts::open().and_then(|verdicts| verdicts.get(&checkpoint).cloned());
        if verdict.is_none_or(|verdict| verdict.backend != "mlx") {
            return Ok(None);
        }
        match self.open_mlx(change) {
            Ok(opened) => {
                // Says that it was found best, and where.
                self.backend_for(&checkpoint);
                Ok(Some(opened))
            }
            Err(why) => {
                tell!("{why:#}");
                Ok(None)
            }
        }
    }

    /// MLX's engine, with what `change` makes of its options.
    pub fn open_mlx(&self, change: impl FnOnce(&mut MlxOptions)) -> Result<OpenedMlx> {
        let started = Instant::now();
        let checkpoint = self.open_folder()?;
        let python = mlx::find(self.mlx_python.as_deref())?;
        let config = checkpoint.config()?;
        let tokenizer = Arc::new(checkpoint.tokenizer()?);
        let mut options = MlxOptions::new(python, checkpoint.path().to_path_buf());
        options.rope_upstream = self.rope_compat;
        options.context = self.mlx_context(&checkpoint, &config)?;
        options.padding = tokenizer.padding_ids().to_vec();
        change(&mut options);
        let context = options.context;
        let spinner = super::model::loading(checkpoint.file_bytes());
        let engine = MlxEngine::start(&config, options);
        spinner.finish_and_clear();
        let engine = engine?;
        let load_time = started.elapsed();
        if self.verbose {
            tell!(
                "{}: {}, {}, loaded in {:.2} s; {}; context {context} tokens",
                config.name,
                checkpoint.path().display(),
                hub::human(checkpoint.file_bytes()),
                load_time.as_secs_f64(),
                engine.info().backend,
            );
        }
        Ok(OpenedMlx {
            engine,
            tokenizer,
            checkpoint,
            load_time,
        })
    }

    /// Scores up to `longest` tokens, `piece` of them at once.
    pub fn open_scorer(
        &self,
        checkpoint: &Checkpoint,
        longest: usize,
        piece: usize,
    ) -> Result<Box<dyn Scorer>> {
        if self.is_mlx() {
            is_folder(checkpoint)?;
            let python = mlx::find(self.mlx_python.as_deref())?;
            let config = checkpoint.config()?;
            let scorer = MlxScorer::start(&python, checkpoint.path(), self.rope_compat, &config)?;
            return Ok(Box::new(scorer));
        }
        let piece = piece.min(longest).max(1);
        let options = Options {
            backend: self.backend_for(checkpoint),
            threads: self.threads,
            limits: Limits {
                slots: 1,
                kv_blocks: longest.div_ceil(KV_BLOCK).max(1),
                batch_tokens: piece,
                snapshots: 0,
            },
        };
        let backend = backend::open(Arc::new(self.load(checkpoint)?), &options)?;
        Ok(Box::new(BackendScorer::new(backend, piece)))
    }

    /// The model's folder, for MLX.
    fn open_folder(&self) -> Result<Checkpoint> {
        if self.model.is_none() {
            let text = "--backend mlx needs a model in MLX's form: --model FOLDER, or pull one \
                        (`gossamer pull mlx-community/gpt-oss-20b-MXFP4-Q8`); the demo model inside this \
                        program is a GGUF file";
            return Err(Usage(text.into()).into());
        }
        let checkpoint = self.open_checkpoint()?;
        is_folder(&checkpoint)?;
        Ok(checkpoint)
    }

    /// Most tokens of a sequence: asked for, or what memory has room for beside the weights. A GPU with memory
    /// of its own bounds itself.
    fn mlx_context(&self, checkpoint: &Checkpoint, config: &Config) -> Result<usize> {
        let most = config.context;
        if let Some(asked) = self.ctx_size.filter(|&asked| asked > most) {
            let text = format!("--ctx-size {asked}: this model's context is {most} tokens");
            return Err(Usage(text).into());
        }
        let own_memory = Path::new("/proc/driver/nvidia/version").exists();
        let memory = Memory {
            name: "this machine's memory".into(),
            free: machine::available_memory().filter(|_| !own_memory),
        };
        let block = mlx::token_bytes(config).saturating_mul(KV_BLOCK as u64);
        let footprint = |limits: &Limits| Footprint {
            weights: checkpoint.file_bytes(),
            blocks: (limits.kv_blocks as u64).saturating_mul(block),
            work: WORKER,
            ..Footprint::default()
        };
        let wanted = Wanted {
            context: self.ctx_size,
            spare: false,
            limits: &|kv: KvRoom| Limits {
                slots: 1,
                kv_blocks: kv.context.div_ceil(KV_BLOCK),
                batch_tokens: 1,
                snapshots: 0,
            },
        };
        let room = backend::room(&memory, &footprint, most, &wanted)?;
        if let Some(memory) = &room.bounded_by {
            tell!(
                "context: {} of the model's {most} tokens, for {memory}",
                room.context
            );
        }
        Ok(room.context)
    }
}

fn is_folder(checkpoint: &Checkpoint) -> Result<()> {
    if checkpoint.path().is_dir() {
        return Ok(());
    }
    bail!(
        "{}: a GGUF file; --backend mlx runs a folder in MLX's form (config.json and *.safetensors), such as \
         `gossamer pull mlx-community/gpt-oss-20b-MXFP4-Q8` fetches",
        checkpoint.path().display()
    )
}
