//! The measurements of one engine, the most informative first, as far as its share of the time goes.
//!
//! Depths grow out of each other: the prompt of each begins with that of the one before, which the prefix
//! cache holds. So all of them together read the longest prompt once.

use super::{
    needle::needle,
    open::Subject,
    pace::{Budget, Pace},
    record::{Bandwidth, Depth, Recall, Record, Records, Streams, Turn},
};
use crate::{
    harmony::{Channel, Conversation, Parser},
    machine,
    measure::{self, Timing, quantile},
    sampler::Sampling,
    tokenizer::TokenKind,
};
use anyhow::{Context, Result};
use serde::Serialize;
use std::time::Duration;

/// Tokens that a next turn adds.
const TURN: usize = 32;
/// Tokens that each stream decodes.
const STREAM_TOKENS: usize = 16;
/// Tokens of context that streams have.
const STREAM_DEPTH: usize = 1024;
/// Most tokens of an answer that has to name a fact.
const ANSWER: usize = 160;
/// Where in a text facts are put, those first that share the most text with what was asked before.
const PLACES: [f64; 3] = [0.9, 0.5, 0.1];
/// The part of the time left that decoding at one depth may take.
const DECODE_SHARE: f64 = 0.06;

/// Something to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Depth(usize),
    Turn(usize),
    Recall(usize, f64),
    Streams(usize),
}

/// What was not measured, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeftOut {
    pub what: String,
    pub why: String,
}

/// One engine's way through the benchmark.
pub struct Course<'a> {
    subject: &'a Subject,
    records: &'a mut Records,
    pace: Pace,
    /// Random ordinary tokens: the longest prompt.
    text: Vec<u32>,
    /// So many of them the prefix cache holds.
    held: usize,
    seed: u64,
    left_out: Vec<LeftOut>,
}

/// Measures `subject` at these depths; what fails is left out.
///
/// # Errors
/// When all fails, or records can't be written.
pub fn run(
    subject: &Subject,
    lengths: &[usize],
    budget: Budget,
    records: &mut Records,
    seed: u64,
    tell: &dyn Fn(String),
) -> Result<Vec<LeftOut>> {
    let mut course = Course {
        subject,
        pace: Pace::default(),
        text: text(subject, lengths, seed),
        held: 0,
        seed,
        records,
        left_out: Vec::new(),
    };
    course.recollect();
    course.warm_up()?;
    let (mut is_measured, mut failure) = (false, None);
    for step in steps(subject, lengths) {
        let name = course.name(step);
        if course.records.has(&name) {
            is_measured = true;
            course.time_memory(step)?;
            continue;
        }
        let needs_s = course.cost(step);
        if !budget.has(needs_s) {
            let left = budget.left().as_secs_f64();
            course.left_out.push(LeftOut {
                what: name,
                why: format!(
                    "it would take about {needs_s:.0} s, and {left:.0} s of the budget were left"
                ),
            });
            continue;
        }
        tell(format!(
            "{name}: about {needs_s:.0} s, {:.0} s left",
            budget.left().as_secs_f64()
        ));
        match course.measure(step, budget) {
            Ok(record) => course.records.push(record)?,
            // What was measured before is worth its report, and so may be what comes.
            Err(why) => {
                course.left_out.push(LeftOut {
                    what: name,
                    why: format!("{why:#}"),
                });
                failure.get_or_insert(why);
                continue;
            }
        }
        is_measured = true;
        course.time_memory(step)?;
    }
    if let Some(why) = failure.filter(|_| !is_measured) {
        return Err(why);
    }
    course.time_memory_after("all")?;
    for &length in lengths.iter().filter(|&&length| !fits(subject, length)) {
        course.left_out.push(LeftOut {
            what: course.name(Step::Depth(length)),
            why: format!(
                "there is room for a context of {} tokens",
                subject.load.context
            ),
        });
    }
    Ok(course.left_out)
}

/// Whether the context reaches most of a depth.
fn fits(subject: &Subject, length: usize) -> bool {
    let most = subject.load.context.saturating_sub(ANSWER + TURN);
    length - length / 16 <= most
}

