//! Request bodies: bounded, strictly JSON, with errors that name the field.
//!
//! What is refused before a handler sees it: bodies that are too long (413) or too slow (408), text
//! that is no JSON, a key that stands twice in an object, and nesting or sizes past the limits of
//! [`Settings`](super::settings::Settings). Unknown fields pass.
//!
//! A missing or odd `Content-Type` is accepted if the body is JSON, as some clients leave it out. Not
//! from web pages, though (whoever sends an `Origin`): there `application/json` is required, so that
//! a foreign page can't reach this server with a "simple" request, for which browsers ask no leave.

use super::{
    error::ApiError,
    json::kind,
    log,
    memory::{Hold, VALUE_BYTES},
    object::Object,
    state::App,
};
use axum::{
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use futures_util::StreamExt as _;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};
use std::{cell::RefCell, fmt, sync::Arc};

/// A JSON body.
#[derive(Debug)]
pub struct Body<T>(pub T);

/// Longer bodies are read away from the threads that answer others.
const LONG: usize = 256 << 10;

impl<T: DeserializeOwned + Send + 'static> FromRequest<Arc<App>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let settings = &app.settings;
        check_type(request.headers())?;
        let mut hold = app.memory.hold();
        let read = read(request, settings.max_body_bytes, &mut hold);
        let read = tokio::time::timeout(settings.body_timeout, read).await;
        let bytes = read.unwrap_or_else(|_| {
            let seconds = settings.body_timeout.as_secs();
            let text = format!("The request's body was not complete after {seconds} s.");
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, text).code("timeout"))
        })?;
        let (depth, values) = (settings.max_json_depth, settings.max_json_values);
        let long = bytes.len() > LONG;
        let understand = move || {
            let (value, hold) = parse(&bytes, depth, values, hold)?;
            Ok::<_, ApiError>((typed(value)?, hold))
        };
        let (body, hold) = match long {
            true => app.work(understand).await??,
            false => understand()?,
        };
        log::hold(hold);
        Ok(Body(body))
    }
}

/// All bytes of the body.
async fn read(request: Request, most: usize, hold: &mut Hold) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        let text = format!("The request's body is larger than {most} bytes (--max-body).");
        Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text).code("request_too_large"))
    };
    let stated = request.headers().get(header::CONTENT_LENGTH);
    let stated = stated.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if stated.is_some_and(|bytes| bytes > most as u64) {
        return too_large();
    }
    let mut bytes = Vec::new();
    let mut body = request.into_body().into_data_stream();
    while let Some(more) = body.next().await {
        let Ok(more) = more else {
            let text = "The request's body broke off before its end.";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, text).code("invalid_json"));
        };
        if more.len() > most - bytes.len() {
            return too_large();
        }
        hold.grow(more.len())?;
        bytes.extend_from_slice(&more);
    }
    Ok(bytes)
}

/// The parameters after `?`.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let query = axum::extract::Query::from_request_parts(parts, app).await;
        match query {
            Ok(axum::extract::Query(query)) => Ok(Query(query)),
            Err(error) => {
                let text = error.body_text();
                let text = text.trim_start_matches("Failed to deserialize query string: ");
                let (param, message) = match text.split_once(": ") {
                    Some((param, message)) if !param.contains(' ') => (Some(param), message),
                    _ => (None, text),
                };
                let mut error = ApiError::new(StatusCode::BAD_REQUEST, message);
                error.param = param.map(str::to_owned);
                Err(error.code("invalid_value"))
            }
        }
    }
}

/// The one parameter in a route's path, which may hold slashes.
#[derive(Debug)]
pub struct PathText(pub String);

impl FromRequestParts<Arc<App>> for PathText {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, app).await;
        match path {
            Ok(axum::extract::Path(path)) => Ok(PathText(path)),
            Err(error) => {
                let error = ApiError::new(StatusCode::BAD_REQUEST, error.body_text());
                Err(error.code("invalid_value"))
            }
        }
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |text: String| {
        Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text).code("unsupported_media_type"))
    };
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(encoding) = text(header::CONTENT_ENCODING)
        && !encoding.eq_ignore_ascii_case("identity")
    {
        return unsupported(format!(
            "Content-Encoding: expected none, found {encoding}."
        ));
    }
    if !headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    let found = text(header::CONTENT_TYPE).unwrap_or("none");
    let media = found.split(';').next().unwrap_or_default().trim();
    if media.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    unsupported(format!(
        "Content-Type: expected application/json (as always from a web page), found {found}."
    ))
}

