//! What was found: as JSON, and as tables for a terminal.

use super::{
    course::LeftOut,
    limit::{Reads, TARGETS, is_apple},
    record::{Depth, Key, Load, Record},
};
use crate::{hub::human, machine::OtherLoad};
use serde_json::{Value, json};
use std::time::Duration;

/// A benchmark's whole outcome.
pub struct Outcome {
    pub key: Key,
    /// The model file's name.
    pub file: String,
    pub is_demo: bool,
    pub model_context: usize,
    /// The machine's.
    pub memory: Option<u64>,
    pub budget: Duration,
    pub took: Duration,
    /// Records that an earlier run measured.
    pub resumed: usize,
    pub records: Vec<Record>,
    /// By back end, what a token reads.
    pub reads: Vec<(String, Reads)>,
    pub other_load: Option<OtherLoad>,
    pub left_out: Vec<LeftOut>,
}

/// A measured speed beside what memory allows.
pub struct Roofline {
    pub length: usize,
    /// Bytes that a token reads at this depth.
    pub bytes: f64,
    /// Tokens a second at which memory delivers them.
    pub limit: f64,
    /// Tokens a second, the best of the runs.
    pub found: f64,
}

impl Roofline {
    /// The part of the limit that was reached.
    pub fn share(&self) -> f64 {
        self.found / self.limit
    }
}

/// A promised speed and what became of it.
pub struct Verdict {
    pub what: &'static str,
    pub low: f64,
    pub high: f64,
    pub found: Option<f64>,
    /// `met`, `missed` or `not run`.
    pub verdict: &'static str,
    pub why: String,
}

/// The mean of some speeds; 0 of none.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

impl Outcome {
    /// How each back end was loaded, in order.
    pub fn loads(&self) -> impl Iterator<Item = &Load> {
        self.records.iter().filter_map(|record| match record {
            Record::Load(load) => Some(load),
            _ => None,
        })
    }

    /// The best that a back end's memory was found to read at, in bytes a second: before all steps, between
    /// them, and at the end.
    pub fn bandwidth(&self, load: &Load) -> f64 {
        let again = self.records.iter().filter_map(|record| match record {
            Record::Bandwidth(again) if again.backend == load.backend => Some(again.bandwidth),
            _ => None,
        });
        again.fold(load.bandwidth, f64::max)
    }

    /// A back end's depths, in order.
    pub fn depths<'a>(&'a self, backend: &'a str) -> impl Iterator<Item = &'a Depth> {
        let mut depths: Vec<&Depth> = self
            .records
            .iter()
            .filter_map(|record| match record {
                Record::Depth(depth) if depth.backend == backend => Some(depth),
                _ => None,
            })
            .collect();
        depths.sort_by_key(|depth| depth.length);
        depths.into_iter()
    }

    /// What memory allows a back end at each depth that was measured.
    pub fn roofline(&self, backend: &str) -> Vec<Roofline> {
        let load = self.loads().find(|load| load.backend == backend);
        let reads = self.reads.iter().find(|(name, _)| name == backend);
        let (Some(load), Some((_, reads))) = (load, reads) else {
            return Vec::new();
        };
        let bandwidth = self.bandwidth(load);
        let depths = self.depths(backend).map(|depth| {
            let bytes = reads.step(1, depth.tokens);
            Roofline {
                length: depth.length,
                bytes,
                limit: bandwidth / bytes,
                found: depth.decode_tok_s.iter().copied().fold(0.0, f64::max),
            }
        });
        depths.collect()
    }

