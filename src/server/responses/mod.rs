//! `/v1/responses`: OpenAI's newer form of a conversation, stored, chained and in the background.
//!
//! A request becomes items ([`input`]), these a conversation, and the turn's events become the
//! response's ([`stream`]), streamed or not. [`store`] keeps what was not asked to be forgotten.

mod background;
mod custom;
mod input;
mod item;
mod object;
mod request;
mod store;
mod stream;
mod tools;

use super::{
    auth::Caller,
    error::ApiError,
    extract::{Body, PathText, Query},
    json::invalid,
    models::Served,
    settings::Settings,
    sse::{self, SseEvent},
    state::App,
    turn::{Ask, TurnEvent, TurnStream},
};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use background::{Live, Running};
use input::Entry;
use item::Item;
use request::Create;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use store::{Store, Stored};
use stream::{ReasoningForm, Writer};
use tokio::time::Instant;
use tools::Tools;
use utoipa::IntoParams;
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
        .routes(routes!(create))
        .routes(routes!(input_tokens))
        .routes(routes!(retrieve, delete))
        .routes(routes!(cancel))
        .routes(routes!(input_items))
}

/// Answers.
#[utoipa::path(
    post,
    path = "/v1/responses",
    tag = "responses",
    request_body = Create,
    responses(
        (status = 200, description = "The response, or with `stream` its events",
            content((Value = "application/json"), (String = "text/event-stream"))),
    ),
)]
async fn create(
    State(app): State<Arc<App>>,
    owner: Caller,
    headers: HeaderMap,
    Body(create): Body<Create>,
) -> Result<Response, ApiError> {
    create.check()?;
    let served = app.model(create.model.as_deref()).await?;
    let Prepared {
        tools,
        context,
        ask,
    } = prepare(&app, owner, &served, &create)?;
    let store = create.stored().then(|| Keep {
        store: app.responses.store.clone(),
        owner,
        context: context.clone(),
    });
    let form = match headers.get("x-open-responses") {
        _ if create.summary() => ReasoningForm::Summary,
        Some(value) if value == "1" || value == "true" => ReasoningForm::Open,
        _ => ReasoningForm::Text,
    };
    let places = tools.places();
    let response = object::Response::new(&create, &tools, &served);
    let mut writer = Writer::new(response, tools, form, ask.rules.format.is_some());
    let keep_alive = app.settings.keep_alive;
    if create.background == Some(true) {
        let most = app.settings.max_background;
        let place = app.responses.running.enter(most).ok_or_else(|| {
            let what = format!("{most} responses run in the background already.");
            ApiError::busy(&what, Duration::from_secs(10))
        })?;
        let turn = begin(&served, ask, &places).await?;
        let value = writer.response().value();
        let store = &app.responses.store;
        let live = background::start(store, owner, place, context, writer, turn);
        return Ok(match create.stream {
            Some(true) => follow(live, 0, keep_alive),
            _ => Json(value).into_response(),
        });
    }
    let mut turn = begin(&served, ask, &places).await?;
    if create.stream == Some(true) {
        // What fails by then has a status of its own; who waits longer has the stream kept alive.
        if let Ok(admitted) = tokio::time::timeout(keep_alive, turn.admitted()).await {
            admitted.map_err(|error| renamed(error, &places))?;
        }
        let ready = writer.start().into();
        return Ok(send(Sending {
            writer,
            turn,
            ready,
            store,
            keep_alive,
            told: Instant::now(),
        }));
    }
    while let Some(event) = turn.next().await {
        if let TurnEvent::Failed(error) = event {
            return Err(renamed(error, &places));
        }
        writer.push(event);
    }
    if let Some(keep) = store {
        keep.put(&writer);
    }
    Ok(Json(writer.response().value()).into_response())
}

/// What a request asks for, checked.
struct Prepared {
    tools: Tools,
    /// All items that it is made from.
    context: Arc<[Arc<Item>]>,
    ask: Ask,
}

fn prepare(
    app: &App,
    owner: Caller,
    served: &Served,
    create: &Create,
) -> Result<Prepared, ApiError> {
    let mut tools = request::tools(create, &app.settings)?;
    let (context, own) = context(&app.responses.store, owner, create)?;
    let ask = create.ask(&mut tools, &context, own, served)?;
    Ok(Prepared {
        tools,
        context: context.into(),
        ask,
    })
}

/// The items before the request, and its own, which begin at the index.
fn context(
    store: &Store,
    owner: Caller,
    create: &Create,
) -> Result<(Vec<Arc<Item>>, usize), ApiError> {
    let mut items = Vec::new();
    if let Some(id) = &create.previous_response_id {
        let previous = store.get(owner, id).ok_or_else(|| {
            let message = format!("Previous response with id '{id:.100}' not found.");
            ApiError::new(StatusCode::BAD_REQUEST, message)
                .code("previous_response_not_found")
                .param("previous_response_id")
        })?;
        if !previous.response.state.is_last() {
            let message = format!("The response '{id:.100}' is not complete yet.");
            return Err(ApiError::invalid("previous_response_id", message));
        }
        items.extend(previous.items().cloned());
    }
    let own = items.len();
    let input = match &create.input {
        Some(input) => input::read(input)?,
        None if own == 0 => return Err(ApiError::missing("input")),
        None => Vec::new(),
    };
    let wanted = input.iter().filter_map(|entry| match entry {
        Entry::Reference { id, .. } => Some(id.as_str()),
        Entry::Item(_) => None,
    });
    let wanted: HashSet<&str> = wanted.collect();
    let stored = match wanted.is_empty() {
        true => Default::default(),
        false => store.items(owner, &wanted),
    };
    for entry in &input {
        items.push(match entry {
            Entry::Item(item) => item.clone(),
            Entry::Reference { id, path } => stored
                .get(id)
                .cloned()
                .ok_or_else(|| input::item_not_found(id, path))?,
        });
    }
    match items.is_empty() {
        true => Err(invalid(
            "input",
            "it has no item that the model could answer",
        )),
        false => Ok((items, own)),
    }
}

