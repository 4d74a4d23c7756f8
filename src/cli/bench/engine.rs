//! The same tests at the level of the engine, for one whose forward passes belong to another process: requests,
//! timed at their events.
//!
//! A prompt at a depth is a request that begins with what the prefix cache kept of the one before.

use super::{Args, Work, report::mean_and_deviation};
use crate::{
    cli::{engine::OpenedMlx, model::Common},
    engine::Engine,
    hub::human,
    machine,
    measure::{self, Timing},
    tokenizer::{TokenKind, Tokenizer},
};
use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::{fmt::Write as _, io::Write as _, time::Duration};

/// One test: tokens a second, of each run.
struct Test {
    work: Work,
    streams: usize,
    tokens: usize,
    depth: usize,
    speeds: Vec<f64>,
    /// To the first token, of the last run's first stream.
    first_token: Option<Duration>,
}

const TOO_FEW: &str = "the streams did not decode all at once: use more tokens (-n), or fewer streams where memory is short";
/// Tokens at the end of a stream's prompt that are its own.
const OWN: usize = 8;

/// Measures MLX and reports.
pub fn run(args: &Args, common: &Common, opened: OpenedMlx) -> Result<()> {
    let most_streams = args.streams.iter().max().copied().unwrap_or(1);
    let seed = common.seed.unwrap_or(1);
    let mut bench = Bench {
        draw: random_ids(&opened.tokenizer, opened.engine.info().vocab, seed),
        engine: &opened.engine,
        seed,
    };
    let watch = machine::Watch::start();
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner.set_message("warming up");
    bench.together(most_streams, args.prompt.clamp(1, 64), 4)?;
    let mut tests = Vec::new();
    for &depth in &args.depth {
        let mut plan = vec![(Work::Prefill(args.prompt), 1, args.prompt)];
        plan.extend(
            args.streams
                .iter()
                .map(|&n| (Work::Decode(args.tokens), n, args.tokens)),
        );
        for (work, streams, tokens) in plan.into_iter().filter(|&(.., tokens)| tokens > 0) {
            spinner.set_message(format!("{} at depth {depth}", work.name()));
            let (mut speeds, mut first_token) = (Vec::new(), None);
            for _ in 0..args.repeat {
                let (speed, first) = match work {
                    Work::Prefill(_) => bench.prefill(depth, tokens)?,
                    _ => bench.decode(streams, depth.max(1), tokens)?,
                };
                speeds.push(speed);
                first_token = first;
            }
            tests.push(Test {
                work,
                streams,
                tokens: tokens * streams,
                depth,
                speeds,
                first_token,
            });
        }
    }
    let disturbed = watch.stop().is_some_and(|load| load.disturbs());
    spinner.finish_and_clear();
    let text = match args.json {
        true => serde_json::to_string_pretty(&as_json(&opened, &tests, disturbed))? + "\n",
        false => table(&opened, &tests, disturbed)?,
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

struct Bench<'a, D> {
    draw: D,
    engine: &'a dyn Engine,
    seed: u64,
}

impl<D: FnMut(usize) -> Vec<u32>> Bench<'_, D> {
    /// Tokens a second of a prompt that follows `depth` others.
    fn prefill(&mut self, depth: usize, tokens: usize) -> Result<(f64, Option<Duration>)> {
        let ids = (self.draw)(depth + tokens);
        if depth > 0 {
            // Its end is kept, and the next request goes on from there.
            measure::time(self.engine, measure::request(&ids[..depth], 1, self.seed))?;
        }
        let timing = measure::time(self.engine, measure::request(&ids, 1, self.seed))?;
        ensure!(
            timing.cached_tokens + 1 >= depth,
            "the prefix of {depth} tokens was not kept: a smaller --depth fits"
        );
        let speed = timing.prefill_speed().context("nothing was computed")?;
        Ok((speed, timing.first_token()))
    }

    /// Streams of so many tokens, each after a prompt of `depth` tokens. Several begin alike, and end in a few of
    /// their own: what they share is read before, so that none is done before the last begins.
    fn together(&mut self, streams: usize, depth: usize, tokens: usize) -> Result<Vec<Timing>> {
        let shared = match streams {
            1 => 0,
            _ => depth.saturating_sub(OWN),
        };
        let beginning = (self.draw)(shared);
        if shared > 0 {
            measure::time(self.engine, measure::request(&beginning, 1, self.seed))?;
        }
        let requests = (0..streams).map(|stream| {
            let ids = [beginning.clone(), (self.draw)(depth - shared)].concat();
            // One more: the first comes with the prompt.
            measure::request(&ids, tokens + 1, self.seed + stream as u64)
        });
        measure::time_together(self.engine, requests.collect())
    }

    /// Tokens a second of all streams, each after a prompt of `depth` tokens.
    fn decode(
        &mut self,
        streams: usize,
        depth: usize,
        tokens: usize,
    ) -> Result<(f64, Option<Duration>)> {
        let timings = self.together(streams, depth, tokens)?;
        let speed = match &timings[..] {
            [one] => one.decode_speed(),
            all => measure::total_speed(all),
        };
        let first = timings.first().and_then(Timing::first_token);
        Ok((speed.context(TOO_FEW)?, first))
    }
}

