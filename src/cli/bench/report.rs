//! What `bench` found, as a table for people or JSON for programs.

use super::{driver::Test, micro::Micro};
use crate::{hub::human, machine::OtherLoad};
use anyhow::Result;
use serde_json::{Value, json};
use std::{io::Write, time::Duration};

/// All figures of one run.
pub struct Report {
    pub model: String,
    pub file: String,
    pub file_bytes: u64,
    pub backend: String,
    pub cpu: Option<String>,
    pub load_time: Duration,
    pub peak_memory: Option<u64>,
    pub bandwidth: Bandwidth,
    pub other_load: Option<OtherLoad>,
    pub tests: Vec<Test>,
    pub micro: Option<Micro>,
}

/// Bytes a second that this machine reads.
pub struct Bandwidth {
    pub threads: usize,
    /// From anonymous memory, on large pages where the system gives them.
    pub memory: f64,
    /// From the model's mapping, if it is large.
    pub mapping: Option<f64>,
    /// From the memory of the GPU that computes, if one does; the machine's own is not measured then.
    pub device: Option<f64>,
}

impl Bandwidth {
    /// The most that was seen: what shares refer to.
    pub fn best(&self) -> f64 {
        let own = self.memory.max(self.mapping.unwrap_or(0.0));
        self.device.unwrap_or(own)
    }
}

impl Test {
    fn speeds(&self) -> Vec<f64> {
        self.runs
            .iter()
            .map(|run| self.tokens as f64 / run.as_secs_f64())
            .collect()
    }

    /// Bytes a second, over all runs.
    fn byte_speed(&self) -> f64 {
        self.bytes as f64 / self.time().as_secs_f64()
    }

    /// Seconds of a step, on average over all runs.
    fn step_time(&self) -> f64 {
        self.time().as_secs_f64() / (self.runs.len() * self.steps) as f64
    }

    fn time(&self) -> Duration {
        self.runs.iter().sum()
    }
}

/// Mean and standard deviation of a sample; the latter is 0 for a single value.
pub(in crate::cli) fn mean_and_deviation(values: &[f64]) -> Option<(f64, f64)> {
    if values.is_empty() {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let deviation = match values.len() {
        1 => 0.0,
        _ => (squares / (n - 1.0)).sqrt(),
    };
    Some((mean, deviation))
}

impl Report {
    /// Prints it to stdout.
    pub fn print(&self, json: bool) -> Result<()> {
        let text = if json {
            serde_json::to_string_pretty(&self.json())? + "\n"
        } else {
            self.table()
        };
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    fn json(&self) -> Value {
        let tests = self.tests.iter().map(|test| {
            let speeds = test.speeds();
            let (mean, deviation) = mean_and_deviation(&speeds).unzip();
            json!({
                "test": test.work.name(), "streams": test.streams, "tokens": test.tokens, "depth": test.depth,
                "step_s": test.step_time(), "tok_per_s": mean, "deviation": deviation, "runs_tok_per_s": speeds,
                "bytes_per_s": test.byte_speed(), "share_of_bandwidth": test.byte_speed() / self.bandwidth.best(),
            })
        });
        let tests: Vec<Value> = tests.collect();
        json!({
            "gossamer": env!("CARGO_PKG_VERSION"),
            "model": { "name": self.model, "file": self.file, "bytes": self.file_bytes },
            "backend": self.backend,
            "cpu": self.cpu,
            "load_s": self.load_time.as_secs_f64(),
            "peak_memory_bytes": self.peak_memory,
            "bandwidth": {
                "threads": self.bandwidth.threads,
                "memory_bytes_per_s": self.bandwidth.memory,
                "mapping_bytes_per_s": self.bandwidth.mapping,
                "device_bytes_per_s": self.bandwidth.device,
            },
            "tests": tests,
            "other_load": self.other_load.map(|load| json!({
                "disturbed": load.disturbs(),
                "processes_share": load.processes,
                "steal_share": load.steal,
                "load_average": load.load_average,
            })),
            "micro": self.micro.as_ref().map(Micro::json),
        })
    }

    fn table(&self) -> String {
        let giga = |bytes: f64| format!("{:.1} GB/s", bytes / 1e9);
        let mut lines = vec![
            format!("{} ({}, {})", self.model, self.file, human(self.file_bytes)),
            format!(
                "{}; {}",
                self.cpu.as_deref().unwrap_or("unknown processor"),
                self.backend
            ),
        ];
        let mapping = match self.bandwidth.mapping {
            Some(speed) => format!(", {} from the model's mapping", giga(speed)),
            None => String::new(),
        };
        lines.push(match self.bandwidth.device {
            Some(speed) => format!("the GPU's memory reads at {}", giga(speed)),
            None => format!(
                "memory reads at {} with {} threads{mapping}",
                giga(self.bandwidth.memory),
                self.bandwidth.threads
            ),
        });
        let peak = self.peak_memory.map_or("unknown".into(), human);
        lines.push(format!(
            "loaded in {:.2} s; peak memory {peak}",
            self.load_time.as_secs_f64()
        ));
        lines.push(String::new());
        lines.push(format!(
            "{:<8} {:>7} {:>6} {:>7} {:>18} {:>9} {:>7} {:>6}",
            "test", "streams", "tokens", "depth", "tok/s", "ms/step", "GB/s", "share"
        ));
        for test in &self.tests {
            let share = test.byte_speed() / self.bandwidth.best() * 100.0;
            lines.push(format!(
                "{:<8} {:>7} {:>6} {:>7} {:>18} {:>9.1} {:>7.2} {:>5.1}%",
                test.work.name(),
                test.streams,
                test.tokens,
                test.depth,
                mean_and_deviation(&test.speeds()).map_or_else(
                    || "-".to_owned(),
                    |(mean, deviation)| format!("{mean:.2} ± {deviation:.2}")
                ),
                test.step_time() * 1e3,
                test.byte_speed() / 1e9,
                share
            ));
        }
        if self.bandwidth.mapping.is_none() {
            lines.push(
                "(This model is small enough to stay partly in caches: its shares of memory's bandwidth \
                 say little.)"
                    .into(),
            );
        }
        if let Some(micro) = &self.micro {
            lines.push(String::new());
            lines.extend(micro.lines());
        }
        lines.extend(self.disturbance());
        lines.join("\n") + "\n"
    }

    /// A warning, if others took enough of the machine to matter.
    fn disturbance(&self) -> Option<String> {
        let load = self.other_load.filter(OtherLoad::disturbs)?;
        let steal = load.steal.unwrap_or(0.0) * 100.0;
        Some(format!(
            "\nDisturbed: other processes took {:.0} % of the processors, the host {steal:.0} %; load \
             average {:.1}. Close what runs and measure again.",
            load.processes * 100.0,
            load.load_average
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_the_sample_deviation() {
        assert_eq!(mean_and_deviation(&[]), None);
        assert_eq!(mean_and_deviation(&[4.0]), Some((4.0, 0.0)));
        let (mean, deviation) = mean_and_deviation(&[2.0, 4.0, 9.0]).unwrap();
        assert_eq!(mean, 5.0);
        assert!((deviation - 13f64.sqrt()).abs() < 1e-12);
    }
}
