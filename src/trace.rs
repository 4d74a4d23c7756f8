//! What a forward pass computed after each stage: the common tongue in which engines are compared.
//!
//! Every engine gives a stage's result in the same form, rows of f32 in the order of positions, so that two
//! of them can be subtracted. An engine that can't look after a stage leaves it out.

use anyhow::Result;
use std::{borrow::Cow, fmt};

/// A stage of docs/model.md, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The residual, `[rows, hidden]`.
    Embed,
    /// q, k and v after RoPE, `[rows, q | k | v]`.
    NormQkvRopeAppend,
    /// What the heads attended to, `[rows, heads * head_dim]`.
    AttentionReduce,
    /// The residual, `[rows, hidden]`.
    OutProjResidual,
    /// Each expert's weight, 0 where it was not chosen, `[rows, experts]`.
    NormRouterTopk,
    /// The chosen experts' SwiGLU outputs, the experts of a row by number, `[rows, experts_used * expert_width]`.
    ExpertGateUpSwiglu,
    /// The residual, `[rows, hidden]`.
    ExpertDownResidual,
    /// Logits, `[rows, vocab]`.
    NormLmHead,
}

impl Stage {
    /// All of them, as they run.
    pub const ALL: [Stage; 8] = [
        Stage::Embed,
        Stage::NormQkvRopeAppend,
        Stage::AttentionReduce,
        Stage::OutProjResidual,
        Stage::NormRouterTopk,
        Stage::ExpertGateUpSwiglu,
        Stage::ExpertDownResidual,
        Stage::NormLmHead,
    ];

    /// As it is spelled everywhere.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Embed => "embed",
            Stage::NormQkvRopeAppend => "norm_qkv_rope_append",
            Stage::AttentionReduce => "attention_reduce",
            Stage::OutProjResidual => "out_proj_residual",
            Stage::NormRouterTopk => "norm_router_topk",
            Stage::ExpertGateUpSwiglu => "expert_gate_up_swiglu",
            Stage::ExpertDownResidual => "expert_down_residual",
            Stage::NormLmHead => "norm_lm_head",
        }
    }

    /// The stage of that name.
    pub fn from_name(name: &str) -> Option<Stage> {
        Stage::ALL.into_iter().find(|stage| stage.name() == name)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What one stage computed for some consecutive positions of a sequence.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// The layer; none for `embed` and `norm_lm_head`.
    pub layer: Option<usize>,
    /// The stage.
    pub stage: Stage,
    /// Position of the first row.
    pub start: usize,
    /// Values of a row.
    pub width: usize,
    /// `[rows, width]`.
    pub values: &'a [f32],
}

impl<'a> Piece<'a> {
    /// The rows, with their positions.
    pub fn rows(&self) -> impl Iterator<Item = (usize, &'a [f32])> + use<'a> {
        let rows = self.values.chunks_exact(self.width.max(1));
        (self.start..).zip(rows)
    }
}

/// Takes what stages computed, piece by piece.
pub type Sink<'a> = dyn FnMut(Piece<'_>) -> Result<()> + Send + 'a;

/// What a back end shows its stages' results to; nothing happens where no trace is wanted.
pub struct Tap<'a, 's> {
    sink: Option<&'a mut Sink<'s>>,
    start: usize,
    rows: usize,
    result: Result<()>,
}

impl<'a, 's> Tap<'a, 's> {
    /// For `rows` positions from `start` on.
    pub fn new(sink: Option<&'a mut Sink<'s>>, start: usize, rows: usize) -> Tap<'a, 's> {
        Tap {
            sink,
            start,
            rows,
            result: Ok(()),
        }
    }

    /// Gives the sink a stage's `[rows, width]`. After an error of the sink it is not called again.
    pub fn show<'v>(
        &mut self,
        layer: Option<usize>,
        stage: Stage,
        values: impl FnOnce() -> Cow<'v, [f32]>,
    ) {
        if let (Some(sink), Ok(())) = (&mut self.sink, &self.result) {
            let values = values();
            self.result = sink(Piece {
                layer,
                stage,
                start: self.start,
                width: values.len() / self.rows.max(1),
                values: &values,
            });
        }
    }

    /// The sink's error, if it had one.
    pub fn finish(self) -> Result<()> {
        self.result
    }
}

/// `parts`, each `[rows, its width]`, side by side in one row.
pub fn beside(rows: usize, parts: &[&[f32]]) -> Vec<f32> {
    let row = |r: usize| {
        parts
            .iter()
            .flat_map(move |part| &part[part.len() / rows * r..][..part.len() / rows])
    };
    (0..rows).flat_map(row).copied().collect()
}

/// `norm_router_topk` from the choices `[rows, used]` of expert and weight.
pub fn expert_weights(choices: &[(u32, f32)], used: usize, experts: usize) -> Vec<f32> {
    let mut weights = vec![0.0; choices.len() / used * experts];
    for (row, choices) in weights
        .chunks_exact_mut(experts)
        .zip(choices.chunks_exact(used))
    {
        for &(expert, weight) in choices {
            row[expert as usize] = weight;
        }
    }
    weights
}

/// `expert_gate_up_swiglu` from the outputs `[rows, used, width]` of the experts in `choices`.
pub fn by_expert(choices: &[(u32, f32)], used: usize, outputs: &[f32]) -> Vec<f32> {
    let width = outputs.len() / choices.len().max(1);
    let mut sorted = Vec::with_capacity(outputs.len());
    for (row, choices) in choices.chunks_exact(used).enumerate() {
        let mut ranks: Vec<usize> = (0..used).collect();
        ranks.sort_by_key(|&rank| choices[rank].0);
        for rank in ranks {
            sorted.extend_from_slice(&outputs[(row * used + rank) * width..][..width]);
        }
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_have_one_name() {
        for stage in Stage::ALL {
            assert_eq!(Stage::from_name(stage.name()), Some(stage));
        }
        assert!(Stage::ALL.is_sorted());
        assert_eq!(Stage::from_name("attention_partial"), None);
    }

    #[test]
    fn experts_come_by_number() {
        let choices = [(5, 0.75), (2, 0.25), (0, 0.5), (1, 0.5)];
        let weights = expert_weights(&choices, 2, 6);
        assert_eq!(
            weights,
            [0., 0., 0.25, 0., 0., 0.75, 0.5, 0.5, 0., 0., 0., 0.]
        );
        let outputs = [50., 51., 20., 21., 0., 1., 10., 11.];
        assert_eq!(
            by_expert(&choices, 2, &outputs),
            [20., 21., 50., 51., 0., 1., 10., 11.]
        );
        assert_eq!(
            beside(2, &[&[1., 2.], &[3., 4., 5., 6.]]),
            [1., 3., 4., 2., 5., 6.]
        );
    }

    #[test]
    fn a_sink_that_failed_is_left_alone() {
        let mut calls = 0;
        let mut sink = |piece: Piece<'_>| {
            calls += 1;
            anyhow::ensure!(piece.start < 3, "full");
            Ok(())
        };
        let mut tap = Tap::new(Some(&mut sink), 3, 2);
        for _ in 0..2 {
            tap.show(None, Stage::Embed, || Cow::Borrowed(&[1.0; 4]));
        }
        assert!(tap.finish().is_err());
        assert_eq!(calls, 1);
        let mut off = Tap::new(None, 0, 1);
        off.show(None, Stage::Embed, || unreachable!("nobody looks"));
        assert!(off.finish().is_ok());
    }
}
