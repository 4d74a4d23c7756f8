//! Waiting and running requests to batches: continuous batching over one back end.
//!
//! A step takes in what arrived, drops what was cancelled, admits, plans a ragged batch (decoding
//! rows first, then pieces of prompts), runs it, and hands out what came of it. One thread, no lock
//! held, no decision that changes an answer: where prompts are cut, who shares a step and what comes
//! from the cache changes only the time.
//!
//! Why no request waits for ever:
//! - Each step gives a row to every running sequence that decodes, and rows to the oldest prompt. So
//!   the oldest running sequence advances in every step, but for one that waits for its own mask,
//!   which holds up nobody else.
//! - Blocks that run out are taken from the youngest running sequence, never from an older one. So
//!   the oldest is never preempted; it ends after at most `context` tokens of its own, and then the
//!   next one is the oldest. One that runs alone has the whole cache, and ends when it is full.
//! - Who waits is admitted in order of arrival as soon as there is a slot, and blocks beyond what the
//!   running ones need next; with nothing running all blocks can be had, and any prompt that was
//!   accepted fits. A preempted sequence keeps its place in that order.
//! - A sequence steps aside only for one that runs and computes the same beginning, and only until
//!   that has passed the parting point, ends, or is preempted.

mod admit;
mod masks;
mod plan;
mod sample;
mod sequence;

pub use masks::{Constraint, Done};
pub use sequence::Sequence;

use crate::{
    backend::{Backend, Batch, LogitRows, Segment, snapshot_bytes},
    engine::{Event, EventSender, Failure, FinishReason, Stats},
    kv::KvCache,
};
use anyhow::{Result, anyhow};
use masks::Masks;
use plan::{GRID, Pace, Want};
use sequence::Live;
use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// Rows whose logits a step computes to score prompts: bounds the memory that they take.
const SCORED_ROWS: usize = 32;
/// How long a step waits, after its forward pass, for masks that are not ready.
const MASK_GRACE: Duration = Duration::from_millis(5);

/// What reaches the engine's thread.
pub enum Message {
    /// A checked request.
    Request(Box<Sequence>),
    /// A mask that was asked for.
    Mask(Done),
    /// Nothing more.
    Stop,
}

/// What the engine's thread and its callers both see.
#[derive(Default)]
pub struct Shared {
    /// Requests accepted and not over.
    pub live: AtomicUsize,
    stats: Mutex<Stats>,
    retry_after: Mutex<Duration>,
}

impl Shared {
    /// As of the last step.
    pub fn stats(&self) -> Stats {
        let mut stats = self
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        stats.waiting = self
            .live
            .load(Ordering::Relaxed)
            .saturating_sub(stats.running);
        stats
    }

