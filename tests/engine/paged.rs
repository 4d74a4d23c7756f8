//! A back end that checks every rule of the seam, over a model of hashes: four layers, two of them
//! sliding, in which each position's value is a hash of all the values that it attends to. They are read back
//! from the slot's windows and from the blocks, so a wrong block, window, position or prefix changes
//! the logits. [`Oracle`] computes the same without a cache.

use crate::common::models::Random;
use gossamer::{
    backend::{Backend, Batch, KV_BLOCK, Limits, LogitRows, Work},
    config::{Config, Rope},
};
use std::{
    collections::HashSet,
    ops::Range,
    sync::{Arc, Mutex, mpsc},
};

pub const VOCAB: usize = 97;
pub const PADDING: u32 = 96;
/// Begins messages.
pub const MARKER: u32 = 95;
pub const WINDOW: usize = 8;
const LAYERS: usize = 4;
/// Positions after which nothing is left of empty windows.
pub const RECEPTIVE_FIELD: usize = (LAYERS / 2) * (WINDOW - 1);

/// What the back end saw, shared with the test.
#[derive(Default)]
pub struct Seen {
    pub work: Work,
    /// Lengths of each step's segments.
    pub steps: Vec<Vec<usize>>,
    /// Where they ended.
    pub ends: Vec<Vec<usize>>,
    /// Fail the step with this number, counted from 1, so: with an error, or with a panic.
    pub fail_at: Option<(usize, bool)>,
    /// Panic when logits are asked for, once.
    pub logits_panic: bool,
    /// Draw where the likeliest token is wanted, and have no logits of that row.
    pub draws: bool,
    /// Tokens drawn so.
    pub drawn: usize,
    /// Wait for a permit before each step.
    pub gate: Option<mpsc::Receiver<()>>,
}

impl Seen {
    /// The number of the first step in which a segment ended at `position`.
    pub fn step_to(&self, position: usize) -> Option<usize> {
        self.ends
            .iter()
            .position(|ends| ends.contains(&position))
            .map(|step| step + 1)
    }

    /// Rows of all steps so far.
    pub fn rows(&self) -> u64 {
        self.work.token_rows
    }
}

/// One sliding layer's inputs in a slot: `(position, value)`, the last `WINDOW - 1` of them.
type Ring = Vec<(usize, u64)>;

#[derive(Clone, Default)]
struct Windows {
    end: usize,
    /// Where a rebuild from nothing began; 0 when there is none.
    from: usize,
    rings: [Ring; LAYERS / 2],
}

pub struct Paged {
    config: Config,
    limits: Limits,
    /// `[full layer][block][offset]`.
    blocks: [Vec<[Option<u64>; KV_BLOCK]>; LAYERS / 2],
    slots: Vec<Windows>,
    snapshots: Vec<Option<Windows>>,
    logits: Vec<Vec<f32>>,
    /// Of each row that has logits: its token, where that alone was wanted.
    drawn: Vec<Option<u32>>,
    garbage: Random,
    seen: Arc<Mutex<Seen>>,
}

/// One value more, in order.
fn fold(sum: u64, value: u64) -> u64 {
    (sum ^ value)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(23)
        ^ value
}

fn logits(value: u64) -> Vec<f32> {
    let one = |i| ((fold(value, i) >> 40) % 4001) as f32 / 1000.0;
    (0..VOCAB as u64).map(one).collect()
}

/// The model without a cache: the next token's logits of a sequence that grows.
#[derive(Clone, Default)]
pub struct Oracle {
    inputs: [Vec<u64>; LAYERS / 2],
    sums: [u64; LAYERS / 2],
}

impl Oracle {
    pub fn push(&mut self, token: u32) -> Vec<f32> {
        let mut x = u64::from(token) + 1;
        for pair in 0..LAYERS / 2 {
            self.inputs[pair].push(x);
            let inputs = &self.inputs[pair];
            let window = &inputs[inputs.len().saturating_sub(WINDOW)..];
            x = window.iter().fold(0, |sum, &v| fold(sum, v));
            self.sums[pair] = fold(self.sums[pair], x);
            x = self.sums[pair];
        }
        logits(x)
    }
}

