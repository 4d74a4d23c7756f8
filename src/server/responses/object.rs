//! The response object, as it stands in answers, in events and in the store.
//!
//! Every field that Open Responses requires is there in every state, null where there is nothing to say.

use super::{
    item::{Item, value_bytes},
    request::Create,
    tools::Tools,
};
use crate::server::{Served, error::ApiError, id::fresh, turn::Outcome, usage::explained};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value, json};
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// How far a response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Waits for its turn, in the background.
    Queued,
    InProgress,
    Completed,
    /// Cut by a length limit.
    Incomplete,
    Failed,
    /// By the client.
    Cancelled,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::InProgress => "in_progress",
            State::Completed => "completed",
            State::Incomplete => "incomplete",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }

    /// Whether nothing comes any more.
    pub fn is_last(self) -> bool {
        !matches!(self, State::Queued | State::InProgress)
    }
}

/// A response.
#[derive(Debug, Clone)]
pub(super) struct Response {
    pub id: String,
    pub state: State,
    pub output: Vec<Arc<Item>>,
    created_at: u64,
    completed_at: Option<u64>,
    incomplete: Option<&'static str>,
    error: Option<Value>,
    usage: Option<Value>,
    explain_cache: bool,
    /// The true name of the model that answers.
    model: String,
    /// What is repeated of the request: the fields of the object that never change.
    echo: Arc<Map<String, Value>>,
}

impl Response {
    /// A response that has just been asked for.
    pub fn new(create: &Create, tools: &Tools, served: &Served) -> Response {
        let background = create.background.unwrap_or(false);
        let choice = create.tool_choice.clone().unwrap_or_else(|| json!("auto"));
        let echo = json!({
            "previous_response_id": create.previous_response_id,
            "instructions": create.instructions,
            "tools": tools.echo,
            "tool_choice": choice,
            "truncation": create.truncation.as_deref().unwrap_or("disabled"),
            "parallel_tool_calls": create.parallel_tool_calls.unwrap_or(true),
            "text": create.text_echo(),
            "top_p": create.top_p.unwrap_or(1.0),
            "presence_penalty": create.presence_penalty.unwrap_or(0.0),
            "frequency_penalty": create.frequency_penalty.unwrap_or(0.0),
            "top_logprobs": create.top_logprobs.unwrap_or(0),
            "temperature": create.temperature.unwrap_or(served.default_temperature().into()),
            "reasoning": create.reasoning_echo(),
            "max_output_tokens": create.max_output_tokens,
            "max_tool_calls": create.max_tool_calls,
            "store": create.stored(),
            "background": background,
            "service_tier": "default",
            "metadata": create.metadata.clone().unwrap_or_default(),
            "safety_identifier": create.safety_identifier,
            "prompt_cache_key": create.prompt_cache_key,
        });
        let extension = create.gossamer.as_ref();
        Response {
            id: fresh("resp_"),
            state: match background {
                true => State::Queued,
                false => State::InProgress,
            },
            output: Vec::new(),
            created_at: now(),
            completed_at: None,
            incomplete: None,
            error: None,
            usage: None,
            explain_cache: extension
                .and_then(|extension| extension.explain_cache)
                .unwrap_or(false),
            model: served.name.clone(),
            echo: Arc::new(match echo {
                Value::Object(echo) => echo,
                _ => Map::new(),
            }),
        }
    }

    /// Ends it. `incomplete` is the reason why it was cut, if it was.
    pub fn end(&mut self, state: State, incomplete: Option<&'static str>) {
        self.state = state;
        self.incomplete = incomplete;
        self.completed_at = (state == State::Completed).then(now);
    }

    /// Ends it as failed.
    pub fn fail(&mut self, error: &ApiError) {
        self.state = State::Failed;
        self.error = Some(json!({
            "code": error.code.unwrap_or("server_error"),
            "message": error.message,
        }));
    }

    /// What it took.
    pub fn account(&mut self, outcome: &Outcome) {
        let usage = &outcome.usage;
        let mut told = json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.generated_tokens,
            "output_tokens_details": {"reasoning_tokens": outcome.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        });
        if self.explain_cache {
            told["input_tokens_details"]["miss"] = json!(outcome.miss.map(explained));
        }
        self.usage = Some(told);
    }

    /// Roughly how much memory it takes without its items, in bytes.
    pub fn bytes(&self) -> usize {
        self.echo.values().map(value_bytes).sum::<usize>() + 1024
    }
}

/// As it goes over the wire.
impl Serialize for Response {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let incomplete = self.incomplete.map(|reason| json!({"reason": reason}));
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("object", "response")?;
        map.serialize_entry("created_at", &self.created_at)?;
        map.serialize_entry("completed_at", &self.completed_at)?;
        map.serialize_entry("status", self.state.as_str())?;
        map.serialize_entry("incomplete_details", &incomplete)?;
        map.serialize_entry("error", &self.error)?;
        map.serialize_entry("model", &self.model)?;
        map.serialize_entry("output", &self.output)?;
        map.serialize_entry("usage", &self.usage)?;
        for (name, value) in self.echo.iter() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
