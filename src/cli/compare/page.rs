//! What was found as a report: [`crate::report`]'s page with tables and plots.

use super::{
    fidelity::Position,
    found::{Found, Speed},
    show::small,
};
use crate::{
    report::{Axis, Bars, Page, Plot, Series, Table},
    trace::Stage,
};

impl Found {
    /// The report.
    pub fn page(&self) -> Page {
        let (a, b) = (&self.a.side, &self.b.side);
        let mut page = Page::new(format!("{a} and {b} compared"));
        page.lead(&self.verdict.sentence()).table(&self.sides());
        page.heading("Fidelity").table(&self.nearness()).note(
            "Both read the same tokens and predict what follows each of them. KL is the divergence of B's \
             distribution from A's, over the whole vocabulary, in nats.",
        );
        if self.fidelity.max_kl > 0.0 {
            page.plot(&self.kl_plot()).plot(&self.delta_plot());
        } else {
            page.note("Their predictions are the same, bit for bit or nearly so: there is nothing to plot.");
        }
        self.stages(&mut page);
        self.speeds(&mut page);
        page.heading("How it was measured");
        let sequences = self.sequences.iter().map(|s| s.ids.len() - s.prompt_tokens);
        page.note(&format!(
            "{} sequences: {} given tokens, which A continued greedily by {}.{}",
            self.sequences.len(),
            self.sequences
                .iter()
                .map(|s| s.prompt_tokens)
                .sum::<usize>(),
            sequences.sum::<usize>(),
            self.processor
                .as_ref()
                .map_or(String::new(), |p| format!(" Processor: {p}.")),
        ));
        for note in self.notes() {
            page.note(&note);
        }
        page
    }

    fn kl_plot(&self) -> Plot {
        let of = |same: bool| {
            let all = self.positions.iter().enumerate();
            let these = all.filter(move |(_, p)| (p.a_top == p.b_top) == same);
            these.map(|(i, p)| (i as f64, p.kl))
        };
        Plot {
            title: "KL at every position, sequence after sequence".into(),
            x: Axis::linear("position"),
            y: Axis::log("KL(A || B), nats"),
            series: vec![
                Series::points("same likeliest token", of(true)),
                Series::points("another one", of(false)),
            ],
        }
    }

    fn delta_plot(&self) -> Plot {
        let delta = |(i, p): (usize, &Position)| Some((i as f64, p.delta_logprob?));
        Plot {
            title: "Log-probability of the token that follows: B less A".into(),
            x: Axis::linear("position"),
            y: Axis::linear("nats"),
            series: vec![Series::points(
                "Δ logprob",
                self.positions.iter().enumerate().filter_map(delta),
            )],
        }
    }

    fn stages(&self, page: &mut Page) {
        let Some(trace) = &self.trace else { return };
        page.heading("Trace");
        let layers = trace
            .stages
            .iter()
            .filter_map(|s| s.layer)
            .max()
            .map_or(0, |l| l + 1);
        let shown: Vec<&str> = Stage::ALL
            .into_iter()
            .map(Stage::name)
            .filter(|name| {
                trace
                    .stages
                    .iter()
                    .any(|s| s.stage == *name && s.layer.is_some())
            })
            .collect();
        let error = |layer: Option<usize>, stage: &str| {
            let of = trace
                .stages
                .iter()
                .find(|s| s.layer == layer && s.stage == stage);
            of.map(|s| s.relative_l2)
        };
        let mut series: Vec<Series> = shown
            .iter()
            .map(|stage| {
                let points = (0..layers).filter_map(|l| Some((l as f64, error(Some(l), stage)?)));
                Series::line(*stage, points)
            })
            .collect();
        let last = layers.saturating_sub(1) as f64;
        let tolerance = [(0.0, trace.tolerance), (last, trace.tolerance)];
        series.push(Series::line("tolerance", tolerance));
        page.plot(&Plot {
            title: "Relative L2 of B from A after every stage".into(),
            x: Axis::linear("layer"),
            y: Axis::log("|B - A| / |A|"),
            series,
        });
        let mut table = Table::new(
            format!("Relative L2 over {} tokens", trace.tokens),
            ["layer"].into_iter().chain(shown.iter().copied()),
        );
        for layer in 0..layers {
            let cells = shown
                .iter()
                .map(|s| error(Some(layer), s).map_or("-".into(), small));
            table.row([layer.to_string()].into_iter().chain(cells));
        }
        page.table(&table);
        let ends = [Stage::Embed, Stage::NormLmHead].map(|stage| {
            let error = error(None, stage.name()).map_or("-".into(), small);
            format!("{stage}: {error}")
        });
        page.note(&format!("{}; {}.", ends[0], ends[1]));
        if trace.only_one > 0 {
            page.note(&format!(
                "Stages that only one side shows: {}.",
                trace.only_one
            ));
        }
    }

    fn speeds(&self, page: &mut Page) {
        let sides: Vec<(&str, &Speed)> = [("A", &self.a), ("B", &self.b)]
            .into_iter()
            .filter_map(|(name, side)| Some((name, side.speed.as_ref()?)))
            .collect();
        if sides.is_empty() {
            return;
        }
        let bars = |title: &str, y: &str, labels: &[&str], of: &dyn Fn(&Speed) -> Vec<f64>| Bars {
            title: title.into(),
            y: Axis::linear(y),
            labels: labels.iter().map(|&l| l.to_owned()).collect(),
            series: sides
                .iter()
                .map(|(name, s)| (name.to_string(), of(s)))
                .collect(),
        };
        page.heading("Speed");
        page.bars(&bars("Decode", "tok/s", &["decode"], &|s| {
            vec![s.decode_tok_per_s.map_or(f64::NAN, |(mean, _)| mean)]
        }));
        page.bars(&bars("Prefill", "tok/s", &["prefill"], &|s| {
            vec![s.prefill_tok_per_s.map_or(f64::NAN, |(mean, _)| mean)]
        }));
        page.plot(&Plot {
            title: "Waits between tokens".into(),
            x: Axis::linear("share of tokens that wait no longer, %"),
            y: Axis::log("ms"),
            series: sides
                .iter()
                .map(|(name, s)| Series::line(*name, waits(s)))
                .collect(),
        });
        let memory = |s: &Speed| vec![s.peak_memory_bytes.map_or(f64::NAN, |b| b as f64 * 1e-9)];
        page.bars(&bars("Peak memory", "GB", &["peak memory"], &memory));
    }
}

/// How long tokens waited, the shortest first, at up to 101 places.
fn waits(speed: &Speed) -> Vec<(f64, f64)> {
    let mut gaps: Vec<f64> = speed
        .runs
        .iter()
        .flat_map(|run| run.gaps_s.clone())
        .collect();
    gaps.sort_by(f64::total_cmp);
    let last = gaps.len().saturating_sub(1);
    (0..=100)
        .filter_map(|percent| {
            Some((
                f64::from(percent),
                1e3 * gaps.get(last * percent as usize / 100)?,
            ))
        })
        .collect()
}
