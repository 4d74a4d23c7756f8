//! The first seam: a request of tokens in, a stream of events out.
//!
//! Harmony, HTTP and the command line sit above this module and see no tensor. [`NativeEngine`]
//! answers with a back end of this process; whatever else answers (a test's script, another
//! process) keeps the same order of events: `Queued`, `Prefill`, `PromptLogprobs`, `Token`, and
//! exactly one last `Finish` or `Error`. The last may come at any point, so also first: who is
//! refused was never queued, and who leaves the queue has no `Prefill`. `Prefill` comes at least once
//! before a `Token`.

mod events;
mod native;

pub use events::{EventSender, Events, Unheard};
pub use native::{EngineOptions, NativeEngine};

use crate::sampler::{MaskSource, Sampling};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

/// Anything that turns requests into events.
pub trait Engine: Send + Sync {
    /// Queues a request and returns at once; its events arrive as they happen. Dropping them
    /// cancels it.
    fn submit(&self, request: Request) -> Events;
    /// The model that answers.
    fn info(&self) -> &ModelInfo;
    /// What the engine does right now, and has done since it started.
    fn stats(&self) -> Stats;
    /// Ends what it keeps outside of this program, before that ends; its requests end with
    /// [`Failure::Stopped`]. An engine within this program has nothing to do.
    fn close(&self) {}
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
    /// Requests that run at once.
    pub slots: usize,
    /// A request's answer depends on nothing but the request: the same bytes alone, among others,
    /// or from the cache.
    pub deterministic: bool,
}

/// One prompt to continue.
#[derive(Default)]
pub struct Request {
    /// The prompt, at least one token.
    pub tokens: Vec<u32>,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Most tokens to generate; `None`: as many as the context holds; 0: only the prompt runs.
    pub max_tokens: Option<usize>,
    /// Tokens that end the answer; the one that does is still an event.
    pub stop_ids: Vec<u32>,
    /// Log-probabilities: `None` for none, `Some(n)` for the chosen token's and the `n` best.
    pub logprobs: Option<usize>,
    /// The same for every token of the prompt, as [`Event::PromptLogprobs`]. Such a prompt takes
    /// nothing from the cache: each of its rows has to run.
    pub prompt_logprobs: Option<usize>,
    /// Decides which tokens may come next.
    pub constraint: Option<Box<dyn MaskSource>>,
    /// Ends the request within one step when set.
    pub cancel: Cancel,
}

/// A switch that ends a request; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicU8>);

impl Cancel {
    const CANCELLED: u8 = 1;
    const ENOUGH: u8 = 2;

    /// Ends the request within one step.
    pub fn cancel(&self) {
        self.0.fetch_max(Self::CANCELLED, Ordering::Relaxed);
    }

    /// Ends the request too, but as complete: whoever asked has all it wanted (a stop string).
    pub fn enough(&self) {
        self.0.store(Self::ENOUGH, Ordering::Relaxed);
    }

    /// Whether the request was ended, one way or the other.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// Whether it was ended as complete.
    pub fn is_enough(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::ENOUGH
    }
}

/// What happens to a request. The last event is `Finish` or `Error`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Accepted, waiting for its turn.
    Queued,
    /// The first when the request is admitted, then one for each piece of the prompt that is done.
    Prefill {
        /// Prompt tokens whose keys and values are there, the `cached` ones counted too.
        done: usize,
        /// Prompt tokens.
        total: usize,
        /// Prompt tokens that the cache saves: those whose rows don't run.
        cached: usize,
        /// Why that is not the whole prompt.
        miss: Option<Miss>,
    },
    /// Log-probabilities of the prompt's next tokens, where asked for: in pieces, in order, before
    /// the first token.
    PromptLogprobs(Vec<PromptLogprob>),
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
    Error(Failure),
}

/// How likely the model found one token of the prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptLogprob {
    /// The token.
    pub id: u32,
    /// Its log-probability; `None` for the first, which nothing comes before.
    pub logprob: Option<f32>,
    /// The likeliest tokens in its place with theirs, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why cached tokens are fewer than the prompt's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Miss {
    /// Tokens that the prompt shares with what is or was cached.
    pub at: usize,
    /// What came there.
    pub reason: MissReason,
}

