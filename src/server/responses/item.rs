//! Items: what a response's input and output are made of, in one type for both.
//!
//! Output of one response is input of the next, so what an [`Item`] is written as [`super::input`] reads.
//! A stored item keeps the id under which the client has seen it.

use crate::{
    harmony::Role,
    server::{id::fresh, turn::TokenLogprob},
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;
use std::sync::Arc;

/// Where an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// More of it comes.
    InProgress,
    /// It is whole.
    Completed,
    /// It was cut: by a length limit, a failure or a cancellation.
    Incomplete,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::InProgress => "in_progress",
            Status::Completed => "completed",
            Status::Incomplete => "incomplete",
        }
    }
}

/// What an assistant's message is for; OpenAI's word for Harmony's channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Said before a call.
    Commentary,
    /// The answer.
    FinalAnswer,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Commentary => "commentary",
            Phase::FinalAnswer => "final_answer",
        }
    }
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// What was said to the model.
    Input(String),
    /// What the model said, and its tokens' log-probabilities where asked for.
    Output {
        text: String,
        logprobs: Vec<Arc<TokenLogprob>>,
    },
    /// What it would not say; only other servers write these.
    Refusal(String),
}

impl Content {
    /// Its text.
    pub fn text(&self) -> &str {
        match self {
            Content::Input(text) | Content::Output { text, .. } | Content::Refusal(text) => text,
        }
    }
}

/// As it goes over the wire.
impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Content::Input(text) => {
                map.serialize_entry("type", "input_text")?;
                map.serialize_entry("text", text)?;
            }
            Content::Output { text, logprobs } => {
                map.serialize_entry("type", "output_text")?;
                map.serialize_entry("text", text)?;
                map.serialize_entry("annotations", &[(); 0])?;
                map.serialize_entry("logprobs", logprobs)?;
            }
            Content::Refusal(text) => {
                map.serialize_entry("type", "refusal")?;
                map.serialize_entry("refusal", text)?;
            }
        }
        map.end()
    }
}

/// A part of a reasoning item.
#[derive(Debug, Serialize)]
pub(super) struct TextPart<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
}

/// A part of a summary.
pub(super) fn summary_part(text: &String) -> TextPart<'_> {
    let kind = "summary_text";
    TextPart { kind, text }
}

/// A part of the reasoning itself.
pub(super) fn reasoning_part(text: &String) -> TextPart<'_> {
    let kind = "reasoning_text";
    TextPart { kind, text }
}

/// Which tool a call means, in the client's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ToolName {
    /// The namespace that declared it, if one did.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// An item without its id.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Body {
    /// Somebody's message.
    Message {
        role: Role,
        /// Only an assistant's has one.
        phase: Option<Phase>,
        content: Vec<Content>,
    },
    /// Reasoning: the text itself, or given as its own summary.
    Reasoning {
        summary: Vec<String>,
        content: Vec<String>,
    },
    /// A function's call.
    Call {
        call_id: String,
        tool: ToolName,
        /// What the model wrote: usually JSON.
        arguments: String,
    },
    /// A custom tool's call, whose input is text.
    Custom {
        call_id: String,
        tool: ToolName,
        input: String,
    },
    /// What a tool answered.
    Result {
        call_id: String,
        /// `function_call_output` or `custom_tool_call_output`.
        kind: &'static str,
        /// As the client sent it: a text or parts.
        output: Value,
        /// Its text.
        text: String,
    },
}

/// One item.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    /// `msg_…`, `rs_…`, `fc_…`; never changes.
    pub id: String,
    pub status: Status,
    pub body: Body,
}

impl Item {
    /// A complete item with a new id.
    pub fn new(body: Body) -> Item {
        Item {
            id: fresh(body.prefix()),
            status: Status::Completed,
            body,
        }
    }

    /// The same item under a new id.
    pub fn renewed(&self) -> Item {
        Item {
            id: fresh(self.body.prefix()),
            ..self.clone()
        }
    }

    /// Roughly how much memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        let tool =
            |tool: &ToolName| tool.name.len() + tool.namespace.as_ref().map_or(0, String::len);
        let body = match &self.body {
            Body::Message { content, .. } => content
                .iter()
                .map(|content| {
                    let tokens = match content {
                        Content::Output { logprobs, .. } => logprobs.as_slice(),
                        _ => &[],
                    };
                    let tokens: usize = tokens.iter().map(|token| token.memory()).sum();
                    size_of::<Content>() + content.text().len() + tokens
                })
                .sum(),
            Body::Reasoning { summary, content } => {
                let texts = summary.iter().chain(content);
                texts.map(|text| size_of::<String>() + text.len()).sum()
            }
            Body::Call {
                call_id,
                tool: name,
                arguments,
            } => call_id.len() + tool(name) + arguments.len(),
            Body::Custom {
                call_id,
                tool: name,
                input,
            } => call_id.len() + tool(name) + input.len(),
            Body::Result {
                call_id,
                output,
                text,
                ..
            } => call_id.len() + value_bytes(output) + text.len(),
        };
        size_of::<Item>() + self.id.len() + body
    }
}

