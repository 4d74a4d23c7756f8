//! Which blocks of the paged KV cache belong to whom, and what finished sequences left in them:
//! integers only, the back end owns the bytes.
//!
//! A block holds [`KV_BLOCK`] positions. It is *free*, *in use* (in the tables of one or more live
//! sequences), or *cached* (its sequences are gone, its contents are known). Known contents form a
//! tree: a node is a block with its tokens, its parent the block before it. So the path from the root
//! to a node spells the sequence that its keys and values belong to, and whatever begins with those
//! tokens may use them. Only the last block of a path may be *open*, with room for more positions;
//! its one live owner still writes it, others copy it.
//!
//! Invariants:
//! - A position is written at most once, in a block that is in exactly one table.
//! - A live sequence holds all ancestors of each node that it holds. So a cached node has cached
//!   descendants only, and taking the least recently used leaf never breaks a path.
//! - A snapshot of the sliding windows hangs on the last whole block before its position, and goes
//!   when that block goes: without the keys and values below it, it is of no use.

mod prefix;
mod snapshots;
#[cfg(test)]
mod tests;

pub use prefix::{End, Found};

use crate::backend::KV_BLOCK;
use prefix::{Ghosts, Node, extend};
use rustc_hash::FxHashMap;
use snapshots::Snapshots;
use std::collections::BTreeSet;

/// The blocks of one cache, and the places for snapshots.
#[derive(Debug)]
pub struct KvCache {
    blocks: Vec<Block>,
    /// Free blocks; the last is given out next.
    free: Vec<u32>,
    /// What the first blocks of all paths have in common: nothing.
    root: Node,
    /// Whole blocks by the hash of their path.
    index: FxHashMap<u64, u32>,
    /// Cached leaves, least recently used first.
    leaves: BTreeSet<(u64, u32)>,
    /// Cached blocks.
    cached: usize,
    ghosts: Ghosts,
    snapshots: Snapshots,
    clock: u64,
}

#[derive(Debug, Default)]
struct Block {
    /// Tables that name it.
    refs: u32,
    /// What is known to be in it.
    node: Option<Node>,
}

/// The blocks of one live sequence, in order.
#[derive(Debug, Default)]
pub struct Table {
    /// Position `p` lives in `blocks[p / KV_BLOCK]`.
    pub blocks: Vec<u32>,
    /// How many of the first are whole nodes.
    whole: usize,
}

/// The cache has no block left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the KV cache is full: {needed} blocks of {KV_BLOCK} tokens are needed, {available} of {total} can be had"
)]
pub struct CacheFull {
    /// Blocks wanted in addition.
    pub needed: usize,
    /// Blocks free or cached.
    pub available: usize,
    /// Blocks in all.
    pub total: usize,
}

impl KvCache {
    /// Blocks `0..blocks`, all free, and places `0..snapshots`.
    pub fn new(blocks: usize, snapshots: usize) -> KvCache {
        KvCache {
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            free: (0..blocks as u32).rev().collect(),
            root: Node::default(),
            index: FxHashMap::default(),
            leaves: BTreeSet::new(),
            cached: 0,
            ghosts: Ghosts::new(blocks),
            snapshots: Snapshots::new(snapshots),
            clock: 0,
        }
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks with cached contents that no live sequence holds.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Blocks that live sequences hold.
    pub fn in_use(&self) -> usize {
        self.total() - self.available()
    }

    /// Blocks that are free or can be freed.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached
    }

    /// How many of these blocks no live sequence holds: those that would be available no more.
    pub fn idle(&self, blocks: &[u32]) -> usize {
        let idle = |&&block: &&u32| self.blocks[block as usize].refs == 0;
        blocks.iter().filter(idle).count()
    }

    /// Makes `table` long enough for `tokens` positions, at the cost of what is cached. On an error
    /// nothing has changed.
    pub fn grow(&mut self, table: &mut Table, tokens: usize) -> Result<(), CacheFull> {
        let needed = tokens.div_ceil(KV_BLOCK).saturating_sub(table.blocks.len());
        if needed > self.available() {
            return Err(CacheFull {
                needed,
                available: self.available(),
                total: self.total(),
            });
        }
        for _ in 0..needed {
            if self.free.is_empty() {
                self.evict();
            }
            let Some(block) = self.free.pop() else { break };
            self.blocks[block as usize].refs = 1;
            table.blocks.push(block);
        }
        Ok(())
    }

