//! `response_format`: the shape of the answer, as chat and completions ask for it.

use crate::{
    grammar::Format,
    harmony::ResponseFormat,
    server::{error::ApiError, extract, settings::Settings},
};
use serde_json::{Map, Value};

/// A shape to enforce, and what the model is told of it.
pub type Shape = (Format, Option<ResponseFormat>);

/// Reads `response_format`; `None` where any text will do.
///
/// # Errors
/// 400 that names the field.
pub fn read(value: Option<&Value>, settings: &Settings) -> Result<Option<Shape>, ApiError> {
    const FIELD: &str = "response_format";
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let object = as_object(value, FIELD)?;
    let kind = required_text(object, FIELD, "type")?;
    let (shape, field) = match kind {
        "text" => return Ok(None),
        "json_object" => match object.get("schema").filter(|schema| !schema.is_null()) {
            None => return Ok(Some((Format::JsonObject, None))),
            // llama.cpp's way to give one.
            Some(schema) => {
                as_object(schema, "response_format.schema")?;
                (told("answer", None, schema), "schema")
            }
        },
        "json_schema" => {
            let path = "response_format.json_schema";
            let inner = object.get("json_schema").filter(|inner| !inner.is_null());
            let inner = inner.ok_or_else(|| ApiError::missing(path))?;
            let inner = as_object(inner, path)?;
            let name = required_text(inner, path, "name")?;
            let description = optional_text(inner, path, "description")?;
            if let Some(strict) = inner.get("strict")
                && !(strict.is_boolean() || strict.is_null())
            {
                return Err(wrong_type(&format!("{path}.strict"), "a boolean", strict));
            }
            let schema = inner.get("schema").filter(|schema| !schema.is_null());
            let Some(schema) = schema else {
                return Ok(Some((Format::JsonObject, None)));
            };
            as_object(schema, "response_format.json_schema.schema")?;
            (told(name, description, schema), "json_schema.schema")
        }
        "regex" => {
            let pattern = required_text(object, FIELD, "pattern")?.to_owned();
            ((Format::Regex(pattern), None), "pattern")
        }
        "lark" => {
            let grammar = required_text(object, FIELD, "grammar")?.to_owned();
            ((Format::Lark(grammar), None), "grammar")
        }
        other => {
            let param = "response_format.type";
            let text = format!(
                "Invalid '{param}': expected text, json_object, json_schema, regex or lark, found {other:?}."
            );
            return Err(ApiError::invalid(param, text));
        }
    };
    let bytes = match &shape.0 {
        Format::JsonSchema { schema } => schema.to_string().len(),
        Format::Regex(text) | Format::Lark(text) => text.len(),
        Format::JsonObject => 0,
    };
    let most = settings.max_schema_bytes;
    if bytes > most {
        let param = format!("{FIELD}.{field}");
        let text = format!("Invalid '{param}': expected at most {most} bytes, found {bytes}.");
        return Err(ApiError::invalid(param, text));
    }
    Ok(Some(shape))
}

fn told(name: &str, description: Option<&str>, schema: &Value) -> Shape {
    let format = Format::JsonSchema {
        schema: schema.clone(),
    };
    let told = ResponseFormat {
        name: name.to_owned(),
        description: description.map(str::to_owned),
        schema: schema.clone(),
    };
    (format, Some(told))
}

/// An object, or 400 with `path`.
pub fn as_object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>, ApiError> {
    value
        .as_object()
        .ok_or_else(|| wrong_type(path, "an object", value))
}

/// Text field `field` of `path`; 400 if it is missing.
pub fn required_text<'a>(
    object: &'a Map<String, Value>,
    path: &str,
    field: &str,
) -> Result<&'a str, ApiError> {
    optional_text(object, path, field)?.ok_or_else(|| ApiError::missing(format!("{path}.{field}")))
}

fn optional_text<'a>(
    object: &'a Map<String, Value>,
    path: &str,
    field: &str,
) -> Result<Option<&'a str>, ApiError> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong_type(&format!("{path}.{field}"), "a string", other)),
    }
}

/// 400: a value of another JSON type.
pub fn wrong_type(path: &str, expected: &str, found: &Value) -> ApiError {
    let found = extract::kind(found);
    let text = format!("Invalid '{path}': expected {expected}, found {found}.");
    ApiError::invalid_type(path, text)
}
