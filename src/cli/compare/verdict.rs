//! Which of the two to use, by rules that docs/compare.md states.

use super::{
    fidelity::Fidelity,
    found::{Judged, SideFound, Speed},
};
use clap::ValueEnum;
use serde::Serialize;

/// What counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefer {
    /// Decode speed; then prefill speed; then memory.
    Speed,
    /// Peak memory; then decode speed.
    Memory,
    /// Nearness to the reference back end; then as speed.
    Fidelity,
}

/// A or B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Winner {
    /// The first.
    A,
    /// The second.
    B,
}

/// The verdict, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// What was asked to count.
    pub prefer: Prefer,
    /// Which to use; none where nothing says so.
    pub winner: Option<Winner>,
    /// The figures that decide, or why there is none.
    pub why: String,
}

impl Verdict {
    /// The verdict in a sentence.
    pub fn sentence(&self) -> String {
        match self.winner {
            Some(winner) => format!("use {winner:?}: {}", self.why),
            None => format!("no verdict: {}", self.why),
        }
    }
}

/// Figures nearer than this, or than their spread over the runs, are taken for equal.
const NEAR: f64 = 0.05;

/// A figure that may decide.
struct Figure {
    name: &'static str,
    a: f64,
    b: f64,
    /// Standard deviations of both, added.
    spread: f64,
    unit: &'static str,
    more_is_better: bool,
}

impl Prefer {
    /// As after `--prefer`.
    pub fn name(self) -> &'static str {
        match self {
            Prefer::Speed => "speed",
            Prefer::Memory => "memory",
            Prefer::Fidelity => "fidelity",
        }
    }
}

impl Figure {
    /// Who is better by more than [`NEAR`], and how that is said.
    fn decides(&self) -> Option<(Winner, String)> {
        let (a, b) = (self.a, self.b);
        let near = self.spread.max(NEAR * a.abs().max(b.abs()));
        if !(a.is_finite() && b.is_finite()) || (a - b).abs() <= near {
            return None;
        }
        let winner = match (a > b) == self.more_is_better {
            true => Winner::A,
            false => Winner::B,
        };
        let (one, other) = match winner {
            Winner::A => (a, b),
            Winner::B => (b, a),
        };
        let show = |x: f64| match x {
            x if x != 0.0 && x.abs() < 0.01 => format!("{x:.2e}"),
            x if x.abs() >= 100.0 => format!("{x:.0}"),
            x => format!("{x:.2}"),
        };
        let (one, other) = (show(one), show(other));
        Some((
            winner,
            format!("{} {one} {} against {other}", self.name, self.unit),
        ))
    }
}

