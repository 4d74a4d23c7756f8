//! What the client sends as `input`: items, and from them Harmony's messages.
//!
//! Two steps. [`read`] makes items of the request's own input, with ids, and refuses what can't be
//! shown to the model. [`prompt`] makes messages of a whole context, earlier responses included, so
//! that a conversation carried on by `previous_response_id` gives the same prompt as one sent whole.

use super::{
    item::{Body, Content, Item, Phase, Status, ToolName},
    tools::flat,
};
use crate::{
    harmony::{Channel, Message, Role},
    server::{
        error::ApiError,
        json::{as_array, as_object, invalid, optional_text, required, required_text, wrong_type},
    },
};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use std::{collections::HashMap, sync::Arc};

/// An element of the input that says something to the model.
pub(super) struct Entry {
    /// Where in the input.
    pub index: usize,
    pub what: What,
}

/// What it is.
pub(super) enum What {
    /// An item, sent whole.
    Item(Arc<Item>),
    /// A stored one, by its id.
    Reference(String),
}

/// All items that a response is made from.
#[derive(Default)]
pub(super) struct Context {
    /// Those of earlier responses, then those that came with the request.
    pub items: Vec<Arc<Item>>,
    /// Where in the input each of the latter stands.
    pub places: Vec<usize>,
}

/// Reads `input`.
///
/// # Errors
/// 400 that names the field.
pub(super) fn read(input: &Value) -> Result<Vec<Entry>, ApiError> {
    match input {
        Value::String(text) => {
            let body = Body::Message {
                role: Role::User,
                phase: None,
                content: vec![Content::Input(text.clone())],
            };
            let what = What::Item(Arc::new(Item::new(body)));
            Ok(vec![Entry { index: 0, what }])
        }
        Value::Array(items) => {
            let entry = |(index, value)| {
                let what = entry(value, &format!("input[{index}]")).transpose()?;
                Some(what.map(|what| Entry { index, what }))
            };
            items.iter().enumerate().filter_map(entry).collect()
        }
        other => Err(wrong_type("input", "a string or an array", other)),
    }
}

/// None for an item that says nothing to the model.
fn entry(value: &Value, path: &str) -> Result<Option<What>, ApiError> {
    let map = as_object(value, path)?;
    // Ids and states of items are ours to give: a client's own are kept where they can be.
    let word = |name| map.get(name).and_then(Value::as_str);
    let id = word("id").filter(|id| !id.is_empty() && id.len() <= 200);
    let kind = match optional_text(map, path, "type")? {
        Some(kind) => kind,
        None if map.contains_key("role") => "message",
        None if id.is_some() => "item_reference",
        None => return Err(ApiError::missing(format!("{path}.type"))),
    };
    let body = match kind {
        "item_reference" => {
            let id = required_text(map, path, "id")?;
            return Ok(Some(What::Reference(id.to_owned())));
        }
        "message" => message(map, path)?,
        "reasoning" => Body::Reasoning {
            summary: texts(map, "summary", "summary_text", path)?,
            content: texts(map, "content", "reasoning_text", path)?,
        },
        "function_call" => Body::Call {
            call_id: required_text(map, path, "call_id")?.to_owned(),
            tool: tool_name(map, path)?,
            arguments: required_text(map, path, "arguments")?.to_owned(),
        },
        "custom_tool_call" => Body::Custom {
            call_id: required_text(map, path, "call_id")?.to_owned(),
            tool: tool_name(map, path)?,
            input: required_text(map, path, "input")?.to_owned(),
        },
        "function_call_output" => result(map, "function_call_output", path)?,
        "custom_tool_call_output" => result(map, "custom_tool_call_output", path)?,
        // Records of what another server did; the messages after them tell what came of it.
        "web_search_call" | "file_search_call" | "mcp_list_tools" => return Ok(None),
        other => {
            let message = format!(
                "Invalid '{path}.type': items of type '{other:.60}' are not supported here. Supported are \
                 message, reasoning, function_call, function_call_output, custom_tool_call, \
                 custom_tool_call_output and item_reference."
            );
            return Err(ApiError::unsupported(format!("{path}.type"), message));
        }
    };
    let status = match word("status") {
        Some("incomplete") => Status::Incomplete,
        Some("in_progress") => Status::InProgress,
        _ => Status::Completed,
    };
    let mut item = Item::new(body);
    item.status = status;
    if let Some(id) = id {
        item.id = id.to_owned();
    }
    Ok(Some(What::Item(Arc::new(item))))
}

