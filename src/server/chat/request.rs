//! What `POST /v1/chat/completions` reads.
//!
//! Every field is optional here, as `null` means absent everywhere; what must be there is said by
//! the code that needs it. Fields that are not listed are accepted and ignored.

use super::guided::Shaping;
use crate::server::sampling::{Fields, Seed, Strings};
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor, value::SeqAccessDeserializer},
};
use serde_json::{Map, Value};
use std::{collections::HashMap, fmt};
use utoipa::ToSchema;

/// A chat completion asked for.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ChatRequest {
    /// A name that the server knows; absent: the default model.
    pub model: Option<String>,
    /// The conversation, at least one message.
    #[schema(required, nullable = false, min_items = 1)]
    pub messages: Option<Vec<ChatMessage>>,
    /// Functions the model may call.
    pub tools: Option<Vec<ChatTool>>,
    /// Which of them it may or must call: `none`, `auto`, `required`, or an object.
    #[schema(value_type = Option<Object>)]
    pub tool_choice: Option<Value>,
    /// Whether a turn may make several calls.
    pub parallel_tool_calls: Option<bool>,
    /// The old form of `tools`.
    pub functions: Option<Vec<ChatFunction>>,
    /// The old form of `tool_choice`.
    #[schema(value_type = Option<Object>)]
    pub function_call: Option<Value>,
    /// Shape of the answer.
    #[serde(flatten)]
    pub shaping: Shaping,
    /// How much the model thinks.
    pub reasoning_effort: Option<String>,
    /// False leaves the reasoning out of the answer.
    pub include_reasoning: Option<bool>,
    /// What other engines give to their templates; `reasoning_effort` is read.
    pub chat_template_kwargs: Option<ChatTemplateFields>,
    /// Most tokens of the answer, reasoning included.
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<u64>,
    /// Its old name.
    #[schema(minimum = 1)]
    pub max_tokens: Option<u64>,
    /// End the answer before any of these.
    #[schema(value_type = Option<Vec<String>>)]
    pub stop: Option<Strings>,
    /// How many answers.
    #[schema(minimum = 1)]
    pub n: Option<u64>,
    /// Server-sent events.
    pub stream: Option<bool>,
    /// What they hold.
    pub stream_options: Option<StreamOptions>,
    /// Log-probabilities of the answer's tokens.
    pub logprobs: Option<bool>,
    /// With so many rivals.
    pub top_logprobs: Option<u64>,
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
    /// This server's own.
    pub gossamer: Option<OwnOptions>,
    /// Only `["text"]`.
    #[schema(value_type = Option<Vec<String>>)]
    pub modalities: Option<Value>,
    /// Refused.
    #[schema(ignore)]
    pub audio: Option<Value>,
    /// Refused.
    #[schema(ignore)]
    pub moderation: Option<Value>,
    /// Refused.
    #[schema(ignore)]
    pub web_search_options: Option<Value>,
}

impl ChatRequest {
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

/// One message of the conversation.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ChatMessage {
    /// system, developer, user, assistant, tool or function.
    #[schema(required, nullable = false)]
    pub role: Option<String>,
    /// A string, or an array of parts.
    #[schema(value_type = Option<Object>)]
    pub content: Option<Content>,
    /// Of a function that answers.
    #[schema(value_type = Option<String>)]
    pub name: Option<Value>,
    /// The call that a tool answers.
    pub tool_call_id: Option<String>,
    /// The calls that an assistant made.
    pub tool_calls: Option<Vec<ChatCall>>,
    /// Their old form.
    pub function_call: Option<ChatCalled>,
    /// What an assistant would not say.
    pub refusal: Option<String>,
    /// What an assistant thought.
    pub reasoning: Option<String>,
    /// Its other name.
    pub reasoning_content: Option<String>,
    /// Refused.
    #[schema(ignore)]
    pub audio: Option<Value>,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// As one text.
    Text(String),
    /// In parts.
    Parts(Vec<ContentPart>),
}

/// A part of it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct ContentPart {
    /// `text`, or of an assistant `refusal`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The text.
    pub text: Option<String>,
    /// The refusal.
    pub refusal: Option<String>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Content, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of content parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, from: A) -> Result<Content, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(from)).map(Content::Parts)
            }
        }
        from.deserialize_any(Of)
    }
}

/// A call that an assistant made.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ChatCall {
    /// What the tool's answer names.
    pub id: Option<String>,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// What was called.
    pub function: Option<ChatCalled>,
}

/// What was called.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ChatCalled {
    /// Its name.
    pub name: Option<String>,
    /// JSON, or whatever the model wrote.
    pub arguments: Option<String>,
}

/// A tool the model may use.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ChatTool {
    /// `function`; other types are left out.
    #[serde(rename = "type")]
    #[schema(required, nullable = false)]
    pub kind: Option<String>,
    /// What it is.
    pub function: Option<ChatFunction>,
}

/// A function the model may call.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ChatFunction {
    /// Its name.
    #[schema(required, nullable = false, min_length = 1)]
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// JSON Schema of its arguments.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Map<String, Value>>,
    /// Enforce the schema.
    pub strict: Option<bool>,
}

/// What a stream holds.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: Option<bool>,
}

/// What other engines give to their templates.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ChatTemplateFields {
    /// How much the model thinks.
    pub reasoning_effort: Option<String>,
}

/// This server's own options.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct OwnOptions {
    /// Tell why cached tokens are fewer than the prompt's.
    pub explain_cache: Option<bool>,
}
