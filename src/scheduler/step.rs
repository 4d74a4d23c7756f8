//! One step: which rows run, with whose masks, and what came of them.

use super::{
    Message, Scheduler, keep_windows,
    plan::{self, GRID, Want},
    sequence::Live,
};
use crate::{
    backend::{LogitRows, Segment},
    engine::{Failure, FinishReason},
};
use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

/// Rows whose logits a step computes to score prompts: bounds the memory that they take.
const SCORED_ROWS: usize = 32;

impl Scheduler {
    /// Fills the batch: decoding rows first, then pieces of prompts.
    pub(super) fn plan(&mut self) {
        self.batch.segments.clear();
        self.planned.clear();
        self.make_room();
        let is_decode = |live: &Live| live.pending() == 1 && !live.is_unscored();
        let mut budget = self.rules.batch_tokens;
        for i in 0..self.running.len() {
            let live = &self.running[i];
            if live.late.is_none() && is_decode(live) && budget > 0 {
                budget -= 1;
                let logits = live.sequence.last_row(self.rules.draws);
                self.push(i, 1, logits);
            }
        }
        if !self.batch.segments.is_empty() {
            budget = self.pace.piece(budget);
        }
        let prompts: Vec<usize> = (0..self.running.len())
            .filter(|&i| self.running[i].late.is_none() && !is_decode(&self.running[i]))
            .collect();
        let wants: Vec<Want> = prompts
            .iter()
            .map(|&i| {
                let live = &self.running[i];
                let most = if live.is_scored() {
                    SCORED_ROWS
                } else {
                    usize::MAX
                };
                // Who follows it waits for no more than that; its own turn may be much later.
                let followers = self.waiting.iter().filter_map(|waiting| waiting.follows);
                let awaited = followers
                    .filter(|&(id, len)| id == live.sequence.id && len > live.done)
                    .map(|(_, len)| len - live.done);
                Want {
                    rows: (live.limit() - live.done).min(most),
                    remaining: awaited.min().unwrap_or_else(|| live.pending()),
                    id: live.sequence.id,
                }
            })
            .collect();
        let mut scored = SCORED_ROWS;
        for (&i, rows) in prompts.iter().zip(plan::shares(&wants, budget)) {
            let live = &self.running[i];
            let mut rows = rows;
            let logits = if live.is_scored() {
                rows = rows.min(scored);
                scored -= rows;
                LogitRows::All
            } else if rows == live.pending() {
                live.sequence.last_row(self.rules.draws)
            } else {
                LogitRows::None
            };
            if rows > 0 {
                self.push(i, rows, logits);
            }
        }
    }

    /// Adds the next `rows` of a running sequence to the batch. Its block table is lent.
    fn push(&mut self, i: usize, rows: usize, logits: LogitRows) {
        let live = &mut self.running[i];
        self.batch.segments.push(Segment {
            slot: live.slot,
            start: live.done,
            kept: live.kept,
            tokens: live.sequence.tokens[live.done..live.done + rows].to_vec(),
            blocks: std::mem::take(&mut live.table.blocks),
            logits,
        });
        self.planned.push(i);
    }

    pub(super) fn take_back_tables(&mut self) {
        for (segment, &i) in self.batch.segments.iter_mut().zip(&self.planned) {
            self.running[i].table.blocks = std::mem::take(&mut segment.blocks);
        }
    }

    /// Sees that every decoding sequence has a block for its next position, at the cost of what is
    /// cached, then of the youngest.
    fn make_room(&mut self) {
        let mut decoding: Vec<u64> = self.running.iter().map(|live| live.sequence.id).collect();
        decoding.sort_unstable();
        for id in decoding {
            loop {
                let found = self.running.iter().position(|live| live.sequence.id == id);
                let Some(i) = found else { break };
                let live = &mut self.running[i];
                let end = live.sequence.tokens.len();
                if live.late.is_some() || self.cache.grow(&mut live.table, end).is_ok() {
                    break;
                }
                // Alone it has all blocks, and a context fits into these: only a guard.
                if self.running.len() == 1 {
                    self.running[i].sequence.usage.context_full = true;
                    self.finish(i, FinishReason::Length);
                    break;
                }
                let ids = self.running.iter().map(|live| live.sequence.id);
                if let Some((youngest, _)) = ids.enumerate().max_by_key(|&(_, id)| id) {
                    self.preempt(youngest);
                }
            }
        }
    }

