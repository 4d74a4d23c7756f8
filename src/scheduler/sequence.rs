//! One request on its way: what it asked for, what it has, and where it stands.

use super::{Shared, masks::Constraint};
use crate::{
    backend::LogitRows,
    engine::{Cancel, Event, EventSender, Failure, FinishReason, Miss, Unheard, Usage},
    kv::Table,
    sampler::{Sampled, Sampler},
};
use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// A request's place among those that the engine has accepted, and the way to who made it. The place
/// is given back when the last event is sent, and whoever drops this without one tells that too.
pub struct Client {
    events: EventSender,
    shared: Arc<Shared>,
    gone: bool,
}

impl Client {
    /// Takes one of `most` places; the error says how many are taken.
    pub fn enter(shared: &Arc<Shared>, most: usize, events: EventSender) -> Result<Client, usize> {
        let taken = (shared.live).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |live| {
            (live < most).then_some(live + 1)
        });
        taken.map(|_| Client {
            events,
            shared: shared.clone(),
            gone: false,
        })
    }

    /// Sends one event that is not the last.
    pub fn send(&self, event: Event) -> Result<(), Unheard> {
        self.events.send(event)
    }

    /// Whether nobody listens any more.
    pub fn is_closed(&self) -> bool {
        self.events.is_closed()
    }

    /// Gives the place back and sends the last event.
    pub fn leave(&mut self, last: Event) {
        if !std::mem::replace(&mut self.gone, true) {
            self.shared.live.fetch_sub(1, Ordering::Relaxed);
            // Nobody may be listening.
            let _ = self.events.send(last);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let failure = match std::thread::panicking() {
            true => Failure::Broken("the engine panicked".into()),
            false => Failure::Stopped,
        };
        self.leave(Event::Error(failure));
    }
}

/// A request, waiting or running. It survives preemption: nothing here is lost or repeated.
pub struct Sequence {
    /// Order of arrival.
    pub id: u64,
    /// The prompt, then the answer so far.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Most tokens to generate.
    pub most: usize,
    /// Tokens that end the answer.
    pub stop_ids: Vec<u32>,
    /// How many of the likeliest tokens to tell for each of the prompt's, if at all.
    pub prompt_logprobs: Option<usize>,
    /// Tokens of the prompt whose log-probabilities were told.
    pub scored: usize,
    /// Chooses the answer's tokens.
    pub sampler: Sampler,
    /// What the answer must keep to.
    pub constraint: Option<Constraint>,
    /// Ends it.
    pub cancel: Cancel,
    /// Where its events go.
    pub client: Client,
    /// What it took so far.
    pub usage: Usage,
    /// Tokens of the prompt that were reported as done.
    pub reported: usize,
    /// Why not all of the prompt was cached.
    pub miss: Option<Miss>,
    /// The running sequence that computes the same beginning right now, and how much of it.
    pub follows: Option<(u64, usize)>,
    /// When it arrived.
    pub arrived: Instant,
    /// When it was first admitted.
    pub admitted: Option<Instant>,
    /// When its prompt was done.
    pub answered: Option<Instant>,
}

