//! How near two engines' predictions are: teacher-forced over the same ids, position by position.
//!
//! All in f64 over the whole vocabulary. A is the yardstick: divergences are from A's distribution.

use anyhow::{Result, ensure};
use serde::Serialize;

/// One position: what both predict to follow it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Position {
    /// Which sequence.
    pub sequence: usize,
    /// Position in it.
    pub position: usize,
    /// The id that follows, if one does.
    pub next: Option<u32>,
    /// KL(A || B), nats.
    pub kl: f64,
    /// B's log-probability of the id that follows, less A's.
    pub delta_logprob: Option<f64>,
    /// A's likeliest id; ties to the lower one.
    pub a_top: u32,
    /// B's.
    pub b_top: u32,
    /// How much likelier than B's choice A finds its own, nats; 0 where they agree.
    pub a_margin: f64,
    /// How much likelier than A's choice B finds its own, nats; 0 where they agree.
    pub b_margin: f64,
}

/// A row of logits as log-probabilities.
struct Logprobs {
    values: Vec<f64>,
    top: usize,
}

impl Logprobs {
    fn new(logits: &[f32]) -> Logprobs {
        let mut top = 0;
        for (id, &x) in logits.iter().enumerate() {
            if x > logits[top] {
                top = id;
            }
        }
        let max = logits.get(top).map_or(0.0, |&x| f64::from(x));
        let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
        let log_sum = max + sum.ln();
        Logprobs {
            values: logits.iter().map(|&x| f64::from(x) - log_sum).collect(),
            top,
        }
    }
}

/// Compares the logits after `ids[position]`.
///
/// # Errors
/// When a logit is no finite number, or the rows differ in length.
pub fn compare(
    sequence: usize,
    position: usize,
    ids: &[u32],
    a: &[f32],
    b: &[f32],
) -> Result<Position> {
    ensure!(
        a.len() == b.len() && !a.is_empty(),
        "A has {} logits, B {}: these are two vocabularies",
        a.len(),
        b.len()
    );
    for (name, row) in [("A", a), ("B", b)] {
        ensure!(
            row.iter().all(|x| x.is_finite()),
            "{name}: sequence {sequence}, position {position}: logits that are not finite numbers"
        );
    }
    let (a, b) = (Logprobs::new(a), Logprobs::new(b));
    let terms = a.values.iter().zip(&b.values);
    let kl: f64 = terms.map(|(a, b)| a.exp() * (a - b)).sum();
    let next = ids.get(position + 1).copied();
    let delta = next.and_then(|id| {
        let id = id as usize;
        Some(b.values.get(id)? - a.values.get(id)?)
    });
    Ok(Position {
        sequence,
        position,
        next,
        // What is 0 in truth may come out a little below.
        kl: kl.max(0.0),
        delta_logprob: delta,
        a_top: a.top as u32,
        b_top: b.top as u32,
        a_margin: a.values[a.top] - a.values[b.top],
        b_margin: b.values[b.top] - b.values[a.top],
    })
}

/// All positions together.
#[derive(Debug, Clone, Serialize)]
pub struct Fidelity {
    /// Positions compared.
    pub positions: usize,
    /// Share of them with the same likeliest id.
    pub agreement: f64,
    /// Nats.
    pub mean_kl: f64,
    /// Nats.
    pub max_kl: f64,
    /// The greatest difference of the log-probability of an id that follows.
    pub max_delta_logprob: f64,
    /// The first position, in order, where the likeliest ids differ.
    pub first_divergence: Option<Position>,
}

impl Fidelity {
    /// Of all of these.
    pub fn of(positions: &[Position]) -> Fidelity {
        let n = positions.len().max(1) as f64;
        let same = positions.iter().filter(|p| p.a_top == p.b_top).count();
        let max = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let deltas = positions.iter().filter_map(|p| p.delta_logprob);
        Fidelity {
            positions: positions.len(),
            agreement: same as f64 / n,
            mean_kl: positions.iter().map(|p| p.kl).sum::<f64>() / n,
            max_kl: max(&mut positions.iter().map(|p| p.kl)),
            max_delta_logprob: max(&mut deltas.map(f64::abs)),
            first_divergence: positions.iter().find(|p| p.a_top != p.b_top).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ln(p: &[f64]) -> Vec<f32> {
        p.iter().map(|p| (p.ln() + 3.0) as f32).collect()
    }

    #[test]
    fn figures_are_those_of_the_distributions() {
        let (a, b) = (ln(&[0.5, 0.3, 0.2]), ln(&[0.25, 0.5, 0.25]));
        let p = compare(1, 0, &[7, 2], &a, &b).unwrap();
        let kl = 0.5 * 2f64.ln() + 0.3 * 0.6f64.ln() + 0.2 * 0.8f64.ln();
        let close = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-6, "{found}, {expected}");
        };
        close(p.kl, kl);
        close(p.delta_logprob.unwrap(), 1.25f64.ln());
        assert_eq!((p.a_top, p.b_top), (0, 1));
        close(p.a_margin, (0.5f64 / 0.3).ln());
        close(p.b_margin, 2f64.ln());
        let same = compare(0, 1, &[7, 2], &a, &a).unwrap();
        assert_eq!(
            (same.kl, same.delta_logprob, same.a_margin),
            (0.0, None, 0.0)
        );
        let all = Fidelity::of(&[same, p.clone()]);
        assert_eq!((all.positions, all.agreement), (2, 0.5));
        close(all.mean_kl, kl / 2.0);
        close(all.max_kl, kl);
        close(all.max_delta_logprob, 1.25f64.ln());
        assert_eq!(all.first_divergence, Some(p));
    }

    #[test]
    fn ties_go_to_the_lower_id_and_extremes_stay_finite() {
        let tie = compare(0, 0, &[0], &[1.0, 2.0, 2.0], &[1.0, 2.0, 2.5]).unwrap();
        assert_eq!((tie.a_top, tie.b_top, tie.a_margin), (1, 2, 0.0));
        assert!(tie.b_margin > 0.0);
        let far = compare(0, 0, &[0], &[-1e30, 1e30], &[1e30, -1e30]).unwrap();
        assert!(far.kl > 1e30 && far.kl.is_finite());
        assert!(compare(0, 0, &[0], &[f32::NAN, 0.0], &[0.0, 0.0]).is_err());
        assert!(compare(0, 0, &[0], &[0.0, 0.0], &[f32::INFINITY, 0.0]).is_err());
        assert!(compare(0, 0, &[0], &[0.0; 3], &[0.0; 2]).is_err());
    }
}