    /// Takes a running sequence's room; it waits again, in its place.
    fn preempt(&mut self, i: usize) {
        let mut live = self.running.remove(i);
        keep_windows(&mut self.cache, &mut *self.backend, &live);
        self.cache.release(std::mem::take(&mut live.table));
        self.free_slots.push(live.slot);
        self.totals.preemptions += 1;
        let mut sequence = live.sequence;
        sequence.usage.preemptions += 1;
        sequence.follows = None;
        self.queue(sequence);
    }

    /// Begins the masks of the rows that are about to be sampled.
    pub(super) fn begin_masks(&mut self) {
        for (segment, &i) in self.batch.segments.iter().zip(&self.planned) {
            let sequence = &mut self.running[i].sequence;
            let ends = segment.start + segment.tokens.len() == sequence.tokens.len();
            if let (true, true, Some(constraint)) =
                (ends, sequence.is_sampled(), &mut sequence.constraint)
            {
                self.masks.begin(sequence.id, constraint, &sequence.cancel);
            }
        }
    }

    /// Waits for the masks of this step, up to `patience`.
    pub(super) fn collect_masks(&mut self, inbox: &mpsc::Receiver<Message>, patience: Duration) {
        let deadline = Instant::now() + patience;
        let missing = |scheduler: &Scheduler| {
            scheduler
                .batch
                .segments
                .iter()
                .zip(&scheduler.planned)
                .any(|(segment, &i)| {
                    let sequence = &scheduler.running[i].sequence;
                    let ends = segment.start + segment.tokens.len() == sequence.tokens.len();
                    let constraint = sequence.constraint.as_ref();
                    ends && sequence.is_sampled() && constraint.is_some_and(|c| c.mask().is_none())
                })
        };
        while missing(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(message) = inbox.recv_timeout(left) else {
                return;
            };
            let stops = matches!(message, Message::Stop);
            self.take(message);
            if stops {
                return;
            }
        }
    }

    /// Hands out what the forward pass gave. Returns the rows of prompts.
    pub(super) fn digest(&mut self) -> usize {
        let mut first_row = 0;
        let mut prompt_rows = 0;
        let mut ready = Vec::new();
        for s in 0..self.batch.segments.len() {
            let (i, segment) = (self.planned[s], &self.batch.segments[s]);
            let rows = segment.tokens.len();
            prompt_rows += if rows > 1 { rows } else { 0 };
            let live = &mut self.running[i];
            live.done += rows;
            if self.rules.prefix_cache {
                let tokens = &live.sequence.tokens[..live.done];
                self.cache.advance(&mut live.table, tokens);
            }
            let row = first_row;
            first_row += match segment.logits {
                LogitRows::None => 0,
                LogitRows::Last | LogitRows::Draw(_) => 1,
                LogitRows::All => rows,
            };
            if live.done >= live.sequence.prompt && live.sequence.answered.is_none() {
                live.sequence.answered = Some(Instant::now());
            }
            live.sequence.report(live.done);
            if segment.logits == LogitRows::All {
                let scored = self.score(i, row, rows);
                let failure = scored.err().map(|error| Failure::Broken(error.to_string()));
                self.running[i].broken = failure;
            }
            self.keep_windows_here(i);
            if self.running[i].pending() == 0 {
                ready.push((i, first_row.saturating_sub(1)));
            }
        }
        self.sample(ready);
        prompt_rows
    }

    /// Keeps the windows of a running sequence if this is a position where that is wanted.
    fn keep_windows_here(&mut self, i: usize) {
        let live = &mut self.running[i];
        let (done, tokens) = (live.done, &live.sequence.tokens);
        let mut wanted = done.is_multiple_of(GRID) || done == live.sequence.prompt;
        wanted |= self.rules.marker.is_some() && tokens.get(done).copied() == self.rules.marker;
        while live.cuts.front().is_some_and(|&cut| cut <= done) {
            live.cuts.pop_front();
            wanted = true;
        }
        if wanted {
            keep_windows(&mut self.cache, &mut *self.backend, live);
        }
    }
}
