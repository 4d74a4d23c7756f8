//! The parts by themselves: tokenizer, Harmony parser, sampler, masks, and the CPU's product kernels.

use super::masks::{self, MaskTimes};
use crate::{
    backend::cpu::micro::{self, KernelSpeed},
    cli::model::Loaded,
    harmony::{Parser, ToolNames},
    sampler::{Mask, Sampler, Sampling},
    tokenizer::sample,
};
use anyhow::Result;
use serde_json::{Value, json};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Times of the best of a few rounds, and the kernels' speeds.
pub struct Micro {
    tokenizer_build: Duration,
    /// To encode [`Micro::text_bytes`] of mixed text.
    encode: Duration,
    text_bytes: usize,
    text_tokens: usize,
    /// To parse those tokens as a Harmony answer.
    parse: Duration,
    vocab: usize,
    /// To choose one token by each way of sampling.
    samples: Vec<(&'static str, Duration)>,
    /// To prepare o200k for masks.
    masks_build: Duration,
    masks: Vec<MaskTimes>,
    kernels: Vec<KernelSpeed>,
}

const ROUNDS: usize = 5;
/// Time for each kernel's figure.
const KERNEL_TIME: Duration = Duration::from_millis(50);

/// Measures all of it.
pub fn measure(loaded: &Loaded) -> Result<Micro> {
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let text = sample::text(1_000_000, 1);
    loaded.checkpoint.tokenizer()?;
    let tokenizer_build = best(|| loaded.checkpoint.tokenizer().is_ok());
    let tokens = loaded.tokenizer.encode(&text);
    let encode = best(|| loaded.tokenizer.encode(&text));
    Parser::new(loaded.tokenizer.clone(), ToolNames::default())?;
    let parse = best(|| {
        let mut parser = Parser::new(loaded.tokenizer.clone(), ToolNames::default()).ok()?;
        for &id in &tokens {
            black_box(parser.push(id));
        }
        Some(parser.finish())
    });
    let vocab = loaded.model.config.vocab;
    // Peaked as a model's: most tokens far below the best.
    let logits: Vec<f32> = (0..vocab)
        .map(|_| {
            let u = (next() >> 11) as f64 / (1u64 << 53) as f64;
            (-(1.0 - u).ln()).powi(2) as f32 - 4.0
        })
        .collect();
    let base = Sampling {
        seed: Some(1),
        ..Sampling::default()
    };
    let ways = [
        (
            "greedy",
            Sampling {
                temperature: 0.0,
                ..base.clone()
            },
            None,
        ),
        ("temperature 1", base.clone(), None),
        (
            "top-k 40",
            Sampling {
                top_k: 40,
                ..base.clone()
            },
            None,
        ),
        (
            "top-p 0.95",
            Sampling {
                top_p: 0.95,
                ..base.clone()
            },
            None,
        ),
        (
            "min-p 0.05",
            Sampling {
                min_p: 0.05,
                ..base.clone()
            },
            None,
        ),
        (
            "greedy, 5 top logprobs",
            Sampling {
                temperature: 0.0,
                ..base
            },
            Some(5),
        ),
    ];
    let padding = loaded.tokenizer.padding_ids();
    let samples = ways.into_iter().map(|(name, sampling, logprobs)| {
        let mut sampler = Sampler::new(&sampling, vocab, padding, logprobs, &[]);
        let each = 50;
        let time = best(|| (0..each).all(|_| sampler.sample(&logits, &Mask::Any).is_ok()));
        (name, time / each)
    });
    let (masks_build, masks) = masks::measure()?;
    Ok(Micro {
        tokenizer_build,
        encode,
        text_bytes: text.len(),
        text_tokens: tokens.len(),
        parse,
        vocab,
        samples: samples.collect(),
        masks_build,
        masks,
        kernels: micro::measure(KERNEL_TIME),
    })
}

/// The shortest of a few runs of `work`.
fn best<T>(mut work: impl FnMut() -> T) -> Duration {
    let run = |_| {
        let started = Instant::now();
        black_box(work());
        started.elapsed()
    };
    (0..ROUNDS).map(run).min().unwrap_or_default()
}

impl Micro {
    pub fn json(&self) -> Value {
        let samples: serde_json::Map<String, Value> = self
            .samples
            .iter()
            .map(|(name, time)| ((*name).to_string(), json!(time.as_secs_f64())))
            .collect();
        json!({
            "tokenizer_build_s": self.tokenizer_build.as_secs_f64(),
            "encode_s": self.encode.as_secs_f64(),
            "encode_bytes": self.text_bytes,
            "encode_tokens": self.text_tokens,
            "parse_s": self.parse.as_secs_f64(),
            "sample_s": samples,
            "masks_build_s": self.masks_build.as_secs_f64(),
            "masks": self.masks.iter().map(MaskTimes::json).collect::<Vec<_>>(),
            "kernels": self.kernels,
        })
    }

    pub fn lines(&self) -> Vec<String> {
        let millis = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        let rate = self.text_tokens as f64 / self.parse.as_secs_f64() / 1e6;
        let mut lines = vec![
            format!("tokenizer: built in {}", millis(self.tokenizer_build)),
            format!(
                "tokenizer: {:.2} MB ({} tokens) encoded in {}",
                self.text_bytes as f64 / 1e6,
                self.text_tokens,
                millis(self.encode)
            ),
            format!("Harmony: {rate:.1} million tokens/s parsed"),
        ];
        lines.extend(self.samples.iter().map(|(name, time)| {
            format!(
                "sampler: {:.0} us, {name}, of {} logits",
                time.as_secs_f64() * 1e6,
                self.vocab
            )
        }));
        lines.push(format!(
            "masks: o200k prepared in {}",
            millis(self.masks_build)
        ));
        lines.extend(self.masks.iter().map(MaskTimes::line));
        lines.push(String::new());
        lines.push("kernels alone, one thread, weights in the caches:".into());
        lines.push(format!(
            "{:<8} {:<6} {:>6} {:>7} {:>7}",
            "ISA", "format", "tokens", "GB/s", "GOP/s"
        ));
        lines.extend(self.kernels.iter().map(|kernel| {
            format!(
                "{:<8} {:<6} {:>6} {:>7.2} {:>7.1}",
                kernel.isa,
                kernel.format,
                kernel.tokens,
                kernel.bytes_per_s / 1e9,
                kernel.ops_per_s / 1e9
            )
        }));
        lines
    }
}
