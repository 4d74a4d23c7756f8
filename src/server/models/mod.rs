//! The models by name: which answer to what, loaded on demand, the least recently used out.
//!
//! A model is only taken out of memory when nobody holds it: requests hold the [`Served`] they were
//! given, and the [gate](super::gate) holds the engine until the last event.

mod endpoints;
mod facts;

pub use endpoints::routes;
pub use facts::{FAMILIES, Facts, family};

use super::{
    App,
    error::ApiError,
    gate::{Gate, Live},
    health::unavailable,
    metrics::Metrics,
    settings::Settings,
    state::Life,
};
use crate::{engine::Engine, grammar::Grammars, tokenizer::Tokenizer};
use anyhow::{Context, Result, ensure};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

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

type Load = Arc<dyn Fn() -> Result<Running> + Send + Sync>;

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
    pub load: Load,
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

/// A model, ready to answer.
pub struct Served {
    /// Its true name, `model` in every answer.
    pub name: String,
    /// What answers. It counts, and ends requests when the server stops: see [`super::gate`].
    pub engine: Arc<dyn Engine>,
    live: Live,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// What makes its rules masks.
    pub grammars: Grammars,
    /// What its header says.
    pub facts: Facts,
    /// What the server was told.
    pub settings: Arc<Settings>,
    /// Counters and gauges.
    pub metrics: Metrics,
}

enum State {
    Unloaded,
    Loading,
    Loaded(Arc<Served>),
    /// Loading failed, then and with these words.
    Failed(Instant, String),
}

struct Entry {
    source: Source,
    state: State,
    /// When it was last asked for, in requests.
    used: u64,
}

struct Table {
    entries: Vec<Entry>,
    clock: u64,
    told_of_demo: bool,
}

/// The models by name.
#[derive(Clone)]
pub struct Models(Arc<Inner>);

struct Inner {
    table: Mutex<Table>,
    /// A model was loaded or taken out.
    changed: Notify,
    settings: Arc<Settings>,
    metrics: Metrics,
    life: Arc<Life>,
}

