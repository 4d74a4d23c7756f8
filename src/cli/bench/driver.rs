//! Feeds random tokens to a back end and times it.

use crate::{
    backend::{Backend, Batch, KV_BLOCK, Limits, LogitRows, Segment},
    sampler::{self, Mask, Sampler, Sampling},
    tokenizer::{TokenKind, Tokenizer},
};
use anyhow::Result;
use std::time::{Duration, Instant};

/// What a test does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Reads a prompt of so many tokens.
    Prefill(usize),
    /// Decodes so many tokens of each sequence, one of each a step.
    Decode(usize),
    /// One step in which each sequence decodes a token and as much of a prompt is read as fits, up to
    /// so many tokens: what the others wait while somebody's prompt is read.
    Mixed(usize),
}

impl Work {
    /// As the report names it.
    pub fn name(self) -> &'static str {
        match self {
            Work::Prefill(_) => "prefill",
            Work::Decode(_) => "decode",
            Work::Mixed(_) => "mixed",
        }
    }
}

/// One test: the same work at the same depth, several times.
pub struct Test {
    pub work: Work,
    /// Sequences that decode at once.
    pub streams: usize,
    /// Tokens of a run, of all sequences together.
    pub tokens: usize,
    /// Tokens that each sequence has already.
    pub depth: usize,
    /// Forward passes of a run.
    pub steps: usize,
    pub runs: Vec<Duration>,
    /// Bytes read in all runs together.
    pub bytes: u64,
}

/// Room for `streams` sequences of `context` tokens, and for one more whose prompt is read beside them.
pub fn room(streams: usize, context: usize, batch_tokens: usize) -> Limits {
    let sequences = match streams {
        1 => 1,
        n => n + 1,
    };
    Limits {
        slots: sequences,
        kv_blocks: sequences * context.div_ceil(KV_BLOCK),
        batch_tokens: batch_tokens.min(context).max(sequences),
        snapshots: sequences,
    }
}

/// The back end and its sequences.
pub struct Driver {
    pub backend: Box<dyn Backend>,
    sequences: Vec<Sequence>,
    /// Ordinary tokens to draw from.
    ordinary: Vec<u32>,
    random: u64,
    sampler: Sampler,
    /// The back end draws tokens itself.
    draws: bool,
}

/// One sequence, in the slot of its number.
struct Sequence {
    blocks: Vec<u32>,
    /// Tokens in the cache.
    len: usize,
    /// Tokens that it had when its snapshot was taken; 0 without one.
    saved: usize,
}

impl Driver {
    /// The back end was opened with the [`room`] of sequences of `context` tokens.
    pub fn new(
        mut backend: Box<dyn Backend>,
        context: usize,
        tokenizer: &Tokenizer,
        seed: Option<u64>,
    ) -> Result<Driver> {
        let vocab = backend.config().vocab;
        let ordinary: Vec<u32> = (0..vocab as u32)
            .filter(|&id| matches!(tokenizer.kind(id), TokenKind::Normal | TokenKind::Byte))
            .collect();
        let greedy = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let blocks = context.div_ceil(KV_BLOCK) as u32;
        let sequences = (0..backend.limits().slots as u32)
            .map(|slot| Sequence {
                blocks: (slot * blocks..(slot + 1) * blocks).collect(),
                len: 0,
                saved: 0,
            })
            .collect();
        let padding = tokenizer.padding_ids();
        let draws = backend.prepare_draws(&sampler::allowed(padding, vocab))?;
        Ok(Driver {
            draws,
            sequences,
            ordinary,
            random: seed
                .unwrap_or(1)
                .wrapping_mul(2)
                .wrapping_add(0x9e37_79b9_7f4a_7c15)
                | 1,
            sampler: Sampler::new(&greedy, vocab, padding, None, &[]),
            backend,
        })
    }

    fn random_token(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let n = self.ordinary.len().max(1) as u64;
        self.ordinary
            .get((self.random % n) as usize)
            .copied()
            .unwrap_or(0)
    }

    /// The next `count` random tokens of a sequence.
    fn piece(&mut self, slot: usize, count: usize, logits: LogitRows) -> Segment {
        let tokens = (0..count).map(|_| self.random_token()).collect();
        Segment {
            slot,
            start: self.sequences[slot].len,
            kept: 0,
            tokens,
            blocks: self.sequences[slot].blocks.clone(),
            logits,
        }
    }

