//! The largest of many logits without sorting them.
//!
//! The maximum of each block of [`BLOCK`] logits is computed once. A value at least as large as the
//! k-th largest maximum is then the only kind that can be among the k largest, and only blocks with
//! such a maximum can hold one. Ties go to the lower id, everywhere.

use super::math::all_finite;
use std::{cmp::Ordering, ops::Range};

const BLOCK: usize = 64;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its logit.
    pub logit: f32,
}

impl Candidate {
    /// Higher logit first, then lower id: a total order over finite logits.
    pub fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
        b.logit
            .partial_cmp(&a.logit)
            .unwrap_or(Ordering::Equal)
            .then(a.id.cmp(&b.id))
    }
}

/// The largest logit within `ranges` (ascending, not empty), the lowest id among equals; `None` if
/// one of them is NaN or infinite.
pub fn argmax(logits: &[f32], ranges: &[Range<usize>]) -> Option<Candidate> {
    const PIECE: usize = 2048;
    let mut best = Candidate {
        id: 0,
        logit: f32::NEG_INFINITY,
    };
    let mut holder = 0..0;
    for range in ranges {
        for start in range.clone().step_by(PIECE) {
            let piece = start..(start + PIECE).min(range.end);
            // The second look at a piece finds it in the nearest cache.
            if !all_finite(&logits[piece.clone()]) {
                return None;
            }
            let piece_max = max(&logits[piece.clone()]);
            if piece_max > best.logit || holder.is_empty() {
                best.logit = piece_max;
                holder = piece;
            }
        }
    }
    let start = holder.start;
    let at = logits[holder]
        .iter()
        .position(|&x| x == best.logit)
        .unwrap_or(0);
    best.id = (start + at) as u32;
    Some(best)
}

fn max(values: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (rows, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for row in rows {
        for (m, &x) in lanes.iter_mut().zip(row) {
            *m = if x > *m { x } else { *m };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// Logits with the maximum of each block.
pub struct BlockMax<'a> {
    logits: &'a [f32],
    /// Ids and their largest logit.
    blocks: Vec<(Range<usize>, f32)>,
    len: usize,
}

impl<'a> BlockMax<'a> {
    /// One pass over the logits within `ranges`.
    pub fn new(logits: &'a [f32], ranges: &[Range<usize>]) -> BlockMax<'a> {
        let blocks = ranges
            .iter()
            .flat_map(|r| {
                r.clone()
                    .step_by(BLOCK)
                    .map(|start| start..(start + BLOCK).min(r.end))
            })
            .map(|block| (block.clone(), max(&logits[block])))
            .collect();
        BlockMax {
            logits,
            blocks,
            len: ranges.iter().map(|r| r.len()).sum(),
        }
    }

    /// Every token whose logit is at least `threshold`, in id order.
    pub fn at_least(&self, threshold: f32) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (block, _) in self.blocks.iter().filter(|(_, max)| *max >= threshold) {
            let ids = block.clone().zip(&self.logits[block.clone()]);
            found.extend(
                ids.filter(|(_, x)| **x >= threshold)
                    .map(|(i, &logit)| Candidate {
                        id: i as u32,
                        logit,
                    }),
            );
        }
        found
    }

    /// The `k` best tokens, in no order.
    pub fn top_k(&self, k: usize) -> Vec<Candidate> {
        if k == 0 {
            return Vec::new();
        }
        let threshold = if k < self.blocks.len() {
            let mut maxima: Vec<f32> = self.blocks.iter().map(|b| b.1).collect();
            *maxima
                .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a))
                .1
        } else {
            f32::NEG_INFINITY
        };
        let mut found = self.at_least(threshold);
        if k < found.len() {
            found.select_nth_unstable_by(k - 1, Candidate::best_first);
            found.truncate(k);
        }
        found
    }

    /// The fewest best tokens whose weights reach `mass`, in no order. `max` is the largest logit;
    /// `unit` is the fall of the logit that divides the weight by e.
    pub fn top_mass(
        &self,
        mass: f64,
        max: f32,
        unit: f32,
        weight: impl Fn(&Candidate) -> f32,
    ) -> Vec<Candidate> {
        // Most of the mass is near the top: widen the search until it holds enough.
        let mut depth = 6.0;
        loop {
            let mut found = self.at_least(max - depth * unit);
            let reached: f64 = found.iter().map(|c| f64::from(weight(c))).sum();
            if reached >= mass || found.len() == self.len || depth > 100.0 {
                keep_mass(&mut found, mass, weight);
                return found;
            }
            depth *= 2.0;
        }
    }
}

/// Keeps the fewest best candidates whose weights reach `mass` (all, if they never do).
pub fn keep_mass(candidates: &mut Vec<Candidate>, mass: f64, weight: impl Fn(&Candidate) -> f32) {
    // Halve the span that holds the cut: everything before `low` stays, everything from `high` on
    // goes; linear in all.
    let (mut low, mut high, mut before) = (0, candidates.len(), 0.0f64);
    while high - low > 32 {
        let half = (high - low) / 2;
        candidates[low..high].select_nth_unstable_by(half, Candidate::best_first);
        let sum: f64 = candidates[low..low + half]
            .iter()
            .map(|c| f64::from(weight(c)))
            .sum();
        if before + sum >= mass {
            high = low + half;
        } else {
            before += sum;
            low += half;
        }
    }
    candidates[low..high].sort_unstable_by(Candidate::best_first);
    let mut kept = low;
    while kept < high && (before < mass || kept == 0) {
        before += f64::from(weight(&candidates[kept]));
        kept += 1;
    }
    // `mass` was rounding-wise out of reach of the first `high`: the cut is at `high`.
    candidates.truncate(kept);
}
