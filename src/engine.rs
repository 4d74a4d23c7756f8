//! The first seam: a request of tokens in, a stream of events out.
//!
//! The native engine is one thread that owns the back end. It takes requests in order of arrival,
//! prefills the prompt in pieces, then decodes a token a step. The KV cache keeps the last sequence:
//! a request that begins with the same tokens computes only the rest. Harmony, HTTP and the command
//! line sit above this module and see no tensor.

use crate::{
    backend::{Backend, Batch, KV_BLOCK, LogitRows, Segment},
    kv::BlockAllocator,
    sampler::{Sampler, Sampling},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Anything that turns requests into events.
pub trait Engine: Send + Sync {
    /// Queues a request; its events arrive as they happen. Dropping the receiver cancels it.
    fn submit(&self, request: Request) -> Events;
    /// The model that answers.
    fn info(&self) -> &ModelInfo;
}

/// What callers may know about the model.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The model's name.
    pub name: String,
    /// Back end, instruction set, threads.
    pub backend: String,
    /// Size of the vocabulary, padding included.
    pub vocab: usize,
    /// Most tokens of a sequence, prompt and answer together.
    pub context: usize,
}

/// One prompt to continue.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The prompt, at least one token.
    pub tokens: Vec<u32>,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Most tokens to generate; `None`: as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Tokens that end the answer; the one that does is still an event.
    pub stop_ids: Vec<u32>,
    /// Log-probabilities: `None` for none, `Some(n)` for the chosen token's and the `n` best.
    pub logprobs: Option<usize>,
    /// Ends the request within one step when set.
    pub cancel: Cancel,
}

/// A switch that ends a request; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends the request within one step.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the request was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happens to a request. The last event is `Finish` or `Error`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Accepted, waiting for its turn.
    Queued,
    /// A piece of the prompt is done; `done` counts the `cached` tokens too.
    Prefill {
        /// Prompt tokens in the cache by now.
        done: usize,
        /// Prompt tokens.
        total: usize,
        /// Prompt tokens found in the cache.
        cached: usize,
    },
    /// A token was chosen.
    Token {
        /// The token.
        id: u32,
        /// Its log-probability, where asked for.
        logprob: Option<f32>,
        /// The likeliest tokens with theirs, best first, where asked for.
        top: Vec<(u32, f32)>,
    },
    /// The answer is complete.
    Finish {
        /// Why it ended.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// The request failed; nothing follows.
    Error(String),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token.
    Stop,
    /// `max_tokens`, or the context is full ([`Usage::context_full`]).
    Length,
    /// The request's `cancel`, or nobody listens.
    Cancelled,
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were in the cache.
    pub cached_tokens: usize,
    /// Tokens generated, the stop token included.
    pub generated_tokens: usize,
    /// From start to the end of the prompt.
    pub prefill_time: Duration,
    /// From there to the end.
    pub decode_time: Duration,
    /// The answer ended because the context was full.
    pub context_full: bool,
    /// The seed in use, given or made up.
    pub seed: u64,
}

/// A request's events: iterate to the end, or drop to cancel. Never ends without a last
/// [`Event::Finish`] or [`Event::Error`].
pub struct Events {
    receiver: mpsc::Receiver<Event>,
    done: bool,
}

impl Events {
    /// A stream and the sender that feeds it, for engines.
    pub fn channel() -> (mpsc::Sender<Event>, Events) {
        let (sender, receiver) = mpsc::channel();
        let done = false;
        (sender, Events { receiver, done })
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.done {
            return None;
        }
        let event = self.receiver.recv();
        let event = event.unwrap_or_else(|_| Event::Error("the engine stopped".into()));
        self.done = matches!(event, Event::Finish { .. } | Event::Error(_));
        Some(event)
    }
}

/// The engine over a [`Backend`] of this process.
pub struct NativeEngine {
    info: ModelInfo,
    jobs: Option<mpsc::Sender<Job>>,
    shutdown: Cancel,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    request: Request,
    events: mpsc::Sender<Event>,
}

