//! The program under load: many clients that stream, some of which leave; and a signal to end in the
//! middle of it.
//!
//! `GOSSAMER_LOAD_SECONDS` says for how long, 10 if unset.

use crate::{
    common::{fresh_seed, models::Random},
    program::Program,
    scripted::demo,
};
use serde_json::{Value, json};
use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

const CLIENTS: usize = 64;
/// What a server may grow by under steady load once its caches are full: fragments, buffers of
/// connections.
const GROWTH: u64 = 48 << 20;

/// Room for fewer sequences than there are clients, so that some wait, and a cache that is soon full.
const ARGS: [&str; 8] = [
    "--ctx-size",
    "1024",
    "--max-seqs",
    "16",
    "--max-waiting",
    "128",
    "--cache-bytes",
    "8MiB",
];

/// What the clients ask: chat and responses, free text, a tool, a schema.
fn requests(random: &mut Random) -> Vec<(&'static str, Value)> {
    let mut requests = Vec::new();
    for i in 0..24 {
        let (a, b) = (10 + random.below(80), 10 + random.below(80));
        let text = match i % 3 {
            0 => format!("What is {a} + {b}?"),
            1 => format!("What is {a} - {b}?"),
            _ => "What is the capital of France?".to_owned(),
        };
        let seed = random.next() >> 12;
        let mut body = json!({"stream": true, "temperature": 1, "seed": seed});
        let path = if i % 4 == 3 {
            body["input"] = text.into();
            "/v1/responses"
        } else {
            body["messages"] = json!([{"role": "user", "content": text}]);
            body["max_completion_tokens"] = 150.into();
            "/v1/chat/completions"
        };
        match i % 8 {
            1 => {
                let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
                body["tools"] = json!([{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]);
            }
            5 => {
                let schema = json!({"type": "object", "properties": {"answer": {"type": "integer", "maximum": 9999, "minimum": -9999}},
                    "required": ["answer"], "additionalProperties": false});
                body["response_format"] =
                    json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
            }
            _ => {}
        }
        requests.push((path, body));
    }
    requests
}

/// How a stream ended: all it said, and whether by its own proper last event.
#[derive(Debug, PartialEq, Clone)]
struct Told {
    text: String,
    last: String,
}

/// How errors begin of those who got no stream.
const NO_STREAM: &str = "no stream: ";

/// Reads a stream to its end, or leaves it after `patience` events: then there is nothing to tell.
fn listen(
    program: &Program,
    path: &str,
    body: &Value,
    patience: usize,
) -> Result<Option<Told>, String> {
    let stream = program.stream(path, body);
    let mut stream = stream.map_err(|error| format!("{NO_STREAM}{error}"))?;
    let mut told = Told {
        text: String::new(),
        last: String::new(),
    };
    for _ in 0..patience {
        let Some(data) = stream.next()? else {
            // Chat's last event is `[DONE]`.
            return match told.last.as_str() {
                last if last.is_empty() || path.ends_with("/completions") => {
                    Err(format!("the stream broke off after {:?}", told.text))
                }
                _ => Ok(Some(told)),
            };
        };
        if data == "[DONE]" {
            return Ok(Some(told));
        }
        let event: Value = serde_json::from_str(&data).map_err(|e| format!("{e} in {data}"))?;
        if event.get("error").is_some_and(|error| !error.is_null()) {
            told.last = event["error"].to_string();
            continue;
        }
        match event["type"].as_str() {
            Some(kind @ ("response.completed" | "response.incomplete" | "response.failed")) => {
                told.last = kind.to_owned();
            }
            Some(kind) if kind.ends_with(".delta") => {
                told.text += event["delta"].as_str().unwrap_or("")
            }
            Some(_) => {}
            None => {
                let choice = &event["choices"][0];
                let delta = &choice["delta"];
                for key in ["reasoning", "content"] {
                    told.text += delta[key].as_str().unwrap_or("");
                }
                for call in delta["tool_calls"].as_array().into_iter().flatten() {
                    for key in ["name", "arguments"] {
                        told.text += call["function"][key].as_str().unwrap_or("");
                    }
                }
                if let Some(reason) = choice["finish_reason"].as_str() {
                    told.last = reason.to_owned();
                }
            }
        }
    }
    Ok(None)
}

fn seconds() -> u64 {
    std::env::var("GOSSAMER_LOAD_SECONDS").map_or(10, |text| text.parse().expect("seconds"))
}

#[test]
fn many_clients_stream_and_some_leave() {
    let seed = fresh_seed();
    let requests = requests(&mut Random(seed));
    let program = Program::start(&ARGS);
    let alone = |(path, body): &(&str, Value)| {
        let told = listen(&program, path, body, usize::MAX);
        told.unwrap_or_else(|e| panic!("{body}: {e}"))
            .expect("it stayed to the end")
    };
    let solo: Vec<Told> = requests.iter().map(alone).collect();
    let proper = [
        "stop",
        "length",
        "tool_calls",
        "response.completed",
        "response.incomplete",
    ];
    for (told, (_, body)) in solo.iter().zip(&requests) {
        assert!(
            proper.contains(&told.last.as_str()) && !told.text.is_empty(),
            "{body}: {told:?}"
        );
    }

    let (answered, left) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let time = Duration::from_secs(seconds());
    let begin = Instant::now();
    let mut memory = Vec::new();
    let client = |id: usize| {
        let mut random = Random(seed ^ (id as u64 + 1) << 32);
        let mut wrong = Vec::new();
        while begin.elapsed() < time {
            let pick = random.below(requests.len());
            let (path, body) = &requests[pick];
            let leaves = random.below(3) == 0;
            let patience = if leaves {
                1 + random.below(12)
            } else {
                usize::MAX
            };
            match listen(&program, path, body, patience) {
                Ok(Some(told)) if told == solo[pick] => answered.fetch_add(1, Ordering::Relaxed),
                Ok(None) => left.fetch_add(1, Ordering::Relaxed),
                Ok(Some(told)) => {
                    wrong.push(format!(
                        "{body}:\n  alone {:?}\n  now   {told:?}",
                        solo[pick]
                    ));
                    break;
                }
                Err(error) => {
                    wrong.push(format!("{body}: {error}"));
                    break;
                }
            };
        }
        wrong
    };
    let client = &client;
    let wrong: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|id| scope.spawn(move || client(id)))
            .collect();
        // Steady after the first third: by then the caches are full.
        while begin.elapsed() < time {
            if begin.elapsed() > time / 3 {
                memory.push(program.memory());
            }
            thread::sleep(Duration::from_millis(250));
        }
        let wrong = clients
            .into_iter()
            .flat_map(|client| client.join().expect("a client"));
        wrong.collect()
    });
    let (answered, left) = (answered.into_inner(), left.into_inner());
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        answered + left,
        wrong.join("\n")
    );
    assert!(
        answered >= CLIENTS && left >= CLIENTS / 4,
        "{answered} answered, {left} left: too little"
    );

    // Everyone is gone: nothing runs, waits, or holds a block.
    let busy = || {
        let names = [
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "gossamer_kv_blocks_in_use",
        ];
        names.map(|name| program.metric(name))
    };
    let patience = Instant::now() + Duration::from_secs(10);
    while busy() != [0.0; 3] {
        assert!(
            Instant::now() < patience,
            "running, waiting, blocks in use: {:?}",
            busy()
        );
        thread::sleep(Duration::from_millis(50));
    }
    assert!(
        program.metric("vllm:generation_tokens_total") > 0.0,
        "metrics count"
    );
    assert!(
        program.metric("gossamer_kv_blocks") > 0.0,
        "metrics know the blocks"
    );
    let (first, last) = (memory[0], memory[memory.len() - 1]);
    println!(
        "{CLIENTS} clients, {:.0} s: {answered} answers as alone, {left} left; memory {} MB, then {} MB",
        time.as_secs_f64(),
        first >> 20,
        last >> 20
    );
    assert!(
        last < first + GROWTH,
        "memory grew from {first} to {last} bytes"
    );
}

