//! One turn of a conversation, between the wire's types and the engine.
//!
//! [`Served::prepare`] renders the conversation and makes its rules a mask, [`Prepared::start`]
//! submits it and reads the tokens back as [`TurnEvent`]s. A turn is never lost to malformed Harmony: the parser gives every
//! token a place, what it had to put right is counted, and a turn without any answer is an empty
//! answer. The last event is [`TurnEvent::Done`] or [`TurnEvent::Failed`], exactly once.

mod logprobs;
mod reader;

pub use logprobs::{Pending, TokenLogprob};

use super::{choices::Choice, error::ApiError, health::unavailable, models::Served};
use crate::{
    engine::{Cancel, Event, Events, Failure, FinishReason, Miss, Request, Usage},
    grammar::{Constraint, GrammarError, Rules},
    harmony::{Conversation, Effort, Message, Parser, Part, Turn},
    sampler::{MaskSource, Sampling},
};
use axum::http::StatusCode;
use reader::Reader;
use std::{collections::VecDeque, sync::Arc};

/// One turn asked for, in our terms.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// What was said so far.
    pub conversation: Conversation,
    /// What the turn may say.
    pub rules: Rules,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens of the turn, reasoning included; `None`: as many as the context holds.
    pub max_tokens: Option<usize>,
    /// End the turn where one of these comes in final text.
    pub stop: Vec<String>,
    /// Log-probabilities of the texts' tokens, with that many rivals.
    pub logprobs: Option<usize>,
}

/// What happens in a turn. Indices count its messages.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnEvent {
    /// The prompt is being read.
    Progress {
        /// Tokens of it that are done, the cached ones counted too.
        done: usize,
        /// Tokens of it.
        total: usize,
        /// Those that the cache saved.
        cached: usize,
    },
    /// A message begins.
    Open {
        /// Its index.
        index: usize,
        /// What it is for. What is [`Part::Foreign`] is no answer, but nothing else came there:
        /// show it as text or leave it out.
        part: Part,
        /// The message, still without content.
        header: Message,
    },
    /// More of its text; empty only if log-probabilities come with it.
    Text {
        /// Its index.
        index: usize,
        /// The text, never half a character nor any of a stop string.
        text: String,
        /// The tokens that begin in it, where asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// It is complete, or cut.
    Close {
        /// Its index.
        index: usize,
    },
    /// The turn is over; nothing follows.
    Done(Box<Outcome>),
    /// The turn failed; nothing follows.
    Failed(ApiError),
}

/// Why a turn is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
    /// It calls tools.
    ToolCalls,
    /// [`TurnStream::cancel`].
    Cancelled,
}

/// A whole turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Why it is over.
    pub finish: Finish,
    /// What it took. Tokens after a stop string are not counted.
    pub usage: Usage,
    /// Tokens of reasoning text.
    pub reasoning_tokens: usize,
    /// The messages, as they were told.
    pub turn: Turn,
    /// The stop string that ended it.
    pub stopped_by: Option<String>,
    /// Why cached tokens are fewer than the prompt's.
    pub miss: Option<Miss>,
}

impl Served {
    /// The temperature of requests without one: 1, as OpenAI recommends for gpt-oss; 0 for the demo
    /// model, which has one right answer to everything it knows.
    pub fn default_temperature(&self) -> f32 {
        match self.facts.is_demo {
            true => 0.0,
            false => 1.0,
        }
    }

    /// The tokens of the prompt that asks for the next turn.
    ///
    /// # Errors
    /// 400 for what can't be rendered: a date, a tool or a name.
    pub fn prompt(&self, conversation: &Conversation) -> Result<Vec<u32>, ApiError> {
        let rendered = conversation.render(&self.tokenizer);
        rendered.map_err(|error| ApiError::invalid("messages", format!("{error:#}")))
    }

    /// Makes all that a turn needs, on a thread that may block: long prompts and large schemas take
    /// their time.
    ///
    /// # Errors
    /// 400 if the conversation or the rules can't be expressed, or the prompt does not fit.
    pub async fn prepare(self: &Arc<Self>, ask: Ask) -> Result<Prepared, ApiError> {
        let served = Arc::clone(self);
        let prepared = tokio::task::spawn_blocking(move || served.prepared(ask)).await;
        prepared.unwrap_or_else(|_| Err(ApiError::internal("The turn could not be started.")))
    }

