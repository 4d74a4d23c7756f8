//! The models by name: which answer to what, loaded on demand, the least recently used out.
//!
//! A model is only taken out of memory when nobody uses it: requests hold the [`Served`] they were
//! given, and the [gate](super::gate) a lease until the last event. [`table`] decides who makes room
//! for whom; who waits for room is served in the order of arrival.

mod endpoints;
mod facts;
mod table;

pub use endpoints::routes;
pub use facts::{FAMILIES, Facts, family};

use super::{
    App,
    error::ApiError,
    gate::Gate,
    health::{stopping, unavailable},
    metrics::Metrics,
    settings::Settings,
    state::Life,
};
use crate::{
    engine::{Engine, Stats},
    grammar::Grammars,
    tokenizer::Tokenizer,
};
use anyhow::{Context, Result, ensure};
use std::{
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use table::{Load, State, Table};
use tokio::sync::Notify;

pub(super) use table::{Lease, Users};

/// A model that runs.
pub struct Running {
    /// What answers.
    pub engine: Arc<dyn Engine>,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
}

impl Source {
    /// What it answers to besides `id`.
    fn other_names(&self, id: &str) -> Vec<String> {
        let own = self.names.iter().chain(&self.aliases).cloned();
        let family = self.facts.family.map(|family| {
            let short = family.replacen("gpt-oss-", "gpt-oss:", 1);
            [family.to_owned(), format!("openai/{family}"), short]
        });
        let mut names: Vec<String> = Vec::new();
        for name in own.chain(family.into_iter().flatten()) {
            if name != id && !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

/// What loads a model.
pub type LoadFn = Arc<dyn Fn() -> Result<Running> + Send + Sync>;

/// A model that can be loaded.
pub struct Source {
    /// Names it answers to; the first is its true name, `model` in every answer.
    pub names: Vec<String>,
    /// Names that are understood but not listed.
    pub aliases: Vec<String>,
    /// What its header says.
    pub facts: Facts,
    /// Tokens of a sequence that it will be given room for, as far as known before it is loaded.
    pub context: usize,
    /// Bytes that it takes when it runs.
    pub bytes: u64,
    /// Loads it; slow, so it runs on a thread of its own.
    pub load: LoadFn,
}

impl Source {
    /// A model that runs already.
    pub fn loaded(name: &str, running: Running) -> Source {
        let facts = Facts {
            context: running.engine.info().context,
            family: FAMILIES.into_iter().find(|&family| family == name),
            ..Facts::default()
        };
        let Running { engine, tokenizer } = running;
        let load = move || {
            Ok(Running {
                engine: engine.clone(),
                tokenizer: tokenizer.clone(),
            })
        };
        Source {
            names: vec![name.to_owned()],
            aliases: Vec::new(),
            context: facts.context,
            facts,
            bytes: 0,
            load: Arc::new(load),
        }
    }
}

/// A model in memory.
pub struct Loaded {
    /// Its true name, `model` in every answer.
    pub name: String,
    /// What answers. It counts, and ends requests when the server stops: see [`super::gate`].
    pub engine: Arc<dyn Engine>,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// What makes its rules masks.
    pub grammars: Arc<Grammars>,
    /// What its header says.
    pub facts: Facts,
    /// What the server was told.
    pub settings: Arc<Settings>,
    /// Counters and gauges.
    pub metrics: Metrics,
}

/// A model that a request was given. While it is held, the model stays in memory.
pub struct Served {
    // Dropped before the lease: who has none left has no part of the model either.
    loaded: Arc<Loaded>,
    _lease: Lease,
}

impl Deref for Served {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        &self.loaded
    }
}

/// The models by name.
#[derive(Clone)]
pub struct Models(Arc<Inner>);

struct Inner {
    table: Mutex<Table>,
    /// A model was loaded, or could not be, or has no user any more.
    changed: Arc<Notify>,
    /// Who waits for room keeps it shut, so that nobody who comes later is served first.
    door: tokio::sync::Mutex<()>,
    told_of_demo: AtomicBool,
    settings: Arc<Settings>,
    metrics: Metrics,
    life: Arc<Life>,
}

impl Models {
    pub(super) fn new(
        sources: Vec<Source>,
        settings: Arc<Settings>,
        metrics: Metrics,
        life: Arc<Life>,
    ) -> Result<Models> {
        ensure!(!sources.is_empty(), "a server needs a model");
        let mut seen = std::collections::HashSet::new();
        for source in &sources {
            ensure!(!source.names.is_empty(), "a model needs a name");
            for name in &source.names {
                ensure!(!name.is_empty(), "a model's name is empty");
                ensure!(
                    seen.insert(name.clone()),
                    "two models have the name '{name}': give them different ones (--models NAME=FILE)"
                );
            }
            if settings
                .model_memory
                .is_some_and(|most| source.bytes > most)
            {
                tracing::warn!(
                    model = source.names[0],
                    bytes = source.bytes,
                    "larger than --model-memory: it will run alone"
                );
            }
        }
        let changed = Arc::new(Notify::new());
        let table = Table::new(sources, settings.model_memory, &changed);
        Ok(Models(Arc::new(Inner {
            table: Mutex::new(table),
            changed,
            door: tokio::sync::Mutex::default(),
            told_of_demo: AtomicBool::new(false),
            settings,
            metrics,
            life,
        })))
    }

    /// Loads the default model, on this thread.
    ///
    /// # Errors
    /// Whatever keeps it from being loaded.
    pub fn load_default(&self) -> Result<()> {
        self.load(0)
    }

    /// Loads the models for which there is room, the first ones first, on this thread.
    ///
    /// # Errors
    /// Whatever keeps one from being loaded.
    pub fn load_all(&self) -> Result<()> {
        let models = self.0.table().entries.len();
        (0..models).try_for_each(|index| self.load(index))
    }

    fn load(&self, index: usize) -> Result<()> {
        let begun = self.0.table().begin(index, false);
        match begun.map(|begun| begun.load) {
            Some(Some(load)) => self.0.load(index, load),
            Some(None) => Ok(()),
            None => {
                let model = &self.0.table().entries[index].source.names[0];
                tracing::info!(model, "no room to load it at the start (--model-memory)");
                Ok(())
            }
        }
    }

    /// The model that answers to `name`, or the default one; loaded first if need be.
    pub(super) async fn get(&self, name: Option<&str>) -> Result<Arc<Served>, ApiError> {
        let index = self.find(name)?;
        tokio::select! {
            biased;
            served = self.0.get(index) => served,
            () = self.0.life.stopped() => Err(stopping()),
            () = tokio::time::sleep(self.0.settings.load_wait) => Err(self.0.not_yet(index)),
        }
    }

    /// Which model answers to `name`.
    fn find(&self, name: Option<&str>) -> Result<usize, ApiError> {
        let Some(name) = name else { return Ok(0) };
        let table = self.0.table();
        let position = |fits: &dyn Fn(&Source) -> bool| {
            table.entries.iter().position(|entry| fits(&entry.source))
        };
        let same = |other: &String| other == name;
        let found = position(&|source| source.names.iter().any(same))
            .or_else(|| position(&|source| source.aliases.iter().any(same)));
        if let Some(index) = found {
            return Ok(index);
        }
        if let Some(family) = family(name) {
            if let Some(index) = position(&|source| source.facts.family == Some(family)) {
                return Ok(index);
            }
            if let [only] = table.entries.as_slice()
                && only.source.facts.is_demo
            {
                let demo = only.source.names[0].clone();
                if !self.0.told_of_demo.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "only the demo model is loaded: {demo} answers requests for {name}"
                    );
                }
                return Ok(0);
            }
        }
        let names = table.entries.iter().flat_map(|e| e.source.names.clone());
        let names: Vec<String> = names.collect();
        Err(ApiError::model_not_found(name, &names))
    }

    /// The models' true names.
    pub fn names(&self) -> Vec<String> {
        let table = self.0.table();
        let names = table.entries.iter().map(|e| e.source.names[0].clone());
        names.collect()
    }

    /// Ends what the loaded models keep outside of this program.
    pub fn close(&self) {
        // Not under the lock: a worker may take its time.
        let table = self.0.table();
        let loaded = table.entries.iter().filter_map(|entry| entry.loaded());
        let loaded: Vec<_> = loaded.cloned().collect();
        drop(table);
        for model in loaded {
            model.engine.close();
        }
    }

    /// Calls `read` with each model's source, and the model itself if it is loaded; in order.
    fn each<T>(&self, read: impl FnMut((&Source, Option<&Loaded>)) -> T) -> Vec<T> {
        let table = self.0.table();
        let entries = table.entries.iter();
        let with_state = entries.map(|entry| (&entry.source, entry.loaded().map(|l| &**l)));
        with_state.map(read).collect()
    }

    /// For each model its true name, whether it is loaded, and what its engine tells.
    pub(super) fn stats(&self) -> Vec<(String, bool, Stats)> {
        let table = self.0.table();
        let stats = table.entries.iter().map(|entry| {
            let name = entry.source.names[0].clone();
            (name, entry.loaded().is_some(), entry.stats())
        });
        stats.collect()
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something; it is asked again after every change.
    async fn until<T>(&self, mut look: impl FnMut(&mut Table) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = look(&mut self.table());
            if let Some(found) = found {
                return found;
            }
            changed.await;
        }
    }

    async fn get(self: &Arc<Self>, index: usize) -> Result<Arc<Served>, ApiError> {
        let begun = {
            let _door = self.door.lock().await;
            self.until(|table| table.begin(index, true)).await
        };
        if let Some(load) = begun.load {
            let inner = self.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = inner.load(index, load) {
                    tracing::error!("{error:#}");
                }
            });
        }
        let loaded = self.until(|table| {
            let entry = &table.entries[index];
            match &entry.state {
                State::Loaded(loaded) => Some(Ok(loaded.clone())),
                State::Failed(_) => {
                    let name = &entry.source.names[0];
                    let text =
                        format!("The model '{name}' can't be loaded; the server's log says why.");
                    Some(Err(ApiError::internal(text)))
                }
                State::Loading | State::Unloaded => None,
            }
        });
        let served = Served {
            loaded: loaded.await?,
            _lease: begun.lease,
        };
        Ok(Arc::new(served))
    }

    /// Why a request for model `index` has waited for nothing.
    fn not_yet(&self, index: usize) -> ApiError {
        let (text, code) = match self.table().entries[index].state {
            State::Loading => ("The model is still being loaded.", "model_loading"),
            _ => (
                "There is no room to load the model while others answer.",
                "model_busy",
            ),
        };
        let text = format!("{text} Please try again in 5 s.");
        unavailable(&text, code, Duration::from_secs(5))
    }

    /// Loads a model on this thread, and tells those who wait.
    fn load(&self, index: usize, load: Load) -> Result<()> {
        let started = Instant::now();
        let (name, facts, users) = {
            let entry = &self.table().entries[index];
            let source = &entry.source;
            (source.names[0].clone(), source.facts.clone(), entry.users())
        };
        let all = || {
            drop(load.out);
            let Running { engine, tokenizer } = (load.load)()?;
            let gate = Gate {
                engine,
                model: name.clone(),
                metrics: self.metrics.clone(),
                life: self.life.clone(),
                timeout: self.settings.request_timeout,
                users,
                passing: Arc::default(),
            };
            Ok(Arc::new(Loaded {
                name: name.clone(),
                engine: Arc::new(gate),
                grammars: warmed(&tokenizer),
                tokenizer,
                facts,
                settings: self.settings.clone(),
                metrics: self.metrics.clone(),
            }))
        };
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(all))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("loading it panicked")))
            .with_context(|| format!("model '{name}'"));
        let state = match &loaded {
            Ok(loaded) => {
                let seconds = started.elapsed().as_secs_f64();
                let info = loaded.engine.info();
                tracing::info!(
                    model = name,
                    backend = info.backend,
                    context = info.context,
                    slots = info.slots,
                    "loaded in {seconds:.2} s"
                );
                State::Loaded(loaded.clone())
            }
            Err(_) => State::Failed(Instant::now()),
        };
        self.table().entries[index].state = state;
        self.changed.notify_waiters();
        loaded.map(drop)
    }
}

/// What makes rules masks, getting ready beside whatever comes first: a request with a schema waits
/// for the rest of that alone.
fn warmed(tokenizer: &Arc<Tokenizer>) -> Arc<Grammars> {
    let grammars = Arc::new(Grammars::new(tokenizer.clone()));
    let warming = grammars.clone();
    let thread = std::thread::Builder::new().name("grammars".to_owned());
    if let Err(error) = thread.spawn(move || warming.warm()) {
        tracing::warn!("the first schema will wait for what it needs: {error}");
    }
    grammars
}
