//! What `POST /v1/completions` reads. `null` means absent; fields that are not listed are ignored.

use crate::server::{
    chat::{OwnOptions, Shaping, StreamOptions},
    sampling::{Fields, Seed, Strings},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, SeqAccess, Visitor},
};
use std::{collections::HashMap, fmt};
use utoipa::ToSchema;

/// A completion asked for.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct CompletionRequest {
    /// A name that the server knows; absent: the default model.
    pub model: Option<String>,
    /// A string, or an array of strings, of token ids, or of arrays of token ids.
    #[schema(value_type = Option<Object>)]
    pub prompt: Option<Prompt>,
    /// Refused unless it is empty.
    pub suffix: Option<String>,
    /// Most tokens of the answer; 16 if absent.
    pub max_tokens: Option<u64>,
    /// End the answer before any of these.
    #[schema(value_type = Option<Vec<String>>)]
    pub stop: Option<Strings>,
    /// How many answers to each prompt.
    #[schema(minimum = 1)]
    pub n: Option<u64>,
    /// Refused unless it is `n`.
    pub best_of: Option<u64>,
    /// The prompt before the answer.
    pub echo: Option<bool>,
    /// Log-probabilities, with so many rivals.
    pub logprobs: Option<u64>,
    /// Server-sent events.
    pub stream: Option<bool>,
    /// What they hold.
    pub stream_options: Option<StreamOptions>,
    /// 0 (greedy) to 2.
    pub temperature: Option<f64>,
    /// 0 to 1.
    pub top_p: Option<f64>,
    /// From 0 (off).
    pub top_k: Option<i64>,
    /// 0 (off) to 1.
    pub min_p: Option<f64>,
    /// -2 to 2.
    pub presence_penalty: Option<f64>,
    /// -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Above 0 to 10; 1 is off.
    pub repetition_penalty: Option<f64>,
    /// Token ids to what is added to their logits.
    pub logit_bias: Option<HashMap<String, f64>>,
    /// Of the random choices.
    #[schema(value_type = Option<i64>)]
    pub seed: Option<Seed>,
    /// Shape of the answer.
    #[serde(flatten)]
    pub shaping: Shaping,
    /// This server's own.
    pub gossamer: Option<OwnOptions>,
}

impl CompletionRequest {
    /// The fields that say how tokens are chosen.
    pub fn sampling(&self) -> Fields {
        Fields {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        }
    }
}

/// The prompts of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// As text.
    Texts(Vec<String>),
    /// As token ids.
    Tokens(Vec<Vec<u32>>),
}

const EXPECTED: &str = "a string or an array of strings, of token ids, or of arrays of token ids";

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Prompt, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Prompt;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_str<E>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Prompt, A::Error> {
                let (mut texts, mut ids, mut arrays) = (Vec::new(), Vec::new(), Vec::new());
                while let Some(element) = from.next_element()? {
                    match element {
                        Element::Text(text) => texts.push(text),
                        Element::Id(id) => ids.push(id),
                        Element::Ids(ids) => arrays.push(ids),
                    }
                }
                match (texts.is_empty(), ids.is_empty(), arrays.is_empty()) {
                    (false, true, true) => Ok(Prompt::Texts(texts)),
                    (true, false, true) => Ok(Prompt::Tokens(vec![ids])),
                    (true, true, false) => Ok(Prompt::Tokens(arrays)),
                    (true, true, true) => Err(A::Error::custom(format!(
                        "expected {EXPECTED}, found an empty array"
                    ))),
                    _ => Err(A::Error::custom(format!(
                        "expected {EXPECTED}, found a mix"
                    ))),
                }
            }
        }
        from.deserialize_any(Of)
    }
}

/// One element of a prompt's array.
enum Element {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Element, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or an array of token ids")
            }

            fn visit_str<E>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<Element, E> {
                let id = u32::try_from(id);
                id.map(Element::Id)
                    .map_err(|_| E::custom("a token id above 32 bits"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Element, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = from.next_element()? {
                    ids.push(id);
                }
                Ok(Element::Ids(ids))
            }
        }
        from.deserialize_any(Of)
    }
}
