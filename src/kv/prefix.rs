//! The tree of known blocks: what a prompt has in common with it, and where they part.

use super::KvCache;
use crate::backend::KV_BLOCK;
use rustc_hash::FxHasher;
use std::{
    collections::{HashSet, VecDeque},
    hash::{Hash, Hasher},
};

/// What is known of one block. The root is a node without tokens.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Its tokens, `KV_BLOCK` of them unless it is open.
    pub tokens: Vec<u32>,
    /// The block before it.
    pub parent: Option<u32>,
    /// Of the whole path; of an open node nothing.
    pub hash: u64,
    /// The blocks that go on from it.
    pub children: Vec<u32>,
    /// When its last owner let it go.
    pub used: u64,
    /// Places of the snapshots whose position is its end, or up to a block later.
    pub snapshots: Vec<usize>,
}

impl Node {
    pub fn is_whole(&self) -> bool {
        self.tokens.len() == KV_BLOCK
    }
}

/// The hash of a path that is one block longer.
pub(super) fn extend(path: u64, tokens: &[u32]) -> u64 {
    let mut hasher = FxHasher::default();
    path.hash(&mut hasher);
    tokens.hash(&mut hasher);
    hasher.finish()
}

/// What the cache holds of a sequence's beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whole blocks, in order.
    pub blocks: Vec<u32>,
    /// The block that the next tokens are in, where any of them are.
    pub tail: Option<u32>,
    /// Tokens in common, those in `tail` counted.
    pub len: usize,
    /// Why no more.
    pub end: End,
}

/// What the cache has where a sequence leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing: what was cached ends here.
    Nothing,
    /// Another token.
    Token(u32),
    /// Nothing any more: the block that went on was evicted.
    Evicted,
}

impl Found {
    /// Nothing in common, as after an eviction of everything.
    pub fn nothing() -> Found {
        Found {
            blocks: Vec::new(),
            tail: None,
            len: 0,
            end: End::Evicted,
        }
    }
}

impl KvCache {
    /// What is known of `tokens`, a sequence from its start.
    pub fn find(&self, tokens: &[u32]) -> Found {
        let mut blocks: Vec<u32> = Vec::new();
        let mut path = self.root.hash;
        let mut whole = tokens.chunks_exact(KV_BLOCK);
        let mut missing = None;
        for inside in whole.by_ref() {
            let hash = extend(path, inside);
            match self.index.get(&hash) {
                Some(&block) if self.is(block, blocks.last().copied(), inside) => {
                    blocks.push(block);
                    path = hash;
                }
                _ => {
                    missing = Some(hash);
                    break;
                }
            }
        }
        let rest = &tokens[blocks.len() * KV_BLOCK..];
        let mut found = Found {
            len: blocks.len() * KV_BLOCK,
            tail: None,
            end: End::Nothing,
            blocks,
        };
        let before = found.len;
        let mut best = None;
        for &child in &self.node(found.blocks.last().copied()).children {
            let Some(node) = &self.blocks[child as usize].node else {
                continue;
            };
            let common = node.tokens.iter().zip(rest).take_while(|(a, b)| a == b);
            let common = common.count();
            // Of several, one that goes on tells more than one that ends.
            let rank = (common, common < node.tokens.len(), node.used);
            if best.is_none_or(|best| rank > best) {
                best = Some(rank);
                found.len = before + common;
                found.tail = (common > 0).then_some(child);
                found.end = node
                    .tokens
                    .get(common)
                    .map_or(End::Nothing, |&t| End::Token(t));
            }
        }
        if missing.is_some_and(|hash| self.ghosts.contains(hash)) {
            found.end = End::Evicted;
        }
        found
    }

    pub(super) fn node(&self, block: Option<u32>) -> &Node {
        let node = block.and_then(|block| self.blocks[block as usize].node.as_ref());
        node.unwrap_or(&self.root)
    }

    pub(super) fn node_mut(&mut self, block: Option<u32>) -> &mut Node {
        let node = block.and_then(|block| self.blocks[block as usize].node.as_mut());
        node.unwrap_or(&mut self.root)
    }

    /// Whether `block` is the node of these tokens after `parent`.
    pub(super) fn is(&self, block: u32, parent: Option<u32>, tokens: &[u32]) -> bool {
        let node = &self.blocks[block as usize].node;
        node.as_ref()
            .is_some_and(|node| node.parent == parent && node.tokens == tokens)
    }

    /// Notes that `block`, which its owner holds, has these tokens after `parent`.
    pub(super) fn learn(&mut self, block: u32, parent: Option<u32>, tokens: &[u32]) {
        match &mut self.blocks[block as usize].node {
            // What was noted before is a beginning of it.
            Some(node) => node.tokens.extend_from_slice(&tokens[node.tokens.len()..]),
            None => {
                self.blocks[block as usize].node = Some(Node {
                    tokens: tokens.to_vec(),
                    parent,
                    ..Node::default()
                });
                self.node_mut(parent).children.push(block);
            }
        }
    }

    /// Whether an open block says nothing that another one after the same parent doesn't.
    pub(super) fn is_covered(&self, block: u32) -> bool {
        let Some(node) = &self.blocks[block as usize].node else {
            return false;
        };
        let siblings = &self.node(node.parent).children;
        !node.is_whole()
            && siblings.iter().any(|&sibling| {
                let other = &self.blocks[sibling as usize].node;
                sibling != block
                    && other
                        .as_ref()
                        .is_some_and(|other| other.tokens.starts_with(&node.tokens))
            })
    }

    /// Frees cached open blocks after `parent` that say no more than a whole block with `tokens`.
    pub(super) fn drop_covered(&mut self, parent: Option<u32>, tokens: &[u32]) {
        let covered = |child: &&u32| {
            let entry = &self.blocks[**child as usize];
            let node = entry.node.as_ref();
            entry.refs == 0
                && node.is_some_and(|node| !node.is_whole() && tokens.starts_with(&node.tokens))
        };
        let children = &self.node(parent).children;
        let covered: Vec<u32> = children.iter().filter(covered).copied().collect();
        covered.into_iter().for_each(|block| self.remove(block));
    }
}

/// Hashes of the last paths that were evicted, to tell that from what never was.
#[derive(Debug)]
pub(super) struct Ghosts {
    order: VecDeque<u64>,
    hashes: HashSet<u64>,
    most: usize,
}

impl Ghosts {
    pub fn new(most: usize) -> Ghosts {
        Ghosts {
            order: VecDeque::new(),
            hashes: HashSet::new(),
            most,
        }
    }

    pub fn push(&mut self, hash: u64) {
        if self.hashes.insert(hash) {
            self.order.push_back(hash);
        }
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.hashes.remove(&oldest);
        }
    }

    pub fn contains(&self, hash: u64) -> bool {
        self.hashes.contains(&hash)
    }
}
