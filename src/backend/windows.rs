//! Where each slot's sliding windows stand: the bookkeeping that every back end does alike.
//!
//! Full-attention layers keep every position, in blocks that the caller names. Sliding layers keep
//! their last `window` positions only, in the slot, so a sequence goes on from where they end, from
//! a snapshot of them, or from nothing: after [`Config::receptive_field`] positions nothing is left
//! of what the windows lacked at first, and what they hold is exact.

use super::{Batch, Limits, LogitRows, Segment};
use crate::config::Config;
use anyhow::{Context, Result, ensure};

/// What a slot's windows, or a snapshot's, hold.
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    /// The position that comes next.
    end: usize,
    /// Where a rebuild from nothing began that is not over yet; 0 when the windows are exact.
    from: usize,
}

/// The windows of all slots and snapshots. Slots and segments are those that [`Batch::check`] let pass.
#[derive(Debug, Clone)]
pub struct Windows {
    receptive_field: usize,
    slots: Vec<Extent>,
    snapshots: Vec<Option<Extent>>,
}

impl Windows {
    /// Empty windows for `limits`.
    pub fn new(config: &Config, limits: &Limits) -> Windows {
        Windows {
            receptive_field: config.receptive_field(),
            slots: vec![Extent::default(); limits.slots],
            snapshots: vec![None; limits.snapshots],
        }
    }

    /// Tokens of the slot's sequence: where its next segment may start.
    pub fn end(&self, slot: usize) -> usize {
        self.slots[slot].end
    }

    /// First position that the segment's rows may see in the sliding layers: 0, or where a rebuild
    /// from nothing began; below it the ring holds another sequence's.
    pub fn from(&self, segment: &Segment) -> usize {
        let held = self.slots[segment.slot];
        match segment.start {
            0 => 0,
            start if start == held.end => held.from,
            start => start,
        }
    }

    /// Checks that each segment starts where it may, keeps what it must, and asks for no logits that mean nothing.
    pub fn check(&self, batch: &Batch) -> Result<()> {
        for segment in &batch.segments {
            let (slot, start, kept) = (segment.slot, segment.start, segment.kept);
            let held = self.slots[slot].end;
            let rebuilt = start.saturating_add(self.receptive_field);
            ensure!(
                start == 0 || start == held || kept >= rebuilt,
                "slot {slot} holds {held} tokens: a segment starts there, at 0, or, to rebuild the \
                 windows, where the next {} tokens are kept; not at {start} with {kept} kept",
                self.receptive_field
            );
            let exact = self.exact(self.from(segment));
            let end = start + segment.tokens.len();
            ensure!(
                kept >= exact.min(end),
                "slot {slot}: its windows are being rebuilt up to position {exact}, and a segment \
                 from {start} to {end} keeps {kept}: it would overwrite good keys and values"
            );
            let first = match segment.logits {
                LogitRows::None => continue,
                LogitRows::Last | LogitRows::Draw(_) => end - 1,
                LogitRows::All => start,
            };
            ensure!(
                first >= exact,
                "slot {slot}: logits at position {first}, and its windows are being rebuilt up to {exact}"
            );
        }
        Ok(())
    }

    /// Notes that the batch has run.
    pub fn ran(&mut self, batch: &Batch) {
        for segment in &batch.segments {
            let (from, end) = (self.from(segment), segment.start + segment.tokens.len());
            let from = if end >= self.exact(from) { 0 } else { from };
            self.slots[segment.slot] = Extent { end, from };
        }
    }

    /// Notes that the batch has failed: what its slots hold is unknown.
    pub fn failed(&mut self, batch: &Batch) {
        for segment in &batch.segments {
            self.slots[segment.slot] = Extent::default();
        }
    }

    /// Notes that `slot`'s windows go to `snapshot`; an error changes nothing.
    pub fn save(&mut self, slot: usize, snapshot: usize) -> Result<()> {
        let (slots, snapshots) = (self.slots.len(), self.snapshots.len());
        let held = *self
            .slots
            .get(slot)
            .with_context(|| format!("slot {slot} of {slots}"))?;
        ensure!(
            held.from == 0,
            "slot {slot} can't be saved at {}: its windows are being rebuilt up to position {}",
            held.end,
            self.exact(held.from)
        );
        let place = self.snapshots.get_mut(snapshot);
        *place.with_context(|| format!("snapshot {snapshot} of {snapshots}"))? = Some(held);
        Ok(())
    }

    /// Notes that `slot` gets the windows of `snapshot`; an error changes nothing.
    pub fn restore(&mut self, slot: usize, snapshot: usize) -> Result<()> {
        let (slots, snapshots) = (self.slots.len(), self.snapshots.len());
        let saved = self
            .snapshots
            .get(snapshot)
            .with_context(|| format!("snapshot {snapshot} of {snapshots}"))?
            .with_context(|| format!("snapshot {snapshot} holds nothing"))?;
        let place = self.slots.get_mut(slot);
        *place.with_context(|| format!("slot {slot} of {slots}"))? = saved;
        Ok(())
    }

    /// From where on windows that begin at `from` are exact.
    fn exact(&self, from: usize) -> usize {
        match from {
            0 => 0,
            from => from.saturating_add(self.receptive_field),
        }
    }
}

/// Checks the blocks of [`Backend::copy_block`](super::Backend::copy_block).
pub(super) fn check_copy(from: u32, to: u32, limits: &Limits) -> Result<()> {
    let blocks = limits.kv_blocks;
    for block in [from, to] {
        ensure!((block as usize) < blocks, "KV block {block} of {blocks}");
    }
    Ok(())
}
