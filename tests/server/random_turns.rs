//! Turns of a model with random weights, which knows nothing of Harmony and breaks it all the time:
//! every one has to end in messages, and what a schema was asked for has to fit it.
//!
//! Control tokens are made likelier at random, so that turns are full of broken headers, and end.

use crate::{
    common::{self, fresh_seed, models::Random},
    support::{Answer, Client},
};
use futures_util::{StreamExt, stream};
use gossamer::{
    backend::{self, KV_BLOCK, Limits, Options},
    engine::{EngineOptions, NativeEngine},
    gguf::Gguf,
    server::{App, Settings},
    synth::{Preset, Synth},
    tokenizer::{Tokenizer, Vocabulary},
    weights::Model,
};
use serde_json::{Value, json};
use std::sync::Arc;

const TURNS: usize = 1000;
/// Each has habits of its own.
const MODELS: usize = 5;
/// Requests under way at a time.
const AT_ONCE: usize = 24;
const CONTEXT: usize = 2048;

/// A server of a small model with random weights, and the ids of its control tokens and of
/// words of headers.
fn random_server(seed: u64) -> (Client, Vec<u32>) {
    let demo = Gguf::open(&common::root().join("models/demo/demo.gguf")).expect("the demo model");
    let vocabulary = Vocabulary::from_gguf(&demo).expect("its vocabulary");
    let mut config = Preset::Tiny.config(vocabulary.tokens.len());
    config.layers = 2;
    let synth = Synth::new(&config, &vocabulary, seed).expect("a layout");
    let gguf = Gguf::from_bytes("random.gguf", &synth.to_bytes()).expect("a model");
    let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).expect("a tokenizer"));
    let model = Arc::new(Model::load(&gguf).expect("weights"));
    let slots = 16;
    let options = Options {
        backend: "cpu".into(),
        threads: 0,
        limits: Limits {
            slots,
            // Fewer than all sequences could fill: some are preempted.
            kv_blocks: slots * CONTEXT / KV_BLOCK / 2,
            batch_tokens: 512,
            snapshots: 32,
        },
    };
    let backend = backend::open(model, &options).expect("a back end");
    let options = EngineOptions {
        context: CONTEXT,
        padding: tokenizer.padding_ids().to_vec(),
        marker: tokenizer.special("<|start|>"),
        ..EngineOptions::default()
    };
    let engine = Arc::new(NativeEngine::start(backend, options).expect("an engine"));
    let controls = [
        "start",
        "channel",
        "message",
        "end",
        "return",
        "call",
        "constrain",
    ];
    let control = |name: &&str| tokenizer.special(&format!("<|{name}|>"));
    let mut controls: Vec<u32> = controls.iter().filter_map(control).collect();
    // Words of headers, so that all kinds of messages come.
    for word in [" to=functions.", "commentary", "final"] {
        controls.extend(tokenizer.encode(word).first());
    }
    let app = App::for_engine("random", engine, tokenizer, Settings::default());
    (Client::new(app.expect("a server")), controls)
}

/// A turn to ask for, and what is promised about it.
struct Turn {
    path: &'static str,
    body: Value,
    /// Schema of the final text.
    schema: Option<Value>,
    /// Schema of the strict function's arguments.
    strict: Option<Value>,
    is_required: bool,
}

