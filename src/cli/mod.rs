//! The command line: one module a command, listed here and nowhere else.
//!
//! A command is `Args` (what clap reads) and `run(Args)`. Answers go to stdout, everything about
//! them to stderr. Exit codes: 0, 1 on an error, 2 on wrong usage; a reader that closes stdout early
//! (`| head`) ends the program quietly.

mod answer;
mod batch;
mod bench;
mod chat;
mod compare;
mod convert;
mod doctor;
mod engine;
pub mod inspect;
mod interrupt;
mod long;
mod mlx;
pub mod model;
mod npy;
mod plan;
mod pull;
mod run;
mod sampling;
mod score;
pub mod serve;
mod synth;

use clap::{Parser, Subcommand};
use std::{io, process::ExitCode};

/// Runs OpenAI's gpt-oss models on this machine.
#[derive(Parser)]
#[command(name = "gossamer", version, max_term_width = 100, after_help = EXAMPLES)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  gossamer run \"What is 17 + 25?\"          ask the small demo model inside this program
  gossamer pull gpt-oss-20b                 fetch the real model (12 GB)
  gossamer chat --model gpt-oss-20b         talk to it
  gossamer serve --model gpt-oss-20b        serve it to any OpenAI client
  gossamer bench --model gpt-oss-20b        measure it on this machine

`gossamer <command> --help` explains each command with examples.";

#[derive(Subcommand)]
enum Command {
    /// Answer one prompt, or continue raw text
    Run(Box<run::Args>),
    /// Talk with a model
    Chat(Box<chat::Args>),
    /// Serve OpenAI's API over HTTP
    Serve(Box<serve::Args>),
    /// Answer a file of conversations
    Batch(Box<batch::Args>),
    /// Show what a model's files hold: shape, metadata, tensors, bytes by type
    Inspect(inspect::Args),
    /// Write a GGUF file from MLX's folder or OpenAI's safetensors
    Convert(convert::Args),
    /// Download a model from a Hugging Face hub, resumed and checked
    Pull(pull::Args),
    /// Say what this machine has to run models with, and what is missing
    Doctor(doctor::Args),
    /// Say what a model takes of memory, and what fits
    Plan(Box<plan::Args>),
    /// Set up Python and mlx-lm for --backend mlx
    Mlx(mlx::Args),
    /// Measure speed against what this machine's memory allows
    Bench(Box<bench::Args>),
    /// Compare two engines, models or builds: how near, how fast, which to use
    Compare(Box<compare::Args>),
    /// One side of a comparison, in a process of its own
    #[command(hide = true)]
    CompareSide,
    /// Write the logits of given token ids, for comparison with other engines
    Score(Box<score::Args>),
    /// Write a model with random weights in the layout of the released files
    Synth(synth::Args),
}

/// Wrong usage that clap could not see (flags that exclude each other, an empty prompt): exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Runs the program and returns its exit code: 0, 1 on an error, 2 on wrong usage.
pub fn main() -> ExitCode {
    exit(Cli::try_parse(), |cli| match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Chat(args) => chat::run(*args),
        Command::Serve(args) => serve::run(*args),
        Command::Bench(args) => bench::run(*args),
        Command::Compare(args) => compare::run(*args),
        Command::CompareSide => compare::run_side(),
        Command::Plan(args) => plan::run(*args),
        Command::Batch(args) => batch::run(*args),
        Command::Doctor(args) => doctor::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Mlx(args) => mlx::run(args),
        Command::Score(args) => score::run(*args),
        Command::Synth(args) => synth::run(args),
    })
}

/// Runs the program `gpt-oss-128k-benchmark`; exit codes as [`main`]'s.
pub fn benchmark() -> ExitCode {
    long::main()
}

/// Runs what was parsed, tells its error, and says how the program ends.
fn exit<T>(parsed: Result<T, clap::Error>, run: impl FnOnce(T) -> anyhow::Result<()>) -> ExitCode {
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    match run(parsed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            crate::notice::fail(&error);
            let usage = error.chain().any(|e| e.is::<Usage>());
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// Whether `error` only says that the reader of stdout went away.
fn closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|e| e.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
