//! The engine over a back end of this process: one thread that owns it.
//!
//! It takes requests in order of arrival,
//! prefills the prompt in pieces, then decodes a token a step. The KV cache keeps the last sequence:
//! a request that begins with the same tokens computes only the rest.

use super::{
    Cancel, Engine, Event, EventSender, Events, Failure, FinishReason, ModelInfo, Request, Stats,
    Usage,
};
use crate::{
    backend::{Backend, Batch, KV_BLOCK, LogitRows, Segment},
    kv::BlockAllocator,
    sampler::{Mask, Sampler},
};
use anyhow::{Context, Result, ensure};
use std::{sync::mpsc, thread::JoinHandle, time::Instant};

/// How the engine runs.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Most tokens of a sequence, prompt and answer together; bounded by the model's context and
    /// by the blocks of the back end.
    pub context: usize,
    /// Ids that are never sampled.
    pub padding: Vec<u32>,
    /// The token that begins a message (`<|start|>`): the windows are kept before each.
    pub marker: Option<u32>,
    /// Most requests that wait.
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

/// The engine over a [`Backend`] of this process.
pub struct NativeEngine {
    info: ModelInfo,
    jobs: Option<mpsc::Sender<Job>>,
    shutdown: Cancel,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    request: Request,
    events: EventSender,
}

impl NativeEngine {
    /// Starts the engine's thread.
    pub fn start(backend: Box<dyn Backend>, options: EngineOptions) -> Result<NativeEngine> {
        let EngineOptions {
            context, padding, ..
        } = options;
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
            slots: 1,
            deterministic: true,
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

    fn stats(&self) -> Stats {
        Stats::default()
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
            kept: 0,
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
                Err(failure) => {
                    // What a failed step left in the cache is unknown.
                    let forgotten = self.slot.truncate(0);
                    debug_assert!(forgotten.is_ok(), "giving blocks back can't fail");
                    Event::Error(failure)
                }
            };
            let _ = job.events.send(last);
        }
    }

    fn answer(&mut self, job: &Job) -> Result<(FinishReason, Usage), Failure> {
        self.check(&job.request)?;
        self.run(job)
            .map_err(|error| Failure::Broken(format!("{error:#}")))
    }

    fn run(&mut self, job: &Job) -> Result<(FinishReason, Usage)> {
        let request = &job.request;
        let prompt = &request.tokens;
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

    fn check(&self, request: &Request) -> Result<(), Failure> {
        let vocab = self.backend.config().vocab;
        let (len, context) = (request.tokens.len(), self.context);
        if len == 0 {
            let text = "the prompt is empty: it needs at least one token";
            return Err(Failure::Invalid(text.into()));
        }
        if len >= context {
            return Err(Failure::ContextLength {
                prompt: len,
                context,
            });
        }
        if let Some(id) = request.tokens.iter().find(|&&id| id as usize >= vocab) {
            let text = format!("token id {id} in the prompt; the vocabulary has {vocab}");
            return Err(Failure::Invalid(text));
        }
        let checked = request.sampling.check(vocab);
        checked.map_err(|error| Failure::Invalid(error.to_string()))
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
            miss: None,
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
            let sampled = sampler.sample(self.backend.logits(0), &Mask::Any)?;
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
