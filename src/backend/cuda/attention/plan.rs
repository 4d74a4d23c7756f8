//! Which kernel takes which rows of a batch, and in how many parts.
//!
//! Rows alone in their segment, decode, go to `attention_rows`: its grid depends on the number of rows
//! and a bound on their positions only, so it can be part of a graph. Segments of more rows are cut
//! into tiles of [`QUERIES`] queries for `attention_tiles`, as is everything on a sliding layer whose
//! new keys and values lie in `fresh`. Both cut long stretches of positions into parts, as many as keep
//! all multiprocessors busy; the part that ends last adds them up.

use crate::backend::{KV_BLOCK, cuda::batch::Segment};

/// Queries of a tile: tokens times the heads of one KV head.
pub const QUERIES: usize = 128;
/// Query heads of a block of `attention_rows`.
const HEADS: usize = 8;
/// Most steps of [`KV_BLOCK`] positions for [`Blocks::Short`]: one a warp.
const SHORT: usize = 8;
/// Most parts of each of many rows.
const MANY_PARTS: usize = 16;
/// Fewest steps of a part of a tile.
const TILE_STEPS: usize = 16;
/// Blocks of `attention_tiles` that a multiprocessor runs at once.
const RESIDENT: usize = 2;
/// Room for partial sums, in queries of one KV head.
pub const PARTIALS: usize = 128 << 10;

/// What plans depend on beside the batch.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of each.
    pub group: usize,
    /// Positions that a sliding layer's row sees.
    pub window: usize,
    /// The GPU's.
    pub multiprocessors: usize,
}

/// How a batch is run. Equal plans, made by [`Shape::rows`], make equal launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    pub(super) full: Launches,
    pub(super) sliding: Launches,
    /// Segments whose `fresh` goes to the rings.
    pub(super) keep: usize,
}

/// Launches for one kind of layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Launches {
    /// Rows alone.
    pub rows: usize,
    /// Most parts of one of them.
    pub parts: usize,
    /// For which kernel.
    pub blocks: Blocks,
    /// Where their list begins in the plan's words; none: all rows in order.
    pub list: Option<usize>,
    /// Tiles.
    pub tiles: usize,
    /// Where they begin in the plan's words.
    pub first_tile: usize,
}

/// Which kernel rows alone get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum Blocks {
    /// More than there are multiprocessors: small blocks, several on each.
    #[default]
    Many,
    /// Few: a large block on each.
    Few,
    /// Few, and every position is loaded at once; small, to start beside the kernel before.
    Short,
}

impl Blocks {
    /// Most steps of [`KV_BLOCK`] positions of a row that stay in one part, and steps of a part if there
    /// are several.
    pub fn steps(self) -> (usize, usize) {
        match self {
            Blocks::Many => (48, 32),
            Blocks::Few => (32, 8),
            Blocks::Short => (SHORT, SHORT),
        }
    }
}

/// Work of one `attention_tiles` block a KV head. The same in kernels/attention.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    segment: usize,
    token: usize,
    step: usize,
    steps: usize,
    split: usize,
    splits: usize,
    partial: usize,
    counter: usize,
}

impl Tile {
    const WORDS: usize = 8;

    #[rustfmt::skip]
    fn words(&self) -> [i32; Tile::WORDS] {
        [self.segment, self.token, self.step, self.steps, self.split, self.splits, self.partial, self.counter]
            .map(|n| n as i32)
    }
}

impl Shape {
    /// Blocks of a row's part in `attention_rows`.
    pub fn head_tiles(&self) -> usize {
        self.kv_heads * self.group.div_ceil(HEADS)
    }

    /// Most words of a plan for so many rows and segments.
    pub fn most_words(&self, rows: usize, segments: usize) -> usize {
        let segments = segments.min(rows);
        let tiles = rows.div_ceil(QUERIES / self.group) + segments;
        segments + 2 * Tile::WORDS * (tiles + PARTIALS / QUERIES)
    }

    /// Most counters of parts done for so many rows.
    pub fn most_counters(&self, rows: usize) -> usize {
        let split_tiles = PARTIALS / QUERIES / 2;
        (rows * self.head_tiles()).max(split_tiles * self.kv_heads)
    }