impl NativeEngine {
    /// Starts the engine's thread. `context` bounds a sequence, in tokens; `padding` ids are never
    /// sampled.
    pub fn start(
        backend: Box<dyn Backend>,
        context: usize,
        padding: Vec<u32>,
    ) -> Result<NativeEngine> {
        let config = backend.config();
        let limits = backend.limits();
        let context = context.min(config.context).min(limits.kv_blocks * KV_BLOCK);
        ensure!(
            context > 1,
            "a context of {context} tokens: it needs room for a prompt and an answer, two at least \
             (--ctx-size)"
        );
        ensure!(
            limits.slots > 0 && limits.batch_tokens > 0,
            "the back end has no room: {limits:?}"
        );
        let info = ModelInfo {
            name: config.name.clone(),
            backend: backend.describe(),
            vocab: config.vocab,
            context,
        };
        let shutdown = Cancel::default();
        let (jobs, queue) = mpsc::channel();
        let worker = Worker {
            slot: Sequence::new(limits.kv_blocks),
            backend,
            context,
            padding,
            shutdown: shutdown.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || worker.serve(queue))
            .context("starting the engine's thread")?;
        Ok(NativeEngine {
            info,
            jobs: Some(jobs),
            shutdown,
            thread: Some(thread),
        })
    }
}

impl Engine for NativeEngine {
    fn submit(&self, request: Request) -> Events {
        let (sender, events) = Events::channel();
        let _ = sender.send(Event::Queued);
        if let Some(jobs) = &self.jobs {
            // A dead engine drops the sender, which ends `events` with an error.
            let _ = jobs.send(Job {
                request,
                events: sender,
            });
        }
        events
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }
}

impl Drop for NativeEngine {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The sequence whose keys and values are in the cache.
struct Sequence {
    /// Its tokens; position `p` holds the keys and values of `tokens[p]`.
    tokens: Vec<u32>,
    allocator: BlockAllocator,
    /// One segment, kept between steps: its `blocks` are the sequence's block table.
    batch: Batch,
}

impl Sequence {
    fn new(kv_blocks: usize) -> Sequence {
        let segment = Segment {
            slot: 0,
            start: 0,
            tokens: Vec::new(),
            blocks: Vec::new(),
            logits: LogitRows::None,
        };
        Sequence {
            tokens: Vec::new(),
            allocator: BlockAllocator::new(kv_blocks),
            batch: Batch {
                segments: vec![segment],
            },
        }
    }

    /// Forgets everything from position `len` on.
    fn truncate(&mut self, len: usize) -> Result<()> {
        self.tokens.truncate(len);
        let table = &mut self.batch.segments[0].blocks;
        Ok(self.allocator.resize(table, len)?)
    }

    /// Runs `tokens` at the end of the sequence.
    fn append(
        &mut self,
        backend: &mut dyn Backend,
        tokens: &[u32],
        logits: LogitRows,
    ) -> Result<()> {
        let segment = &mut self.batch.segments[0];
        let end = self.tokens.len() + tokens.len();
        self.allocator.resize(&mut segment.blocks, end)?;
        segment.start = self.tokens.len();
        segment.tokens.clear();
        segment.tokens.extend_from_slice(tokens);
        segment.logits = logits;
        backend.forward(&self.batch)?;
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }
}

/// The engine's thread.
struct Worker {
    backend: Box<dyn Backend>,
    slot: Sequence,
    context: usize,
    padding: Vec<u32>,
    shutdown: Cancel,
}

impl Worker {
    fn serve(mut self, queue: mpsc::Receiver<Job>) {
        for job in queue {
            let last = match self.answer(&job) {
                Ok((reason, usage)) => Event::Finish { reason, usage },
                Err(error) => {
                    // What a failed step left in the cache is unknown.
                    let forgotten = self.slot.truncate(0);
                    debug_assert!(forgotten.is_ok(), "giving blocks back can't fail");
                    Event::Error(format!("{error:#}"))
                }
            };
            let _ = job.events.send(last);
        }
    }

    fn answer(&mut self, job: &Job) -> Result<(FinishReason, Usage)> {
        let request = &job.request;
        let prompt = &request.tokens;
        self.check(request)?;
        let started = Instant::now();
        let mut sampler = Sampler::new(
            &request.sampling,
            self.backend.config().vocab,
            &self.padding,
            request.logprobs,
            prompt,
        );
        let mut usage = Usage {
            prompt_tokens: prompt.len(),
            cached_tokens: self.reuse(prompt)?,
            seed: sampler.seed(),
            ..Usage::default()
        };
        let finished = self.prefill(job, usage.cached_tokens)?;
        usage.prefill_time = started.elapsed();
        let reason = match finished {
            Some(reason) => reason,
            None => self.decode(job, &mut sampler, &mut usage)?,
        };
        usage.decode_time = started.elapsed() - usage.prefill_time;
        Ok((reason, usage))
    }

