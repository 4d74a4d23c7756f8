//! `POST /v1/completions`: text or token ids in, what the model makes of them out.
//!
//! No conversation and no Harmony: the prompt goes to the model as it is. Text in it is text, also
//! where it looks like a control token; those come as ids only.

mod request;
mod run;
mod stream;

use super::{
    chat::now, choices::Choices, error::ApiError, extract::Body, models::Served, sampling,
    settings::Settings, sse, state::App,
};
use crate::{
    engine::{Cancel, Request},
    grammar::Constraint,
    sampler::{MaskSource, Sampling},
    tokenizer::lossy,
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use request::{CompletionRequest, Prompt};
use run::{Reader, Run};
use std::{collections::VecDeque, sync::Arc};
use stream::{Head, events, response, whole};
use utoipa_axum::{router::OpenApiRouter, routes};

/// OpenAI's default of `max_tokens` here.
const MAX_TOKENS: usize = 16;

/// This module's endpoint.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(create))
}

/// Continues prompts.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "completions",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The answers, or with `stream` their chunks",
            content((Value = "application/json"), (String = "text/event-stream"))),
    )
)]
async fn create(
    State(app): State<Arc<App>>,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    let served = app.model(request.model.as_deref()).await?;
    let settings = app.settings.clone();
    let blocking = served.clone();
    // Long prompts and large schemas take their time.
    let read = move || Wanted::read(request, &blocking, &settings);
    let read = tokio::task::spawn_blocking(read).await;
    let failed = |_| Err(ApiError::internal("The completion could not be started."));
    let wanted = read.unwrap_or_else(failed)?;
    let head = Head {
        id: super::id::fresh("cmpl-"),
        created: now(),
        model: served.name.clone(),
        n: wanted.n,
        logprobs: wanted.logprobs.is_some(),
        usage: wanted.usage,
        explain: wanted.explain,
    };
    let (streamed, count) = (wanted.stream, wanted.prompts.len() * wanted.n);
    let slots = served.engine.info().slots;
    let mut runs = Choices::start(count, slots, move |index| wanted.start(&served, index));
    if !streamed {
        let answers = whole(count, runs.steps()).await?;
        return Ok(Json(response(&head, answers)).into_response());
    }
    runs.admitted(app.settings.keep_alive).await?;
    let keep_alive = Some(app.settings.keep_alive);
    Ok(sse::stream(events(head, runs.steps()), keep_alive))
}

/// A request, checked.
struct Wanted {
    /// Token ids of each prompt, at least one.
    prompts: Vec<Vec<u32>>,
    n: usize,
    sampling: Sampling,
    max_tokens: usize,
    stop: Vec<String>,
    logprobs: Option<usize>,
    echo: bool,
    constraint: Option<Box<Constraint>>,
    stream: bool,
    usage: bool,
    explain: bool,
}

impl Wanted {
    fn read(
        mut request: CompletionRequest,
        served: &Served,
        settings: &Settings,
    ) -> Result<Wanted, ApiError> {
        let n = sampling::count("n", request.n, settings.max_n)?;
        if request
            .suffix
            .as_ref()
            .is_some_and(|suffix| !suffix.is_empty())
        {
            let text = "gpt-oss can't fill in the middle: leave 'suffix' out.";
            return Err(ApiError::unsupported("suffix", text));
        }
        if request.best_of.is_some_and(|best_of| best_of != n as u64) {
            let text = "All answers are returned, none is chosen: 'best_of' must be 'n'.";
            return Err(ApiError::unsupported("best_of", text));
        }
        let vocab = served.tokenizer.vocab_size();
        let fields = request.sampling();
        let shape = request.shaping.read(settings)?;
        let options = request.stream_options.take().unwrap_or_default();
        let own = request.gossamer.take().unwrap_or_default();
        let logprobs = request.logprobs;
        let rivals = sampling::rivals("logprobs", logprobs, settings)?;
        let limit = sampling::max_tokens("max_tokens", request.max_tokens, 0)?;
        Ok(Wanted {
            sampling: fields.sampling(settings, served.default_temperature(), vocab)?,
            max_tokens: limit.unwrap_or(MAX_TOKENS),
            stop: sampling::stops(request.stop, settings)?,
            prompts: prompts(request.prompt, served, settings)?,
            n,
            logprobs: logprobs.map(|_| rivals),
            echo: request.echo.unwrap_or(false),
            constraint: match shape {
                Some(((format, _), place)) => {
                    let constraint = served.grammars.raw(&format);
                    Some(constraint.map_err(|error| ApiError::invalid(place, error.message))?)
                }
                None => None,
            },
            stream: request.stream.unwrap_or(false),
            usage: options.include_usage.unwrap_or(false),
            explain: own.explain_cache.unwrap_or(false),
        })
    }

