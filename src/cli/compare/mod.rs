//! `gossamer compare`: two engines, models or builds on the same tokens: how near, how fast, which to use.
//!
//! Every engine runs alone, in a process of its own ([`child`]), one after the other, so that times and memory are
//! its own and two models need not fit together. What A computed is kept on disk ([`kept`]) until B has
//! computed the same.

mod child;
mod comparison;
mod fidelity;
mod found;
mod kept;
mod page;
mod prompts;
mod remember;
mod scoring;
mod show;
mod side;
mod stages;
mod stored;
mod verdict;
mod wire;

pub use child::run as run_side;
pub(super) use stored::{Stored, Verdicts};

use super::model::{Common, positive};
use anyhow::{Context, Result, bail, ensure};
use comparison::Comparison;
use side::Side;
use std::{io::Write, path::PathBuf};
use verdict::Prefer;

/// What `compare` reads.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The first side, the yardstick: BACKEND, MODEL or BACKEND=MODEL; after it, separated by commas:
    /// rope-compat, threads=N, program=PATH (another gossamer)
    #[arg(required_unless_present = "forget")]
    a: Option<Side>,
    /// The second side
    #[arg(required_unless_present = "forget")]
    b: Option<Side>,
    /// Conversations to compare on, one JSON object a line, as `gossamer batch` reads them. Default: seven
    /// built-in ones
    #[arg(long, value_name = "FILE.jsonl", conflicts_with = "ids")]
    prompts: Option<PathBuf>,
    /// A JSON array of token ids to compare on
    #[arg(long, value_name = "IDS.json")]
    ids: Option<PathBuf>,
    /// Tokens by which A continues each of them, greedily, before both are scored
    #[arg(long, value_name = "N", default_value_t = 32)]
    max_tokens: usize,
    /// Also compare what every stage of every layer computes, over the longest sequence
    #[arg(long)]
    trace: bool,
    /// Most tokens to trace
    #[arg(long, value_name = "N", default_value = "256", value_parser = positive)]
    trace_tokens: usize,
    /// Relative L2 up to which a stage counts as equal. Default: 1e-4 where both compute alike (the same back end, or both in f32), else 0.2
    #[arg(long, value_name = "X", value_parser = share)]
    tolerance: Option<f64>,
    /// Fail (exit code 1) where fewer of the positions have the same likeliest token
    #[arg(long, value_name = "SHARE", default_value = "0.95", value_parser = share)]
    min_agreement: f64,
    /// What the verdict goes by
    #[arg(long, value_enum, default_value_t = Prefer::Speed)]
    prefer: Prefer,
    /// Leave out speed, latency, energy and memory
    #[arg(long)]
    no_speed: bool,
    /// Prompt tokens of a timed run
    #[arg(short, long, value_name = "TOKENS", default_value = "512", value_parser = positive)]
    prompt: usize,
    /// Tokens to generate in a timed run
    #[arg(short = 'n', long, value_name = "TOKENS", default_value = "64", value_parser = positive)]
    tokens: usize,
    /// Timed runs of each side
    #[arg(short, long, value_name = "N", default_value = "3", value_parser = positive)]
    repeat: usize,
    /// Write everything that was found as JSON, every position included
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Forget the stored verdict for --model, or all of them, and compare nothing
    #[arg(long, conflicts_with_all = ["a", "b"])]
    forget: bool,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  gossamer compare --model gpt-oss-20b cpu cuda
  gossamer compare cpu=gpt-oss-20b.gguf mlx=gpt-oss-20b-MXFP4-Q8/ --html report.html
  gossamer compare --model a.gguf cpu reference --trace --no-speed
  gossamer compare --model a.gguf cpu cpu,program=../old/target/release/gossamer
  gossamer compare a.gguf b.gguf --min-agreement 0.98 --json out.json

A verdict is stored for this machine: `--backend auto` takes the back end that was better for a model, and says where
another file was. The rules are in docs/compare.md. Exit codes: 0, 1 when they agree less than --min-agreement, or a stage is beyond
--tolerance, or on an error; 2 on wrong usage.";

/// A number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if (0.0..=1.0).contains(&x) => Ok(x),
        _ => Err("must be a number from 0 to 1".into()),
    }
}

/// Compares, or forgets.
pub fn run(args: Args) -> Result<()> {
    let (Some(a), Some(b)) = (&args.a, &args.b) else {
        return remember::forget(&args.common);
    };
    let found = Comparison::new(&args, a, b)?.run()?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(found.text().as_bytes())?;
    if let Some(path) = &args.json {
        let mut text = serde_json::to_string_pretty(&found)?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &args.html {
        found.page().write(path)?;
    }
    remember::store(&args.common, [a, b], &found)?;
    if let Some(stage) = found.trace.as_ref().and_then(|t| t.first_beyond.as_ref()) {
        bail!("A and B differ at {} first", stage.place());
    }
    ensure!(
        found.fidelity.agreement >= args.min_agreement,
        "A and B agree at {:.2} % of the positions; --min-agreement {}",
        100.0 * found.fidelity.agreement,
        args.min_agreement
    );
    Ok(())
}
