//! `gossamer score`: teacher-forced logits of given token ids, the door for every comparison with
//! other engines. Row `i` is what the model predicts after token `i`.

use super::{
    Usage,
    model::{Common, positive},
    npy,
};
use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// More than the ids of any context take.
const MOST_BYTES: u64 = 64 << 20;

/// What `score` reads.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// A JSON array of token ids
    #[arg(long, value_name = "IDS.json")]
    tokens: PathBuf,
    /// Write f32 logits [rows, vocabulary] here, in NumPy's format
    #[arg(long, value_name = "OUT.npy")]
    logits: Option<PathBuf>,
    /// Print a line of JSON for each row: the token, the logprob of the token that follows it in the
    /// input, and the K likeliest tokens with their logprobs
    #[arg(long, value_name = "K", value_parser = positive)]
    top: Option<usize>,
    /// Only the last N rows. Default: all
    #[arg(long, value_name = "N", value_parser = positive)]
    last: Option<usize>,
    /// Tokens that go through the model at once
    #[arg(long, value_name = "N", default_value = "64", value_parser = positive)]
    chunk: usize,
}

const EXAMPLES: &str = "\
Examples:
  echo '[200006, 1428, 200008]' > ids.json
  gossamer score --model gpt-oss-20b --tokens ids.json --logits logits.npy
  gossamer score --model gpt-oss-20b --tokens ids.json --top 5 --last 1";

/// Scores the tokens.
pub fn run(args: Args) -> Result<()> {
    if args.logits.is_none() && args.top.is_none() {
        return Err(
            Usage("nothing asked for: give --logits OUT.npy, --top K, or both".into()).into(),
        );
    }
    let ids = read_ids(&args.tokens)?;
    let checkpoint = args.common.open_checkpoint()?;
    let config = checkpoint.config()?;
    let file = args.tokens.display();
    let bad = ids.iter().position(|&id| id as usize >= config.vocab);
    if let Some(i) = bad {
        anyhow::bail!(
            "{file}: id {} at index {i}; the model's vocabulary has {}",
            ids[i],
            config.vocab
        );
    }
    let context = args
        .common
        .ctx_size
        .unwrap_or(config.context)
        .min(config.context);
    ensure!(
        ids.len() <= context,
        "{file}: {} tokens; the context is {context}",
        ids.len()
    );

    let mut scorer = args
        .common
        .open_scorer(&checkpoint, ids.len(), args.chunk)?;
    if args.common.verbose {
        tell!("{}: {}", config.name, scorer.describe());
    }
    let first = ids.len() - args.last.unwrap_or(ids.len()).min(ids.len());
    let mut npy = match &args.logits {
        Some(path) => Some(npy::Writer::create(path, ids.len() - first, config.vocab)?),
        None => None,
    };
    let mut stdout = std::io::stdout().lock();
    let bar = ProgressBar::new(ids.len() as u64).with_style(ProgressStyle::with_template(
        "scoring {wide_bar} {pos}/{len} tokens, {eta}",
    )?);
    scorer.score(&ids, first, &mut |position, logits| {
        bar.set_position(position as u64 + 1);
        if let Some(npy) = &mut npy {
            npy.row(logits)?;
        }
        if let Some(k) = args.top {
            let line = top_line(position, &ids, logits, k);
            writeln!(stdout, "{line}")?;
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    npy.map_or(Ok(()), npy::Writer::finish)
}

pub(super) fn read_ids(path: &Path) -> Result<Vec<u32>> {
    let reading = || format!("read {}", path.display());
    let file = File::open(path).with_context(reading)?;
    let mut text = Vec::new();
    let read = file.take(MOST_BYTES + 1).read_to_end(&mut text);
    read.with_context(reading)?;
    ensure!(
        text.len() as u64 <= MOST_BYTES,
        "{}: more than {} MiB of token ids",
        path.display(),
        MOST_BYTES >> 20
    );
    let ids: Vec<u32> = serde_json::from_slice(&text)
        .with_context(|| format!("{}: expected a JSON array of token ids", path.display()))?;
    ensure!(!ids.is_empty(), "{}: no token ids in it", path.display());
    Ok(ids)
}

/// One row's likeliest tokens, ties to the lower id.
fn top_line(position: usize, ids: &[u32], logits: &[f32], k: usize) -> serde_json::Value {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let log_sum = max
        + logits
            .iter()
            .map(|&x| (x as f64 - max).exp())
            .sum::<f64>()
            .ln();
    let logprob = |id: usize| logits[id] as f64 - log_sum;
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let k = k.min(order.len());
    let by_logit = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    if k < order.len() {
        order.select_nth_unstable_by(k, by_logit);
    }
    order.truncate(k);
    order.sort_by(by_logit);
    let next = ids.get(position + 1).copied();
    json!({
        "position": position,
        "token": ids[position],
        "next": next,
        "next_logprob": next.map(|id| logprob(id as usize)),
        "top": order.iter().map(|&id| json!({ "id": id, "logprob": logprob(id) })).collect::<Vec<_>>(),
    })
}
