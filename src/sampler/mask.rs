//! Which tokens may come next, and who decides it.
//!
//! The engine and the sampler know ids only: a grammar, a protocol or anything else that restricts
//! an answer is a [`MaskSource`]. A masked choice is the choice that the sampler would make if the
//! vocabulary held the allowed ids alone: the same order of operations, the same draw.

use std::{ops::Range, sync::Arc};

/// Which tokens may come next. Ids beyond the vocabulary mean nothing; padding is never allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mask {
    /// All: costs nothing.
    #[default]
    Any,
    /// All but these few.
    Except(Arc<[u32]>),
    /// These alone.
    Only(Arc<[u32]>),
    /// Those whose bit is set: bit `id % 32` of word `id / 32`. Words that are missing are zero.
    Bits(Vec<u32>),
}

impl Mask {
    /// Whether `id` may come.
    pub fn allows(&self, id: u32) -> bool {
        match self {
            Mask::Any => true,
            Mask::Except(ids) => !ids.contains(&id),
            Mask::Only(ids) => ids.contains(&id),
            Mask::Bits(words) => words
                .get(id as usize / 32)
                .is_some_and(|word| word >> (id % 32) & 1 == 1),
        }
    }
}

/// Decides, token by token, what may come next. Lives outside the engine, which asks for a mask,
/// samples within it and tells what was chosen.
pub trait MaskSource: Send {
    /// The mask for the next token; never one that allows nothing.
    ///
    /// # Errors
    /// In words, when it can't be told any more; the request ends with them.
    fn mask(&mut self) -> Result<Mask, String>;

    /// Takes in the token that was chosen.
    ///
    /// # Errors
    /// When the mask did not allow it.
    fn accept(&mut self, id: u32) -> Result<(), String>;
}

/// `allowed` (ascending) without `ids`, as ascending ranges.
pub(super) fn without(allowed: &[Range<usize>], ids: &[u32]) -> Vec<Range<usize>> {
    let mut ids: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    ids.sort_unstable();
    let mut ranges = Vec::with_capacity(allowed.len() + ids.len());
    for range in allowed {
        let mut start = range.start;
        let from = ids.partition_point(|&id| id < start);
        for &id in ids[from..].iter().take_while(|&&id| id < range.end) {
            if start < id {
                ranges.push(start..id);
            }
            start = id + 1;
        }
        if start < range.end {
            ranges.push(start..range.end);
        }
    }
    ranges
}

/// The allowed logits side by side, in id order, with their ids.
#[derive(Default)]
pub(super) struct Gathered {
    pub logits: Vec<f32>,
    pub ids: Vec<u32>,
}

impl Gathered {
    /// Gathers those of `only` within `allowed` (ascending, within `logits`).
    pub fn only(&mut self, logits: &[f32], allowed: &[Range<usize>], only: &[u32]) {
        let inside = |id: &&u32| allowed.iter().any(|range| range.contains(&(**id as usize)));
        self.ids.clear();
        self.ids.extend(only.iter().filter(inside));
        self.ids.sort_unstable();
        self.ids.dedup();
        self.logits.clear();
        let of = self.ids.iter().map(|&id| logits[id as usize]);
        self.logits.extend(of);
    }

    /// Gathers those within `allowed` (ascending, within `logits`) whose bit is set in `words`.
    pub fn bits(&mut self, logits: &[f32], allowed: &[Range<usize>], words: &[u32]) {
        self.logits.clear();
        self.ids.clear();
        for range in allowed {
            self.add_bits(logits, range, words);
        }
    }

    fn add_bits(&mut self, logits: &[f32], range: &Range<usize>, words: &[u32]) {
        let first = range.start / 32;
        for (i, &word) in words.iter().enumerate().skip(first) {
            let base = i * 32;
            if base >= range.end {
                break;
            }
            let whole = base >= range.start && base + 32 <= range.end;
            if whole && word == u32::MAX {
                self.logits.extend_from_slice(&logits[base..base + 32]);
                self.ids.extend(base as u32..base as u32 + 32);
                continue;
            }
            let mut left = word;
            while left != 0 {
                let id = base + left.trailing_zeros() as usize;
                left &= left - 1;
                if range.contains(&id) {
                    self.logits.push(logits[id]);
                    self.ids.push(id as u32);
                }
            }
        }
    }
}
