//! Waiting and running requests to batches: continuous batching over one back end.
//!
//! A step takes in what arrived, drops what was cancelled, admits, plans a ragged batch (decoding
//! rows first, then pieces of prompts), runs it, and hands out what came of it. One thread, no lock
//! held, no decision that changes an answer: where prompts are cut, who shares a step and what comes
//! from the cache changes only the time.
//!
//! Why no request waits for ever:
//! - Each step gives a row to every running sequence that decodes, and rows to the oldest prompt. So
//!   the oldest running sequence advances in every step, but for one that waits for its own mask; a
//!   step is no more than a tenth longer for that.
//! - Blocks that run out are taken from the youngest running sequence, never from an older one. So
//!   the oldest is never preempted; it ends after at most `context` tokens of its own, and then the
//!   next one is the oldest. One that runs alone has the whole cache, and ends when it is full.
//! - Who waits is admitted in order of arrival as soon as there is a slot, and blocks beyond what the
//!   running ones need next; with nothing running all blocks can be had, and any prompt that was
//!   accepted fits. A preempted sequence keeps its place in that order.
//! - A sequence steps aside only for one that runs and computes the same beginning, and only until
//!   that has passed the parting point, ends, or is preempted. Up to there it runs as early as the
//!   other would.
//! - A step that fails or panics ends what runs; then slots and cache are as at the start.

mod admit;
mod masks;
mod plan;
mod sample;
mod sequence;
mod step;

pub use masks::{Constraint, Done, Masks};
pub use plan::Pace;
pub use sequence::{Client, Sequence};

use crate::{
    backend::{Backend, Batch, snapshot_bytes},
    engine::{Event, Failure, FinishReason, Stats},
    kv::KvCache,
};
use anyhow::{Result, anyhow};
use plan::GRID;
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

/// A step waits, after its forward pass, so many times less than that took for masks that are late.
const GRACE: u32 = 10;

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
    live: AtomicUsize,
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

    /// Tells the callers.
    pub fn publish(&self, totals: &Stats, retry_after: Duration) {
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.clone_from(totals);
        drop(stats);
        let retry = self.retry_after.lock();
        *retry.unwrap_or_else(PoisonError::into_inner) = retry_after;
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
    /// Whether the back end draws tokens itself, where nothing but the temperature matters.
    pub draws: bool,
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
    /// When the last request ended, or the first one came after a pause.
    last_end: Instant,
    /// Last events, to be sent when the books are in order.
    over: Vec<(Client, Event)>,
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
            masks: Masks::new(move |done| inbox.send(Message::Mask(done)).is_ok()),
            pace: Pace::default(),
            last_end: Instant::now(),
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
            Message::Request(sequence) => {
                if self.is_idle() {
                    self.last_end = Instant::now();
                }
                self.queue(*sequence);
            }
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

    /// Puts a sequence among the waiting, by its arrival.
    fn queue(&mut self, sequence: Sequence) {
        let at = self.waiting.partition_point(|other| other.id < sequence.id);
        self.waiting.insert(at, sequence);
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
        if let Err(error) = guard(|| self.advance(inbox)) {
            self.fail(&error);
        }
        self.publish();
        self.hang_up();
    }

    fn advance(&mut self, inbox: &mpsc::Receiver<Message>) -> Result<()> {
        self.end_lost();
        self.admit();
        self.sample_late();
        self.plan();
        if self.batch.segments.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        self.begin_masks();
        let done = self.backend.forward(&self.batch);
        self.take_back_tables();
        self.totals.steps += 1;
        self.totals.batch_tokens = self.batch.tokens();
        done?;
        self.collect_masks(inbox, started.elapsed() / GRACE);
        let rows = self.digest();
        self.pace.stepped(rows, started.elapsed());
        Ok(())
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

    /// Ends a running sequence whose answer is over.
    fn finish(&mut self, i: usize, reason: FinishReason) {
        let live = self.running.remove(i);
        keep_windows(&mut self.cache, &mut *self.backend, &live);
        // Another turn goes on from there or, where this answer's reasoning is left out, from the
        // prompt's end.
        let prompt = &live.sequence.tokens[..live.sequence.prompt];
        self.cache.refresh_snapshot(&live.table.blocks, prompt);
        let usage = live.sequence.usage();
        self.release(live, Event::Finish { reason, usage });
    }

    /// Ends a running sequence that went wrong.
    fn abandon(&mut self, i: usize, failure: Failure) {
        let live = self.running.remove(i);
        self.release(live, Event::Error(failure));
    }

    /// Ends all running sequences: the back end failed or something panicked, and what back end, books
    /// and batch hold is unknown. With nothing running it was a waiting one's turn that went wrong.
    fn fail(&mut self, error: &anyhow::Error) {
        let failure = Failure::Broken(format!("{error:#}"));
        let running = std::mem::take(&mut self.running).into_iter();
        let mut lost: Vec<Sequence> = running.map(|live| live.sequence).collect();
        if lost.is_empty() {
            lost.extend(self.waiting.pop_front());
        }
        for sequence in lost {
            self.end(sequence, Event::Error(failure.clone()));
        }
        self.batch.segments.clear();
        self.planned.clear();
        self.cache = KvCache::new(self.totals.kv_blocks, self.totals.snapshots);
        self.free_slots = (0..self.rules.slots).rev().collect();
    }

    fn release(&mut self, live: Live, last: Event) {
        self.cache.release(live.table);
        self.free_slots.push(live.slot);
        self.end(live.sequence, last);
    }

    fn end(&mut self, sequence: Sequence, last: Event) {
        self.pace.finished(self.last_end.elapsed());
        self.last_end = Instant::now();
        self.totals.finished += 1;
        self.over.push((sequence.client, last));
    }

    /// Sends last events, after the statistics that count them.
    fn hang_up(&mut self) {
        for (mut client, last) in self.over.drain(..) {
            client.leave(last);
        }
    }

    fn publish(&mut self) {
        self.totals.running = self.running.len();
        self.totals.kv_blocks_in_use = self.cache.in_use();
        self.totals.kv_blocks_cached = self.cache.cached();
        self.totals.snapshots_used = self.cache.snapshots_used();
        let retry_after = self.pace.retry_after(self.last_end.elapsed());
        self.shared.publish(&self.totals, retry_after);
    }
}

/// Saves the sliding windows of `live` where it stands, if they are exact and not kept yet.
fn keep_windows(cache: &mut KvCache, backend: &mut dyn Backend, live: &Live) {
    if live.done < live.exact {
        return;
    }
    let tokens = &live.sequence.tokens[..live.done];
    // A prompt that goes on for long leaves many, and each is less likely to be of use.
    let lasting = live.done + GRID > live.sequence.prompt;
    if let Some(place) = cache.keep_snapshot(&live.table, tokens, lasting)
        && guard(|| backend.save(live.slot, place)).is_err()
    {
        cache.drop_snapshot(place);
    }
}

/// Runs `work`; a panic in it is an error.
fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(anyhow!("the engine panicked: {}", words(&*panic))))
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no words)")
}
