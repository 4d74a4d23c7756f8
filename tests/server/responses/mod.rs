//! `/v1/responses` over a scripted model: events, objects, chains, the store, the background.

mod background;
mod events;
mod held;
mod input;
mod property;
mod store;
mod vectors;

use crate::{
    scripted::{self, Prompt},
    support::{Answer, Client},
};
use async_openai::types::responses::{Response, ResponseStreamEvent};
use gossamer::{
    engine::{Engine, Event, Events, FinishReason, ModelInfo, Request, Stats, Usage},
    server::{App, Settings},
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc};

/// A server whose model says what `script` wants.
fn client(script: impl Fn(&Prompt) -> String + Send + 'static) -> Client {
    client_with(Settings::default(), script)
}

fn client_with(settings: Settings, script: impl Fn(&Prompt) -> String + Send + 'static) -> Client {
    let (engine, tokenizer) = scripted::engine(Box::new(script));
    let app = App::for_engine("scripted", engine, tokenizer, settings);
    Client::new(app.expect("a server"))
}

/// A server whose model says the very tokens that `script` wants, be they no turn at all: there is no
/// scheduler nor sampler below it.
fn any_turn(script: impl Fn(&str) -> String + Send + Sync + 'static) -> Client {
    any_turn_with(Settings::default(), script)
}

fn any_turn_with(
    settings: Settings,
    script: impl Fn(&str) -> String + Send + Sync + 'static,
) -> Client {
    let (info, tokenizer) = info();
    let engine = AnyTurn {
        info,
        tokenizer: tokenizer.clone(),
        script: Box::new(script),
    };
    let app = App::for_engine("scripted", Arc::new(engine), tokenizer, settings);
    Client::new(app.expect("a server"))
}

/// What an engine of a test says of itself: the demo model's vocabulary and context.
fn info() -> (ModelInfo, Arc<Tokenizer>) {
    let (config, tokenizer) = scripted::demo();
    let info = ModelInfo {
        name: config.name.clone(),
        backend: "script".into(),
        vocab: config.vocab,
        context: config.context,
        slots: 1,
        deterministic: true,
    };
    (info, tokenizer)
}

struct AnyTurn {
    info: ModelInfo,
    tokenizer: Arc<Tokenizer>,
    script: Box<dyn Fn(&str) -> String + Send + Sync>,
}

impl Engine for AnyTurn {
    fn submit(&self, request: Request) -> Events {
        let (sender, events) = Events::channel();
        let text = self.tokenizer.decode(&request.tokens);
        let answer = (self.script)(&String::from_utf8_lossy(&text));
        let total = request.tokens.len();
        let (mut usage, mut reason) = (Usage::default(), FinishReason::Length);
        usage.prompt_tokens = total;
        let send = |event| {
            let _ = sender.send(event);
        };
        send(Event::Queued);
        send(Event::Prefill {
            done: total,
            total,
            cached: 0,
            miss: None,
        });
        for id in scripted::marked(&self.tokenizer, &answer) {
            if request
                .max_tokens
                .is_some_and(|most| usage.generated_tokens >= most)
            {
                break;
            }
            usage.generated_tokens += 1;
            send(Event::Token {
                id,
                logprob: request.logprobs.map(|_| -0.5),
                top: vec![(id, -0.5); request.logprobs.unwrap_or(0)],
            });
            if request.stop_ids.contains(&id) {
                reason = FinishReason::Stop;
                break;
            }
        }
        send(Event::Finish { reason, usage });
        events
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}

/// The prompt as a text that a script may say: its control tokens are none any more.
fn quoted(prompt: &Prompt) -> String {
    prompt.text.replace("<|", "«").replace("|>", "»")
}

/// A model that says the same to everything.
fn says(text: &str) -> Client {
    let text = text.to_owned();
    client(move |_| text.clone())
}

async fn create(client: &Client, body: Value) -> Answer {
    client.post("/v1/responses", &body).await
}

/// The complete response to `body`, which is checked as a client would read it.
async fn respond(client: &Client, body: Value) -> Value {
    let answer = create(client, body).await;
    assert_eq!(answer.status, 200, "{answer}");
    let response = answer.json();
    assert_complete(&response);
    response
}

/// The events of `body` as a stream, each in its form and all in their order.
async fn stream(client: &Client, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    let answer = create(client, body).await;
    assert_eq!(answer.status, 200, "{answer}");
    named_events(&answer)
}

/// The events of a stream, whose `event:` must be the `type` of its `data:`.
fn named_events(answer: &Answer) -> Vec<Value> {
    assert_eq!(
        answer.headers["content-type"],
        "text/event-stream; charset=utf-8"
    );
    let names = answer
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("event: "));
    let events = answer.events();
    let types: Vec<&str> = events
        .iter()
        .filter_map(|event| event["type"].as_str())
        .collect();
    assert_eq!(names.collect::<Vec<_>>(), types);
    events
}