    /// The promised speeds, beside the shallowest depth's.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let judge = |(what, low, high): (&'static str, f64, f64)| {
            let is_mlx = |backend: &str| backend.starts_with("mlx");
            let speeds = self
                .loads()
                .filter(|load| is_mlx(&load.backend) == (what == "MLX"))
                .filter_map(|load| self.depths(&load.backend).next())
                .map(|depth| mean(&depth.decode_tok_s));
            let found = speeds.max_by(f64::total_cmp);
            let is_20b =
                self.key.file_bytes > 10_000_000_000 && self.key.file_bytes < 16_000_000_000;
            let (verdict, why) = match found {
                None => ("not run", "no such engine was measured".to_owned()),
                Some(_) if !is_apple() => (
                    "not run",
                    "promised for Apple silicon, and this is another machine".to_owned(),
                ),
                Some(_) if !is_20b => (
                    "not run",
                    "promised for gpt-oss-20b, and this is another model".to_owned(),
                ),
                Some(found) if found >= low => ("met", String::new()),
                Some(_) => ("missed", String::new()),
            };
            Verdict {
                what,
                low,
                high,
                found,
                verdict,
                why,
            }
        };
        TARGETS.into_iter().map(judge).collect()
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let roofline = self.loads().map(|load| {
            let depths = self.roofline(&load.backend).into_iter().map(|at| {
                json!({
                    "length": at.length,
                    "bytes_per_token": at.bytes,
                    "limit_tok_s": at.limit,
                    "best_tok_s": at.found,
                    "share_of_bandwidth": at.share(),
                })
            });
            json!({
                "backend": load.backend,
                "bandwidth_bytes_per_s": self.bandwidth(load),
                "depths": depths.collect::<Vec<_>>(),
            })
        });
        let targets = self.verdicts().into_iter().map(|v| {
            json!({
                "engine": v.what, "low_tok_s": v.low, "high_tok_s": v.high, "found_tok_s": v.found,
                "verdict": v.verdict, "why": v.why,
            })
        });
        json!({
            "gossamer": self.key.gossamer,
            "model": {
                "name": self.key.model, "file": self.file, "bytes": self.key.file_bytes,
                "context": self.model_context, "demo": self.is_demo,
            },
            "machine": {
                "processor": self.key.machine, "threads": self.key.threads, "memory_bytes": self.memory,
            },
            "budget_s": self.budget.as_secs_f64(),
            "took_s": self.took.as_secs_f64(),
            "measured_before": self.resumed,
            "records": self.records,
            "roofline": roofline.collect::<Vec<_>>(),
            "targets": targets.collect::<Vec<_>>(),
            "other_load": self.other_load.map(|load| json!({
                "disturbed": load.disturbs(), "processes_share": load.processes, "steal_share": load.steal,
            })),
            "left_out": self.left_out,
        })
    }

    /// What a reader has to know of the model first.
    pub fn about(&self) -> String {
        format!(
            "{} ({}, {}), {}, {} threads{}",
            self.key.model,
            self.file,
            human(self.key.file_bytes),
            self.key.machine,
            self.key.threads,
            match self.memory {
                Some(bytes) => format!(", {} of memory", human(bytes)),
                None => String::new(),
            }
        )
    }

    /// A sentence, if others took enough of the machine to matter.
    pub fn disturbance(&self) -> Option<String> {
        let load = self.other_load.filter(OtherLoad::disturbs)?;
        Some(format!(
            "Disturbed: other processes took {:.0} % of the processors, the host {:.0} %. Close what runs and \
             measure again.",
            load.processes * 100.0,
            load.steal.unwrap_or(0.0) * 100.0
        ))
    }

    /// As tables for a terminal.
    pub fn table(&self) -> String {
        let mut lines = vec![self.about()];
        for load in self.loads() {
            lines.push(String::new());
            lines.push(format!(
                "{}: {}; memory reads at {:.1} GB/s",
                load.backend,
                load.engine,
                self.bandwidth(load) / 1e9
            ));
            lines.push(format!(
                "loaded in {:.2} s (open {:.2}, tokenizer {:.2}, weights {:.2}, back end {:.2}), first token after {:.2} s more",
                load.open_s + load.tokenizer_s + load.weights_s + load.backend_s,
                load.open_s,
                load.tokenizer_s,
                load.weights_s,
                load.backend_s,
                load.first_token_s
            ));
            lines.push(format!(
                "{:>7} {:>10} {:>9} {:>9} {:>6} {:>9} {:>10} {:>10}",
                "depth", "prefill/s", "decode/s", "limit/s", "share", "next turn", "KV", "memory"
            ));
            let limits = self.roofline(&load.backend);
            for (depth, limit) in self.depths(&load.backend).zip(limits) {
                lines.push(format!(
                    "{:>7} {:>10.1} {:>9.2} {:>9.2} {:>5.0}% {:>7.2} s {:>10} {:>10}",
                    depth.length,
                    depth.prefill_tok_s,
                    mean(&depth.decode_tok_s),
                    limit.limit,
                    limit.share() * 100.0,
                    depth.turn_s,
                    human(depth.kv_bytes),
                    depth.memory().map_or("unknown".into(), human),
                ));
            }
        }
        lines.push(String::new());
        lines.extend(self.records.iter().filter_map(told));
        for v in self.verdicts() {
            let found = v.found.map_or("-".into(), |found| format!("{found:.1}"));
            let why = if v.why.is_empty() {
                String::new()
            } else {
                format!(" ({})", v.why)
            };
            lines.push(format!(
                "target, {}: {:.0}-{:.0} tok/s; here {found}: {}{why}",
                v.what, v.low, v.high, v.verdict
            ));
        }
        for left in &self.left_out {
            lines.push(format!("left out: {}: {}", left.what, left.why));
        }
        lines.extend(self.disturbance());
        lines.push(format!(
            "{:.0} s of {:.0} s",
            self.took.as_secs_f64(),
            self.budget.as_secs_f64()
        ));
        lines.join("\n") + "\n"
    }
}

impl Depth {
    /// Bytes that it took: of the GPU's memory, or of the machine's.
    pub fn memory(&self) -> Option<u64> {
        self.device_bytes.or(self.resident.map(|held| held.bytes()))
    }
}

/// A line for what is in no table.
fn told(record: &Record) -> Option<String> {
    match record {
        Record::Load(_) | Record::Depth(_) | Record::Bandwidth(_) => None,
        Record::Turn(r) => Some(format!(
            "{}: a turn after {} tokens that are not cached: first token after {:.2} s",
            r.backend, r.length, r.first_token_s
        )),
        Record::Streams(r) => Some(format!(
            "{}: {} streams of {} tokens: {:.2} tok/s together",
            r.backend, r.streams, r.depth, r.tok_s
        )),
        Record::Recall(r) => Some(format!(
            "{}: a fact at {:.0} % of {} tokens: {}",
            r.backend,
            r.place * 100.0,
            r.tokens,
            if r.right { "found" } else { "not found" }
        )),
    }
}