/// Starts the turn. An error names this endpoint's fields, not those of chat completions;
/// `places` are those of the tools.
async fn begin(served: &Arc<Served>, ask: Ask, places: &[String]) -> Result<TurnStream, ApiError> {
    let begun = served.begin(ask, 1).await;
    let mut turns = begun.map_err(|error| renamed(error, places))?;
    turns
        .pop()
        .ok_or_else(|| ApiError::internal("No turn was started."))
}

fn renamed(mut error: ApiError, places: &[String]) -> ApiError {
    let tool = |param: &str| {
        let (index, rest) = param.strip_prefix("tools[")?.split_once(']')?;
        let place = places.get(index.parse::<usize>().ok()?)?;
        (rest == ".function.parameters").then(|| place.clone())
    };
    error.param = error.param.map(|param| match param.as_str() {
        "messages" => "input".to_owned(),
        "response_format" => "text.format".to_owned(),
        _ => tool(&param).unwrap_or(param),
    });
    error
}

/// Where a response goes when it is complete.
struct Keep {
    store: Arc<Store>,
    owner: Caller,
    context: Arc<[Arc<Item>]>,
}

impl Keep {
    fn put(self, writer: &Writer) {
        let stored = Stored {
            context: self.context,
            response: writer.response().clone(),
            live: None,
        };
        self.store.put(self.owner, stored);
    }
}

/// A response on its way to the client. Dropping it cancels the turn.
struct Sending {
    writer: Writer,
    turn: TurnStream,
    ready: VecDeque<stream::Event>,
    store: Option<Keep>,
    keep_alive: Duration,
    /// When the last event was sent.
    told: Instant,
}

fn send(sending: Sending) -> Response {
    let events = futures_util::stream::unfold(sending, |mut sending| async move {
        loop {
            if let Some(event) = sending.ready.pop_front() {
                sending.told = Instant::now();
                return Some((event.sse(), sending));
            }
            // Since something was sent, not since something happened: a prompt that is read in many
            // pieces tells nothing.
            let due = sending.told + sending.keep_alive;
            let next = tokio::time::timeout_at(due, sending.turn.next());
            let events = match next.await {
                Ok(None) => return None,
                Ok(Some(event)) => sending.writer.push(event),
                Err(_) => {
                    sending.told = Instant::now();
                    sending.writer.keep_alive()
                }
            };
            sending.ready.extend(events);
            if sending.writer.response().state.is_last()
                && let Some(keep) = sending.store.take()
            {
                // Before the last event goes out: its reader may go on from the response at once.
                keep.put(&sending.writer);
            }
        }
    });
    sse::named_stream(events, None)
}

/// The events of a background response, from event `from` on.
fn follow(live: Arc<Live>, from: usize, keep_alive: Duration) -> Response {
    let events = futures_util::stream::unfold((live, from), |(live, at)| async move {
        let event: SseEvent = live.event(at).await?;
        Some((event, (live, at + 1)))
    });
    sse::named_stream(events, Some(keep_alive))
}

/// Counts the tokens of a request's prompt.
#[utoipa::path(
    post,
    path = "/v1/responses/input_tokens",
    tag = "responses",
    request_body = Create,
    responses(
        (status = 200, description = "How many tokens the prompt has", body = Value),
    ),
)]
async fn input_tokens(
    State(app): State<Arc<App>>,
    owner: Caller,
    Body(create): Body<Create>,
) -> Result<Json<Value>, ApiError> {
    create.check()?;
    let served = app.model(create.model.as_deref()).await?;
    let prepared = prepare(&app, owner, &served, &create)?;
    let counted = tokio::task::spawn_blocking(move || {
        let prompt = served.prompt(&prepared.ask.conversation);
        prompt.map(|tokens| tokens.len())
    });
    let counted = counted.await;
    let count = counted.unwrap_or_else(|_| Err(ApiError::internal("Counting the tokens failed.")));
    let count = count.map_err(|error| renamed(error, &[]))?;
    Ok(Json(
        json!({"object": "response.input_tokens", "input_tokens": count}),
    ))
}

#[derive(Debug, Deserialize, IntoParams)]
struct Retrieve {
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
async fn retrieve(
    State(app): State<Arc<App>>,
    owner: Caller,
    PathText(id): PathText,
    Query(query): Query<Retrieve>,
) -> Result<Response, ApiError> {
    let stored = find(&app, owner, &id)?;
    if query.stream != Some(true) {
        return Ok(Json(stored.response.value()).into_response());
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
    Ok(follow(live, from, app.settings.keep_alive))
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
async fn delete(
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
async fn cancel(
    State(app): State<Arc<App>>,
    owner: Caller,
    PathText(id): PathText,
) -> Result<Json<Value>, ApiError> {
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
    Ok(Json(stored.response.value()))
}

#[derive(Debug, Deserialize, IntoParams)]
struct List {
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
async fn input_items(
    State(app): State<Arc<App>>,
    owner: Caller,
    PathText(id): PathText,
    Query(query): Query<List>,
) -> Result<Json<Value>, ApiError> {
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
    let data: Vec<Value> = items.iter().map(|item| item.value()).collect();
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "first_id": items.first().map(|item| &item.id),
        "last_id": items.last().map(|item| &item.id),
        "has_more": has_more,
    })))
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
