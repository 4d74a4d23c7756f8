//! The engine as the server uses it: each request counted, timed and ended when the server stops.
//!
//! It stands between the endpoints and a model's engine and passes every event on unchanged. What it
//! adds: the metrics and the figures of the request's log line; an `Error(Stopped)` as the last event
//! when the server's time to drain is over; an end at `--request-timeout`; and a lease on the model,
//! which stays in memory for as long.

use super::{
    log::{self, Figures},
    metrics::{Metrics, Timer},
    models::{Lease, Users},
    state::Life,
};
use crate::engine::{
    Cancel, Engine, Event, EventSender, Events, Failure, FinishReason, ModelInfo, Request, Stats,
};
use std::{sync::Arc, time::Duration};
use tracing::Instrument as _;

/// An engine behind the gate.
pub(super) struct Gate {
    pub engine: Arc<dyn Engine>,
    /// The model's true name.
    pub model: String,
    pub metrics: Metrics,
    pub life: Arc<Life>,
    /// For an answer to be complete.
    pub timeout: Option<Duration>,
    /// Who uses the model: every request under way does.
    pub users: Users,
    /// Held by every request under way.
    pub passing: Arc<()>,
}

impl Engine for Gate {
    fn submit(&self, request: Request) -> Events {
        let (sender, events) = Events::channel();
        let passage = Passage {
            timer: Timer::start(&self.metrics, &self.model),
            figures: log::current(),
            life: self.life.clone(),
            timeout: self.timeout,
            cancel: request.cancel.clone(),
            passing: self.passing.clone(),
            _lease: self.users.enter(),
        };
        if let Some(figures) = &passage.figures {
            figures.model(&self.model);
            // Its place in the queue bounds it from here on.
            figures.release();
        }
        let inner = self.engine.submit(request);
        tokio::spawn(passage.run(inner, sender).in_current_span());
        events
    }

    fn info(&self) -> &ModelInfo {
        self.engine.info()
    }

    fn stats(&self) -> Stats {
        self.engine.stats()
    }

    fn close(&self) {
        self.engine.close();
    }
}

/// One request on its way through.
struct Passage {
    timer: Timer,
    figures: Option<Figures>,
    life: Arc<Life>,
    timeout: Option<Duration>,
    cancel: Cancel,
    passing: Arc<()>,
    _lease: Lease,
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
            if let Some(figures) = &self.figures {
                figures.note(&event);
            }
            let last = matches!(event, Event::Finish { .. } | Event::Error(_));
            if sender.send(event).is_err() || last {
                return;
            }
        }
    }

    /// The end of a request that waited for its whole time.
    fn expired(&self) -> Event {
        Event::Error(Failure::Busy {
            waiting: Arc::strong_count(&self.passing).saturating_sub(1),
            retry_after: Duration::from_secs(10),
        })
    }
}
