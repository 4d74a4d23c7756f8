//! The long-context benchmark: `gossamer bench --long`, and the program `gpt-oss-128k-benchmark`.
//!
//! Every engine here is measured at its events, at depths from 1k to 128k tokens, as far as a budget of time
//! goes; what was left out is said, and why. Each measurement is kept as soon as it is known, so that an
//! interrupted run goes on where it was.

mod course;
mod limit;
mod needle;
mod open;
mod pace;
mod page;
mod record;
mod result;

use super::{
    Usage,
    model::{Common, positive},
    serve::some_time,
};
use crate::{backend::Target, hub, machine, mlx};
use anyhow::{Context, Result};
use clap::Parser;
use course::LeftOut;
use indicatif::ProgressBar;
use open::Subject;
use pace::Budget;
use record::{Key, Record, Records};
use result::Outcome;
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

/// The depths of gpt-oss's context.
const LENGTHS: [usize; 7] = [1024, 4096, 8192, 16_384, 32_768, 65_536, 131_072];

/// What the long benchmark reads besides the model's flags.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
#[command(next_help_heading = "The long benchmark (bench --long)")]
pub struct Flags {
    /// Time for all of it, such as 5m: lengths and repeats are chosen to fit. Default: 10m
    #[arg(long, value_name = "TIME", value_parser = some_time)]
    pub budget: Option<Duration>,
    /// Depths to measure, in tokens, separated by commas. Default: 1024 to 131072
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', value_parser = positive)]
    pub lengths: Vec<usize>,
    /// Where the result goes, as JSON; the report (.html) and the measurements so far (.jsonl) lie beside it.
    /// Default: gpt-oss-128k-benchmark.json
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Measure everything again, also what an earlier run has measured
    #[arg(long)]
    pub fresh: bool,
}

