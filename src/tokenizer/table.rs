//! Token bytes by id, and ids by bytes.
//!
//! All bytes lie in one buffer; the index is an open-addressing table of (hash, id), about half the
//! size of a `HashMap` of slices and built in one pass without allocating per token.

use super::{TokenKind, bytes::from_gpt2};
use anyhow::{Result, ensure};
use rustc_hash::FxHasher;
use std::hash::Hasher;

/// The vocabulary's bytes.
pub(super) struct Table {
    bytes: Vec<u8>,
    /// Token `id` is `bytes[ends[id]..ends[id + 1]]`.
    ends: Vec<u32>,
    /// High half: the hash's; low half: id + 1; 0 is empty. Power-of-two length.
    slots: Vec<u64>,
    /// One bit for every hash in `slots`, by its top bits: small enough to stay in cache, it answers
    /// most look-ups of what isn't a token.
    filter: Vec<u64>,
    /// Ids of two-byte tokens by their bytes; `NONE` for none.
    pairs: Vec<u32>,
    /// Longest indexed token.
    longest: usize,
}

const NONE: u32 = u32::MAX;
/// Longest ordinary token that is taken; o200k's longest has 128. It bounds the time of look-ups in
/// a hostile file.
const LONGEST: usize = 1024;

/// The filter has 2 to this bits: 256 KiB, a tenth of them set by o200k.
const FILTER_BITS: u32 = 21;

/// Word and bit of a hash in the filter.
fn filter_bit(hash: u64) -> (usize, u64) {
    let index = hash >> (64 - FILTER_BITS);
    ((index >> 6) as usize, 1 << (index & 63))
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

impl Table {
    pub fn with_capacity(tokens: usize) -> Table {
        let mut ends = Vec::with_capacity(tokens + 1);
        ends.push(0);
        Table {
            bytes: Vec::with_capacity(tokens * 8),
            ends,
            slots: Vec::new(),
            filter: vec![0; 1 << (FILTER_BITS - 6)],
            pairs: vec![NONE; 1 << 16],
            longest: 0,
        }
    }

    /// Adds the next id.
    pub fn push(&mut self, token: &[u8]) {
        self.bytes.extend_from_slice(token);
        self.ends.push(self.bytes.len() as u32);
    }

    /// Adds the next id from its GPT-2 spelling; false if it isn't one.
    pub fn push_gpt2(&mut self, text: &[u8]) -> bool {
        let spelled = from_gpt2(text, &mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
        spelled.is_some()
    }

    /// # Errors
    /// When the tokens' bytes outgrow 32-bit offsets, or an ordinary token is too long.
    pub fn check_size(&self, kinds: &[TokenKind]) -> Result<()> {
        ensure!(
            u32::try_from(self.bytes.len()).is_ok() && self.len() < 1 << 30,
            "a vocabulary of {} tokens in {} bytes is too large",
            self.len(),
            self.bytes.len()
        );
        for (id, kind) in kinds.iter().enumerate() {
            let length = self.get(id as u32).len();
            ensure!(
                *kind != TokenKind::Normal || length <= LONGEST,
                "token {id} has {length} bytes; {LONGEST} are the most"
            );
        }
        Ok(())
    }

    /// Makes the ordinary tokens findable; of equal ones, the lowest id.
    pub fn index(&mut self, kinds: &[TokenKind]) {
        let size = (self.len() * 2).next_power_of_two().max(1024);
        self.slots = vec![0; size];
        for (id, kind) in kinds.iter().enumerate() {
            let token = self.get(id as u32);
            if *kind != TokenKind::Normal || token.is_empty() || self.find(token).is_some() {
                continue;
            }
            let (length, hash) = (token.len(), hash(token));
            if let &[a, b] = token {
                self.pairs[usize::from(a) << 8 | usize::from(b)] = id as u32;
            }
            let mut slot = hash as usize & (size - 1);
            while self.slots[slot] != 0 {
                slot = (slot + 1) & (size - 1);
            }
            let (word, bit) = filter_bit(hash);
            self.filter[word] |= bit;
            self.slots[slot] = hash & !0xffff_ffff | (id as u64 + 1);
            self.longest = self.longest.max(length);
        }
    }

    /// Bytes of its buffers.
    pub fn memory(&self) -> usize {
        let words = self.slots.len() + self.filter.len();
        self.bytes.capacity() + 8 * words + 4 * (self.ends.capacity() + self.pairs.len())
    }

    pub fn len(&self) -> usize {
        self.ends.len() - 1
    }

    /// A token's bytes; empty out of range.
    pub fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match self.ends.get(id..id + 2) {
            Some(&[start, end]) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    /// The ordinary token that is exactly `bytes`.
    pub fn find(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.longest {
            return None;
        }
        let hash = hash(bytes);
        let (word, bit) = filter_bit(hash);
        if self.filter[word] & bit == 0 {
            return None;
        }
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let entry = self.slots[slot];
            if entry == 0 {
                return None;
            }
            if entry >> 32 == hash >> 32 {
                let id = entry as u32 - 1;
                if self.get(id) == bytes {
                    return Some(id);
                }
            }
            slot = (slot + 1) & mask;
        }
    }

    /// [`Table::find`] for two bytes, without hashing.
    pub fn find_pair(&self, first: u8, second: u8) -> Option<u32> {
        let id = self.pairs[usize::from(first) << 8 | usize::from(second)];
        (id != NONE).then_some(id)
    }
}