    fn prepared(self: Arc<Self>, ask: Ask) -> Result<Prepared, ApiError> {
        let tokens = self.prompt(&ask.conversation)?;
        let context = self.engine.info().context;
        if tokens.len() >= context {
            return Err(ApiError::context_length(tokens.len(), context));
        }
        let parser = Parser::new(self.tokenizer.clone(), ask.conversation.tool_names());
        let parser = parser.map_err(|error| ApiError::invalid("model", format!("{error:#}")))?;
        Ok(Prepared {
            constraint: self.grammars.constrain(&ask.rules, &ask.conversation)?,
            parser,
            tokens,
            ask,
            served: self,
        })
    }
}

/// A turn that can be started, as often as it is wanted.
pub struct Prepared {
    served: Arc<Served>,
    ask: Ask,
    tokens: Vec<u32>,
    parser: Parser,
    constraint: Option<Box<Constraint>>,
}

impl Prepared {
    /// Submits the turn as choice `choice` of its request, which draws with the request's seed plus
    /// that.
    pub fn start(&self, choice: usize) -> TurnStream {
        let (served, ask) = (&self.served, &self.ask);
        let cancel = Cancel::default();
        let seed = ask.sampling.seed;
        let constraint = self.constraint.clone();
        let events = served.engine.submit(Request {
            tokens: self.tokens.clone(),
            sampling: Sampling {
                seed: seed.map(|seed| seed.wrapping_add(choice as u64)),
                ..ask.sampling.clone()
            },
            max_tokens: ask.max_tokens,
            stop_ids: served.tokenizer.stop_ids(),
            logprobs: ask.logprobs,
            constraint: constraint.map(|constraint| constraint as Box<dyn MaskSource>),
            cancel: cancel.clone(),
            ..Request::default()
        });
        TurnStream {
            events,
            cancel,
            reader: Some(Reader::new(
                served.tokenizer.clone(),
                self.parser.clone(),
                ask.stop.clone(),
                !ask.rules.parallel,
                ask.logprobs.is_some(),
            )),
            ready: VecDeque::new(),
            admitted: false,
            usage: Usage::default(),
            miss: None,
            served: served.clone(),
        }
    }
}

impl From<GrammarError> for ApiError {
    fn from(error: GrammarError) -> ApiError {
        ApiError::invalid(error.param, error.message)
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> ApiError {
        match failure {
            Failure::Invalid(message) => {
                ApiError::new(StatusCode::BAD_REQUEST, message).code("invalid_value")
            }
            Failure::ContextLength { prompt, context } => ApiError::context_length(prompt, context),
            Failure::Busy {
                waiting,
                retry_after,
            } => ApiError::busy(
                &format!("{waiting} requests are waiting already."),
                retry_after,
            ),
            Failure::Stopped => stopped(),
            Failure::Broken(message) => {
                tracing::error!("the engine failed: {message}");
                ApiError::internal("The engine failed on this request; the server's log says why.")
            }
            Failure::Unavailable {
                message,
                retry_after,
            } => {
                tracing::error!("{message}");
                unavailable(&message, "engine_unavailable", retry_after)
            }
        }
    }
}

/// How much the model should think, and a bound on its reasoning's tokens, by OpenAI's word in `field`.
/// Words between gpt-oss's three mean the nearest; `none` means no reasoning at all.
///
/// # Errors
/// 400 for another word.
pub fn effort(field: &str, word: Option<&str>) -> Result<(Effort, Option<usize>), ApiError> {
    Ok(match word {
        None => (Effort::default(), None),
        Some("none") => (Effort::Low, Some(0)),
        Some("minimal" | "low") => (Effort::Low, None),
        Some("medium") => (Effort::Medium, None),
        Some("high" | "xhigh" | "max") => (Effort::High, None),
        Some(other) => {
            return Err(ApiError::invalid(
                field,
                format!(
                    "Invalid '{field}': expected none, minimal, low, medium, high, xhigh or max, \
                     found {other:?}."
                ),
            ));
        }
    })
}

/// 503: the server is going down.
pub fn stopped() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "The server is shutting down.",
    )
    .code("server_shutting_down")
}

