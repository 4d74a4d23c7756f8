//! Requests through an [`Engine`], timed where a user would see it: at the events.
//!
//! The same for every engine, native or not: what is measured is what a client waits for, queue,
//! prefix cache and sampler included. Nothing here waits or repeats; a caller that wants a warm engine
//! asks it something first.

use crate::{
    engine::{Engine, Event, FinishReason, Request, Usage},
    sampler::Sampling,
};
use anyhow::{Context, Result, anyhow};
use std::time::{Duration, Instant};

/// One request's course.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// When it was submitted; the durations here count from then.
    pub submitted: Instant,
    /// Until the engine began with it: the time in the queue.
    pub admitted: Duration,
    /// Until each token came; the first one's is the time to first token.
    pub tokens: Vec<Duration>,
    /// The tokens.
    pub ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that the prefix cache saved.
    pub cached_tokens: usize,
    /// Until the last event.
    pub finished: Duration,
    /// Why it ended.
    pub reason: FinishReason,
    /// What the engine itself says that it took.
    pub usage: Usage,
}

impl Timing {
    /// From submission to the first token; `None` without one.
    pub fn first_token(&self) -> Option<Duration> {
        self.tokens.first().copied()
    }

    /// Prompt tokens a second: those that the cache did not save, from the beginning of the work to
    /// the first token (or to the end, if none was asked for). `None` where the cache held all.
    pub fn prefill_speed(&self) -> Option<f64> {
        let rows = self.prompt_tokens.saturating_sub(self.cached_tokens);
        let until = self.first_token().unwrap_or(self.finished);
        speed(rows, until.checked_sub(self.admitted)?)
    }

    /// Tokens a second after the first; `None` with fewer than two.
    pub fn decode_speed(&self) -> Option<f64> {
        let (first, last) = (self.tokens.first()?, self.tokens.last()?);
        speed(self.tokens.len() - 1, last.checked_sub(*first)?)
    }

    /// The waits between tokens, in order.
    pub fn gaps(&self) -> Vec<Duration> {
        self.tokens
            .windows(2)
            .map(|pair| pair[1].saturating_sub(pair[0]))
            .collect()
    }
}

/// `count` in `time`, a second; `None` for nothing, or in no time.
fn speed(count: usize, time: Duration) -> Option<f64> {
    (count > 0 && !time.is_zero()).then(|| count as f64 / time.as_secs_f64())
}

