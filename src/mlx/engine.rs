//! The engine over a worker: requests in, events out, in the same order as the native engine's.

use super::{
    driver::{Driver, Input},
    frame::{Held, Hello, Memory},
    live::Live,
    watch::Patience,
};
use crate::{
    config::Config,
    engine::{Engine, Event, EventSender, Events, Failure, ModelInfo, Request, Stats, Usage},
    sampler::fresh_seed,
    scheduler::{Client, Constraint, Shared},
};
use anyhow::{Result, anyhow, bail, ensure};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How the worker answers a question about itself.
const ANSWER: Duration = Duration::from_secs(30);

/// What an MLX engine is made of.
#[derive(Debug, Clone)]
pub struct MlxOptions {
    /// The Python of an environment with mlx-lm.
    pub python: PathBuf,
    /// The model's folder.
    pub folder: PathBuf,
    /// YaRN as mlx-lm has it, not as the released model means it.
    pub rope_upstream: bool,
    /// Most tokens of a sequence; bounded by the model's context.
    pub context: usize,
    /// Requests that run at once.
    pub slots: usize,
    /// Most requests that wait; one more is [`Failure::Busy`].
    pub max_waiting: usize,
    /// Most bytes of prefixes to keep; 0 keeps none.
    pub cache_bytes: u64,
    /// Tokens of KV cache that there is memory for: the requests that run, each as long as the longest of
    /// them may become, come to no more (one alone always runs).
    pub kv_tokens: usize,
    /// Bytes of arrays beyond which MLX waits for what runs before it takes more; 0: as it likes.
    pub memory: u64,
    /// Most bytes of freed memory that MLX keeps for reuse.
    pub pool_bytes: u64,
    /// Ids that are never sampled.
    pub padding: Vec<u32>,
    /// When a worker counts as hung.
    pub patience: Patience,
}

impl MlxOptions {
    /// For one model, with the defaults of the rest.
    pub fn new(python: PathBuf, folder: PathBuf) -> MlxOptions {
        MlxOptions {
            python,
            folder,
            rope_upstream: false,
            context: usize::MAX,
            slots: 16,
            max_waiting: 256,
            cache_bytes: 1 << 30,
            kv_tokens: usize::MAX,
            memory: 0,
            pool_bytes: super::POOL,
            padding: Vec::new(),
            patience: Patience::default(),
        }
    }
}

