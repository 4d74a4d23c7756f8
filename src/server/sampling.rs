//! Request fields that say how tokens are chosen, the same in every endpoint.
//!
//! What a field may be is OpenAI's range, where OpenAI has the field; the rest is
//! [`Sampling::check`]'s. Errors name the field as the request does.

use super::{error::ApiError, settings::Settings};
use crate::sampler::Sampling;
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use std::{collections::HashMap, fmt};

/// Bytes of one stop string.
pub const MAX_STOP_BYTES: usize = 1024;

/// The fields; absent ones are `None`.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    /// 0 (greedy) to 2.
    pub temperature: Option<f64>,
    /// 0 (the likeliest token only) to 1 (all).
    pub top_p: Option<f64>,
    /// From 0 (all); other servers' clients send -1 for all.
    pub top_k: Option<i64>,
    /// 0 to 1.
    pub min_p: Option<f64>,
    /// -2 to 2.
    pub presence_penalty: Option<f64>,
    /// -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Above 0, up to 10.
    pub repetition_penalty: Option<f64>,
    /// Token ids, as strings, to -100 to 100.
    pub logit_bias: Option<HashMap<String, f64>>,
    /// Any 64-bit integer.
    pub seed: Option<Seed>,
}

impl Fields {
    /// As the engine wants it. `temperature` is the default, `vocab` the number of tokens.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn sampling(
        &self,
        settings: &Settings,
        temperature: f32,
        vocab: usize,
    ) -> Result<Sampling, ApiError> {
        let or = |value: Option<f64>, usual: f32| value.map_or(usual, |value| value as f32);
        if let Some(found) = self.temperature
            && !(0.0..=2.0).contains(&found)
        {
            return Err(out_of_range("temperature", "from 0 to 2", found));
        }
        let top_k = self.top_k.unwrap_or(0);
        let mut sampling = Sampling {
            temperature: or(self.temperature, temperature),
            top_k: match top_k {
                -1 => 0,
                k => usize::try_from(k)
                    .map_err(|_| out_of_range("top_k", "0 (all) or more", k as f64))?,
            },
            top_p: or(self.top_p, 1.0),
            min_p: or(self.min_p, 0.0),
            repetition_penalty: or(self.repetition_penalty, 1.0),
            presence_penalty: or(self.presence_penalty, 0.0),
            frequency_penalty: or(self.frequency_penalty, 0.0),
            logit_bias: self.biases(settings)?,
            seed: self.seed.map(|seed| seed.0).or(settings.seed),
        };
        if self.top_p == Some(0.0) {
            (sampling.top_p, sampling.top_k) = (1.0, 1);
        }
        match sampling.check(vocab) {
            Ok(()) => Ok(sampling),
            Err(wrong) => Err(out_of_range(wrong.field, &wrong.expected, &wrong.found)),
        }
    }

    fn biases(&self, settings: &Settings) -> Result<Vec<(u32, f32)>, ApiError> {
        let Some(given) = &self.logit_bias else {
            return Ok(Vec::new());
        };
        let most = settings.max_logit_bias;
        if given.len() > most {
            let found = format!("{} entries", given.len());
            return Err(out_of_range(
                "logit_bias",
                &format!("at most {most} entries"),
                found,
            ));
        }
        let mut biases = Vec::with_capacity(given.len());
        for (id, &bias) in given {
            let Ok(id) = id.parse() else {
                return Err(out_of_range(
                    "logit_bias",
                    "an object of token ids",
                    format!("{id:?}"),
                ));
            };
            biases.push((id, bias as f32));
        }
        // The order in which a map gives them is no one's.
        biases.sort_unstable_by_key(|&(id, _)| id);
        Ok(biases)
    }
}

/// `max_tokens` and its other names; `least` is 0 where a request may generate nothing.
///
/// # Errors
/// 400 below `least`.
pub fn max_tokens(field: &str, value: Option<u64>, least: u64) -> Result<Option<usize>, ApiError> {
    match value {
        Some(found) if found < least => {
            Err(out_of_range(field, &format!("{least} or more"), found))
        }
        value => Ok(value.map(|n| usize::try_from(n).unwrap_or(usize::MAX))),
    }
}

/// A count of 1 to `most`, 1 if absent.
///
/// # Errors
/// 400 outside of it.
pub fn count(field: &str, value: Option<u64>, most: usize) -> Result<usize, ApiError> {
    match value {
        None => Ok(1),
        Some(n) if n >= 1 && n <= most as u64 => Ok(n as usize),
        Some(n) => Err(out_of_range(field, &format!("from 1 to {most}"), n)),
    }
}

/// How many rivals of each token are listed.
///
/// # Errors
/// 400 above the limit.
pub fn rivals(field: &str, value: Option<u64>, settings: &Settings) -> Result<usize, ApiError> {
    let most = settings.max_logprobs;
    match value.unwrap_or(0) {
        n if n <= most as u64 => Ok(n as usize),
        n => Err(out_of_range(field, &format!("from 0 to {most}"), n)),
    }
}

/// The stop strings.
///
/// # Errors
/// 400 for an empty one, one that is too long, or too many.
pub fn stops(stop: Option<Strings>, settings: &Settings) -> Result<Vec<String>, ApiError> {
    let stops = stop.unwrap_or_default().0;
    let most = settings.max_stop;
    if stops.len() > most {
        let found = format!("{} of them", stops.len());
        return Err(out_of_range(
            "stop",
            &format!("at most {most} strings"),
            found,
        ));
    }
    for text in &stops {
        if text.is_empty() || text.len() > MAX_STOP_BYTES {
            let found = format!("one of {} bytes", text.len());
            let expected = format!("strings of 1 to {MAX_STOP_BYTES} bytes");
            return Err(out_of_range("stop", &expected, found));
        }
    }
    Ok(stops)
}

/// 400: a value outside its range.
pub fn out_of_range(field: &str, expected: &str, found: impl fmt::Display) -> ApiError {
    ApiError::invalid(
        field,
        format!("Invalid '{field}': expected {expected}, found {found}."),
    )
}

/// A seed: any integer of 64 bits, signed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Seed, D::Error> {
        struct Of;
        impl Visitor<'_> for Of {
            type Value = Seed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit integer")
            }

            fn visit_u64<E>(self, seed: u64) -> Result<Seed, E> {
                Ok(Seed(seed))
            }

            fn visit_i64<E>(self, seed: i64) -> Result<Seed, E> {
                Ok(Seed(seed as u64))
            }
        }
        from.deserialize_any(Of)
    }
}

/// A string, or an array of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Strings(pub Vec<String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Strings, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Strings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E>(self, text: &str) -> Result<Strings, E> {
                Ok(Strings(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Strings, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = from.next_element()? {
                    texts.push(text);
                }
                Ok(Strings(texts))
            }
        }
        from.deserialize_any(Of)
    }
}
