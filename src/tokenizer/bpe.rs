//! Byte-pair merging of one piece.
//!
//! The pair with the lowest rank merges first, the leftmost of equals. In o200k a pair's rank is the
//! id of the token it makes, so the vocabulary alone decides; other vocabularies may list merges in
//! an order of their own. Short pieces are merged by scanning, long ones with a queue: a piece of a
//! megabyte takes n log n at worst.

use super::{bytes::from_gpt2, queue::Queue, table::Table};
use anyhow::{Context, Result, bail};
use rustc_hash::FxHashMap;
use std::thread;

/// Above this many bytes the queue wins over scanning.
const SCAN_LIMIT: usize = 128;
/// Longer pieces are cut: positions are 32 bits wide.
const PIECE_LIMIT: usize = 1 << 30;
const NONE: u32 = u32::MAX;

/// Which pairs merge, and in which order.
pub(super) struct Merges {
    /// Single-byte tokens.
    bytes: [u32; 256],
    order: Order,
}

enum Order {
    /// Any two neighbours whose bytes together are a token; its id is the rank.
    ById,
    /// Listed pairs only: (left, right) to (rank, merged id).
    Listed(FxHashMap<(u32, u32), (u32, u32)>),
}

/// Buffers reused from piece to piece.
#[derive(Default)]
pub(super) struct Scratch {
    parts: Vec<Part>,
    links: Vec<Link>,
    queue: Queue,
}

/// A token so far, and what merging it with its right neighbour would give.
#[derive(Clone, Copy)]
struct Part {
    /// Offset in the piece.
    start: u32,
    id: u32,
    /// Rank of the merge, `NONE` for none.
    rank: u32,
    merged: u32,
}

/// Neighbours of a part of a long piece, by index; `NONE` at the ends.
#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
}

impl Merges {
    /// Ranks are ids.
    pub fn by_id(table: &Table) -> Merges {
        Merges {
            bytes: std::array::from_fn(|byte| table.find(&[byte as u8]).unwrap_or(0)),
            order: Order::ById,
        }
    }

    /// From `tokenizer.ggml.merges`. A list that holds every possible merge in the order of ids says
    /// no more than the ids do.
    ///
    /// `texts` are the tokens' spellings; `key` names the list in errors.
    pub fn from_lines<'a>(
        key: &str,
        lines: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
        texts: impl Iterator<Item = &'a [u8]>,
        table: &Table,
    ) -> Result<Merges> {
        let by_id = Merges::by_id(table);
        if lines.len() == 0 {
            return Ok(by_id);
        }
        let derived = derive_merges(table);
        if lines.len() == derived.len() {
            // Bytes have one spelling: comparing texts saves decoding them.
            let texts: Vec<&[u8]> = texts.collect();
            let text = |id: u32| texts.get(id as usize).copied().unwrap_or_default();
            let spells = |line: &[u8], (left, right): (u32, u32)| {
                line.strip_prefix(text(left))
                    .and_then(|rest| rest.strip_prefix(b" "))
                    .is_some_and(|rest| rest == text(right))
            };
            let mut pairs = lines.clone().zip(&derived);
            if pairs.all(|(line, &pair)| spells(line, pair)) {
                return Ok(by_id);
            }
        }
        let mut parser = LineParser::default();
        let mut listed = FxHashMap::default();
        listed.reserve(lines.len());
        for (rank, line) in lines.enumerate() {
            let merge = (|| {
                let (left, right) = parser.parse(line)?;
                let ids = (table.find(left), table.find(right));
                let (Some(l), Some(r)) = ids else {
                    bail!("{}: its parts aren't both tokens", show(line));
                };
                let merged = [left, right].concat();
                let merged = table
                    .find(&merged)
                    .with_context(|| format!("{}: makes no token", show(line)))?;
                Ok(((l, r), merged))
            })();
            let (pair, merged) = merge.with_context(|| format!("{key}[{rank}]"))?;
            listed.entry(pair).or_insert((rank as u32, merged));
        }
        Ok(Merges {
            order: Order::Listed(listed),
            ..by_id
        })
    }

    /// Appends the ids of `piece`.
    pub fn encode(&self, table: &Table, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        match &self.order {
            Order::ById => {
                if let Some(id) = table.find(piece) {
                    ids.push(id);
                    return;
                }
                let lookup = |piece: &[u8], left: &Part, _: &Part, end: usize| {
                    let bytes = &piece[left.start as usize..end];
                    let id = match *bytes {
                        [first, second] => table.find_pair(first, second),
                        _ => table.find(bytes),
                    };
                    id.map(|id| (id, id))
                };
                self.merge(piece, lookup, scratch, ids);
            }
            Order::Listed(listed) => {
                let lookup = |_: &[u8], left: &Part, right: &Part, _: usize| {
                    listed.get(&(left.id, right.id)).copied()
                };
                self.merge(piece, lookup, scratch, ids);
            }
        }
    }

    /// `lookup(piece, left, right, right's end)` gives a pair's (rank, merged id).
    fn merge(
        &self,
        piece: &[u8],
        lookup: impl Fn(&[u8], &Part, &Part, usize) -> Option<(u32, u32)>,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        for piece in piece.chunks(PIECE_LIMIT) {
            let parts = &mut scratch.parts;
            parts.clear();
            parts.extend(piece.iter().enumerate().map(|(start, &byte)| Part {
                start: start as u32,
                id: self.bytes[usize::from(byte)],
                rank: NONE,
                merged: NONE,
            }));
            for left in 0..parts.len().saturating_sub(1) {
                let found = lookup(piece, &parts[left], &parts[left + 1], left + 2);
                (parts[left].rank, parts[left].merged) = found.unwrap_or((NONE, NONE));
            }
            if piece.len() <= SCAN_LIMIT {
                scan(piece, parts, &lookup);
                ids.extend(parts.iter().map(|part| part.id));
            } else {
                drain_queue(piece, scratch, &lookup);
                let mut at = 0;
                while at != NONE {
                    ids.push(scratch.parts[at as usize].id);
                    at = scratch.links[at as usize].next;
                }
            }
        }
    }
}