/// What ended the part of a prompt that the cache held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissReason {
    /// What is cached ends here.
    Unknown,
    /// Another token came here.
    Parted {
        /// The token that the cache goes on with.
        cached: u32,
        /// The prompt's.
        found: u32,
    },
    /// It was cached, and made room for something else.
    Evicted,
    /// It is cached, but the sliding windows there had to be computed again.
    Window,
    /// The request or the engine takes nothing from the cache.
    Disabled,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let at = self.at;
        match self.reason {
            MissReason::Unknown if at == 0 => write!(f, "nothing of this prompt is cached"),
            MissReason::Unknown => {
                write!(
                    f,
                    "the first {at} tokens were cached, and nothing after them"
                )
            }
            MissReason::Parted { .. } => write!(
                f,
                "the first {at} tokens were cached; then the prompt goes on otherwise than the \
                 cache"
            ),
            MissReason::Evicted => write!(
                f,
                "what comes after the first {at} tokens was cached, and made room for other requests"
            ),
            MissReason::Window => write!(
                f,
                "the first {at} tokens were cached; the sliding windows before that were computed \
                 again"
            ),
            MissReason::Disabled => write!(f, "this request takes nothing from the cache"),
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The request can't be answered as it is; the text says what is wrong with it.
    #[error("{0}")]
    Invalid(String),
    /// The prompt leaves no room in the context.
    #[error(
        "the prompt has {prompt} tokens and the context holds {context}: shorten the prompt or make \
         more room (--ctx-size)"
    )]
    ContextLength {
        /// Tokens of the prompt.
        prompt: usize,
        /// Most tokens of a sequence, prompt and answer together.
        context: usize,
    },
    /// Too many requests wait already.
    #[error(
        "{waiting} requests are waiting already; try again in {} s",
        retry_after.as_secs_f64().ceil()
    )]
    Busy {
        /// How many.
        waiting: usize,
        /// When there should be room again.
        retry_after: Duration,
    },
    /// The engine was stopped.
    #[error("the engine stopped")]
    Stopped,
    /// The engine or its back end failed.
    #[error("{0}")]
    Broken(String),
    /// What computes is gone, and may be back: the process that the request ran in died, say. The text
    /// says what is known of it.
    #[error("{message}")]
    Unavailable {
        /// What happened.
        message: String,
        /// When it should be back.
        retry_after: Duration,
    },
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
    /// Those of them whose rows did not run, because of the cache.
    pub cached_tokens: usize,
    /// Tokens generated, the stop token included.
    pub generated_tokens: usize,
    /// From arrival to the first piece of the prompt.
    pub queue_time: Duration,
    /// From there to the end of the prompt.
    pub prefill_time: Duration,
    /// From there to the end.
    pub decode_time: Duration,
    /// The answer ended because the context was full.
    pub context_full: bool,
    /// How often the request gave its room to others and was resumed.
    pub preemptions: usize,
    /// The seed in use, given or made up.
    pub seed: u64,
}

/// The engine's gauges, and its counters since the start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Requests that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that can run at once.
    pub slots: usize,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
    /// Those that live requests hold.
    pub kv_blocks_in_use: usize,
    /// Those that hold finished sequences, ready for reuse and for eviction.
    pub kv_blocks_cached: usize,
    /// Places for snapshots of the sliding windows.
    pub snapshots: usize,
    /// Those in use.
    pub snapshots_used: usize,
    /// Bytes of one.
    pub snapshot_bytes: u64,
    /// Counter: tokens of admitted prompts.
    pub prompt_tokens: u64,
    /// Counter: those that came from the cache.
    pub cached_tokens: u64,
    /// Counter: tokens generated.
    pub generated_tokens: u64,
    /// Counter: requests that gave their room to others.
    pub preemptions: u64,
    /// Counter: requests finished, failed ones too.
    pub finished: u64,
    /// Counter: forward passes.
    pub steps: u64,
    /// Rows of the last one.
    pub batch_tokens: usize,
}
