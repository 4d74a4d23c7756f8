//! `POST /v1/chat/completions`: a conversation in, an answer out.
//!
//! [`request`] is what is read, [`messages`], [`tools`] and [`format`] make it a turn's [`Ask`],
//! [`answer`] and [`stream`] write what comes. A client that goes away drops the turns, which
//! cancels them.

mod answer;
pub(super) mod format;
mod guided;
mod messages;
mod request;
mod stream;
mod tools;

pub use guided::Shaping;
pub use request::{OwnOptions, StreamOptions};

use super::{
    choices::Choices,
    error::ApiError,
    extract::Body,
    json,
    models::Served,
    sampling,
    settings::Settings,
    sse,
    state::App,
    turn::{Ask, Finish, Outcome, TurnEvent, effort, stopped},
};
use crate::{grammar::Rules, harmony::Conversation};
use answer::{Answer, Style, Teller};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream::BoxStream};
use messages::Said;
use request::ChatRequest;
use serde_json::{Value, json};
use std::{sync::Arc, time::SystemTime};
use stream::Head;
use tools::Tools;
use utoipa_axum::{router::OpenApiRouter, routes};

/// This module's endpoint.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(create))
}

/// Answers a conversation.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "chat",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer, or with `stream` its chunks",
            content((Value = "application/json"), (String = "text/event-stream"))),
    )
)]
async fn create(
    State(app): State<Arc<App>>,
    Body(request): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    let served = app.model(request.model.as_deref()).await?;
    let wanted = Wanted::read(request, &served, &app.settings)?;
    let head = Head {
        id: super::id::fresh("chatcmpl-"),
        created: now(),
        model: served.name.clone(),
        style: wanted.style,
        shaped: wanted.ask.rules.format.is_some(),
        usage: wanted.usage,
        explain: wanted.explain,
    };
    let prepared = served.prepare(wanted.ask).await;
    let placed = |error| placed(error, &wanted.tools, wanted.shaped_by);
    let prepared = prepared.map_err(placed)?;
    let slots = served.engine.info().slots;
    let mut turns = Choices::start(wanted.n, slots, move |choice| prepared.start(choice));
    if !wanted.stream {
        let answers = answers(wanted.n, head.shaped, turns.steps()).await?;
        return Ok(Json(response(&head, answers)).into_response());
    }
    turns.admitted(app.settings.keep_alive).await?;
    let keep_alive = Some(app.settings.keep_alive);
    let events = stream::events(head, wanted.n, turns.steps());
    Ok(sse::stream(events, keep_alive))
}

/// The conversation of a request for a chat completion, as its prompt is rendered from it.
///
/// # Errors
/// 400, as for the request itself.
pub(super) fn conversation(
    request: Value,
    served: &Arc<Served>,
    settings: &Settings,
) -> Result<Conversation, ApiError> {
    let request: ChatRequest = super::extract::typed(request)?;
    Ok(Wanted::read(request, served, settings)?.ask.conversation)
}

/// An error of the turn's shape or of its function `i`, with the place of that in the request.
fn placed(mut error: ApiError, tools: &[String], shaped_by: Option<String>) -> ApiError {
    if error.param.as_deref() == Some("response_format") {
        error.param = shaped_by;
        return error;
    }
    let index = error.param.as_deref().and_then(|param| {
        let (index, _) = param.strip_prefix("tools[")?.split_once(']')?;
        index.parse::<usize>().ok()
    });
    if let Some(path) = index.and_then(|index| tools.get(index)) {
        error.param = Some(format!("{path}.parameters"));
    }
    error
}

/// The answers of `n` turns, each to its end.
async fn answers(
    n: usize,
    shaped: bool,
    mut events: BoxStream<'static, (usize, TurnEvent)>,
) -> Result<Vec<(Answer, Box<Outcome>)>, ApiError> {
    let begun = || (Teller::new(shaped), Answer::default(), None);
    let mut turns: Vec<_> = std::iter::repeat_with(begun).take(n).collect();
    while let Some((index, event)) = events.next().await {
        let Some((teller, answer, over)) = turns.get_mut(index) else {
            continue;
        };
        match event {
            TurnEvent::Failed(error) => return Err(error),
            TurnEvent::Done(outcome) if outcome.finish == Finish::Cancelled => {
                return Err(stopped());
            }
            TurnEvent::Done(outcome) => *over = Some(outcome),
            event => {
                if let Some(step) = teller.tell(event) {
                    answer.add(step);
                }
            }
        }
    }
    let whole = |(_, answer, over): (_, _, Option<_>)| Some((answer, over?));
    let answers: Option<Vec<_>> = turns.into_iter().map(whole).collect();
    answers.ok_or_else(stopped)
}