pub fn config(context: usize) -> Config {
    let rope = Rope {
        theta: 150_000.0,
        factor: 1.0,
        original_context: 4096,
        beta_fast: 32.0,
        beta_slow: 1.0,
        rounded: false,
    };
    Config {
        name: "paged".into(),
        layers: LAYERS,
        hidden: 32,
        heads: 1,
        kv_heads: 1,
        head_dim: 32,
        experts: 1,
        experts_used: 1,
        expert_width: 32,
        vocab: VOCAB,
        context,
        window: WINDOW,
        rms_eps: 1e-5,
        swiglu_limit: 7.0,
        rope,
    }
}

/// The likeliest token that may be sampled, the lowest id among equals.
fn likeliest(logits: &[f32]) -> Option<u32> {
    let ids = (0..PADDING).rev();
    ids.max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize]))
}

impl Paged {
    pub fn new(context: usize, limits: Limits) -> (Box<Paged>, Arc<Mutex<Seen>>) {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let blocks = || vec![[None; KV_BLOCK]; limits.kv_blocks];
        let backend = Paged {
            config: config(context),
            limits,
            blocks: [blocks(), blocks()],
            slots: vec![Windows::default(); limits.slots],
            snapshots: vec![None; limits.snapshots],
            logits: Vec::new(),
            drawn: Vec::new(),
            garbage: Random(7),
            seen: seen.clone(),
        };
        (Box::new(backend), seen)
    }
}

impl Backend for Paged {
    fn config(&self) -> &Config {
        &self.config
    }

    fn describe(&self) -> String {
        "a test's paged back end".into()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: &Batch) -> anyhow::Result<()> {
        batch.check(&self.config, &self.limits)?;
        let gate = self.seen.lock().unwrap().gate.take();
        if let Some(gate) = gate {
            let _ = gate.recv();
            self.seen.lock().unwrap().gate.get_or_insert(gate);
        }
        {
            let mut seen = self.seen.lock().unwrap();
            let lengths: Vec<usize> = batch.segments.iter().map(|s| s.tokens.len()).collect();
            seen.work.token_rows += lengths.iter().sum::<usize>() as u64;
            let starts = batch.segments.iter().map(|s| s.start);
            let ends = starts.zip(&lengths).map(|(start, rows)| start + rows);
            seen.ends.push(ends.collect());
            seen.steps.push(lengths);
            match seen.fail_at {
                Some((at, panics)) if at == seen.steps.len() => {
                    drop(seen);
                    assert!(!panics, "the device caught fire");
                    anyhow::bail!("the device fell off the bus");
                }
                _ => {}
            }
        }
        self.logits.clear();
        self.drawn.clear();
        let draws = self.seen.lock().unwrap().draws;
        // (block, offset) by segment: who writes what, and who reads it.
        let mut written = HashSet::new();
        let mut read = Vec::new();
        for (s, segment) in batch.segments.iter().enumerate() {
            let held = &mut self.slots[segment.slot];
            let (start, kept) = (segment.start, segment.kept);
            if start == 0 {
                *held = Windows::default();
            } else if start != held.end {
                anyhow::ensure!(
                    kept >= start + RECEPTIVE_FIELD,
                    "start {start} with {kept} kept in a slot of {}",
                    held.end
                );
                held.end = start;
                held.from = start;
                for ring in &mut held.rings {
                    let near = start.saturating_sub(WINDOW)..start;
                    *ring = near.map(|p| (p, self.garbage.next())).collect();
                }
            }
            for (row, &token) in segment.tokens.iter().enumerate() {
                let position = start + row;
                let mut x = u64::from(token) + 1;
                for pair in 0..LAYERS / 2 {
                    let ring = &mut self.slots[segment.slot].rings[pair];
                    ring.push((position, x));
                    ring.retain(|&(p, _)| p + WINDOW > position);
                    anyhow::ensure!(ring.len() == WINDOW.min(position + 1), "a hole in a window");
                    x = ring.iter().fold(0, |sum, &(_, v)| fold(sum, v));
                    if position >= kept {
                        let block = segment.blocks[position / KV_BLOCK];
                        let place = (block, position % KV_BLOCK);
                        anyhow::ensure!(
                            written.insert((pair, s, place)),
                            "{place:?} is written twice"
                        );
                        self.blocks[pair][block as usize][position % KV_BLOCK] = Some(x);
                    }
                    let mut sum = 0;
                    for p in 0..=position {
                        let block = segment.blocks[p / KV_BLOCK];
                        let value = self.blocks[pair][block as usize][p % KV_BLOCK];
                        let Some(value) = value else {
                            anyhow::bail!("position {p} of block {block} was never written")
                        };
                        sum = fold(sum, value);
                        if row == 0 || p >= start {
                            read.push((pair, s, (block, p % KV_BLOCK)));
                        }
                    }
                    x = sum;
                }
                let exact = match self.slots[segment.slot].from {
                    0 => 0,
                    from => from + RECEPTIVE_FIELD,
                };
                let wanted = match segment.logits {
                    LogitRows::None => false,
                    LogitRows::Last | LogitRows::Draw(_) => row + 1 == segment.tokens.len(),
                    LogitRows::All => true,
                };
                anyhow::ensure!(
                    position >= exact || kept > position,
                    "good positions are spoilt"
                );
                if wanted {
                    anyhow::ensure!(position >= exact, "logits of a row that means nothing");
                    let logits = logits(x);
                    self.drawn.push(match segment.logits {
                        LogitRows::Draw(draw) if draws && draw.greedy => likeliest(&logits),
                        _ => None,
                    });
                    self.logits.push(logits);
                }
            }
            let held = &mut self.slots[segment.slot];
            held.end = start + segment.tokens.len();
            if held.end >= held.from + RECEPTIVE_FIELD {
                held.from = 0;
            }
        }
        for (pair, s, place) in read {
            let others = (0..batch.segments.len()).filter(|&other| other != s);
            for other in others {
                anyhow::ensure!(
                    !written.contains(&(pair, other, place)),
                    "{place:?} is read while another sequence writes it"
                );
            }
        }
        self.seen.lock().unwrap().work.logit_rows += self.logits.len() as u64;
        Ok(())
    }

