//! The flags that say how tokens are chosen.

use super::Usage;
use crate::sampler::Sampling;
use anyhow::Result;

/// How to choose tokens.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Sampling options")]
pub struct Flags {
    /// Randomness: 0 always takes the likeliest token. Default: 1, as OpenAI recommends for gpt-oss;
    /// 0 for the demo model
    #[arg(long)]
    temperature: Option<f32>,
    /// Choose among the likeliest tokens that together have this probability; 1 is all
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Choose among the K likeliest tokens; 0 is all
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Leave out tokens with less than this share of the likeliest one's probability
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    min_p: f32,
    /// Make tokens of prompt and answer less likely; 1 is off
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    repetition_penalty: f32,
    /// Make tokens of the answer less likely by this; 0 is off
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "AMOUNT",
        allow_negative_numbers = true
    )]
    presence_penalty: f32,
    /// As the presence penalty, for each time a token has come
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "AMOUNT",
        allow_negative_numbers = true
    )]
    frequency_penalty: f32,
    /// Add BIAS (-100 to 100) to the logit of token ID; may be given several times
    #[arg(long, value_name = "ID=BIAS", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    parsed.ok_or_else(|| "expected ID=BIAS, such as 1734=-100".into())
}

impl Flags {
    /// The sampling they ask for. `demo` chooses the default temperature.
    ///
    /// # Errors
    /// [`Usage`] that names the flag whose value is out of range.
    pub fn sampling(&self, demo: bool, seed: Option<u64>) -> Result<Sampling> {
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(if demo { 0.0 } else { 1.0 }),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed,
        };
        // Ids of biases are checked against the vocabulary by the engine, which knows it.
        match sampling.check(usize::MAX) {
            Ok(()) => Ok(sampling),
            Err(wrong) => {
                let flag = wrong.field.replace('_', "-");
                let (expected, found) = (wrong.expected, wrong.found);
                Err(Usage(format!("--{flag} must be {expected}, not {found}")).into())
            }
        }
    }
}
