//! Tools: the client's declarations in Harmony's terms, and calls back in the client's.
//!
//! Harmony knows functions alone. A function in a namespace is declared as `namespace.name`; a custom
//! tool is a function of one text, `input`. OpenAI's own tools don't exist here: what the model *may* use
//! is left out, what the answer would lack is refused.

use super::item::ToolName;
use crate::{
    grammar::{RuledTool, ToolChoice},
    harmony::Tool,
    server::{
        error::ApiError,
        json::{
            as_array, as_object, flag, invalid, optional_text, required, required_text, wrong_type,
        },
    },
};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// What these hold exists nowhere else: an answer without them would be another answer.
const REFUSED: [&str; 2] = ["file_search", "mcp"];

/// How a tool takes its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As JSON.
    Function,
    /// As text.
    Custom,
}

/// A declared tool.
#[derive(Debug, Clone)]
struct Declared {
    kind: Kind,
    client: ToolName,
    /// As the conversation declares it; its name is [`flat`] of the client's.
    tool: Tool,
    strict: Option<Value>,
    /// `tool_choice` lets the model call it.
    allowed: bool,
    /// Where its schema or format stands in the request.
    place: String,
}

/// The tools of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Tools {
    declared: Vec<Declared>,
    /// As the response object repeats them.
    pub echo: Vec<Value>,
}

/// One name for a tool and its namespace.
pub(super) fn flat(tool: &ToolName) -> String {
    let name = &tool.name;
    match tool.namespace.as_deref() {
        None | Some("") => name.clone(),
        Some(namespace) if namespace.ends_with("__") => format!("{namespace}{name}"),
        Some(namespace) => format!("{namespace}.{name}"),
    }
}