fn response(head: &Head, answers: Vec<(Answer, Box<Outcome>)>) -> Value {
    let usage = stream::usage(answers.iter().map(|(_, outcome)| &**outcome));
    let choices = answers.into_iter().enumerate();
    let choices: Vec<Value> = choices
        .map(|(index, (answer, outcome))| answer.choice(index, &outcome, head.style))
        .collect();
    let mut response = head.object("chat.completion", json!(choices));
    response["usage"] = usage.value(head.explain);
    response
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A request, checked.
struct Wanted {
    ask: Ask,
    /// Where each of its functions stands in the request.
    tools: Vec<String>,
    /// Where its shape does.
    shaped_by: Option<String>,
    n: usize,
    style: Style,
    stream: bool,
    usage: bool,
    explain: bool,
}

impl Wanted {
    fn read(
        mut request: ChatRequest,
        served: &Served,
        settings: &Settings,
    ) -> Result<Wanted, ApiError> {
        refuse(&request)?;
        let vocab = served.tokenizer.vocab_size();
        let sampling = request.sampling();
        let sampling = sampling.sampling(settings, served.default_temperature(), vocab)?;
        let tools = Tools::read(&request, settings)?;
        let shape = request.shaping.read(settings)?;
        let (shape, shaped_by) = shape.unzip();
        let (format, told) = shape.unzip();
        let word = request.reasoning_effort.as_deref();
        let kwargs = request.chat_template_kwargs.as_ref();
        let (field, word) = match (word, kwargs.and_then(|k| k.reasoning_effort.as_deref())) {
            (None, Some(word)) => ("chat_template_kwargs.reasoning_effort", Some(word)),
            (word, _) => ("reasoning_effort", word),
        };
        let (effort, reasoning_budget) = effort(field, word)?;
        let limit = |field, value| sampling::max_tokens(field, value, 1);
        let max_tokens = limit("max_tokens", request.max_tokens)?;
        let max_tokens =
            limit("max_completion_tokens", request.max_completion_tokens)?.or(max_tokens);
        let logprobs = request.logprobs.unwrap_or(false);
        let rivals = sampling::rivals("top_logprobs", request.top_logprobs, settings)?;
        if request.top_logprobs.is_some() && !logprobs {
            let text = "Invalid 'top_logprobs': it takes 'logprobs' to be true.";
            return Err(ApiError::invalid("top_logprobs", text));
        }
        let own = request.gossamer.take().unwrap_or_default();
        let options = request.stream_options.take().unwrap_or_default();
        let said = Said::read(request.messages)?;
        let style = Style {
            reasoning: request.include_reasoning.unwrap_or(true),
            logprobs,
            legacy: tools.legacy,
        };
        let ask = Ask {
            conversation: Conversation {
                effort,
                date: Some(settings.today()),
                instructions: said.instructions,
                tools: tools.declared,
                response_formats: told.flatten().into_iter().collect(),
                messages: said.messages,
                ..Conversation::default()
            },
            rules: Rules {
                format,
                tools: tools.ruled,
                choice: tools.choice,
                // The old form has room for one call.
                parallel: request.parallel_tool_calls.unwrap_or(true) && !tools.legacy,
                reasoning_budget,
            },
            sampling,
            max_tokens,
            stop: sampling::stops(request.stop, settings)?,
            logprobs: logprobs.then_some(rivals),
        };
        Ok(Wanted {
            ask,
            tools: tools.paths,
            shaped_by,
            n: sampling::count("n", request.n, settings.max_n)?,
            style,
            stream: request.stream.unwrap_or(false),
            usage: options.include_usage.unwrap_or(false),
            explain: own.explain_cache.unwrap_or(false),
        })
    }
}

/// What would change the answer and can't be done.
fn refuse(request: &ChatRequest) -> Result<(), ApiError> {
    let text = "gpt-oss neither hears nor speaks: leave this out.";
    if request.audio.is_some() {
        return Err(ApiError::unsupported("audio", text));
    }
    if let Some(modalities) = &request.modalities {
        let Value::Array(modalities) = modalities else {
            return Err(json::wrong_type("modalities", "an array", modalities));
        };
        if modalities.iter().any(|one| one != "text") {
            return Err(ApiError::unsupported("modalities", text));
        }
    }
    if request.moderation.is_some() {
        let text = "There is no moderation here: leave this out.";
        return Err(ApiError::unsupported("moderation", text));
    }
    if request.web_search_options.is_some() {
        let text =
            "This server searches nothing: leave this out, or give the model a function that does.";
        return Err(ApiError::unsupported("web_search_options", text));
    }
    Ok(())
}