    /// Puts shared blocks, those of [`KvCache::find`], into an empty table.
    pub fn share(&mut self, table: &mut Table, blocks: &[u32]) {
        debug_assert!(table.blocks.is_empty());
        blocks.iter().for_each(|&block| self.hold(block));
        table.blocks.extend_from_slice(blocks);
        table.whole = blocks.len();
    }

    /// Keeps a known block from being evicted until [`KvCache::let_go`].
    pub fn hold(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        entry.refs += 1;
        if let (1, Some(node)) = (entry.refs, &entry.node) {
            self.cached -= 1;
            self.leaves.remove(&(node.used, block));
        }
    }

    /// The opposite of [`KvCache::hold`].
    pub fn let_go(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        entry.refs -= 1;
        if entry.refs > 0 {
            return;
        }
        let Some(node) = &mut entry.node else {
            self.free.push(block);
            return;
        };
        node.used = self.clock;
        self.cached += 1;
        if node.children.is_empty() {
            self.leaves.insert((node.used, block));
        }
        if self.is_covered(block) {
            self.remove(block);
        }
    }

    /// Tells that the keys and values of `tokens`, a sequence from its start, are in `table` now.
    /// Where another sequence has computed the same block, the table gets that one.
    pub fn advance(&mut self, table: &mut Table, tokens: &[u32]) {
        while table.whole < tokens.len() / KV_BLOCK {
            let at = table.whole;
            let Some(&block) = table.blocks.get(at) else {
                return;
            };
            let parent = at.checked_sub(1).map(|before| table.blocks[before]);
            let inside = &tokens[at * KV_BLOCK..][..KV_BLOCK];
            let hash = extend(self.node(parent).hash, inside);
            match self.index.get(&hash) {
                // Two paths with one hash: the second one stays unknown.
                Some(&other) if !self.is(other, parent, inside) => return,
                Some(&other) if other != block => {
                    self.hold(other);
                    table.blocks[at] = other;
                    self.forget_node(block);
                    self.let_go(block);
                }
                _ => {
                    self.learn(block, parent, inside);
                    if let Some(node) = &mut self.blocks[block as usize].node {
                        node.hash = hash;
                    }
                    self.index.insert(hash, block);
                    self.drop_covered(parent, inside);
                }
            }
            table.whole += 1;
        }
        let inside = &tokens[(table.whole * KV_BLOCK).min(tokens.len())..];
        if let (false, Some(&block)) = (inside.is_empty(), table.blocks.get(table.whole)) {
            let parent = table.whole.checked_sub(1).map(|at| table.blocks[at]);
            self.learn(block, parent, inside);
        }
    }

    /// Takes back a sequence's blocks; what is known of them stays cached.
    pub fn release(&mut self, table: Table) {
        self.clock += 1;
        // Children first, so that a leaf is a leaf when its turn comes.
        for block in table.blocks.into_iter().rev() {
            self.let_go(block);
        }
    }

    /// Frees the least recently used leaf. Does nothing when nothing is cached.
    fn evict(&mut self) {
        let Some(&(_, block)) = self.leaves.first() else {
            return;
        };
        if let Some(node) = &self.blocks[block as usize].node
            && node.is_whole()
        {
            self.ghosts.push(node.hash);
        }
        self.remove(block);
    }

    /// Frees a cached leaf.
    fn remove(&mut self, block: u32) {
        self.forget_node(block);
        self.free.push(block);
    }

    /// Forgets what is in a block that has no children.
    fn forget_node(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        let Some(node) = entry.node.take() else {
            return;
        };
        debug_assert!(node.children.is_empty());
        if entry.refs == 0 {
            self.cached -= 1;
            self.leaves.remove(&(node.used, block));
        }
        if node.is_whole() {
            self.index.remove(&node.hash);
        }
        for place in node.snapshots {
            self.snapshots.free(place);
        }
        let parent = self.node_mut(node.parent);
        parent.children.retain(|&child| child != block);
        let (alone, used) = (parent.children.is_empty(), parent.used);
        if let Some(parent) = node.parent
            && alone
            && self.blocks[parent as usize].refs == 0
        {
            self.leaves.insert((used, parent));
        }
    }
}