/// A turn's events. Dropping it cancels the turn.
pub struct TurnStream {
    events: Events,
    cancel: Cancel,
    /// Until the turn is over.
    reader: Option<Reader>,
    ready: VecDeque<TurnEvent>,
    admitted: bool,
    /// As far as it is known before the end.
    usage: Usage,
    miss: Option<Miss>,
    served: Arc<Served>,
}

impl Choice for TurnStream {
    type Step = TurnEvent;

    async fn next(&mut self) -> Option<TurnEvent> {
        TurnStream::next(self).await
    }

    async fn admitted(&mut self) -> Result<(), ApiError> {
        TurnStream::admitted(self).await
    }
}

impl TurnStream {
    /// The next event; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<TurnEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            self.reader.as_ref()?;
            let event = self.events.next_event().await;
            self.take(event.unwrap_or(Event::Error(Failure::Stopped)));
        }
    }

    /// Waits until the turn is admitted: an error known by then can become the HTTP status.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The failure that is the turn's only event.
    pub async fn admitted(&mut self) -> Result<(), ApiError> {
        while !self.admitted && self.reader.is_some() {
            let event = self.events.next_event().await;
            self.take(event.unwrap_or(Event::Error(Failure::Stopped)));
        }
        match self.ready.front() {
            Some(TurnEvent::Failed(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Ends the turn within one step; its last event still comes.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Queued | Event::PromptLogprobs(_) => {}
            Event::Prefill {
                done,
                total,
                cached,
                miss,
            } => {
                self.admitted = true;
                (self.usage.prompt_tokens, self.usage.cached_tokens) = (total, cached);
                self.miss = miss;
                self.ready.push_back(TurnEvent::Progress {
                    done,
                    total,
                    cached,
                });
            }
            Event::Token { id, logprob, top } => {
                let Some(reader) = &mut self.reader else {
                    return;
                };
                let before = self.ready.len();
                reader.push(id, logprob, &top, &mut self.ready);
                if reader.is_over() {
                    self.cancel.enough();
                }
                let opened = self.ready.range(before..);
                if opened.into_iter().any(is_foreign) {
                    let model = &self.served.name;
                    tracing::warn!(model, "the model wrote in another's name");
                }
            }
            Event::Finish { reason, usage } => self.finish(reason, usage),
            // All of the answer is there: what fails after it takes nothing away.
            Event::Error(_) if self.reader.as_ref().is_some_and(Reader::is_over) => {
                self.finish(FinishReason::Stop, self.usage);
            }
            Event::Error(failure) => {
                self.reader = None;
                self.ready.push_back(TurnEvent::Failed(failure.into()));
            }
        }
    }

    fn finish(&mut self, reason: FinishReason, mut usage: Usage) {
        let Some(reader) = self.reader.take() else {
            return;
        };
        let told = reader.finish(&mut self.ready);
        usage.generated_tokens = told.tokens;
        let calls = told.turn.calls().next().is_some();
        let (model, metrics) = (&self.served.name, &self.served.metrics);
        for (repair, count) in told.turn.repairs.iter() {
            let kind = repair.to_string();
            tracing::info!(model, kind, count, "put malformed Harmony right");
            metrics.harmony_repairs(model, &kind, count);
        }
        let said = told.turn.parts.iter().any(|part| *part != Part::Reasoning);
        if reason == FinishReason::Stop && !said {
            // It ended by itself, but without an answer: an empty one.
            tracing::info!(model, "a turn without an answer");
            metrics.harmony_repairs(model, "no answer", 1);
        }
        let finish = match reason {
            FinishReason::Length if !told.cut => Finish::Length,
            FinishReason::Cancelled if !told.cut => Finish::Cancelled,
            // A stop string after them too: whoever called waits for an answer.
            _ if calls => Finish::ToolCalls,
            _ => Finish::Stop,
        };
        self.ready.push_back(TurnEvent::Done(Box::new(Outcome {
            finish,
            usage,
            reasoning_tokens: told.turn.reasoning_tokens(),
            turn: told.turn,
            stopped_by: told.stopped_by,
            miss: self.miss,
        })));
    }
}

fn is_foreign(event: &TurnEvent) -> bool {
    let TurnEvent::Open { part, .. } = event else {
        return false;
    };
    *part == Part::Foreign
}