/// As it goes over the wire.
impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("type", self.body.kind())?;
        map.serialize_entry("status", self.status.as_str())?;
        match &self.body {
            Body::Message {
                role,
                phase,
                content,
            } => {
                map.serialize_entry("role", role.as_str())?;
                map.serialize_entry("content", content)?;
                if let Some(phase) = phase {
                    map.serialize_entry("phase", phase.as_str())?;
                }
            }
            // `encrypted_content` is left out: null is invalid in Open Responses.
            Body::Reasoning { summary, content } => {
                let summary: Vec<_> = summary.iter().map(summary_part).collect();
                let content: Vec<_> = content.iter().map(reasoning_part).collect();
                map.serialize_entry("summary", &summary)?;
                map.serialize_entry("content", &content)?;
            }
            Body::Call {
                call_id,
                tool,
                arguments,
            } => {
                call(&mut map, call_id, tool)?;
                map.serialize_entry("arguments", arguments)?;
            }
            Body::Custom {
                call_id,
                tool,
                input,
            } => {
                call(&mut map, call_id, tool)?;
                map.serialize_entry("input", input)?;
            }
            Body::Result {
                call_id, output, ..
            } => {
                map.serialize_entry("call_id", call_id)?;
                map.serialize_entry("output", output)?;
            }
        }
        map.end()
    }
}

fn call<M: SerializeMap>(map: &mut M, call_id: &str, tool: &ToolName) -> Result<(), M::Error> {
    map.serialize_entry("call_id", call_id)?;
    map.serialize_entry("name", &tool.name)?;
    match &tool.namespace {
        Some(namespace) => map.serialize_entry("namespace", namespace),
        None => Ok(()),
    }
}

impl Body {
    /// The item's type.
    fn kind(&self) -> &'static str {
        match self {
            Body::Message { .. } => "message",
            Body::Reasoning { .. } => "reasoning",
            Body::Call { .. } => "function_call",
            Body::Custom { .. } => "custom_tool_call",
            Body::Result { kind, .. } => kind,
        }
    }

    /// Without the parts of its text, which are added with events of their own.
    pub fn without_parts(mut self) -> Body {
        match &mut self {
            Body::Message { content, .. } => content.clear(),
            Body::Reasoning { summary, content } => {
                summary.clear();
                content.clear();
            }
            _ => {}
        }
        self
    }

    fn prefix(&self) -> &'static str {
        match self {
            Body::Message { .. } => "msg_",
            Body::Reasoning { .. } => "rs_",
            Body::Call { .. } => "fc_",
            Body::Custom { .. } => "ctc_",
            Body::Result { .. } => "fco_",
        }
    }
}

/// What an object's field takes besides its value and the letters of its name: the name itself, its
/// hash, and its place in the table.
const ENTRY: usize = size_of::<String>() + 3 * size_of::<usize>();

/// Roughly how much memory a JSON value takes, in bytes.
pub(super) fn value_bytes(value: &Value) -> usize {
    let size = match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(value_bytes).sum(),
        Value::Object(map) => map
            .iter()
            .map(|(name, value)| ENTRY + name.len() + value_bytes(value))
            .sum(),
        _ => 0,
    };
    size + size_of::<Value>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_that_a_client_sends_is_counted() {
        let long = || "x".repeat(10_000);
        let tool = || ToolName {
            namespace: Some(long()),
            name: long(),
        };
        let bodies = [
            Body::Call {
                call_id: long(),
                tool: tool(),
                arguments: long(),
            },
            Body::Custom {
                call_id: long(),
                tool: tool(),
                input: long(),
            },
            Body::Reasoning {
                summary: vec![long(), long()],
                content: vec![long(), long()],
            },
            Body::Result {
                call_id: long(),
                kind: "function_call_output",
                output: json!([{"type": "input_text", "text": long(), long(): long()}]),
                text: long(),
            },
            Body::Message {
                role: Role::User,
                phase: None,
                content: vec![Content::Input(String::new()); 1000],
            },
        ];
        for body in bodies {
            let mut item = Item::new(body);
            let bytes = item.bytes();
            assert!(
                (40_000..60_000).contains(&bytes),
                "{bytes}: {:.100?}",
                item.body
            );
            item.id = long();
            assert!(item.bytes() > bytes + 9_000);
        }
    }
}
