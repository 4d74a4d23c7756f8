//! Items: what a response's input and output are made of, in one type for both.
//!
//! Output of one response is input of the next, so what [`Item::value`] writes [`super::input`] reads.
//! A stored item keeps the id under which the client has seen it.

use crate::{harmony::Role, server::id::fresh};
use serde_json::{Value, json};

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
    Output { text: String, logprobs: Vec<Value> },
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

    /// As it goes over the wire.
    pub fn value(&self) -> Value {
        match self {
            Content::Input(text) => json!({"type": "input_text", "text": text}),
            Content::Output { text, logprobs } => json!({
                "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs,
            }),
            Content::Refusal(text) => json!({"type": "refusal", "refusal": text}),
        }
    }
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

    /// As it goes over the wire.
    pub fn value(&self) -> Value {
        let (id, status) = (&self.id, self.status.as_str());
        match &self.body {
            Body::Message {
                role,
                phase,
                content,
            } => {
                let content: Vec<Value> = content.iter().map(Content::value).collect();
                let mut value = json!({
                    "id": id, "type": "message", "status": status, "role": role.as_str(), "content": content,
                });
                if let Some(phase) = phase {
                    value["phase"] = phase.as_str().into();
                }
                value
            }
            // `encrypted_content` is left out: null is invalid in Open Responses.
            Body::Reasoning { summary, content } => json!({
                "id": id,
                "type": "reasoning",
                "status": status,
                "summary": texts("summary_text", summary),
                "content": texts("reasoning_text", content),
            }),
            Body::Call {
                call_id,
                tool,
                arguments,
            } => with_namespace(
                tool,
                json!({
                    "id": id, "type": "function_call", "status": status,
                    "call_id": call_id, "name": tool.name, "arguments": arguments,
                }),
            ),
            Body::Custom {
                call_id,
                tool,
                input,
            } => with_namespace(
                tool,
                json!({
                    "id": id, "type": "custom_tool_call", "status": status,
                    "call_id": call_id, "name": tool.name, "input": input,
                }),
            ),
            Body::Result {
                call_id,
                kind,
                output,
                ..
            } => json!({
                "id": id, "type": kind, "status": status, "call_id": call_id, "output": output,
            }),
        }
    }

    /// Roughly how much memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        let body = match &self.body {
            Body::Message { content, .. } => content
                .iter()
                .map(|content| match content {
                    Content::Output { text, logprobs } => {
                        text.len() + logprobs.iter().map(value_bytes).sum::<usize>()
                    }
                    other => other.text().len(),
                })
                .sum(),
            Body::Reasoning { summary, content } => {
                summary.iter().chain(content).map(|text| text.len()).sum()
            }
            Body::Call {
                call_id, arguments, ..
            } => call_id.len() + arguments.len(),
            Body::Custom { call_id, input, .. } => call_id.len() + input.len(),
            Body::Result { output, text, .. } => value_bytes(output) + text.len(),
        };
        body + 256
    }
}

impl Body {
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

fn texts(kind: &str, texts: &[String]) -> Vec<Value> {
    let value = |text: &String| json!({"type": kind, "text": text});
    texts.iter().map(value).collect()
}

fn with_namespace(tool: &ToolName, mut value: Value) -> Value {
    if let Some(namespace) = &tool.namespace {
        value["namespace"] = json!(namespace);
    }
    value
}

/// Roughly how much memory a JSON value takes, in bytes.
pub(super) fn value_bytes(value: &Value) -> usize {
    let size = match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(value_bytes).sum(),
        Value::Object(map) => map
            .iter()
            .map(|(name, value)| name.len() + value_bytes(value))
            .sum(),
        _ => 0,
    };
    size + std::mem::size_of::<Value>()
}
