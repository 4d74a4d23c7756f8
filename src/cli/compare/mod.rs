//! `gossamer compare`: two engines, models or builds on the same tokens: how near, how fast, which to use.
//!
//! Every engine runs alone, in a process of its own ([`child`]), one after the other, so that times and memory are
//! its own and two models need not fit together. What A computed is kept on disk ([`kept`]) until B has
//! computed the same.

mod child;
mod fidelity;
mod found;
mod kept;
mod page;
mod prompts;
mod show;
mod side;
mod stages;
mod stored;
mod verdict;
mod wire;

pub use child::run as run_side;
pub(super) use stored::{Stored, Verdicts};

use super::{
    Usage,
    model::{Common, positive},
};
use crate::{checkpoint::Checkpoint, config::Config, tokenizer::Tokenizer};
use anyhow::{Context, Result, bail, ensure};
use fidelity::{Fidelity, Position};
use found::{Found, Judged, Sequence, SideFound, Speed};
use kept::{Kept, Key};
use side::Side;
use stages::{Stages, TraceFound};
use std::{io::Write, path::PathBuf};

use verdict::{Prefer, Verdict, Winner};
use wire::{Say, Task};

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

A verdict between two back ends on one model is stored for this machine: `--backend auto` follows it. The rules
are in docs/compare.md. Exit codes: 0, 1 when they agree less than --min-agreement, or a stage is beyond
--tolerance, or on an error; 2 on wrong usage.";

/// A number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if (0.0..=1.0).contains(&x) => Ok(x),
        _ => Err("must be a number from 0 to 1".into()),
    }
}

/// Where no tolerance is given: the same arithmetic, or another one.
const SAME: f64 = 1e-4;
const OTHER: f64 = 0.2;
/// Positions that the reference judges: it is slow.
const JUDGED: usize = 48;