    /// Submits choice `index` of all: those of a prompt follow each other.
    fn start(&self, served: &Served, index: usize) -> Run {
        let (prompt, choice) = (index / self.n, index % self.n);
        let prompt = self.prompts.get(prompt).map_or(&[][..], Vec::as_slice);
        let constraint = self.constraint.clone();
        let tok = &served.tokenizer;
        let cancel = Cancel::default();
        let told = self.echo && self.logprobs.is_some();
        let mut reader = Reader::new(tok.clone(), &self.stop, self.logprobs.is_some(), told);
        let mut ready = VecDeque::new();
        if self.echo && !told {
            ready.push_back(reader.prefix(lossy(&tok.decode(prompt)).into_owned()));
        }
        let events = served.engine.submit(Request {
            tokens: prompt.to_vec(),
            sampling: Sampling {
                seed: self
                    .sampling
                    .seed
                    .map(|seed| seed.wrapping_add(choice as u64)),
                ..self.sampling.clone()
            },
            max_tokens: Some(self.max_tokens),
            stop_ids: tok.stop_ids(),
            logprobs: self.logprobs,
            prompt_logprobs: self.logprobs.filter(|_| told),
            constraint: constraint.map(|constraint| constraint as Box<dyn MaskSource>),
            cancel: cancel.clone(),
        });
        Run {
            events,
            cancel,
            reader,
            ready,
        }
    }
}

/// The prompts' token ids. An empty prompt is a new document, as one that is not there.
fn prompts(
    prompt: Option<Prompt>,
    served: &Served,
    settings: &Settings,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let tok = &served.tokenizer;
    let invalid = |text: String| ApiError::invalid("prompt", format!("Invalid 'prompt': {text}."));
    let prompts = match prompt {
        None => vec![Vec::new()],
        Some(Prompt::Tokens(prompts)) if prompts.iter().any(Vec::is_empty) => {
            return Err(invalid(
                "expected token ids, found an empty array".to_owned(),
            ));
        }
        Some(Prompt::Tokens(prompts)) => prompts,
        Some(Prompt::Texts(texts)) => texts.iter().map(|text| tok.encode(text)).collect(),
    };
    let most = settings.max_prompts;
    if prompts.len() > most {
        return Err(invalid(format!(
            "expected at most {most} prompts, found {}",
            prompts.len()
        )));
    }
    let context = served.engine.info().context;
    let vocab = tok.vocab_size();
    let mut checked = Vec::with_capacity(prompts.len());
    for mut prompt in prompts {
        if prompt.is_empty() {
            match tok.special("<|endoftext|>") {
                Some(id) => prompt.push(id),
                None => return Err(invalid("expected some text, found none".to_owned())),
            }
        }
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocab) {
            return Err(invalid(format!(
                "expected token ids below {vocab}, found {id}"
            )));
        }
        if prompt.len() >= context {
            return Err(ApiError::context_length(prompt.len(), context).param("prompt"));
        }
        checked.push(prompt);
    }
    Ok(checked)
}