    /// When there should be room in the queue again.
    pub fn retry_after(&self) -> Duration {
        *self
            .retry_after
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What never changes.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Most tokens of a sequence.
    pub context: usize,
    /// Sequences that run at once.
    pub slots: usize,
    /// Rows of a step.
    pub batch_tokens: usize,
    /// The token that begins a message.
    pub marker: Option<u32>,
    /// Whether prompts may begin with what the cache holds.
    pub prefix_cache: bool,
}

/// Everything between requests and the back end.
pub struct Scheduler {
    backend: Box<dyn Backend>,
    rules: Rules,
    receptive_field: usize,
    cache: KvCache,
    free_slots: Vec<usize>,
    /// In order of arrival.
    waiting: VecDeque<Sequence>,
    running: Vec<Live>,
    masks: Masks,
    pace: Pace,
    last_finish: Option<Instant>,
    /// Last events, to be sent when the books are in order.
    over: Vec<(EventSender, Event)>,
    /// Kept between steps for its memory.
    batch: Batch,
    /// Running sequences of the batch's segments.
    planned: Vec<usize>,
    totals: Stats,
    shared: Arc<Shared>,
}

impl Scheduler {
    /// An idle scheduler. Masks that are asked for come back through `inbox`.
    pub fn new(
        backend: Box<dyn Backend>,
        rules: Rules,
        inbox: mpsc::Sender<Message>,
        shared: Arc<Shared>,
    ) -> Scheduler {
        let limits = backend.limits();
        let places = if rules.prefix_cache {
            limits.snapshots
        } else {
            0
        };
        let totals = Stats {
            slots: rules.slots,
            kv_blocks: limits.kv_blocks,
            snapshots: places,
            snapshot_bytes: snapshot_bytes(backend.config()),
            ..Stats::default()
        };
        let mut scheduler = Scheduler {
            receptive_field: backend.config().receptive_field(),
            cache: KvCache::new(limits.kv_blocks, places),
            free_slots: (0..rules.slots).rev().collect(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            masks: Masks::new(inbox),
            pace: Pace::default(),
            last_finish: None,
            over: Vec::new(),
            batch: Batch::default(),
            planned: Vec::new(),
            totals,
            shared,
            backend,
            rules,
        };
        scheduler.publish();
        scheduler
    }

    /// Takes a request or a mask.
    pub fn take(&mut self, message: Message) {
        match message {
            Message::Request(sequence) => self.queue(*sequence),
            Message::Mask(done) => {
                let running = self.running.iter_mut().map(|live| &mut live.sequence);
                let mut all = running.chain(&mut self.waiting);
                // Whoever asked for it may be gone.
                if let Some(sequence) = all.find(|s| s.id == done.id)
                    && let Some(constraint) = &mut sequence.constraint
                {
                    constraint.put(done);
                }
            }
            Message::Stop => {}
        }
    }

    /// Whether a step has something to do. If not, only a message changes that.
    pub fn is_ready(&self) -> bool {
        let ready = |live: &Live| {
            let mask = live.sequence.constraint.as_ref().and_then(|c| c.mask());
            live.late.is_none() || mask.is_some()
        };
        self.running.iter().any(ready) || !self.waiting.is_empty() && self.running.is_empty()
    }

    /// Whether no request is left.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// One step. `inbox` is looked at for masks that belong to it.
    pub fn step(&mut self, inbox: &mpsc::Receiver<Message>) {
        self.end_lost();
        self.admit();
        self.sample_late();
        self.plan();
        if !self.batch.segments.is_empty() {
            let started = Instant::now();
            self.begin_masks();
            let done = guard(|| self.backend.forward(&self.batch));
            self.take_back_tables();
            self.totals.steps += 1;
            self.totals.batch_tokens = self.batch.tokens();
            let done = done.and_then(|()| {
                self.collect_masks(inbox);
                self.digest()
            });
            match done {
                Ok(rows) => self.pace.stepped(rows, started.elapsed()),
                Err(error) => self.fail(&error),
            }
        }
        self.publish();
        self.hang_up();
    }

    /// Ends everything: the engine stops.
    pub fn stop(&mut self) {
        while let Some(live) = self.running.pop() {
            self.release(live, Event::Error(Failure::Stopped));
        }
        while let Some(sequence) = self.waiting.pop_front() {
            self.end(sequence, Event::Error(Failure::Stopped));
        }
        self.publish();
        self.hang_up();
    }

    /// Ends what was cancelled, and what can't go on.
    fn end_lost(&mut self) {
        for i in (0..self.running.len()).rev() {
            let live = &mut self.running[i];
            if let Some(failure) = live.broken.take() {
                self.abandon(i, failure);
            } else if live.sequence.is_cancelled() {
                self.finish(i, FinishReason::Cancelled);
            }
        }
        if self.waiting.iter().any(Sequence::is_cancelled) {
            for sequence in std::mem::take(&mut self.waiting) {
                if sequence.is_cancelled() {
                    let (reason, usage) = (FinishReason::Cancelled, sequence.usage());
                    self.end(sequence, Event::Finish { reason, usage });
                } else {
                    self.waiting.push_back(sequence);
                }
            }
        }
    }

    /// Fills the batch: decoding rows first, then pieces of prompts.
    fn plan(&mut self) {
        self.batch.segments.clear();
        self.planned.clear();
        self.make_room();
        let is_decode = |live: &Live| live.pending() == 1 && !live.is_scored();
        let mut budget = self.rules.batch_tokens;
        for i in 0..self.running.len() {
            let live = &self.running[i];
            if live.late.is_none() && is_decode(live) && budget > 0 {
                budget -= 1;
                let sampled = live.sequence.is_sampled();
                let logits = if sampled {
                    LogitRows::Last
                } else {
                    LogitRows::None
                };
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
            .map(|&i| Want {
                rows: self.running[i].limit() - self.running[i].done,
                remaining: self.running[i].pending(),
                id: self.running[i].sequence.id,
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
            } else if rows == live.pending() && live.sequence.is_sampled() {
                LogitRows::Last
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

    fn take_back_tables(&mut self) {
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

    /// Puts a sequence among the waiting, by its arrival.
    fn queue(&mut self, sequence: Sequence) {
        let at = self.waiting.partition_point(|other| other.id < sequence.id);
        self.waiting.insert(at, sequence);
    }

    /// Begins the masks of the rows that are about to be sampled.
    fn begin_masks(&mut self) {
        for (segment, &i) in self.batch.segments.iter().zip(&self.planned) {
            let sequence = &mut self.running[i].sequence;
            let ends = segment.start + segment.tokens.len() == sequence.tokens.len();
            if let (true, true, Some(constraint)) =
                (ends, sequence.is_sampled(), &mut sequence.constraint)
            {
                self.masks.begin(sequence.id, constraint);
            }
        }
    }

    /// Waits a little for the masks of this step.
    fn collect_masks(&mut self, inbox: &mpsc::Receiver<Message>) {
        let deadline = Instant::now() + MASK_GRACE;
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
    fn digest(&mut self) -> Result<usize> {
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
                LogitRows::Last => 1,
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
        guard(|| self.sample(ready))?;
        Ok(prompt_rows)
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

    /// Ends a running sequence whose answer is over.
    fn finish(&mut self, i: usize, reason: FinishReason) {
        let live = self.running.remove(i);
        keep_windows(&mut self.cache, &mut *self.backend, &live);
        let usage = live.sequence.usage();
        self.release(live, Event::Finish { reason, usage });
    }

    /// Ends a running sequence that went wrong.
    fn abandon(&mut self, i: usize, failure: Failure) {
        let live = self.running.remove(i);
        self.release(live, Event::Error(failure));
    }

    /// Ends all running sequences: the back end failed, and what it holds is unknown.
    fn fail(&mut self, error: &anyhow::Error) {
        while let Some(live) = self.running.pop() {
            let failure = Failure::Broken(format!("{error:#}"));
            self.release(live, Event::Error(failure));
        }
        self.cache.forget();
    }

    fn release(&mut self, live: Live, last: Event) {
        self.cache.release(live.table);
        self.free_slots.push(live.slot);
        self.end(live.sequence, last);
    }

    fn end(&mut self, sequence: Sequence, last: Event) {
        let now = Instant::now();
        if let Some(before) = self.last_finish.replace(now) {
            self.pace.finished(now - before);
        }
        self.totals.finished += 1;
        self.over.push((sequence.events, last));
    }

    /// Sends last events, after the statistics that count them.
    fn hang_up(&mut self) {
        for (events, last) in self.over.drain(..) {
            self.shared.live.fetch_sub(1, Ordering::Relaxed);
            // Nobody may be listening.
            let _ = events.send(last);
        }
    }

    fn publish(&mut self) {
        self.totals.running = self.running.len();
        self.totals.waiting = self.waiting.len();
        self.totals.kv_blocks_in_use = self.cache.in_use();
        self.totals.kv_blocks_cached = self.cache.cached();
        self.totals.snapshots_used = self.cache.snapshots_used();
        let mut stats = self
            .shared
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        stats.clone_from(&self.totals);
        drop(stats);
        let mut retry_after = self.shared.retry_after.lock();
        if let Ok(retry_after) = &mut retry_after {
            **retry_after = self.pace.retry_after();
        }
    }
}

/// Saves the sliding windows of `live` where it stands, if they are exact and not kept yet.
fn keep_windows(cache: &mut KvCache, backend: &mut dyn Backend, live: &Live) {
    if live.done < live.exact {
        return;
    }
    let tokens = &live.sequence.tokens[..live.done];
    if let Some(place) = cache.keep_snapshot(&live.table, tokens)
        && guard(|| backend.save(live.slot, place)).is_err()
    {
        cache.drop_snapshot(place);
    }
}

/// Runs `work`; a panic in it is an error.
fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(anyhow!("the back end panicked: {}", words(&*panic))))
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no words)")
}
