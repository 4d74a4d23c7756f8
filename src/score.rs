//! Teacher-forced scoring: what an engine predicts after each of given tokens, and what every stage computed
//! on the way. The door for every comparison of engines.
//!
//! Whatever it is that computes, positions are scored as one sequence from position 0 on, alone.

use crate::{
    backend::{Backend, Batch, KV_BLOCK, LogitRows, Segment},
    trace,
};
use anyhow::{Result, bail, ensure};
use std::ops::Range;

/// Something that scores given tokens.
pub trait Scorer {
    /// What computes.
    fn describe(&self) -> String;
    /// Size of the vocabulary, padding included: values of a row.
    fn vocab(&self) -> usize;
    /// Calls `row(p, logits)` for each `p` in `first..ids.len()`, in order: the logits `[vocab]` of the
    /// token that follows `ids[..=p]`. An error where an id is outside the vocabulary or there are more ids than
    /// there is room for.
    fn score(
        &mut self,
        ids: &[u32],
        first: usize,
        row: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()>;
    /// Gives `sink` what the stages computed for all of `ids`; a layer's stages in their order, positions of a
    /// stage in order.
    fn trace(&mut self, ids: &[u32], sink: &mut trace::Sink) -> Result<()>;
}

/// A back end of this process as a scorer.
pub struct BackendScorer {
    backend: Box<dyn Backend>,
    piece: usize,
}

impl BackendScorer {
    /// The back end has room for the longest sequence in one slot; `piece` tokens at most go through the
    /// model at once.
    pub fn new(backend: Box<dyn Backend>, piece: usize) -> BackendScorer {
        let piece = piece.clamp(1, backend.limits().batch_tokens.max(1));
        BackendScorer { backend, piece }
    }

    /// The part `positions` of `ids` as a batch.
    fn batch(ids: &[u32], positions: Range<usize>, logits: LogitRows) -> Batch {
        let blocks = ids.len().div_ceil(KV_BLOCK) as u32;
        Batch {
            segments: vec![Segment {
                slot: 0,
                start: positions.start,
                kept: 0,
                tokens: ids[positions].to_vec(),
                blocks: (0..blocks).collect(),
                logits,
            }],
        }
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let room = self.backend.limits().kv_blocks * KV_BLOCK;
        let context = self.backend.config().context.min(room);
        ensure!(
            ids.len() <= context,
            "{} tokens to score; the context is {context}",
            ids.len()
        );
        let vocab = self.vocab();
        if let Some(at) = ids.iter().position(|&id| id as usize >= vocab) {
            bail!(
                "id {} at index {at}; the model's vocabulary has {vocab}",
                ids[at]
            );
        }
        Ok(())
    }
}

impl Scorer for BackendScorer {
    fn describe(&self) -> String {
        self.backend.describe()
    }

    fn vocab(&self) -> usize {
        self.backend.config().vocab
    }

    fn score(
        &mut self,
        ids: &[u32],
        first: usize,
        row: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.check(ids)?;
        let mut start = 0;
        while start < ids.len() {
            // A piece ends where rows begin to be wanted: all of its rows are, or none.
            let wanted = start >= first;
            let limit = if wanted { ids.len() } else { first };
            let end = (start + self.piece).min(limit).min(ids.len());
            let logits = match wanted {
                true => LogitRows::All,
                false => LogitRows::None,
            };
            self.backend
                .forward(&Self::batch(ids, start..end, logits))?;
            if wanted {
                for position in start..end {
                    row(position, self.backend.logits(position - start))?;
                }
            }
            start = end;
        }
        Ok(())
    }

    fn trace(&mut self, ids: &[u32], sink: &mut trace::Sink) -> Result<()> {
        self.check(ids)?;
        for start in (0..ids.len()).step_by(self.piece) {
            let end = (start + self.piece).min(ids.len());
            let batch = Self::batch(ids, start..end, LogitRows::All);
            self.backend.forward_traced(&batch, sink)?;
        }
        Ok(())
    }
}
