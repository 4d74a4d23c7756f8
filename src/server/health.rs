//! Whether the server lives, whether it can answer, what it counts, and what it is.

use super::{App, error::ApiError, state::Phase};
use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Where the server is in its life.
#[derive(Serialize, ToSchema)]
pub struct Health {
    /// `ok`, or the phase that keeps the server from answering: `starting`, `loading`, `draining`.
    #[schema(example = "ok")]
    status: &'static str,
}

/// `/`, `/health`, `/ready`, `/metrics`.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(root))
        .routes(routes!(health))
        .routes(routes!(ready))
        .routes(routes!(metrics))
}

/// What this is, for whoever opens the address in a browser
#[utoipa::path(get, path = "/", tag = "operations", responses((status = 200, description = "Name, version, endpoints")))]
async fn root() -> Response {
    Json(serde_json::json!({
        "name": "gossamer",
        "version": env!("CARGO_PKG_VERSION"),
        "what": "an OpenAI-compatible server for gpt-oss models",
        "base_url": "/v1",
        "endpoints": [
            "/v1/models", "/v1/chat/completions", "/v1/responses", "/v1/completions", "/tokenize",
            "/detokenize", "/health", "/ready", "/metrics", "/openapi.json",
        ],
    }))
    .into_response()
}

/// Whether the process lives
#[utoipa::path(get, path = "/health", tag = "operations", responses((status = 200, body = Health)))]
async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether requests can be answered now
#[utoipa::path(
    get,
    path = "/ready",
    tag = "operations",
    responses((status = 200, body = Health), (status = 503, body = Health, description = "Not now"))
)]
async fn ready(State(app): State<Arc<App>>) -> Response {
    let phase = app.life.phase();
    if phase == Phase::Ready {
        return Json(Health { status: "ok" }).into_response();
    }
    let status = phase.as_str();
    let retry = [(header::RETRY_AFTER, HeaderValue::from_static("2"))];
    (
        StatusCode::SERVICE_UNAVAILABLE,
        retry,
        Json(Health { status }),
    )
        .into_response()
}

/// Counters and gauges in Prometheus' text format
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    responses((status = 200, content_type = "text/plain", body = String))
)]
async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.metrics.render(&app.models.stats());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The 404 of a path that is no endpoint.
pub(super) async fn not_found(request: axum::extract::Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    let path: String = path.chars().take(200).collect();
    let text = format!("Unknown request URL: {method} {path}. GET / lists the endpoints.");
    ApiError::new(StatusCode::NOT_FOUND, text).code("unknown_url")
}

/// The 405 of an endpoint that does not know the method.
pub(super) async fn wrong_method(request: axum::extract::Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    let text =
        format!("Method {method} is not allowed for {path}; the header Allow lists what is.");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text).code("method_not_allowed")
}

/// 503, and when to try again.
pub(super) fn unavailable(text: &str, code: &'static str, wait: Duration) -> ApiError {
    let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text);
    error.code(code).retry_after(wait)
}

/// 503: the server is going down.
pub(super) fn stopping() -> ApiError {
    let wait = Duration::from_secs(10);
    unavailable("The server is shutting down.", "server_shutting_down", wait)
}
