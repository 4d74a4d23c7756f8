//! Where two engines part: what each stage computed, subtracted.

use crate::trace::Stage;
use serde::Serialize;
use std::collections::BTreeMap;

/// How far B is from A after one stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageError {
    /// The layer; none for `embed` and `norm_lm_head`.
    pub layer: Option<usize>,
    /// The stage's name.
    pub stage: &'static str,
    /// |B - A| / |A| over all rows; infinite (`null` in JSON) where rows differ in length or hold what is no number.
    pub relative_l2: f64,
    /// The same of the row where it is greatest.
    pub worst_row: f64,
    /// That row's position.
    pub worst_position: usize,
}

impl StageError {
    /// `layer 3, attention_reduce`.
    pub fn place(&self) -> String {
        match self.layer {
            Some(layer) => format!("layer {layer}, {}", self.stage),
            None => self.stage.to_owned(),
        }
    }
}

/// Sums over the rows of one stage.
#[derive(Debug, Default)]
struct Sums {
    difference: f64,
    norm: f64,
    worst: (f64, usize),
}

/// Sums by stage, in the order in which stages run.
#[derive(Debug, Default)]
pub struct Stages {
    sums: BTreeMap<(usize, Stage), Sums>,
}

impl Stages {
    /// One row of both.
    pub fn add(
        &mut self,
        layer: Option<usize>,
        stage: Stage,
        position: usize,
        a: &[f32],
        b: &[f32],
    ) {
        let order = match (layer, stage) {
            (Some(layer), _) => layer + 1,
            (None, Stage::NormLmHead) => usize::MAX,
            (None, _) => 0,
        };
        let sums = self.sums.entry((order, stage)).or_default();
        let square = |x: f64| x * x;
        let (mut difference, mut norm) = (0.0, 0.0);
        for (&a, &b) in a.iter().zip(b) {
            difference += square(f64::from(b) - f64::from(a));
            norm += square(f64::from(a));
        }
        if a.len() != b.len() || !difference.is_finite() {
            difference = f64::INFINITY;
        }
        let relative = ratio(difference, norm);
        if relative > sums.worst.0 {
            sums.worst = (relative, position);
        }
        sums.difference += difference;
        sums.norm += norm;
    }

    /// Every stage's error, in the order in which they run.
    pub fn errors(&self) -> Vec<StageError> {
        let of = |(&(order, stage), sums): (&(usize, Stage), &Sums)| StageError {
            layer: order.checked_sub(1).filter(|_| order != usize::MAX),
            stage: stage.name(),
            relative_l2: ratio(sums.difference, sums.norm),
            worst_row: sums.worst.0,
            worst_position: sums.worst.1,
        };
        self.sums.iter().map(of).collect()
    }
}

/// The root of the ratio of two sums of squares: 0 / 0 is no difference.
fn ratio(difference: f64, norm: f64) -> f64 {
    match (difference, norm) {
        (0.0, _) => 0.0,
        (_, norm) if norm > 0.0 && difference.is_finite() => (difference / norm).sqrt(),
        _ => f64::INFINITY,
    }
}

/// What a trace found.
#[derive(Debug, Clone, Serialize)]
pub struct TraceFound {
    /// Tokens traced.
    pub tokens: usize,
    /// The relative L2 that is taken for agreement.
    pub tolerance: f64,
    /// Stages that both sides show, in the order in which they run.
    pub stages: Vec<StageError>,
    /// Stages that only one side shows.
    pub only_one: usize,
    /// The first one beyond the tolerance.
    pub first_beyond: Option<StageError>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_come_in_order_with_their_errors() {
        let mut stages = Stages::default();
        let one = [1.0f32, 0.0];
        stages.add(None, Stage::NormLmHead, 0, &one, &one);
        stages.add(Some(1), Stage::Embed, 0, &one, &one);
        stages.add(Some(0), Stage::NormRouterTopk, 0, &one, &one);
        stages.add(Some(0), Stage::OutProjResidual, 3, &[3.0, 4.0], &[3.0, 3.0]);
        stages.add(
            Some(0),
            Stage::OutProjResidual,
            4,
            &[0.0, 12.0],
            &[0.0, 12.0],
        );
        stages.add(None, Stage::Embed, 0, &[0.0], &[0.0]);
        let errors = stages.errors();
        let places: Vec<_> = errors.iter().map(StageError::place).collect();
        assert_eq!(
            places,
            [
                "embed",
                "layer 0, out_proj_residual",
                "layer 0, norm_router_topk",
                "layer 1, embed",
                "norm_lm_head"
            ]
        );
        assert_eq!(errors[1].relative_l2, 1.0 / 13.0);
        assert_eq!((errors[1].worst_row, errors[1].worst_position), (0.2, 3));
        assert!(
            errors
                .iter()
                .all(|e| e.layer.is_some() == e.place().contains("layer"))
        );
    }

    #[test]
    fn what_cannot_be_subtracted_is_infinitely_far() {
        for (a, b) in [
            (&[1.0f32, 2.0][..], &[1.0f32][..]),
            (&[1.0], &[f32::NAN]),
            (&[f32::INFINITY], &[f32::INFINITY]),
            (&[0.0], &[1.0]),
        ] {
            let mut stages = Stages::default();
            stages.add(None, Stage::Embed, 0, a, b);
            assert_eq!(stages.errors()[0].relative_l2, f64::INFINITY, "{a:?} {b:?}");
        }
    }
}
