//! Who runs next, and from where: what the cache spares a prompt.

use super::{
    Scheduler, guard,
    plan::{self, WORTH},
    sequence::{Live, Sequence},
};
use crate::{
    backend::KV_BLOCK,
    engine::{Event, Failure, Miss, MissReason},
    kv::{End, Found, Table},
};
use anyhow::{Result, ensure};
use std::{collections::VecDeque, time::Instant};

/// How a sequence can go on from the cache.
struct Resume {
    /// Position of its first row.
    start: usize,
    /// Full layers' keys and values below this are taken as they are.
    kept: usize,
    /// From here on its windows are exact.
    exact: usize,
    /// The snapshot that its windows come from; `None`: from nothing.
    snapshot: Option<usize>,
    /// What the cache holds of it.
    found: Found,
}

impl Resume {
    fn anew(found: Found) -> Resume {
        Resume {
            start: 0,
            kept: 0,
            exact: 0,
            snapshot: None,
            found,
        }
    }
}

impl Scheduler {
    /// Admits who waits, in order of arrival, as far as slots and blocks go.
    pub(super) fn admit(&mut self) {
        let mut at = 0;
        while let Some(sequence) = self.waiting.get(at) {
            if self.free_slots.is_empty() {
                return;
            }
            if self.still_follows(sequence) {
                at += 1;
                continue;
            }
            let resume = self.resume(sequence);
            if let Some(follows) = self.leader(sequence, &resume) {
                self.follow(at, follows);
                at += 1;
                continue;
            }
            let Some(sequence) = self.waiting.remove(at) else {
                return;
            };
            if let Some(back) = self.enter(sequence, resume) {
                self.waiting.insert(at, back);
                return;
            }
        }
    }

    /// From where a sequence needs the fewest rows.
    fn resume(&self, sequence: &Sequence) -> Resume {
        let tokens = &sequence.tokens;
        // The last token must run: its logits choose the next. So must all rows that are to be
        // scored; a row scores the token after it.
        let mut most = tokens.len().saturating_sub(1);
        if sequence.prompt_logprobs.is_some() && sequence.scored < sequence.prompt {
            most = most.min(sequence.scored.saturating_sub(1));
        }
        if !self.rules.prefix_cache {
            return Resume::anew(Found::nothing());
        }
        let found = self.cache.find(&tokens[..most]);
        let (snapshot, saved) = match self.cache.snapshot_within(&found, tokens) {
            Some((place, len)) => (Some(place), len),
            None => (None, 0),
        };
        let whole = found.blocks.len() * KV_BLOCK;
        // Nothing is left of empty windows after the receptive field.
        match found.len.checked_sub(self.receptive_field) {
            Some(start) if start > saved => Resume {
                start,
                kept: found.len,
                exact: found.len,
                snapshot: None,
                found,
            },
            _ => Resume {
                start: saved,
                kept: whole.max(saved),
                exact: saved,
                snapshot,
                found,
            },
        }
    }

    /// Whether the sequence that this one waits for has yet to reach where they part.
    fn still_follows(&self, sequence: &Sequence) -> bool {
        sequence.follows.is_some_and(|(id, len)| {
            let mut running = self.running.iter();
            running.any(|live| live.sequence.id == id && live.done < len)
        })
    }

    /// The running sequence that is about to compute what `sequence` begins with, and how much of
    /// that, if waiting for it spares enough.
    fn leader(&self, sequence: &Sequence, resume: &Resume) -> Option<(u64, usize)> {
        if !self.rules.prefix_cache || sequence.prompt_logprobs.is_some() {
            return None;
        }
        let most = sequence.tokens.len().saturating_sub(1);
        let ahead = self.running.iter().filter(|live| live.pending() > 1);
        let shared = ahead.map(|live| {
            let both = live.sequence.tokens.iter().zip(&sequence.tokens[..most]);
            let len = both.take_while(|(a, b)| a == b).count();
            let len = plan::cut_at(len, live.done, &live.cuts);
            (live.sequence.id, live.done, len)
        });
        let worth = shared.filter(|&(_, done, len)| len > done && len >= resume.start + WORTH);
        let best = worth.max_by_key(|&(id, _, len)| (len, u64::MAX - id));
        best.map(|(id, _, len)| (id, len))
    }

    /// Lets a waiting sequence wait for the one that computes its beginning, which is to keep its
    /// windows where the two part.
    fn follow(&mut self, at: usize, (id, len): (u64, usize)) {
        self.waiting[at].follows = Some((id, len));
        if let Some(leader) = self.running.iter_mut().find(|live| live.sequence.id == id)
            && let Err(place) = leader.cuts.binary_search(&len)
            && leader.exact <= len
        {
            leader.cuts.insert(place, len);
        }
    }