/// The `share` quantile (0.5: the median) of what was waited, by the nearest rank; `None` of nothing.
pub fn quantile(waits: &[Duration], share: f64) -> Option<Duration> {
    let mut sorted = waits.to_vec();
    sorted.sort_unstable();
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// A request of these ids for exactly `tokens` tokens, if the context holds them: no token stops it,
/// and each is drawn from the model's distribution by `seed`. (Greedy text of a model with random weights
/// soon repeats itself, and so does the work of its experts.)
pub fn request(ids: &[u32], tokens: usize, seed: u64) -> Request {
    Request {
        tokens: ids.to_vec(),
        sampling: Sampling {
            temperature: 1.0,
            seed: Some(seed),
            ..Sampling::default()
        },
        max_tokens: Some(tokens),
        ..Request::default()
    }
}

/// Submits a request and waits for its end.
///
/// # Errors
/// The request's [`Failure`](crate::engine::Failure).
pub fn time(engine: &dyn Engine, request: Request) -> Result<Timing> {
    let prompt_tokens = request.tokens.len();
    let submitted = Instant::now();
    let events = engine.submit(request);
    let (mut admitted, mut cached_tokens) = (None, 0);
    let (mut tokens, mut ids) = (Vec::new(), Vec::new());
    for event in events {
        let now = submitted.elapsed();
        match event {
            Event::Queued | Event::PromptLogprobs(_) => {}
            Event::Prefill { cached, .. } => {
                admitted.get_or_insert(now);
                cached_tokens = cached;
            }
            Event::Token { id, .. } => {
                tokens.push(now);
                ids.push(id);
            }
            Event::Finish { reason, usage } => {
                return Ok(Timing {
                    submitted,
                    admitted: admitted.unwrap_or(now),
                    tokens,
                    ids,
                    prompt_tokens,
                    cached_tokens,
                    finished: now,
                    reason,
                    usage,
                });
            }
            Event::Error(failure) => return Err(failure.into()),
        }
    }
    Err(anyhow!("the engine ended a request without a last event"))
}

/// Submits all requests at once, each from a thread of its own, and waits for all.
///
/// # Errors
/// The first one that failed, by its number.
pub fn time_together(engine: &dyn Engine, requests: Vec<Request>) -> Result<Vec<Timing>> {
    std::thread::scope(|scope| {
        let running: Vec<_> = requests
            .into_iter()
            .map(|request| scope.spawn(move || time(engine, request)))
            .collect();
        let ended = running.into_iter().enumerate().map(|(i, thread)| {
            let timing = thread.join().unwrap_or_else(|_| Err(anyhow!("panicked")));
            timing.with_context(|| format!("stream {}", i + 1))
        });
        ended.collect()
    })
}

/// Tokens a second of all streams together, while all of them decoded: from the last first token to
/// the first last one. `None` where they were never all at it.
pub fn total_speed(timings: &[Timing]) -> Option<f64> {
    let at = |timing: &Timing, since: Option<&Duration>| Some(timing.submitted + *since?);
    let firsts: Option<Vec<Instant>> = timings.iter().map(|t| at(t, t.tokens.first())).collect();
    let lasts: Option<Vec<Instant>> = timings.iter().map(|t| at(t, t.tokens.last())).collect();
    let (from, to) = (firsts?.into_iter().max()?, lasts?.into_iter().min()?);
    let within = |timing: &Timing| {
        let tokens = timing.tokens.iter().map(|&token| timing.submitted + token);
        tokens.filter(|&token| token > from && token <= to).count()
    };
    speed(
        timings.iter().map(within).sum(),
        to.checked_duration_since(from)?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Events, Failure, ModelInfo, Stats};

    /// Answers each request with the events that its first token names.
    struct Scripted {
        info: ModelInfo,
        scripts: Vec<Vec<Event>>,
    }

    impl Engine for Scripted {
        fn submit(&self, request: Request) -> Events {
            let (sender, events) = Events::channel();
            for event in &self.scripts[request.tokens[0] as usize] {
                sender.send(event.clone()).expect("heard");
            }
            events
        }
        fn info(&self) -> &ModelInfo {
            &self.info
        }
        fn stats(&self) -> Stats {
            Stats::default()
        }
    }

    fn scripted(scripts: Vec<Vec<Event>>) -> Scripted {
        let info = ModelInfo {
            name: "scripted".into(),
            backend: "none".into(),
            vocab: 100,
            context: 100,
            slots: 4,
            deterministic: true,
        };
        Scripted { info, scripts }
    }

    fn prefill(done: usize, cached: usize) -> Event {
        Event::Prefill {
            done,
            total: 5,
            cached,
            miss: None,
        }
    }

    fn token(id: u32) -> Event {
        Event::Token {
            id,
            logprob: None,
            top: Vec::new(),
        }
    }

    fn finish() -> Event {
        Event::Finish {
            reason: FinishReason::Length,
            usage: Usage {
                generated_tokens: 2,
                ..Usage::default()
            },
        }
    }

    #[test]
    fn a_request_is_followed_from_event_to_event() {
        let course = vec![
            Event::Queued,
            prefill(3, 3),
            prefill(5, 3),
            token(8),
            token(9),
            finish(),
        ];
        let engine = scripted(vec![course]);
        let timing = time(&engine, request(&[0, 1, 2, 3, 4], 2, 7)).expect("an answer");
        assert_eq!(timing.ids, [8, 9]);
        assert_eq!((timing.prompt_tokens, timing.cached_tokens), (5, 3));
        assert_eq!(timing.reason, FinishReason::Length);
        assert_eq!(timing.usage.generated_tokens, 2);
        assert!(timing.admitted <= timing.tokens[0]);
        assert!(timing.tokens[0] <= timing.tokens[1] && timing.tokens[1] <= timing.finished);
        assert_eq!(timing.gaps().len(), 1);
    }

    #[test]
    fn a_failure_is_an_error_and_names_its_stream() {
        let broken = vec![
            Event::Queued,
            Event::Error(Failure::Broken("no such luck".into())),
        ];
        let engine = scripted(vec![broken, vec![Event::Queued, finish()]]);
        let failed = time(&engine, request(&[0], 1, 0)).expect_err("it fails");
        assert_eq!(failed.to_string(), "no such luck");
        let both = vec![request(&[1], 1, 0), request(&[0], 1, 0)];
        let failed = time_together(&engine, both).expect_err("one fails");
        assert_eq!(format!("{failed:#}"), "stream 2: no such luck");
        // An answer without tokens has no speeds.
        let empty = time(&engine, request(&[1], 1, 0)).expect("it ends");
        assert_eq!((empty.first_token(), empty.decode_speed()), (None, None));
        assert_eq!(empty.gaps(), []);
    }

    /// A course of which the times are given, in milliseconds.
    fn course(submitted: Instant, admitted: u64, tokens: &[u64], cached_tokens: usize) -> Timing {
        let tokens: Vec<_> = tokens.iter().map(|&t| Duration::from_millis(t)).collect();
        Timing {
            submitted,
            admitted: Duration::from_millis(admitted),
            ids: vec![1; tokens.len()],
            prompt_tokens: 100,
            cached_tokens,
            finished: tokens.last().copied().unwrap_or_default(),
            tokens,
            reason: FinishReason::Length,
            usage: Usage::default(),
        }
    }

    #[test]
    fn speeds_count_what_was_computed() {
        let now = Instant::now();
        let timing = course(now, 100, &[300, 350, 400, 500], 60);
        let about = |found: Option<f64>, expected: f64| {
            let found = found.expect("a speed");
            assert!((found / expected - 1.0).abs() < 1e-9, "{found}, {expected}");
        };
        about(timing.prefill_speed(), 40.0 / 0.2);
        about(timing.decode_speed(), 3.0 / 0.2);
        assert_eq!(course(now, 0, &[5], 100).prefill_speed(), None);
        // Two streams: both decode from 300 to 450 ms.
        let other = course(now + Duration::from_millis(50), 0, &[200, 300, 400], 0);
        about(total_speed(&[timing.clone(), other]), (2.0 + 2.0) / 0.15);
        let later = course(now + Duration::from_secs(1), 0, &[100, 200], 0);
        assert_eq!(total_speed(&[timing, later]), None);
    }

    #[test]
    fn quantiles_are_of_what_was_waited() {
        let waits: Vec<_> = [4, 1, 3, 2].map(Duration::from_millis).into();
        assert_eq!(quantile(&waits, 0.5), Some(Duration::from_millis(2)));
        assert_eq!(quantile(&waits, 0.95), Some(Duration::from_millis(4)));
        assert_eq!(quantile(&waits, 0.0), Some(Duration::from_millis(1)));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
