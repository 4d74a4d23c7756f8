//! The stream of one request's events, for threads and for async code.

use super::{Event, Failure};
use tokio::sync::mpsc;

/// A request's events: iterate (it blocks, so not within async code), or await
/// [`Events::next_event`]; drop to cancel. Never ends without a last [`Event::Finish`] or
/// [`Event::Error`].
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::UnboundedReceiver<Event>,
    done: bool,
}

/// The end that an engine feeds. Dropping it without a last event is [`Failure::Stopped`].
#[derive(Debug, Clone)]
pub struct EventSender(mpsc::UnboundedSender<Event>);

/// Nobody listens any more: the request is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unheard;

impl EventSender {
    /// Sends one event; never blocks.
    pub fn send(&self, event: Event) -> Result<(), Unheard> {
        self.0.send(event).map_err(|_| Unheard)
    }

    /// Whether the receiver was dropped.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Waits until the receiver is dropped.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl Events {
    /// A stream and the sender that feeds it, for engines.
    pub fn channel() -> (EventSender, Events) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let done = false;
        (EventSender(sender), Events { receiver, done })
    }

    /// The next event; `None` after the last. Cancel-safe.
    pub async fn next_event(&mut self) -> Option<Event> {
        if self.done {
            return None;
        }
        let event = self.receiver.recv().await;
        Some(self.noted(event))
    }

    fn noted(&mut self, event: Option<Event>) -> Event {
        let event = event.unwrap_or(Event::Error(Failure::Stopped));
        self.done = matches!(event, Event::Finish { .. } | Event::Error(_));
        event
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.done {
            return None;
        }
        let event = self.receiver.blocking_recv();
        Some(self.noted(event))
    }
}
