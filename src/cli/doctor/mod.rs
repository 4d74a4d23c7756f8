//! `gossamer doctor`: what this machine has to run models with, what is missing, and what to do about it.
//!
//! Looks at everything and changes nothing; what is missing is a finding, not an error. With `--report` it also
//! measures, and writes all of it to one file.

mod look;
mod report;

use super::serve::some_time;
use crate::hub::human;
use anyhow::Result;
use serde_json::{Value, json};
use std::{fmt::Write as _, io::Write as _, path::PathBuf, time::Duration};

/// What `doctor` reads.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct Args {
    /// Print one JSON object instead of a list
    #[arg(long)]
    json: bool,
    /// Also compare the engines that are here and run the long benchmark, and write all of it to one file, to be
    /// sent to the makers
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// The model of the report: a GGUF file, a folder, or the name of a pulled one. Default: what was pulled, else
    /// the small demo model inside this program
    #[arg(long, short = 'm', value_name = "FILE|NAME", requires = "report")]
    model: Option<String>,
    /// Time for the report's benchmark, such as 5m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = some_time, requires = "report")]
    budget: Duration,
}

const HELP: &str = "\
Examples:
  gossamer doctor
  gossamer doctor --json | jq '.findings[] | select(.state != \"ready\")'
  gossamer doctor --report mac.json        five minutes, and one file to send

Nothing is sent by this program. The report holds what is printed here, the comparison's and the benchmark's figures
and last lines, and no name of the user's folder.";

/// How something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It works.
    Ready,
    /// It isn't here; nothing is wrong with that.
    Missing,
    /// It is here, and doesn't work as it should.
    Problem,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Ready => "ready",
            State::Missing => "missing",
            State::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone)]
struct Finding {
    /// A back end, or what models need besides.
    what: &'static str,
    state: State,
    /// What was found, a sentence or a name.
    found: String,
    /// What to do, where something can be done.
    advice: Option<String>,
}

impl Finding {
    fn ready(what: &'static str, found: impl Into<String>) -> Finding {
        Finding {
            what,
            state: State::Ready,
            found: found.into(),
            advice: None,
        }
    }

    fn missing(what: &'static str, found: impl Into<String>) -> Finding {
        Finding {
            state: State::Missing,
            ..Finding::ready(what, found)
        }
    }

    fn problem(what: &'static str, found: impl Into<String>) -> Finding {
        Finding {
            state: State::Problem,
            ..Finding::ready(what, found)
        }
    }

    fn advising(mut self, advice: impl Into<String>) -> Finding {
        self.advice = Some(advice.into());
        self
    }
}

/// Looks and prints.
pub fn run(args: Args) -> Result<()> {
    let model = report::model(args.model.as_deref())?;
    let (machine, findings) = (look::machine(), look::findings());
    if let Some(file) = &args.report {
        let mlx = findings.iter().find(|finding| finding.what == look::MLX);
        let ready = mlx.is_some_and(|finding| finding.state == State::Ready);
        let facts = as_json(&machine, &findings);
        report::write(file, facts, model, args.budget, ready)?;
    }
    let text = match args.json {
        true => serde_json::to_string_pretty(&as_json(&machine, &findings))? + "\n",
        false => listing(&machine, &findings),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// The program and the machine it runs on.
struct Machine {
    program: String,
    system: String,
    cpu: Option<String>,
    processors: usize,
    memory: Option<u64>,
    free: Option<u64>,
}

fn as_json(machine: &Machine, findings: &[Finding]) -> Value {
    let findings = findings.iter().map(|finding| {
        json!({
            "what": finding.what,
            "state": finding.state.name(),
            "found": finding.found,
            "advice": finding.advice,
        })
    });
    json!({
        "gossamer": machine.program,
        "system": machine.system,
        "cpu": machine.cpu,
        "processors": machine.processors,
        "memory_bytes": machine.memory,
        "free_memory_bytes": machine.free,
        "findings": findings.collect::<Vec<_>>(),
    })
}

fn listing(machine: &Machine, findings: &[Finding]) -> String {
    let memory = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), human);
    let cpu = machine.cpu.as_deref().unwrap_or("unknown processor");
    let rows = [
        ("gossamer", machine.program.clone()),
        ("system", machine.system.clone()),
        (
            "processor",
            format!("{cpu}, {} threads", machine.processors),
        ),
        (
            "memory",
            format!("{}, {} free", memory(machine.memory), memory(machine.free)),
        ),
    ];
    let mut out = String::new();
    for (name, text) in rows {
        let _ = writeln!(out, "  {name:<12}{text}");
    }
    out.push('\n');
    for finding in findings {
        let mark = match finding.state {
            State::Ready => '+',
            State::Missing => '-',
            State::Problem => '!',
        };
        let _ = writeln!(out, "{mark} {:<12}{}", finding.what, finding.found);
        if let Some(advice) = &finding.advice {
            let _ = writeln!(out, "{:14}{advice}", "");
        }
    }
    out.push_str("\n+ ready   - not here   ! needs attention\n");
    out
}