fn message(map: &Map<String, Value>, path: &str) -> Result<Body, ApiError> {
    let role = match required_text(map, path, "role")? {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "system" => Role::System,
        "developer" => Role::Developer,
        other => {
            let message =
                format!("expected user, assistant, system or developer, found '{other:.40}'");
            return Err(invalid(&format!("{path}.role"), &message));
        }
    };
    let by_assistant = role == Role::Assistant;
    let phase = match optional_text(map, path, "phase")? {
        None => None,
        Some(_) if !by_assistant => None,
        Some("commentary") => Some(Phase::Commentary),
        Some("final_answer") => Some(Phase::FinalAnswer),
        Some(other) => {
            let message = format!("expected commentary or final_answer, found '{other:.40}'");
            return Err(invalid(&format!("{path}.phase"), &message));
        }
    };
    let path = format!("{path}.content");
    let content = match map.get("content") {
        None | Some(Value::Null) if by_assistant => Vec::new(),
        None | Some(Value::Null) => return Err(ApiError::missing(path)),
        Some(Value::String(text)) if by_assistant => vec![said(text)],
        Some(Value::String(text)) => vec![Content::Input(text.clone())],
        Some(Value::Array(parts)) => {
            let parts = parts.iter().enumerate();
            parts
                .map(|(i, value)| part(value, by_assistant, &format!("{path}[{i}]")))
                .collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong_type(&path, "a string or an array", other)),
    };
    Ok(Body::Message {
        role,
        phase,
        content,
    })
}

fn said(text: &str) -> Content {
    Content::Output {
        text: text.to_owned(),
        logprobs: Vec::new(),
    }
}

fn part(value: &Value, by_assistant: bool, path: &str) -> Result<Content, ApiError> {
    let map = as_object(value, path)?;
    match required_text(map, path, "type")? {
        "input_text" | "output_text" | "text" => {
            let text = required_text(map, path, "text")?;
            Ok(match by_assistant {
                true => said(text),
                false => Content::Input(text.to_owned()),
            })
        }
        "refusal" if by_assistant => Ok(Content::Refusal(
            required_text(map, path, "refusal")?.to_owned(),
        )),
        kind => Err(no_such_part(kind, path)),
    }
}

fn no_such_part(kind: &str, path: &str) -> ApiError {
    match kind {
        "input_image"
        | "input_file"
        | "input_audio"
        | "image_url"
        | "input_video"
        | "computer_screenshot" => {
            let message = format!(
                "Invalid '{path}': gpt-oss reads text only, and this part is of type '{kind}'."
            );
            ApiError::unsupported(path, message)
        }
        other => invalid(
            &format!("{path}.type"),
            &format!("expected a text part, found '{other:.60}'"),
        ),
    }
}

/// The texts of a list of parts of type `kind`, which may be missing.
fn texts(
    map: &Map<String, Value>,
    name: &str,
    kind: &str,
    path: &str,
) -> Result<Vec<String>, ApiError> {
    let path = format!("{path}.{name}");
    let parts = match map.get(name) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(parts) => as_array(parts, &path)?,
    };
    let text_of = |(i, value): (usize, &Value)| {
        let path = format!("{path}[{i}]");
        let part = as_object(value, &path)?;
        match required_text(part, &path, "type")? {
            found if found == kind || found == "text" => {
                Ok(required_text(part, &path, "text")?.to_owned())
            }
            found => {
                let message = format!("expected '{kind}', found '{found:.60}'");
                Err(invalid(&format!("{path}.type"), &message))
            }
        }
    };
    parts.iter().enumerate().map(text_of).collect()
}

fn tool_name(map: &Map<String, Value>, path: &str) -> Result<ToolName, ApiError> {
    let name = required_text(map, path, "name")?.to_owned();
    if name.is_empty() {
        return Err(invalid(&format!("{path}.name"), "it is empty"));
    }
    let namespace = optional_text(map, path, "namespace")?.map(str::to_owned);
    Ok(ToolName { namespace, name })
}

fn result(map: &Map<String, Value>, kind: &'static str, path: &str) -> Result<Body, ApiError> {
    let output = required(map, path, "output")?;
    Ok(Body::Result {
        call_id: required_text(map, path, "call_id")?.to_owned(),
        kind,
        text: output_text(output, &format!("{path}.output"))?,
        output: output.clone(),
    })
}

