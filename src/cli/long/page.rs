//! What was found, as a page with plots.

use super::{
    record::Record,
    result::{Outcome, mean},
};
use crate::{
    hub::human,
    report::{Axis, Bars, Page, Plot, Series, Table},
};

/// The report.
pub fn page(outcome: &Outcome) -> Page {
    let mut page = Page::new(format!("{}: long contexts", outcome.key.model));
    page.lead(&outcome.about());
    if outcome.is_demo {
        page.note("This is the demo model inside the program: its figures say nothing of gpt-oss.");
    }
    if let Some(disturbed) = outcome.disturbance() {
        page.note(&disturbed);
    }
    speed(&mut page, outcome);
    memory(&mut page, outcome);
    turns(&mut page, outcome);
    streams(&mut page, outcome);
    recall(&mut page, outcome);
    loading(&mut page, outcome);
    promises(&mut page, outcome);
    rest(&mut page, outcome);
    page
}

/// A line a back end, over the tokens before.
fn over_depth(outcome: &Outcome, value: impl Fn(&super::record::Depth) -> f64) -> Vec<Series> {
    let line = |load: &super::record::Load| {
        let points = outcome.depths(&load.backend);
        let points = points.map(|depth| (depth.tokens as f64, value(depth)));
        Series::line(load.backend.clone(), points)
    };
    outcome.loads().map(line).collect()
}

fn plot(title: &str, y: Axis, series: Vec<Series>) -> Plot {
    Plot {
        title: title.into(),
        x: Axis::log("tokens before"),
        y,
        series,
    }
}

fn speed(page: &mut Page, outcome: &Outcome) {
    page.heading("Speed and its limit");
    let mut decode = over_depth(outcome, |depth| mean(&depth.decode_tok_s));
    for load in outcome.loads() {
        let limit = outcome.roofline(&load.backend);
        let tokens = outcome
            .depths(&load.backend)
            .map(|depth| depth.tokens as f64);
        let points = tokens.zip(limit.iter().map(|at| at.limit));
        decode.push(Series::line(
            format!("{}, limit of memory", load.backend),
            points,
        ));
    }
    page.plot(&plot(
        "Decoding one sequence",
        Axis::linear("tokens a second"),
        decode,
    ));
    let prefill = over_depth(outcome, |depth| depth.prefill_tok_s);
    page.plot(&plot(
        "Reading a prompt, from the depth before",
        Axis::linear("tokens a second"),
        prefill,
    ));
    let mut table = Table::new(
        "A decoded token reads weights once, and the keys and values of all that came before",
        [
            "back end",
            "depth",
            "read, tokens",
            "prefill, tok/s",
            "decode, tok/s",
            "runs",
            "wait p50, ms",
            "p95, ms",
            "MB a token",
            "limit, tok/s",
            "share",
        ],
    );
    for load in outcome.loads() {
        let limits = outcome.roofline(&load.backend);
        for (depth, limit) in outcome.depths(&load.backend).zip(limits) {
            table.row([
                load.backend.clone(),
                depth.tokens.to_string(),
                (depth.tokens - depth.cached.min(depth.tokens)).to_string(),
                format!("{:.1}", depth.prefill_tok_s),
                format!("{:.2}", mean(&depth.decode_tok_s)),
                format!("{} x {}", depth.decode_tok_s.len(), depth.decoded),
                format!("{:.1}", depth.gap_p50_s * 1e3),
                format!("{:.1}", depth.gap_p95_s * 1e3),
                format!("{:.1}", limit.bytes / 1e6),
                format!("{:.2}", limit.limit),
                format!("{:.0} %", limit.share() * 100.0),
            ]);
        }
    }
    page.table(&table);
    for load in outcome.loads() {
        page.note(&format!(
            "{}: {}; its memory was measured to read at up to {:.1} GB/s, before, between and after the depths. \
             The share is that of the best run; beyond 100 % the bandwidth moved between its measurements and \
             the decoding.",
            load.backend,
            load.engine,
            outcome.bandwidth(load) / 1e9
        ));
    }
}

fn memory(page: &mut Page, outcome: &Outcome) {
    page.heading("Memory");
    let giga = |bytes: u64| bytes as f64 / 1e9;
    let held = over_depth(outcome, |depth| depth.memory().map_or(f64::NAN, giga));
    page.plot(&plot("What is held", Axis::linear("GB"), held));
    let mut table = Table::new(
        "What is held at each depth; a GPU takes all of its room at the start",
        [
            "back end",
            "depth",
            "KV cache of the sequence",
            "anonymous",
            "files",
            "GPU, MLX",
        ],
    );
    let told = |bytes: Option<u64>| bytes.map_or("-".into(), human);
    for load in outcome.loads() {
        for depth in outcome.depths(&load.backend) {
            table.row([
                load.backend.clone(),
                depth.tokens.to_string(),
                human(depth.kv_bytes),
                told(depth.resident.map(|held| held.anonymous)),
                told(depth.resident.map(|held| held.files)),
                told(depth.device_bytes),
            ]);
        }
    }
    page.table(&table);
}

