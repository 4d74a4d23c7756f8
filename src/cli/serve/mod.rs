//! `gossamer serve`: the OpenAI-compatible server.

mod flags;
mod layers;

pub use flags::Args;
pub(super) use flags::{bytes, some_time};

use super::{Usage, interrupt, model::Common};
use crate::{
    backend::{self, Footprint, KV_BLOCK, KvRoom, Limits, snapshot_bytes},
    checkpoint::Checkpoint,
    config::Config,
    engine::{EngineOptions, NativeEngine},
    mlx, notice,
    server::{
        self, App, Listener,
        models::{Facts, Running, Source},
        state::Phase,
    },
};
use anyhow::{Context, Result, bail};
use flags::LogFormat;
use std::{
    io::{self, IsTerminal as _},
    path::Path,
    sync::Arc,
};
use tracing_subscriber::EnvFilter;

/// Most snapshots that are worth keeping track of.
const MOST_SNAPSHOTS: u64 = 4096;
/// Tokens of KV cache for each request that may run, where the context is shorter than all of theirs.
const TOKENS_EACH: usize = 4096;

/// Serves until a signal ends it.
pub fn run(given: Args) -> Result<()> {
    // What clap read so far knows neither variables nor the file.
    drop(given);
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .collect();
    let (args, unknown) = layers::read(std::env::args_os().skip(2).collect(), &variables)?;
    log_to_stderr(&args)?;
    for name in unknown {
        tracing::warn!("{name} is no flag's variable: it changes nothing");
    }
    let settings = args.settings()?;
    let keys = !settings.api_keys.is_empty();
    let addresses = args.addresses(keys)?;
    let tls = args.tls()?;
    let app = App::new(settings, sources(&args)?)?;
    // From here on clients can connect; until the model is there they hear 503.
    let listener = Listener::bind(&addresses, tls)?;
    let base = format!("{}://{}", listener.scheme(), listener.address()?);
    tell!("listening on {base}");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4)))
        .enable_all()
        .build()
        .context("starting the server's threads")?;
    let served = runtime.block_on(async {
        let loading = load(app.clone(), args.preload, base);
        tokio::select! {
            served = server::serve(app.clone(), listener, ended()) => served,
            Err(error) = loading => Err(error),
        }
    });
    app.models.close();
    // A model that is still being loaded is nobody's any more.
    runtime.shutdown_background();
    served
}

/// Loads the default model, or all; then the server is ready. Ends only by an error.
async fn load(app: Arc<App>, all: bool, base: String) -> Result<std::convert::Infallible> {
    app.life.enter(Phase::Loading);
    let models = app.models.clone();
    let loading = tokio::task::spawn_blocking(move || match all {
        true => models.load_all(),
        false => models.load_default(),
    });
    loading.await.context("loading the model")??;
    app.life.enter(Phase::Ready);
    let key = match app.settings.api_keys.is_empty() {
        true => "",
        false => " -H \"Authorization: Bearer $KEY\"",
    };
    tell!(
        "ready; base URL {base}/v1. Try:\n  curl {base}/v1/chat/completions{key} -H \"Content-Type: \
         application/json\" -d '{{\"messages\":[{{\"role\":\"user\",\"content\":\"What is 17 + 25?\"}}]}}'"
    );
    std::future::pending().await
}

/// Until a signal asks for the end; a second one ends the program.
async fn ended() {
    signal().await;
    tell!("stopping: answers under way are completed (again quits)");
    tokio::spawn(async {
        signal().await;
        std::process::exit(interrupt::EXIT_CODE);
    });
}

#[cfg(unix)]
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        // Without handlers the system ends the program, as it does any other.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[cfg(not(unix))]
async fn signal() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}

fn log_to_stderr(args: &Args) -> Result<()> {
    let level = match args.common.verbose {
        true => "debug",
        false => args.log_level.as_str(),
    };
    let filter = log_filter(level).map_err(|e| Usage(format!("--log-level {level}: {e}")))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => {
            log.json().flatten_event(true).with_span_list(false).init();
            notice::to_log();
        }
    }
    Ok(())
}

