//! Reading JSON by hand, where what clients send has too many shapes for derived types.
//!
//! Each function takes a field's path, which the error names. A field that is null is absent.

use super::error::ApiError;
use serde_json::{Map, Value};

/// The JSON type of `value`, as errors name it.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// 400: `path` can't be what it is; `message` says why, without a full stop.
pub fn invalid(path: &str, message: &str) -> ApiError {
    ApiError::invalid(path, format!("Invalid '{path}': {message}."))
}

/// 400: `path` is of another JSON type than `expected`.
pub fn wrong_type(path: &str, expected: &str, found: &Value) -> ApiError {
    let found = kind(found);
    let message = format!("Invalid type for '{path}': expected {expected}, found {found}.");
    ApiError::invalid_type(path, message)
}

/// An object, or 400.
pub fn as_object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>, ApiError> {
    let object = value.as_object();
    object.ok_or_else(|| wrong_type(path, "an object", value))
}

/// An array, or 400.
pub fn as_array<'a>(value: &'a Value, path: &str) -> Result<&'a [Value], ApiError> {
    match value.as_array() {
        Some(array) => Ok(array),
        None => Err(wrong_type(path, "an array", value)),
    }
}

/// Field `field` of `object`, which stands at `path`; 400 if it is missing.
pub fn required<'a>(
    object: &'a Map<String, Value>,
    path: &str,
    field: &str,
) -> Result<&'a Value, ApiError> {
    let value = object.get(field).filter(|value| !value.is_null());
    value.ok_or_else(|| ApiError::missing(format!("{path}.{field}")))
}

/// Text field `field` of `object`, which stands at `path`; 400 if it is missing.
pub fn required_text<'a>(
    object: &'a Map<String, Value>,
    path: &str,
    field: &str,
) -> Result<&'a str, ApiError> {
    let value = required(object, path, field)?;
    let text = value.as_str();
    text.ok_or_else(|| wrong_type(&format!("{path}.{field}"), "a string", value))
}

/// Text field `field` of `object`, which stands at `path` and may lack it.
pub fn optional_text<'a>(
    object: &'a Map<String, Value>,
    path: &str,
    field: &str,
) -> Result<Option<&'a str>, ApiError> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => required_text(object, path, field).map(Some),
    }
}

/// Field `field` of `object`, which stands at `path`: true or false, false if it is missing.
pub fn flag(object: &Map<String, Value>, path: &str, field: &str) -> Result<bool, ApiError> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(wrong_type(&format!("{path}.{field}"), "a boolean", other)),
    }
}
