//! What every request shares: the settings, the models, the counters, and where the server is in its
//! life.

use super::{
    auth::Keys,
    error::ApiError,
    health::{stopping, unavailable},
    limits::RateLimiter,
    log,
    memory::Memory,
    metrics::Metrics,
    models::{Models, Running, Served, Source},
    responses::Responses,
    settings::Settings,
};
use crate::{engine::Engine, tokenizer::Tokenizer};
use anyhow::Result;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread::available_parallelism,
    time::Duration,
};
use tokio::sync::{Semaphore, watch};

/// The server's state, shared by `Arc`.
pub struct App {
    /// What it was told.
    pub settings: Arc<Settings>,
    /// The models by name.
    pub models: Models,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// Where it is in its life.
    pub life: Arc<Life>,
    /// The stored ones, and those in the background.
    pub(super) responses: Responses,
    pub(super) keys: Keys,
    pub(super) limiter: Option<RateLimiter>,
    /// For requests that are being read.
    pub(super) memory: Memory,
    /// Places for work that keeps a processor busy: the model needs them more.
    workers: Arc<Semaphore>,
}

impl App {
    /// A server of `sources`, of which the first is the default model. Nothing is loaded yet.
    ///
    /// # Errors
    /// Two models of one name, no model, or a key that no header can hold.
    pub fn new(settings: Settings, sources: Vec<Source>) -> Result<Arc<App>> {
        let settings = Arc::new(settings);
        let metrics = Metrics::new();
        let life = Arc::new(Life::default());
        let models = Models::new(sources, settings.clone(), metrics.clone(), life.clone())?;
        Ok(Arc::new(App {
            keys: Keys::new(&settings.api_keys)?,
            limiter: settings.rate_limit.map(RateLimiter::new),
            responses: Responses::new(&settings),
            memory: Memory::new(&settings),
            workers: Arc::new(Semaphore::new(
                available_parallelism().map_or(1, |n| n.get().div_ceil(2)),
            )),
            models,
            metrics,
            life,
            settings,
        }))
    }

    /// A server whose one model, `name`, is answered by `engine`, ready at once.
    ///
    /// # Errors
    /// As [`App::new`].
    pub fn for_engine(
        name: &str,
        engine: Arc<dyn Engine>,
        tokenizer: Arc<Tokenizer>,
        settings: Settings,
    ) -> Result<Arc<App>> {
        let source = Source::loaded(name, Running { engine, tokenizer });
        App::ready(settings, source)
    }

    /// A server of the demo model inside this program, ready at once.
    ///
    /// # Errors
    /// As [`App::new`], or when the model can't be loaded.
    pub fn demo(settings: Settings) -> Result<Arc<App>> {
        App::ready(settings, crate::cli::serve::demo_source()?)
    }

    fn ready(settings: Settings, source: Source) -> Result<Arc<App>> {
        let app = App::new(settings, vec![source])?;
        app.models.load_default()?;
        app.life.enter(Phase::Ready);
        Ok(app)
    }

    /// Does what keeps a processor busy, away from the threads that answer; on half of the processors
    /// at most. What has begun goes on when nobody waits for it any more.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = self.workers.clone().acquire_owned().await;
        let span = tracing::Span::current();
        let work = move || {
            let _place = place;
            span.in_scope(work)
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| match error.try_into_panic() {
            Ok(panic) => log::panicked(&self.metrics, &*panic),
            Err(_) => stopping(),
        })
    }

    /// The model that answers to `name`, or the default one; loaded first if need be.
    ///
    /// # Errors
    /// 404 for a name that nothing answers to; 503 while the server starts or stops, or when there is
    /// no room for the model now.
    pub async fn model(&self, name: Option<&str>) -> Result<Arc<Served>, ApiError> {
        self.life.check()?;
        self.models.get(name).await
    }
}

/// Where the server is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The socket is open, nothing else has happened.
    Starting,
    /// The default model is being loaded.
    Loading,
    /// Requests are answered.
    Ready,
    /// The server stops: running answers may end, new requests are refused.
    Draining,
}

impl Phase {
    /// As `/ready` tells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Loading => "loading",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
        }
    }
}

/// The server's phase, and the signal that ends running answers.
pub struct Life {
    phase: AtomicU8,
    stop: watch::Sender<bool>,
}

impl Default for Life {
    fn default() -> Life {
        Life {
            phase: AtomicU8::new(Phase::Starting as u8),
            stop: watch::Sender::new(false),
        }
    }
}

impl Life {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        let now = self.phase.load(Ordering::Acquire);
        let all = [Phase::Starting, Phase::Loading, Phase::Ready];
        let found = all.into_iter().find(|&phase| phase as u8 == now);
        found.unwrap_or(Phase::Draining)
    }

    /// Goes on to `phase`; never back.
    pub fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Ends every running answer with an error as its last event.
    pub fn stop_answers(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until running answers have to end.
    pub async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        if stop.wait_for(|&stop| stop).await.is_err() {
            // Without a sender nobody can ask for it any more.
            std::future::pending().await
        }
    }

    /// Whether requests can be answered now.
    ///
    /// # Errors
    /// 503 with when to try again.
    pub fn check(&self) -> Result<(), ApiError> {
        match self.phase() {
            Phase::Ready => Ok(()),
            Phase::Starting | Phase::Loading => {
                let text = "The model is being loaded. Please try again in 2 s.";
                Err(unavailable(text, "model_loading", Duration::from_secs(2)))
            }
            Phase::Draining => Err(stopping()),
        }
    }
}
