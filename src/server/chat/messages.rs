//! A request's messages as Harmony's.
//!
//! System and developer messages before all others are the instructions; later ones become developer
//! messages where they stand. An assistant's message becomes, in this order, its reasoning, its text
//! (on `final`, or on `commentary` if calls follow it: a preamble is no answer) and its calls. A
//! tool's answer finds its function's name by the call's id.

use super::request::{ChatCall, ChatMessage, Content};
use crate::{
    harmony::{Channel, Message},
    server::{error::ApiError, json::wrong_type},
};
use serde_json::Value;
use std::collections::HashMap;

/// What was said so far.
#[derive(Debug, Default, PartialEq)]
pub struct Said {
    /// The system prompt.
    pub instructions: Option<String>,
    /// The rest.
    pub messages: Vec<Message>,
}

impl Said {
    /// Reads `messages`.
    ///
    /// # Errors
    /// 400 that names the message and its field.
    pub fn read(messages: Option<Vec<ChatMessage>>) -> Result<Said, ApiError> {
        let messages = messages.ok_or_else(|| ApiError::missing("messages"))?;
        if messages.is_empty() {
            let text = "Invalid 'messages': expected at least one message, found none.";
            return Err(ApiError::invalid("messages", text));
        }
        let mut reader = Reader::default();
        for (i, message) in messages.into_iter().enumerate() {
            reader.message(&format!("messages[{i}]"), message)?;
        }
        Ok(reader.said)
    }
}

#[derive(Default)]
struct Reader {
    said: Said,
    /// Functions' names by the ids of their calls.
    called: HashMap<String, String>,
}

impl Reader {
    fn message(&mut self, path: &str, message: ChatMessage) -> Result<(), ApiError> {
        let role = message.role.as_deref();
        let role = role.ok_or_else(|| ApiError::missing(format!("{path}.role")))?;
        if message.audio.is_some() {
            let text = "gpt-oss neither hears nor speaks.";
            return Err(ApiError::unsupported(format!("{path}.audio"), text));
        }
        match role {
            "system" | "developer" => {
                let text = required(path, message.content)?;
                if self.said.messages.is_empty() {
                    match &mut self.said.instructions {
                        None => self.said.instructions = Some(text),
                        Some(before) => {
                            before.push_str("\n\n");
                            before.push_str(&text);
                        }
                    }
                } else {
                    self.said.messages.push(Message::developer(text));
                }
            }
            "user" => {
                let text = required(path, message.content)?;
                self.said.messages.push(Message::user(text));
            }
            "assistant" => self.assistant(path, message)?,
            "tool" => {
                let id = message.tool_call_id;
                let id = id.ok_or_else(|| ApiError::missing(format!("{path}.tool_call_id")))?;
                let Some(name) = self.called.get(&id) else {
                    let param = format!("{path}.tool_call_id");
                    let text = format!(
                        "Invalid '{param}': no assistant message before it has a tool call with the id {id:?}."
                    );
                    return Err(ApiError::invalid(param, text));
                };
                let output = text(path, message.content, false)?;
                let output = output.unwrap_or_default();
                self.said.messages.push(Message::tool_result(name, output));
            }
            "function" => {
                let param = format!("{path}.name");
                let name = match message.name {
                    Some(Value::String(name)) if !name.is_empty() => name,
                    None | Some(Value::String(_)) => return Err(ApiError::missing(param)),
                    Some(other) => return Err(wrong_type(&param, "a string", &other)),
                };
                let output = match message.content {
                    None => String::new(),
                    Some(Content::Text(text)) => text,
                    // This old form never had parts.
                    Some(Content::Parts(_)) => {
                        let param = format!("{path}.content");
                        return Err(wrong_type(&param, "a string", &Value::Array(Vec::new())));
                    }
                };
                self.said.messages.push(Message::tool_result(&name, output));
            }
            other => {
                let param = format!("{path}.role");
                let text = format!(
                    "Invalid '{param}': expected system, developer, user, assistant or tool, found {other:?}."
                );
                return Err(ApiError::invalid(param, text));
            }
        }
        Ok(())
    }

