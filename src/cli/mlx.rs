//! `gossamer mlx`: the private Python environment of the MLX engine.

use crate::mlx::{self, Environment, Variant};
use anyhow::{Result, bail};
use clap::{Subcommand, ValueEnum};
use std::{io::Write, path::PathBuf};

/// What `mlx` reads.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: What,
}

const EXAMPLES: &str = "\
Examples:
  gossamer mlx setup
  gossamer pull mlx-community/gpt-oss-20b-MXFP4-Q8
  gossamer run --backend mlx --model mlx-community/gpt-oss-20b-MXFP4-Q8 \"What is 17 + 25?\"

The environment is a folder of its own (XDG_DATA_HOME/gossamer/mlx, ~/Library/Application Support/gossamer/mlx): to be
rid of it, remove that. --mlx-python or GOSSAMER_MLX_PYTHON names another Python that has mlx-lm.";

#[derive(Subcommand, Debug)]
enum What {
    /// Make the environment: mlx-lm and what it needs, from PyPI, pinned and checked by hash
    Setup {
        /// What MLX is to compute on; auto: what this machine has
        #[arg(long, value_enum, default_value_t = Choice::Auto)]
        variant: Choice,
        /// Make it anew, also if it is there
        #[arg(long)]
        force: bool,
    },
    /// Say what is there: its Python, versions, what computes
    Status {
        /// The Python of another environment
        #[arg(long, value_name = "FILE")]
        mlx_python: Option<PathBuf>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// A variant, or this machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// What this machine has.
    Auto,
    /// The processor (Linux).
    Cpu,
    /// NVIDIA GPUs (Linux).
    Cuda13,
    /// Apple's GPUs.
    Macos,
}

/// Sets the environment up, or looks at it.
pub fn run(args: Args) -> Result<()> {
    match args.command {
        What::Setup { variant, force } => {
            let variant = match variant {
                Choice::Auto => Variant::of_this_machine()?,
                Choice::Cpu => Variant::Cpu,
                Choice::Cuda13 => Variant::Cuda13,
                Choice::Macos => Variant::Macos,
            };
            let hello = Environment::own()?.set_up(variant, force, &mut |text| tell!("{text}"))?;
            tell!("ready: {}", mlx::describe(&hello));
            Ok(())
        }
        What::Status { mlx_python, json } => {
            let status = mlx::status(mlx_python.as_deref())?;
            let text = match (&status.hello, json) {
                (_, true) => serde_json::to_string_pretty(&status)?,
                (Some(hello), _) => format!(
                    "{}\n{}, Python {}",
                    mlx::describe(hello),
                    status.python.display(),
                    hello.python
                ),
                (None, _) => bail!("{}", status.problem.unwrap_or_default()),
            };
            writeln!(std::io::stdout().lock(), "{text}")?;
            Ok(())
        }
    }
}
