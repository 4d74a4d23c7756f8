//! A request's tools, and which of them may be called.

use super::request::{ChatFunction, ChatRequest};
use crate::{
    grammar::{RuledTool, ToolChoice},
    harmony::Tool,
    server::{
        error::ApiError,
        json::{as_object, required_text, wrong_type},
        settings::Settings,
    },
};
use serde_json::{Map, Value, json};

/// The functions of a request.
#[derive(Debug, Default)]
pub struct Tools {
    /// What the model is told of.
    pub declared: Vec<Tool>,
    /// What is enforced of each.
    pub ruled: Vec<RuledTool>,
    /// Where each stands in the request.
    pub paths: Vec<String>,
    /// Which may be called.
    pub choice: ToolChoice,
    /// They came as `functions`: the answer has `function_call`.
    pub legacy: bool,
}

impl Tools {
    /// Reads `tools` and `tool_choice`, or `functions` and `function_call`.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn read(request: &ChatRequest, settings: &Settings) -> Result<Tools, ApiError> {
        let mut tools = Tools::default();
        let given = request.tools.as_deref().unwrap_or_default();
        let functions = request.functions.as_deref().unwrap_or_default();
        for (field, len) in [("tools", given.len()), ("functions", functions.len())] {
            let most = settings.max_tools;
            if len > most {
                let text = format!("Invalid '{field}': expected at most {most}, found {len}.");
                return Err(ApiError::invalid(field, text));
            }
        }
        for (i, tool) in given.iter().enumerate() {
            let path = format!("tools[{i}]");
            let kind = tool.kind.as_deref();
            match kind.ok_or_else(|| ApiError::missing(format!("{path}.type")))? {
                "function" => {
                    let path = format!("{path}.function");
                    let function = tool.function.as_ref();
                    let function = function.ok_or_else(|| ApiError::missing(&path))?;
                    tools.declare(&path, function)?;
                }
                "custom" => {
                    let text = "Custom tools are in /v1/responses, not in chat completions.";
                    return Err(ApiError::unsupported(path, text));
                }
                kind => tracing::info!(kind, "a tool of a type that is not here was left out"),
            }
        }
        tools.legacy = given.is_empty() && !functions.is_empty();
        for (i, function) in functions.iter().enumerate() {
            tools.declare(&format!("functions[{i}]"), function)?;
        }
        if let Some(choice) = &request.function_call {
            tools.choose_old(choice)?;
        }
        // The newer field decides where both are given.
        if let Some(choice) = &request.tool_choice {
            tools.choose(choice, settings)?;
        }
        Ok(tools)
    }

    fn declare(&mut self, path: &str, function: &ChatFunction) -> Result<(), ApiError> {
        let param = format!("{path}.name");
        let name = function
            .name
            .clone()
            .ok_or_else(|| ApiError::missing(&param))?;
        if name.is_empty() {
            let text = format!("Invalid '{param}': expected a name, found an empty string.");
            return Err(ApiError::invalid(param, text));
        }
        if self.is_declared(&name) {
            let text = format!("Invalid '{param}': the function {name:?} is declared twice.");
            return Err(ApiError::invalid(param, text));
        }
        let parameters = function.parameters.clone().map(Value::Object);
        let strict = function.strict == Some(true);
        self.ruled.push(RuledTool {
            name: name.clone(),
            strict: strict.then(|| {
                let none =
                    || json!({"type": "object", "properties": {}, "additionalProperties": false});
                parameters.clone().unwrap_or_else(none)
            }),
        });
        self.paths.push(path.to_owned());
        self.declared.push(Tool {
            name,
            description: function.description.clone(),
            parameters,
        });
        Ok(())
    }

    fn is_declared(&self, name: &str) -> bool {
        self.declared.iter().any(|tool| tool.name == name)
    }

    fn choose(&mut self, choice: &Value, settings: &Settings) -> Result<(), ApiError> {
        const FIELD: &str = "tool_choice";
        let object = match choice {
            Value::String(word) => return self.choose_word(FIELD, word),
            Value::Object(object) => object,
            other => return Err(wrong_type(FIELD, "a string or an object", other)),
        };
        match required_text(object, FIELD, "type")? {
            "function" => self.name(FIELD, named(object, FIELD)?),
            "allowed_tools" => self.allow(object, settings),
            "custom" => {
                let text = "Custom tools are in /v1/responses, not in chat completions.";
                Err(ApiError::unsupported(FIELD, text))
            }
            other => {
                let param = "tool_choice.type";
                let text = format!(
                    "Invalid '{param}': expected function or allowed_tools, found {other:?}."
                );
                Err(ApiError::invalid(param, text))
            }
        }
    }

    fn choose_word(&mut self, field: &str, word: &str) -> Result<(), ApiError> {
        self.choice = match word {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" if !self.ruled.is_empty() => ToolChoice::Required,
            "required" => {
                let text =
                    format!("Invalid '{field}': a call is required, but there is no function.");
                return Err(ApiError::invalid(field, text));
            }
            other => {
                let text = format!(
                    "Invalid '{field}': expected none, auto, required or an object, found {other:?}."
                );
                return Err(ApiError::invalid(field, text));
            }
        };
        Ok(())
    }

    fn name(&mut self, field: &str, name: &str) -> Result<(), ApiError> {
        if !self.is_declared(name) {
            let text = format!("Invalid '{field}': there is no function {name:?} among the tools.");
            return Err(ApiError::invalid(field, text));
        }
        self.choice = ToolChoice::Named(name.to_owned());
        Ok(())
    }

    /// `allowed_tools`: the model may call these alone.
    fn allow(&mut self, object: &Map<String, Value>, settings: &Settings) -> Result<(), ApiError> {
        let path = "tool_choice.allowed_tools";
        let allowed = object.get("allowed_tools").filter(|inner| !inner.is_null());
        let allowed = allowed.ok_or_else(|| ApiError::missing(path))?;
        let allowed = as_object(allowed, path)?;
        let tools_path = format!("{path}.tools");
        let tools = allowed.get("tools").filter(|tools| !tools.is_null());
        let tools = tools.ok_or_else(|| ApiError::missing(&tools_path))?;
        let Value::Array(tools) = tools else {
            return Err(wrong_type(&tools_path, "an array", tools));
        };
        let (most, len) = (settings.max_tools, tools.len());
        if len > most {
            let text = format!("Invalid '{tools_path}': expected at most {most}, found {len}.");
            return Err(ApiError::invalid(tools_path, text));
        }
        let mut names = Vec::new();
        for (i, tool) in tools.iter().enumerate() {
            let path = format!("{tools_path}[{i}]");
            let name = named(as_object(tool, &path)?, &path)?;
            if !self.is_declared(name) {
                let text =
                    format!("Invalid '{path}': there is no function {name:?} among the tools.");
                return Err(ApiError::invalid(path, text));
            }
            names.push(name);
        }
        // The model is still told of all, so that the prompt is the same whatever is allowed.
        let is_kept = |tool: &Tool| names.contains(&tool.name.as_str());
        let mut kept = self.declared.iter().map(is_kept);
        self.paths.retain(|_| kept.next() == Some(true));
        self.ruled
            .retain(|tool| names.contains(&tool.name.as_str()));
        let mode = required_text(allowed, path, "mode")?;
        match mode {
            "auto" if names.is_empty() => {
                self.choice = ToolChoice::None;
                Ok(())
            }
            "auto" | "required" => self.choose_word(&format!("{path}.mode"), mode),
            other => {
                let param = format!("{path}.mode");
                let text =
                    format!("Invalid '{param}': expected auto or required, found {other:?}.");
                Err(ApiError::invalid(param, text))
            }
        }
    }

    /// `function_call`.
    fn choose_old(&mut self, choice: &Value) -> Result<(), ApiError> {
        const FIELD: &str = "function_call";
        match choice {
            Value::String(word) if word != "required" => self.choose_word(FIELD, word),
            Value::String(word) => {
                let text =
                    format!("Invalid '{FIELD}': expected none, auto or an object, found {word:?}.");
                Err(ApiError::invalid(FIELD, text))
            }
            Value::Object(object) => {
                let name = required_text(object, FIELD, "name")?;
                self.name(FIELD, name)
            }
            other => Err(wrong_type(FIELD, "a string or an object", other)),
        }
    }
}

/// The function that an object at `path` names: OpenAI's form, or that of Responses, which some
/// clients use here too and which has the name at the top.
fn named<'a>(object: &'a Map<String, Value>, path: &str) -> Result<&'a str, ApiError> {
    match (object.get("function"), object.get("name")) {
        (None | Some(Value::Null), Some(Value::String(name))) => Ok(name),
        (function, _) => {
            let path = format!("{path}.function");
            let function = function.filter(|function| !function.is_null());
            let function = function.ok_or_else(|| ApiError::missing(&path))?;
            required_text(as_object(function, &path)?, &path, "name")
        }
    }
}
