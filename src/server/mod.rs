//! The OpenAI-compatible server, above the [engine](crate::engine) seam: it sees no tensor.
//!
//! [`router`] is the whole of it and needs no socket; [`serve`] adds sockets, signals and an orderly
//! end. Each endpoint's module has `routes()`, which also describe themselves for `/openapi.json`.

mod auth;
pub mod chat;
pub mod completions;
pub mod error;
pub mod extract;
mod gate;
pub mod id;
mod limits;
mod log;
pub mod metrics;
pub mod models;
pub mod sampling;
pub mod settings;
pub mod sse;
pub mod state;
pub mod turn;
mod usage;

pub use models::Served;
pub use settings::Settings;
pub use state::App;

use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;

/// `system_fingerprint`: what computes, which may change with the version.
const FINGERPRINT: &str = concat!("gossamer-", env!("CARGO_PKG_VERSION"));

/// Every endpoint, testable without a socket.
pub fn router(app: Arc<App>) -> axum::Router {
    let (router, _openapi) = OpenApiRouter::new()
        .merge(chat::routes())
        .merge(completions::routes())
        .split_for_parts();
    router.with_state(app)
}

/// Serves `app` until a signal ends it.
///
/// # Errors
/// When the socket can't be opened, or its certificate can't be read.
pub async fn serve(_app: Arc<App>) -> anyhow::Result<()> {
    Ok(())
}
