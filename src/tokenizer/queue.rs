//! Positions by rank: the lowest rank first, in it the leftmost position.
//!
//! A long piece has many pairs of few ranks. Each rank keeps its positions in a list that is sorted
//! once, so taking one costs little more than reading it; a plain heap of (rank, position) pays a
//! walk through its depth, all of it cache misses.

use rustc_hash::FxHashMap;
use std::{cmp::Reverse, collections::BinaryHeap};

#[derive(Default)]
pub(super) struct Queue {
    /// (rank, bucket) of every bucket that isn't empty.
    ranks: BinaryHeap<Reverse<(u32, u32)>>,
    /// Rank to bucket.
    index: FxHashMap<u32, u32>,
    buckets: Vec<Bucket>,
}

/// The positions of one rank.
#[derive(Default)]
struct Bucket {
    /// Those known before the first was taken; sorted from then on.
    early: Vec<u32>,
    /// How many of `early` are taken.
    taken: usize,
    started: bool,
    /// Those that came after.
    late: BinaryHeap<Reverse<u32>>,
    /// Whether `ranks` lists it.
    listed: bool,
}

impl Bucket {
    fn take(&mut self) -> Option<u32> {
        if !self.started {
            self.started = true;
            if !self.early.is_sorted() {
                self.early.sort_unstable();
            }
        }
        let early = self.early.get(self.taken).copied();
        let late = self.late.peek().map(|late| late.0);
        if let Some(position) = late
            && early.is_none_or(|early| position < early)
        {
            self.late.pop();
            return late;
        }
        self.taken += 1;
        if early.is_none() {
            self.early.clear();
            (self.taken, self.started) = (0, false);
        }
        early
    }
}

impl Queue {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ranks.clear();
        self.index.clear();
        self.buckets.clear();
    }

    pub fn push(&mut self, rank: u32, position: u32) {
        let next = self.buckets.len() as u32;
        let at = *self.index.entry(rank).or_insert(next);
        if at == next {
            self.buckets.push(Bucket::default());
        }
        let bucket = &mut self.buckets[at as usize];
        if bucket.started {
            bucket.late.push(Reverse(position));
        } else {
            bucket.early.push(position);
        }
        if !bucket.listed {
            bucket.listed = true;
            self.ranks.push(Reverse((rank, at)));
        }
    }

    /// Takes the leftmost position of the lowest rank.
    pub fn pop(&mut self) -> Option<(u32, u32)> {
        while let Some(&Reverse((rank, at))) = self.ranks.peek() {
            let bucket = &mut self.buckets[at as usize];
            if let Some(position) = bucket.take() {
                return Some((rank, position));
            }
            bucket.listed = false;
            self.ranks.pop();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a heap of pairs, pushes and pops mixed.
    #[test]
    fn takes_in_the_order_of_a_heap() {
        let (mut queue, mut heap) = (Queue::default(), BinaryHeap::new());
        let mut state = 12345u32;
        let mut random = |n: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % n
        };
        for _ in 0..20_000 {
            if random(5) < 3 {
                let entry = (random(7), random(1000));
                queue.push(entry.0, entry.1);
                heap.push(Reverse(entry));
            } else {
                assert_eq!(queue.pop(), heap.pop().map(|entry| entry.0));
            }
        }
        while let Some(Reverse(entry)) = heap.pop() {
            assert_eq!(queue.pop(), Some(entry));
        }
        assert_eq!(queue.pop(), None);
    }
}
