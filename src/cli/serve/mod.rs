//! `gossamer serve`: the OpenAI-compatible server.

mod flags;
mod layers;

pub use flags::Args;

use super::{
    Usage, interrupt,
    model::{BATCH_TOKENS, Common},
};
use crate::{
    backend::{KV_BLOCK, Limits, kv_block_bytes, snapshot_bytes},
    config::Config,
    engine::{EngineOptions, NativeEngine},
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
    let args = layers::read(std::env::args_os().skip(2).collect(), |name| {
        std::env::var(name).ok()
    })?;
    log_to_stderr(&args)?;
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
    let filter = EnvFilter::try_new(level);
    let filter = filter.map_err(|e| Usage(format!("--log-level {level}: {e}")))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
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

/// What an engine is given room for.
#[derive(Debug, Clone, Copy)]
struct Room {
    seqs: usize,
    waiting: usize,
    cache_bytes: u64,
    prefix_cache: bool,
    must_be_deterministic: bool,
}

impl Room {
    fn of(args: &Args) -> Room {
        Room {
            seqs: args.max_seqs,
            waiting: args.max_waiting,
            cache_bytes: args.cache_bytes,
            prefix_cache: !args.no_prefix_cache,
            must_be_deterministic: args.deterministic,
        }
    }

    fn limits(&self, config: &Config, context: usize, batch_tokens: usize) -> Limits {
        let snapshots = match self.prefix_cache {
            true => self.cache_bytes / snapshot_bytes(config).max(1),
            false => 0,
        };
        let tokens = context.max(TOKENS_EACH.min(context).saturating_mul(self.seqs));
        Limits {
            slots: self.seqs,
            kv_blocks: tokens.div_ceil(KV_BLOCK),
            batch_tokens,
            snapshots: snapshots.min(MOST_SNAPSHOTS) as usize,
        }
    }
}

/// The model that `common` means, known by its header.
fn source(common: Common, name: Option<String>, room: Room) -> Result<Source> {
    let gguf = common.open_gguf()?;
    let (facts, config) = Facts::read(&gguf)?;
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
    let context = common
        .ctx_size
        .unwrap_or(config.context)
        .min(config.context);
    let limits = room.limits(&config, context, BATCH_TOKENS);
    let cache = limits.kv_blocks as u64 * kv_block_bytes(&config);
    Ok(Source {
        names,
        aliases,
        context,
        bytes: facts
            .file_bytes
            .saturating_add(cache)
            .saturating_add(room.cache_bytes),
        facts: Facts {
            is_demo: common.model.is_none(),
            ..facts
        },
        load: Arc::new(move || open(&common, &config, room)),
    })
}

fn open(common: &Common, config: &Config, room: Room) -> Result<Running> {
    let loaded = common.open_with(true, |context, batch| room.limits(config, context, batch))?;
    if room.must_be_deterministic && !loaded.backend.batch_invariant() {
        bail!(
            "--deterministic: the back end {} gives other bits to a request when others run beside \
             it; the CPU does not (--backend cpu)",
            loaded.backend.describe()
        );
    }
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

/// The model inside this program.
///
/// # Errors
/// When it can't be read.
pub fn demo_source() -> Result<Source> {
    let room = Room {
        seqs: 16,
        waiting: 256,
        cache_bytes: 64 << 20,
        prefix_cache: true,
        must_be_deterministic: true,
    };
    source(Common::default(), None, room)
}
