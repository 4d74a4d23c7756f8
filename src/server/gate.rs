//! The engine as the server uses it: each request counted, timed and ended when the server stops.
//!
//! It stands between the endpoints and a model's engine and passes every event on unchanged. What it
//! adds: the metrics and the figures of the request's log line; an `Error(Stopped)` as the last event
//! when the server's time to drain is over; an end at `--request-timeout`; and a count of the requests
//! under way, by which the registry knows that a model is idle.

use super::{
    log::Figures,
    metrics::{Metrics, Timer},
    settings::Settings,
    state::Life,
};
use crate::engine::{
    Cancel, Engine, Event, EventSender, Events, Failure, FinishReason, ModelInfo, Request, Stats,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// An engine behind the gate.
pub(super) struct Gate {
    engine: Arc<dyn Engine>,
    model: String,
    metrics: Metrics,
    life: Arc<Life>,
    timeout: Option<Duration>,
    live: Live,
}

/// How many requests are under way.
#[derive(Clone, Default)]
pub(super) struct Live(Arc<AtomicUsize>);

impl Live {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn enter(&self) -> Entered {
        self.0.fetch_add(1, Ordering::AcqRel);
        Entered(self.clone())
    }
}

struct Entered(Live);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Gate {
    pub fn new(
        engine: Arc<dyn Engine>,
        model: String,
        metrics: Metrics,
        life: Arc<Life>,
        settings: &Settings,
    ) -> Gate {
        Gate {
            engine,
            model,
            metrics,
            life,
            timeout: settings.request_timeout,
            live: Live::default(),
        }
    }

    /// The count of requests under way.
    pub fn live(&self) -> Live {
        self.live.clone()
    }
}

impl Engine for Gate {
    fn submit(&self, request: Request) -> Events {
        let (sender, events) = Events::channel();
        let passage = Passage {
            timer: Timer::start(&self.metrics, &self.model),
            figures: Figures::current(),
            life: self.life.clone(),
            timeout: self.timeout,
            cancel: request.cancel.clone(),
            live: self.live.clone(),
            _entered: self.live.enter(),
        };
        passage.figures.model(&self.model);
        let inner = self.engine.submit(request);
        tokio::spawn(passage.run(inner, sender));
        events
    }

    fn info(&self) -> &ModelInfo {
        self.engine.info()
    }

    fn stats(&self) -> Stats {
        self.engine.stats()
    }
}

/// One request on its way through.
struct Passage {
    timer: Timer,
    figures: Figures,
    life: Arc<Life>,
    timeout: Option<Duration>,
    cancel: Cancel,
    live: Live,
    _entered: Entered,
}

impl Passage {
    async fn run(mut self, mut inner: Events, sender: EventSender) {
        let stopped = self.life.clone();
        let stopped = stopped.stopped();
        let timeout = self.timeout;
        let expired = async move {
            match timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(stopped, expired);
        let (mut admitted, mut late) = (false, false);
        loop {
            let event = tokio::select! {
                biased;
                event = inner.next_event() => event,
                // Dropping the events cancels the request.
                () = sender.closed() => return,
                () = &mut stopped => Some(Event::Error(Failure::Stopped)),
                () = &mut expired, if !late => {
                    late = true;
                    self.cancel.cancel();
                    if admitted {
                        continue;
                    }
                    Some(self.expired())
                }
            };
            let Some(mut event) = event else { return };
            admitted |= matches!(event, Event::Prefill { .. });
            if let Event::Finish { reason, .. } = &mut event
                && *reason == FinishReason::Cancelled
            {
                *reason = match late {
                    // What is there by then is an answer, cut as by `max_tokens`.
                    true => FinishReason::Length,
                    false if self.cancel.is_enough() => FinishReason::Stop,
                    false => FinishReason::Cancelled,
                };
            }
            self.timer.note(&event);
            self.figures.note(&event);
            let last = matches!(event, Event::Finish { .. } | Event::Error(_));
            if sender.send(event).is_err() || last {
                return;
            }
        }
    }

    /// The end of a request that waited for its whole time.
    fn expired(&self) -> Event {
        Event::Error(Failure::Busy {
            waiting: self.live.count(),
            retry_after: Duration::from_secs(10),
        })
    }
}
