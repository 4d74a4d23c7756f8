//! How to choose tokens: the parameters and their ranges.

/// How to choose tokens. The default is what OpenAI recommends for gpt-oss: temperature 1, top-p 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 (greedy) to 100.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens that together have this probability; above 0, up to 1 (all).
    pub top_p: f32,
    /// Keep tokens with at least this share of the likeliest one's probability; 0 (all) to 1.
    pub min_p: f32,
    /// Divide (if positive) or multiply (if negative) the logit of every token in prompt or answer
    /// by this; above 0, up to 10; 1 is off.
    pub repetition_penalty: f32,
    /// Subtract this from the logit of every token already in the answer; -2 to 2.
    pub presence_penalty: f32,
    /// Subtract this times its count from the logit of every token in the answer; -2 to 2.
    pub frequency_penalty: f32,
    /// Add to the logits of these ids; -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws; without it one is made up, see [`Sampler::seed`](super::Sampler::seed).
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// A sampling parameter outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} must be {expected}, not {found}")]
pub struct OutOfRange {
    /// The field of [`Sampling`].
    pub field: &'static str,
    /// What it may be.
    pub expected: String,
    /// What it was.
    pub found: String,
}

impl Sampling {
    /// Checks every field against its range (and the ids of `logit_bias` against `vocab`).
    pub fn check(&self, vocab: usize) -> Result<(), OutOfRange> {
        let fail = |field, expected: &str, found: &dyn ToString| {
            let (expected, found) = (expected.to_string(), found.to_string());
            Err(OutOfRange {
                field,
                expected,
                found,
            })
        };
        // Written so that NaN fails every test.
        let t = self.temperature;
        if !(0.0..=100.0).contains(&t) {
            return fail("temperature", "from 0 (greedy) to 100", &t);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail("top_p", "above 0 and at most 1", &self.top_p);
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return fail("min_p", "from 0 to 1", &self.min_p);
        }
        let r = self.repetition_penalty;
        if !(r > 0.0 && r <= 10.0) {
            return fail("repetition_penalty", "above 0 and at most 10", &r);
        }
        for (field, value) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            if !(-2.0..=2.0).contains(&value) {
                return fail(field, "from -2 to 2", &value);
            }
        }
        for &(id, bias) in &self.logit_bias {
            if id as usize >= vocab {
                let expected = format!("of token ids below {vocab}");
                return fail("logit_bias", &expected, &id);
            }
            if !(-100.0..=100.0).contains(&bias) {
                return fail("logit_bias", "from -100 to 100", &bias);
            }
        }
        Ok(())
    }

    /// Whether anything but temperature and truncation is set.
    pub(super) fn adjusts_logits(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || !self.logit_bias.is_empty()
    }
}
