//! The thread behind an [`MlxEngine`](super::MlxEngine): it owns the worker, hands it requests, turns
//! what it tells into events, and replaces it when it is gone.
//!
//! At most `slots` requests are with the worker; the rest wait here, and outlive it. Every request ends
//! with one last event, whatever becomes of the worker.

use super::{
    MlxOptions,
    frame::{self, Ask, Choice, Frame, Hello, Memory, Reason, Tell, Token},
    live::Live,
    process::{Heard, Process},
    watch::{Breaker, Watch},
};
use crate::{
    engine::{Event, Failure, FinishReason, Miss, MissReason, PromptLogprob, Stats},
    scheduler::{Client, Done, Masks, Pace, Shared},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

/// How often to look for cancelled requests while there are any.
const LOOK: Duration = Duration::from_millis(20);
/// How often to look after the worker while there are none.
const IDLE: Duration = Duration::from_secs(1);

/// What reaches the thread.
pub enum Input {
    /// A checked request.
    Request(Box<Live>),
    /// What the worker of that generation told.
    Heard(u64, Heard),
    /// A mask that was asked for.
    Mask(Done),
    /// A question about the worker's memory.
    Memory(mpsc::Sender<Memory>),
    /// So many tokens of longer prompts count as read.
    Pretend(usize),
    /// Nothing more.
    Stop,
}

/// How it is with the worker.
enum State {
    /// Its model is being loaded.
    Starting,
    /// It answers.
    Ready,
    /// There is none; another is tried from then on. With `Some` requests are refused until then.
    Down(Instant, Option<String>),
}

/// What tells the first load's outcome: what the worker runs on and its vocabulary.
type First = mpsc::Sender<Result<(Hello, usize), String>>;

pub struct Driver {
    options: MlxOptions,
    inbox: mpsc::Sender<Input>,
    shared: Arc<Shared>,
    /// The worker's process id, for whoever wants to know.
    id: Arc<Mutex<Option<u32>>>,
    /// Until the model was loaded once.
    first: Option<First>,
    hello: Option<Hello>,
    process: Option<Process>,
    /// Counts workers: what a former one still tells means nothing.
    generation: u64,
    state: State,
    watch: Watch,
    breaker: Breaker,
    waiting: VecDeque<Live>,
    running: BTreeMap<u64, Live>,
    masks: Masks,
    pace: Pace,
    last_end: Instant,
    totals: Stats,
    asked_memory: Vec<mpsc::Sender<Memory>>,
    /// Last events, to be sent when the books are in order.
    over: Vec<(Client, Event)>,
}

impl Driver {
    pub fn new(
        options: MlxOptions,
        inbox: mpsc::Sender<Input>,
        shared: Arc<Shared>,
        id: Arc<Mutex<Option<u32>>>,
        first: First,
    ) -> Driver {
        let now = Instant::now();
        let masks = inbox.clone();
        Driver {
            shared,
            id,
            first: Some(first),
            hello: None,
            process: None,
            generation: 0,
            state: State::Down(now, None),
            watch: Watch::new(options.patience, now),
            breaker: Breaker::default(),
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            masks: Masks::new(move |done| masks.send(Input::Mask(done)).is_ok()),
            pace: Pace::default(),
            last_end: now,
            totals: Stats {
                slots: options.slots,
                ..Stats::default()
            },
            asked_memory: Vec::new(),
            over: Vec::new(),
            inbox,
            options,
        }
    }

    /// Works until it is stopped.
    pub fn run(mut self, inbox: &mpsc::Receiver<Input>) {
        self.look();
        loop {
            let idle = self.waiting.is_empty() && self.running.is_empty();
            let mut next = match inbox.recv_timeout(if idle { IDLE } else { LOOK }) {
                Ok(input) => Some(input),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            while let Some(input) = next {
                if matches!(input, Input::Stop) {
                    return self.publish();
                }
                self.take(input);
                next = inbox.try_recv().ok();
            }
            self.look();
            self.publish();
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Request(live) => {
                if self.waiting.is_empty() && self.running.is_empty() {
                    self.last_end = Instant::now();
                }
                self.waiting.push_back(*live);
            }
            Input::Heard(generation, heard) if generation == self.generation => match heard {
                Ok(frame) => self.hear(frame),
                Err(why) => {
                    if let Some(process) = &mut self.process {
                        process.settle();
                    }
                    self.lose(&why);
                }
            },
            Input::Heard(..) | Input::Stop => {}
            Input::Mask(done) => self.take_mask(done),
            Input::Pretend(tokens) => self.tell(&Ask::Pretend { tokens }, &[]),
            Input::Memory(answer) => {
                if matches!(self.state, State::Ready) {
                    self.asked_memory.push(answer);
                    self.tell(&Ask::Stats, &[]);
                }
            }
        }
    }

    fn tell(&mut self, ask: &Ask, blob: &[u8]) {
        if let Some(process) = &mut self.process {
            process.tell(ask, blob);
        }
    }

    /// What time brings: cancellations, a worker that is due or overdue, room for who waits.
    fn look(&mut self) {
        let now = Instant::now();
        self.end_cancelled();
        match &self.state {
            State::Down(until, why) => {
                let (until, why) = (*until, why.clone());
                if let Some(why) = why {
                    let retry_after = until.saturating_duration_since(now);
                    for live in std::mem::take(&mut self.waiting) {
                        let message = why.clone();
                        let failure = Failure::Unavailable {
                            message,
                            retry_after,
                        };
                        self.end(live, Event::Error(failure));
                    }
                }
                if now >= until {
                    self.start(now);
                }
            }
            State::Starting | State::Ready => {
                if self.watch.is_ping_due(now) {
                    self.tell(&Ask::Ping, &[]);
                }
                // A request that waits for its mask waits for us.
                let works = self.running.values().any(|live| {
                    let constraint = live.constraint.as_ref();
                    constraint.is_none_or(|constraint| constraint.mask().is_some())
                });
                if let Some(why) = self.watch.verdict(now, works) {
                    self.lose(&why);
                }
            }
        }
        self.admit(now);
    }

    fn end_cancelled(&mut self) {
        let gone = |(id, live): (&u64, &Live)| live.is_cancelled().then_some(*id);
        let cancelled: Vec<u64> = self.running.iter().filter_map(gone).collect();
        for id in cancelled {
            self.tell(&Ask::Cancel { id }, &[]);
            if let Some(live) = self.running.remove(&id) {
                self.finish(live, FinishReason::Cancelled);
            }
        }
        if self.waiting.iter().any(Live::is_cancelled) {
            for live in std::mem::take(&mut self.waiting) {
                match live.is_cancelled() {
                    true => self.finish(live, FinishReason::Cancelled),
                    false => self.waiting.push_back(live),
                }
            }
        }
    }

    fn start(&mut self, now: Instant) {
        let (generation, inbox) = (self.generation, self.inbox.clone());
        let heard = move |heard| {
            let _ = inbox.send(Input::Heard(generation, heard));
        };
        self.watch = Watch::new(self.options.patience, now);
        self.state = State::Starting;
        match Process::start(&self.options.python, heard) {
            Ok(process) => {
                self.note_id(Some(process.id()));
                self.process = Some(process);
            }
            Err(error) => return self.lose(&format!("{error:#}")),
        }
        let options = self.options.clone();
        let load = Ask::Load {
            path: &options.folder,
            rope: super::rope(options.rope_upstream),
            cache_bytes: options.cache_bytes,
            padding: &options.padding,
            memory: options.memory,
            pool_bytes: options.pool_bytes,
        };
        self.tell(&load, &[]);
    }

    fn note_id(&self, id: Option<u32>) {
        *self.id.lock().unwrap_or_else(PoisonError::into_inner) = id;
    }

    /// The worker is gone, or has to go: what ran in it ends, what waits waits for the next one.
    fn lose(&mut self, why: &str) {
        // Its pipe closes too: that is no other failure.
        self.generation += 1;
        let ended = self.process.take().map(|mut process| process.end());
        self.note_id(None);
        self.asked_memory.clear();
        let words = ended.map_or_else(|| why.to_owned(), |ended| format!("{why}; {ended}"));
        let message = format!("the MLX worker failed: {words}");
        if let Some(first) = self.first.take() {
            let _ = first.send(Err(message));
            return;
        }
        tracing::error!("{message}");
        let now = Instant::now();
        let (until, patient) = self.breaker.failed(now);
        let retry_after = until.saturating_duration_since(now).max(IDLE);
        for live in std::mem::take(&mut self.running).into_values() {
            let message = message.clone();
            let failure = Failure::Unavailable {
                message,
                retry_after,
            };
            self.end(live, Event::Error(failure));
        }
        let refused = (!patient).then(|| format!("too often of late {message}"));
        self.state = State::Down(until, refused);
    }

    /// Whether the memory that was planned holds `next` too. In MLX's cache every row of a batch is as long as
    /// its longest one.
    fn has_room_for(&self, next: &Live) -> bool {
        let live = self.running.values();
        let longest = live.map(Live::longest).fold(next.longest(), usize::max);
        let rows = self.running.len() + 1;
        rows == 1 || rows.saturating_mul(longest) <= self.options.kv_tokens
    }

    /// Hands requests to the worker, in order of arrival.
    fn admit(&mut self, now: Instant) {
        while matches!(self.state, State::Ready) && self.running.len() < self.options.slots {
            let Some(next) = self.waiting.front() else {
                return;
            };
            if !self.has_room_for(next) {
                return;
            }
            let Some(mut live) = self.waiting.pop_front() else {
                return;
            };
            if self.running.is_empty() {
                self.watch.moved(now);
            }
            let ask = Ask::Generate {
                id: live.id,
                max_tokens: live.most.min(live.room),
                stop: &live.stop_ids,
                sampling: Choice::new(&live.sampling, live.usage.seed),
                logprobs: live.logprobs,
                prompt_logprobs: live.prompt_logprobs,
                masked: live.constraint.is_some(),
                cache: self.options.cache_bytes > 0,
            };
            if let Some(process) = &mut self.process {
                process.tell(&ask, &frame::ids(&live.tokens));
            }
            if let Some(constraint) = &mut live.constraint {
                self.masks.begin(live.id, constraint, &live.cancel);
            }
            self.running.insert(live.id, live);
        }
    }

    fn hear(&mut self, Frame { tell, .. }: Frame) {
        let now = Instant::now();
        self.watch.heard();
        match tell {
            Tell::Hello(hello) => {
                if let Err(why) = hello.check() {
                    return self.lose(&why);
                }
                self.hello = Some(hello);
            }
            Tell::Loaded { vocab } => {
                self.state = State::Ready;
                self.watch.loaded(now);
                match (self.first.take(), &self.hello) {
                    (Some(first), Some(hello)) => {
                        let _ = first.send(Ok((hello.clone(), vocab)));
                    }
                    _ => tracing::info!("MLX: another worker has taken over"),
                }
            }
            Tell::Progress {
                id,
                done,
                cached,
                shared,
            } => {
                self.watch.moved(now);
                self.progress(id, done, cached, shared);
            }
            Tell::PromptLogprobs { id, logprobs, top } => {
                self.watch.moved(now);
                self.score(id, &logprobs, top);
            }
            Tell::Tokens { tokens } => {
                self.watch.moved(now);
                self.totals.steps += 1;
                self.totals.batch_tokens = tokens.len();
                for token in tokens {
                    self.token(token, now);
                }
            }
            Tell::Done { id, reason } => {
                self.watch.moved(now);
                if let Some(mut live) = self.running.remove(&id) {
                    let length = reason == Reason::Length;
                    live.usage.context_full =
                        length && live.usage.generated_tokens >= live.room && live.most > live.room;
                    let reason = match reason {
                        Reason::Stop => FinishReason::Stop,
                        Reason::Length => FinishReason::Length,
                        Reason::Cancelled => FinishReason::Cancelled,
                    };
                    self.finish(live, reason);
                }
            }
            Tell::Stats(memory) => {
                for asked in self.asked_memory.drain(..) {
                    let _ = asked.send(memory);
                }
            }
            Tell::Error {
                id,
                message,
                memory,
            } => match (id, &self.state) {
                (_, State::Starting) | (None, _) => self.lose(&message),
                (Some(id), _) => {
                    if let Some(live) = self.running.remove(&id) {
                        let message = format!("MLX: {message}");
                        let failure = match memory {
                            // Whoever ends makes room.
                            true => Failure::Unavailable {
                                message,
                                retry_after: self.pace.retry_after(self.last_end.elapsed()),
                            },
                            false => Failure::Broken(message),
                        };
                        self.end(live, Event::Error(failure));
                    }
                }
            },
            Tell::Pong => {}
            // Nobody asked for these here.
            Tell::Scores { .. }
            | Tell::Scored
            | Tell::Piece { .. }
            | Tell::Traced
            | Tell::Device(_) => {}
        }
    }

    fn progress(&mut self, id: u64, done: usize, cached: Option<usize>, shared: usize) {
        let Some(live) = self.running.get_mut(&id) else {
            return;
        };
        let total = live.tokens.len();
        if let Some(cached) = cached {
            live.admitted = Some(Instant::now());
            live.usage.cached_tokens = cached;
            self.totals.prompt_tokens += total as u64;
            self.totals.cached_tokens += cached as u64;
        }
        let cached = live.usage.cached_tokens;
        let reads = self.options.cache_bytes > 0 && live.prompt_logprobs.is_none();
        let reason = match (reads, shared > cached) {
            (false, _) => MissReason::Disabled,
            // Something begins the same and goes on: its windows can't go back to there.
            (true, true) => MissReason::Window,
            (true, false) => MissReason::Unknown,
        };
        let at = shared.max(cached);
        let miss = (cached + 1 < total).then_some(Miss { at, reason });
        let event = Event::Prefill {
            done: done.min(total),
            total,
            cached,
            miss,
        };
        let _ = live.client.send(event);
        if live.prompt_logprobs.is_some() && live.scored == 0 {
            live.scored = 1;
            let first = PromptLogprob {
                id: live.tokens.first().copied().unwrap_or_default(),
                logprob: None,
                top: Vec::new(),
            };
            let _ = live.client.send(Event::PromptLogprobs(vec![first]));
        }
        if done >= total {
            live.answered = Some(Instant::now());
        }
    }

    fn score(&mut self, id: u64, logprobs: &[f32], top: Vec<Vec<(u32, f32)>>) {
        let Some(live) = self.running.get_mut(&id) else {
            return;
        };
        let left = live.tokens.get(live.scored..).unwrap_or_default();
        let each = left.iter().zip(logprobs).zip(top);
        let scores: Vec<PromptLogprob> = each
            .map(|((&id, &logprob), top)| PromptLogprob {
                id,
                logprob: Some(logprob),
                top,
            })
            .collect();
        live.scored += scores.len();
        let _ = live.client.send(Event::PromptLogprobs(scores));
    }

    fn token(&mut self, token: Token, now: Instant) {
        let Some(live) = self.running.get_mut(&token.id) else {
            return;
        };
        let Token {
            id: request,
            token: id,
            logprob,
            top,
        } = token;
        self.totals.generated_tokens += 1;
        live.usage.generated_tokens += 1;
        live.answered.get_or_insert(now);
        if live.client.send(Event::Token { id, logprob, top }).is_err() {
            // Nobody listens: seen at the next look.
            return;
        }
        if live.ends_with(id) {
            return;
        }
        if let Some(constraint) = &mut live.constraint {
            constraint.take(id);
            self.masks.begin(request, constraint, &live.cancel);
        }
    }

    /// Passes a mask on, or ends who can't have one.
    fn take_mask(&mut self, done: Done) {
        let id = done.id;
        let Some(live) = self.running.get_mut(&id) else {
            return;
        };
        let Some(constraint) = &mut live.constraint else {
            return;
        };
        constraint.put(done);
        // The worker's time begins.
        self.watch.moved(Instant::now());
        match constraint.mask() {
            Some(Ok(mask)) => {
                let (kind, blob) = frame::mask(mask);
                self.tell(&Ask::Mask { id, kind }, &blob);
            }
            Some(Err(failure)) => {
                let failure = failure.clone();
                self.tell(&Ask::Cancel { id }, &[]);
                if let Some(live) = self.running.remove(&id) {
                    self.end(live, Event::Error(failure));
                }
            }
            None => {}
        }
    }

    fn finish(&mut self, live: Live, reason: FinishReason) {
        let usage = live.usage();
        self.end(live, Event::Finish { reason, usage });
    }

    fn end(&mut self, live: Live, last: Event) {
        self.pace.finished(self.last_end.elapsed());
        self.last_end = Instant::now();
        self.totals.finished += 1;
        self.over.push((live.client, last));
    }

    /// Tells statistics, then the last events that they count.
    fn publish(&mut self) {
        self.totals.running = self.running.len();
        let retry_after = self.pace.retry_after(self.last_end.elapsed());
        self.shared.publish(&self.totals, retry_after);
        for (mut client, last) in self.over.drain(..) {
            client.leave(last);
        }
    }
}