/// A tool's output as text: its own, or its parts' in order.
fn output_text(output: &Value, path: &str) -> Result<String, ApiError> {
    match output {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let mut all = Vec::new();
            for (i, value) in parts.iter().enumerate() {
                let content = part(value, false, &format!("{path}[{i}]"))?;
                all.push(content.text().to_owned());
            }
            Ok(all.join("\n"))
        }
        other => Err(wrong_type(path, "a string or an array", other)),
    }
}

/// What a context says to the model.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Prompt {
    /// The request's instructions and the system and developer messages that stand first.
    pub instructions: Option<String>,
    /// The rest.
    pub messages: Vec<Message>,
}

/// Makes messages of a context.
///
/// # Errors
/// 400 if a tool's output belongs to no call before it.
pub(super) fn prompt(instructions: Option<&str>, context: &Context) -> Result<Prompt, ApiError> {
    let items = &context.items;
    let first_new = items.len() - context.places.len();
    let mut calls: HashMap<&str, String> = HashMap::new();
    let mut leading: Vec<String> = Vec::new();
    leading.extend(
        instructions
            .filter(|text| !text.is_empty())
            .map(str::to_owned),
    );
    let mut messages = Vec::new();
    let unmatched = |i: usize, call_id: &str| {
        let place = i.checked_sub(first_new).and_then(|i| context.places.get(i));
        let path = match place {
            Some(index) => format!("input[{index}].call_id"),
            None => "previous_response_id".to_owned(),
        };
        ApiError::invalid(
            path,
            format!("No tool call found for the tool output with call_id {call_id:.100}."),
        )
    };
    for (i, item) in items.iter().enumerate() {
        let message = match &item.body {
            Body::Message {
                role,
                phase,
                content,
            } => {
                let joined = |by| {
                    let texts: Vec<&str> = content.iter().map(Content::text).collect();
                    texts.join(by)
                };
                match role {
                    Role::System | Role::Developer if messages.is_empty() => {
                        leading.push(joined("\n"));
                        continue;
                    }
                    Role::System | Role::Developer => Message::developer(joined("\n")),
                    Role::Assistant => {
                        let channel = match phase {
                            Some(Phase::Commentary) => Channel::Commentary,
                            None if before_call(items, i) => Channel::Commentary,
                            _ => Channel::Final,
                        };
                        Message::assistant(channel, joined(""))
                    }
                    _ => Message::user(joined("\n")),
                }
            }
            Body::Reasoning { summary, content } => {
                let texts = match content.is_empty() {
                    true => summary,
                    false => content,
                };
                if texts.iter().all(String::is_empty) {
                    // All that other servers' reasoning shows is encrypted for themselves.
                    continue;
                }
                Message::assistant(Channel::Analysis, texts.join("\n"))
            }
            Body::Call {
                call_id,
                tool,
                arguments,
            } => {
                calls.insert(call_id, flat(tool));
                Message::call(&flat(tool), arguments.as_str())
            }
            Body::Custom {
                call_id,
                tool,
                input,
            } => {
                calls.insert(call_id, flat(tool));
                Message::call(&flat(tool), json!({"input": input}).to_string())
            }
            Body::Result { call_id, text, .. } => {
                let name = calls.get(call_id.as_str());
                let name = name.ok_or_else(|| unmatched(i, call_id))?;
                Message::tool_result(name, text.as_str())
            }
        };
        messages.push(message);
    }
    let instructions = (!leading.is_empty()).then(|| leading.join("\n\n"));
    Ok(Prompt {
        instructions,
        messages,
    })
}

/// Whether a call follows item `i` within the assistant's turn, other than after its answer: then `i` is
/// what was said before it.
fn before_call(items: &[Arc<Item>], i: usize) -> bool {
    let mut rest = items[i..].iter().skip(1).map(|item| &item.body);
    let next = rest.find(|body| {
        let more = matches!(body, Body::Message { role: Role::Assistant, phase, .. }
            if *phase != Some(Phase::FinalAnswer));
        !more && !matches!(body, Body::Reasoning { .. })
    });
    matches!(next, Some(Body::Call { .. } | Body::Custom { .. }))
}

/// 404: no stored item has this id.
pub(super) fn item_not_found(id: &str, index: usize) -> ApiError {
    let message = format!(
        "Item with id '{id:.100}' not found. Items are kept only with the responses that hold them \
         ('store': true), until these are deleted or make room for others."
    );
    ApiError::new(StatusCode::NOT_FOUND, message)
        .code("item_not_found")
        .param(format!("input[{index}]"))
}
