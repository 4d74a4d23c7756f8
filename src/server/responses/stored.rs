//! Stored responses: read, listed, cancelled, deleted.

use super::{background::Live, item::Item, store::Stored};
use crate::server::{
    auth::Caller,
    error::ApiError,
    extract::{PathText, Query},
    json::invalid,
    sse,
    state::App,
};
use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::IntoParams;

/// The events of a background response, from event `from` on; the response itself sees to it that
/// they don't cease.
pub(super) fn follow(live: Arc<Live>, from: usize) -> Response {
    let events = futures_util::stream::unfold((live, from), |(live, at)| async move {
        let event = live.event(at).await?;
        let next = event.sequence as usize + 1;
        Some((event.sse(), (live, next)))
    });
    sse::named_stream(events, None)
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct Retrieve {
    /// Send the events of a background response.
    stream: Option<bool>,
    /// Begin after the event with this `sequence_number`.
    starting_after: Option<u64>,
}

/// Returns a stored response.
#[utoipa::path(
    get,
    path = "/v1/responses/{id}",
    tag = "responses",
    params(("id" = String, Path, description = "The response's id"), Retrieve),
    responses(
        (status = 200, description = "The response, or with `stream` its events",
            content((Value = "application/json"), (String = "text/event-stream"))),
    ),
)]
pub(super) async fn retrieve(
    State(app): State<Arc<App>>,
    owner: Caller,
    PathText(id): PathText,
    Query(query): Query<Retrieve>,
) -> Result<Response, ApiError> {
    let stored = find(&app, owner, &id)?;
    if query.stream != Some(true) {
        return Ok(Json(stored.response).into_response());
    }
    let live = stored.live.ok_or_else(|| {
        let message =
            "Invalid 'stream': the events are kept of responses made with 'background' only.";
        ApiError::invalid("stream", message)
    })?;
    let from = query
        .starting_after
        .map_or(0, |after| after.saturating_add(1));
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    Ok(follow(live, from))
}

/// Forgets a stored response; one that still runs is cancelled.
#[utoipa::path(
    delete,
    path = "/v1/responses/{id}",
    tag = "responses",
    params(("id" = String, Path, description = "The response's id")),
    responses(
        (status = 200, description = "It is gone", body = Value),
    ),
)]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    owner: Caller,
    PathText(id): PathText,
) -> Result<Json<Value>, ApiError> {
    let stored = app.responses.store.delete(owner, &id);
    let stored = stored.ok_or_else(|| not_found(&id))?;
    if let Some(live) = stored.live {
        live.cancel();
    }
    Ok(Json(
        json!({"id": id, "object": "response", "deleted": true}),
    ))
}

/// Cancels a background response.
#[utoipa::path(
    post,
    path = "/v1/responses/{id}/cancel",
    tag = "responses",
    params(("id" = String, Path, description = "The response's id")),
    responses(
        (status = 200, description = "The response, as far as it came", body = Value),
    ),
)]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    owner: Caller,
    PathText(id): PathText,
) -> Result<Response, ApiError> {
    let stored = find(&app, owner, &id)?;
    let live = stored.live.ok_or_else(|| {
        let message = "Only responses made with 'background' can be cancelled.";
        ApiError::new(StatusCode::BAD_REQUEST, message)
            .code("invalid_value")
            .param("id")
    })?;
    live.cancel();
    live.ended().await;
    let stored = find(&app, owner, &id)?;
    Ok(Json(stored.response).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct List {
    /// Begin after the item with this id.
    after: Option<String>,
    /// 1 to 100 items; 20 if absent.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u64>,
    /// asc, or desc (the default).
    order: Option<String>,
}

/// Lists the items that a response was made from.
#[utoipa::path(
    get,
    path = "/v1/responses/{id}/input_items",
    tag = "responses",
    params(("id" = String, Path, description = "The response's id"), List),
    responses(
        (status = 200, description = "The items", body = Value),
    ),
)]
pub(super) async fn input_items(
    State(app): State<Arc<App>>,
    owner: Caller,
    PathText(id): PathText,
    Query(query): Query<List>,
) -> Result<Response, ApiError> {
    let stored = find(&app, owner, &id)?;
    let limit = query.limit.unwrap_or(20);
    if !(1..=100).contains(&limit) {
        let message = format!("expected from 1 to 100, found {limit}");
        return Err(invalid("limit", &message));
    }
    let mut items: Vec<&Arc<Item>> = stored.context.iter().collect();
    match query.order.as_deref() {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(other) => {
            let message = format!("expected asc or desc, found '{other:.40}'");
            return Err(invalid("order", &message));
        }
    }
    if let Some(after) = &query.after {
        let at = items.iter().position(|item| item.id == *after);
        let at = at.ok_or_else(|| invalid("after", "no item has this id"))?;
        items.drain(..=at);
    }
    let has_more = items.len() as u64 > limit;
    items.truncate(limit as usize);
    let page = Page {
        object: "list",
        first_id: items.first().map(|item| item.id.as_str()),
        last_id: items.last().map(|item| item.id.as_str()),
        data: &items,
        has_more,
    };
    Ok(Json(page).into_response())
}

#[derive(Serialize)]
struct Page<'a> {
    object: &'static str,
    data: &'a [&'a Arc<Item>],
    first_id: Option<&'a str>,
    last_id: Option<&'a str>,
    has_more: bool,
}

fn find(app: &App, owner: Caller, id: &str) -> Result<Stored, ApiError> {
    let stored = app.responses.store.get(owner, id);
    stored.ok_or_else(|| not_found(id))
}

fn not_found(id: &str) -> ApiError {
    let message = format!(
        "Response with id '{id:.100}' not found. Responses are kept with 'store': true, until they are \
         deleted or make room for newer ones."
    );
    ApiError::new(StatusCode::NOT_FOUND, message)
        .code("response_not_found")
        .param("id")
}
