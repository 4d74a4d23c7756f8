//! The shape of the answer as vLLM's clients ask for it: `guided_json` and its kin, or all of them in
//! `structured_outputs`. One of them at most, and not beside `response_format`.

use super::format::{self, Shape, bounded, told};
use crate::{
    grammar::Format,
    server::{
        error::ApiError,
        json::{as_array, as_object, flag, invalid, wrong_type},
        settings::Settings,
    },
};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The fields that say which shape the answer has.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct Shaping {
    /// Shape of the answer.
    #[schema(value_type = Option<Object>)]
    pub response_format: Option<Value>,
    /// A JSON schema, or the text of one.
    pub guided_json: Option<Value>,
    /// What the whole answer matches.
    #[schema(value_type = Option<String>)]
    pub guided_regex: Option<Value>,
    /// The answer is one of these.
    #[schema(value_type = Option<Vec<String>>)]
    pub guided_choice: Option<Value>,
    /// A Lark grammar.
    #[schema(value_type = Option<String>)]
    pub guided_grammar: Option<Value>,
    /// One of `json`, `regex`, `choice`, `grammar` and `json_object`.
    #[schema(value_type = Option<Object>)]
    pub structured_outputs: Option<Value>,
}

impl Shaping {
    /// The shape that is asked for, and by which field; `None` where any text will do.
    ///
    /// # Errors
    /// 400 that names the field; also where two ask for one.
    pub fn read(&self, settings: &Settings) -> Result<Option<(Shape, String)>, ApiError> {
        let format = self.response_format.as_ref();
        let shape = format::read(format, "response_format", true, settings)?;
        let mut shapes: Vec<(Shape, String)> = Vec::new();
        shapes.extend(shape.map(|shape| (shape, "response_format".to_owned())));
        let given = [
            ("json", "guided_json", &self.guided_json),
            ("regex", "guided_regex", &self.guided_regex),
            ("choice", "guided_choice", &self.guided_choice),
            ("grammar", "guided_grammar", &self.guided_grammar),
        ];
        for (kind, place, value) in given {
            if let Some(value) = value {
                shapes.push((shape_of(kind, value, place)?, place.to_owned()));
            }
        }
        if let Some(outputs) = &self.structured_outputs {
            let path = "structured_outputs";
            shapes.extend(from_outputs(as_object(outputs, path)?, path)?);
        }
        let mut shapes = shapes.into_iter();
        let first = shapes.next();
        if let (Some((_, one)), Some((_, other))) = (&first, &shapes.next()) {
            let text = format!("the answer has one shape, and '{one}' gives one too");
            return Err(invalid(other, &text));
        }
        match first {
            Some((shape, place)) => Ok(Some((bounded(shape, &place, settings)?, place))),
            None => Ok(None),
        }
    }
}

/// What `structured_outputs` asks for.
fn from_outputs(
    outputs: &Map<String, Value>,
    path: &str,
) -> Result<Vec<(Shape, String)>, ApiError> {
    let mut shapes = Vec::new();
    for (key, value) in outputs.iter().filter(|(_, value)| !value.is_null()) {
        let place = format!("{path}.{key}");
        match key.as_str() {
            "json" | "regex" | "choice" | "grammar" => {
                let shape = shape_of(key, value, &place)?;
                shapes.push((shape, place));
            }
            "json_object" if flag(outputs, path, key)? => {
                shapes.push(((Format::JsonObject, None), place));
            }
            // Another one of vLLM's options would change the answer.
            _ if *value != false => {
                let text = format!("'{place}' can't be enforced: leave it out.");
                return Err(ApiError::unsupported(place, text));
            }
            _ => {}
        }
    }
    Ok(shapes)
}

fn shape_of(kind: &str, value: &Value, place: &str) -> Result<Shape, ApiError> {
    let text = || {
        let text = value.as_str();
        text.ok_or_else(|| wrong_type(place, "a string", value))
    };
    Ok(match kind {
        "json" => match value {
            Value::String(text) => match serde_json::from_str(text) {
                Ok(schema @ Value::Object(_)) => told("answer", None, &schema),
                _ => return Err(invalid(place, "expected a JSON schema")),
            },
            Value::Object(_) => told("answer", None, value),
            other => return Err(wrong_type(place, "an object or a string", other)),
        },
        "choice" => (Format::Regex(one_of(value, place)?), None),
        "regex" => (Format::Regex(text()?.to_owned()), None),
        _ => (Format::Lark(text()?.to_owned()), None),
    })
}

/// An expression that these texts match, and no other.
fn one_of(value: &Value, place: &str) -> Result<String, ApiError> {
    let mut pattern = String::new();
    for choice in as_array(value, place)? {
        let choice = choice.as_str();
        let choice = choice.ok_or_else(|| wrong_type(place, "an array of strings", value))?;
        if choice.is_empty() {
            return Err(invalid(place, "a choice can't be empty"));
        }
        if !pattern.is_empty() {
            pattern.push('|');
        }
        for c in choice.chars() {
            if c.is_ascii_punctuation() {
                pattern.push('\\');
            }
            pattern.push(c);
        }
    }
    match pattern.is_empty() {
        true => Err(invalid(place, "expected some choices, found none")),
        false => Ok(pattern),
    }
}
