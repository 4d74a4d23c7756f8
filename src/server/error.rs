//! Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`.
//!
//! openai-python retries 408, 409, 429 and everything from 500 on, so whatever fails the same way each
//! time is a 4xx. `code` is a string or null, never a number.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::time::Duration;

/// Most characters of a message: it may repeat what the client sent.
const LONGEST: usize = 1000;

/// A refusal or a failure, on its way to the client.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// `type`: `invalid_request_error`, `rate_limit_error`, `server_error` …
    pub kind: &'static str,
    /// What programs branch on.
    pub code: Option<&'static str>,
    /// The field of the request that is wrong, as a path: `messages[0].content`.
    pub param: Option<String>,
    /// What people read: what was expected, what was found, what to do.
    pub message: String,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// An error of `status`, of the type that belongs to it.
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        let kind = match status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(LONGEST) {
            message.truncate(end);
            message.push('…');
        }
        ApiError {
            status,
            kind,
            code: None,
            param: None,
            message,
            retry_after: None,
        }
    }

    /// With what programs branch on.
    pub fn code(mut self, code: &'static str) -> ApiError {
        self.code = Some(code);
        self
    }

    /// With the field that is wrong.
    pub fn param(mut self, param: impl Into<String>) -> ApiError {
        self.param = Some(param.into());
        self
    }

    /// With when to try again.
    pub fn retry_after(mut self, wait: Duration) -> ApiError {
        self.retry_after = Some(wait);
        self
    }

    /// 400: a value that field `param` can't have.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::BAD_REQUEST, message);
        error.code("invalid_value").param(param)
    }

    /// 400: a value of the wrong JSON type.
    pub fn invalid_type(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::BAD_REQUEST, message);
        error.code("invalid_type").param(param)
    }

    /// 400: field `param` is required.
    pub fn missing(param: impl Into<String>) -> ApiError {
        let param = param.into();
        let message = format!("Missing required parameter: '{param}'.");
        let error = ApiError::new(StatusCode::BAD_REQUEST, message);
        error.code("missing_required_parameter").param(param)
    }

    /// 400: something that OpenAI's API has and this server has not, and that would change the answer.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::BAD_REQUEST, message);
        error.code("unsupported_parameter").param(param)
    }

    /// 400: the prompt does not fit. Codex knows this code.
    pub fn context_length(prompt: usize, context: usize) -> ApiError {
        let message = format!(
            "This model's maximum context length is {context} tokens. Your prompt has {prompt} \
             tokens. Please shorten it, or give the server more room (--ctx-size)."
        );
        let error = ApiError::new(StatusCode::BAD_REQUEST, message);
        error.code("context_length_exceeded").param("messages")
    }

    /// 404: no such model.
    pub fn model_not_found(name: &str, there_are: &[String]) -> ApiError {
        let message = format!(
            "The model '{name:.100}' does not exist. There are: {}.",
            there_are.join(", ")
        );
        let error = ApiError::new(StatusCode::NOT_FOUND, message);
        error.code("model_not_found").param("model")
    }

    /// 429: try again in `wait`. Codex reads the seconds out of the message.
    pub fn busy(what: &str, wait: Duration) -> ApiError {
        let seconds = wait.as_secs_f64().ceil().max(1.0);
        let message = format!("{what} Please try again in {seconds} s.");
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message);
        error.code("rate_limit_exceeded").retry_after(wait)
    }

    /// 500: our fault. The details are in the log, under the request's id.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message).code("internal_error")
    }

    /// The error object, as it also stands in a stream.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
