//! A request on its way through the [`driver`](super::driver).

use crate::{
    engine::{Cancel, Usage},
    sampler::Sampling,
    scheduler::{Client, Constraint},
};
use std::time::{Duration, Instant};

/// A request, waiting or with the worker.
pub struct Live {
    pub id: u64,
    pub tokens: Vec<u32>,
    /// Most tokens to generate, as asked.
    pub most: usize,
    /// Most that the context holds.
    pub room: usize,
    pub stop_ids: Vec<u32>,
    pub sampling: Sampling,
    pub logprobs: Option<usize>,
    pub prompt_logprobs: Option<usize>,
    /// Tokens of the prompt whose log-probabilities were told.
    pub scored: usize,
    pub constraint: Option<Constraint>,
    pub cancel: Cancel,
    pub client: Client,
    pub usage: Usage,
    pub arrived: Instant,
    pub admitted: Option<Instant>,
    pub answered: Option<Instant>,
}

impl Live {
    /// Whether nobody waits for it any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.client.is_closed()
    }

    /// Tokens that it may come to in the end.
    pub fn longest(&self) -> usize {
        self.tokens.len() + self.most.min(self.room)
    }

    /// What it took, to the end.
    pub fn usage(&self) -> Usage {
        let (prefill_time, decode_time) = match (self.admitted, self.answered) {
            (Some(admitted), Some(answered)) => (answered - admitted, answered.elapsed()),
            (Some(admitted), None) => (admitted.elapsed(), Duration::ZERO),
            (None, _) => (Duration::ZERO, Duration::ZERO),
        };
        Usage {
            queue_time: self.admitted.unwrap_or_else(Instant::now) - self.arrived,
            prefill_time,
            decode_time,
            ..self.usage
        }
    }

    /// Whether its answer is complete after `token`.
    pub fn ends_with(&self, token: u32) -> bool {
        self.stop_ids.contains(&token) || self.usage.generated_tokens >= self.most.min(self.room)
    }
}
