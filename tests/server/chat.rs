//! Chat completions: which chunks come out, that streamed and whole answers are the same, and that both
//! are what OpenAI's types hold.

#[path = "chat/malformed.rs"]
mod malformed;
#[path = "chat/prompt.rs"]
mod prompt;

use crate::{
    scripted::{self, demo, marked},
    support::Client,
    turn::{Told, events},
};
use async_openai::types::chat::{CreateChatCompletionResponse, CreateChatCompletionStreamResponse};
use gossamer::{
    engine::{Event, Failure, FinishReason},
    server::Settings,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

const PATH: &str = "/v1/chat/completions";

/// A client of a server whose model says `text`.
fn says(text: &str, reason: FinishReason) -> Client {
    Client::new(Told::text(text, reason).app(Settings::default()))
}

fn ask(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let fields = body.as_object_mut().expect("an object");
    fields.extend(more.as_object().cloned().unwrap_or_default());
    body
}

fn functions(names: &[&str]) -> Value {
    let one = |name: &&str| json!({"type": "function", "function": {"name": name}});
    names.iter().map(one).collect()
}

/// The answer to `body`, which OpenAI's types must hold.
async fn whole(client: &Client, body: &Value) -> Value {
    let answer = client.post(PATH, body).await;
    assert_eq!(answer.status, 200, "{answer}");
    serde_json::from_str::<CreateChatCompletionResponse>(&answer.text)
        .unwrap_or_else(|error| panic!("{error}: {answer}"));
    answer.json()
}

/// The chunks of the answer to `body`, which OpenAI's types must hold.
async fn streamed(client: &Client, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = true.into();
    let answer = client.post(PATH, &body).await;
    assert_eq!(answer.status, 200, "{answer}");
    assert_eq!(
        answer.headers["content-type"],
        "text/event-stream; charset=utf-8"
    );
    assert!(answer.text.ends_with("data: [DONE]\n\n"), "{answer}");
    let chunks = answer.events();
    for chunk in &chunks {
        serde_json::from_value::<CreateChatCompletionStreamResponse>(chunk.clone())
            .unwrap_or_else(|error| panic!("{error}: {chunk}"));
    }
    chunks
}

/// Choice `index` as a client puts it together, with the rules that clients rely on.
fn folded(chunks: &[Value], index: usize) -> Value {
    let (mut content, mut reasoning) = (None::<String>, String::new());
    let (mut calls, mut tokens) = (Vec::<Value>::new(), Vec::new());
    let (mut finish, mut began) = (Value::Null, false);
    for chunk in chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        for key in ["id", "created", "model", "system_fingerprint"] {
            assert_eq!(chunk[key], chunks[0][key], "{key}");
        }
        let choices = chunk["choices"].as_array().expect("choices");
        assert!(
            !choices.is_empty() || !chunk["usage"].is_null(),
            "a chunk of nothing: {chunk}"
        );
        let Some(choice) = choices.iter().find(|choice| choice["index"] == index) else {
            continue;
        };
        assert!(finish.is_null(), "more after the finish: {chunk}");
        let delta = choice["delta"].as_object().expect("a delta");
        assert_eq!(delta.contains_key("role"), !began, "{chunk}");
        began = true;
        if let Some(text) = delta.get("content").and_then(Value::as_str) {
            *content.get_or_insert_default() += text;
        }
        assert_eq!(delta.get("reasoning"), delta.get("reasoning_content"));
        reasoning += delta
            .get("reasoning")
            .and_then(Value::as_str)
            .unwrap_or_default();
        for call in delta
            .get("tool_calls")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let at = call["index"].as_u64().expect("an index") as usize;
            if at == calls.len() {
                assert!(call["id"].as_str().expect("an id").starts_with("call_"));
                let mut call = call.clone();
                call.as_object_mut().expect("an object").remove("index");
                calls.push(call);
                continue;
            }
            assert!(
                call.get("id").is_none() && call["function"].get("name").is_none(),
                "{chunk}"
            );
            let more = call["function"]["arguments"].as_str().expect("arguments");
            let arguments = &mut calls[at]["function"]["arguments"];
            *arguments = (arguments.as_str().expect("arguments").to_owned() + more).into();
        }
        tokens.extend(
            choice["logprobs"]["content"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        );
        finish = choice["finish_reason"].clone();
        if !finish.is_null() {
            assert!(delta.is_empty(), "{chunk}");
        }
    }
    assert!(!finish.is_null(), "no finish of choice {index}");
    json!({
        "content": content.filter(|text| !text.is_empty()),
        "reasoning": Some(reasoning).filter(|text| !text.is_empty()),
        "calls": calls,
        "logprobs": tokens,
        "finish": finish,
    })
}

