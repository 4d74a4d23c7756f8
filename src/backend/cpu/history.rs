//! How far back a sequence can go: its sliding-window rings forget, so a copy of them is kept from
//! the end of its last prompt.
//!
//! The next turn of a conversation begins with the same prompt but not with the same answer (the
//! reasoning is left out): it goes on from the copy, and nothing before it is computed again. The
//! copy is a few megabytes, made once a prompt.

use super::cache::Cache;
use crate::backend::{LogitRows, Segment};

/// What one slot's rings hold, and held.
#[derive(Default, Clone)]
pub struct History {
    /// The most positions that the sequence had since it began: what the rings overwrote is counted from there.
    furthest: usize,
    mark: Mark,
}

/// A slot's rings as they once were.
#[derive(Default, Clone)]
struct Mark {
    /// Positions of the sequence then; 0 if there is no mark.
    len: usize,
    furthest: usize,
    rings: Vec<u8>,
}

impl History {
    /// Notes that `segment` was appended to its slot.
    pub fn append(&mut self, segment: &Segment, cache: &Cache) {
        let len = segment.start + segment.tokens.len();
        self.furthest = match segment.start {
            0 => len,
            _ => self.furthest.max(len),
        };
        if segment.start < self.mark.len {
            self.mark.len = 0;
        }
        let ends_prompt =
            segment.logits == LogitRows::Last && (segment.tokens.len() > 1 || self.mark.len == 0);
        if ends_prompt {
            self.mark.len = len;
            self.mark.furthest = self.furthest;
            cache.save_rings(segment.slot, &mut self.mark.rings);
        }
    }

    /// Goes back to `len`, at most where the sequence ends, or as near before it as can be; returns
    /// where it ends now.
    pub fn rewind(&mut self, slot: usize, len: usize, window: usize, cache: &mut Cache) -> usize {
        // The next token at `len` sees back to `len + 1 - window`; the ring holds whole steps.
        let holds = |cache: &Cache, furthest, len: usize| {
            (len + 1).saturating_sub(window) >= cache.oldest(furthest)
        };
        let marked = len.min(self.mark.len);
        if holds(cache, self.furthest, len) {
            len
        } else if marked > 0 && holds(cache, self.mark.furthest, marked) {
            cache.load_rings(slot, &self.mark.rings);
            self.furthest = self.mark.furthest;
            marked
        } else {
            0
        }
    }
}
