//! A turn on its way to a response, streamed or in the background.
//!
//! It always ends: what goes wrong on the way, a panic too, is a failed response.

use super::{event::Event, stream::Writer};
use crate::server::{
    log,
    turn::{TurnEvent, TurnStream, stopped},
};
use futures_util::FutureExt;
use std::{panic::AssertUnwindSafe, time::Duration};
use tokio::time::{Instant, timeout_at};

/// A turn, and the response that is made of it. Dropping it cancels the turn.
pub(super) struct Run {
    pub writer: Writer,
    turn: TurnStream,
    keep_alive: Duration,
    /// When the last event was made.
    told: Instant,
}

impl Run {
    /// Of a turn that has begun. After `keep_alive` of silence an event says that it goes on.
    pub fn new(writer: Writer, turn: TurnStream, keep_alive: Duration) -> Run {
        Run {
            writer,
            turn,
            keep_alive,
            told: Instant::now(),
        }
    }

    /// Ends the turn; its last event still comes.
    pub fn cancel(&self) {
        self.turn.cancel();
    }

    /// The next events, often none yet; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        if self.writer.response().state.is_last() {
            return None;
        }
        // Since something was told, not since something happened: a prompt that is read in many
        // pieces tells nothing.
        let due = self.told + self.keep_alive;
        let step = async {
            match timeout_at(due, self.turn.next()).await {
                Ok(Some(event)) => self.writer.push(event),
                Ok(None) => self.writer.push(TurnEvent::Failed(stopped())),
                Err(_) => self.writer.keep_alive(),
            }
        };
        let events = AssertUnwindSafe(step).catch_unwind().await;
        let events = events.unwrap_or_else(|panic| {
            let error = log::panicked_here(&*panic);
            self.writer.push(TurnEvent::Failed(error))
        });
        if !events.is_empty() {
            self.told = Instant::now();
        }
        Some(events)
    }
}
