//! Logits to tokens, for all sequences of a step.

use super::{Scheduler, keep_windows, words};
use crate::{
    engine::{Event, Failure, FinishReason, PromptLogprob},
    sampler::{Mask, Sampled, Sampler},
};
use anyhow::Result;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
};

/// Logits for which a thread is worth its start: a few rows of a full vocabulary.
const THREAD_LOGITS: usize = 1 << 20;

/// One token to choose.
struct Draw<'a> {
    /// The running sequence.
    live: usize,
    sampler: &'a mut Sampler,
    logits: &'a [f32],
    mask: Result<&'a Mask, Failure>,
    drawn: Option<Drawn>,
}

type Drawn = std::result::Result<Sampled, Failure>;

impl Draw<'_> {
    fn run(&mut self) {
        let (sampler, logits) = (&mut *self.sampler, self.logits);
        let drawn = match &self.mask {
            Err(failure) => Err(failure.clone()),
            Ok(mask) => match catch_unwind(AssertUnwindSafe(|| sampler.sample(logits, mask))) {
                Ok(sampled) => sampled.map_err(|error| Failure::Broken(error.to_string())),
                Err(panic) => Err(Failure::Broken(format!(
                    "the sampler panicked: {}",
                    words(&*panic)
                ))),
            },
        };
        self.drawn = Some(drawn);
    }
}

/// Runs all draws, on several threads where there is enough to do. Not on a pool that stays: it could
/// not borrow the logits, and a thread starts in a hundredth of the time that its share takes.
fn run(draws: &mut [Draw]) {
    let logits: usize = draws.iter().map(|draw| draw.logits.len()).sum();
    let most = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = (logits / THREAD_LOGITS).clamp(1, most);
    let parts = Mutex::new(draws.chunks_mut(draws.len().div_ceil(threads).max(1)));
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some(part) = next() {
            part.iter_mut().for_each(Draw::run);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Where the system has no thread left, this one does it all.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}

impl Scheduler {
    /// Chooses the next token of each running sequence in `ready`, which says whose last row has run
    /// and where its logits are. Who waits for a mask keeps a copy of them.
    pub(super) fn sample(&mut self, mut ready: Vec<(usize, usize)>) {
        let mut draws = Vec::new();
        let (mut done, mut drawn) = (Vec::new(), Vec::new());
        let backend = &*self.backend;
        ready.sort_unstable();
        let mut next = ready.into_iter().peekable();
        for (i, live) in self.running.iter_mut().enumerate() {
            let Some((_, row)) = next.next_if(|&(at, _)| at == i) else {
                continue;
            };
            if live.broken.is_some() {
                continue;
            }
            if !live.sequence.is_sampled() {
                done.push(i);
                continue;
            }
            if let Some(id) = backend.drawn(row) {
                drawn.push((i, Some(Ok(live.sequence.sampler.took(id)))));
                continue;
            }
            let mask = match &live.sequence.constraint {
                None => Ok(&Mask::Any),
                Some(constraint) => match constraint.mask() {
                    Some(mask) => mask.as_ref().map_err(Failure::clone),
                    None => {
                        live.late = Some(backend.logits(row).to_vec());
                        continue;
                    }
                },
            };
            draws.push(Draw {
                live: i,
                sampler: &mut live.sequence.sampler,
                logits: backend.logits(row),
                mask,
                drawn: None,
            });
        }
        run(&mut draws);
        drawn.extend(draws.into_iter().map(|draw| (draw.live, draw.drawn)));
        self.settle(drawn, done);
    }

    /// The same for those whose masks came late.
    pub(super) fn sample_late(&mut self) {
        let mut drawn = Vec::new();
        for (i, live) in self.running.iter_mut().enumerate() {
            let constraint = live.sequence.constraint.as_ref();
            let Some(mask) = constraint.and_then(|constraint| constraint.mask()) else {
                continue;
            };
            let Some(logits) = live.late.take() else {
                continue;
            };
            let mut draw = Draw {
                live: i,
                sampler: &mut live.sequence.sampler,
                logits: &logits,
                mask: mask.as_ref().map_err(Failure::clone),
                drawn: None,
            };
            draw.run();
            drawn.push((i, draw.drawn));
        }
        self.settle(drawn, Vec::new());
    }

    /// Hands out tokens and ends what is over; `done` are prompts that want no token.
    fn settle(&mut self, drawn: Vec<(usize, Option<Drawn>)>, done: Vec<usize>) {
        let mut over: Vec<(usize, Result<FinishReason, Failure>)> = done
            .into_iter()
            .map(|i| (i, Ok(FinishReason::Length)))
            .collect();
        for (i, drawn) in drawn {
            let live = &mut self.running[i];
            match drawn {
                Some(Ok(sampled)) => {
                    self.totals.generated_tokens += 1;
                    let id = sampled.id;
                    match live.sequence.take(sampled, self.rules.context) {
                        Some(reason) => over.push((i, Ok(reason))),
                        // A message begins: the windows before it are there for the taking.
                        None if Some(id) == self.rules.marker => {
                            keep_windows(&mut self.cache, &mut *self.backend, live);
                        }
                        None => {}
                    }
                }
                Some(Err(failure)) => over.push((i, Err(failure))),
                None => over.push((i, Err(Failure::Broken("nothing was drawn".into())))),
            }
        }
        over.sort_unstable_by_key(|&(i, _)| std::cmp::Reverse(i));
        for (i, how) in over {
            match how {
                Ok(reason) => self.finish(i, reason),
                Err(failure) => self.abandon(i, failure),
            }
        }
    }

    /// Tells the log-probabilities of the prompt's tokens that the last `rows` rows of a running
    /// sequence give; their logits begin at `first`.
    pub(super) fn score(&mut self, i: usize, first: usize, rows: usize) -> Result<()> {
        let start = self.running[i].done - rows;
        let sequence = &mut self.running[i].sequence;
        let top = sequence.prompt_logprobs.unwrap_or(0);
        let mut scores = Vec::new();
        if sequence.scored == 0 {
            scores.push(PromptLogprob {
                id: sequence.tokens[0],
                logprob: None,
                top: Vec::new(),
            });
            sequence.scored = 1;
        }
        for row in 0..rows {
            let at = start + row + 1;
            if at != sequence.scored || at >= sequence.prompt {
                continue;
            }
            let id = sequence.tokens[at];
            let logits = self.backend.logits(first + row);
            let (logprob, top) = sequence.sampler.score(logits, id, top)?;
            scores.push(PromptLogprob {
                id,
                logprob: Some(logprob),
                top,
            });
            sequence.scored += 1;
        }
        let _ = sequence.client.send(Event::PromptLogprobs(scores));
        Ok(())
    }
}
