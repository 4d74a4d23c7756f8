//! A draw among all tokens that may be sampled, by their weights: three levels of sums, so that it costs one pass
//! and a look at one piece.
//!
//! A back end may draw itself ([`Backend::drawn`](crate::backend::Backend::drawn)): the order of every sum here is the
//! order there (backend/cuda/kernels/draw.cu), so that the token is the same.

use super::math::{exp, piece_sum};
use std::ops::Range;

/// Logits of a block, the first level. A block lies within one range of allowed tokens.
pub const BLOCK: usize = 1024;
/// Logits of a piece, the second level.
pub const PIECE: usize = 256;

/// How to choose a row's token where nothing but the temperature matters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// The likeliest, the lowest id among equals.
    pub greedy: bool,
    /// 1 / temperature.
    pub scale: f32,
    /// Where in the distribution, from 0 to 1: the first token for which the sum of the probabilities up to it is larger.
    pub u: f64,
}

/// The blocks of `allowed` ids, ascending.
pub fn blocks(allowed: &[Range<usize>]) -> Vec<Range<usize>> {
    let cut = |range: &Range<usize>, size: usize| {
        let end = range.end;
        range
            .clone()
            .step_by(size)
            .map(move |start| start..(start + size).min(end))
    };
    allowed.iter().flat_map(|range| cut(range, BLOCK)).collect()
}

/// Draws from all of `allowed`, not empty; `max` is the largest of their logits.
pub(super) fn from_all(
    logits: &[f32],
    allowed: &[Range<usize>],
    max: f32,
    scale: f32,
    u: f64,
) -> u32 {
    let pieces = |block: &Range<usize>| -> Vec<f64> {
        let pieces = logits[block.clone()].chunks(PIECE);
        pieces.map(|piece| piece_sum(piece, max, scale)).collect()
    };
    let blocks = blocks(allowed);
    let sums: Vec<f64> = blocks.iter().map(|block| total(pieces(block))).collect();
    let mut left = u * total(sums.iter().copied());
    let block = &blocks[which(&sums, &mut left)];
    let sums = pieces(block);
    let piece = which(&sums, &mut left);
    let start = block.start + piece * PIECE;
    let inside = &logits[start..(start + PIECE).min(block.end)];
    let weights: Vec<f32> = inside.iter().map(|x| exp((x - max) * scale)).collect();
    // The piece's own sum was rounded otherwise.
    let fraction = (left / sums[piece]).clamp(0.0, 1.0);
    let mut left = fraction * total(weights.iter().map(|&w| f64::from(w)));
    let mut chosen = 0;
    for (i, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            chosen = i;
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
    }
    (start + chosen) as u32
}

/// The sum, from 0 in order.
fn total(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |sum, value| sum + value)
}

/// Which sum holds the point `left` of their total; what is left of it there stays in `left`.
fn which(sums: &[f64], left: &mut f64) -> usize {
    let mut chosen = 0;
    for (i, &sum) in sums.iter().enumerate() {
        if sum > 0.0 {
            chosen = i;
            if *left < sum {
                break;
            }
            *left -= sum;
        }
    }
    chosen
}
