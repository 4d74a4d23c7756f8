//! Places for copies of the sliding windows: which sequence and position each belongs to.

use super::{Found, KvCache, Table};
use crate::backend::KV_BLOCK;

/// The places. Out goes the least recently used of those that were of no use yet, else of all.
#[derive(Debug)]
pub(super) struct Snapshots {
    places: Vec<Option<Snapshot>>,
    used: usize,
    clock: u64,
}

#[derive(Debug)]
struct Snapshot {
    /// The block that it hangs on: the last whole one before its position.
    block: Option<u32>,
    /// The tokens between that block's end and its position.
    tail: Vec<u32>,
    /// Its position: the tokens before it.
    len: usize,
    /// It was of use, or likely enough to be. Others give way first, so that one long prompt,
    /// which leaves a snapshot every so often, doesn't take every place.
    lasting: bool,
    used: u64,
}

impl Snapshots {
    pub fn new(places: usize) -> Snapshots {
        Snapshots {
            places: (0..places).map(|_| None).collect(),
            used: 0,
            clock: 0,
        }
    }

    pub fn free(&mut self, place: usize) {
        self.used -= usize::from(self.places[place].take().is_some());
    }

    fn touch(&mut self, place: usize) {
        self.clock += 1;
        if let Some(snapshot) = &mut self.places[place] {
            snapshot.used = self.clock;
            snapshot.lasting = true;
        }
    }

    /// A free place, else one whose turn it is.
    fn choose(&self) -> Option<usize> {
        let turn = |place: &usize| self.places[*place].as_ref().map(|s| (s.lasting, s.used));
        (0..self.places.len()).min_by_key(turn)
    }
}

impl KvCache {
    /// Places in all.
    pub fn snapshots(&self) -> usize {
        self.snapshots.places.len()
    }

    /// Places in use.
    pub fn snapshots_used(&self) -> usize {
        self.snapshots.used
    }

    /// A place for the windows after `tokens`, a sequence from its start that `table` holds and
    /// [`KvCache::advance`] was told of. `None` if they are kept already, or can't be. One that is
    /// not `lasting` makes room for others until it was of use.
    pub fn keep_snapshot(&mut self, table: &Table, tokens: &[u32], lasting: bool) -> Option<usize> {
        let whole = tokens.len() / KV_BLOCK;
        if tokens.is_empty() || whole > table.whole {
            return None;
        }
        let block = whole.checked_sub(1).map(|at| table.blocks[at]);
        let tail = &tokens[whole * KV_BLOCK..];
        if let Some(place) = self.snapshot_at(block, tail) {
            self.snapshots.touch(place);
            return None;
        }
        let place = self.snapshots.choose()?;
        self.drop_snapshot(place);
        self.snapshots.clock += 1;
        self.snapshots.places[place] = Some(Snapshot {
            block,
            tail: tail.to_vec(),
            len: tokens.len(),
            lasting,
            used: self.snapshots.clock,
        });
        self.snapshots.used += 1;
        self.node_mut(block).snapshots.push(place);
        Some(place)
    }

    /// Whether the windows after `tokens`, whose keys and values are in `blocks`, are kept.
    pub fn has_snapshot(&self, blocks: &[u32], tokens: &[u32]) -> bool {
        self.snapshot_after(blocks, tokens).is_some()
    }

    /// Notes that the snapshot after `tokens`, if there is one, may soon be of use.
    pub fn refresh_snapshot(&mut self, blocks: &[u32], tokens: &[u32]) {
        if let Some(place) = self.snapshot_after(blocks, tokens) {
            self.snapshots.touch(place);
        }
    }

    fn snapshot_after(&self, blocks: &[u32], tokens: &[u32]) -> Option<usize> {
        let whole = tokens.len() / KV_BLOCK;
        let block = match whole.checked_sub(1) {
            Some(at) => {
                let &block = blocks.get(at)?;
                let node = self.blocks[block as usize].node.as_ref();
                node.filter(|node| node.is_whole())?;
                Some(block)
            }
            None => None,
        };
        self.snapshot_at(block, &tokens[whole * KV_BLOCK..])
    }

    fn snapshot_at(&self, block: Option<u32>, tail: &[u32]) -> Option<usize> {
        let places = &self.node(block).snapshots;
        let same = |&&place: &&usize| {
            let snapshot = self.snapshots.places[place].as_ref();
            snapshot.is_some_and(|s| s.tail == tail)
        };
        places.iter().find(same).copied()
    }

    /// Frees a place: its bytes are not what they should be, or are wanted for something else.
    pub fn drop_snapshot(&mut self, place: usize) {
        if let Some(old) = &self.snapshots.places[place] {
            let block = old.block;
            self.node_mut(block)
                .snapshots
                .retain(|&other| other != place);
            self.snapshots.free(place);
        }
    }

    /// The place and position of the last snapshot within what was `found` of `tokens`.
    pub fn snapshot_within(&self, found: &Found, tokens: &[u32]) -> Option<(usize, usize)> {
        let nodes = found.blocks.iter().rev().map(|&block| Some(block));
        let nodes = nodes.chain([None]);
        for (depth, block) in (0..=found.blocks.len()).rev().zip(nodes) {
            let rest = &tokens[depth * KV_BLOCK..found.len];
            let here = self.node(block).snapshots.iter().filter_map(|&place| {
                let snapshot = self.snapshots.places[place].as_ref()?;
                rest.starts_with(&snapshot.tail)
                    .then_some((place, snapshot.len))
            });
            if let Some(last) = here.max_by_key(|&(_, len)| len) {
                return Some(last);
            }
        }
        None
    }

    /// Notes that a snapshot was of use.
    pub fn touch_snapshot(&mut self, place: usize) {
        self.snapshots.touch(place);
    }
}
