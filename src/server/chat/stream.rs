//! A chat completion as chunks.
//!
//! Per choice: a first chunk with the role, as soon as it is known what comes; reasoning, text and
//! calls as deltas; one chunk with the finish reason and an empty delta. Then, where asked for, the
//! usage in a chunk without choices, and `[DONE]`. A failure is an error in the place of the rest.

use super::answer::{Step, Style, Teller, finish_reason, logprobs};
use crate::server::{
    choices::{self, Writer},
    error::ApiError,
    sse::SseEvent,
    turn::{Finish, Outcome, TurnEvent, stopped},
    usage::Total,
};
use futures_util::{Stream, stream::BoxStream};
use serde_json::{Value, json};

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
    let choices = std::iter::repeat_with(choice).take(n).collect();
    choices::events(Chunks { head, choices }, turns)
}

struct Choice {
    teller: Teller,
    /// Its role was told.
    began: bool,
    outcome: Option<Box<Outcome>>,
}

struct Chunks {
    head: Head,
    choices: Vec<Choice>,
}

impl Writer for Chunks {
    type Step = TurnEvent;

    fn step(
        &mut self,
        index: usize,
        event: TurnEvent,
        out: &mut Vec<SseEvent>,
    ) -> Result<(), ApiError> {
        match event {
            TurnEvent::Failed(error) => return Err(error),
            TurnEvent::Done(outcome) if outcome.finish == Finish::Cancelled => {
                return Err(stopped());
            }
            TurnEvent::Done(outcome) => self.finish(index, outcome, out),
            event => self.tell(index, event, out),
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<SseEvent>) {
        if self.head.usage {
            let outcomes = self.choices.iter().filter_map(|c| c.outcome.as_deref());
            let usage = usage(outcomes).value(self.head.explain);
            out.push(self.head.chunk(json!([]), usage));
        }
    }
}

impl Chunks {
    fn tell(&mut self, index: usize, event: TurnEvent, out: &mut Vec<SseEvent>) {
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
        self.begin(index, calls, out);
        out.push(self.chunk(index, delta, tokens, None));
    }

    /// The chunk with the role, if it has not come yet.
    fn begin(&mut self, index: usize, calls: bool, out: &mut Vec<SseEvent>) {
        let began = self.choices.get_mut(index);
        if began.is_some_and(|choice| !std::mem::replace(&mut choice.began, true)) {
            let content = (!calls).then_some("");
            let delta = json!({"role": "assistant", "content": content});
            out.push(self.chunk(index, delta, Value::Null, None));
        }
    }

    fn finish(&mut self, index: usize, outcome: Box<Outcome>, out: &mut Vec<SseEvent>) {
        self.begin(index, false, out);
        let reason = finish_reason(outcome.finish, self.head.style);
        out.push(self.chunk(index, json!({}), Value::Null, Some(reason)));
        if let Some(choice) = self.choices.get_mut(index) {
            choice.outcome = Some(outcome);
        }
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> SseEvent {
        let choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish,
        });
        self.head.chunk(json!([choice]), Value::Null)
    }
}

/// What the choices of one prompt took.
pub fn usage<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Total {
    let mut total = Total::default();
    let outcomes = outcomes.into_iter();
    total.add(outcomes.map(|one| (&one.usage, one.reasoning_tokens, one.miss)));
    total
}
