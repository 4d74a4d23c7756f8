//! Makes `assets/o200k.zlib` from the table inside the `tiktoken-rs` crate:
//!
//! ```sh
//! cargo run --release --example o200k_vocabulary > assets/o200k.zlib
//! ```

use flate2::{Compression, write::ZlibEncoder};
use std::io::{self, Write};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let judge = tiktoken_rs::o200k_base()?;
    let mut lengths = Vec::new();
    let mut bytes = Vec::new();
    for id in 0..199_998 {
        let token = judge.decode_bytes(&[id])?;
        lengths.push(u8::try_from(token.len())?);
        bytes.extend(token);
    }
    let mut out = ZlibEncoder::new(io::stdout().lock(), Compression::best());
    out.write_all(&lengths)?;
    out.write_all(&bytes)?;
    out.finish()?.flush()?;
    Ok(())
}