    /// The plan for `rows` rows at positions below `longest`, whatever segments they belong to, where
    /// no layer has `fresh`. It has no words, so it may be recorded once and replayed.
    pub fn rows(&self, rows: usize, longest: usize) -> Plan {
        Plan {
            full: self.alone(rows, longest),
            sliding: self.alone(rows, longest.min(self.window)),
            keep: 0,
        }
    }

    /// Launches for rows alone that see at most `longest` positions.
    fn alone(&self, rows: usize, longest: usize) -> Launches {
        let count = rows.max(1) * self.head_tiles();
        let steps = longest.div_ceil(KV_BLOCK) + 1; // they need not begin where a step does
        let (blocks, most) = match self.multiprocessors / count {
            0 => (Blocks::Many, MANY_PARTS.min(PARTIALS / (count * HEADS))),
            _ if steps <= SHORT => (Blocks::Short, 1),
            most => (Blocks::Few, most),
        };
        let (whole, least) = blocks.steps();
        let parts = match steps <= whole {
            true => 1,
            false => steps.div_ceil(least).min(most).max(1),
        };
        Launches {
            rows,
            parts,
            blocks,
            ..Launches::default()
        }
    }

    /// The plan for any batch, and its words: lists of rows and tiles. `fresh`: on sliding layers the
    /// batch's keys and values lie there.
    pub fn batch(&self, segments: &[Segment], fresh: bool) -> (Plan, Vec<i32>) {
        let alone: Vec<&Segment> = segments.iter().filter(|s| s.len == 1).collect();
        let longest = alone.iter().map(|s| s.start as usize + 1).max();
        let rows = |window: usize| match longest {
            None => Launches::default(),
            Some(longest) => Launches {
                list: Some(0),
                ..self.alone(alone.len(), longest.min(window))
            },
        };
        let mut words: Vec<i32> = alone.iter().map(|s| s.first_row).collect();
        let mut with_tiles = |rows: Launches, window: Option<usize>, all: bool| {
            let tiles = self.tiles(segments, window, all);
            let first_tile = words.len();
            words.extend(tiles.iter().flat_map(Tile::words));
            Launches {
                tiles: tiles.len(),
                first_tile,
                ..rows
            }
        };
        let full = with_tiles(rows(usize::MAX), None, false);
        let sliding = match fresh {
            true => with_tiles(Launches::default(), Some(self.window), true),
            false => with_tiles(rows(self.window), Some(self.window), false),
        };
        let keep = if fresh { segments.len() } else { 0 };
        let plan = Plan {
            full,
            sliding,
            keep,
        };
        (plan, words)
    }