/// A worker's model as an [`Engine`]. A worker that dies or hangs fails the requests that run in it, with
/// [`Failure::Unavailable`], and is started again. Dropping the engine ends its worker, and its requests
/// with [`Failure::Stopped`].
pub struct MlxEngine {
    info: ModelInfo,
    hello: Hello,
    max_waiting: usize,
    arrivals: AtomicU64,
    inbox: mpsc::Sender<Input>,
    shared: Arc<Shared>,
    worker: Arc<Mutex<Option<u32>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl MlxEngine {
    /// Starts a worker and waits until its model is there. `config` is the model's shape, from its own
    /// files.
    ///
    /// # Errors
    /// When Python, mlx-lm or the model can't be had; with the worker's last words.
    pub fn start(config: &Config, options: MlxOptions) -> Result<MlxEngine> {
        let context = options.context.min(config.context);
        ensure!(
            context > 1,
            "a context of {context} tokens: it needs room for a prompt and an answer, two at least \
             (--ctx-size)"
        );
        ensure!(options.slots > 0, "an engine without slots answers nobody");
        let (inbox, messages) = mpsc::channel();
        let (ready, loaded) = mpsc::channel();
        let shared = Arc::<Shared>::default();
        let worker = Arc::<Mutex<Option<u32>>>::default();
        let (slots, max_waiting) = (options.slots, options.max_waiting);
        let driver = Driver::new(
            options,
            inbox.clone(),
            shared.clone(),
            worker.clone(),
            ready,
        );
        let thread = std::thread::Builder::new()
            .name("mlx-engine".into())
            .spawn(move || driver.run(&messages))?;
        let mut engine = MlxEngine {
            info: ModelInfo {
                name: config.name.clone(),
                backend: String::new(),
                vocab: config.vocab,
                context,
                slots,
                // Rounding differs with the shape of the batch.
                deterministic: false,
            },
            hello: Hello::default(),
            max_waiting,
            arrivals: AtomicU64::new(0),
            inbox,
            shared,
            worker,
            thread: Mutex::new(Some(thread)),
        };
        let (hello, vocab) = match loaded.recv() {
            Ok(loaded) => loaded.map_err(|why| anyhow!(why))?,
            Err(_) => bail!("the MLX engine's thread is gone"),
        };
        if vocab != config.vocab {
            bail!(
                "mlx-lm finds a vocabulary of {vocab} in this folder, expected {}",
                config.vocab
            );
        }
        engine.info.backend = describe(&hello);
        engine.hello = hello;
        Ok(engine)
    }

    /// What it runs on.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The worker's memory right now; `None` while there is none, or it does not answer.
    pub fn memory(&self) -> Option<Memory> {
        let (sender, answer) = mpsc::channel();
        self.inbox.send(Input::Memory(sender)).ok()?;
        answer.recv_timeout(ANSWER).ok()
    }

    /// What the worker holds of memory; `None` where [`MlxEngine::memory`] is.
    pub fn held(&self) -> Option<Held> {
        Some(Held::of(&self.memory()?, &self.hello))
    }

    /// From now on so many tokens of every longer prompt count as read, without being: shows what they
    /// take of memory. Answers mean nothing then.
    pub fn pretend(&self, tokens: usize) {
        let _ = self.inbox.send(Input::Pretend(tokens));
    }

    /// The worker's process id, while there is one.
    pub fn worker(&self) -> Option<u32> {
        *self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what no amount of waiting can answer.
    fn check(&self, request: &Request) -> Result<(), Failure> {
        let vocab = self.info.vocab;
        let (prompt, context) = (request.tokens.len(), self.info.context);
        if prompt == 0 {
            let text = "the prompt is empty: it needs at least one token";
            return Err(Failure::Invalid(text.into()));
        }
        if prompt >= context {
            return Err(Failure::ContextLength { prompt, context });
        }
        if let Some(id) = request.tokens.iter().find(|&&id| id as usize >= vocab) {
            let text = format!("token id {id} in the prompt; the vocabulary has {vocab}");
            return Err(Failure::Invalid(text));
        }
        let checked = request.sampling.check(vocab);
        checked.map_err(|error| Failure::Invalid(error.to_string()))
    }

    /// Takes a place in the queue.
    fn enter(&self, events: EventSender) -> Result<Client, Failure> {
        let most = self.info.slots.saturating_add(self.max_waiting);
        Client::enter(&self.shared, most, events).map_err(|live| Failure::Busy {
            waiting: live - self.info.slots,
            retry_after: self.shared.retry_after(),
        })
    }
}

/// `mlx (Apple M3 Max, mlx 0.32.4, mlx-lm 0.32.2)`.
pub fn describe(hello: &Hello) -> String {
    let Hello {
        device,
        mlx,
        mlx_lm,
        ..
    } = hello;
    format!("mlx ({device}, mlx {mlx}, mlx-lm {mlx_lm})")
}

impl Engine for MlxEngine {
    fn submit(&self, request: Request) -> Events {
        let (sender, events) = Events::channel();
        let entered = self.check(&request);
        let client = match entered.and_then(|()| self.enter(sender.clone())) {
            Ok(client) => client,
            Err(failure) => {
                let _ = sender.send(Event::Error(failure));
                return events;
            }
        };
        let _ = client.send(Event::Queued);
        let prompt = request.tokens.len();
        let seed = request.sampling.seed.unwrap_or_else(fresh_seed);
        let live = Live {
            id: self.arrivals.fetch_add(1, Ordering::Relaxed),
            tokens: request.tokens,
            most: request.max_tokens.unwrap_or(usize::MAX),
            room: self.info.context - prompt,
            stop_ids: request.stop_ids,
            sampling: request.sampling,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            scored: 0,
            constraint: request.constraint.map(Constraint::new),
            cancel: request.cancel,
            client,
            usage: Usage {
                prompt_tokens: prompt,
                seed,
                ..Usage::default()
            },
            arrived: Instant::now(),
            admitted: None,
            answered: None,
        };
        if let Err(mpsc::SendError(Input::Request(mut lost))) =
            self.inbox.send(Input::Request(Box::new(live)))
        {
            let failure = Failure::Broken("the MLX engine's thread is gone".into());
            lost.client.leave(Event::Error(failure));
        }
        events
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn stats(&self) -> Stats {
        self.shared.stats()
    }

    fn close(&self) {
        let _ = self.inbox.send(Input::Stop);
        // Whoever comes second waits for the first.
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for MlxEngine {
    fn drop(&mut self) {
        self.close();
    }
}
