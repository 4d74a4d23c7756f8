//! What was found, for people on a terminal: facts in rows, A and B in columns.

use super::found::{Found, SideFound, Speed};
use crate::{hub::human, report::Table};
use std::{fmt::Write as _, time::Duration};

impl Found {
    /// Both sides, fact by fact.
    pub fn sides(&self) -> Table {
        let mut table = Table::new("", ["", "A", "B"]);
        let sides = [&self.a, &self.b];
        let mut row = |name: &str, of: &dyn Fn(&SideFound) -> Option<String>| {
            let cells = sides.map(of);
            if cells.iter().any(Option::is_some) {
                let cells = cells.map(|cell| cell.unwrap_or_else(|| "-".into()));
                table.row([name.to_owned()].into_iter().chain(cells));
            }
        };
        row("side", &|s| Some(s.side.clone()));
        row("back end", &|s| Some(s.backend.clone()));
        row("model", &|s| Some(s.model.clone()));
        row("file size", &|s| Some(human(s.model_bytes)));
        row("load, file cached", &|s| Some(seconds(s.load_s)));
        let of =
            |f: fn(&Speed) -> Option<String>| move |s: &SideFound| s.speed.as_ref().and_then(f);
        row("peak memory", &of(|s| s.peak_memory_bytes.map(human)));
        row("time to first token", &of(|s| Some(seconds(s.ttft_s))));
        // A row that is measured, whatever came of it.
        fn spread(figure: Option<(f64, f64)>) -> Option<String> {
            Some(figure.map_or("-".into(), |(mean, deviation)| {
                format!("{mean:.1} ± {deviation:.1} tok/s")
            }))
        }
        fn wait(figure: Option<f64>) -> Option<String> {
            Some(figure.map_or("-".into(), seconds))
        }
        row("prefill", &of(|s| spread(s.prefill_tok_per_s)));
        row("decode", &of(|s| spread(s.decode_tok_per_s)));
        row("token latency, p50", &of(|s| wait(s.token_p50_s)));
        row("token latency, p95", &of(|s| wait(s.token_p95_s)));
        row("token latency, p99", &of(|s| wait(s.token_p99_s)));
        row(
            "energy of a run",
            &of(|s| {
                Some(
                    s.joules_per_run
                        .map_or("not readable here".into(), |j| format!("{j:.1} J")),
                )
            }),
        );
        row("mean KL from the reference", &|s| {
            let judged = self.judged.as_ref()?;
            let is_a = std::ptr::eq(s, &self.a);
            let kl = if is_a {
                judged.a_mean_kl
            } else {
                judged.b_mean_kl
            };
            Some(format!("{} nats", small(kl)))
        });
        table
    }

    /// How near B is to A, fact by fact.
    pub fn nearness(&self) -> Table {
        let f = &self.fidelity;
        let mut table = Table::new("", ["B against A", ""]);
        let differ = self.positions.iter().filter(|p| p.a_top != p.b_top).count();
        let agreement = format!(
            "{:.2} % of {} positions ({differ} differ)",
            100.0 * f.agreement,
            f.positions
        );
        table.row(["top-1 agreement", &agreement]);
        table.row(["mean KL", &format!("{} nats", small(f.mean_kl))]);
        table.row(["greatest KL", &format!("{} nats", small(f.max_kl))]);
        let delta = format!("{} nats", small(f.max_delta_logprob));
        table.row(["greatest |Δ logprob| of a taken token", &delta]);
        table.row(["first divergence", &self.divergence()]);
        if let Some(trace) = &self.trace {
            let worst = trace
                .stages
                .iter()
                .map(|s| s.relative_l2)
                .fold(0.0, f64::max);
            let stages = format!(
                "{} stages over {} tokens, relative L2 at most {}",
                trace.stages.len(),
                trace.tokens,
                small(worst)
            );
            table.row(["trace", &stages]);
            let beyond = match &trace.first_beyond {
                None => format!("none beyond {}", small(trace.tolerance)),
                Some(stage) => format!(
                    "{}: {} (beyond {}; greatest at position {})",
                    stage.place(),
                    small(stage.relative_l2),
                    small(trace.tolerance),
                    stage.worst_position
                ),
            };
            table.row(["first stage that differs", &beyond]);
        }
        table
    }

    fn divergence(&self) -> String {
        match &self.fidelity.first_divergence {
            None => "none".into(),
            Some(p) => format!(
                "sequence {}, position {}: A prefers {} by {} nats, B prefers {} by {}",
                p.sequence,
                p.position,
                p.a_top,
                small(p.a_margin),
                p.b_top,
                small(p.b_margin)
            ),
        }
    }

    /// What should be known before the figures are believed.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for (name, side) in [("A", &self.a), ("B", &self.b)] {
            let others = side.speed.as_ref().and_then(|s| s.others);
            if let Some(others) = others.filter(|&others| others > 0.03) {
                notes.push(format!(
                    "Others took {:.0} % of the processors while {name} was timed: its speed would be \
                     greater on an idle machine.",
                    100.0 * others
                ));
            }
        }
        if let Some(s) = self.a.speed.as_ref().or(self.b.speed.as_ref()) {
            notes.push(format!(
                "Timed: {} runs of {} prompt tokens and {} generated, each engine alone, after a run that is not \
                 counted. Peak memory counts the pages of mapped files.",
                s.runs.len(),
                s.prompt_tokens,
                s.tokens
            ));
        }
        notes
    }

    /// All of it as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for table in [self.sides(), self.nearness()] {
            align(&table, &mut text);
            text.push('\n');
        }
        for note in self.notes() {
            let _ = writeln!(text, "{note}");
        }
        let _ = writeln!(text, "\n{}", self.verdict.sentence());
        text
    }
}

/// Columns side by side.
fn align(table: &Table, text: &mut String) {
    let lines: Vec<&Vec<String>> = [&table.head].into_iter().chain(&table.rows).collect();
    let chars = |cell: &String| cell.chars().count();
    let width = |c: usize| lines.iter().filter_map(|l| l.get(c)).map(chars).max();
    for line in &lines {
        let cells = line.iter().enumerate().map(|(c, cell)| {
            let width = width(c).unwrap_or(0);
            format!("{cell:width$}")
        });
        let row = cells.collect::<Vec<_>>().join("   ");
        let _ = writeln!(text, "{}", row.trim_end());
    }
}

/// A time that people read: 1.53 s, 12.3 ms.
pub fn seconds(s: f64) -> String {
    match Duration::try_from_secs_f64(s) {
        Ok(time) => format!("{time:.3?}"),
        Err(_) => "-".into(),
    }
}

/// A small figure: 0.0123, 1.23e-6.
pub fn small(x: f64) -> String {
    match x {
        0.0 => "0".into(),
        x if !x.is_finite() => "infinite".into(),
        x if x.abs() < 1e-3 => format!("{x:.2e}"),
        x => format!("{x:.4}"),
    }
}
