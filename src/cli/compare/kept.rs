//! What A said, kept on disk until B says the same: two engines are never in memory at once.

use super::wire::Say;
use crate::trace::{Piece, Stage};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::HashMap,
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
};

/// Where a row of A's stands: logits by sequence and position, or a stage's results by layer, stage and position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// Logits.
    Row(usize, usize),
    /// A stage's.
    Stage(Option<usize>, Stage, usize),
}

/// A row by its key.
#[derive(Debug)]
pub struct Row<'a> {
    pub key: Key,
    pub values: &'a [f32],
}

/// Hands on the rows of what a child said.
///
/// # Errors
/// When it makes no sense, or `each` fails.
pub fn rows(said: &Say, values: &[f32], each: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    match *said {
        Say::Row { sequence, position } => each(Row {
            key: Key::Row(sequence, position),
            values,
        }),
        Say::Stage {
            layer,
            ref stage,
            start,
            width,
        } => {
            // Stages that a later build has and this one doesn't are no business of this one.
            let Some(stage) = Stage::from_name(stage) else {
                return Ok(());
            };
            ensure!(
                width > 0 && values.len().is_multiple_of(width),
                "{stage}: {} values in rows of {width}",
                values.len()
            );
            let piece = Piece {
                layer,
                stage,
                start,
                width,
                values,
            };
            piece.rows().try_for_each(|(position, values)| {
                each(Row {
                    key: Key::Stage(layer, stage, position),
                    values,
                })
            })
        }
        _ => bail!("it said something else than rows"),
    }
}

/// Rows in a temporary file.
pub struct Kept {
    file: BufWriter<File>,
    /// Values before a row, and its own.
    places: HashMap<Key, (u64, usize)>,
    end: u64,
}

impl Kept {
    /// Room for `bytes`, or an error that says what is free.
    pub fn new(bytes: u64) -> Result<Kept> {
        let folder = std::env::temp_dir();
        let free = fs4::available_space(&folder)
            .with_context(|| format!("free space of {}", folder.display()))?;
        ensure!(
            bytes < free,
            "{}: {} are needed for logits and {} are free; compare fewer tokens (--max-tokens, --ids), or \
             set TMPDIR",
            folder.display(),
            crate::hub::human(bytes),
            crate::hub::human(free)
        );
        let file = tempfile::tempfile_in(&folder)
            .with_context(|| format!("write in {}", folder.display()))?;
        Ok(Kept {
            file: BufWriter::with_capacity(1 << 20, file),
            places: HashMap::new(),
            end: 0,
        })
    }

    /// Keeps a row.
    pub fn push(&mut self, row: Row) -> Result<()> {
        for value in row.values {
            self.file.write_all(&value.to_le_bytes())?;
        }
        self.places.insert(row.key, (self.end, row.values.len()));
        self.end += row.values.len() as u64;
        Ok(())
    }

    /// The row of that key, if there is one.
    pub fn get(&mut self, key: Key) -> Result<Option<Vec<f32>>> {
        let Some(&(start, len)) = self.places.get(&key) else {
            return Ok(None);
        };
        self.file.flush()?;
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start(4 * start))?;
        let mut bytes = vec![0; 4 * len];
        file.read_exact(&mut bytes)?;
        file.seek(SeekFrom::End(0))?;
        let (values, _) = bytes.as_chunks::<4>();
        Ok(Some(
            values.iter().map(|&v| f32::from_le_bytes(v)).collect(),
        ))
    }

    /// Stages of which anything is kept.
    pub fn stages(&self) -> usize {
        let first = |key: &&Key| matches!(key, Key::Stage(_, _, 0));
        self.places.keys().filter(first).count()
    }
}