/// After a failure to load, until it is tried again.
const RETRY: Duration = Duration::from_secs(30);

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
        }
        let entry = |source| Entry {
            source,
            state: State::Unloaded,
            used: 0,
        };
        let table = Table {
            entries: sources.into_iter().map(entry).collect(),
            clock: 0,
            told_of_demo: false,
        };
        Ok(Models(Arc::new(Inner {
            table: Mutex::new(table),
            changed: Notify::new(),
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

    /// Loads every model for which there is room, on this thread.
    ///
    /// # Errors
    /// Whatever keeps one from being loaded.
    pub fn load_all(&self) -> Result<()> {
        let models = self.0.table().entries.len();
        (0..models).try_for_each(|index| self.load(index))
    }

    fn load(&self, index: usize) -> Result<()> {
        match self.0.begin(index) {
            Begin::Load(load) => self.0.load(index, load).map(drop),
            Begin::Wait | Begin::NoRoom => Ok(()),
        }
    }

    /// The model that answers to `name`, or the default one; loaded first if need be.
    pub(super) async fn get(&self, name: Option<&str>) -> Result<Arc<Served>, ApiError> {
        let index = self.find(name)?;
        let deadline = tokio::time::Instant::now() + self.0.settings.load_wait;
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(served) = self.0.take(index)? {
                return Ok(served);
            }
            match self.0.begin(index) {
                Begin::Wait => {}
                Begin::Load(load) => {
                    let inner = self.0.clone();
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = inner.load(index, load) {
                            tracing::error!("{error:#}");
                        }
                    });
                }
                Begin::NoRoom => {
                    let text = "There is no room to load the model while others answer. Please try \
                                again in 5 s.";
                    return Err(unavailable(text, "model_busy", Duration::from_secs(5)));
                }
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                let text = "The model is still being loaded. Please try again in 5 s.";
                return Err(unavailable(text, "model_loading", Duration::from_secs(5)));
            }
        }
    }

    /// Which model answers to `name`.
    fn find(&self, name: Option<&str>) -> Result<usize, ApiError> {
        let Some(name) = name else { return Ok(0) };
        let mut table = self.0.table();
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
                if !std::mem::replace(&mut table.told_of_demo, true) {
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

    /// Calls `read` with each model's source, and the model itself if it is loaded; in order.
    fn each<T>(&self, read: impl FnMut((&Source, Option<&Served>)) -> T) -> Vec<T> {
        let table = self.0.table();
        let with_state = table.entries.iter().map(|entry| match &entry.state {
            State::Loaded(served) => (&entry.source, Some(&**served)),
            _ => (&entry.source, None),
        });
        with_state.map(read).collect()
    }

    /// The loaded models.
    pub fn loaded(&self) -> Vec<Arc<Served>> {
        let table = self.0.table();
        let loaded = table.entries.iter().filter_map(|entry| match &entry.state {
            State::Loaded(served) => Some(served.clone()),
            _ => None,
        });
        loaded.collect()
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model if it is there.
    fn take(&self, index: usize) -> Result<Option<Arc<Served>>, ApiError> {
        let mut table = self.table();
        table.clock += 1;
        let clock = table.clock;
        let entry = &mut table.entries[index];
        entry.used = clock;
        match &entry.state {
            State::Loaded(served) => Ok(Some(served.clone())),
            State::Failed(at, error) if at.elapsed() < RETRY => Err(ApiError::internal(format!(
                "The model '{}' can't be loaded: {error}",
                entry.source.names[0]
            ))),
            _ => Ok(None),
        }
    }

    /// What the caller has to do to get the model loaded. Makes room for it where there is a limit.
    fn begin(&self, index: usize) -> Begin {
        let mut table = self.table();
        let table = &mut *table;
        match table.entries[index].state {
            State::Unloaded | State::Failed(..) => {}
            State::Loading | State::Loaded(_) => return Begin::Wait,
        }
        let needed = table.entries[index].source.bytes;
        let limit = self.settings.model_memory.unwrap_or(u64::MAX);
        let mut out = Vec::new();
        while table.bytes().saturating_add(needed) > limit {
            // A model larger than the limit still runs, alone.
            match table.idle() {
                Some(idle) => out.push(std::mem::replace(
                    &mut table.entries[idle].state,
                    State::Unloaded,
                )),
                None if table.bytes() == 0 => break,
                None => {
                    return Begin::NoRoom;
                }
            }
        }
        let entry = &mut table.entries[index];
        entry.state = State::Loading;
        let load = entry.source.load.clone();
        Begin::Load(Box::new(move || {
            // Their memory is given back before the new one's is taken.
            drop(out);
            load()
        }))
    }

    /// Loads a model on this thread, and tells those who wait.
    fn load(&self, index: usize, load: LoadOnce) -> Result<Arc<Served>> {
        let (name, facts) = {
            let source = &self.table().entries[index].source;
            (source.names[0].clone(), source.facts.clone())
        };
        let started = Instant::now();
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("loading it panicked")))
            .map(|running| {
                let Running { engine, tokenizer } = running;
                let gate = Gate::new(
                    engine,
                    name.clone(),
                    self.metrics.clone(),
                    self.life.clone(),
                    &self.settings,
                );
                Arc::new(Served {
                    name: name.clone(),
                    live: gate.live(),
                    engine: Arc::new(gate),
                    grammars: Grammars::new(tokenizer.clone()),
                    tokenizer,
                    facts,
                    settings: self.settings.clone(),
                    metrics: self.metrics.clone(),
                })
            })
            .with_context(|| format!("model '{name}'"));
        let state = match &loaded {
            Ok(served) => {
                let seconds = started.elapsed().as_secs_f64();
                let info = served.engine.info();
                tracing::info!(
                    model = name,
                    backend = info.backend,
                    context = info.context,
                    slots = info.slots,
                    "loaded in {seconds:.2} s"
                );
                State::Loaded(served.clone())
            }
            Err(error) => State::Failed(Instant::now(), format!("{error:#}")),
        };
        self.table().entries[index].state = state;
        self.changed.notify_waiters();
        loaded
    }
}

type LoadOnce = Box<dyn FnOnce() -> Result<Running> + Send>;

enum Begin {
    /// Call it.
    Load(LoadOnce),
    /// Somebody else does.
    Wait,
    /// Every other model is in use.
    NoRoom,
}

impl Table {
    /// Bytes of the models that are loaded or being loaded.
    fn bytes(&self) -> u64 {
        let taken = |entry: &&Entry| matches!(entry.state, State::Loaded(_) | State::Loading);
        let bytes = self.entries.iter().filter(taken).map(|e| e.source.bytes);
        bytes.fold(0, u64::saturating_add)
    }

    /// The loaded model that nobody uses and that was asked for longest ago. Only who has the table
    /// gives models out, so what is idle here stays so while the table is held.
    fn idle(&self) -> Option<usize> {
        let idle = |entry: &Entry| match &entry.state {
            State::Loaded(served) => Arc::strong_count(served) == 1 && served.is_idle(),
            _ => false,
        };
        let idle = self.entries.iter().enumerate().filter(|(_, e)| idle(e));
        idle.min_by_key(|(_, e)| e.used).map(|(index, _)| index)
    }
}

impl Served {
    /// Whether no request is under way.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.engine) == 1 && self.live.count() == 0
    }
}
