//! The roofline: bytes that a decoded token reads, and so the most tokens a second that memory allows.

use crate::weights::{Linear, Matrix, Model};

/// Bytes of a model's weights, by how often a token reads them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reads {
    /// Every token reads these: attention, routers, the LM head.
    always: f64,
    /// All experts of all layers.
    experts: f64,
    /// Part of the experts that one token uses.
    used: f64,
    /// Keys and values of a position, in all full-attention layers, and in all sliding ones.
    full: f64,
    sliding: f64,
    window: usize,
}

impl Reads {
    /// Of a model whose shapes and formats are known.
    pub fn of(model: &Model) -> Reads {
        let (config, weights) = (&model.config, &model.weights);
        let bytes = |m: &Matrix| (m.rows * m.format.row_bytes(m.cols)) as f64;
        let sum = |linears: &[&Linear]| linears.iter().map(|l| bytes(&l.weight)).sum::<f64>();
        let dense = weights
            .layers
            .iter()
            .map(|l| sum(&[&l.q, &l.k, &l.v, &l.o, &l.router]));
        let experts = weights
            .layers
            .iter()
            .map(|l| sum(&[&l.gate, &l.up, &l.down]));
        let position = (2 * config.kv_heads * config.head_dim * 2) as f64;
        let sliding = config.sliding_layers();
        Reads {
            always: dense.sum::<f64>() + bytes(&weights.output),
            experts: experts.sum(),
            used: config.experts_used as f64 / config.experts as f64,
            full: position * (config.layers - sliding) as f64,
            sliding: position * sliding as f64,
            window: config.window,
        }
    }

    /// Bytes of one step of so many sequences, each `depth` tokens long: weights once, where the tokens of a
    /// step choose their experts independently.
    pub fn step(&self, streams: usize, depth: usize) -> f64 {
        let touched = 1.0 - (1.0 - self.used).powi(streams.min(10_000) as i32);
        let kv = self.full * depth as f64 + self.sliding * depth.min(self.window) as f64;
        self.always + self.experts * touched + streams as f64 * kv
    }
}

/// Speeds that were promised for gpt-oss-20b, in decoded tokens a second, on Apple silicon.
pub const TARGETS: [(&str, f64, f64); 2] = [("native", 150.0, 200.0), ("MLX", 80.0, 150.0)];

/// Whether this machine is one that the targets were promised for.
pub fn is_apple() -> bool {
    cfg!(all(target_os = "macos", target_arch = "aarch64"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::Checkpoint,
        gguf::Gguf,
        synth::{Preset, Synth},
        tokenizer::Vocabulary,
    };

    #[test]
    fn a_token_reads_what_the_back_end_counts() -> anyhow::Result<()> {
        let vocabulary = Vocabulary::bytes();
        let config = Preset::Tiny.config(vocabulary.tokens.len());
        let bytes = Synth::new(&config, &vocabulary, 1)?.to_bytes();
        let checkpoint: Checkpoint = Gguf::from_bytes("tiny", &bytes)?.into();
        let reads = Reads::of(&checkpoint.check()?.model);
        let limits = crate::backend::Limits {
            slots: 1,
            kv_blocks: 16,
            batch_tokens: 300,
            snapshots: 0,
        };
        let options = crate::backend::Options {
            backend: "cpu".into(),
            threads: 1,
            limits,
        };
        let mut backend = crate::backend::open(checkpoint.load()?.into(), &options)?;
        let mut forward = |start: usize, tokens: usize| {
            let segment = crate::backend::Segment {
                slot: 0,
                start,
                kept: 0,
                tokens: vec![7; tokens],
                blocks: (0..16).collect(),
                logits: crate::backend::LogitRows::Last,
            };
            let segments = vec![segment];
            let before = backend.work().bytes;
            backend.forward(&crate::backend::Batch { segments })?;
            anyhow::Ok(backend.work().bytes - before)
        };
        forward(0, 300)?;
        assert_eq!(forward(300, 1)? as f64, reads.step(1, 301));
        // Many streams touch every expert, and each reads its own keys and values.
        let many = reads.step(1000, 0);
        assert!((many / (reads.always + reads.experts) - 1.0).abs() < 1e-9);
        Ok(())
    }
}
