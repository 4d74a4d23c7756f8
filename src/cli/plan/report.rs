//! A plan as a table for people, or as JSON by its fields' names.

use super::Print;
use crate::{
    backend::{Footprint, RESERVE},
    hub::human,
};
use serde::Serialize;

/// What one model takes on each back end.
#[derive(Serialize)]
pub struct Report {
    pub model: String,
    pub file: String,
    pub file_bytes: u64,
    /// The model's own.
    pub context: usize,
    /// What conversion of weights costs.
    pub notes: Vec<String>,
    pub outcomes: Vec<Outcome>,
}

/// What it takes on one back end, in bytes and tokens.
#[derive(Serialize)]
pub struct Outcome {
    pub backend: String,
    /// Whose memory it is.
    pub memory: String,
    pub free: Option<u64>,
    /// Why it can't run as asked, and what would fit.
    pub refused: Option<String>,
    /// What to know of the figures.
    pub note: Option<String>,
    /// The model is larger than memory: its pages come from the disk again and again.
    pub streams: bool,
    /// Tokens of the longest sequence, with so many at once.
    pub context: Option<usize>,
    pub sequences_at_once: usize,
    /// Tokens of KV cache that all sequences share.
    pub kv_tokens: Option<usize>,
    pub footprint: Option<Footprint>,
    /// The longest context of one sequence alone.
    pub longest: Option<usize>,
    pub sequences: Vec<Sequences>,
}

/// How many sequences of one length fit.
#[derive(Serialize)]
pub struct Sequences {
    pub tokens: usize,
    pub most: usize,
}

impl Print for Report {
    fn table(&self) -> String {
        let mut lines = vec![format!(
            "{} ({}, {}), context up to {} tokens",
            self.model,
            self.file,
            human(self.file_bytes),
            self.context
        )];
        lines.extend(self.notes.iter().cloned());
        for outcome in &self.outcomes {
            lines.push(String::new());
            outcome.lines(&mut lines);
        }
        lines.join("\n") + "\n"
    }
}

impl Outcome {
    fn lines(&self, lines: &mut Vec<String>) {
        let free = self.free.map_or("unknown".into(), human);
        lines.push(format!(
            "{}: {free} free in {}, {} of that left alone",
            self.backend,
            self.memory,
            human(RESERVE)
        ));
        if let Some(why) = &self.refused {
            lines.push(format!("  does not fit: {why}"));
        }
        if let (Some(footprint), Some(context)) = (&self.footprint, self.context) {
            let tokens = self.kv_tokens.unwrap_or(0);
            rows(footprint, tokens, lines);
            lines.push(format!(
                "  {:<34} {:>10}",
                "in all, when all of it is used",
                human(footprint.bytes())
            ));
            lines.push(format!(
                "  fits: up to {} sequences at once, each up to {context} tokens",
                self.sequences_at_once
            ));
        }
        if let Some(note) = &self.note {
            lines.push(format!("  {note}"));
        }
        if self.streams {
            lines.push(
                "  the model is larger than this memory: weights will be read from the disk for every token"
                    .into(),
            );
        }
        let longest = match self.longest {
            Some(tokens) => format!("{tokens} tokens"),
            None => "none".into(),
        };
        lines.push(format!("  largest context of one sequence: {longest}"));
        let most: Vec<String> = self.sequences.iter().map(Sequences::told).collect();
        lines.push(format!("  most sequences at once: {}", most.join(", ")));
    }
}

impl Sequences {
    fn told(&self) -> String {
        format!("{} of {} tokens", self.most, self.tokens)
    }
}

/// A line for each kind of memory.
pub fn rows(footprint: &Footprint, kv_tokens: usize, lines: &mut Vec<String>) {
    let kinds = [
        ("weights, where the file is mapped".into(), footprint.mapped),
        ("weights of its own".into(), footprint.weights),
        (format!("KV cache, {kv_tokens} tokens"), footprint.blocks),
        ("sliding windows".into(), footprint.windows),
        ("snapshots of them".into(), footprint.snapshots),
        ("kept beginnings".into(), footprint.prefixes),
        ("activations and logits".into(), footprint.work),
        ("MLX's process".into(), footprint.process),
    ];
    for (what, bytes) in kinds.iter().filter(|(_, bytes)| *bytes > 0) {
        lines.push(format!("  {what:<34} {:>10}", human(*bytes)));
    }
}
