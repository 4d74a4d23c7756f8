//! Logits to a token.
//!
//! The order is fixed: penalties and bias on the raw logits; greedy if the temperature is 0; else
//! temperature, top-k, top-p, min-p, each on what the one before left, and one random draw. A draw
//! depends on the seed, the step and the logits alone, so a seed gives the same tokens on any number
//! of threads. Log-probabilities are the model's own: log-softmax of the raw logits, before
//! penalties, bias, temperature and truncation. Padding ids are never sampled nor listed.
//!
//! Speed over 200,000 logits comes from [`select`]'s block maxima: truncation looks only into blocks
//! that can hold a survivor, and nothing is ever sorted but the survivors.

mod draw;
mod mask;
mod math;
mod params;
mod score;
pub mod select;
#[cfg(test)]
mod tests;

pub use draw::{Draw, blocks};
pub use mask::{Mask, MaskSource};
pub use params::{OutOfRange, Sampling};

use mask::Gathered;
use math::{exp, sum_exp};
use select::{BlockMax, Candidate};
use std::ops::Range;

/// Below this temperature the distribution is a point in f32: greedy.
const GREEDY_BELOW: f32 = 1e-5;

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Its log-probability under the model, where log-probabilities were asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens under the model with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why no token could be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// A logit is NaN or infinite.
    #[error("the logit of token {id} is {value}: the model's weights or the back end are broken")]
    NotFinite {
        /// The token.
        id: usize,
        /// Its logit.
        value: f32,
    },
    /// The back end's logits don't fit the sampler.
    #[error("{found} logits for a vocabulary of {expected}")]
    Length {
        /// Vocabulary.
        expected: usize,
        /// Logits given.
        found: usize,
    },
    /// Every id is padding.
    #[error("the vocabulary holds no token that may be sampled")]
    Empty,
    /// The mask leaves nothing.
    #[error("the mask allows no token at all")]
    NothingAllowed,
}

/// Chooses one sequence's tokens, one a step.
pub struct Sampler {
    sampling: Sampling,
    logprobs: Option<usize>,
    vocab: usize,
    /// All ids, padding included: what log-probabilities are taken over.
    everything: Range<usize>,
    /// Ids that may be sampled: the vocabulary without padding, ascending.
    allowed: Vec<Range<usize>>,
    /// Distinct tokens of prompt and answer, for the repetition penalty.
    seen: Counts,
    /// Tokens of the answer and how often, for presence and frequency penalties.
    answered: Counts,
    seed: u64,
    step: u64,
    /// Adjusted logits, where anything adjusts them.
    adjusted: Vec<f32>,
    /// Allowed logits side by side, where a mask leaves many holes.
    gathered: Gathered,
}

/// The chosen token's log-probability, and the likeliest tokens with theirs.
type Logprobs = (Option<f32>, Vec<(u32, f32)>);
type Counts = rustc_hash::FxHashMap<u32, u32>;

impl Sampler {
    /// A sampler for logits `[vocab]`. `padding` ids are never sampled. `logprobs` asks for the
    /// chosen token's log-probability and that many of the likeliest. `prompt` counts for the
    /// repetition penalty.
    pub fn new(
        sampling: &Sampling,
        vocab: usize,
        padding: &[u32],
        logprobs: Option<usize>,
        prompt: &[u32],
    ) -> Sampler {
        let mut seen = Counts::default();
        if sampling.repetition_penalty != 1.0 {
            seen.extend(prompt.iter().map(|&id| (id, 1)));
        }
        Sampler {
            logprobs,
            vocab,
            everything: 0..vocab,
            allowed: allowed(padding, vocab),
            seen,
            answered: Counts::default(),
            seed: sampling.seed.unwrap_or_else(fresh_seed),
            step: 0,
            adjusted: Vec::new(),
            gathered: Gathered::default(),
            sampling: sampling.clone(),
        }
    }

