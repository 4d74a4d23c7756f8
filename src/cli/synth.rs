//! `gossamer synth`: a model with random weights, for measuring and testing.

use crate::{
    synth::{Preset, Synth},
    tokenizer::Vocabulary,
};
use anyhow::Result;
use clap::{ValueEnum, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use std::{path::PathBuf, time::Instant};

/// Write a model with random weights in the layout of the released files
///
/// Its answers mean nothing, but every engine that reads gpt-oss reads it, at the same speed as the
/// real model. The same seed gives the same bytes on any machine.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  gossamer synth m.gguf                       12 GB, shaped as gpt-oss-20b
  gossamer synth t.gguf --preset tiny         a few megabytes, for tests
  gossamer synth big.gguf --preset 120b --sparse
                                              header and size only, takes no disk")]
pub struct Args {
    /// The file to write; one of that name is replaced when the new one is whole
    #[arg(value_name = "OUT.gguf")]
    out: PathBuf,
    /// Shape
    #[arg(long, value_enum, default_value_t = Preset::B20)]
    preset: Preset,
    /// Seed of the random weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Layers, instead of the preset's
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1000))]
    layers: Option<u16>,
    /// Experts a layer, instead of the preset's; a token uses 4
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(4..=1000))]
    experts: Option<u16>,
    /// Vocabulary. Default: o200k for 20b and 120b, demo for tiny
    #[arg(long, value_enum)]
    vocab: Option<Vocab>,
    /// Write header and true size only; the data reads as zeros and takes no disk
    #[arg(long)]
    sparse: bool,
}

/// Vocabularies to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Vocab {
    /// The one of the demo model inside this program
    Demo,
    /// gpt-oss's own: o200k_harmony, 201,088 tokens
    O200k,
    /// The 256 bytes and Harmony's specials
    Bytes,
}

impl Vocab {
    fn load(self) -> Result<Vocabulary> {
        match self {
            Vocab::Demo => Vocabulary::from_gguf(&super::model::demo()?),
            Vocab::O200k => Vocabulary::o200k_harmony(),
            Vocab::Bytes => Ok(Vocabulary::bytes()),
        }
    }
}

/// Writes the file; tells its size and time on stderr.
pub fn run(args: Args) -> Result<()> {
    let start = Instant::now();
    let default = match args.preset {
        Preset::Tiny => Vocab::Demo,
        Preset::B20 | Preset::B120 => Vocab::O200k,
    };
    let vocabulary = args.vocab.unwrap_or(default).load()?;
    let mut config = args.preset.config(vocabulary.tokens.len());
    config.layers = args.layers.map_or(config.layers, usize::from);
    config.experts = args.experts.map_or(config.experts, usize::from);
    let synth = Synth::new(&config, &vocabulary, args.seed)?;

    let bar = ProgressBar::new(synth.file_bytes());
    if let Ok(style) =
        ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    synth.write(&args.out, args.sparse, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    tell!(
        "{}: {} tensors, {} bytes{}, {:.1} s",
        args.out.display(),
        synth.tensor_count(),
        synth.file_bytes(),
        if args.sparse { " (sparse)" } else { "" },
        start.elapsed().as_secs_f64()
    );
    Ok(())
}