/// Choice `index` of a whole answer, in the same form; the ids of calls, which are made up, by place.
fn plain(response: &Value, index: usize) -> Value {
    let choice = &response["choices"][index];
    let message = &choice["message"];
    assert_eq!(message["reasoning"], message["reasoning_content"]);
    assert_eq!(message["role"], "assistant");
    assert!(message["refusal"].is_null());
    json!({
        "content": message["content"].as_str().filter(|text| !text.is_empty()),
        "reasoning": message["reasoning"],
        "calls": message["tool_calls"].as_array().cloned().unwrap_or_default(),
        "logprobs": choice["logprobs"]["content"].as_array().cloned().unwrap_or_default(),
        "finish": choice["finish_reason"],
    })
}

fn without_ids(mut choice: Value) -> Value {
    for call in choice["calls"].as_array_mut().into_iter().flatten() {
        call["id"] = Value::Null;
    }
    choice
}

/// The answer to `body`, which must be the same streamed and not.
async fn both(client: &Client, body: &Value) -> Value {
    let response = whole(client, body).await;
    let chunks = streamed(client, body).await;
    let choices = response["choices"].as_array().expect("choices");
    for index in 0..choices.len() {
        let choice = without_ids(plain(&response, index));
        assert_eq!(without_ids(folded(&chunks, index)), choice, "{body}");
    }
    response
}

/// Reasoning, content, calls as `name(arguments)`, and the finish reason of the first choice.
fn short(response: &Value) -> [String; 4] {
    let choice = plain(response, 0);
    let text = |key: &str| choice[key].as_str().unwrap_or("-").to_owned();
    let calls = choice["calls"]
        .as_array()
        .expect("calls")
        .iter()
        .map(|call| {
            let function = &call["function"];
            let text = |key: &str| function[key].as_str().expect("text").to_owned();
            format!("{}({})", text("name"), text("arguments"))
        });
    let calls: Vec<String> = calls.collect();
    [
        text("reasoning"),
        text("content"),
        calls.join(" "),
        text("finish"),
    ]
}

#[tokio::test]
async fn the_chunks_of_a_short_answer() {
    let client = says(
        "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y<|return|>",
        FinishReason::Stop,
    );
    let body = ask(json!({"stream_options": {"include_usage": true}}));
    let chunks = streamed(&client, &body).await;
    let deltas: Vec<Value> = chunks
        .iter()
        .map(|chunk| json!([chunk["choices"], chunk["usage"].is_object()]))
        .collect();
    let choice = |delta: Value, finish: Value| json!([[{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}], false]);
    assert_eq!(
        deltas,
        [
            choice(json!({"role": "assistant", "content": ""}), Value::Null),
            choice(
                json!({"reasoning": "x", "reasoning_content": "x"}),
                Value::Null
            ),
            choice(json!({"content": "y"}), Value::Null),
            choice(json!({}), "stop".into()),
            json!([[], true]),
        ]
    );
    assert_eq!(chunks[0]["model"], "told");
    let id = chunks[0]["id"].as_str().expect("an id");
    assert!(id.starts_with("chatcmpl-"), "{id}");
    let usage = &chunks[4]["usage"];
    let prompt = usage["prompt_tokens"].as_u64().expect("a number");
    let ids = marked(
        &demo().1,
        "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y<|return|>",
    );
    assert_eq!(
        *usage,
        json!({
            "prompt_tokens": prompt, "completion_tokens": ids.len(), "total_tokens": prompt + ids.len() as u64,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 1},
        })
    );
    // Without usage no chunk says anything of it.
    let chunks = streamed(&client, &ask(json!({}))).await;
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    assert_eq!(chunks.len(), 4);
}