impl Tools {
    /// Reads `tools`.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn read(values: &[Value], most: usize) -> Result<Tools, ApiError> {
        let mut tools = Tools::default();
        // Before they are looked at: each is compared with all that were declared.
        let bounded = |len: usize| match len > most {
            true => {
                let message = format!("Invalid 'tools': at most {most} tools are accepted.");
                Err(ApiError::invalid("tools", message))
            }
            false => Ok(()),
        };
        bounded(values.len())?;
        for (i, value) in values.iter().enumerate() {
            let path = format!("tools[{i}]");
            let tool = as_object(value, &path)?;
            let mut echo = value.clone();
            match required_text(tool, &path, "type")? {
                "namespace" => {
                    let namespace = name(tool, &path)?;
                    let inner = required(tool, &path, "tools")?;
                    let inner = as_array(inner, &format!("{path}.tools"))?;
                    bounded(tools.declared.len() + inner.len())?;
                    for (j, value) in inner.iter().enumerate() {
                        let path = format!("{path}.tools[{j}]");
                        let tool = as_object(value, &path)?;
                        let kind = required_text(tool, &path, "type")?.to_owned();
                        tools.declare(&kind, tool, Some(namespace), &path, &mut Value::Null)?;
                    }
                }
                kind => tools.declare(kind, tool, None, &path, &mut echo)?,
            }
            tools.echo.push(echo);
            bounded(tools.declared.len())?;
        }
        Ok(tools)
    }

    fn declare(
        &mut self,
        kind: &str,
        tool: &Map<String, Value>,
        namespace: Option<&str>,
        path: &str,
        echo: &mut Value,
    ) -> Result<(), ApiError> {
        let kind = match kind {
            "function" => Kind::Function,
            "custom" => Kind::Custom,
            kind if REFUSED.contains(&kind) => {
                let message = format!(
                    "Tools of type '{kind}' run on OpenAI's servers and do not exist here. Declare a \
                     function instead and run it yourself."
                );
                return Err(ApiError::unsupported(format!("{path}.type"), message));
            }
            kind => {
                tracing::info!(
                    tool = kind,
                    "a tool of a type that does not exist here is left out"
                );
                return Ok(());
            }
        };
        let client = ToolName {
            namespace: namespace.map(str::to_owned),
            name: name(tool, path)?.to_owned(),
        };
        let flat = flat(&client);
        if self.declared.iter().any(|other| other.tool.name == flat) {
            let message = format!("Invalid '{path}.name': a tool '{flat}' is declared already.");
            return Err(ApiError::invalid(format!("{path}.name"), message));
        }
        let description = optional_text(tool, path, "description")?.map(str::to_owned);
        let ((tool, strict), field) = match kind {
            Kind::Function => (function(flat, description, tool, path, echo)?, "parameters"),
            Kind::Custom => (custom(flat, description, tool, path, echo)?, "format"),
        };
        self.declared.push(Declared {
            kind,
            client,
            tool,
            strict,
            allowed: true,
            place: format!("{path}.{field}"),
        });
        Ok(())
    }

    /// Where the schema or format of each of [`Tools::ruled`] stands in the request.
    pub fn places(&self) -> Vec<String> {
        let allowed = self.allowed();
        allowed.map(|declared| declared.place.clone()).collect()
    }

    /// For [`Conversation::tools`](crate::harmony::Conversation::tools): all of them, also those that may
    /// not be called, so that the prompt is the same whatever is allowed.
    pub fn declared(&self) -> Vec<Tool> {
        let tools = self.declared.iter();
        tools.map(|declared| declared.tool.clone()).collect()
    }

    /// For [`Rules::tools`](crate::grammar::Rules::tools): those that `choice` is among. Where a call has
    /// to come, that of a custom tool has the form that its input is read from.
    pub fn ruled(&self, choice: &ToolChoice) -> Vec<RuledTool> {
        let ruled = |declared: &Declared| RuledTool {
            name: declared.tool.name.clone(),
            strict: match declared.kind {
                Kind::Custom if choice.requires() => declared.tool.parameters.clone(),
                _ => declared.strict.clone(),
            },
        };
        self.allowed().map(ruled).collect()
    }

    fn allowed(&self) -> impl Iterator<Item = &Declared> {
        self.declared.iter().filter(|declared| declared.allowed)
    }

    /// What the client calls the tool that the model called `name`, and how it takes its input. A
    /// name that was never declared is a function's: the client can say that there is none.
    pub fn called(&self, name: &str) -> (Kind, ToolName) {
        let exact = self.declared.iter().find(|d| d.tool.name == name);
        let mut bare = self.declared.iter().filter(|d| d.client.name == name);
        let only = bare.next().filter(|_| bare.next().is_none());
        match exact.or(only) {
            Some(declared) => (declared.kind, declared.client.clone()),
            None => {
                let name = name.to_owned();
                let namespace = None;
                (Kind::Function, ToolName { namespace, name })
            }
        }
    }

    /// Reads `tool_choice`, which may leave out some of the tools and lists at most `most`.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn choose(&mut self, choice: Option<&Value>, most: usize) -> Result<ToolChoice, ApiError> {
        let path = "tool_choice";
        let choice = match choice {
            None | Some(Value::Null) => return Ok(ToolChoice::Auto),
            Some(Value::String(word)) => return self.word(word, path),
            Some(Value::Object(choice)) => choice,
            Some(other) => return Err(wrong_type(path, "a string or an object", other)),
        };
        match required_text(choice, path, "type")? {
            "function" | "custom" => {
                let found = self.find(choice, path)?;
                Ok(ToolChoice::Named(found))
            }
            "allowed_tools" => {
                let mode = required_text(choice, path, "mode")?;
                if !matches!(mode, "auto" | "required") {
                    let message = format!("expected 'auto' or 'required', found '{mode}'");
                    return Err(invalid("tool_choice.mode", &message));
                }
                let path = "tool_choice.tools";
                let listed = as_array(required(choice, "tool_choice", "tools")?, path)?;
                if listed.len() > most {
                    let message = format!("expected at most {most}, found {}", listed.len());
                    return Err(invalid(path, &message));
                }
                let mut allowed = HashSet::new();
                for (i, tool) in listed.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    let tool = as_object(tool, &path)?;
                    if matches!(required_text(tool, &path, "type")?, "function" | "custom") {
                        allowed.insert(self.find(tool, &path)?);
                    }
                }
                for declared in &mut self.declared {
                    declared.allowed = allowed.contains(&declared.tool.name);
                }
                match mode {
                    "auto" if allowed.is_empty() => Ok(ToolChoice::None),
                    mode => self.word(mode, path),
                }
            }
            kind => {
                let message = format!(
                    "Tools of type '{kind}' do not exist here, so none can be chosen. Expected 'function', \
                     'custom' or 'allowed_tools'."
                );
                Err(ApiError::unsupported("tool_choice.type", message))
            }
        }
    }

    fn word(&self, word: &str, path: &str) -> Result<ToolChoice, ApiError> {
        match word {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" if self.allowed().next().is_none() => Err(invalid(
                path,
                "'required' needs at least one tool in 'tools' that the model can call",
            )),
            "required" => Ok(ToolChoice::Required),
            other => {
                let message = format!(
                    "expected 'none', 'auto', 'required' or an object, found '{other:.40}'"
                );
                Err(invalid(path, &message))
            }
        }
    }

    /// The flat name of the declared tool that `choice` names.
    fn find(&self, choice: &Map<String, Value>, path: &str) -> Result<String, ApiError> {
        let wanted = ToolName {
            namespace: optional_text(choice, path, "namespace")?.map(str::to_owned),
            name: name(choice, path)?.to_owned(),
        };
        let (_, called) = self.called(&flat(&wanted));
        let found = flat(&called);
        match self.declared.iter().any(|d| d.tool.name == found) {
            true => Ok(found),
            false => Err(invalid(
                &format!("{path}.name"),
                &format!("no tool '{}' is declared in 'tools'", wanted.name),
            )),
        }
    }
}

