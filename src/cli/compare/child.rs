//! One engine of a comparison, alone in its process: reads a [`Job`], says what came of it.

use super::wire::{self, Job, PROTOCOL, Run, Say, Task, say};
use crate::{
    cli::{engine::Opened, model::Common},
    energy::Meter,
    engine::{Engine, Request},
    machine, measure,
    sampler::Sampling,
};
use anyhow::{Context, Result, ensure};
use std::{
    io::{BufWriter, Read, Write},
    time::Instant,
};

/// Tokens that go through the model at once while scoring.
const PIECE: usize = 64;
/// Longest job.
const MOST_JOB: u64 = 256 << 20;

/// Does the job on standard input.
pub fn run() -> Result<()> {
    let mut text = Vec::new();
    std::io::stdin().take(MOST_JOB).read_to_end(&mut text)?;
    let job: Job = serde_json::from_slice(&text).context("expected a job of `gossamer compare`")?;
    ensure!(
        job.protocol == PROTOCOL,
        "a job of protocol {}; this program speaks {PROTOCOL}",
        job.protocol
    );
    let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout());
    let mut common = Common {
        model: job.model,
        backend: job.backend,
        threads: job.threads,
        rope_compat: job.rope_compat,
        ..Common::default()
    };
    let (others, peak_memory) = match job.task {
        Task::Score { sequences, trace } => {
            score_all(&common, &sequences, trace.as_deref(), &mut out)?;
            (None, None)
        }
        Task::Engine {
            prompts,
            max_tokens,
            stop_ids,
            timed,
            timed_tokens,
        } => {
            let longest = |of: &[Vec<u32>]| of.iter().map(Vec::len).max().unwrap_or(0);
            let context = |of: &[Vec<u32>], more: usize| longest(of).saturating_add(more);
            let needed = context(&prompts, max_tokens).max(context(&timed, timed_tokens));
            common.ctx_size = Some(needed.max(1));
            let started = Instant::now();
            let opened = common.open_engine(1, 4)?;
            let engine = &*opened.engine;
            ready(&engine.info().backend, started, &mut out)?;
            for prompt in prompts {
                let ids = continued(engine, prompt, max_tokens, &stop_ids)?;
                say(&mut out, &Say::Continued { ids }, &[])?;
            }
            let watch = machine::Watch::start();
            time_all(engine, &timed, timed_tokens, &mut out)?;
            let others = watch.stop().filter(|_| !timed.is_empty());
            (others, peak_memory(&opened))
        }
    };
    let done = Say::Done {
        peak_memory,
        others: others.map(|o| o.processes + o.steal.unwrap_or(0.0)),
    };
    say(&mut out, &done, &[])
}

/// The most that was held at once, in bytes: by this process, by MLX's beside it, and of a GPU's memory. Where a GPU
/// holds the weights, the pages of their file need not stay.
fn peak_memory(opened: &Opened) -> Option<u64> {
    let own = match opened.device_bytes {
        Some(_) => machine::resident().map(|held| held.anonymous),
        None => machine::peak_memory(),
    };
    // MLX computes in a process of its own.
    let worker = opened.mlx.as_ref().and_then(|mlx| mlx.held());
    let beside = opened.device_bytes.or(worker.map(|held| held.most));
    Some(own?.saturating_add(beside.unwrap_or(0)))
}

fn ready(description: &str, started: Instant, out: &mut impl Write) -> Result<()> {
    let ready = Say::Ready {
        description: description.to_owned(),
        load_s: started.elapsed().as_secs_f64(),
    };
    say(out, &ready, &[])
}

fn score_all(
    common: &Common,
    sequences: &[Vec<u32>],
    trace: Option<&[u32]>,
    out: &mut (impl Write + Send),
) -> Result<()> {
    let longest = sequences
        .iter()
        .map(Vec::len)
        .chain(trace.map(<[u32]>::len));
    let longest = longest.max().unwrap_or(0);
    let started = Instant::now();
    let checkpoint = common.open_checkpoint()?;
    let mut scorer = common.open_scorer(&checkpoint, longest, PIECE)?;
    ready(&scorer.describe(), started, out)?;
    for (sequence, ids) in sequences.iter().enumerate() {
        scorer.score(ids, 0, &mut |position, row| {
            say(out, &Say::Row { sequence, position }, row)
        })?;
    }
    if let Some(ids) = trace {
        scorer.trace(ids, &mut |piece| {
            let stage = Say::Stage {
                layer: piece.layer,
                stage: piece.stage.name().to_owned(),
                start: piece.start,
                width: piece.width,
            };
            wire::say(out, &stage, piece.values)
        })?;
    }
    Ok(())
}

/// The likeliest continuation.
fn continued(
    engine: &dyn Engine,
    prompt: Vec<u32>,
    max_tokens: usize,
    stop_ids: &[u32],
) -> Result<Vec<u32>> {
    let request = Request {
        tokens: prompt,
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        max_tokens: Some(max_tokens),
        stop_ids: stop_ids.to_vec(),
        ..Request::default()
    };
    Ok(measure::time(engine, request)?.ids)
}

/// Times all prompts but the first, which warms up.
fn time_all(
    engine: &dyn Engine,
    timed: &[Vec<u32>],
    tokens: usize,
    out: &mut impl Write,
) -> Result<()> {
    let meter = Meter::open();
    let energy = || meter.as_ref().and_then(Meter::read);
    for (i, prompt) in timed.iter().enumerate() {
        let before = energy();
        let timing = measure::time(engine, measure::request(prompt, tokens, i as u64))?;
        let used = meter.as_ref().zip(before.zip(energy()));
        if i == 0 {
            continue;
        }
        let run = Run {
            ttft_s: timing
                .first_token()
                .unwrap_or(timing.finished)
                .as_secs_f64(),
            prefill: timing.prefill_speed(),
            decode: timing.decode_speed(),
            gaps_s: timing.gaps().iter().map(|gap| gap.as_secs_f64()).collect(),
            joules: used.map(|(meter, (from, to))| meter.joules(&from, &to)),
        };
        say(out, &Say::Timed(run), &[])?;
    }
    Ok(())
}