#[tokio::test]
async fn the_chunks_of_a_call() {
    let client = says(
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>7<|call|>",
        FinishReason::Stop,
    );
    let chunks = streamed(&client, &ask(json!({"tools": functions(&["f"])}))).await;
    let deltas: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
    let id = deltas[1]["tool_calls"][0]["id"].clone();
    assert_eq!(*deltas[0], json!({"role": "assistant", "content": null}));
    let function = json!({"name": "f", "arguments": ""});
    assert_eq!(
        *deltas[1],
        json!({"tool_calls": [{"index": 0, "id": id, "type": "function", "function": function}]})
    );
    assert_eq!(
        *deltas[2],
        json!({"tool_calls": [{"index": 0, "function": {"arguments": "7"}}]})
    );
    assert_eq!(*deltas[3], json!({}));
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn a_stop_string_is_never_sent() {
    let client = says(
        "<|channel|>analysis<|message|>The END is near.<|end|><|start|>assistant<|channel|>final<|message|>One EN two END three<|return|>",
        FinishReason::Stop,
    );
    let response = both(&client, &ask(json!({"stop": ["END"], "logprobs": true}))).await;
    assert_eq!(
        short(&response),
        ["The END is near.", "One EN two ", "", "stop"]
    );
}

#[tokio::test]
async fn functions_in_their_old_form_come_back_in_it() {
    let client = says(
        " to=functions.f<|channel|>commentary<|message|>{\"a\":1}<|end|><|start|>assistant to=functions.f<|channel|>commentary<|message|>{}<|call|>",
        FinishReason::Stop,
    );
    let body = ask(json!({"functions": [{"name": "f"}]}));
    let response = whole(&client, &body).await;
    let choice = &response["choices"][0];
    assert_eq!(choice["finish_reason"], "function_call");
    let call = json!({"name": "f", "arguments": "{\"a\":1}"});
    assert_eq!(choice["message"]["function_call"], call);
    assert!(choice["message"].get("tool_calls").is_none());
    let chunks = streamed(&client, &body).await;
    let text = |key: &str| -> String {
        let calls = chunks
            .iter()
            .map(|c| &c["choices"][0]["delta"]["function_call"]);
        calls.filter_map(|call| call[key].as_str()).collect()
    };
    assert_eq!(
        (text("name"), text("arguments")),
        ("f".into(), "{\"a\":1}".into())
    );
}

#[tokio::test]
async fn reasoning_can_be_left_out() {
    let client = says(
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        FinishReason::Stop,
    );
    let body = ask(json!({"include_reasoning": false}));
    let response = whole(&client, &body).await;
    let message = response["choices"][0]["message"]
        .as_object()
        .expect("a message");
    assert!(!message.contains_key("reasoning") && !message.contains_key("reasoning_content"));
    assert_eq!(message["content"], "Hi");
    let chunks = streamed(&client, &body).await;
    assert_eq!(folded(&chunks, 0)["reasoning"], Value::Null);
    // It was thought all the same, and counts.
    assert_ne!(
        response["usage"]["completion_tokens_details"]["reasoning_tokens"],
        0
    );
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_an_event() {
    let ids = marked(&demo().1, "<|channel|>final<|message|>Hi");
    let told = Told::new(move |asked| {
        let mut events = events(&ids, asked.tokens.len(), FinishReason::Stop);
        events.pop();
        events.push(Event::Error(Failure::Broken("a wire".into())));
        events
    });
    let client = Client::new(told.app(Settings::default()));
    let answer = client.post(PATH, &ask(json!({"stream": true}))).await;
    assert_eq!(answer.status, 200);
    let events = answer.events();
    let last = events.last().expect("an event");
    assert_eq!(last["error"]["code"], "internal_error", "{answer}");
    assert!(
        !answer.text.contains("a wire"),
        "what broke is for the log: {answer}"
    );
    assert!(answer.text.ends_with("data: [DONE]\n\n"));
    // Not streamed it is the status.
    let answer = client.post(PATH, &ask(json!({}))).await;
    answer.is_error(500).unwrap();
    // A full queue is a status either way.
    let busy = Failure::Busy {
        waiting: 9,
        retry_after: Duration::from_secs(3),
    };
    let told = Told::new(move |_| vec![Event::Error(busy.clone())]);
    let client = Client::new(told.app(Settings::default()));
    for stream in [true, false] {
        let answer = client.post(PATH, &ask(json!({"stream": stream}))).await;
        answer.is_error(429).unwrap();
        assert_eq!(answer.headers["retry-after"], "3");
    }
}

#[tokio::test]
async fn a_shape_holds_for_the_answer_and_not_for_the_reasoning() {
    let think = "{\"name\": \"analysis\", {\" final";
    let (engine, tokenizer) = scripted::engine(Box::new(move |prompt| {
        assert!(
            prompt.text.contains("# Response Formats\n\n## person"),
            "{}",
            prompt.text
        );
        format!(
            "<|channel|>analysis<|message|>{think}<|end|><|start|>assistant<|channel|>final<|message|>{{\"name\":\"Jo\",\"age\":7}}<|return|>"
        )
    }));
    let app = gossamer::server::App::for_engine("scripted", engine, tokenizer, Settings::default());
    let client = Client::new(app.expect("a server"));
    let schema = json!({
        "type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"], "additionalProperties": false,
    });
    let body = ask(
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}}),
    );
    let response = both(&client, &body).await;
    assert_eq!(
        short(&response),
        [think, "{\"name\":\"Jo\",\"age\":7}", "", "stop"]
    );
}