type ReadTool = (Tool, Option<Value>);

fn function(
    name: String,
    description: Option<String>,
    tool: &Map<String, Value>,
    path: &str,
    echo: &mut Value,
) -> Result<ReadTool, ApiError> {
    let parameters = match tool.get("parameters") {
        None | Some(Value::Null) => None,
        Some(schema @ Value::Object(_)) => Some(schema.clone()),
        Some(other) => {
            return Err(wrong_type(
                &format!("{path}.parameters"),
                "an object",
                other,
            ));
        }
    };
    let strict = flag(tool, path, "strict")?;
    if let Value::Object(echo) = echo {
        echo.entry("description").or_insert(Value::Null);
        echo.entry("parameters").or_insert(Value::Null);
        echo.insert("strict".to_owned(), strict.into());
    }
    let no_parameters =
        || json!({"type": "object", "properties": {}, "additionalProperties": false});
    let enforced = strict.then(|| parameters.clone().unwrap_or_else(no_parameters));
    let tool = Tool {
        name,
        description,
        parameters,
    };
    Ok((tool, enforced))
}

/// A custom tool. A regex is enforced as the pattern of `input`; a Lark grammar can't be, within a
/// JSON string: the model is told of it.
fn custom(
    name: String,
    description: Option<String>,
    tool: &Map<String, Value>,
    path: &str,
    echo: &mut Value,
) -> Result<ReadTool, ApiError> {
    let path = format!("{path}.format");
    let format = match tool.get("format") {
        None | Some(Value::Null) => None,
        Some(format) => Some(as_object(format, &path)?),
    };
    let mut input = json!({"type": "string"});
    let mut enforced = None;
    let mut note = None;
    match format
        .map(|format| required_text(format, &path, "type"))
        .transpose()?
    {
        None | Some("text") => {}
        Some("grammar") => {
            let format = format.unwrap_or(tool);
            let definition = required_text(format, &path, "definition")?;
            match required_text(format, &path, "syntax")? {
                "regex" => {
                    input["pattern"] = format!("^(?:{definition})$").into();
                    enforced = Some(());
                }
                "lark" => {
                    note = Some(format!(
                        "The input follows this Lark grammar:\n{definition}"
                    ))
                }
                other => {
                    let message = format!("expected 'lark' or 'regex', found '{other:.40}'");
                    return Err(invalid(&format!("{path}.syntax"), &message));
                }
            }
        }
        Some(other) => {
            let message = format!("expected 'text' or 'grammar', found '{other:.40}'");
            return Err(invalid(&format!("{path}.type"), &message));
        }
    }
    if let Value::Object(echo) = echo
        && format.is_none()
    {
        echo.insert("format".to_owned(), json!({"type": "text"}));
    }
    let parameters = json!({
        "type": "object",
        "properties": {"input": input},
        "required": ["input"],
        "additionalProperties": false,
    });
    let description = match (description, note) {
        (Some(description), Some(note)) => Some(format!("{description}\n{note}")),
        (description, note) => description.or(note),
    };
    let enforced = enforced.map(|()| parameters.clone());
    let tool = Tool {
        name,
        description,
        parameters: Some(parameters),
    };
    Ok((tool, enforced))
}

fn name<'a>(map: &'a Map<String, Value>, path: &str) -> Result<&'a str, ApiError> {
    match required_text(map, path, "name")? {
        "" => Err(invalid(&format!("{path}.name"), "it is empty")),
        name => Ok(name),
    }
}
