//! What both sides predict, and what their stages compute, over the same ids: A's rows wait on disk for B's.

use super::{
    comparison::Comparison,
    fidelity::{self, Fidelity, Position},
    found::{Judged, Sequence},
    kept::{self, Kept, Key},
    side::Side,
    stages::{Stages, TraceFound},
    verdict::Prefer,
    wire::{Say, Task},
};
use crate::{cli::model::Common, config::Config};
use anyhow::{Result, bail, ensure};

/// Where no tolerance is given: the same arithmetic, or another one.
const SAME: f64 = 1e-4;
const OTHER: f64 = 0.2;
/// Positions that the reference judges: it is slow.
const JUDGED: usize = 48;

impl Comparison<'_> {
    /// The reference's logits for the beginning of the first sequence, where nearness to it counts.
    pub(super) fn judge(&self, sequences: &[Sequence]) -> Result<Option<Kept>> {
        if self.args.prefer != Prefer::Fidelity {
            return Ok(None);
        }
        let Some(first) = sequences.first() else {
            return Ok(None);
        };
        let ids = first.ids[..first.ids.len().min(JUDGED)].to_vec();
        tell!(
            "reference: scoring {} tokens to judge by; it is slow",
            ids.len()
        );
        let mut kept = Kept::new((ids.len() * self.vocab * 4) as u64)?;
        let side = Side {
            text: "reference".into(),
            program: None,
            ..self.sides[0].0.clone()
        };
        let common = Common {
            backend: "reference".into(),
            ..self.sides[0].1.clone()
        };
        let task = Task::Score {
            sequences: vec![ids],
            trace: None,
        };
        side.run(&common, task, &mut |said, values| {
            if let Say::Ready { .. } = said {
                return Ok(());
            }
            kept::rows(&said, &values, &mut |row| kept.push(row))
        })?;
        Ok(Some(kept))
    }

    /// Scores both sides, and traces them.
    pub(super) fn score(&self, sequences: &[Sequence], mut judge: Option<Kept>) -> Result<Scored> {
        let args = self.args;
        let ids: Vec<&[u32]> = sequences.iter().map(|s| &s.ids[..]).collect();
        let longest = ids
            .iter()
            .max_by_key(|ids| ids.len())
            .copied()
            .unwrap_or(&[]);
        let traced = longest[..longest.len().min(args.trace_tokens)].to_vec();
        let task = || Task::Score {
            sequences: ids.iter().map(|ids| ids.to_vec()).collect(),
            trace: args.trace.then(|| traced.clone()),
        };
        let rows: usize = ids.iter().map(|ids| ids.len()).sum();
        let traced_values = match args.trace {
            true => traced.len() * traced_width(&self.config),
            false => 0,
        };
        let mut kept = Kept::new(4 * (rows * self.vocab + traced_values) as u64)?;
        let mut ready = [const { (String::new(), 0.0) }; 2];
        let mut from_judge = [const { Vec::new() }; 2];
        let mut positions: Vec<Position> = Vec::new();
        let (mut stages, mut only_one) = (Stages::default(), 0);
        for i in 0..2 {
            self.tell(
                i,
                if args.trace {
                    "scoring and tracing"
                } else {
                    "scoring"
                },
            );
            let (side, common) = &self.sides[i];
            let each = &mut |said: Say, values: Vec<f32>| {
                if let Say::Ready {
                    description,
                    load_s,
                } = said
                {
                    ready[i] = (description, load_s);
                    return Ok(());
                }
                kept::rows(&said, &values, &mut |row| {
                    if let (Key::Row(s, p), Some(judge)) = (row.key, &mut judge)
                        && let Some(truth) = judge.get(row.key)?
                    {
                        from_judge[i].push(fidelity::compare(s, p, &[], &truth, row.values)?);
                    }
                    if i == 0 {
                        return kept.push(row);
                    }
                    match (row.key, kept.get(row.key)?) {
                        (Key::Row(s, p), Some(a)) => {
                            let ids = ids.get(s).copied().unwrap_or(&[]);
                            positions.push(fidelity::compare(s, p, ids, &a, row.values)?);
                        }
                        (Key::Row(s, p), None) => {
                            bail!("B has sequence {s}, position {p}; A has not")
                        }
                        (Key::Stage(layer, stage, p), Some(a)) => {
                            stages.add(layer, stage, p, &a, row.values);
                        }
                        (Key::Stage(_, _, p), None) => only_one += usize::from(p == 0),
                    }
                    Ok(())
                })
            };
            side.run(common, task(), each)?;
        }
        ensure!(
            positions.len() == rows,
            "{} of {rows} positions were scored",
            positions.len()
        );
        let trace = args.trace.then(|| {
            let same = arithmetic(&ready[0].0) == arithmetic(&ready[1].0);
            let tolerance = args.tolerance.unwrap_or(if same { SAME } else { OTHER });
            let errors = stages.errors();
            only_one += kept.stages().saturating_sub(errors.len());
            TraceFound {
                tokens: traced.len(),
                tolerance,
                first_beyond: errors.iter().find(|e| e.relative_l2 > tolerance).cloned(),
                stages: errors,
                only_one,
            }
        });
        let judged = judge.map(|_| Judged {
            positions: from_judge[0].len(),
            a_mean_kl: Fidelity::of(&from_judge[0]).mean_kl,
            b_mean_kl: Fidelity::of(&from_judge[1]).mean_kl,
        });
        Ok(Scored {
            ready,
            positions,
            trace,
            judged,
        })
    }
}

/// What a back end that describes itself so computes in: `f32`, or in its own way.
fn arithmetic(description: &str) -> &str {
    let name = description.split(' ').next().unwrap_or("");
    match name == "reference" || description.starts_with("mlx (cpu ") {
        true => "f32",
        false => name,
    }
}

/// Values that a trace has of a token.
fn traced_width(config: &Config) -> usize {
    let heads = config.heads * config.head_dim;
    let qkv = heads + 2 * config.kv_heads * config.head_dim;
    let experts = config.experts + config.experts_used * config.expert_width;
    let layer = qkv + heads + 2 * config.hidden + experts;
    config.layers * layer + config.hidden + config.vocab
}

/// What both sides predicted.
pub struct Scored {
    /// What computes, and seconds to load it, by side.
    pub ready: [(String, f64); 2],
    /// Every position.
    pub positions: Vec<Position>,
    /// Where they part inside, if that was asked.
    pub trace: Option<TraceFound>,
    /// How near each is to the reference, if that was asked.
    pub judged: Option<Judged>,
}