/// Bytes as JSON, with no key twice, at most `depth` levels and `values` values; what they take is held.
///
/// # Errors
/// 400 `invalid_json`, saying where; 429 when others hold too much.
fn parse(bytes: &[u8], depth: usize, values: usize, hold: Hold) -> Result<(Value, Hold), ApiError> {
    let refuse =
        |text: String| Err(ApiError::new(StatusCode::BAD_REQUEST, text).code("invalid_json"));
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to();
            return refuse(format!("The request's body is not UTF-8 (byte {at})."));
        }
    };
    if text.trim_ascii().is_empty() {
        return refuse("The request's body is empty: expected a JSON object.".into());
    }
    let count = RefCell::new(Count {
        found: 0,
        most: values,
        hold,
        refused: None,
    });
    let mut reader = serde_json::Deserializer::from_str(text);
    let seed = Strict {
        depth,
        most_depth: depth,
        count: &count,
    };
    let value = seed.deserialize(&mut reader);
    let Count { hold, refused, .. } = count.into_inner();
    match value.and_then(|value| reader.end().map(|()| value)) {
        Ok(value) => Ok((value, hold)),
        Err(_) if let Some(busy) = refused => Err(busy),
        Err(error) => refuse(format!("The request's body is not valid JSON: {error}.")),
    }
}

/// `value` as a `T`.
///
/// # Errors
/// 400 with the field's path as `param`, and `invalid_type`, `missing_required_parameter` or
/// `invalid_value` as `code`.
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    if !value.is_object() {
        let found = kind(&value);
        let text = format!("The request's body: expected a JSON object, found {found}.");
        return Err(ApiError::new(StatusCode::BAD_REQUEST, text).code("invalid_type"));
    }
    serde_path_to_error::deserialize(Object(value)).map_err(|error| {
        let path = error.path().to_string();
        let text = error.inner().to_string();
        let missing = text
            .strip_prefix("missing field `")
            .and_then(|rest| rest.split('`').next());
        if let Some(field) = missing {
            return ApiError::missing(match path.as_str() {
                "." | "" => field.to_owned(),
                path if path.ends_with(field) => path.to_owned(),
                path => format!("{path}.{field}"),
            });
        }
        let message = format!("Invalid '{path}': {text}.");
        if text.starts_with("invalid type") {
            ApiError::invalid_type(path, message)
        } else {
            ApiError::invalid(path, message)
        }
    })
}

/// Reads any JSON value, strictly.
#[derive(Clone, Copy)]
struct Strict<'a> {
    /// Levels that may still open.
    depth: usize,
    most_depth: usize,
    count: &'a RefCell<Count>,
}

/// The values so far.
struct Count {
    found: usize,
    most: usize,
    hold: Hold,
    /// The values take more than there is.
    refused: Option<ApiError>,
}

/// Memory is asked for before every so many values.
const STRIDE: usize = 1024;

impl<'a> Strict<'a> {
    fn count<E: serde::de::Error>(&self) -> Result<(), E> {
        let mut count = self.count.borrow_mut();
        if count.found == count.most {
            return Err(E::custom(format!("more than {} values", count.most)));
        }
        if count.found % STRIDE == STRIDE - 1
            && let Err(busy) = count.hold.grow(STRIDE * VALUE_BYTES)
        {
            count.refused = Some(busy);
            return Err(E::custom("too many large requests"));
        }
        count.found += 1;
        Ok(())
    }

    fn inner<E: serde::de::Error>(self) -> Result<Strict<'a>, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Strict { depth, ..self }),
            None => {
                let most = self.most_depth;
                Err(E::custom(format!("nested deeper than {most} levels")))
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        self.count()?;
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut values = Vec::new();
        while let Some(value) = from.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut map = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            let value = from.next_value_seed(inner)?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("key {key:?} twice in one object")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
