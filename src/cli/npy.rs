//! NumPy's .npy format, written row by row: f32 `[rows, cols]` in bounded memory.

use anyhow::{Context, Result, ensure};
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// A file under way. It takes its name in [`Writer::finish`]; until then it is `NAME.incomplete`,
/// removed when the writer is dropped.
pub struct Writer {
    path: PathBuf,
    finished: bool,
    file: BufWriter<File>,
    cols: usize,
    missing: usize,
}

impl Writer {
    /// Begins a file that will hold `rows` rows of `cols` values.
    pub fn create(path: &Path, rows: usize, cols: usize) -> Result<Writer> {
        let incomplete = incomplete(path);
        let file = File::create(&incomplete)
            .with_context(|| format!("create {}", incomplete.display()))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let header =
            format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
        // Magic, version 1.0, header length; the data begin at a multiple of 64.
        let width = (10 + header.len() + 1).next_multiple_of(64) - 10 - 1;
        file.write_all(b"\x93NUMPY\x01\x00")?;
        file.write_all(&(width as u16 + 1).to_le_bytes())?;
        writeln!(file, "{header:width$}")?;
        Ok(Writer {
            path: path.into(),
            finished: false,
            file,
            cols,
            missing: rows,
        })
    }

    /// Appends one row.
    pub fn row(&mut self, values: &[f32]) -> Result<()> {
        ensure!(
            values.len() == self.cols && self.missing > 0,
            "a row that the .npy header does not announce"
        );
        self.missing -= 1;
        for value in values {
            self.file.write_all(&value.to_le_bytes())?;
        }
        Ok(())
    }

    /// Gives the file its name, once every announced row is in it.
    pub fn finish(mut self) -> Result<()> {
        ensure!(
            self.missing == 0,
            "{} rows missing in {}",
            self.missing,
            self.path.display()
        );
        self.file.flush()?;
        let incomplete = incomplete(&self.path);
        std::fs::rename(&incomplete, &self.path)
            .with_context(|| format!("rename {}", incomplete.display()))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // The error that ended the run is on its way; nothing here could say more.
            let _ = std::fs::remove_file(incomplete(&self.path));
        }
    }
}

fn incomplete(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".incomplete");
    name.into()
}