fn turns(page: &mut Page, outcome: &Outcome) {
    page.heading("A next turn");
    let cached = over_depth(outcome, |depth| depth.turn_s);
    page.plot(&plot(
        "Time to first token of a turn whose conversation is cached",
        Axis::log("seconds"),
        cached,
    ));
    let mut table = Table::new(
        "Time to the first token",
        [
            "back end",
            "depth",
            "new tokens",
            "cached, s",
            "not cached, s",
        ],
    );
    for load in outcome.loads() {
        for depth in outcome.depths(&load.backend) {
            let uncached = outcome.records.iter().find_map(|record| match record {
                Record::Turn(turn)
                    if turn.backend == load.backend && turn.length == depth.length =>
                {
                    Some(turn.first_token_s)
                }
                _ => None,
            });
            table.row([
                load.backend.clone(),
                depth.tokens.to_string(),
                depth.turn_rows.to_string(),
                format!("{:.3}", depth.turn_s),
                uncached.map_or("not measured".into(), |s| format!("{s:.3}")),
            ]);
        }
    }
    page.table(&table);
}

fn streams(page: &mut Page, outcome: &Outcome) {
    page.heading("Several streams");
    let mut table = Table::new(
        "Sequences that decode at once; the limit counts the experts that so many tokens touch",
        [
            "back end",
            "streams",
            "tok/s together",
            "each",
            "wait p95, ms",
            "limit of memory",
            "share",
        ],
    );
    let mut labels = Vec::new();
    let (mut found, mut limits) = (Vec::new(), Vec::new());
    for record in &outcome.records {
        let Record::Streams(r) = record else { continue };
        let load = outcome.loads().find(|load| load.backend == r.backend);
        let reads = outcome.reads.iter().find(|(name, _)| *name == r.backend);
        let limit = load.zip(reads).map(|(load, (_, reads))| {
            r.streams as f64 * outcome.bandwidth(load) / reads.step(r.streams, r.depth)
        });
        let limit = limit.unwrap_or(f64::NAN);
        labels.push(format!("{}, {}", r.backend, r.streams));
        found.push(r.tok_s);
        limits.push(limit);
        table.row([
            r.backend.clone(),
            r.streams.to_string(),
            format!("{:.2}", r.tok_s),
            format!("{:.2}", r.tok_s / r.streams as f64),
            format!("{:.1}", r.gap_p95_s * 1e3),
            format!("{limit:.2}"),
            format!("{:.0} %", r.tok_s / limit * 100.0),
        ]);
    }
    if labels.is_empty() {
        page.note("Not measured.");
        return;
    }
    page.bars(&Bars {
        title: "Tokens a second of all streams together".into(),
        y: Axis::linear("tokens a second"),
        labels,
        series: vec![
            ("measured".into(), found),
            ("limit of memory".into(), limits),
        ],
    });
    page.table(&table);
}

fn recall(page: &mut Page, outcome: &Outcome) {
    page.heading("Facts found again");
    let mut table = Table::new(
        "One sentence in a text, asked for at its end",
        ["back end", "tokens", "place", "expected", "said", ""],
    );
    for record in &outcome.records {
        if let Record::Recall(r) = record {
            table.row([
                r.backend.clone(),
                r.tokens.to_string(),
                format!("{:.0} %", r.place * 100.0),
                r.expected.clone(),
                r.said.clone(),
                if r.right { "found" } else { "not found" }.to_owned(),
            ]);
        }
    }
    match table.rows.is_empty() {
        true if outcome.key.model.starts_with("Random ") => {
            page.note("Not asked: the weights of this model are random, it remembers nothing.")
        }
        true => page.note("Not measured."),
        false => page.table(&table),
    };
}

fn loading(page: &mut Page, outcome: &Outcome) {
    page.heading("Loading");
    let mut table = Table::new(
        "Seconds, with the files as the system had them: in its cache or not",
        [
            "back end",
            "open",
            "tokenizer",
            "weights",
            "back end ready",
            "first token",
            "room made, in all",
        ],
    );
    for load in outcome.loads() {
        table.row([
            load.backend.clone(),
            format!("{:.3}", load.open_s),
            format!("{:.3}", load.tokenizer_s),
            format!("{:.3}", load.weights_s),
            format!("{:.3}", load.backend_s),
            format!("{:.3}", load.first_token_s),
            human(load.footprint.bytes()),
        ]);
    }
    page.table(&table);
}

fn promises(page: &mut Page, outcome: &Outcome) {
    page.heading("Targets");
    let mut table = Table::new(
        "Decoding with gpt-oss-20b on Apple silicon",
        ["engine", "promised, tok/s", "here, tok/s", "verdict", ""],
    );
    for v in outcome.verdicts() {
        table.row([
            v.what.to_owned(),
            format!("{:.0} to {:.0}", v.low, v.high),
            v.found.map_or("-".into(), |found| format!("{found:.1}")),
            v.verdict.to_owned(),
            v.why,
        ]);
    }
    page.table(&table);
}

fn rest(page: &mut Page, outcome: &Outcome) {
    page.heading("Left out");
    if outcome.left_out.is_empty() {
        page.note("Nothing.");
    } else {
        let mut table = Table::new("", ["what", "why"]);
        for left in &outcome.left_out {
            table.row([left.what.clone(), left.why.clone()]);
        }
        page.table(&table);
    }
    page.note(&format!(
        "{:.0} s of a budget of {:.0} s; {} of {} measurements were there from an earlier run. Tokens are random, \
         drawn from the model's own distribution by a seed; nothing waits. docs/benchmark.md tells how each figure \
         is taken.",
        outcome.took.as_secs_f64(),
        outcome.budget.as_secs_f64(),
        outcome.resumed,
        outcome.records.len()
    ));
}