/// Draws ordinary tokens: no control tokens, other ones each time.
fn random_ids(tokenizer: &Tokenizer, vocab: usize, seed: u64) -> impl FnMut(usize) -> Vec<u32> {
    let ordinary: Vec<u32> = (0..vocab as u32)
        .filter(|&id| matches!(tokenizer.kind(id), TokenKind::Normal | TokenKind::Byte))
        .collect();
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1;
    move |count| {
        let draw = |_| {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = state as usize % ordinary.len().max(1);
            ordinary.get(at).copied().unwrap_or_default()
        };
        (0..count).map(draw).collect()
    }
}

fn as_json(opened: &OpenedMlx, tests: &[Test], disturbed: bool) -> Value {
    let tests = tests.iter().map(|test| {
        let (mean, deviation) = mean_and_deviation(&test.speeds).unzip();
        json!({
            "test": test.work.name(), "streams": test.streams, "tokens": test.tokens, "depth": test.depth,
            "tok_per_s": mean, "deviation": deviation, "runs_tok_per_s": test.speeds,
            "first_token_s": test.first_token.map(|d| d.as_secs_f64()),
        })
    });
    let tests: Vec<Value> = tests.collect();
    let memory = opened.engine.memory();
    json!({
        "gossamer": env!("CARGO_PKG_VERSION"),
        "model": {
            "name": opened.engine.info().name,
            "file": opened.checkpoint.path().display().to_string(),
            "bytes": opened.checkpoint.file_bytes(),
        },
        "backend": opened.engine.info().backend,
        "cpu": machine::cpu_name(),
        "load_s": opened.load_time.as_secs_f64(),
        "peak_memory_bytes": memory.map(|memory| memory.peak),
        "worker_peak_bytes": memory.map(|memory| memory.peak_resident),
        "tests": tests,
        "disturbed": disturbed,
    })
}

fn table(opened: &OpenedMlx, tests: &[Test], disturbed: bool) -> Result<String> {
    let info = opened.engine.info();
    let mut text = String::new();
    writeln!(
        text,
        "{}, {} ({}), loaded in {:.2} s\n{}",
        info.name,
        opened.checkpoint.path().display(),
        human(opened.checkpoint.file_bytes()),
        opened.load_time.as_secs_f64(),
        info.backend
    )?;
    if let Some(memory) = opened.engine.memory() {
        writeln!(
            text,
            "worker: {} of arrays and {} in all at most",
            human(memory.peak),
            human(memory.peak_resident)
        )?;
    }
    writeln!(
        text,
        "\ntest      depth  streams  tokens      tok/s        first token"
    )?;
    for test in tests {
        let speed = mean_and_deviation(&test.speeds).map_or_else(
            || "-".to_owned(),
            |(mean, deviation)| format!("{mean:10.2} ± {deviation:<8.2}"),
        );
        let first = test.first_token.map_or_else(String::new, |first| {
            format!("{:.1} ms", first.as_secs_f64() * 1e3)
        });
        let (name, depth, streams, tokens) =
            (test.work.name(), test.depth, test.streams, test.tokens);
        writeln!(
            text,
            "{name:8} {depth:6} {streams:8} {tokens:7} {speed:21} {first:>10}"
        )?;
    }
    if disturbed {
        writeln!(text, "\nOther programs took processor time meanwhile.")?;
    }
    Ok(text)
}