    fn forward(&mut self, segments: Vec<Segment>) -> Result<()> {
        let batch = Batch { segments };
        self.backend.forward(&batch)?;
        for segment in &batch.segments {
            self.sequences[segment.slot].len += segment.tokens.len();
        }
        Ok(())
    }

    /// Appends `count` random tokens to a sequence, in pieces as large as the back end takes.
    fn append(&mut self, slot: usize, count: usize, logits: LogitRows) -> Result<()> {
        let most = self.backend.limits().batch_tokens;
        for done in (0..count).step_by(most) {
            let tokens = most.min(count - done);
            let logits = match done + tokens == count {
                true => logits,
                false => LogitRows::None,
            };
            let piece = self.piece(slot, tokens, logits);
            self.forward(vec![piece])?;
        }
        Ok(())
    }

    /// One step: a random token of each of the first `streams` sequences, and `prompt` tokens of the
    /// one after them. A next token is chosen of each, as for a user, but it is not the one that
    /// runs: a model of random weights would soon repeat itself, and its experts.
    fn step(&mut self, streams: usize, prompt: usize) -> Result<()> {
        let plain = self.draws.then(|| self.sampler.plain()).flatten();
        let last = plain.map_or(LogitRows::Last, LogitRows::Draw);
        let mut segments: Vec<Segment> =
            (0..streams).map(|slot| self.piece(slot, 1, last)).collect();
        if prompt > 0 {
            segments.push(self.piece(streams, prompt, LogitRows::None));
        }
        self.forward(segments)?;
        for row in 0..streams {
            match self.backend.drawn(row) {
                Some(id) => self.sampler.took(id),
                None => self.sampler.sample(self.backend.logits(row), &Mask::Any)?,
            };
        }
        Ok(())
    }

    /// Leaves exactly `depth` tokens in the cache of each of the first `streams` sequences.
    fn go_to(&mut self, streams: usize, depth: usize) -> Result<()> {
        for slot in 0..streams {
            let saved = self.sequences[slot].saved;
            let from = match saved <= depth && saved > 0 {
                true => {
                    self.backend.restore(slot, slot)?;
                    saved
                }
                false => 0,
            };
            self.sequences[slot].len = from;
            if depth == from {
                continue;
            }
            if slot == 0 {
                self.append(0, depth - from, LogitRows::None)?;
                self.backend.save(0, 0)?;
            } else {
                // The first one's tokens, in memory of its own.
                for block in 0..depth.div_ceil(KV_BLOCK) {
                    let (from, to) = (
                        self.sequences[0].blocks[block],
                        self.sequences[slot].blocks[block],
                    );
                    self.backend.copy_block(from, to)?;
                }
                self.backend.restore(slot, 0)?;
                self.backend.save(slot, slot)?;
            }
            (self.sequences[slot].len, self.sequences[slot].saved) = (depth, depth);
        }
        Ok(())
    }

    /// Touches all weights and fills all buffers once.
    pub fn warm_up(&mut self, prompt: usize, streams: usize) -> Result<()> {
        self.append(0, prompt.max(1), LogitRows::Last)?;
        self.go_to(streams, 0)?;
        (0..4).try_for_each(|_| self.step(streams, 0))?;
        self.go_to(streams, 0)
    }

    /// Does `work` `runs` times with `streams` sequences of `depth` tokens.
    pub fn measure(
        &mut self,
        work: Work,
        streams: usize,
        depth: usize,
        runs: usize,
    ) -> Result<Test> {
        let most = self.backend.limits().batch_tokens;
        let (tokens, steps) = match work {
            Work::Prefill(n) => (n, n.div_ceil(most)),
            Work::Decode(n) => (streams * n, n),
            Work::Mixed(n) => (streams + n.min(most - streams), 1),
        };
        let mut test = Test {
            work,
            streams,
            tokens,
            depth,
            steps,
            runs: Vec::new(),
            bytes: 0,
        };
        for _ in 0..runs {
            self.go_to(streams, depth)?;
            if let Some(reader) = self.sequences.get_mut(streams) {
                reader.len = 0;
            }
            let before = self.backend.work().bytes;
            let started = Instant::now();
            match work {
                Work::Prefill(n) => self.append(0, n, LogitRows::Last)?,
                Work::Decode(n) => (0..n).try_for_each(|_| self.step(streams, 0))?,
                Work::Mixed(_) => self.step(streams, tokens - streams)?,
            }
            test.runs.push(started.elapsed());
            test.bytes += self.backend.work().bytes - before;
        }
        Ok(test)
    }
}
