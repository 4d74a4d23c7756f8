//! A completion as one object or as chunks.
//!
//! Chunks come as they come, each of one choice; a choice's last has its finish reason. Then, where
//! asked for, the usage in a chunk without choices, and `[DONE]`. A failure is an error in the place
//! of the rest.

use super::run::{Done, Piece, Step, logprobs};
use crate::server::{
    FINGERPRINT,
    choices::{self, Writer},
    error::ApiError,
    sse::SseEvent,
    turn::stopped,
    usage::Total,
};
use futures_util::{Stream, StreamExt, stream::BoxStream};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What all chunks of a response share.
pub struct Head {
    /// `cmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's true name.
    pub model: String,
    /// Choices of each prompt.
    pub n: usize,
    /// With log-probabilities.
    pub logprobs: bool,
    /// Usage in a last chunk.
    pub usage: bool,
    /// With the reason of a cache miss.
    pub explain: bool,
}

impl Head {
    fn object(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        })
    }

    fn choice(&self, index: usize, piece: &Piece, finish: Option<&str>) -> Value {
        json!({
            "text": piece.text,
            "index": index,
            "logprobs": self.logprobs.then(|| logprobs(&piece.tokens)),
            "finish_reason": finish,
        })
    }

    fn total<'a>(&self, done: impl IntoIterator<Item = &'a Done>) -> Value {
        let done: Vec<&Done> = done.into_iter().collect();
        let mut total = Total::default();
        for choices in done.chunks(self.n) {
            total.add(choices.iter().map(|done| (&done.usage, 0, done.miss)));
        }
        total.value(self.explain)
    }
}

/// `count` choices, each to its end.
///
/// # Errors
/// That of the first that fails.
pub async fn whole(
    count: usize,
    mut steps: BoxStream<'static, (usize, Step)>,
) -> Result<Vec<(Piece, Box<Done>)>, ApiError> {
    let none = || (Piece::default(), None);
    let mut choices: Vec<_> = std::iter::repeat_with(none).take(count).collect();
    while let Some((index, step)) = steps.next().await {
        let Some((whole, over)) = choices.get_mut(index) else {
            continue;
        };
        match step {
            Step::Text(piece) => whole.add(piece),
            Step::Done(mut done) => {
                whole.add(std::mem::take(&mut done.rest));
                *over = Some(done);
            }
            Step::Failed(error) => return Err(error),
        }
    }
    let choices = choices
        .into_iter()
        .map(|(piece, over)| Some((piece, over?)));
    choices.collect::<Option<_>>().ok_or_else(stopped)
}

/// The whole response.
pub fn response(head: &Head, answers: Vec<(Piece, Box<Done>)>) -> Value {
    let choices = answers.iter().enumerate();
    let choices: Vec<Value> = choices
        .map(|(index, (piece, done))| head.choice(index, piece, Some(done.finish)))
        .collect();
    let mut response = head.object(json!(choices));
    response["usage"] = head.total(answers.iter().map(|(_, done)| &**done));
    response
}

/// The events of a response of whose choices come `steps`. Dropping it cancels them.
pub fn events(
    head: Head,
    steps: BoxStream<'static, (usize, Step)>,
) -> impl Stream<Item = SseEvent> + Send {
    let done = BTreeMap::new();
    choices::events(Chunks { head, done }, steps)
}

struct Chunks {
    head: Head,
    done: BTreeMap<usize, Box<Done>>,
}

impl Writer for Chunks {
    type Step = Step;

    fn step(&mut self, index: usize, step: Step, out: &mut Vec<SseEvent>) -> Result<(), ApiError> {
        match step {
            Step::Text(piece) => out.push(self.chunk(index, &piece, None)),
            Step::Done(done) => {
                out.push(self.chunk(index, &done.rest, Some(done.finish)));
                self.done.insert(index, done);
            }
            Step::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<SseEvent>) {
        if self.head.usage {
            let usage = self.head.total(self.done.values().map(|done| &**done));
            out.push(self.event(json!([]), usage));
        }
    }
}

impl Chunks {
    fn chunk(&self, index: usize, piece: &Piece, finish: Option<&str>) -> SseEvent {
        let choice = self.head.choice(index, piece, finish);
        self.event(json!([choice]), Value::Null)
    }

    fn event(&self, choices: Value, usage: Value) -> SseEvent {
        let mut chunk = self.head.object(choices);
        if self.head.usage {
            chunk["usage"] = usage;
        }
        SseEvent::json(&chunk)
    }
}