/// `info,gossamer::request=warn`. A bare word has to be a level: as the name of a module, which it could
/// be too, it would silence everything else.
fn log_filter(text: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    for word in text.split(',').map(str::trim) {
        let is_level = LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
        if !is_level && !word.contains('=') {
            return Err(format!(
                "expected error, warn, info, debug or trace, or MODULE=LEVEL, found '{word}'"
            ));
        }
    }
    EnvFilter::try_new(text).map_err(|error| error.to_string())
}

/// The models to serve, the default one first.
fn sources(args: &Args) -> Result<Vec<Source>> {
    let room = Room::of(args);
    let mut sources = Vec::new();
    if args.common.model.is_some() || args.models.is_empty() {
        sources.push(source(args.common.clone(), None, room)?);
    }
    for (name, file) in &args.models {
        let common = Common {
            model: Some(file.clone()),
            ..args.common.clone()
        };
        let named = source(common, Some(name.clone()), room);
        sources.push(named.with_context(|| format!("--models {name}={file}"))?);
    }
    if let [default, ..] = sources.as_mut_slice()
        && !args.served_model_name.is_empty()
    {
        // Its own names are still understood.
        let own = std::mem::replace(&mut default.names, args.served_model_name.clone());
        default.aliases.extend(own);
    }
    Ok(sources)
}

/// What sequences and their sliding windows are given room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    /// Sequences at once.
    pub seqs: usize,
    /// Memory for snapshots of sliding windows.
    pub cache_bytes: u64,
}

impl Space {
    /// Room for so many sequences, and for snapshots of sliding windows in so much memory.
    pub fn new(seqs: usize, cache_bytes: u64) -> Space {
        Space { seqs, cache_bytes }
    }

    fn snapshots(&self, config: &Config) -> u64 {
        (self.cache_bytes / snapshot_bytes(config).max(1)).min(MOST_SNAPSHOTS)
    }

    /// The same for MLX.
    pub fn of_mlx(&self) -> mlx::Space {
        mlx::Space {
            slots: self.seqs,
            cache_bytes: self.cache_bytes,
        }
    }

    /// The limits that fit into the room for KV cache, for batches of so many tokens.
    pub fn limits(&self, config: &Config, room: KvRoom, batch_tokens: usize) -> Limits {
        let KvRoom { context, tokens } = room;
        let wanted = context.max(TOKENS_EACH.min(context).saturating_mul(self.seqs));
        Limits {
            slots: self.seqs,
            kv_blocks: wanted.min(tokens).div_ceil(KV_BLOCK),
            batch_tokens,
            snapshots: self.snapshots(config) as usize,
        }
    }
}

/// How an engine is run.
#[derive(Debug, Clone, Copy)]
struct Room {
    space: Space,
    waiting: usize,
    prefix_cache: bool,
    must_be_deterministic: bool,
}

impl Room {
    fn of(args: &Args) -> Room {
        let cache_bytes = match args.no_prefix_cache {
            true => 0,
            false => args.cache_bytes,
        };
        Room {
            space: Space::new(args.max_seqs, cache_bytes),
            waiting: args.max_waiting,
            prefix_cache: !args.no_prefix_cache,
            must_be_deterministic: args.deterministic,
        }
    }
}

/// The model that `common` means, known by its header.
fn source(common: Common, name: Option<String>, room: Room) -> Result<Source> {
    let checkpoint = common.open_checkpoint()?;
    let (facts, config) = Facts::read(&checkpoint)?;
    let mut names = Vec::new();
    names.extend(name);
    // As people know it, then as its file does.
    names.extend(facts.family.map(str::to_owned));
    let own = config.name.trim().to_ascii_lowercase();
    names.push(own.replace(char::is_whitespace, "-"));
    let mut aliases: Vec<String> = names.drain(1..).collect();
    // `--model NAME` of a pulled model.
    let asked = common
        .model
        .iter()
        .filter(|model| !Path::new(model).exists());
    aliases.extend(asked.cloned());
    let planned = planned(&common, &checkpoint, &config, room)?;
    Ok(Source {
        names,
        aliases,
        context: planned.context,
        bytes: planned.footprint.bytes(),
        facts: Facts {
            is_demo: common.model.is_none(),
            ..facts
        },
        load: Arc::new(move || open(&common, &config, room)),
    })
}

