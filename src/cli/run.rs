//! `gossamer run`: one prompt in, one answer out.

use super::model::Common;
use anyhow::Result;

/// What `run` reads.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    common: Common,
}

/// Answers one prompt.
pub fn run(args: Args) -> Result<()> {
    let gguf = args.common.open_gguf()?;
    args.common.load(&gguf)?;
    Ok(())
}
