//! The engine over a back end of this process: one thread that owns it and runs the
//! [scheduler](crate::scheduler) step by step.

use super::{
    Cancel, Engine, Event, EventSender, Events, Failure, ModelInfo, Request, Stats, Usage,
};
use crate::{
    backend::{Backend, KV_BLOCK},
    sampler::{self, Sampler},
    scheduler::{Client, Constraint, Message, Rules, Scheduler, Sequence, Shared},
};
use anyhow::{Context, Result, ensure};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How often the engine looks for cancelled requests while all that it could do waits for a mask.
const LOOK: Duration = Duration::from_millis(20);

/// How the engine runs.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Most tokens of a sequence, prompt and answer together; bounded by the model's context and
    /// by the blocks of the back end.
    pub context: usize,
    /// Ids that are never sampled.
    pub padding: Vec<u32>,
    /// The token that begins a message (`<|start|>`): the sliding windows are kept before it, so
    /// that prompts which part there can go on from them; before the last four of a prompt if 64
    /// tokens lie between, before others if 512.
    pub marker: Option<u32>,
    /// Most requests that wait; one more is [`Failure::Busy`].
    pub max_waiting: usize,
    /// Whether prompts may begin with what the cache holds.
    pub prefix_cache: bool,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            context: usize::MAX,
            padding: Vec::new(),
            marker: None,
            max_waiting: 256,
            prefix_cache: true,
        }
    }
}

/// The engine over a [`Backend`] of this process. Dropping it ends its requests with
/// [`Failure::Stopped`].
pub struct NativeEngine {
    info: ModelInfo,
    padding: Vec<u32>,
    max_waiting: usize,
    arrivals: AtomicU64,
    inbox: mpsc::Sender<Message>,
    shared: Arc<Shared>,
    shutdown: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl NativeEngine {
    /// Starts the engine's thread.
    pub fn start(mut backend: Box<dyn Backend>, options: EngineOptions) -> Result<NativeEngine> {
        let config = backend.config().clone();
        let limits = backend.limits();
        let bound = config
            .context
            .min(limits.kv_blocks.saturating_mul(KV_BLOCK));
        let context = options.context.min(bound);
        ensure!(
            context > 1,
            "a context of {context} tokens: it needs room for a prompt and an answer, two at least \
             (--ctx-size)"
        );
        ensure!(
            limits.slots > 0 && limits.batch_tokens > 0,
            "the back end has no room: {limits:?}"
        );
        // Decoding rows never fill a batch: prompts advance in every step.
        let slots = limits.slots.min(limits.batch_tokens.div_ceil(2));
        let info = ModelInfo {
            name: config.name.clone(),
            backend: backend.describe(),
            vocab: config.vocab,
            context,
            slots,
            deterministic: backend.batch_invariant(),
        };
        let draws = backend.prepare_draws(&sampler::allowed(&options.padding, config.vocab))?;
        let rules = Rules {
            context,
            slots,
            batch_tokens: limits.batch_tokens,
            marker: options.marker,
            prefix_cache: options.prefix_cache,
            draws,
        };
        let (inbox, messages) = mpsc::channel();
        let (shutdown, shared) = (Cancel::default(), Arc::new(Shared::default()));
        let scheduler = Scheduler::new(backend, rules, inbox.clone(), shared.clone());
        let stops = shutdown.clone();
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || serve(scheduler, &messages, &stops))
            .context("starting the engine's thread")?;
        Ok(NativeEngine {
            info,
            padding: options.padding,
            max_waiting: options.max_waiting,
            arrivals: AtomicU64::new(0),
            inbox,
            shared,
            shutdown,
            thread: Some(thread),
        })
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

impl Engine for NativeEngine {
    fn submit(&self, request: Request) -> Events {
        let (sender, events) = Events::channel();
        let entered = self.check(&request);
        let client = match entered.and_then(|()| self.enter(sender.clone())) {
            Ok(client) => client,
            Err(failure) => {
                // `events` is here: the send can't fail, nor can the next.
                let _ = sender.send(Event::Error(failure));
                return events;
            }
        };
        let _ = client.send(Event::Queued);
        let sampler = Sampler::new(
            &request.sampling,
            self.info.vocab,
            &self.padding,
            request.logprobs,
            &request.tokens,
        );
        let usage = Usage {
            prompt_tokens: request.tokens.len(),
            seed: sampler.seed(),
            ..Usage::default()
        };
        let sequence = Sequence {
            id: self.arrivals.fetch_add(1, Ordering::Relaxed),
            prompt: request.tokens.len(),
            tokens: request.tokens,
            most: request.max_tokens.unwrap_or(usize::MAX),
            stop_ids: request.stop_ids,
            prompt_logprobs: request.prompt_logprobs,
            scored: 0,
            sampler,
            constraint: request.constraint.map(Constraint::new),
            cancel: request.cancel,
            client,
            usage,
            reported: 0,
            miss: None,
            follows: None,
            arrived: Instant::now(),
            admitted: None,
            answered: None,
        };
        let sent = self.inbox.send(Message::Request(Box::new(sequence)));
        // While `self` is here, nothing but a panic ends the thread.
        if let Err(mpsc::SendError(Message::Request(mut lost))) = sent {
            let failure = Failure::Broken("the engine's thread is gone".into());
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
}

impl Drop for NativeEngine {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let _ = self.inbox.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The engine's thread. A step that panics ends the requests that ran, not the thread.
fn serve(mut scheduler: Scheduler, inbox: &mpsc::Receiver<Message>, shutdown: &Cancel) {
    while !shutdown.is_cancelled() {
        if scheduler.is_idle() {
            match inbox.recv() {
                Ok(message) => scheduler.take(message),
                Err(_) => break,
            }
        } else if !scheduler.is_ready()
            && let Ok(message) = inbox.recv_timeout(LOOK)
        {
            scheduler.take(message);
        }
        while let Ok(message) = inbox.try_recv() {
            scheduler.take(message);
        }
        if !shutdown.is_cancelled() {
            scheduler.step(inbox);
        }
    }
    while let Ok(message) = inbox.try_recv() {
        scheduler.take(message);
    }
    scheduler.stop();
}