/// All that is worth measuring, the most informative first.
fn steps(subject: &Subject, lengths: &[usize]) -> Vec<Step> {
    let mut depths = lengths.iter().copied().filter(|&n| fits(subject, n));
    // A model with random weights remembers nothing.
    let asked: Vec<usize> = match subject.config.name.starts_with("Random ") {
        true => Vec::new(),
        false => depths.clone().collect(),
    };
    let recall = |length| PLACES.map(|place| Step::Recall(length, place));
    let mut steps = Vec::new();
    if let Some(first) = depths.next() {
        steps.push(Step::Depth(first));
        steps.push(Step::Turn(first));
    }
    let near = asked.iter().filter(|&&length| length <= 4096);
    let far = asked.iter().filter(|&&length| length > 4096);
    let mut streams = subject.streams.iter().map(|&n| Step::Streams(n));
    steps.extend(streams.next());
    steps.extend(depths.next().map(Step::Depth));
    steps.extend(near.flat_map(|&length| recall(length)));
    steps.extend(streams);
    steps.extend(depths.map(Step::Depth));
    steps.extend(far.flat_map(|&length| recall(length)));
    steps
}

/// Random ordinary tokens, as many as the longest depth and the turn after it take.
fn text(subject: &Subject, lengths: &[usize], seed: u64) -> Vec<u32> {
    let vocab = subject.tokenizer.vocab_size().min(subject.config.vocab);
    let kind = |id: u32| subject.tokenizer.kind(id);
    let ordinary = (0..vocab as u32).filter(|&id| matches!(kind(id), TokenKind::Normal));
    let ordinary: Vec<u32> = ordinary.collect();
    let longest = lengths.iter().max().copied().unwrap_or(0);
    let longest = longest.min(subject.load.context) + TURN;
    let mut random = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let at = random % ordinary.len().max(1) as u64;
        ordinary.get(at as usize).copied().unwrap_or(0)
    };
    (0..longest).map(|_| draw()).collect()
}