/// Every field that Open Responses requires is there, and async-openai reads the object.
fn assert_complete(response: &Value) {
    for field in [
        "id",
        "object",
        "created_at",
        "completed_at",
        "status",
        "incomplete_details",
        "model",
        "previous_response_id",
        "instructions",
        "output",
        "error",
        "tools",
        "tool_choice",
        "truncation",
        "parallel_tool_calls",
        "text",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "top_logprobs",
        "temperature",
        "reasoning",
        "usage",
        "max_output_tokens",
        "max_tool_calls",
        "store",
        "background",
        "service_tier",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
    ] {
        assert!(response.get(field).is_some(), "no {field} in {response}");
    }
    assert_eq!(response["object"], "response");
    let read = serde_json::from_value::<Response>(response.clone());
    read.unwrap_or_else(|e| panic!("async-openai can't read it: {e}\n{response}"));
}

/// Checks the grammar of a stream and gives its last response. What is checked: numbers without a gap;
/// the first events; items that open and close one after another, with stable ids and indices; deltas
/// that add up to what their done event, their part, their item and the last object say; one terminal.
fn check(events: &[Value]) -> Value {
    check_kept_alive(events, false)
}

/// The same of a stream that was `kept_alive` by events that say nothing new.
fn check_kept_alive(events: &[Value], kept_alive: bool) -> Value {
    let mut items: Vec<Value> = Vec::new();
    let mut open: Option<Open> = None;
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i, "{event}");
        if event["type"] != "response.reasoning.delta" && event["type"] != "response.reasoning.done"
        {
            let read = serde_json::from_value::<ResponseStreamEvent>(event.clone());
            read.unwrap_or_else(|e| panic!("async-openai can't read it: {e}\n{event}"));
        }
        let kind = event["type"].as_str().expect("a type");
        let last = i + 1 == events.len();
        match kind {
            "response.created" => assert_eq!(i, 0),
            // Said at the start, and again where there is nothing else to say for a while: see `held`.
            "response.queued" => assert!(open.is_none() && items.is_empty(), "{i}"),
            "response.in_progress" => assert!(i < 3 || kept_alive, "{i}"),
            "response.completed" | "response.incomplete" | "response.failed" => {
                assert!(last && open.is_none(), "{kind} at {i}");
            }
            "response.output_item.added" => {
                assert!(open.is_none(), "two items open at {i}");
                assert_eq!(event["output_index"], items.len());
                assert_eq!(event["item"]["status"], "in_progress");
                open = Some(Open {
                    item: event["item"].clone(),
                    ..Open::default()
                });
            }
            "response.output_item.done" => {
                let done = open.take().expect("an open item");
                assert_eq!(event["output_index"], items.len());
                assert_eq!(event["item"]["id"], done.item["id"]);
                assert_eq!(event["item"]["type"], done.item["type"]);
                assert_eq!(event["item"]["call_id"], done.item["call_id"]);
                assert_eq!(text_of(&event["item"]), done.text);
                assert!(done.finished && (done.part_done || !done.part), "{event}");
                items.push(event["item"].clone());
            }
            _ => {
                let open = open
                    .as_mut()
                    .unwrap_or_else(|| panic!("{kind} outside of an item"));
                assert_eq!(event["output_index"], items.len(), "{event}");
                assert_eq!(event["item_id"], open.item["id"], "{event}");
                if open.item["type"] == "message" || open.item["type"] == "reasoning" {
                    let summary = kind.contains("summary");
                    let index = if summary {
                        "summary_index"
                    } else {
                        "content_index"
                    };
                    assert_eq!(event[index], 0, "{event}");
                }
                if kind.ends_with("part.added") {
                    assert!(!open.part && open.text.is_empty());
                    open.part = true;
                    assert_eq!(event["part"]["text"], "");
                } else if kind.ends_with("part.done") {
                    assert!(open.part && open.finished);
                    open.part_done = true;
                    assert_eq!(event["part"]["text"], open.text);
                } else if kind.ends_with(".delta") {
                    assert!(!open.finished);
                    let delta = event["delta"].as_str().expect("a delta");
                    assert!(
                        !delta.is_empty() || event["logprobs"] != json!([]),
                        "{event}"
                    );
                    open.text += delta;
                } else {
                    let field = ["text", "arguments", "input"]
                        .into_iter()
                        .find_map(|f| event.get(f));
                    assert_eq!(
                        field.and_then(Value::as_str),
                        Some(open.text.as_str()),
                        "{event}"
                    );
                    open.finished = true;
                }
            }
        }
    }
    let first = &events[0]["response"];
    let last = &events.last().expect("events")["response"];
    assert_complete(first);
    assert_complete(last);
    assert_eq!(first["output"], json!([]));
    assert_eq!(first["usage"], Value::Null);
    assert_eq!(
        last["output"],
        json!(items),
        "the last object holds other items"
    );
    for (field, value) in first.as_object().expect("an object") {
        let changes = [
            "status",
            "output",
            "usage",
            "completed_at",
            "incomplete_details",
            "error",
        ];
        if !changes.contains(&field.as_str()) {
            assert_eq!(last[field], *value, "{field} changed");
        }
    }
    last.clone()
}