impl Sequence {
    /// Whether nobody waits for it any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.client.is_closed()
    }

    /// Whether the row of its last token needs logits.
    pub fn is_sampled(&self) -> bool {
        self.most > 0
    }

    /// What is wanted of the row of its last token; `draws`: the back end may draw the token.
    pub fn last_row(&self, draws: bool) -> LogitRows {
        if !self.is_sampled() {
            return LogitRows::None;
        }
        let plain = (draws && self.constraint.is_none()).then(|| self.sampler.plain());
        plain.flatten().map_or(LogitRows::Last, LogitRows::Draw)
    }

    /// Tells how far the prompt is, unless that was told before.
    pub fn report(&mut self, done: usize) {
        let done = done.min(self.prompt);
        if done > self.reported || self.admitted.is_none() {
            self.reported = done;
            // A receiver that is gone is seen at the next step.
            let _ = self.client.send(Event::Prefill {
                done,
                total: self.prompt,
                cached: self.usage.cached_tokens,
                miss: self.miss,
            });
        }
    }

    /// Takes the next token and sends it; says whether the answer is over.
    pub fn take(&mut self, sampled: Sampled, context: usize) -> Option<FinishReason> {
        let Sampled { id, logprob, top } = sampled;
        self.tokens.push(id);
        self.usage.generated_tokens += 1;
        if let Some(constraint) = &mut self.constraint {
            constraint.take(id);
        }
        if self.client.send(Event::Token { id, logprob, top }).is_err() {
            return Some(FinishReason::Cancelled);
        }
        if self.stop_ids.contains(&id) {
            return Some(FinishReason::Stop);
        }
        if self.usage.generated_tokens >= self.most {
            return Some(FinishReason::Length);
        }
        if self.tokens.len() >= context {
            self.usage.context_full = true;
            return Some(FinishReason::Length);
        }
        None
    }

    /// What it took, to the end.
    pub fn usage(&self) -> Usage {
        let (prefill_time, decode_time) = match (self.admitted, self.answered) {
            (Some(admitted), Some(answered)) => (answered - admitted, answered.elapsed()),
            (Some(admitted), None) => (admitted.elapsed(), Duration::ZERO),
            (None, _) => (Duration::ZERO, Duration::ZERO),
        };
        let queue_time = self.admitted.unwrap_or_else(Instant::now) - self.arrived;
        Usage {
            queue_time,
            prefill_time,
            decode_time,
            ..self.usage
        }
    }
}

/// A running sequence: a request with a slot and blocks.
pub struct Live {
    /// The request.
    pub sequence: Sequence,
    /// Which sliding windows are its own.
    pub slot: usize,
    /// Its blocks.
    pub table: Table,
    /// Tokens whose rows have run or been spared: where the slot's windows end.
    pub done: usize,
    /// Full layers' keys and values of positions below this were in the blocks when it was admitted.
    pub kept: usize,
    /// From here on its windows are exact; before, they are being rebuilt.
    pub exact: usize,
    /// Where pieces of the prompt must end, in order, because the windows are to be kept there.
    pub cuts: VecDeque<usize>,
    /// Logits of the last row, when they came before their mask.
    pub late: Option<Vec<f32>>,
    /// Why it can't go on.
    pub broken: Option<Failure>,
}

impl Live {
    /// Tokens whose rows have yet to run.
    pub fn pending(&self) -> usize {
        self.sequence.tokens.len() - self.done
    }

    /// Where its next piece has to end.
    pub fn limit(&self) -> usize {
        let mut end = self.sequence.tokens.len();
        if self.is_unscored() && self.done < self.first_scored() {
            end = self.first_scored();
        }
        self.cuts.front().map_or(end, |&cut| cut.min(end))
    }

    /// Whether log-probabilities of its prompt have yet to be told.
    pub fn is_unscored(&self) -> bool {
        let sequence = &self.sequence;
        sequence.prompt_logprobs.is_some() && sequence.scored < sequence.prompt
    }

    /// Whether its next rows are to be scored, not only its last one. Rows before the first that is
    /// wanted run again after a preemption, and may be those that only rebuild the windows.
    pub fn is_scored(&self) -> bool {
        self.is_unscored() && self.done >= self.first_scored()
    }

    /// The row that tells the next log-probability.
    fn first_scored(&self) -> usize {
        self.sequence.scored.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Events;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn a_client_that_is_lost_hears_of_it_and_leaves_its_place() {
        let shared = Arc::new(Shared::default());
        let enter = || {
            let (sender, events) = Events::channel();
            (Client::enter(&shared, 1, sender), events)
        };
        for panics in [false, true] {
            let (client, events) = enter();
            assert_eq!(enter().0.err(), Some(1));
            let lost = catch_unwind(AssertUnwindSafe(|| {
                let _client = client;
                assert!(!panics, "a bug");
            }));
            assert_eq!(lost.is_err(), panics);
            let last = match panics {
                true => Failure::Broken("the engine panicked".into()),
                false => Failure::Stopped,
            };
            assert_eq!(events.collect::<Vec<_>>(), [Event::Error(last)]);
            assert_eq!(shared.live.load(Ordering::Relaxed), 0);
        }
    }
}
