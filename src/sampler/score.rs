//! How likely the model found a token that was given.

use super::{SampleError, Sampler};

impl Sampler {
    /// The log-probability of `id` under raw logits `[vocab]`, and the `n` likeliest tokens with
    /// theirs, best first. Remembers nothing.
    pub fn score(
        &self,
        logits: &[f32],
        id: u32,
        n: usize,
    ) -> Result<(f32, Vec<(u32, f32)>), SampleError> {
        if logits.len() != self.vocab {
            return Err(SampleError::Length {
                expected: self.vocab,
                found: logits.len(),
            });
        }
        let (logprob, top) = self.logprobs(logits, id, n)?;
        Ok((logprob.unwrap_or(f32::NEG_INFINITY), top))
    }
}