    /// The seed in use: the one given, or the one made up.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses the next token from raw logits `[vocab]`, among those that `mask` allows, and
    /// remembers it.
    ///
    /// # Errors
    /// When a logit is not finite, their number is wrong, or nothing may be sampled.
    pub fn sample(&mut self, logits: &[f32], mask: &Mask) -> Result<Sampled, SampleError> {
        if logits.len() != self.vocab {
            return Err(SampleError::Length {
                expected: self.vocab,
                found: logits.len(),
            });
        }
        if self.allowed.is_empty() {
            return Err(SampleError::Empty);
        }
        let id = if self.sampling.adjusts_logits() {
            if !math::all_finite(logits) {
                return Err(not_finite(logits));
            }
            let mut adjusted = std::mem::take(&mut self.adjusted);
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            self.adjust(&mut adjusted);
            let id = self.choose_among(&adjusted, mask);
            self.adjusted = adjusted;
            id?
        } else {
            self.choose_among(logits, mask)?
        };
        self.step += 1;
        if self.sampling.adjusts_logits() {
            *self.answered.entry(id).or_default() += 1;
            self.seen.insert(id, 1);
        }
        let (logprob, top) = match self.logprobs {
            Some(n) => self.logprobs(logits, id, n)?,
            None => (None, Vec::new()),
        };
        Ok(Sampled { id, logprob, top })
    }

    /// How to draw the next token, where that takes nothing but the logits: no mask, no penalty, no truncation, no
    /// log-probabilities. Whoever has drawn it says so by [`Sampler::took`].
    pub fn plain(&self) -> Option<Draw> {
        let s = &self.sampling;
        let greedy = s.temperature < GREEDY_BELOW || s.top_k == 1;
        let truncates = s.top_k > 0 || s.top_p < 1.0 || s.min_p > 0.0;
        let plain = !s.adjusts_logits() && self.logprobs.is_none() && (greedy || !truncates);
        plain.then(|| Draw {
            greedy,
            scale: if greedy { 1.0 } else { 1.0 / s.temperature },
            u: uniform(self.seed, self.step),
        })
    }

    /// The token that was drawn as [`Sampler::plain`] said.
    pub fn took(&mut self, id: u32) -> Sampled {
        self.step += 1;
        Sampled {
            id,
            logprob: None,
            top: Vec::new(),
        }
    }

    /// Penalties, then bias. Kept finite, so that a huge bias is a preference and not a NaN.
    fn adjust(&self, logits: &mut [f32]) {
        let s = &self.sampling;
        let at = |id: &u32| (*id as usize) < self.vocab;
        if s.repetition_penalty != 1.0 {
            for &id in self.seen.keys().filter(|&id| at(id)) {
                let x = &mut logits[id as usize];
                *x = if *x > 0.0 {
                    *x / s.repetition_penalty
                } else {
                    *x * s.repetition_penalty
                };
            }
        }
        for (&id, &count) in self.answered.iter().filter(|(id, _)| at(id)) {
            logits[id as usize] -= s.presence_penalty + s.frequency_penalty * count as f32;
        }
        for &(id, bias) in s.logit_bias.iter().filter(|(id, _)| at(id)) {
            logits[id as usize] += bias;
        }
        for x in logits.iter_mut() {
            *x = x.clamp(f32::MIN, f32::MAX);
        }
    }

    /// The token for these adjusted logits among those that `mask` allows.
    fn choose_among(&mut self, logits: &[f32], mask: &Mask) -> Result<u32, SampleError> {
        match mask {
            Mask::Any => self.choose(logits, &self.allowed),
            Mask::Except(ids) => self.choose(logits, &mask::without(&self.allowed, ids)),
            Mask::Only(ids) => {
                self.choose_gathered(|gathered, allowed| gathered.only(logits, allowed, ids))
            }
            Mask::Bits(words) => {
                self.choose_gathered(|gathered, allowed| gathered.bits(logits, allowed, words))
            }
        }
    }

    /// The choice among gathered logits: side by side in id order, it is the same as in their places.
    fn choose_gathered(
        &mut self,
        gather: impl FnOnce(&mut Gathered, &[Range<usize>]),
    ) -> Result<u32, SampleError> {
        let mut gathered = std::mem::take(&mut self.gathered);
        gather(&mut gathered, &self.allowed);
        let all = 0..gathered.logits.len();
        let id = |place: usize| gathered.ids.get(place).copied().unwrap_or_default();
        let chosen = match self.choose(&gathered.logits, &[all]) {
            Ok(place) => Ok(id(place as usize)),
            Err(SampleError::NotFinite { id: place, value }) => Err(SampleError::NotFinite {
                id: id(place) as usize,
                value,
            }),
            Err(error) => Err(error),
        };
        self.gathered = gathered;
        chosen
    }

