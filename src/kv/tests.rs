//! Random sequences over a small cache, beside a model of what the back end would hold: the hash of
//! all tokens up to a position, in each place that was written.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};

const SNAPSHOTS: usize = 5;

/// What the keys and values of the last of these tokens depend on.
fn content(tokens: &[u32]) -> u64 {
    extend(99, tokens)
}

struct Sequence {
    tokens: Vec<u32>,
    done: usize,
    table: Table,
}

struct World {
    cache: KvCache,
    /// `[block][offset]`.
    bytes: Vec<Vec<Option<u64>>>,
    windows: HashMap<usize, u64>,
    live: Vec<Sequence>,
}

impl World {
    fn new(blocks: usize) -> World {
        World {
            cache: KvCache::new(blocks, SNAPSHOTS),
            bytes: vec![vec![None; KV_BLOCK]; blocks],
            windows: HashMap::new(),
            live: Vec::new(),
        }
    }

    /// Admits a sequence as the scheduler does, all that the cache has of it taken.
    fn admit(&mut self, tokens: Vec<u32>) {
        let most = tokens.len() - 1;
        let found = self.cache.find(&tokens[..most]);
        self.check_found(&found, &tokens);
        let mut table = Table::default();
        self.cache.share(&mut table, &found.blocks);
        let mut done = found.blocks.len() * KV_BLOCK;
        if let Some(from) = found.tail {
            self.cache.hold(from);
            if self.cache.grow(&mut table, found.len).is_ok() {
                let to = *table.blocks.last().unwrap();
                assert_ne!(from, to);
                self.bytes[to as usize] = self.bytes[from as usize].clone();
                done = found.len;
            }
            self.cache.let_go(from);
        }
        self.live.push(Sequence {
            tokens,
            done,
            table,
        });
    }

    fn check_found(&self, found: &Found, tokens: &[u32]) {
        let places = found.blocks.iter().chain(&found.tail);
        assert!(found.len < tokens.len());
        for p in 0..found.len {
            let block = *places.clone().nth(p / KV_BLOCK).unwrap() as usize;
            assert_eq!(
                self.bytes[block][p % KV_BLOCK],
                Some(content(&tokens[..=p]))
            );
        }
        if let End::Token(next) = found.end {
            assert!(found.len == tokens.len() - 1 || next != tokens[found.len]);
        }
        if let Some((place, len)) = self.cache.snapshot_within(found, tokens) {
            assert!(len <= found.len);
            assert_eq!(self.windows[&place], content(&tokens[..len]));
        }
    }

    /// Computes up to `rows` more positions of a live sequence; false if there is no room.
    fn run(&mut self, i: usize, rows: usize) -> bool {
        let sequence = &mut self.live[i];
        let end = (sequence.done + rows).min(sequence.tokens.len());
        if self.cache.grow(&mut sequence.table, end).is_err() {
            let wanted = end.div_ceil(KV_BLOCK) - sequence.table.blocks.len();
            assert!(wanted > self.cache.available());
            return false;
        }
        for p in sequence.done..end {
            let block = sequence.table.blocks[p / KV_BLOCK];
            assert_eq!(
                self.cache.blocks[block as usize].refs, 1,
                "a shared block is written"
            );
            let place = &mut self.bytes[block as usize][p % KV_BLOCK];
            *place = Some(content(&sequence.tokens[..=p]));
        }
        sequence.done = end;
        self.cache
            .advance(&mut sequence.table, &sequence.tokens[..end]);
        for p in 0..end {
            let block = sequence.table.blocks[p / KV_BLOCK] as usize;
            assert_eq!(
                self.bytes[block][p % KV_BLOCK],
                Some(content(&sequence.tokens[..=p]))
            );
        }
        true
    }

    fn save(&mut self, i: usize, lasting: bool) {
        let sequence = &self.live[i];
        let tokens = &sequence.tokens[..sequence.done];
        let place = self.cache.keep_snapshot(&sequence.table, tokens, lasting);
        if let Some(place) = place {
            assert!(place < SNAPSHOTS);
            self.windows.insert(place, content(tokens));
            assert!(self.cache.has_snapshot(&sequence.table.blocks, tokens));
        }
    }

