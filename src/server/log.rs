//! One line a request, with an id that the client gets too. Never a body, never a key.

use crate::engine::Event;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

tokio::task_local! {
    /// Of the request that this task answers.
    static CURRENT: Figures;
}

/// What a request's log line tells of the model's work; filled in by the [gate](super::gate).
#[derive(Clone)]
pub(super) struct Figures(Arc<Mutex<Sums>>);

struct Sums {
    started: Instant,
    model: Option<String>,
    prompt: usize,
    cached: usize,
    completion: usize,
    first_token: Option<Duration>,
}

impl Figures {
    /// Starts counting now.
    pub fn new() -> Figures {
        Figures(Arc::new(Mutex::new(Sums {
            started: Instant::now(),
            model: None,
            prompt: 0,
            cached: 0,
            completion: 0,
            first_token: None,
        })))
    }

    /// Those of the request that this task answers, or some that nobody reads.
    pub fn current() -> Figures {
        CURRENT
            .try_with(Clone::clone)
            .unwrap_or_else(|_| Figures::new())
    }

    /// Which model answers.
    pub fn model(&self, name: &str) {
        self.with(|sums| sums.model = Some(name.to_owned()));
    }

    /// Takes note of an event.
    pub fn note(&self, event: &Event) {
        self.with(|sums| match event {
            Event::Token { .. } if sums.first_token.is_none() => {
                sums.first_token = Some(sums.started.elapsed());
            }
            Event::Finish { usage, .. } => {
                sums.prompt += usage.prompt_tokens;
                sums.cached += usage.cached_tokens;
                sums.completion += usage.generated_tokens;
            }
            _ => {}
        });
    }

    fn with<T>(&self, read: impl FnOnce(&mut Sums) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