impl Course<'_> {
    fn name(&self, step: Step) -> String {
        let backend = &self.subject.load.backend;
        match step {
            Step::Depth(length) => format!("{backend} depth {length}"),
            Step::Turn(length) => format!("{backend} turn {length}"),
            Step::Recall(length, place) => format!("{backend} recall {length} {place}"),
            Step::Streams(streams) => format!("{backend} streams {streams}"),
        }
    }

    /// Tokens of the prompt at a depth: room is left for what comes after it.
    fn tokens(&self, length: usize) -> usize {
        let most = self.subject.load.context.saturating_sub(ANSWER + TURN);
        length.min(most).min(self.text.len())
    }

    /// Learns from what was measured before.
    fn recollect(&mut self) {
        let backend = &self.subject.load.backend;
        for record in &self.records.all {
            if let Record::Depth(depth) = record
                && depth.backend == *backend
            {
                self.pace.read(depth.cached, depth.tokens, depth.prefill_s);
                let last = depth.decode_tok_s.last().copied().unwrap_or(0.0);
                self.pace.decoded(1.0 / last.max(1e-3));
            }
        }
    }

    /// The memory's speed after a depth.
    fn time_memory(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Depth(length) => self.time_memory_after(&format!("depth {length}")),
            _ => Ok(()),
        }
    }

    /// The memory's speed, unless that is known; it drifts, and the best is the machine's.
    fn time_memory_after(&mut self, what: &str) -> Result<()> {
        let mut record = Bandwidth {
            backend: self.subject.load.backend.clone(),
            after: what.to_owned(),
            bandwidth: 0.0,
        };
        if self.records.has(&Record::Bandwidth(record.clone()).name()) {
            return Ok(());
        }
        if let Some(found) = self.subject.bandwidth()? {
            record.bandwidth = found;
            self.records.push(Record::Bandwidth(record))?;
        }
        Ok(())
    }

    /// Touches all weights and fills all buffers once; the first guess of its pace.
    fn warm_up(&mut self) -> Result<()> {
        let rows = 256.min(self.subject.load.context / 2);
        let ids: Vec<u32> = self.text.iter().rev().take(rows.max(1)).copied().collect();
        measure::time(
            &*self.subject.engine,
            measure::request(&ids[..1], 2, self.seed),
        )?;
        let timing = measure::time(&*self.subject.engine, measure::request(&ids, 4, self.seed))?;
        let read = timing.prefill_speed().unwrap_or(0.0);
        self.pace
            .read(0, ids.len(), ids.len() as f64 / read.max(1e-3));
        self.pace
            .decoded(1.0 / timing.decode_speed().unwrap_or(1.0).max(1e-3));
        Ok(())
    }

    /// Seconds that a step will take.
    fn cost(&self, step: Step) -> f64 {
        match step {
            Step::Depth(length) => {
                let tokens = self.tokens(length);
                let read = self.pace.reading(self.held.min(tokens), tokens);
                read + self.pace.decoding(10) + self.pace.reading(tokens, tokens + TURN)
            }
            Step::Turn(length) => self.pace.reading(0, self.tokens(length) + TURN),
            // The text before the place is in the cache after the first.
            Step::Recall(length, place) => {
                let from = match PLACES.iter().position(|&p| p == place) {
                    Some(0) | None => 0,
                    Some(_) => (place * length as f64) as usize,
                };
                self.pace.reading(from, length) + self.pace.decoding(30)
            }
            Step::Streams(streams) => {
                let beside = self.tokens(STREAM_DEPTH).saturating_sub(self.held);
                self.pace.reading(0, beside)
                    + self.pace.reading(0, 8 * streams)
                    + self.pace.decoding(STREAM_TOKENS) * (streams as f64).sqrt()
            }
        }
    }

    fn measure(&mut self, step: Step, budget: Budget) -> Result<Record> {
        match step {
            Step::Depth(length) => self.depth(length, budget).map(Record::Depth),
            Step::Turn(length) => self.turn(length).map(Record::Turn),
            Step::Recall(length, place) => self.recall(length, place).map(Record::Recall),
            Step::Streams(streams) => self.streams(streams).map(Record::Streams),
        }
    }

    fn time(&self, ids: &[u32], tokens: usize, seed: u64) -> Result<Timing> {
        let request = measure::request(ids, tokens, seed);
        measure::time(&*self.subject.engine, request)
    }

    /// Reads on to a depth, decodes there, and goes on with a next turn.
    fn depth(&mut self, length: usize, budget: Budget) -> Result<Depth> {
        let tokens = self.tokens(length);
        let prompt = &self.text[..tokens];
        let time = budget.left().as_secs_f64();
        let read = self.pace.reading(self.held.min(tokens), tokens);
        let share = (time - read).max(0.0) * DECODE_SHARE;
        let one = self.pace.decoding(1).max(1e-5);
        let decoded = ((share / 3.0 / one) as usize).clamp(8, 64);
        let runs = ((share / one / decoded as f64) as usize).clamp(1, 3);
        let first = self.time(prompt, decoded + 1, self.seed)?;
        let mut timings = vec![first];
        for run in 1..runs {
            timings.push(self.time(prompt, decoded + 1, self.seed + run as u64)?);
        }
        let first = &timings[0];
        let prefill_s = first.first_token().context("no token came")? - first.admitted;
        let decode_tok_s: Vec<f64> = timings.iter().filter_map(Timing::decode_speed).collect();
        let gaps: Vec<Duration> = timings.iter().flat_map(Timing::gaps).collect();
        let gap = |share| quantile(&gaps, share).unwrap_or_default().as_secs_f64();
        let (cached, prefill_s) = (first.cached_tokens, prefill_s.as_secs_f64());
        self.pace.read(cached, tokens, prefill_s);
        self.pace.decoded(gap(0.5));
        // Other words than those that come next in the text.
        let turn: Vec<u32> = prompt
            .iter()
            .chain(self.text.iter().rev().take(TURN))
            .copied()
            .collect();
        let turn = self.time(&turn, 1, self.seed)?;
        self.held = turn.cached_tokens.min(tokens);
        Ok(Depth {
            backend: self.subject.load.backend.clone(),
            length,
            tokens,
            cached,
            prefill_s,
            prefill_tok_s: tokens.saturating_sub(cached) as f64 / prefill_s.max(1e-9),
            decoded,
            decode_tok_s,
            gap_p50_s: gap(0.5),
            gap_p95_s: gap(0.95),
            kv_bytes: self.subject.kv_bytes(tokens),
            resident: machine::resident(),
            device_bytes: self.subject.device_bytes(),
            turn_rows: turn.prompt_tokens - turn.cached_tokens.min(turn.prompt_tokens),
            turn_s: turn.first_token().context("no token came")?.as_secs_f64(),
        })
    }

    /// As the turn after a depth, of a conversation that nobody knows.
    fn turn(&mut self, length: usize) -> Result<Turn> {
        let rows = self.tokens(length) + TURN;
        let ids: Vec<u32> = self.text.iter().rev().cycle().take(rows).copied().collect();
        // What was read to warm up began so too.
        let ids: Vec<u32> = ids.into_iter().skip(1).collect();
        let timing = self.time(&ids, 1, self.seed)?;
        Ok(Turn {
            backend: self.subject.load.backend.clone(),
            length,
            rows: timing.prompt_tokens - timing.cached_tokens.min(timing.prompt_tokens),
            first_token_s: timing.first_token().context("no token came")?.as_secs_f64(),
        })
    }

    fn recall(&mut self, length: usize, place: f64) -> Result<Recall> {
        let tokenizer = &self.subject.tokenizer;
        let needle = needle(tokenizer, length.min(self.tokens(length)), place, self.seed)?;
        let mut request = measure::request(&needle.tokens, ANSWER, self.seed);
        request.sampling = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        request.stop_ids = tokenizer.stop_ids();
        let timing = measure::time(&*self.subject.engine, request)?;
        let mut parser = Parser::new(tokenizer.clone(), Conversation::default().tool_names())?;
        parser.extend(&timing.ids);
        let (_, turn) = parser.finish();
        let mut answers = turn.messages.iter().rev();
        let answer = answers.find(|message| message.channel == Some(Channel::Final));
        let said = answer.map_or("", |message| &message.content);
        Ok(Recall {
            backend: self.subject.load.backend.clone(),
            length,
            tokens: needle.tokens.len(),
            place,
            right: said.contains(&needle.expected),
            expected: needle.expected,
            said: said.chars().take(80).collect(),
        })
    }

    fn streams(&mut self, streams: usize) -> Result<Streams> {
        let depth = self.tokens(STREAM_DEPTH);
        let prompt = &self.text[..depth];
        if self.held < depth {
            self.time(prompt, 1, self.seed)?;
        }
        let together = |tokens: usize| {
            let requests = (0..streams).map(|stream| {
                let own = self.text.iter().rev().skip(TURN + 8 * stream).take(8);
                let ids: Vec<u32> = prompt.iter().chain(own).copied().collect();
                measure::request(&ids, tokens + 1, self.seed + stream as u64)
            });
            measure::time_together(&*self.subject.engine, requests.collect())
        };
        let mut timings = together(STREAM_TOKENS)?;
        // A fast engine is done with the first before the last has begun.
        for longer in [8, 32] {
            if measure::total_speed(&timings).is_none() {
                timings = together(longer * STREAM_TOKENS)?;
            }
        }
        let gaps: Vec<Duration> = timings.iter().flat_map(Timing::gaps).collect();
        let tok_s = measure::total_speed(&timings);
        Ok(Streams {
            backend: self.subject.load.backend.clone(),
            streams,
            depth: depth + 8,
            tok_s: tok_s.context("the streams never decoded all at once")?,
            gap_p95_s: quantile(&gaps, 0.95).unwrap_or_default().as_secs_f64(),
        })
    }
}
