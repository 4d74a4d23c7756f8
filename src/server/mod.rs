//! The OpenAI-compatible server, above the [engine](crate::engine) seam: it sees no tensor.
//!
//! [`router`] is the whole of it and needs no socket; [`serve`] adds sockets, signals and an orderly
//! end. Each endpoint's module has `routes()`, which also describe themselves for `/openapi.json`.
//!
//! A request passes, from the outside in: its id and log line ([`log`]), what reads a body that nobody
//! wanted ([`unread`]), the net for panics, the check of its host, CORS, key and rate ([`auth`]), then
//! its endpoint.

pub mod auth;
pub mod chat;
mod choices;
pub mod completions;
pub mod error;
pub mod extract;
mod gate;
mod health;
pub mod id;
mod json;
mod limits;
mod listen;
mod log;
mod memory;
pub mod metrics;
pub mod models;
mod object;
mod openapi;
pub mod responses;
pub mod sampling;
pub mod settings;
pub mod sse;
pub mod state;
mod tls;
mod tokenize;
pub mod turn;
mod unread;
mod usage;

pub use listen::{Listener, Tls, serve};
pub use models::Served;
pub use settings::Settings;
pub use state::App;

use axum::{
    Router, http::header, middleware::from_fn_with_state, response::IntoResponse as _, routing::get,
};
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;

/// `system_fingerprint`: what computes, which may change with the version.
const FINGERPRINT: &str = concat!("gossamer-", env!("CARGO_PKG_VERSION"));

/// Every endpoint, testable without a socket.
pub fn router(app: Arc<App>) -> Router {
    let (router, collected) = OpenApiRouter::new()
        .merge(health::routes())
        .merge(models::routes())
        .merge(chat::routes())
        .merge(completions::routes())
        .merge(responses::routes())
        .merge(tokenize::routes())
        .split_for_parts();
    let document = openapi::document(&collected).to_string();
    let openapi = move || async move { ([(header::CONTENT_TYPE, "application/json")], document) };
    let metrics = app.metrics.clone();
    let catch = CatchPanicLayer::custom(move |panic: Box<dyn std::any::Any + Send>| {
        log::panicked(&metrics, &*panic).into_response()
    });
    router
        .route("/openapi.json", get(openapi))
        .fallback(health::not_found)
        .method_not_allowed_fallback(health::wrong_method)
        .layer(from_fn_with_state(app.clone(), auth::admit))
        .layer(auth::cors(&app))
        .layer(from_fn_with_state(app.clone(), auth::check_host))
        .layer(catch)
        .layer(from_fn_with_state(app.clone(), unread::finish))
        .layer(from_fn_with_state(app.clone(), log::observe))
        .with_state(app)
}
