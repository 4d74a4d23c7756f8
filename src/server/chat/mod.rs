//! `POST /v1/chat/completions`: a conversation in, an answer out.
//!
//! [`request`] is what is read, [`messages`], [`tools`] and [`format`] make it a turn's [`Ask`],
//! [`answer`] and [`stream`] write what comes. A client that goes away drops the turns, which
//! cancels them.

mod answer;
pub(super) mod format;
mod messages;
mod request;
mod stream;
mod tools;

pub use request::{OwnOptions, StreamOptions};

use super::{
    error::ApiError,
    extract::Body,
    json,
    models::Served,
    sampling,
    settings::Settings,
    sse,
    state::App,
    turn::{Ask, Finish, Outcome, TurnEvent, TurnStream, effort, stopped},
};
use crate::{grammar::Rules, harmony::Conversation};
use answer::{Answer, Style, Teller};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::future::try_join_all;
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
    let turns = served.begin(wanted.ask, wanted.n).await;
    let mut turns = turns.map_err(|error| placed(error, &wanted.tools))?;
    if !wanted.stream {
        let answers = turns.into_iter().map(|turn| whole(turn, head.shaped));
        let answers = try_join_all(answers).await?;
        return Ok(Json(response(&head, answers)).into_response());
    }
    // What fails before a turn is admitted becomes the status; a long wait must not look like one.
    let admitted = try_join_all(turns.iter_mut().map(TurnStream::admitted));
    if let Ok(failed) = tokio::time::timeout(app.settings.keep_alive, admitted).await {
        failed?;
    }
    let keep_alive = Some(app.settings.keep_alive);
    Ok(sse::stream(stream::events(head, turns), keep_alive))
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

/// An error of function `i` of the turn, with the place of that function in the request.
fn placed(mut error: ApiError, tools: &[String]) -> ApiError {
    let index = error.param.as_deref().and_then(|param| {
        let (index, _) = param.strip_prefix("tools[")?.split_once(']')?;
        index.parse::<usize>().ok()
    });
    if let Some(path) = index.and_then(|index| tools.get(index)) {
        error.param = Some(format!("{path}.parameters"));
    }
    error
}

/// A turn to its end.
async fn whole(mut turn: TurnStream, shaped: bool) -> Result<(Answer, Box<Outcome>), ApiError> {
    let mut teller = Teller::new(shaped);
    let mut answer = Answer::default();
    loop {
        match turn.next().await {
            Some(TurnEvent::Done(outcome)) if outcome.finish == Finish::Cancelled => {
                return Err(stopped());
            }
            Some(TurnEvent::Done(outcome)) => return Ok((answer, outcome)),
            Some(TurnEvent::Failed(error)) => return Err(error),
            Some(event) => {
                if let Some(step) = teller.tell(event) {
                    answer.add(step);
                }
            }
            None => return Err(stopped()),
        }
    }
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
        let shape = format::read(
            request.response_format.as_ref(),
            "response_format",
            true,
            settings,
        )?;
        let (format, told) = shape.map_or((None, None), |(format, told)| (Some(format), told));
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
                response_formats: told.into_iter().collect(),
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
