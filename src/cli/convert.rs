//! `gossamer convert`: a folder of safetensors to one GGUF file.

use super::{Usage, model::find};
use crate::{checkpoint::Checkpoint, convert::Conversion, hub};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::Instant,
};

/// Write a GGUF file from MLX's folder or OpenAI's safetensors
///
/// The file is mapped at once where a folder has to be rearranged at every load, and llama.cpp and what is
/// built on it read it too. Every value is the folder's: MXFP4 blocks are reordered, BF16 stays, affine
/// matrices that a Q8_0 file was the origin of become that file's, others F32.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  gossamer convert ~/models/gpt-oss-20b gpt-oss-20b.gguf
  gossamer convert mlx-community/gpt-oss-20b-MXFP4-Q8 gpt-oss-20b.gguf --f16")]
pub struct Args {
    /// A folder with config.json, tokenizer.json and model*.safetensors, or the name of a pulled one
    #[arg(value_name = "FOLDER|NAME")]
    from: String,
    /// The file to write; a GGUF file of that name is replaced when the new one is whole
    #[arg(value_name = "OUT.gguf")]
    out: PathBuf,
    /// Round to F16 what only F32 can hold: half the size, and twice the speed, of those matrices
    #[arg(long)]
    f16: bool,
}

/// Writes the file; tells on stderr what differs from the folder.
pub fn run(args: Args) -> Result<()> {
    let start = Instant::now();
    let path = find(&args.from)?;
    let folder = match Checkpoint::open(&path)? {
        Checkpoint::Folder(folder) => folder,
        Checkpoint::Gguf(_) => {
            let text = format!(
                "{}: expected a folder of safetensors, found a GGUF file: it runs as it is (--model)",
                path.display()
            );
            return Err(Usage(text).into());
        }
    };
    refuse_other_files(&args.out)?;
    let spinner = ProgressBar::new_spinner().with_message("reading scales and vocabulary");
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    let conversion = Conversion::new(&folder, args.f16)?;
    spinner.finish_and_clear();
    for note in &conversion.notes {
        tell!("{}: {note}", path.display());
    }
    let bar = ProgressBar::new(conversion.file_bytes());
    let style = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    conversion.write(&args.out, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    tell!(
        "{}: {} tensors, {}, {:.1} s",
        args.out.display(),
        conversion.tensor_count(),
        hub::human(conversion.file_bytes()),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Only a GGUF file may be replaced: the folder's own files, or a mistyped name's, are not.
fn refuse_other_files(out: &Path) -> Result<()> {
    let mut magic = Vec::new();
    match File::open(out) {
        Ok(file) => file.take(4).read_to_end(&mut magic),
        Err(_) => return Ok(()),
    }
    .with_context(|| format!("read {}, which is to be replaced", out.display()))?;
    if magic.is_empty() || magic == *b"GGUF" {
        return Ok(());
    }
    let text = format!(
        "{}: exists, and is no GGUF file: it is not replaced. Name another file, or remove it",
        out.display()
    );
    Err(Usage(text).into())
}