    /// Gives a sequence a slot and blocks for all its tokens. Returns it if there are not enough.
    fn enter(&mut self, mut sequence: Sequence, mut resume: Resume) -> Option<Sequence> {
        let slot = match self.free_slots.last() {
            Some(&slot) => slot,
            None => return Some(sequence),
        };
        let tokens = sequence.tokens.len();
        let mut table = Table::default();
        // Every running sequence may need a block soon: taking that too would only mean to give it back.
        let reserve = self.running.len();
        match self.occupy(&mut table, &resume, tokens, reserve, slot) {
            Ok(true) => {}
            Ok(false) => {
                self.cache.release(std::mem::take(&mut table));
                if !self.running.is_empty() {
                    return Some(sequence);
                }
                // Alone, it can have every block, if it holds none of what it would copy from. They are
                // enough for a whole context.
                resume = Resume::anew(Found::nothing());
                if let Err(full) = self.cache.grow(&mut table, tokens) {
                    let failure = Failure::Broken(full.to_string());
                    self.end(sequence, Event::Error(failure));
                    return None;
                }
            }
            Err(error) => {
                self.cache.release(table);
                let failure = Failure::Broken(format!("{error:#}"));
                self.end(sequence, Event::Error(failure));
                return None;
            }
        }
        self.free_slots.pop();
        if sequence.admitted.is_none() {
            self.count(&mut sequence, &resume);
        }
        let cuts = match self.cache.snapshots() {
            0 => VecDeque::new(),
            _ => self.cuts(&sequence.tokens, &resume, &table),
        };
        self.running.push(Live {
            sequence,
            slot,
            table,
            done: resume.start,
            kept: resume.kept,
            exact: resume.exact,
            cuts,
            late: None,
            broken: None,
        });
        None
    }

    /// Fills `table` for `tokens` positions as `resume` says, and the slot's windows. False if
    /// there are not enough blocks; the table is to be released then.
    fn occupy(
        &mut self,
        table: &mut Table,
        resume: &Resume,
        tokens: usize,
        reserve: usize,
        slot: usize,
    ) -> Result<bool> {
        let Resume { kept, found, .. } = resume;
        let shared = &found.blocks[..kept / KV_BLOCK];
        let tail = found.tail.filter(|_| kept % KV_BLOCK != 0);
        let mut needed = tokens.div_ceil(KV_BLOCK).saturating_sub(shared.len()) + reserve;
        ensure!(
            tail.is_some() || kept.is_multiple_of(KV_BLOCK),
            "position {kept} is in no block"
        );
        if let Some(tail) = tail {
            // The copy, and what is copied, for that moment.
            needed = needed.max(1 + self.cache.idle(&[tail]));
        }
        if needed + self.cache.idle(shared) > self.cache.available() {
            return Ok(false);
        }
        self.cache.share(table, shared);
        if let Some(from) = tail {
            self.cache.hold(from);
            let grown = self.cache.grow(table, *kept);
            let to = table.blocks.last().copied();
            let copied = match (grown, to) {
                (Ok(()), Some(to)) => guard(|| self.backend.copy_block(from, to)).map(|()| true),
                _ => Ok(false),
            };
            self.cache.let_go(from);
            if !copied? {
                return Ok(false);
            }
        }
        if self.cache.grow(table, tokens).is_err() {
            return Ok(false);
        }
        if let Some(place) = resume.snapshot {
            let restored = guard(|| self.backend.restore(slot, place));
            if restored.is_err() {
                self.cache.drop_snapshot(place);
            }
            restored?;
            self.cache.touch_snapshot(place);
        }
        ensure!(resume.start < tokens, "nothing is left to run");
        Ok(true)
    }

    /// Notes what the cache spared a sequence that is admitted for the first time, and tells it.
    fn count(&mut self, sequence: &mut Sequence, resume: &Resume) {
        sequence.usage.cached_tokens = resume.start;
        sequence.miss = self.miss(sequence, resume);
        self.totals.prompt_tokens += sequence.prompt as u64;
        self.totals.cached_tokens += resume.start as u64;
        sequence.report(resume.start);
        sequence.admitted = Some(Instant::now());
    }

    /// Why not all of the prompt but its last token was cached: what cost the most rows.
    fn miss(&self, sequence: &Sequence, resume: &Resume) -> Option<Miss> {
        if !self.rules.prefix_cache || sequence.prompt_logprobs.is_some() {
            let reason = MissReason::Disabled;
            return Some(Miss { at: 0, reason });
        }
        let most = sequence.prompt - 1;
        let Found { len: at, end, .. } = resume.found;
        if resume.start >= most {
            return None;
        }
        let reason = match end {
            _ if at - resume.start > most - at => MissReason::Window,
            End::Token(cached) => MissReason::Parted {
                cached,
                found: sequence.tokens[at],
            },
            End::Evicted => MissReason::Evicted,
            End::Nothing => MissReason::Unknown,
        };
        Some(Miss { at, reason })
    }

    /// Where the pieces of a prompt must end.
    fn cuts(&self, tokens: &[u32], resume: &Resume, table: &Table) -> VecDeque<usize> {
        let mut cuts = plan::cuts(tokens, resume.start, self.rules.marker);
        // Prompts are known to part there, and the next that does shall not rebuild the windows.
        let parting = resume.found.len;
        if parting >= resume.start + WORTH
            && resume.found.end != End::Evicted
            && let Err(place) = cuts.binary_search(&parting)
        {
            cuts.insert(place, parting);
        }
        let wanted = |&cut: &usize| {
            cut >= resume.exact && !self.cache.has_snapshot(&table.blocks, &tokens[..cut])
        };
        cuts.into_iter().filter(wanted).collect()
    }
}
