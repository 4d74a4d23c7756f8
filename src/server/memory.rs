//! What requests may take together while they are read.
//!
//! From the first byte of its body until its prompt is in the engine's queue, which has a bound of
//! its own, a request holds what it takes: the body, and the JSON values in it. What finds too
//! little left is told to come again; nobody waits, so nobody can block others by sending slowly.

use super::{error::ApiError, settings::Settings};
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// About what a JSON value takes: a number less, an object with one field more.
pub(super) const VALUE_BYTES: usize = 256;
/// Bytes are counted in pieces of this size.
const PIECE: usize = 1024;
/// So many of the largest requests may be read at once.
const LARGEST: usize = 4;

/// The memory for requests that are being read.
pub(super) struct Memory(Arc<Semaphore>);

/// What one request holds of it; given back when dropped.
#[derive(Debug)]
pub(super) struct Hold {
    from: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Memory {
    pub fn new(settings: &Settings) -> Memory {
        let values = settings.max_json_values.saturating_mul(VALUE_BYTES);
        let largest = settings.max_body_bytes.saturating_add(values) / PIECE + 1;
        let pieces = largest.saturating_mul(LARGEST);
        Memory(Arc::new(Semaphore::new(pieces.min(Semaphore::MAX_PERMITS))))
    }

    /// Nothing yet.
    pub fn hold(&self) -> Hold {
        Hold {
            from: self.0.clone(),
            held: None,
        }
    }
}

impl Hold {
    /// Takes `bytes` more.
    ///
    /// # Errors
    /// 429 when others hold too much.
    pub fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let pieces = u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX);
        let Ok(more) = self.from.clone().try_acquire_many_owned(pieces) else {
            let text = "Too many large requests are being read.";
            return Err(ApiError::busy(text, Duration::from_secs(1)));
        };
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_bounded_and_given_back() {
        let settings = Settings {
            max_body_bytes: 1 << 20,
            max_json_values: 0,
            ..Settings::default()
        };
        let memory = Memory::new(&settings);
        let mut holds: Vec<Hold> = (0..4).map(|_| memory.hold()).collect();
        for hold in &mut holds {
            for _ in 0..16 {
                hold.grow(1 << 16).expect("room for four of the largest");
            }
        }
        let mut late = memory.hold();
        assert_eq!(late.grow(1 << 16).unwrap_err().status, 429);
        holds.pop();
        late.grow(1 << 16).expect("one is gone");
    }

    #[test]
    fn limits_without_end_do_no_harm() {
        let settings = Settings {
            max_body_bytes: usize::MAX,
            max_json_values: usize::MAX,
            ..Settings::default()
        };
        let mut hold = Memory::new(&settings).hold();
        hold.grow(1 << 30).expect("room");
    }
}
