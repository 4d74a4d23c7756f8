//! A chat completion as chunks.
//!
//! Per choice: a first chunk with the role, as soon as it is known what comes; reasoning, text and
//! calls as deltas; one chunk with the finish reason and an empty delta. Then, where asked for, the
//! usage in a chunk without choices, and `[DONE]`. A failure is an error in the place of the rest.

use super::answer::{Step, Style, Teller, finish_reason, logprobs};
use crate::server::{
    sse::SseEvent,
    turn::{Finish, Outcome, TurnEvent, stopped},
    usage::Total,
};
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use serde_json::{Value, json};
use std::collections::VecDeque;

/// What all chunks of a response share, and how they are written.
#[derive(Debug, Clone)]
pub struct Head {
    /// `chatcmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's true name.
    pub model: String,
    /// The answer's style.
    pub style: Style,
    /// The answer has a shape.
    pub shaped: bool,
    /// Usage in a last chunk.
    pub usage: bool,
    /// With the reason of a cache miss.
    pub explain: bool,
}

impl Head {
    /// A response or chunk without its choices.
    pub fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": crate::server::FINGERPRINT,
            "choices": choices,
        })
    }

    fn chunk(&self, choices: Value, usage: Value) -> SseEvent {
        let mut chunk = self.object("chat.completion.chunk", choices);
        if self.usage {
            chunk["usage"] = usage;
        }
        SseEvent::json(&chunk)
    }
}

/// The events of a response of `n` choices, of whose turns come `turns`. Dropping it cancels them.
pub fn events(
    head: Head,
    n: usize,
    turns: BoxStream<'static, (usize, TurnEvent)>,
) -> impl Stream<Item = SseEvent> + Send {
    let choice = || Choice {
        teller: Teller::new(head.shaped),
        began: false,
        outcome: None,
    };
    let chunks = Chunks {
        choices: std::iter::repeat_with(choice).take(n).collect(),
        turns,
        head,
        ready: VecDeque::new(),
        over: false,
    };
    stream::unfold(chunks, |mut chunks| async move {
        let event = chunks.next().await?;
        Some((event, chunks))
    })
}

struct Choice {
    teller: Teller,
    /// Its role was told.
    began: bool,
    outcome: Option<Box<Outcome>>,
}

struct Chunks {
    head: Head,
    turns: BoxStream<'static, (usize, TurnEvent)>,
    choices: Vec<Choice>,
    ready: VecDeque<SseEvent>,
    over: bool,
}

impl Chunks {
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            match self.turns.next().await {
                Some((_, TurnEvent::Failed(error))) => self.fail(SseEvent::error(&error)),
                Some((_, TurnEvent::Done(outcome))) if outcome.finish == Finish::Cancelled => {
                    self.fail(SseEvent::error(&stopped()));
                }
                Some((index, TurnEvent::Done(outcome))) => self.finish(index, outcome),
                Some((index, event)) => self.step(index, event),
                None => self.end(),
            }
        }
    }

    fn fail(&mut self, error: SseEvent) {
        self.turns = stream::empty().boxed();
        self.over = true;
        self.ready.extend([error, SseEvent::Done]);
    }

    fn step(&mut self, index: usize, event: TurnEvent) {
        let style = self.head.style;
        let Some(choice) = self.choices.get_mut(index) else {
            return;
        };
        let Some(step) = choice.teller.tell(event) else {
            return;
        };
        let calls = matches!(step, Step::Call { .. });
        let mut tokens = Value::Null;
        let delta = match step {
            Step::Reasoning(_) if !style.reasoning => return,
            Step::Reasoning(text) => json!({"reasoning": text, "reasoning_content": text}),
            Step::Text {
                text,
                logprobs: found,
            } => {
                if style.logprobs {
                    tokens = logprobs(&found);
                }
                json!({"content": text})
            }
            Step::Call { name, .. } if style.legacy => {
                json!({"function_call": {"name": name, "arguments": ""}})
            }
            Step::Arguments { text, .. } if style.legacy => {
                json!({"function_call": {"arguments": text}})
            }
            Step::Call { index, id, name } => {
                let function = json!({"name": name, "arguments": ""});
                let call =
                    json!({"index": index, "id": id, "type": "function", "function": function});
                json!({"tool_calls": [call]})
            }
            Step::Arguments { index, text } => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            }
        };
        self.begin(index, calls);
        self.chunk(index, delta, tokens, None);
    }

    /// The chunk with the role, if it has not come yet.
    fn begin(&mut self, index: usize, calls: bool) {
        let began = self.choices.get_mut(index);
        if began.is_some_and(|choice| !std::mem::replace(&mut choice.began, true)) {
            let content = (!calls).then_some("");
            let delta = json!({"role": "assistant", "content": content});
            self.chunk(index, delta, Value::Null, None);
        }
    }

    fn finish(&mut self, index: usize, outcome: Box<Outcome>) {
        self.begin(index, false);
        let reason = finish_reason(outcome.finish, self.head.style);
        self.chunk(index, json!({}), Value::Null, Some(reason));
        if let Some(choice) = self.choices.get_mut(index) {
            choice.outcome = Some(outcome);
        }
    }

    fn chunk(&mut self, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) {
        let choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish,
        });
        let chunk = self.head.chunk(json!([choice]), Value::Null);
        self.ready.push_back(chunk);
    }

    fn end(&mut self) {
        self.over = true;
        if self.head.usage {
            let outcomes = self.choices.iter().filter_map(|c| c.outcome.as_deref());
            let usage = usage(outcomes).value(self.head.explain);
            self.ready.push_back(self.head.chunk(json!([]), usage));
        }
        self.ready.push_back(SseEvent::Done);
    }
}

/// What the choices of one prompt took.
pub fn usage<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Total {
    let mut total = Total::default();
    let outcomes = outcomes.into_iter();
    total.add(outcomes.map(|one| (&one.usage, one.reasoning_tokens, one.miss)));
    total
}