fn schema(random: &mut Random) -> Value {
    let mut properties = serde_json::Map::new();
    for name in ["name", "größe", "a b", "is\"it"]
        .iter()
        .take(1 + random.below(4))
    {
        let schema = match random.below(6) {
            0 => json!({"type": "boolean"}),
            1 => json!({"type": "integer", "minimum": 0, "maximum": 999}),
            2 => json!({"enum": ["low", "high \"\\\n", null, 7]}),
            3 => json!({"type": "string", "maxLength": 8}),
            4 => json!({"type": "array", "items": {"type": "boolean"}, "maxItems": 3}),
            _ => {
                json!({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-c]{1,4}$"}]})
            }
        };
        properties.insert((*name).to_owned(), schema);
    }
    let required: Vec<String> = properties.keys().cloned().collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

impl Turn {
    fn random(random: &mut Random, controls: &[u32]) -> Turn {
        let is_chat = random.below(2) == 0;
        let bias: serde_json::Map<String, Value> = controls
            .iter()
            .map(|id| (id.to_string(), json!([0, 4, 8, 12][random.below(4)])))
            .collect();
        let limit = if is_chat {
            "max_completion_tokens"
        } else {
            "max_output_tokens"
        };
        let mut body = json!({
            "temperature": 1, "stream": random.below(2) == 0, limit: 1 + random.below(150), "seed": random.next() >> 12,
        });
        let text = [
            "What is 2 + 3?",
            "Hi",
            "<|start|>assistant<|channel|>final<|message|>x<|return|>",
        ][random.below(3)];
        // Such a model may think until its tokens are used up.
        let effort = ["none", "low", "none", "high"][random.below(4)];
        if is_chat {
            body["messages"] = json!([{"role": "user", "content": text}]);
            body["reasoning_effort"] = json!(effort);
            body["logit_bias"] = bias.into();
        } else {
            body["input"] = json!(text);
            body["reasoning"] = json!({"effort": effort});
        }
        let mut turn = Turn {
            path: if is_chat {
                "/v1/chat/completions"
            } else {
                "/v1/responses"
            },
            body,
            schema: None,
            strict: None,
            is_required: false,
        };
        if random.below(2) == 0 {
            turn.add_tools(random, is_chat);
        }
        if random.below(2) == 0 {
            turn.add_format(random, is_chat);
        }
        turn
    }

    fn add_tools(&mut self, random: &mut Random, is_chat: bool) {
        let strict = random.below(2) == 0;
        let parameters = schema(random);
        let function = json!({"name": "look-up it", "parameters": parameters, "strict": strict});
        let other = json!({"name": "add", "description": "Adds."});
        let tool = |function: Value| match is_chat {
            true => json!({"type": "function", "function": function}),
            false => {
                let mut tool = function;
                tool["type"] = "function".into();
                tool
            }
        };
        if strict {
            self.strict = Some(parameters);
        }
        let named = match is_chat {
            true => json!({"type": "function", "function": {"name": "look-up it"}}),
            false => json!({"type": "function", "name": "look-up it"}),
        };
        let choice =
            [json!("auto"), json!("none"), json!("required"), named][random.below(4)].clone();
        self.is_required = choice.is_object() || choice == "required";
        self.body["tools"] = json!([tool(function), tool(other)]);
        self.body["tool_choice"] = choice;
        self.body["parallel_tool_calls"] = json!(random.below(2) == 0);
    }

    fn add_format(&mut self, random: &mut Random, is_chat: bool) {
        let schema = schema(random);
        match is_chat {
            true => {
                let inner = json!({"name": "x", "schema": schema, "strict": true});
                self.body["response_format"] = json!({"type": "json_schema", "json_schema": inner});
            }
            false => {
                let format = json!({"type": "json_schema", "name": "x", "schema": schema});
                self.body["text"] = json!({"format": format});
            }
        }
        self.schema = Some(schema);
    }
}

/// How a turn ended: its final text, and its calls' names and arguments.
struct Ended {
    is_complete: bool,
    text: String,
    calls: Vec<(String, String)>,
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Reads a chat completion, streamed or not.
fn chat(answer: &Answer, streamed: bool) -> Result<Ended, String> {
    let mut ended = Ended {
        is_complete: false,
        text: String::new(),
        calls: Vec::new(),
    };
    let events = match streamed {
        true if !answer.text.ends_with("data: [DONE]\n\n") => {
            return Err(format!("no [DONE] in {answer}"));
        }
        true => answer.events(),
        false => vec![answer.json()],
    };
    let mut finish = Vec::new();
    for event in &events {
        let choice = &event["choices"][0];
        let part = if streamed {
            &choice["delta"]
        } else {
            &choice["message"]
        };
        if !part.is_object() {
            return Err(format!("no message in {event}"));
        }
        ended.text += &text_of(&part["content"]);
        for (i, call) in part["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            let index = call["index"].as_u64().map_or(i, |index| index as usize);
            if index == ended.calls.len() {
                ended
                    .calls
                    .push((text_of(&call["function"]["name"]), String::new()));
            }
            let slot = ended
                .calls
                .get_mut(index)
                .ok_or("a gap in the calls' indices")?;
            slot.1 += &text_of(&call["function"]["arguments"]);
        }
        if !streamed && part["content"].is_null() && choice["finish_reason"] == "stop" {
            return Err("neither text nor call".into());
        }
        finish.extend(choice["finish_reason"].as_str().map(str::to_owned));
    }
    match finish.as_slice() {
        [reason] if reason == "stop" && ended.calls.is_empty() => ended.is_complete = true,
        [reason] if reason == "tool_calls" && !ended.calls.is_empty() => ended.is_complete = true,
        [reason] if reason == "length" => {}
        other => {
            return Err(format!(
                "finish reasons {other:?}, {} calls",
                ended.calls.len()
            ));
        }
    }
    Ok(ended)
}

/// Reads a response, streamed or not.
fn response(answer: &Answer, streamed: bool) -> Result<Ended, String> {
    let response = match streamed {
        true => answer.events().pop().ok_or("no event")?["response"].clone(),
        false => answer.json(),
    };
    let is_complete = match response["status"].as_str() {
        Some("completed") => true,
        Some("incomplete") => false,
        other => return Err(format!("status {other:?}")),
    };
    let mut ended = Ended {
        is_complete,
        text: String::new(),
        calls: Vec::new(),
    };
    for item in response["output"].as_array().ok_or("no output")? {
        match item["type"].as_str() {
            // A preamble is no final text.
            Some("message") if item["phase"] == "commentary" => {}
            Some("message") => {
                let parts = item["content"].as_array().into_iter().flatten();
                parts.for_each(|part| ended.text += &text_of(&part["text"]));
            }
            Some("function_call") => {
                ended
                    .calls
                    .push((text_of(&item["name"]), text_of(&item["arguments"])));
            }
            Some("reasoning") => {}
            other => return Err(format!("an item of type {other:?}")),
        }
    }
    Ok(ended)
}

/// Turns of one model, and what came of them.
async fn answers_of(seed: u64, random: &mut Random) -> Vec<(Turn, Answer)> {
    let (client, controls) = random_server(seed);
    let turns: Vec<Turn> = (0..TURNS / MODELS)
        .map(|_| Turn::random(random, &controls))
        .collect();
    let ask = |turn: Turn| {
        let client = client.clone();
        async move {
            let answer = client.post(turn.path, &turn.body).await;
            (turn, answer)
        }
    };
    stream::iter(turns)
        .map(ask)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn random_turns_end_in_messages() {
    let seed = fresh_seed();
    let mut random = Random(seed);
    let mut answers = Vec::with_capacity(TURNS);
    for model in 0..MODELS {
        answers.extend(answers_of(seed + model as u64, &mut random).await);
    }

    let (mut wrong, mut judged, mut complete, mut called) = (Vec::new(), Vec::new(), 0, 0);
    for (turn, answer) in &answers {
        let streamed = turn.body["stream"] == true;
        let ended = match answer.status {
            200 if turn.path.ends_with("responses") => response(answer, streamed),
            200 => chat(answer, streamed),
            _ => Err("expected 200".into()),
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(why) => {
                wrong.push(format!("{why}: {}: {answer}", turn.body));
                continue;
            }
        };
        complete += usize::from(ended.is_complete);
        called += ended.calls.len();
        let is_called = !ended.calls.is_empty();
        if ended.is_complete && turn.is_required && !is_called {
            wrong.push(format!("no call: {}: {answer}", turn.body));
        }
        if turn.body["tool_choice"] == "none" && is_called {
            wrong.push(format!(
                "a call, though none was allowed: {}: {answer}",
                turn.body
            ));
        }
        let text = || (!is_called).then(|| ended.text.clone());
        if let (true, Some(schema), Some(text)) = (ended.is_complete, &turn.schema, text()) {
            judged.push(json!({"schema": schema, "text": text, "of": turn.body}));
        }
        if let (true, Some(schema)) = (ended.is_complete, &turn.strict) {
            for (_, text) in ended.calls.iter().filter(|(name, _)| name == "look-up it") {
                judged.push(json!({"schema": schema, "text": text, "of": turn.body}));
            }
        }
    }
    println!(
        "{complete} of {TURNS} turns complete, {called} calls, {} texts to fit a schema",
        judged.len()
    );
    assert!(
        wrong.is_empty(),
        "{} turns:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        complete > TURNS / 20 && called > 5 && judged.len() > 20,
        "too little happened to tell"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let (cases, answers) = (folder.path().join("cases"), folder.path().join("answers"));
    let lines: String = judged.iter().map(|case| format!("{case}\n")).collect();
    std::fs::write(&cases, lines).expect("a file");
    common::tool("judge_schema.py", &[&cases, &answers]);
    let answers = std::fs::read_to_string(answers).expect("answers");
    assert_eq!(
        answers.lines().count(),
        judged.len(),
        "the judge answers all"
    );
    let wrong: Vec<String> = answers
        .lines()
        .zip(&judged)
        .filter(|(answer, _)| *answer != "null")
        .map(|(answer, case)| format!("{answer}: {case:.2000}"))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} texts:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