    fn check(&self) {
        let cache = &self.cache;
        let held: BTreeSet<u32> = self
            .live
            .iter()
            .flat_map(|s| s.table.blocks.clone())
            .collect();
        assert_eq!(cache.in_use(), held.len());
        for (block, entry) in cache.blocks.iter().enumerate() {
            let tables = self
                .live
                .iter()
                .filter(|s| s.table.blocks.contains(&(block as u32)));
            assert_eq!(entry.refs as usize, tables.count());
            if let Some(node) = &entry.node {
                let parent = cache.node(node.parent);
                assert!(parent.children.contains(&(block as u32)));
                assert!(
                    entry.refs == 0
                        || node
                            .parent
                            .is_none_or(|p| cache.blocks[p as usize].refs > 0)
                );
                let leaf = entry.refs == 0 && node.children.is_empty();
                assert_eq!(cache.leaves.contains(&(node.used, block as u32)), leaf);
                assert!(node.is_whole() || node.children.is_empty());
            }
        }
        let known = cache
            .blocks
            .iter()
            .filter(|b| b.refs == 0 && b.node.is_some());
        assert_eq!(cache.cached(), known.count());
        let empty = cache
            .blocks
            .iter()
            .filter(|b| b.refs == 0 && b.node.is_none());
        assert_eq!(cache.free.len(), empty.count());
        assert!(cache.snapshots_used() <= SNAPSHOTS);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Admit {
        from: usize,
        keep: usize,
        more: Vec<u32>,
    },
    Run(usize, usize),
    Save(usize, bool),
    Release(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let more = prop::collection::vec(0u32..2, 1..90);
    prop_oneof![
        4 => (0usize..20, 0usize..160, more)
            .prop_map(|(from, keep, more)| Step::Admit { from, keep, more }),
        12 => (0usize..4, 1usize..70).prop_map(|(i, rows)| Step::Run(i, rows)),
        5 => (0usize..4, any::<bool>()).prop_map(|(i, lasting)| Step::Save(i, lasting)),
        3 => (0usize..4).prop_map(Step::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_is_found_is_what_was_computed(
        blocks in 1usize..14,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(blocks);
        let mut seen: Vec<Vec<u32>> = vec![vec![0; 100]];
        for step in steps {
            match step {
                Step::Admit { from, keep, more } => {
                    let old = &seen[from % seen.len()];
                    let mut tokens = old[..keep.min(old.len())].to_vec();
                    tokens.extend(more);
                    seen.push(tokens.clone());
                    if world.live.len() < 4 {
                        world.admit(tokens);
                    }
                }
                Step::Run(i, rows) if i < world.live.len() => {
                    world.run(i, rows);
                }
                Step::Save(i, lasting) if i < world.live.len() => world.save(i, lasting),
                Step::Release(i) if i < world.live.len() => {
                    let gone = world.live.remove(i);
                    world.cache.release(gone.table);
                }
                _ => {}
            }
            world.check();
        }
        for sequence in std::mem::take(&mut world.live) {
            world.cache.release(sequence.table);
        }
        world.check();
        prop_assert_eq!(world.cache.in_use(), 0);
        prop_assert_eq!(world.cache.available(), blocks);
    }
}

/// Runs `tokens` alone, from what the cache has; returns how much that was.
fn whole(world: &mut World, tokens: &[u32]) -> usize {
    world.admit(tokens.to_vec());
    let cached = world.live[0].done;
    assert!(world.run(0, tokens.len()));
    world.save(0, true);
    let gone = world.live.remove(0);
    world.cache.release(gone.table);
    world.check();
    cached
}

#[test]
fn the_least_recently_used_goes_first_and_is_remembered() {
    let mut world = World::new(4);
    let prompt = |n: u32| vec![n; 2 * KV_BLOCK];
    assert_eq!(whole(&mut world, &prompt(1)), 0);
    assert_eq!(whole(&mut world, &prompt(2)), 0);
    assert_eq!(whole(&mut world, &prompt(1)), 2 * KV_BLOCK - 1);
    let mut longer = prompt(3);
    longer.truncate(KV_BLOCK);
    assert_eq!(whole(&mut world, &longer), 0);
    // The end of the second made room, its beginning is still there.
    let found = world.cache.find(&prompt(2));
    assert_eq!((found.len, found.end), (KV_BLOCK, End::Evicted));
    assert_eq!(world.cache.find(&prompt(1)).len, 2 * KV_BLOCK);
    let mut parted = prompt(1);
    parted[40] = 9;
    let found = world.cache.find(&parted);
    assert_eq!((found.len, found.end), (40, End::Token(1)));
    let found = world.cache.find(&[7]);
    assert_eq!(found.len, 0);
    assert!(matches!(found.end, End::Token(_)));
    parted = prompt(1);
    parted.push(5);
    assert_eq!(world.cache.find(&parted).end, End::Nothing);
}

#[test]
fn a_snapshot_goes_with_the_block_below_it() {
    let mut world = World::new(3);
    let first: Vec<u32> = (0..40).collect();
    whole(&mut world, &first);
    let mut next = first.clone();
    next.extend([7, 8]);
    let found = world.cache.find(&next);
    assert_eq!(world.cache.snapshot_within(&found, &next).unwrap().1, 40);
    // The snapshot's own tokens have to be there as well, not only the whole block.
    next[39] = 99;
    let found = world.cache.find(&next);
    assert_eq!(
        (found.len, world.cache.snapshot_within(&found, &next)),
        (39, None)
    );
    whole(&mut world, &[5; 3 * KV_BLOCK]);
    assert_eq!(world.cache.snapshots_used(), 1);
    assert_eq!(world.cache.find(&first).len, 0);
}

#[test]
fn a_snapshot_is_of_its_own_tokens_only() {
    let mut world = World::new(6);
    let saved: Vec<u32> = (0..40).collect();
    whole(&mut world, &saved);
    // The same block before it, then others, whose windows nobody kept.
    let mut other = saved[..KV_BLOCK].to_vec();
    other.extend(100..120);
    world.admit(other.clone());
    assert!(world.run(0, other.len()));
    let gone = world.live.remove(0);
    world.cache.release(gone.table);
    other.push(7);
    let found = world.cache.find(&other);
    assert_eq!(found.len, KV_BLOCK + 20);
    assert_eq!(world.cache.snapshot_within(&found, &other), None);
}

#[test]
fn passing_snapshots_leave_lasting_ones_their_places() {
    let mut world = World::new(40);
    let conversation = |n: u32| vec![n; 40];
    for n in 0..SNAPSHOTS as u32 - 1 {
        whole(&mut world, &conversation(n));
    }
    // A long prompt with a snapshot at every block takes the free place, and that again.
    let long = vec![99; 20 * KV_BLOCK];
    world.admit(long.clone());
    for _ in 0..20 {
        assert!(world.run(0, KV_BLOCK));
        world.save(0, false);
    }
    let has = |world: &World, tokens: &[u32]| {
        let mut more = tokens.to_vec();
        more.push(50);
        let found = world.cache.find(&more);
        world.cache.snapshot_within(&found, &more).map(|at| at.1)
    };
    for n in 0..SNAPSHOTS as u32 - 1 {
        assert_eq!(has(&world, &conversation(n)), Some(40), "{n}");
    }
    assert_eq!(has(&world, &long), Some(long.len()));
    // What was of use lasts as well: then the least recently used goes.
    world.save(0, true);
    let gone = world.live.remove(0);
    world.cache.release(gone.table);
    whole(&mut world, &conversation(90));
    assert_eq!(has(&world, &long), Some(long.len()));
    assert_eq!(has(&world, &conversation(0)), None);
    assert_eq!(has(&world, &conversation(1)), Some(40));
}

/// Two paths with one hash: the second one is computed each time, and never taken for the first.
#[test]
fn a_collision_costs_a_hit_only() {
    let mut world = World::new(8);
    let (first, second) = (vec![1; 2 * KV_BLOCK], vec![2; 2 * KV_BLOCK + 5]);
    whole(&mut world, &first);
    let block = world.cache.find(&first).blocks[0];
    let hash = extend(world.cache.root.hash, &second[..KV_BLOCK]);
    world.cache.index.insert(hash, block);
    for _ in 0..2 {
        world.admit(second.clone());
        assert!(world.run(0, second.len()));
        assert_eq!(world.live[0].table.whole, 0);
        world.save(0, true);
        let gone = world.live.remove(0);
        world.cache.release(gone.table);
        assert!(world.cache.find(&second).blocks.is_empty());
    }
    assert_eq!(world.cache.find(&first).len, first.len());
}

#[test]
fn a_full_cache_says_what_it_lacks() {
    let mut cache = KvCache::new(3, 0);
    let mut table = Table::default();
    cache.grow(&mut table, 33).unwrap();
    assert_eq!(table.blocks, [0, 1]);
    let full = cache.grow(&mut table, 129).unwrap_err();
    let expected = CacheFull {
        needed: 3,
        available: 1,
        total: 3,
    };
    assert_eq!(full, expected);
    assert_eq!(table.blocks, [0, 1]);
    cache.release(table);
    assert_eq!(cache.available(), 3);
}
