//! Everything that a comparison found: what the table, the JSON and the report are made from.

use super::{
    fidelity::{Fidelity, Position},
    stages::TraceFound,
    verdict::Verdict,
    wire::Run,
};
use crate::{cli::bench::mean_and_deviation, measure::quantile};
use serde::Serialize;
use std::time::Duration;

/// One side's figures.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SideFound {
    /// As given on the command line.
    pub side: String,
    /// What computes, in its own words.
    pub backend: String,
    /// The model's file or folder.
    pub model: String,
    /// Bytes of the model's files.
    pub model_bytes: u64,
    /// Seconds from opening the file to an engine that is ready; the last load, so files are cached.
    pub load_s: f64,
    /// Speed and memory, unless left out.
    pub speed: Option<Speed>,
}

/// What was timed, the engine alone and warm.
#[derive(Debug, Clone, Serialize)]
pub struct Speed {
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Tokens generated after each.
    pub tokens: usize,
    /// From submission to the first token: the median run's.
    pub ttft_s: f64,
    /// Prompt tokens a second: mean and standard deviation over the runs.
    pub prefill_tok_per_s: Option<(f64, f64)>,
    /// Tokens a second after the first; none where there was only that.
    pub decode_tok_per_s: Option<(f64, f64)>,
    /// Waits between tokens, of all runs, where there were any: 50th, 95th and 99th percentile.
    pub token_p50_s: Option<f64>,
    /// See above.
    pub token_p95_s: Option<f64>,
    /// See above.
    pub token_p99_s: Option<f64>,
    /// Joules of a run, on average, where they can be read here.
    pub joules_per_run: Option<f64>,
    /// The most memory held at once, mapped files counted, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// Share of the processors' time that others took.
    pub others: Option<f64>,
    /// The runs themselves.
    pub runs: Vec<Run>,
}

impl Speed {
    /// From the runs; `None` without any.
    pub fn of(
        runs: Vec<Run>,
        prompt_tokens: usize,
        tokens: usize,
        peak_memory_bytes: Option<u64>,
        others: Option<f64>,
    ) -> Option<Speed> {
        if runs.is_empty() {
            return None;
        }
        let mean = |of: fn(&Run) -> Option<f64>| {
            let values: Vec<f64> = runs.iter().filter_map(of).collect();
            mean_and_deviation(&values)
        };
        let seconds = |s: f64| Duration::try_from_secs_f64(s).unwrap_or_default();
        let at = |waits: &[Duration], share| quantile(waits, share).map(|w| w.as_secs_f64());
        let firsts: Vec<_> = runs.iter().map(|run| seconds(run.ttft_s)).collect();
        let gaps: Vec<_> = runs
            .iter()
            .flat_map(|r| &r.gaps_s)
            .map(|&s| seconds(s))
            .collect();
        let joules: Option<Vec<f64>> = runs.iter().map(|run| run.joules).collect();
        Some(Speed {
            prompt_tokens,
            tokens,
            ttft_s: at(&firsts, 0.5)?,
            prefill_tok_per_s: mean(|run| run.prefill),
            decode_tok_per_s: mean(|run| run.decode),
            token_p50_s: at(&gaps, 0.5),
            token_p95_s: at(&gaps, 0.95),
            token_p99_s: at(&gaps, 0.99),
            joules_per_run: joules.and_then(|joules| Some(mean_and_deviation(&joules)?.0)),
            peak_memory_bytes,
            others,
            runs,
        })
    }
}

/// How near each side is to the reference back end on A's file.
#[derive(Debug, Clone, Serialize)]
pub struct Judged {
    /// Positions.
    pub positions: usize,
    /// Mean KL(reference || A), nats.
    pub a_mean_kl: f64,
    /// Mean KL(reference || B), nats.
    pub b_mean_kl: f64,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Found {
    /// Of the program that compared.
    pub version: &'static str,
    /// The machine's processor.
    pub processor: Option<String>,
    /// The first side: the yardstick.
    pub a: SideFound,
    /// The second side.
    pub b: SideFound,
    /// Ids of each sequence.
    pub sequences: Vec<Sequence>,
    /// How near B's predictions are to A's.
    pub fidelity: Fidelity,
    /// Least agreement that was asked for.
    pub min_agreement: f64,
    /// Where they part inside, if that was asked.
    pub trace: Option<TraceFound>,
    /// How near each is to the reference, if that was asked.
    pub judged: Option<Judged>,
    /// Which to use.
    pub verdict: Verdict,
    /// Every position.
    pub positions: Vec<Position>,
}

/// What both sides read.
#[derive(Debug, Clone, Serialize)]
pub struct Sequence {
    /// Tokens of it that were given; A continued them.
    pub prompt_tokens: usize,
    /// The ids.
    pub ids: Vec<u32>,
}