#[derive(Default)]
struct Open {
    item: Value,
    text: String,
    part: bool,
    part_done: bool,
    finished: bool,
}

/// All text of an item.
fn text_of(item: &Value) -> String {
    let parts = |name: &str| -> String {
        let parts = item[name].as_array().into_iter().flatten();
        parts.filter_map(|part| part["text"].as_str()).collect()
    };
    match item["type"].as_str() {
        Some("function_call") => item["arguments"].as_str().expect("arguments").to_owned(),
        Some("custom_tool_call") => item["input"].as_str().expect("an input").to_owned(),
        _ => parts("content") + &parts("summary"),
    }
}

/// The response without what is new each time: ids are numbered, times are zero.
fn plain(value: &Value) -> Value {
    let mut ids = HashMap::new();
    plain_with(value, &mut ids)
}

fn plain_with(value: &Value, ids: &mut HashMap<String, String>) -> Value {
    let known = ["resp_", "msg_", "rs_", "fc_", "ctc_", "call_", "fco_"];
    match value {
        Value::String(text) => match known.iter().find(|prefix| text.starts_with(**prefix)) {
            Some(prefix) if text.len() > 20 => {
                let n = ids.values().filter(|id| id.starts_with(prefix)).count() + 1;
                let id = ids
                    .entry(text.clone())
                    .or_insert_with(|| format!("{prefix}{n}"));
                json!(id)
            }
            _ => value.clone(),
        },
        Value::Array(values) => values.iter().map(|value| plain_with(value, ids)).collect(),
        Value::Object(map) => {
            let fields = map.iter().map(|(name, value)| {
                let time = name == "created_at" || name == "completed_at";
                let value = match time && value.is_u64() {
                    true => json!(0),
                    false => plain_with(value, ids),
                };
                (name.clone(), value)
            });
            Value::Object(fields.collect())
        }
        other => other.clone(),
    }
}
