//! What was measured, one JSON object a line, written as soon as it is known: an interrupted benchmark goes
//! on after the last whole line.

use crate::{backend::Footprint, machine::Resident};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

/// What a file of records belongs to; another model, machine or version begins anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Key {
    pub gossamer: String,
    pub model: String,
    pub file_bytes: u64,
    pub machine: String,
    pub threads: usize,
    pub context: usize,
    pub seed: u64,
}

/// One measurement of one back end. Times in seconds, speeds in tokens a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Record {
    Load(Load),
    Depth(Depth),
    Turn(Turn),
    Recall(Recall),
    Streams(Streams),
    Bandwidth(Bandwidth),
}

/// From nothing to the first token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Load {
    pub backend: String,
    /// Back end, instruction set or GPU, threads.
    pub engine: String,
    /// The files are mapped and their header is read.
    pub open_s: f64,
    pub tokenizer_s: f64,
    /// Weights: named, shape-checked, converted where they must be.
    pub weights_s: f64,
    /// The back end: memory made, weights touched or copied to a GPU.
    pub backend_s: f64,
    /// A prompt of one token, on an engine that has run nothing.
    pub first_token_s: f64,
    /// Bytes a second that the memory which holds the weights reads at, measured before anything else.
    pub bandwidth: f64,
    /// Most tokens of a sequence.
    pub context: usize,
    /// What the room that was made takes when all of it is used.
    pub footprint: Footprint,
}

/// One depth: the tokens before it were there already, so many more were read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Depth {
    pub backend: String,
    /// Its name: 1024, 4096 …
    pub length: usize,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Those that the prefix cache held.
    pub cached: usize,
    /// Reading the others.
    pub prefill_s: f64,
    pub prefill_tok_s: f64,
    /// Tokens decoded in each run.
    pub decoded: usize,
    /// Of each run.
    pub decode_tok_s: Vec<f64>,
    /// Waits between tokens, of all runs.
    pub gap_p50_s: f64,
    pub gap_p95_s: f64,
    /// Keys and values of the sequence.
    pub kv_bytes: u64,
    /// What the process holds.
    pub resident: Option<Resident>,
    /// What is taken of the GPU's memory, all of it at the start.
    pub device_bytes: Option<u64>,
    /// The next turn of that conversation: tokens that are new, and the time to its first token.
    pub turn_rows: usize,
    pub turn_s: f64,
}

/// A turn whose conversation is not in the cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    pub backend: String,
    pub length: usize,
    pub rows: usize,
    pub first_token_s: f64,
}

/// One fact in a long text, asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    pub backend: String,
    pub length: usize,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Where in the text: 0 at its beginning, 1 at its end.
    pub place: f64,
    pub expected: String,
    pub said: String,
    pub right: bool,
}

/// Several sequences that decode at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Streams {
    pub backend: String,
    pub streams: usize,
    /// Tokens that each has before.
    pub depth: usize,
    /// Of all together, while all of them decode.
    pub tok_s: f64,
    pub gap_p95_s: f64,
}

/// The memory's speed once more, after the step of that name: a machine's drifts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bandwidth {
    pub backend: String,
    pub after: String,
    /// Bytes a second.
    pub bandwidth: f64,
}

impl Record {
    /// What it is a measurement of.
    pub fn name(&self) -> String {
        match self {
            Record::Load(r) => format!("{} load", r.backend),
            Record::Depth(r) => format!("{} depth {}", r.backend, r.length),
            Record::Turn(r) => format!("{} turn {}", r.backend, r.length),
            Record::Recall(r) => format!("{} recall {} {}", r.backend, r.length, r.place),
            Record::Streams(r) => format!("{} streams {}", r.backend, r.streams),
            Record::Bandwidth(r) => format!("{} bandwidth after {}", r.backend, r.after),
        }
    }
}

/// The records of a benchmark, and the file that keeps them.
pub struct Records {
    path: PathBuf,
    file: File,
    pub all: Vec<Record>,
    /// How many were there before.
    pub resumed: usize,
}

impl Records {
    /// Goes on with the file where its first line is `key`, else begins it anew.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub fn open(path: &Path, key: &Key, fresh: bool) -> Result<Records> {
        let name = || format!("{}", path.display());
        let text = match fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(name),
        };
        // The last line may have been cut in the middle.
        let mut lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let found: Option<Key> = lines
            .next()
            .and_then(|line| serde_json::from_str(line).ok());
        let same = found.as_ref() == Some(key);
        if !fresh && !same && !text.is_empty() {
            tell!(
                "{}: of another model, machine or version: measuring anew",
                path.display()
            );
        }
        let all: Vec<Record> = match same && !fresh {
            true => lines
                .map_while(|line| serde_json::from_str(line).ok())
                .collect(),
            false => Vec::new(),
        };
        let mut records = Records {
            file: File::create(path).with_context(name)?,
            path: path.to_owned(),
            resumed: all.len(),
            all: Vec::new(),
        };
        records.line(key)?;
        for record in all {
            records.push(record)?;
        }
        Ok(records)
    }

    /// Whether there is a record of that name.
    pub fn has(&self, name: &str) -> bool {
        self.all.iter().any(|record| record.name() == name)
    }

    /// Appends a record, on disk too.
    pub fn push(&mut self, record: Record) -> Result<()> {
        self.line(&record)?;
        self.all.push(record);
        Ok(())
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(value)? + "\n";
        let written = self.file.write_all(line.as_bytes());
        written.with_context(|| format!("writing {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u64) -> Key {
        Key {
            gossamer: "0".into(),
            model: "m".into(),
            file_bytes: 7,
            machine: "cpu".into(),
            threads: 2,
            context: 100,
            seed,
        }
    }

    fn streams(streams: usize) -> Record {
        Record::Streams(Streams {
            backend: "cpu".into(),
            streams,
            depth: 5,
            tok_s: 1.25,
            gap_p95_s: 0.5,
        })
    }

    #[test]
    fn records_go_on_after_the_last_whole_line() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("records.jsonl");
        let open = |key: &Key, fresh| Records::open(&path, key, fresh);
        let mut records = open(&key(1), false)?;
        assert_eq!(records.resumed, 0);
        records.push(streams(2))?;
        records.push(streams(4))?;
        drop(records);
        // Cut in the middle of the last line.
        let text = fs::read(&path)?;
        fs::write(&path, &text[..text.len() - 3])?;
        let records = open(&key(1), false)?;
        assert_eq!(records.all, [streams(2)]);
        assert!(records.has("cpu streams 2") && !records.has("cpu streams 4"));
        drop(records);
        assert_eq!(open(&key(1), false)?.resumed, 1);
        assert_eq!(open(&key(2), false)?.resumed, 0);
        let mut records = open(&key(2), false)?;
        records.push(streams(8))?;
        drop(records);
        assert_eq!(open(&key(2), true)?.resumed, 0);
        fs::write(&path, b"\xffjunk\n{}\n")?;
        assert_eq!(open(&key(2), false)?.resumed, 0);
        let missing = Path::new("/no/such/folder/x.jsonl");
        let error = Records::open(missing, &key(1), false)
            .err()
            .expect("no folder");
        assert!(error.to_string().contains("/no/such/folder/x.jsonl"));
        Ok(())
    }
}