    fn copy_block(&mut self, from: u32, to: u32) -> anyhow::Result<()> {
        anyhow::ensure!(from != to, "a block copied to itself");
        for blocks in &mut self.blocks {
            blocks[to as usize] = blocks[from as usize];
        }
        Ok(())
    }

    fn save(&mut self, slot: usize, snapshot: usize) -> anyhow::Result<()> {
        anyhow::ensure!(self.slots[slot].from == 0, "saved while being rebuilt");
        self.snapshots[snapshot] = Some(self.slots[slot].clone());
        Ok(())
    }

    fn restore(&mut self, slot: usize, snapshot: usize) -> anyhow::Result<()> {
        let saved = self.snapshots[snapshot].clone();
        self.slots[slot] = saved.ok_or_else(|| anyhow::anyhow!("nothing was saved there"))?;
        Ok(())
    }

    fn batch_invariant(&self) -> bool {
        true
    }

    fn prepare_draws(&mut self, allowed: &[Range<usize>]) -> anyhow::Result<bool> {
        // All but the last id, the padding.
        assert!(allowed.len() == 1 && allowed[0] == (0..PADDING as usize));
        Ok(true)
    }

    fn drawn(&self, row: usize) -> Option<u32> {
        let drawn = self.drawn[row];
        self.seen.lock().unwrap().drawn += usize::from(drawn.is_some());
        drawn
    }

    fn logits(&self, row: usize) -> &[f32] {
        let panics = std::mem::take(&mut self.seen.lock().unwrap().logits_panic);
        assert!(!panics, "the logits are lost");
        assert!(self.drawn[row].is_none(), "logits of a row that was drawn");
        &self.logits[row]
    }

    fn work(&self) -> Work {
        self.seen.lock().unwrap().work
    }
}