/// Compares, or forgets.
pub fn run(args: Args) -> Result<()> {
    let (Some(a), Some(b)) = (&args.a, &args.b) else {
        return forget(&args.common);
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
    store(&args, a, b, &found.verdict)?;
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

fn forget(common: &Common) -> Result<()> {
    let Some(mut verdicts) = Verdicts::open() else {
        return Ok(());
    };
    let known = match &common.model {
        None => verdicts.forget_all()?,
        Some(_) => usize::from(verdicts.forget(&common.open_checkpoint()?)?),
    };
    tell!(
        "forgot {known} verdict{}",
        if known == 1 { "" } else { "s" }
    );
    Ok(())
}

/// Keeps the verdict where `--backend auto` can follow it: two back ends, one model, nothing else.
fn store(args: &Args, a: &Side, b: &Side, verdict: &Verdict) -> Result<()> {
    let commons = [a.common(&args.common), b.common(&args.common)];
    let plain = |side: &Side, common: &Common| {
        side.program.is_none()
            && side.threads.is_none()
            && !common.rope_compat
            && common.backend != "auto"
    };
    let [of_a, of_b] = &commons;
    let one_model = of_a.model.is_some() && of_a.model == of_b.model;
    let Some(winner) = verdict.winner else {
        return Ok(());
    };
    if !(one_model && of_a.backend != of_b.backend && plain(a, of_a) && plain(b, of_b)) {
        return Ok(());
    }
    let Some(mut verdicts) = Verdicts::open() else {
        return Ok(());
    };
    let backend = match winner {
        Winner::A => &of_a.backend,
        Winner::B => &of_b.backend,
    };
    let model = of_a.open_checkpoint()?;
    let name = model.path().file_name().unwrap_or_default();
    let stored = Stored {
        backend: backend.clone(),
        why: verdict.why.clone(),
        model: name.to_string_lossy().into_owned(),
    };
    verdicts.set(&model, stored)?;
    tell!(
        "stored: `--backend auto` takes {backend} for this model on this machine (--forget forgets it)"
    );
    Ok(())
}

/// One comparison under way.
struct Comparison<'a> {
    args: &'a Args,
    sides: [(&'a Side, Common); 2],
    models: [Checkpoint; 2],
    tokenizer: Option<Tokenizer>,
    /// A's.
    config: Config,
    vocab: usize,
    context: usize,
}

impl<'a> Comparison<'a> {
    /// Opens both models' files and checks that they can be compared at all.
    fn new(args: &'a Args, a: &'a Side, b: &'a Side) -> Result<Comparison<'a>> {
        let sides = [a, b].map(|side| (side, side.common(&args.common)));
        let open = |i: usize| -> Result<Checkpoint> {
            let (side, common) = &sides[i];
            common.open_checkpoint().with_context(|| format!("{side}"))
        };
        let models = [open(0)?, open(1)?];
        let configs = [models[0].config()?, models[1].config()?];
        let tokenizers = [models[0].tokenizer().ok(), models[1].tokenizer().ok()];
        let vocab = configs[0].vocab;
        ensure!(
            vocab == configs[1].vocab,
            "A's vocabulary has {vocab} tokens, B's {}: the same ids don't mean the same",
            configs[1].vocab
        );
        if let [Some(a), Some(b)] = &tokenizers
            && let Some(id) = (0..vocab as u32).find(|&id| a.token_bytes(id) != b.token_bytes(id))
        {
            bail!("token {id} is not the same in A's vocabulary and B's");
        }
        let [tokenizer, _] = tokenizers;
        let context = configs[0].context.min(configs[1].context);
        let [config, _] = configs;
        Ok(Comparison {
            args,
            sides,
            models,
            tokenizer,
            config,
            vocab,
            context,
        })
    }

    fn run(&self) -> Result<Found> {
        let args = self.args;
        let prompts = args.prompt_ids(self.tokenizer.as_ref())?;
        let timed = args.timed_ids(self.tokenizer.as_ref(), self.vocab);
        self.check_ids(&prompts)?;
        let (mut a, continued) = self.engine(0, prompts.clone(), timed.clone())?;
        let sequences: Vec<Sequence> = prompts
            .into_iter()
            .zip(continued)
            .map(|(ids, more)| Sequence {
                prompt_tokens: ids.len(),
                ids: [ids, more].concat(),
            })
            .collect();
        let judge = self.judge(&sequences)?;
        let scored = self.score(&sequences, judge)?;
        let (mut b, _) = self.engine(1, Vec::new(), timed)?;
        for (side, (description, load_s)) in [&mut a, &mut b].into_iter().zip(scored.ready) {
            side.backend = description;
            side.load_s = load_s;
        }
        let fidelity = Fidelity::of(&scored.positions);
        let beyond = scored.trace.as_ref().and_then(|t| t.first_beyond.as_ref());
        let verdict = verdict::judge(
            args.prefer,
            args.min_agreement,
            &fidelity,
            beyond.map(|stage| stage.place()).as_deref(),
            (&a, &b),
            scored.judged.as_ref(),
        );
        Ok(Found {
            version: env!("CARGO_PKG_VERSION"),
            processor: crate::machine::cpu_name(),
            a,
            b,
            sequences,
            fidelity,
            min_agreement: args.min_agreement,
            trace: scored.trace,
            judged: scored.judged,
            verdict,
            positions: scored.positions,
        })
    }

    fn check_ids(&self, prompts: &[Vec<u32>]) -> Result<()> {
        let args = self.args;
        for ids in prompts {
            if let Some(at) = ids.iter().position(|&id| id as usize >= self.vocab) {
                bail!(
                    "id {} at index {at}; the vocabulary has {}",
                    ids[at],
                    self.vocab
                );
            }
        }
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + args.max_tokens;
        let timed = match args.no_speed {
            true => 0,
            false => args.prompt + args.tokens,
        };
        let needed = longest.max(timed);
        if needed > self.context {
            let text = format!(
                "{needed} tokens are needed; the context is {}",
                self.context
            );
            return Err(Usage(text).into());
        }
        Ok(())
    }

    /// Says what is going on.
    fn tell(&self, i: usize, what: &str) {
        tell!("{}: {what} ({})", ["A", "B"][i], self.sides[i].0);
    }

    /// Continues prompts and times one side; nothing is run where neither is asked.
    fn engine(
        &self,
        i: usize,
        prompts: Vec<Vec<u32>>,
        timed: Vec<Vec<u32>>,
    ) -> Result<(SideFound, Vec<Vec<u32>>)> {
        let args = self.args;
        let (side, common) = &self.sides[i];
        let model = &self.models[i];
        let mut found = SideFound {
            side: side.text.clone(),
            model: model
                .path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            model_bytes: model.file_bytes(),
            ..SideFound::default()
        };
        let mut continued = Vec::new();
        let continues = args.max_tokens > 0 && !prompts.is_empty();
        if !continues {
            continued = vec![Vec::new(); prompts.len()];
        }
        if !continues && timed.is_empty() {
            return Ok((found, continued));
        }
        self.tell(
            i,
            if timed.is_empty() {
                "continuing prompts"
            } else {
                "timing"
            },
        );
        let task = Task::Engine {
            prompts: if continues { prompts } else { Vec::new() },
            max_tokens: args.max_tokens,
            stop_ids: self
                .tokenizer
                .as_ref()
                .map(Tokenizer::stop_ids)
                .unwrap_or_default(),
            timed,
            timed_tokens: args.tokens,
        };
        let mut runs = Vec::new();
        let done = side.run(common, task, &mut |said, _| {
            match said {
                Say::Continued { ids } => continued.push(ids),
                Say::Timed(run) => runs.push(run),
                _ => {}
            }
            Ok(())
        })?;
        if let Say::Done {
            peak_memory,
            others,
        } = done
        {
            found.speed = Speed::of(runs, args.prompt, args.tokens, peak_memory, others);
        }
        Ok((found, continued))
    }

    /// The reference's logits for the beginning of the first sequence, where nearness to it counts.
    fn judge(&self, sequences: &[Sequence]) -> Result<Option<Kept>> {
        if self.args.prefer != Prefer::Fidelity {
            return Ok(None);
        }
        let Some(first) = sequences.first() else {
            return Ok(None);
        };
        let ids = first.ids[..first.ids.len().min(JUDGED)].to_vec();
        tell!(
            "reference: scoring {} tokens to judge by; it is slow",
            ids.len()
        );
        let mut kept = Kept::new((ids.len() * self.vocab * 4) as u64)?;
        let side = Side {
            text: "reference".into(),
            program: None,
            ..self.sides[0].0.clone()
        };
        let common = Common {
            backend: "reference".into(),
            ..self.sides[0].1.clone()
        };
        let task = Task::Score {
            sequences: vec![ids],
            trace: None,
        };
        side.run(&common, task, &mut |said, values| {
            if let Say::Ready { .. } = said {
                return Ok(());
            }
            kept::rows(&said, &values, &mut |row| kept.push(row))
        })?;
        Ok(Some(kept))
    }

    /// Scores both sides, and traces them.
    fn score(&self, sequences: &[Sequence], mut judge: Option<Kept>) -> Result<Scored> {
        let args = self.args;
        let ids: Vec<&[u32]> = sequences.iter().map(|s| &s.ids[..]).collect();
        let longest = ids
            .iter()
            .max_by_key(|ids| ids.len())
            .copied()
            .unwrap_or(&[]);
        let traced = longest[..longest.len().min(args.trace_tokens)].to_vec();
        let task = || Task::Score {
            sequences: ids.iter().map(|ids| ids.to_vec()).collect(),
            trace: args.trace.then(|| traced.clone()),
        };
        let rows: usize = ids.iter().map(|ids| ids.len()).sum();
        let traced_values = match args.trace {
            true => traced.len() * traced_width(&self.config),
            false => 0,
        };
        let mut kept = Kept::new(4 * (rows * self.vocab + traced_values) as u64)?;
        let mut ready = [const { (String::new(), 0.0) }; 2];
        let mut from_judge = [const { Vec::new() }; 2];
        let mut positions: Vec<Position> = Vec::new();
        let (mut stages, mut only_one) = (Stages::default(), 0);
        for i in 0..2 {
            self.tell(
                i,
                if args.trace {
                    "scoring and tracing"
                } else {
                    "scoring"
                },
            );
            let (side, common) = &self.sides[i];
            let each = &mut |said: Say, values: Vec<f32>| {
                if let Say::Ready {
                    description,
                    load_s,
                } = said
                {
                    ready[i] = (description, load_s);
                    return Ok(());
                }
                kept::rows(&said, &values, &mut |row| {
                    if let (Key::Row(s, p), Some(judge)) = (row.key, &mut judge)
                        && let Some(truth) = judge.get(row.key)?
                    {
                        from_judge[i].push(fidelity::compare(s, p, &[], &truth, row.values)?);
                    }
                    if i == 0 {
                        return kept.push(row);
                    }
                    match (row.key, kept.get(row.key)?) {
                        (Key::Row(s, p), Some(a)) => {
                            let ids = ids.get(s).copied().unwrap_or(&[]);
                            positions.push(fidelity::compare(s, p, ids, &a, row.values)?);
                        }
                        (Key::Row(s, p), None) => {
                            bail!("B has sequence {s}, position {p}; A has not")
                        }
                        (Key::Stage(layer, stage, p), Some(a)) => {
                            stages.add(layer, stage, p, &a, row.values);
                        }
                        (Key::Stage(_, _, p), None) => only_one += usize::from(p == 0),
                    }
                    Ok(())
                })
            };
            side.run(common, task(), each)?;
        }
        ensure!(
            positions.len() == rows,
            "{} of {rows} positions were scored",
            positions.len()
        );
        let trace = args.trace.then(|| {
            let same = arithmetic(&ready[0].0) == arithmetic(&ready[1].0);
            let tolerance = args.tolerance.unwrap_or(if same { SAME } else { OTHER });
            let errors = stages.errors();
            only_one += kept.stages().saturating_sub(errors.len());
            TraceFound {
                tokens: traced.len(),
                tolerance,
                first_beyond: errors.iter().find(|e| e.relative_l2 > tolerance).cloned(),
                stages: errors,
                only_one,
            }
        });
        let judged = judge.map(|_| Judged {
            positions: from_judge[0].len(),
            a_mean_kl: Fidelity::of(&from_judge[0]).mean_kl,
            b_mean_kl: Fidelity::of(&from_judge[1]).mean_kl,
        });
        Ok(Scored {
            ready,
            positions,
            trace,
            judged,
        })
    }
}

/// What a back end that describes itself so computes in: `f32`, or in its own way.
fn arithmetic(description: &str) -> &str {
    let name = description.split(' ').next().unwrap_or("");
    match name == "reference" || description.starts_with("mlx (cpu ") {
        true => "f32",
        false => name,
    }
}

/// Values that a trace has of a token.
fn traced_width(config: &Config) -> usize {
    let heads = config.heads * config.head_dim;
    let qkv = heads + 2 * config.kv_heads * config.head_dim;
    let experts = config.experts + config.experts_used * config.expert_width;
    let layer = qkv + heads + 2 * config.hidden + experts;
    config.layers * layer + config.hidden + config.vocab
}

/// What both sides predicted.
struct Scored {
    /// What computes, and seconds to load it, by side.
    ready: [(String, f64); 2],
    positions: Vec<Position>,
    trace: Option<TraceFound>,
    judged: Option<Judged>,
}