#[tokio::test]
async fn with_a_shape_only_the_answer_is_content() {
    let client = says(
        "<|channel|>commentary<|message|>Here it comes:<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
        FinishReason::Stop,
    );
    let body = ask(json!({"response_format": {"type": "json_object"}}));
    let response = both(&client, &body).await;
    assert_eq!(short(&response), ["Here it comes:", "{}", "", "stop"]);
}

#[tokio::test]
async fn the_demo_model_answers_calls_and_counts() {
    let client = Client::demo(Settings::default());
    let question = json!([{"role": "user", "content": "What is 17 + 25?"}]);
    let response = both(
        &client,
        &json!({"messages": question, "n": 3, "logprobs": true, "top_logprobs": 2}),
    )
    .await;
    let choices = response["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 3);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let content = choice["message"]["content"].as_str().expect("content");
        assert!(content.contains("42"), "{content}");
        let tokens = choice["logprobs"]["content"].as_array().expect("tokens");
        let text: String = tokens.iter().filter_map(|t| t["token"].as_str()).collect();
        assert_eq!(text, content);
        for token in tokens {
            // Greedy: the likeliest is the one that was taken.
            assert_eq!(token["top_logprobs"][0]["token"], token["token"]);
            assert_eq!(token["top_logprobs"].as_array().map(Vec::len), Some(2));
            assert!(token["logprob"].as_f64().is_some_and(|p| p <= 0.0));
        }
    }
    let usage = &response["usage"];
    let one = whole(&client, &json!({"messages": question})).await;
    // The prompt counts once, the answers each.
    assert_eq!(usage["prompt_tokens"], one["usage"]["prompt_tokens"]);
    let tokens = |usage: &Value| usage["completion_tokens"].as_u64().expect("a number");
    assert_eq!(tokens(usage), 3 * tokens(&one["usage"]));
    // The prompt is there by now, but for its last token.
    let cached = &one["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(cached.as_u64() > Some(0), "{one}");
    let explained = json!({"messages": question, "gossamer": {"explain_cache": true}});
    let explained = whole(&client, &explained).await;
    let details = &explained["usage"]["prompt_tokens_details"];
    assert!(
        details.as_object().is_some_and(|d| d.contains_key("miss")),
        "{explained}"
    );
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_cancelled() {
    use axum::body::Body;
    use gossamer::engine::{Engine, EventSender, Events, ModelInfo, Request, Stats};
    use tower::ServiceExt;
    /// An engine that admits and then says nothing.
    struct Mute(tokio::sync::mpsc::UnboundedSender<EventSender>, Arc<Told>);
    impl Engine for Mute {
        fn submit(&self, _: Request) -> Events {
            let (sender, events) = Events::channel();
            let _ = sender.send(Event::Prefill {
                done: 0,
                total: 9,
                cached: 0,
                miss: None,
            });
            let _ = self.0.send(sender);
            events
        }
        fn info(&self) -> &ModelInfo {
            self.1.info()
        }
        fn stats(&self) -> Stats {
            Stats::default()
        }
    }
    let (sender, mut senders) = tokio::sync::mpsc::unbounded_channel();
    let told = Told::text("", FinishReason::Stop);
    let engine = Arc::new(Mute(sender, told));
    let app = gossamer::server::App::for_engine("mute", engine, demo().1, Settings::default());
    let router = gossamer::server::router(app.expect("a server"));
    let body = ask(json!({"stream": true, "n": 2})).to_string();
    let request = axum::http::Request::post(PATH)
        .header("host", "localhost")
        .body(Body::from(body))
        .expect("a request");
    let response = router.oneshot(request).await.expect("a response");
    assert_eq!(response.status(), 200);
    let one = senders.recv().await.expect("the first choice");
    let two = senders.recv().await.expect("the second choice");
    assert!(!one.is_closed() && !two.is_closed());
    drop(response);
    one.closed().await;
    two.closed().await;
}
