//! What the two programs of a comparison say to each other: a [`Job`] on the child's standard input, then
//! lines of JSON on its standard output, each with as many f32 after it as it announces.
//!
//! The other program may be another build: what it says is checked, and bounded before it is allocated.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Read, Write};

/// Both speak this version.
pub const PROTOCOL: u32 = 1;
/// Longest line: the gaps between the tokens of a run are the most that one has.
const MOST_LINE: u64 = 64 << 20;
/// Most values after a line: a row of logits, or a stage's results for a piece of the prompt.
const MOST_VALUES: u64 = 64 << 20;

/// What one engine is asked, alone in its process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// As after `--model`; none is the demo model.
    pub model: Option<String>,
    /// As after `--backend`.
    pub backend: String,
    /// As after `--threads`.
    pub threads: usize,
    /// As `--rope-compat`.
    pub rope_compat: bool,
    /// What to do.
    pub task: Task,
}

/// What an engine does.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Continue prompts, then be timed.
    Engine {
        /// Prompts to continue greedily.
        prompts: Vec<Vec<u32>>,
        /// Most tokens of each continuation.
        max_tokens: usize,
        /// Tokens that end one.
        stop_ids: Vec<u32>,
        /// Prompts to time, the first of them to warm up.
        timed: Vec<Vec<u32>>,
        /// Tokens to generate after each of those.
        timed_tokens: usize,
    },
    /// Score sequences, and trace one.
    Score {
        /// Sequences, all of whose rows are wanted.
        sequences: Vec<Vec<u32>>,
        /// The sequence to trace, if any.
        trace: Option<Vec<u32>>,
    },
}

/// What the child says; `Done` is the last.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum Say {
    /// It is loaded.
    Ready {
        /// What computes.
        description: String,
        /// From opening the file to here.
        load_s: f64,
    },
    /// One continuation, in the order of the prompts.
    Continued { ids: Vec<u32> },
    /// One timed run, in order.
    Timed(Run),
    /// Logits after a position; values `[vocab]`.
    Row { sequence: usize, position: usize },
    /// What a stage computed; values `[rows, width]`.
    Stage {
        layer: Option<usize>,
        stage: String,
        start: usize,
        width: usize,
    },
    /// All of it.
    Done {
        /// The most memory it held at once, mapped files counted, where the system tells.
        peak_memory: Option<u64>,
        /// Share of the processors' time that others took while it was timed.
        others: Option<f64>,
    },
}

/// One timed request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// From submission to the first token.
    pub ttft_s: f64,
    /// Prompt tokens a second.
    pub prefill: Option<f64>,
    /// Tokens a second after the first.
    pub decode: Option<f64>,
    /// Waits between tokens.
    pub gaps_s: Vec<f64>,
    /// Energy of the whole machine's processors meanwhile, where it can be read.
    pub joules: Option<f64>,
}

/// A line, with the values after it.
#[derive(Deserialize)]
struct Line {
    #[serde(flatten)]
    say: Say,
    #[serde(default)]
    values: u64,
}

/// Says `what`, and `values` after it.
pub fn say(to: &mut impl Write, what: &Say, values: &[f32]) -> Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        #[serde(flatten)]
        say: &'a Say,
        values: usize,
    }
    let line = Line {
        say: what,
        values: values.len(),
    };
    serde_json::to_writer(&mut *to, &line)?;
    to.write_all(b"\n")?;
    for value in values {
        to.write_all(&value.to_le_bytes())?;
    }
    Ok(to.flush()?)
}

/// What is said next; `None` at the end.
pub fn hear(from: &mut impl BufRead) -> Result<Option<(Say, Vec<f32>)>> {
    let mut line = Vec::new();
    let read = from.take(MOST_LINE).read_until(b'\n', &mut line)?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        bail!(
            "its last line is cut off, or longer than {} MiB",
            MOST_LINE >> 20
        );
    }
    let Line { say, values } = serde_json::from_slice(&line).with_context(|| {
        let start: String = String::from_utf8_lossy(&line).chars().take(80).collect();
        format!("it said what no gossamer says: {start}")
    })?;
    ensure!(values <= MOST_VALUES, "it announced {values} values");
    let mut bytes = Vec::new();
    from.take(4 * values).read_to_end(&mut bytes)?;
    let (floats, rest) = bytes.as_chunks::<4>();
    ensure!(
        floats.len() as u64 == values && rest.is_empty(),
        "it announced {values} values, and ended after {}",
        floats.len()
    );
    let values = floats.iter().map(|&v| f32::from_le_bytes(v)).collect();
    Ok(Some((say, values)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let mut pipe = Vec::new();
        let row = Say::Row {
            sequence: 3,
            position: 7,
        };
        say(&mut pipe, &row, &[1.5, f32::NAN, -0.0]).unwrap();
        let done = Say::Done {
            peak_memory: Some(u64::MAX),
            others: None,
        };
        say(&mut pipe, &done, &[]).unwrap();
        let mut from = &pipe[..];
        let (heard, values) = hear(&mut from).unwrap().unwrap();
        assert!(matches!(
            heard,
            Say::Row {
                sequence: 3,
                position: 7
            }
        ));
        assert_eq!(values[0], 1.5);
        assert!(values[1].is_nan() && values[2].to_bits() == 1 << 31);
        let (heard, values) = hear(&mut from).unwrap().unwrap();
        assert!(matches!(
            heard,
            Say::Done {
                peak_memory: Some(u64::MAX),
                others: None
            }
        ));
        assert!(values.is_empty() && hear(&mut from).unwrap().is_none());
        // Cut anywhere, it is an error or ends between two lines.
        let first = pipe.iter().position(|&b| b == b'\n').unwrap() + 1 + 12;
        for cut in 1..first {
            assert!(hear(&mut &pipe[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for line in [
            "Usage: gossamer [OPTIONS]\n",
            "{}\n",
            "{\"say\":\"row\",\"sequence\":-1,\"position\":0}\n",
            "{\"say\":\"row\",\"sequence\":0,\"position\":0,\"values\":99999999999}\n",
            "{\"say\":\"row\",\"sequence\":0,\"position\":0,\"values\":60000000}\n",
            "\u{1}\n",
        ] {
            assert!(hear(&mut line.as_bytes()).is_err(), "{line}");
        }
    }
}