/// Merges until nothing can be: each round scans for the lowest rank.
fn scan(
    piece: &[u8],
    parts: &mut Vec<Part>,
    lookup: impl Fn(&[u8], &Part, &Part, usize) -> Option<(u32, u32)>,
) {
    loop {
        let mut best = (NONE, 0);
        for (at, part) in parts.iter().enumerate() {
            if part.rank < best.0 {
                best = (part.rank, at);
            }
        }
        let (rank, at) = best;
        if rank == NONE {
            return;
        }
        parts[at].id = parts[at].merged;
        parts.remove(at + 1);
        for left in [at.wrapping_sub(1), at] {
            let Some(&part) = parts.get(left) else {
                continue;
            };
            let found = parts.get(left + 1).and_then(|right| {
                let end = parts
                    .get(left + 2)
                    .map_or(piece.len(), |p| p.start as usize);
                lookup(piece, &part, right, end)
            });
            (parts[left].rank, parts[left].merged) = found.unwrap_or((NONE, NONE));
        }
    }
}

/// The same with a queue. A part swallowed by its left neighbour gets rank `NONE`, and an entry
/// whose rank is no longer its part's is stale.
fn drain_queue(
    piece: &[u8],
    scratch: &mut Scratch,
    lookup: impl Fn(&[u8], &Part, &Part, usize) -> Option<(u32, u32)>,
) {
    let Scratch {
        parts,
        links,
        queue,
    } = scratch;
    let last = parts.len() as u32 - 1;
    links.clear();
    links.extend((0..=last).map(|at| Link {
        previous: at.wrapping_sub(1),
        next: if at == last { NONE } else { at + 1 },
    }));
    queue.clear();
    for (at, part) in parts.iter().enumerate() {
        if part.rank != NONE {
            queue.push(part.rank, at as u32);
        }
    }
    while let Some((rank, at)) = queue.pop() {
        if parts[at as usize].rank != rank {
            continue;
        }
        let swallowed = links[at as usize].next;
        let next = links[swallowed as usize].next;
        parts[at as usize].id = parts[at as usize].merged;
        parts[swallowed as usize].rank = NONE;
        links[at as usize].next = next;
        if next != NONE {
            links[next as usize].previous = at;
        }
        for left in [links[at as usize].previous, at] {
            if left == NONE {
                continue;
            }
            let right = links[left as usize].next;
            let found = if right == NONE {
                None
            } else {
                let after = links[right as usize].next;
                let end = match after {
                    NONE => piece.len(),
                    after => parts[after as usize].start as usize,
                };
                lookup(piece, &parts[left as usize], &parts[right as usize], end)
            };
            let part = &mut parts[left as usize];
            (part.rank, part.merged) = found.unwrap_or((NONE, NONE));
            if part.rank != NONE {
                queue.push(part.rank, left);
            }
        }
    }
}

/// See [`super::Tokenizer::derive_merges`].
pub(super) fn derive_merges(table: &Table) -> Vec<(u32, u32)> {
    // Two million lookups: most of the time it takes to open a file, so each core takes a share.
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = table.len().div_ceil(threads).max(4096);
    let of_share = &|first: usize| {
        let ids = first..(first + share).min(table.len());
        let mut merges = Vec::with_capacity(share * 9 / 4);
        for id in ids {
            merges_into(table, id as u32, &mut merges);
        }
        merges
    };
    thread::scope(|scope| {
        let starts = (share..table.len()).step_by(share);
        let others: Vec<_> = starts
            .map(|first| scope.spawn(move || of_share(first)))
            .collect();
        let mut merges = of_share(0);
        for other in others {
            match other.join() {
                Ok(more) => merges.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        merges
    })
}

/// Appends the merges that make token `id`, by their left, then their right id.
fn merges_into(table: &Table, id: u32, merges: &mut Vec<(u32, u32)>) {
    let token = table.get(id);
    // Specials, and repeats of an earlier token, are never merged.
    if token.len() < 2 || table.find(token) != Some(id) {
        return;
    }
    let first = merges.len();
    for cut in 1..token.len() {
        let (left, right) = token.split_at(cut);
        if let Some(left) = table.find(left)
            && let Some(right) = table.find(right)
        {
            merges.push((left, right));
        }
    }
    merges[first..].sort_unstable();
}

/// Splits merge lines into the bytes of their two parts.
#[derive(Default)]
struct LineParser {
    left: Vec<u8>,
    right: Vec<u8>,
}

impl LineParser {
    fn parse(&mut self, line: &[u8]) -> Result<(&[u8], &[u8])> {
        let blank = line.iter().position(|&byte| byte == b' ');
        let (left, right) = blank
            .map(|at| (&line[..at], &line[at + 1..]))
            .with_context(|| {
                format!("expected a blank between two tokens, found {}", show(line))
            })?;
        self.left.clear();
        self.right.clear();
        let spelled = from_gpt2(left, &mut self.left).and(from_gpt2(right, &mut self.right));
        spelled.with_context(|| format!("{} isn't GPT-2's spelling of bytes", show(line)))?;
        Ok((&self.left, &self.right))
    }
}

/// A merge line for a message.
fn show(line: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(line))
}