    fn check(&self, request: &Request) -> Result<()> {
        let vocab = self.backend.config().vocab;
        let (len, context) = (request.tokens.len(), self.context);
        ensure!(len > 0, "the prompt is empty: it needs at least one token");
        ensure!(
            len < context,
            "the prompt has {len} tokens and the context holds {context}: shorten the prompt or \
             make more room (--ctx-size)"
        );
        if let Some(id) = request.tokens.iter().find(|&&id| id as usize >= vocab) {
            bail!("token id {id} in the prompt; the vocabulary has {vocab}");
        }
        Ok(request.sampling.check(vocab)?)
    }

    /// Keeps what the cache already holds of `prompt`, in tokens, and forgets the rest.
    fn reuse(&mut self, prompt: &[u32]) -> Result<usize> {
        let same = self.slot.tokens.iter().zip(prompt);
        let same = same.take_while(|(a, b)| a == b).count();
        // The last token must run: its logits choose the next.
        let wanted = same.min(prompt.len() - 1);
        let kept = if wanted == self.slot.tokens.len() {
            wanted
        } else {
            self.backend.rewind(0, wanted).min(wanted)
        };
        self.slot.truncate(kept)?;
        Ok(kept)
    }

    /// Runs the prompt from `cached` on, in pieces; only its last row gets logits.
    fn prefill(&mut self, job: &Job, cached: usize) -> Result<Option<FinishReason>> {
        let prompt = &job.request.tokens;
        let total = prompt.len();
        let mut done = cached;
        let at = |done| Event::Prefill {
            done,
            total,
            cached,
        };
        if job.events.send(at(done)).is_err() {
            return Ok(Some(FinishReason::Cancelled));
        }
        while done < total {
            if self.cancelled(job) {
                return Ok(Some(FinishReason::Cancelled));
            }
            let piece = done..total.min(done + self.backend.limits().batch_tokens);
            done = piece.end;
            let wants_logits = done == total && job.request.max_tokens != Some(0);
            let logits = match wants_logits {
                true => LogitRows::Last,
                false => LogitRows::None,
            };
            self.slot
                .append(self.backend.as_mut(), &prompt[piece], logits)?;
            if job.events.send(at(done)).is_err() {
                return Ok(Some(FinishReason::Cancelled));
            }
        }
        Ok(None)
    }

    /// Chooses tokens until something ends it; the prompt's last logits are ready.
    fn decode(
        &mut self,
        job: &Job,
        sampler: &mut Sampler,
        usage: &mut Usage,
    ) -> Result<FinishReason> {
        let request = &job.request;
        let room = self.context - request.tokens.len();
        let most = request.max_tokens.unwrap_or(usize::MAX);
        let mut last = None;
        loop {
            if usage.generated_tokens >= most {
                return Ok(FinishReason::Length);
            }
            if usage.generated_tokens >= room {
                usage.context_full = true;
                return Ok(FinishReason::Length);
            }
            if self.cancelled(job) {
                return Ok(FinishReason::Cancelled);
            }
            // A token runs only when its logits are due: an answer's last token never does.
            if let Some(token) = last {
                self.slot
                    .append(self.backend.as_mut(), &[token], LogitRows::Last)?;
            }
            let sampled = sampler.sample(self.backend.logits(0))?;
            usage.generated_tokens += 1;
            let id = sampled.id;
            last = Some(id);
            let event = Event::Token {
                id,
                logprob: sampled.logprob,
                top: sampled.top,
            };
            if job.events.send(event).is_err() {
                return Ok(FinishReason::Cancelled);
            }
            if request.stop_ids.contains(&id) {
                return Ok(FinishReason::Stop);
            }
        }
    }

    fn cancelled(&self, job: &Job) -> bool {
        job.request.cancel.is_cancelled() || self.shutdown.is_cancelled()
    }
}
