//! `/v1/responses`: OpenAI's newer form of a conversation, stored, chained and in the background.
//!
//! A request becomes items ([`input`]), these a conversation, and the turn's events become the
//! response's ([`stream`], [`run`]), streamed or not. [`store`] keeps what was not asked to be forgotten.

mod background;
mod create;
mod custom;
mod event;
mod input;
mod item;
mod object;
mod request;
mod run;
mod store;
mod stored;
mod stream;
mod tools;
mod truncate;

use super::{settings::Settings, state::App};
use background::Running;
use std::sync::Arc;
use store::Store;
use utoipa_axum::{router::OpenApiRouter, routes};

/// What responses share: the stored ones, and those that run in the background.
pub struct Responses {
    store: Arc<Store>,
    running: Running,
}

impl Responses {
    /// Within the limits of `settings`.
    pub fn new(settings: &Settings) -> Responses {
        Responses {
            store: Arc::new(Store::new(settings)),
            running: Running::default(),
        }
    }
}

/// The endpoints.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(create::create))
        .routes(routes!(create::input_tokens))
        .routes(routes!(stored::retrieve, stored::delete))
        .routes(routes!(stored::cancel))
        .routes(routes!(stored::input_items))
}
