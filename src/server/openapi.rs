//! `/openapi.json`: the API as OpenAPI 3.1, collected from the endpoints' own descriptions.
//!
//! What all endpoints have in common is added here once: the error object and the statuses it comes
//! with, and the API key.

use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema, openapi::OpenApi};

/// The error object of every endpoint.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody {
    /// What went wrong.
    error: ErrorObject,
}

/// What went wrong.
#[derive(Serialize, ToSchema)]
pub struct ErrorObject {
    /// For people: what was expected, what was found, what to do.
    message: String,
    /// `invalid_request_error`, `rate_limit_error`, `server_error` …
    r#type: String,
    /// The request's field that is wrong, as a path.
    param: Option<String>,
    /// For programs.
    code: Option<String>,
}

/// Statuses that any endpoint can answer with besides its own.
const ERRORS: [(&str, &str); 11] = [
    ("400", "The request is wrong; `param` names the field"),
    ("401", "No API key, or a wrong one"),
    ("403", "A host that is not allowed"),
    ("404", "No such thing"),
    ("405", "The endpoint does not know the method"),
    ("408", "The body did not arrive in time"),
    ("413", "The body is too large"),
    (
        "415",
        "The body is encoded, or comes from a web page and is not JSON",
    ),
    (
        "429",
        "Too many requests: try again after `Retry-After` seconds",
    ),
    ("500", "The server's fault"),
    (
        "503",
        "Loading or shutting down: try again after `Retry-After` seconds",
    ),
];

/// The document, from what the routers collected.
pub(super) fn document(collected: &OpenApi) -> Value {
    let mut document = serde_json::to_value(collected).unwrap_or_default();
    document["openapi"] = "3.1.0".into();
    document["info"] = json!({
        "title": "Gossamer",
        "description": "An OpenAI-compatible server for gpt-oss models.",
        "version": env!("CARGO_PKG_VERSION"),
        "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
    });
    document["servers"] = json!([{"url": "/"}]);
    // A key may be asked for.
    document["security"] = json!([{}, {"key": []}]);
    let components = object(&mut document["components"]);
    components.insert(
        "securitySchemes".into(),
        json!({"key": {"type": "http", "scheme": "bearer"}}),
    );
    let schemas = object(components.entry("schemas").or_insert(Value::Null));
    schemas.insert("Error".into(), schema::<ErrorBody>());
    schemas.insert("ErrorObject".into(), schema::<ErrorObject>());
    let paths = object(&mut document["paths"]);
    *paths = std::mem::take(paths)
        .into_iter()
        .map(|(path, mut item)| {
            for operation in object(&mut item).values_mut() {
                add_errors(operation);
                for parameter in parameters(operation) {
                    let name = parameter["name"].as_str().unwrap_or_default();
                    parameter["name"] = name.trim_start_matches('*').into();
                }
            }
            // What the router writes for the rest of a path is a parameter like any other here.
            (path.replace("{*", "{"), item)
        })
        .collect();
    document
}

fn schema<T: PartialSchema>() -> Value {
    serde_json::to_value(T::schema()).unwrap_or_default()
}

fn add_errors(operation: &mut Value) {
    if !operation.is_object() {
        return;
    }
    let responses = object(&mut operation["responses"]);
    for (status, meaning) in ERRORS {
        responses.entry(status).or_insert_with(|| {
            json!({
                "description": meaning,
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Error"}}
                },
            })
        });
    }
}

fn parameters(operation: &mut Value) -> impl Iterator<Item = &mut Value> {
    let parameters = operation
        .get_mut("parameters")
        .and_then(Value::as_array_mut);
    parameters.into_iter().flatten()
}

/// `value` as an object, made one if it is none.
fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}