    /// Cuts segments (`all`, or those of several rows) into tiles, those with most positions first: the
    /// short ones fill what is left.
    fn tiles(&self, segments: &[Segment], window: Option<usize>, all: bool) -> Vec<Tile> {
        let tokens = QUERIES / self.group;
        let mut whole = Vec::new();
        for (segment, s) in segments.iter().enumerate() {
            if s.len == 1 && !all {
                continue;
            }
            let (start, len) = (s.start as usize, s.len as usize);
            for token in (0..len).step_by(tokens) {
                let seen = |w| {
                    (start + token + 1)
                        .saturating_sub(w)
                        .max(s.window_from as usize)
                };
                let step = window.map_or(0, seen) / KV_BLOCK;
                let last = start + (token + tokens).min(len) - 1;
                whole.push(Tile {
                    segment,
                    token,
                    step,
                    steps: last / KV_BLOCK + 1 - step,
                    split: 0,
                    splits: 1,
                    partial: 0,
                    counter: 0,
                });
            }
        }
        let steps: usize = whole.iter().map(|t| t.steps).sum();
        let blocks = self.multiprocessors * RESIDENT;
        let mut most = (steps * self.kv_heads).div_ceil(blocks * 2).max(TILE_STEPS);
        // Half as many again is no reason to part yet.
        let parts = |t: &Tile, most: usize| match t.steps * 2 > most * 3 {
            false => 0,
            true => t.steps.div_ceil(most),
        };
        // A little longer parts until the partial sums fit.
        let partials = |most| whole.iter().map(|t| parts(t, most)).sum::<usize>();
        while partials(most) * QUERIES * self.kv_heads > PARTIALS {
            most += most / 4;
        }
        let mut tiles = Vec::with_capacity(whole.len() + partials(most));
        let (mut partial, mut counter) = (0, 0);
        for tile in &whole {
            let splits = parts(tile, most).max(1);
            // In pairs of steps, since the kernel goes by those.
            let pairs = tile.steps.div_ceil(2);
            tiles.extend((0..splits).map(|split| {
                let from = pairs * split / splits * 2;
                let to = (pairs * (split + 1) / splits * 2).min(tile.steps);
                Tile {
                    step: tile.step + from,
                    steps: to - from,
                    split,
                    splits,
                    partial,
                    counter,
                    ..*tile
                }
            }));
            if splits > 1 {
                partial += splits;
                counter += 1;
            }
        }
        tiles.sort_by_key(|t| std::cmp::Reverse(t.steps));
        tiles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every tile's parts, put together, are its positions, and nothing runs out of room.
    #[test]
    fn parts_of_tiles_cover_their_positions() {
        let lens = [1, 2, 15, 16, 17, 33, 300, 2048];
        let starts = [0, 5, 127, 128, 5000, 131_000];
        for (kv_heads, group, multiprocessors) in [
            (8, 8, 132),
            (1, 8, 132),
            (2, 1, 4),
            (3, 16, 58),
            (1, 100, 20),
        ] {
            let shape = Shape {
                kv_heads,
                group,
                window: 128,
                multiprocessors,
            };
            let segments: Vec<Segment> = (lens
                .iter()
                .flat_map(|&len| starts.map(|start| (start, len))))
            .map(|(start, len)| Segment {
                start,
                len,
                first_row: 0,
                slot: 0,
                window_from: start / 2,
                blocks: 0,
                pad: [0; 2],
            })
            .collect();
            let some = [&segments[30..31], &segments[..], &segments[47..]];
            for (segments, window) in some.into_iter().flat_map(|s| [(s, None), (s, Some(128))]) {
                let mut tiles = shape.tiles(segments, window, true);
                let rows = segments.iter().map(|s| s.len as usize).sum();
                assert!(tiles.len() * Tile::WORDS * 2 <= shape.most_words(rows, segments.len()));
                let parted: usize = tiles
                    .iter()
                    .filter(|t| t.split == 0 && t.splits > 1)
                    .map(|t| t.splits)
                    .sum();
                assert!(parted * kv_heads * QUERIES <= PARTIALS);
                assert!(
                    tiles.iter().all(|t| t.splits == 1
                        || (t.counter + 1) * kv_heads <= shape.most_counters(rows))
                );
                tiles.sort_by_key(|t| (t.segment, t.token, t.split));
                let mut expected = 0;
                for (i, t) in tiles.iter().enumerate() {
                    let s = &segments[t.segment];
                    let next = tiles.get(i + 1).filter(|n| n.split > 0);
                    assert!(t.steps > 0, "{t:?}");
                    if t.split == 0 {
                        let first = window.map_or(0, |w| {
                            (s.start + t.token as i32 + 1 - w as i32).max(s.window_from)
                        });
                        assert_eq!(t.step, first as usize / KV_BLOCK, "{t:?}");
                    } else {
                        assert_eq!((t.step, tiles[i - 1].token), (expected, t.token), "{t:?}");
                    }
                    expected = t.step + t.steps;
                    match next {
                        Some(_) => assert!(t.steps.is_multiple_of(2), "{t:?}"),
                        None => {
                            let last = s.start
                                + (t.token + QUERIES / group).min(s.len as usize) as i32
                                - 1;
                            assert_eq!(
                                (expected - 1, t.split + 1),
                                (last as usize / KV_BLOCK, t.splits),
                                "{t:?}"
                            );
                        }
                    }
                }
                let tokens: usize = segments
                    .iter()
                    .map(|s| (s.len as usize).div_ceil(QUERIES / group))
                    .sum();
                assert_eq!(tiles.iter().filter(|t| t.split == 0).count(), tokens);
            }
        }
    }
}
