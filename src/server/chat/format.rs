//! The shape of the answer: `response_format`, or `text.format` of responses.

use crate::{
    grammar::Format,
    harmony::ResponseFormat,
    server::{
        error::ApiError,
        json::{as_object, flag, optional_text, required, required_text},
        sampling::out_of_range,
        settings::Settings,
    },
};
use serde_json::Value;

/// A shape to enforce, and what the model is told of it.
pub type Shape = (Format, Option<ResponseFormat>);

/// Reads the shape in `field`; `None` where any text will do. `nested`: a schema, its name and its
/// description stand in an object of their own, as in chat; else beside `type`, as in responses.
///
/// # Errors
/// 400 that names the field.
pub fn read(
    value: Option<&Value>,
    field: &str,
    nested: bool,
    settings: &Settings,
) -> Result<Option<Shape>, ApiError> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let object = as_object(value, field)?;
    let (shape, place) = match required_text(object, field, "type")? {
        "text" => return Ok(None),
        "json_object" => match object.get("schema").filter(|schema| !schema.is_null()) {
            None => return Ok(Some((Format::JsonObject, None))),
            // llama.cpp's way to give one.
            Some(schema) => {
                let place = format!("{field}.schema");
                as_object(schema, &place)?;
                (told("answer", None, schema), place)
            }
        },
        "json_schema" => {
            let (inner, path) = match nested {
                true => (
                    required(object, field, "json_schema")?,
                    format!("{field}.json_schema"),
                ),
                false => (value, field.to_owned()),
            };
            let inner = as_object(inner, &path)?;
            let name = required_text(inner, &path, "name")?;
            let description = optional_text(inner, &path, "description")?;
            flag(inner, &path, "strict")?;
            let schema = match required(inner, &path, "schema") {
                // Chat's schema may be left out: then any will do.
                Err(_) if nested => return Ok(Some((Format::JsonObject, None))),
                schema => schema?,
            };
            let place = format!("{path}.schema");
            as_object(schema, &place)?;
            (told(name, description, schema), place)
        }
        "regex" => {
            let pattern = required_text(object, field, "pattern")?.to_owned();
            ((Format::Regex(pattern), None), format!("{field}.pattern"))
        }
        "lark" => {
            let grammar = required_text(object, field, "grammar")?.to_owned();
            ((Format::Lark(grammar), None), format!("{field}.grammar"))
        }
        other => {
            let param = format!("{field}.type");
            let text = format!(
                "Invalid '{param}': expected text, json_object, json_schema, regex or lark, found '{other:.60}'."
            );
            return Err(ApiError::invalid(param, text));
        }
    };
    bounded(shape, &place, settings).map(Some)
}

/// `shape`, which stands at `place`, if it is not too long.
///
/// # Errors
/// 400 that names the place.
pub fn bounded(shape: Shape, place: &str, settings: &Settings) -> Result<Shape, ApiError> {
    let bytes = match &shape.0 {
        Format::JsonSchema { schema } => schema.to_string().len(),
        Format::Regex(text) | Format::Lark(text) => text.len(),
        Format::JsonObject => 0,
    };
    let most = settings.max_schema_bytes;
    match bytes > most {
        true => Err(out_of_range(place, &format!("at most {most} bytes"), bytes)),
        false => Ok(shape),
    }
}

/// The shape of a schema, and that the model is told of it.
pub fn told(name: &str, description: Option<&str>, schema: &Value) -> Shape {
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