#[test]
fn a_signal_under_load_ends_streams_properly() {
    let drain = Duration::from_secs(2);
    let mut args = ARGS.to_vec();
    args.extend(["--drain-timeout", "2s"]);
    let program = Program::start(&args);
    // Answers that the model can't end: more than the drain time has room for.
    let vocabulary = demo().1;
    let ends = vocabulary.stop_ids().into_iter();
    let bias: serde_json::Map<String, Value> =
        ends.map(|id| (id.to_string(), json!(-100))).collect();
    let body = json!({
        "messages": [{"role": "user", "content": "What is 17 + 25?"}],
        "stream": true, "temperature": 1, "logit_bias": bias, "max_completion_tokens": 900,
    });
    let response = json!({"input": "What is 17 + 25?", "stream": true, "temperature": 1, "max_output_tokens": 900});
    let stopping = AtomicBool::new(false);
    let under_way = AtomicUsize::new(0);
    let client = |id: usize| {
        let (path, body) = match id % 2 {
            0 => ("/v1/chat/completions", &body),
            _ => ("/v1/responses", &response),
        };
        let mut all = Vec::new();
        while !stopping.load(Ordering::Relaxed) {
            under_way.fetch_add(1, Ordering::Relaxed);
            all.push(listen(&program, path, body, usize::MAX));
        }
        all
    };
    let client = &client;
    let told: Vec<Result<Option<Told>, String>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..32).map(|id| scope.spawn(move || client(id))).collect();
        while under_way.load(Ordering::Relaxed) < 48 {
            thread::yield_now();
        }
        stopping.store(true, Ordering::Relaxed);
        program.terminate();
        let told = clients
            .into_iter()
            .flat_map(|client| client.join().expect("a client"));
        told.collect()
    });
    let mut cut = 0;
    for told in told {
        match told {
            // Whatever it was, it had a last event.
            Ok(told) => {
                cut += usize::from(told.is_some_and(|told| {
                    told.last.contains("shut") || told.last == "response.failed"
                }))
            }
            // One that came too late to be answered. What was begun may not break off.
            Err(error) => {
                let why = error.strip_prefix(NO_STREAM).unwrap_or_default();
                assert!(
                    why.starts_with("503") || why.contains("onnection"),
                    "{error}"
                );
            }
        }
    }
    println!("{cut} streams were ended by the server");
    assert!(cut > 0, "no answer was cut: nothing was under way");
    let status = program.wait(drain + Duration::from_secs(10));
    assert_eq!(status.code(), Some(0), "{status}");
}