/// The room that a model gets, as `gossamer plan` finds it.
fn planned(
    common: &Common,
    checkpoint: &Checkpoint,
    config: &Config,
    room: Room,
) -> Result<backend::Room> {
    if common.prefers_mlx(checkpoint) {
        match common.plan_mlx(checkpoint, config, room.space.of_mlx()) {
            // What was found best is not to be had any more.
            Err(_) if !common.is_mlx() => {}
            other => return other.map(|(.., room)| room),
        }
    }
    let backend = common.native_backend(common.stored(checkpoint));
    let check = checkpoint.check()?;
    let limits = |kv: KvRoom, batch: usize| room.space.limits(config, kv, batch);
    let (_, room) = common.planned(&backend, &check, true, &limits)?;
    Ok(room)
}

fn open(common: &Common, config: &Config, room: Room) -> Result<Running> {
    let opened = common.open_mlx_if_wanted(room.space.of_mlx(), |options| {
        options.max_waiting = room.waiting;
    })?;
    if let Some(opened) = opened {
        if room.must_be_deterministic {
            bail!(
                "--deterministic: MLX gives other bits to a request when others run beside it; the CPU does \
                 not (--backend cpu)"
            );
        }
        tell_memory(
            &opened.room.footprint,
            opened.room.kv_tokens(),
            opened.room.context,
        );
        return Ok(Running {
            engine: Arc::new(opened.engine),
            tokenizer: opened.tokenizer,
        });
    }
    let loaded = common.open_with(true, |kv, batch| room.space.limits(config, kv, batch))?;
    if room.must_be_deterministic && !loaded.backend.batch_invariant() {
        bail!(
            "--deterministic: the back end {} gives other bits to a request when others run beside \
             it; the CPU does not (--backend cpu)",
            loaded.backend.describe()
        );
    }
    let kv_tokens = loaded.backend.limits().kv_blocks * KV_BLOCK;
    tell_memory(&loaded.footprint, kv_tokens, loaded.context);
    let options = EngineOptions {
        context: loaded.context,
        padding: loaded.tokenizer.padding_ids().to_vec(),
        marker: loaded.tokenizer.special("<|start|>"),
        max_waiting: room.waiting,
        prefix_cache: room.prefix_cache,
    };
    let engine = NativeEngine::start(loaded.backend, options)?;
    Ok(Running {
        engine: Arc::new(engine),
        tokenizer: loaded.tokenizer,
    })
}

fn tell_memory(footprint: &Footprint, kv_tokens: usize, context: usize) {
    tracing::info!(
        "memory, once all of it is used: {footprint}; {kv_tokens} tokens of KV cache, up to {context} a request"
    );
}

/// The model inside this program.
///
/// # Errors
/// When it can't be read.
pub fn demo_source() -> Result<Source> {
    let room = Room {
        space: Space::new(16, 64 << 20),
        waiting: 256,
        prefix_cache: true,
        must_be_deterministic: true,
    };
    // The same bits on every machine.
    let common = Common {
        backend: "cpu".into(),
        ..Common::default()
    };
    source(common, None, room)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::BATCH_TOKENS;

    #[test]
    fn what_bounds_the_context_bounds_all_sequences() -> Result<()> {
        let (_, config) = Facts::read(&Common::default().open_checkpoint()?)?;
        let room = Space::new;
        let tokens = |seqs, context, tokens| {
            let limits = room(seqs, 0).limits(&config, KvRoom { context, tokens }, BATCH_TOKENS);
            limits.kv_blocks * KV_BLOCK
        };
        assert_eq!(tokens(16, 4096, 4096), 4096);
        assert_eq!(tokens(16, 20_000, 20_000), 20_000);
        assert_eq!(tokens(16, 4096, 30_016), 30_016);
        assert_eq!(tokens(16, 131_072, usize::MAX), 131_072);
        assert_eq!(tokens(64, 131_072, usize::MAX), 64 * 4096);
        assert_eq!(tokens(64, 512, usize::MAX), 64 * 512);
        // Snapshots, whole ones.
        let one = snapshot_bytes(&config);
        assert_eq!(room(3, 5 * one + 1).snapshots(&config), 5);
        Ok(())
    }
}
