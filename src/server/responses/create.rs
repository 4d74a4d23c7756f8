//! `POST /v1/responses`: a request read, its context put together, its turn begun.

use super::{
    background,
    event::Event,
    input::{self, Context, Entry, What},
    item::Item,
    object::{self, State as Progress},
    request::{self, Create},
    run::Run,
    store::{Store, Stored},
    stored::follow,
    stream::{ReasoningForm, Writer},
    tools::Tools,
    truncate,
};
use crate::server::{
    auth::Caller,
    error::ApiError,
    extract::Body,
    json::invalid,
    models::Served,
    sse,
    state::App,
    turn::{Ask, TurnEvent, TurnStream},
};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

/// Answers.
#[utoipa::path(
    post,
    path = "/v1/responses",
    tag = "responses",
    request_body = Create,
    params(("x-open-responses" = Option<String>, Header,
        description = "`1`: the events of the reasoning have the names of the Open Responses specification")),
    responses(
        (status = 200, description = "The response, or with `stream` its events",
            content((Value = "application/json"), (String = "text/event-stream"))),
    ),
)]
pub(super) async fn create(
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
    let form = match headers.get("x-open-responses") {
        _ if create.summary() => ReasoningForm::Summary,
        Some(value) if value == "1" || value == "true" => ReasoningForm::Open,
        _ => ReasoningForm::Text,
    };
    let places = tools.places();
    let response = object::Response::new(&create, &tools, &served);
    let writer = Writer::new(response, tools, form, ask.rules.format.is_some());
    let keep_alive = app.settings.keep_alive;
    let begin = async {
        let turn = match create.truncation.as_deref() {
            Some("auto") => truncate::begin_shortened(&served, ask).await,
            _ => begin(&served, ask).await,
        };
        turn.map_err(|error| renamed(error, &places))
    };
    if create.background == Some(true) {
        let most = app.settings.max_background;
        let place = app.responses.running.enter(most).ok_or_else(|| {
            let what = format!("{most} responses run in the background already.");
            ApiError::busy(&what, Duration::from_secs(10))
        })?;
        let run = Run::new(writer, begin.await?, keep_alive);
        let answer = Json(run.writer.response()).into_response();
        let live = background::start(&app.responses.store, owner, place, context, run);
        return Ok(match create.stream {
            Some(true) => follow(live, 0),
            _ => answer,
        });
    }
    let store = create.stored().then(|| Keep {
        store: app.responses.store.clone(),
        owner,
        context,
    });
    let mut turn = begin.await?;
    if create.stream == Some(true) {
        // What fails by then has a status of its own; who waits longer has the stream kept alive.
        if let Ok(admitted) = tokio::time::timeout(keep_alive, turn.admitted()).await {
            admitted.map_err(|error| renamed(error, &places))?;
        }
        let mut run = Run::new(writer, turn, keep_alive);
        let ready = run.writer.start().into();
        return Ok(send(Sending { run, ready, store }));
    }
    let mut writer = writer;
    while let Some(event) = turn.next().await {
        if let TurnEvent::Failed(error) = event {
            return Err(renamed(error, &places));
        }
        writer.push(event);
    }
    let answer = Json(writer.response()).into_response();
    if let Some(keep) = store {
        keep.put(&writer);
    }
    Ok(answer)
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
    let context = context(&app.responses.store, owner, create)?;
    let ask = create.ask(&mut tools, &context, served)?;
    Ok(Prepared {
        tools,
        context: context.items.into(),
        ask,
    })
}

/// The items that the request is made from.
fn context(store: &Store, owner: Caller, create: &Create) -> Result<Context, ApiError> {
    let mut context = Context::default();
    if let Some(id) = &create.previous_response_id {
        context.items = previous(store, owner, id)?;
    }
    let input = match &create.input {
        Some(input) => input::read(input)?,
        None if context.items.is_empty() => return Err(ApiError::missing("input")),
        None => Vec::new(),
    };
    let wanted = input.iter().filter_map(|entry| match &entry.what {
        What::Reference(id) => Some(id.as_str()),
        What::Item(_) => None,
    });
    let wanted: HashSet<&str> = wanted.collect();
    let stored = match wanted.is_empty() {
        true => Default::default(),
        false => store.items(owner, &wanted),
    };
    let mut ids: HashSet<String> = context.items.iter().map(|item| item.id.clone()).collect();
    for Entry { index, what } in input {
        let mut item = match what {
            What::Item(item) => item,
            What::Reference(id) => {
                let found = stored.get(&id).cloned();
                found.ok_or_else(|| input::item_not_found(&id, index))?
            }
        };
        // Listings go on after an item's id: within a context there is none twice.
        if !ids.insert(item.id.clone()) {
            item = Arc::new(item.renewed());
            ids.insert(item.id.clone());
        }
        context.items.push(item);
        context.places.push(index);
    }
    match context.items.is_empty() {
        true => Err(invalid(
            "input",
            "it has no item that the model could answer",
        )),
        false => Ok(context),
    }
}

/// All items of the response that the request goes on from.
fn previous(store: &Store, owner: Caller, id: &str) -> Result<Vec<Arc<Item>>, ApiError> {
    const FIELD: &str = "previous_response_id";
    let previous = store.get(owner, id).ok_or_else(|| {
        let message = format!("Previous response with id '{id:.100}' not found.");
        let error = ApiError::new(StatusCode::BAD_REQUEST, message);
        error.code("previous_response_not_found").param(FIELD)
    })?;
    let why = match previous.response.state {
        Progress::Queued | Progress::InProgress => "is not complete yet",
        Progress::Failed => "failed: nothing can go on from it",
        Progress::Completed | Progress::Incomplete | Progress::Cancelled => {
            return Ok(previous.items().cloned().collect());
        }
    };
    let message = format!("The response '{id:.100}' {why}.");
    Err(ApiError::invalid(FIELD, message))
}

/// Starts the turn.
pub(super) async fn begin(served: &Arc<Served>, ask: Ask) -> Result<TurnStream, ApiError> {
    Ok(served.prepare(ask).await?.start(0))
}

/// An error that names this endpoint's fields, not those of chat completions; `places` are those of
/// the tools.
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
    run: Run,
    ready: VecDeque<Event>,
    store: Option<Keep>,
}

fn send(sending: Sending) -> Response {
    let events = futures_util::stream::unfold(sending, |mut sending| async move {
        loop {
            if let Some(event) = sending.ready.pop_front() {
                return Some((event.sse(), sending));
            }
            sending.ready.extend(sending.run.next().await?);
            let writer = &sending.run.writer;
            if writer.response().state.is_last()
                && let Some(keep) = sending.store.take()
            {
                // Before the last event goes out: its reader may go on from the response at once.
                keep.put(writer);
            }
        }
    });
    sse::named_stream(events, None)
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
pub(super) async fn input_tokens(
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