/// What the figures say. `beyond` names the stage where a trace went beyond its tolerance.
pub fn judge(
    prefer: Prefer,
    min_agreement: f64,
    fidelity: &Fidelity,
    beyond: Option<&str>,
    sides: (&SideFound, &SideFound),
    judged: Option<&Judged>,
) -> Verdict {
    let none = |why: String| Verdict {
        prefer,
        winner: None,
        why,
    };
    if fidelity.agreement < min_agreement {
        return none(format!(
            "they agree at {:.2} % of the positions, less than {:.2} %",
            100.0 * fidelity.agreement,
            100.0 * min_agreement
        ));
    }
    if let Some(place) = beyond {
        return none(format!("they part at {place}"));
    }
    let mut figures = Vec::new();
    if let (Prefer::Fidelity, Some(judged)) = (prefer, judged) {
        figures.push(Figure {
            name: "mean KL from the reference",
            a: judged.a_mean_kl,
            b: judged.b_mean_kl,
            spread: 0.0,
            unit: "nats",
            more_is_better: false,
        });
    }
    if let (Some(a), Some(b)) = (&sides.0.speed, &sides.1.speed) {
        let speed = |name, of: fn(&Speed) -> Option<(f64, f64)>| {
            let (a, b) = of(a).zip(of(b))?;
            Some(Figure {
                name,
                a: a.0,
                b: b.0,
                spread: a.1 + b.1,
                unit: "tok/s",
                more_is_better: true,
            })
        };
        let decode = speed("decode", |s| s.decode_tok_per_s);
        let prefill = speed("prefill", |s| s.prefill_tok_per_s);
        let memory = a.peak_memory_bytes.zip(b.peak_memory_bytes);
        let memory = memory.map(|(a, b)| Figure {
            name: "peak memory",
            a: a as f64 * 1e-9,
            b: b as f64 * 1e-9,
            spread: 0.0,
            unit: "GB",
            more_is_better: false,
        });
        match prefer {
            Prefer::Memory => figures.extend(memory.into_iter().chain(decode)),
            _ => figures.extend([decode, prefill, memory].into_iter().flatten()),
        }
    }
    if figures.is_empty() {
        return none("nothing was measured that would decide".into());
    }
    match figures.iter().find_map(Figure::decides) {
        Some((winner, why)) => Verdict {
            prefer,
            winner: Some(winner),
            why,
        },
        None => none("they are equal, within 5 % or their spread, in all that counts".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(decode: f64, prefill: f64, memory: u64) -> SideFound {
        SideFound {
            speed: Some(Speed {
                prompt_tokens: 1,
                tokens: 1,
                ttft_s: 1.0,
                prefill_tok_per_s: Some((prefill, 0.0)),
                decode_tok_per_s: Some((decode, 0.0)),
                token_p50_s: Some(1.0),
                token_p95_s: Some(1.0),
                token_p99_s: Some(1.0),
                joules_per_run: None,
                peak_memory_bytes: Some(memory),
                others: None,
                runs: Vec::new(),
            }),
            ..SideFound::default()
        }
    }

    fn agreement(agreement: f64) -> Fidelity {
        Fidelity {
            agreement,
            ..Fidelity::of(&[])
        }
    }

    #[test]
    fn rules_are_followed_in_order() {
        use Winner::{A, B};
        let all = agreement(1.0);
        let decide = |prefer, a: &SideFound, b: &SideFound, judged: Option<&Judged>| {
            judge(prefer, 0.95, &all, None, (a, b), judged).winner
        };
        let (base, faster) = (side(10.0, 100.0, 1000), side(11.0, 50.0, 2000));
        assert_eq!(decide(Prefer::Speed, &base, &faster, None), Some(B));
        assert_eq!(decide(Prefer::Memory, &base, &faster, None), Some(A));
        // Within 5 % the next figure decides.
        let near = side(10.4, 50.0, 900);
        assert_eq!(decide(Prefer::Speed, &base, &near, None), Some(A));
        assert_eq!(decide(Prefer::Memory, &base, &near, None), Some(B));
        assert_eq!(
            decide(Prefer::Memory, &base, &side(9.0, 1.0, 1010), None),
            Some(A)
        );
        assert_eq!(decide(Prefer::Speed, &base, &base, None), None);
        // So it does within the spread over the runs.
        let mut noisy = side(20.0, 50.0, 1000);
        if let Some(speed) = &mut noisy.speed {
            speed.decode_tok_per_s = Some((20.0, 11.0));
        }
        assert_eq!(decide(Prefer::Speed, &base, &noisy, None), Some(A));
        // A figure that was not measured decides nothing.
        if let Some(speed) = &mut noisy.speed {
            speed.decode_tok_per_s = None;
        }
        assert_eq!(decide(Prefer::Speed, &base, &noisy, None), Some(A));
        let judged = Judged {
            positions: 1,
            a_mean_kl: 2e-4,
            b_mean_kl: 1e-4,
        };
        assert_eq!(
            decide(Prefer::Fidelity, &faster, &base, Some(&judged)),
            Some(B)
        );
        assert_eq!(
            decide(Prefer::Speed, &faster, &base, Some(&judged)),
            Some(A)
        );
        let unmeasured = SideFound::default();
        assert_eq!(
            decide(Prefer::Fidelity, &unmeasured, &unmeasured, Some(&judged)),
            Some(B)
        );
        assert_eq!(decide(Prefer::Speed, &unmeasured, &unmeasured, None), None);
    }

    #[test]
    fn what_does_not_agree_gets_no_verdict() {
        let (a, b) = (side(1.0, 1.0, 1), side(2.0, 2.0, 2));
        let less = judge(
            Prefer::Speed,
            0.95,
            &agreement(0.9499),
            None,
            (&a, &b),
            None,
        );
        assert!(
            less.winner.is_none() && less.why.contains("94.99 %"),
            "{less:?}"
        );
        let all = agreement(1.0);
        let parted = judge(
            Prefer::Speed,
            0.95,
            &all,
            Some("layer 0, x"),
            (&a, &b),
            None,
        );
        assert!(parted.winner.is_none() && parted.why.contains("layer 0, x"));
        let fine = judge(Prefer::Speed, 0.95, &all, None, (&a, &b), None);
        assert_eq!(fine.sentence(), "use B: decode 2.00 tok/s against 1.00");
    }
}
