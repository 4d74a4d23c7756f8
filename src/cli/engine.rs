//! An engine for the flags of a command: a back end of this process, or MLX's.

use super::{
    Usage,
    model::{Common, Loaded},
};
use crate::{
    backend::{self, KV_BLOCK, Limits, Memory, Options, Room},
    checkpoint::Checkpoint,
    config::Config,
    engine::Engine,
    hub,
    mlx::{self, MlxEngine, MlxOptions, MlxScorer, Needs, Space},
    safetensors::Folder,
    score::{BackendScorer, Scorer},
    tokenizer::Tokenizer,
};
use anyhow::{Result, bail};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes of beginnings that MLX keeps where nobody says.
pub const PREFIXES: u64 = 1 << 30;

/// An engine that is ready, and what is used beside it.
pub struct Opened {
    /// Answers.
    pub engine: Arc<dyn Engine>,
    /// The same, if it is MLX's.
    pub mlx: Option<Arc<MlxEngine>>,
    /// What was taken of a GPU's memory, if one computes for this process.
    pub device_bytes: Option<u64>,
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
    /// What was planned for it.
    pub room: Room,
    /// Bytes of keys and values: of a token in all layers with full attention, and of a sequence's sliding windows.
    pub kv_bytes: (u64, u64),
    /// Tokens of a prompt that run at once: alone, and beside others that decode.
    pub pieces: (usize, usize),
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
        let space = Space {
            slots,
            // Who comes once leaves nothing to go on from.
            cache_bytes: if snapshots > 0 { PREFIXES } else { 0 },
        };
        if let Some(opened) = self.open_mlx_if_wanted(space, |_| {})? {
            let engine = Arc::new(opened.engine);
            return Ok(Opened {
                mlx: Some(engine.clone()),
                device_bytes: None,
                engine,
                tokenizer: opened.tokenizer,
                load_time: opened.load_time,
            });
        }
        let loaded = self.open(slots, snapshots)?;
        let (load_time, device_bytes) = (loaded.load_time, loaded.device_bytes);
        let (engine, tokenizer) = Loaded::into_engine(loaded)?;
        Ok(Opened {
            engine: Arc::new(engine),
            mlx: None,
            device_bytes,
            tokenizer,
            load_time,
        })
    }

    /// MLX's engine, where MLX was asked for, or `gossamer compare` found it best for this model and it can
    /// still be had.
    pub fn open_mlx_if_wanted(
        &self,
        space: Space,
        change: impl FnOnce(&mut MlxOptions),
    ) -> Result<Option<OpenedMlx>> {
        if self.is_mlx() {
            return self.open_mlx(space, change).map(Some);
        }
        // The demo model inside this program is nothing for MLX, and verdicts are for `auto`.
        if self.backend != "auto" || self.model.is_none() {
            return Ok(None);
        }
        let checkpoint = self.open_checkpoint()?;
        Ok(self.if_mlx_is_best(&checkpoint, || self.open_mlx(space, change)))
    }

    /// What `open` makes with MLX, where `gossamer compare` found it best for this model; one line says so, or why
    /// it can't be had.
    fn if_mlx_is_best<T>(
        &self,
        checkpoint: &Checkpoint,
        open: impl FnOnce() -> Result<T>,
    ) -> Option<T> {
        let stored = self.stored(checkpoint).filter(|s| s.is_best("mlx"))?;
        match open() {
            Ok(opened) => {
                if let Some(advice) = stored.advice() {
                    tell!("{advice}");
                }
                Some(opened)
            }
            Err(why) => {
                tell!("not with MLX, which `gossamer compare` found best for this model: {why:#}");
                None
            }
        }
    }

    /// Whether MLX is to compute for this model: it was asked for, or `gossamer compare` found it best.
    pub fn prefers_mlx(&self, checkpoint: &Checkpoint) -> bool {
        let stored = self.stored(checkpoint);
        self.is_mlx() || stored.is_some_and(|stored| stored.is_best("mlx"))
    }

    /// MLX's engine, with room for `space` as far as memory goes, and with what `change` makes of its options.
    pub fn open_mlx(
        &self,
        space: Space,
        change: impl FnOnce(&mut MlxOptions),
    ) -> Result<OpenedMlx> {
        let started = Instant::now();
        let checkpoint = self.open_folder()?;
        let config = checkpoint.config()?;
        let (python, needs, room) = self.plan_mlx(&checkpoint, &config, space)?;
        let tokenizer = Arc::new(checkpoint.tokenizer()?);
        let mut options = MlxOptions::new(python, checkpoint.path().to_path_buf());
        options.rope_upstream = self.rope_compat;
        options.padding = tokenizer.padding_ids().to_vec();
        let context = room.context;
        if let Some(memory) = &room.bounded_by {
            tell!(
                "context: {context} of the model's {} tokens, for {memory}",
                config.context
            );
        }
        options.context = context;
        options.kv_tokens = room.kv_tokens();
        (options.slots, options.cache_bytes) = (space.slots, space.cache_bytes);
        options.memory = room.footprint.bytes() - room.footprint.process;
        options.pool_bytes = needs.pool_bytes();
        let kv_bytes = (needs.token_bytes(), needs.window_bytes());
        let pieces = needs.pieces();
        change(&mut options);
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
            room,
            kv_bytes,
            pieces,
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
        let mlx = || -> Result<Box<dyn Scorer>> {
            folder(checkpoint)?;
            let python = mlx::find(self.mlx_python.as_deref())?;
            let config = checkpoint.config()?;
            let scorer = MlxScorer::start(&python, checkpoint.path(), self.rope_compat, &config)?;
            Ok(Box::new(scorer))
        };
        if self.is_mlx() {
            return mlx();
        }
        if let Some(scorer) = self.if_mlx_is_best(checkpoint, mlx) {
            return Ok(scorer);
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
        folder(&checkpoint)?;
        Ok(checkpoint)
    }

    /// The Python that MLX runs in, what a model takes there, and the room there is.
    ///
    /// # Errors
    /// Where MLX can't be had, or the model doesn't fit.
    pub fn plan_mlx<'a>(
        &self,
        checkpoint: &'a Checkpoint,
        config: &'a Config,
        space: Space,
    ) -> Result<(PathBuf, Needs<'a>, Room)> {
        let python = mlx::find(self.mlx_python.as_deref())?;
        let needs = Needs::new(folder(checkpoint)?, config, mlx::device(&python)?);
        let room = self.mlx_room(&needs, &needs.memory(), space)?;
        Ok((python, needs, room))
    }

    /// The room in `memory` for what a model takes with MLX.
    pub fn mlx_room(&self, needs: &Needs, memory: &Memory, space: Space) -> Result<Room> {
        let most = needs.config().context;
        if let Some(asked) = self.ctx_size.filter(|&asked| asked > most) {
            let text = format!("--ctx-size {asked}: this model's context is {most} tokens");
            return Err(Usage(text).into());
        }
        needs.room(memory, self.ctx_size, space)
    }
}

/// The folder that MLX can run.
pub fn folder(checkpoint: &Checkpoint) -> Result<&Folder> {
    if let Checkpoint::Folder(folder) = checkpoint {
        return Ok(folder);
    }
    bail!(
        "{}: a GGUF file; --backend mlx runs a folder in MLX's form (config.json and *.safetensors), such as \
         `gossamer pull mlx-community/gpt-oss-20b-MXFP4-Q8` fetches",
        checkpoint.path().display()
    )
}