    /// The token for these adjusted logits within `allowed`.
    fn choose(&self, logits: &[f32], allowed: &[Range<usize>]) -> Result<u32, SampleError> {
        if allowed.iter().all(Range::is_empty) {
            return Err(SampleError::NothingAllowed);
        }
        let s = &self.sampling;
        let best = select::argmax(logits, allowed).ok_or_else(|| not_finite(logits))?;
        if s.temperature < GREEDY_BELOW || s.top_k == 1 {
            return Ok(best.id);
        }
        let u = uniform(self.seed, self.step);
        let (max, scale) = (best.logit, 1.0 / s.temperature);
        let truncates_by_rank = s.top_k > 0 || s.top_p < 1.0;
        if !truncates_by_rank && s.min_p == 0.0 {
            return Ok(draw::from_all(logits, allowed, max, scale, u));
        }
        let blocks = BlockMax::new(logits, allowed);
        let weight = |c: &Candidate| exp((c.logit - max) * scale);
        let mut kept = if s.top_k > 0 {
            let mut kept = blocks.top_k(s.top_k);
            if s.top_p < 1.0 {
                let total: f64 = kept.iter().map(|c| weight(c) as f64).sum();
                select::keep_mass(&mut kept, f64::from(s.top_p) * total, weight);
            }
            kept
        } else if s.top_p < 1.0 {
            let total = sum_exp(logits, allowed, max, scale);
            blocks.top_mass(f64::from(s.top_p) * total, max, s.temperature, weight)
        } else {
            blocks.at_least(min_p_threshold(max, s))
        };
        if s.min_p > 0.0 && truncates_by_rank {
            let threshold = min_p_threshold(max, s);
            kept.retain(|c| c.logit >= threshold);
        }
        // Id order: the draw must not depend on how the survivors were found.
        kept.sort_unstable_by_key(|c| c.id);
        Ok(draw(&kept, weight, u).unwrap_or(best.id))
    }

    fn logprobs(&self, logits: &[f32], id: u32, n: usize) -> Result<Logprobs, SampleError> {
        let all = std::slice::from_ref(&self.everything);
        let max = select::argmax(logits, all)
            .ok_or_else(|| not_finite(logits))?
            .logit;
        let log_sum = sum_exp(logits, all, max, 1.0).ln();
        let logprob = |x: f32| (f64::from(x) - f64::from(max) - log_sum) as f32;
        let mut top = if n > 0 {
            BlockMax::new(logits, &self.allowed).top_k(n)
        } else {
            Vec::new()
        };
        top.sort_unstable_by(Candidate::best_first);
        let top = top.iter().map(|c| (c.id, logprob(c.logit))).collect();
        Ok((Some(logprob(logits[id as usize])), top))
    }
}

/// Names the first logit that is not finite.
fn not_finite(logits: &[f32]) -> SampleError {
    let broken = logits.iter().enumerate().find(|(_, x)| !x.is_finite());
    let (id, &value) = broken.unwrap_or((0, &f32::NAN));
    SampleError::NotFinite { id, value }
}

/// The least logit with `min_p` times the likeliest token's probability.
fn min_p_threshold(max: f32, s: &Sampling) -> f32 {
    max + s.min_p.ln() * s.temperature
}

/// One draw from `kept` by weight; `None` if there is nothing to draw from.
fn draw(kept: &[Candidate], weight: impl Fn(&Candidate) -> f32, u: f64) -> Option<u32> {
    let total: f64 = kept.iter().map(|c| weight(c) as f64).sum();
    let mut left = u * total;
    let mut last = None;
    for c in kept {
        let w = weight(c) as f64;
        if w > 0.0 {
            last = Some(c.id);
            left -= w;
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

/// The ids that may be sampled, ascending: those below `vocab` that are not in `padding`.
pub fn allowed(padding: &[u32], vocab: usize) -> Vec<Range<usize>> {
    let mut padding: Vec<usize> = padding
        .iter()
        .map(|&id| id as usize)
        .filter(|&id| id < vocab)
        .collect();
    padding.sort_unstable();
    let mut ranges = Vec::new();
    let mut start = 0;
    for id in padding {
        if start < id {
            ranges.push(start..id);
        }
        start = id + 1;
    }
    if start < vocab {
        ranges.push(start..vocab);
    }
    ranges
}

/// A number in [0, 1) that depends on seed and step alone (SplitMix64 at a counter).
fn uniform(seed: u64, step: u64) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let z = mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(step.wrapping_mul(GOLDEN)));
    (z >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A seed nobody asked for: from the random keys that std gets from the system. Kept below 2^53, so
/// that a JSON reader gets back the number that was printed.
pub(crate) fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() >> 11
}