/// Measures gpt-oss on this machine, up to its whole context of 128k tokens
#[derive(Parser, Debug)]
#[command(name = "gpt-oss-128k-benchmark", version, max_term_width = 100, after_help = EXAMPLES)]
struct Program {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    flags: Flags,
    /// Print the result as JSON instead of tables
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  gpt-oss-128k-benchmark                            the pulled gpt-oss-20b, 10 minutes
  gpt-oss-128k-benchmark --budget 1h
  gpt-oss-128k-benchmark --model FILE --backend cpu --lengths 1024,8192

Measured are the time to load, phase by phase; reading a prompt and decoding at each depth, with the memory they
take; a next turn with and without the cache; facts found again in a long text; several streams at once; and what
part of the memory's bandwidth that is. Without --backend: every back end that is here. Started again, it goes on
where it was. Run it on an otherwise idle machine.";

/// The program `gpt-oss-128k-benchmark`.
pub fn main() -> ExitCode {
    super::exit(Program::try_parse(), |mut program| {
        if program.common.model.is_none() {
            program.common.model = hub::find("gpt-oss-20b").map(|_| "gpt-oss-20b".to_owned());
        }
        run(program.common, &program.flags, program.json)
    })
}

/// Measures, and writes and prints what was found.
pub fn run(common: Common, flags: &Flags, json: bool) -> Result<()> {
    let started = Instant::now();
    let time = flags.budget.unwrap_or(Duration::from_secs(600));
    let budget = Budget::new(time);
    let output = flags.output.clone();
    let output = output.unwrap_or_else(|| "gpt-oss-128k-benchmark.json".into());
    if output.extension().is_none_or(|ext| ext != "json") {
        let text = format!(
            "--output {}: expected a name that ends in .json",
            output.display()
        );
        return Err(Usage(text).into());
    }
    let mut lengths = match flags.lengths.as_slice() {
        [] => LENGTHS.to_vec(),
        given => given.to_vec(),
    };
    lengths.sort_unstable();
    lengths.dedup();
    if common.model.is_none() {
        tell!(
            "This is the small demo model: its figures say nothing of gpt-oss. `gossamer pull gpt-oss-20b` \
             fetches the real one."
        );
    }
    let checkpoint = common.open_checkpoint()?;
    let model = checkpoint.config()?;
    let seed = common.seed.unwrap_or(1);
    let threads = match common.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let key = Key {
        gossamer: env!("CARGO_PKG_VERSION").into(),
        model: model.name.clone(),
        file_bytes: checkpoint.file_bytes(),
        machine: machine::cpu_name().unwrap_or_else(|| "unknown processor".into()),
        threads,
        context: common.ctx_size.unwrap_or(model.context),
        seed,
    };
    let file = checkpoint
        .path()
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let is_folder = checkpoint.path().is_dir();
    drop(checkpoint);
    let mut records = Records::open(&output.with_extension("jsonl"), &key, flags.fresh)?;
    if records.resumed > 0 {
        tell!(
            "going on after {} measurements (--fresh begins anew)",
            records.resumed
        );
    }
    let native = |(name, target)| (name, Some(target));
    let mut targets: Vec<(String, Option<Target>)> = match common.backend.as_str() {
        "auto" => Target::all().into_iter().map(native).collect(),
        "mlx" => Vec::new(),
        name => vec![(name.to_owned(), Some(Target::of(name)?))],
    };
    if common.is_mlx()
        || common.backend == "auto" && is_folder && mlx::find(common.mlx_python.as_deref()).is_ok()
    {
        targets.push(("mlx".to_owned(), None));
    }
    let watch = machine::Watch::start();
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(200));
    let (mut left_out, mut sums) = (Vec::new(), Vec::new());
    let engines = targets.len();
    for (at, (name, target)) in targets.into_iter().enumerate() {
        spinner.set_message(format!("{name}: loading"));
        let share = budget.share(engines - at);
        let opened = match target {
            Some(target) => Subject::open(&name, target, &common),
            None => Subject::open_mlx(&common, &lengths),
        };
        let subject = match opened {
            Ok(subject) => subject,
            // One of several: the others are still worth measuring.
            Err(why) if engines > 1 => {
                let why = format!("{why:#}");
                left_out.push(LeftOut { what: name, why });
                continue;
            }
            Err(why) => return Err(why),
        };
        let load = Record::Load(subject.load.clone());
        if !records.has(&load.name()) {
            records.push(load)?;
        }
        let say = |text: String| {
            if spinner.is_hidden() {
                tell!("{text}");
            }
            spinner.set_message(text);
        };
        match course::run(&subject, &lengths, share, &mut records, seed, &say) {
            Ok(skipped) => left_out.extend(skipped),
            Err(why) if engines > 1 => left_out.push(LeftOut {
                what: name.clone(),
                why: format!("{why:#}"),
            }),
            Err(why) => return Err(why),
        }
        sums.push((name, subject.reads));
    }
    let other_load = watch.stop();
    spinner.finish_and_clear();
    let outcome = Outcome {
        key,
        file: file.unwrap_or_default(),
        is_demo: common.model.is_none(),
        model_context: model.context,
        memory: machine::total_memory(),
        budget: time,
        took: started.elapsed(),
        resumed: records.resumed,
        records: records.all,
        reads: sums,
        other_load,
        left_out,
    };
    let whole = serde_json::to_string_pretty(&outcome.json())? + "\n";
    write(&output, &whole)?;
    page::page(&outcome).write(&output.with_extension("html"))?;
    let printed = if json { whole } else { outcome.table() };
    std::io::stdout().lock().write_all(printed.as_bytes())?;
    tell!("written: {} and .html", output.display());
    Ok(())
}

/// Writes a file that has its name only once it is whole.
fn write(path: &Path, text: &str) -> Result<()> {
    let partial = path.with_extension("json.incomplete");
    let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, path));
    written.with_context(|| format!("writing {}", path.display()))
}
