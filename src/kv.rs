//! Which blocks of the paged KV cache belong to whom: integers only, the back end owns the bytes.
//!
//! A block holds [`KV_BLOCK`] positions. A sequence's block table names its blocks in order; the
//! allocator hands them out and takes them back. A block is either free or in exactly one table.

use crate::backend::KV_BLOCK;

/// Hands out the blocks of one cache.
#[derive(Debug)]
pub struct BlockAllocator {
    /// Free blocks; the last is given out next.
    free: Vec<u32>,
    total: usize,
}

/// The cache has no block left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the KV cache is full: {needed} blocks of {KV_BLOCK} tokens are needed, {free} of {total} are free"
)]
pub struct CacheFull {
    /// Blocks wanted in addition.
    pub needed: usize,
    /// Blocks free.
    pub free: usize,
    /// Blocks in all.
    pub total: usize,
}

impl BlockAllocator {
    /// An allocator of blocks `0..total`, all free.
    pub fn new(total: usize) -> BlockAllocator {
        BlockAllocator {
            free: (0..total as u32).rev().collect(),
            total,
        }
    }

    /// Blocks that are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Makes `table` exactly long enough for `tokens` positions: takes blocks, or gives back those
    /// past the end. On an error nothing has changed.
    pub fn resize(&mut self, table: &mut Vec<u32>, tokens: usize) -> Result<(), CacheFull> {
        let blocks = tokens.div_ceil(KV_BLOCK);
        if let Some(needed) = blocks.checked_sub(table.len()) {
            let Some(left) = self.free.len().checked_sub(needed) else {
                let (free, total) = (self.free.len(), self.total);
                return Err(CacheFull {
                    needed,
                    free,
                    total,
                });
            };
            table.extend(self.free.drain(left..).rev());
        } else {
            self.free.extend(table.drain(blocks..).rev());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn every_block_is_free_or_in_one_table(
            total in 0usize..40,
            steps in prop::collection::vec((0usize..4, 0usize..700), 1..80),
        ) {
            let mut allocator = BlockAllocator::new(total);
            let mut tables = vec![Vec::new(); 4];
            for (t, tokens) in steps {
                let before = tables[t].clone();
                let free = allocator.free();
                let wanted = tokens.div_ceil(KV_BLOCK);
                match allocator.resize(&mut tables[t], tokens) {
                    Ok(()) => prop_assert_eq!(tables[t].len(), wanted),
                    Err(full) => {
                        prop_assert!(wanted > before.len() + free);
                        prop_assert_eq!(full, CacheFull { needed: wanted - before.len(), free, total });
                        prop_assert_eq!(&tables[t], &before);
                    }
                }
                // What was there stays where it was: its keys and values are in those blocks.
                let kept = before.len().min(tables[t].len());
                prop_assert_eq!(&tables[t][..kept], &before[..kept]);
                let mut all: Vec<u32> = tables.iter().flatten().copied().collect();
                prop_assert_eq!(all.len() + allocator.free(), total);
                all.extend(&allocator.free);
                all.sort_unstable();
                prop_assert_eq!(all, (0..total as u32).collect::<Vec<_>>());
            }
        }
    }
}