    fn assistant(&mut self, path: &str, message: ChatMessage) -> Result<(), ApiError> {
        let mut calls = Vec::new();
        for (j, call) in message.tool_calls.into_iter().flatten().enumerate() {
            let path = format!("{path}.tool_calls[{j}]");
            let (id, name, arguments) = called(&path, call)?;
            self.called.insert(id, name.clone());
            calls.push(Message::call(&name, arguments));
        }
        if let Some(call) = message.function_call {
            let param = format!("{path}.function_call.name");
            let name = call.name.filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| ApiError::missing(param))?;
            calls.push(Message::call(&name, call.arguments.unwrap_or_default()));
        }
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let reasoning = given(message.reasoning_content).or(given(message.reasoning));
        if let Some(text) = reasoning {
            let thought = Message::assistant(Channel::Analysis, text);
            self.said.messages.push(thought);
        }
        let said = text(path, message.content, true)?;
        let said = match (said, message.refusal) {
            (Some(said), Some(refusal)) => Some(joined(said, &refusal)),
            (said, refusal) => said.or(refusal),
        };
        match said {
            // Nothing was said before the calls; or nothing at all, as by a turn that was cut.
            None => {}
            Some(said) if said.is_empty() && !calls.is_empty() => {}
            Some(said) => {
                let channel = match calls.is_empty() {
                    true => Channel::Final,
                    false => Channel::Commentary,
                };
                self.said.messages.push(Message::assistant(channel, said));
            }
        }
        self.said.messages.extend(calls);
        Ok(())
    }
}

/// A call's id, function and arguments.
fn called(path: &str, call: ChatCall) -> Result<(String, String, String), ApiError> {
    match call.kind.as_deref() {
        None | Some("function") => {}
        Some("custom") => {
            let text = "Custom tools are in /v1/responses, not in chat completions.";
            return Err(ApiError::unsupported(path, text));
        }
        Some(other) => {
            let param = format!("{path}.type");
            let text = format!("Invalid '{param}': expected function, found {other:?}.");
            return Err(ApiError::invalid(param, text));
        }
    }
    let missing = |field: &str| ApiError::missing(format!("{path}.{field}"));
    let id = call.id.ok_or_else(|| missing("id"))?;
    let function = call.function.ok_or_else(|| missing("function"))?;
    let name = function.name.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| missing("function.name"))?;
    Ok((id, name, function.arguments.unwrap_or_default()))
}

fn required(path: &str, content: Option<Content>) -> Result<String, ApiError> {
    let said = text(path, content, false)?;
    said.ok_or_else(|| ApiError::missing(format!("{path}.content")))
}

/// The text of a content; `refusals` if its parts may be such.
fn text(path: &str, content: Option<Content>, refusals: bool) -> Result<Option<String>, ApiError> {
    let parts = match content {
        None => return Ok(None),
        Some(Content::Text(text)) => return Ok(Some(text)),
        Some(Content::Parts(parts)) => parts,
    };
    let mut whole: Option<String> = None;
    for (j, part) in parts.into_iter().enumerate() {
        let path = format!("{path}.content[{j}]");
        let kind = part.kind;
        let kind = kind.ok_or_else(|| ApiError::missing(format!("{path}.type")))?;
        let (field, text) = match kind.as_str() {
            "text" => ("text", part.text),
            "refusal" if refusals => ("refusal", part.refusal),
            "image_url" | "input_audio" | "file" | "image" | "audio" | "video_url" => {
                let text =
                    format!("gpt-oss reads text only; this content part is of type {kind:?}.");
                return Err(ApiError::unsupported(path, text));
            }
            _ => {
                let param = format!("{path}.type");
                let text = format!("Invalid '{param}': expected text, found {kind:?}.");
                return Err(ApiError::invalid(param, text));
            }
        };
        let text = text.ok_or_else(|| ApiError::missing(format!("{path}.{field}")))?;
        whole = Some(match whole {
            None => text,
            Some(before) => joined(before, &text),
        });
    }
    Ok(Some(whole.unwrap_or_default()))
}

fn joined(mut before: String, text: &str) -> String {
    before.push('\n');
    before.push_str(text);
    before
}
