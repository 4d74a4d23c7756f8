//! Plain completions over the demo model: prompts in every form, echo, log-probabilities, stops.

use crate::{scripted::demo, support::Client, turn::Told, turn::events};
use async_openai::types::completions::CreateCompletionResponse;
use gossamer::{engine::FinishReason, server::Settings};
use serde_json::{Value, json};

const PATH: &str = "/v1/completions";

async fn whole(client: &Client, body: &Value) -> Value {
    let answer = client.post(PATH, body).await;
    assert_eq!(answer.status, 200, "{answer}");
    serde_json::from_str::<CreateCompletionResponse>(&answer.text)
        .unwrap_or_else(|error| panic!("{error}: {answer}"));
    answer.json()
}

/// The choices of a stream, put together.
async fn streamed(client: &Client, body: &Value) -> (Vec<Value>, Value) {
    let mut body = body.clone();
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let answer = client.post(PATH, &body).await;
    assert_eq!(answer.status, 200, "{answer}");
    assert!(answer.text.ends_with("data: [DONE]\n\n"), "{answer}");
    let mut chunks = answer.events();
    let last = chunks.pop().expect("the usage");
    assert_eq!(last["choices"], json!([]));
    let mut choices: Vec<Value> = Vec::new();
    for chunk in &chunks {
        assert_eq!(chunk["object"], "text_completion");
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert!(chunk["usage"].is_null(), "{chunk}");
        let [part] = chunk["choices"].as_array().expect("choices").as_slice() else {
            panic!("one choice a chunk: {chunk}");
        };
        let index = part["index"].as_u64().expect("an index") as usize;
        if choices.len() <= index {
            let none = json!({"text": "", "finish_reason": null});
            choices.resize(index + 1, none);
        }
        let choice = &mut choices[index];
        assert!(
            choice["finish_reason"].is_null(),
            "more after the finish: {chunk}"
        );
        let text = choice["text"].as_str().expect("text").to_owned();
        choice["text"] = (text + part["text"].as_str().expect("text")).into();
        choice["finish_reason"] = part["finish_reason"].clone();
        choice["index"] = index.into();
        match (&mut choice["logprobs"], &part["logprobs"]) {
            (all @ Value::Null, some) => *all = some.clone(),
            (Value::Object(all), Value::Object(more)) => {
                for (key, list) in all {
                    let more = more[key].as_array().expect("a list").iter().cloned();
                    list.as_array_mut().expect("a list").extend(more);
                }
            }
            (all, some) => assert_eq!(all, some),
        }
    }
    (choices, last["usage"].clone())
}

/// The answer to `body`, which must be the same streamed and not.
async fn both(client: &Client, body: &Value) -> Value {
    let response = whole(client, body).await;
    let (choices, usage) = streamed(client, body).await;
    assert_eq!(Value::from(choices), response["choices"], "{body}");
    for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage[key], response["usage"][key], "{body}");
    }
    response
}

fn texts(response: &Value) -> Vec<String> {
    let choices = response["choices"].as_array().expect("choices").iter();
    choices
        .enumerate()
        .map(|(index, choice)| {
            assert_eq!(choice["index"], index);
            choice["text"].as_str().expect("text").to_owned()
        })
        .collect()
}

#[tokio::test]
async fn prompts_in_every_form_have_their_answers_in_order() {
    let client = Client::demo(Settings::default());
    let (_, tok) = demo();
    let (one, two) = ("The capital of France", "What is 2 + 3?");
    let ask = |prompt: Value| json!({"prompt": prompt, "max_tokens": 6, "echo": true});
    let first = texts(&both(&client, &ask(one.into())).await).remove(0);
    let second = texts(&both(&client, &ask(two.into())).await).remove(0);
    assert!(first.starts_with(one) && first.len() > one.len(), "{first}");
    assert!(
        second.starts_with(two) && second.len() > two.len(),
        "{second}"
    );
    let ids = |text: &str| json!(tok.encode(text));
    for (prompt, expected) in [
        (ids(one), vec![&first]),
        (json!([one, two]), vec![&first, &second]),
        (json!([ids(two), ids(one)]), vec![&second, &first]),
    ] {
        assert_eq!(
            texts(&both(&client, &ask(prompt)).await)
                .iter()
                .collect::<Vec<_>>(),
            expected
        );
    }
    let mut body = ask(json!([two, one]));
    body["n"] = 2.into();
    let response = both(&client, &body).await;
    assert_eq!(
        texts(&response).iter().collect::<Vec<_>>(),
        [&second, &second, &first, &first]
    );
    // Each prompt counts once.
    let prompts = tok.encode(one).len() + tok.encode(two).len();
    assert_eq!(response["usage"]["prompt_tokens"], prompts);
    assert_eq!(response["usage"]["completion_tokens"], 4 * 6);
    // Without a prompt a new document begins.
    let response = both(&client, &json!({"max_tokens": 3})).await;
    assert_eq!(response["usage"]["prompt_tokens"], 1);
}

#[tokio::test]
async fn log_probabilities_of_prompt_and_answer_are_those_of_their_tokens() {
    let client = Client::demo(Settings::default());
    let (_, tok) = demo();
    let prompt = "naïve 🧵 What is 2 + 3?";
    let body = json!({"prompt": prompt, "max_tokens": 5, "echo": true, "logprobs": 3});
    let response = both(&client, &body).await;
    let choice = &response["choices"][0];
    let text = choice["text"].as_str().expect("text");
    assert!(text.starts_with(prompt));
    let logprobs = &choice["logprobs"];
    let list = |key: &str| logprobs[key].as_array().cloned().expect("a list");
    let (tokens, offsets) = (list("tokens"), list("text_offset"));
    let (values, tops) = (list("token_logprobs"), list("top_logprobs"));
    let count = tok.encode(prompt).len() + 5;
    assert_eq!(
        [tokens.len(), offsets.len(), values.len(), tops.len()],
        [count; 4]
    );
    let characters: Vec<char> = text.chars().collect();
    for i in 0..count {
        let token = tokens[i].as_str().expect("text");
        if !token.starts_with("bytes:") && !token.starts_with("<|") {
            let at = offsets[i].as_u64().expect("a place") as usize;
            let here: String = characters[at..]
                .iter()
                .take(token.chars().count())
                .collect();
            assert_eq!(here, token, "token {i}");
        }
        if i == 0 {
            assert!(values[0].is_null() && tops[0].is_null());
            continue;
        }
        let top = tops[i].as_object().expect("an object");
        assert!((3..=4).contains(&top.len()), "{top:?}");
        assert_eq!(top[token], values[i], "the chosen token is listed");
        let likely: f64 = top.values().filter_map(Value::as_f64).map(f64::exp).sum();
        assert!(likely <= 1.0 + 1e-4, "{likely}");
    }
    // The same tokens, generated in place of given: the same figures.
    let ids = tok.encode(prompt);
    let body = json!({"prompt": ids, "max_tokens": 5, "logprobs": 3});
    let generated = whole(&client, &body).await;
    let generated = generated["choices"][0]["logprobs"]["token_logprobs"].clone();
    assert_eq!(generated, Value::from(values[count - 5..].to_vec()));
    // Scored only: nothing is generated, everything is there.
    let body = json!({"prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 0});
    let scored = both(&client, &body).await;
    assert_eq!(texts(&scored), [prompt]);
    let scored = scored["choices"][0]["logprobs"]["token_logprobs"].clone();
    assert_eq!(scored, Value::from(values[..count - 5].to_vec()));
}

#[tokio::test]
async fn a_stop_string_ends_the_text_and_the_prompt_has_none() {
    let (_, tok) = demo();
    let byte = |b: u8| (0..tok.vocab_size() as u32).find(|&id| tok.token_bytes(id) == [b]);
    let ids: Vec<u32> = "one STOP two"
        .bytes()
        .map(|b| byte(b).expect("a token"))
        .collect();
    let told = Told::new(move |asked| events(&ids, asked.tokens.len(), FinishReason::Length));
    let client = Client::new(told.app(Settings::default()));
    let body =
        json!({"prompt": "a STOP b ", "echo": true, "stop": ["STOP", "two"], "max_tokens": 99});
    let response = both(&client, &body).await;
    assert_eq!(texts(&response), ["a STOP b one "]);
    assert_eq!(response["choices"][0]["finish_reason"], "stop");
    assert_eq!(response["usage"]["completion_tokens"], "one STOP".len());
    assert!(
        told.asked
            .lock()
            .unwrap()
            .iter()
            .all(|asked| asked.cancel.is_cancelled())
    );
    assert_eq!(told.asked.lock().unwrap()[0].max_tokens, Some(99));
    let body = json!({"prompt": "x", "logprobs": 0, "stop": "STOP"});
    let response = both(&client, &body).await;
    let tokens = response["choices"][0]["logprobs"]["tokens"]
        .as_array()
        .map(Vec::len);
    assert_eq!(tokens, Some("one ".len()));
    // OpenAI's default.
    assert_eq!(told.asked.lock().unwrap()[2].max_tokens, Some(16));
}

#[tokio::test]
async fn a_shape_holds_from_the_first_token() {
    let client = Client::demo(Settings::default());
    let body = json!({
        "prompt": "What is 2 + 3?", "max_tokens": 40, "temperature": 1, "seed": 5,
        "response_format": {"type": "regex", "pattern": "[0-9]{3}-[a-z]{2}"},
    });
    let response = both(&client, &body).await;
    let text = texts(&response).remove(0);
    let (digits, letters) = text.split_once('-').expect("a hyphen");
    assert!(
        digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()),
        "{text}"
    );
    assert!(
        letters.len() == 2 && letters.bytes().all(|b| b.is_ascii_lowercase()),
        "{text}"
    );
    assert_eq!(response["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn shapes_in_the_words_of_vllm_hold_too() {
    let client = Client::demo(Settings::default());
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["x|y"]}}, "required": ["a"], "additionalProperties": false});
    let choices = json!(["x|y", "(z)"]);
    for (shape, fits) in [
        (json!({"guided_choice": choices}), &["x|y", "(z)"][..]),
        (
            json!({"structured_outputs": {"choice": choices}}),
            &["x|y", "(z)"],
        ),
        (json!({"guided_regex": "ab"}), &["ab"]),
        (json!({"guided_grammar": "start: \"a\" \"b\""}), &["ab"]),
        (json!({"guided_json": schema}), &["{\"a\":\"x|y\"}"]),
        (
            json!({"structured_outputs": {"json": schema.to_string()}}),
            &["{\"a\":\"x|y\"}"],
        ),
    ] {
        let mut body =
            json!({"prompt": "What is 2 + 3?", "max_tokens": 99, "temperature": 1, "seed": 5});
        let fields = body.as_object_mut().expect("an object");
        fields.extend(shape.as_object().cloned().unwrap_or_default());
        let text = texts(&whole(&client, &body).await).remove(0);
        let text = text.replace([' ', '\n', '\r', '\t'], "");
        assert!(fits.contains(&text.as_str()), "{shape}: {text}");
    }
}

#[tokio::test]
async fn more_choices_than_the_engine_takes_at_once_are_answered() {
    // The engine of these tests has two slots; each choice says which prompt it answers.
    let told = Told::new(|asked| events(&asked.tokens, asked.tokens.len(), FinishReason::Length));
    let client = Client::new(told.app(Settings::default()));
    let prompts: Vec<String> = (0..50).map(|i| format!("prompt {i}")).collect();
    let response = both(&client, &json!({"prompt": prompts, "n": 2})).await;
    let expected: Vec<&String> = prompts.iter().flat_map(|p| [p, p]).collect();
    assert_eq!(texts(&response).iter().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn what_is_wrong_with_a_completion_is_named() {
    let client = Client::demo(Settings::default());
    let vocab = demo().1.vocab_size();
    for (body, param, word) in [
        (json!({"prompt": []}), "prompt", "empty"),
        (json!({"prompt": [[]]}), "prompt", "empty"),
        (json!({"prompt": ["x", 5]}), "prompt", "mix"),
        (json!({"prompt": [vocab]}), "prompt", "below"),
        (json!({"prompt": vec!["x"; 129]}), "prompt", "128"),
        (json!({"prompt": "x", "suffix": "y"}), "suffix", "middle"),
        (json!({"prompt": "x", "best_of": 2}), "best_of", "'n'"),
        (json!({"prompt": "x", "logprobs": 21}), "logprobs", "20"),
    ] {
        let answer = client.post(PATH, &body).await;
        answer
            .is_error(400)
            .unwrap_or_else(|wrong| panic!("{param}: {wrong}"));
        let error = &answer.json()["error"];
        assert_eq!(error["param"], param, "{answer}");
        assert!(
            error["message"].as_str().is_some_and(|m| m.contains(word)),
            "{answer}"
        );
    }
    let long = json!({"prompt": "word ".repeat(140_000)});
    let answer = client.post(PATH, &long).await;
    answer.is_error(400).unwrap();
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    assert_eq!(answer.json()["error"]["param"], "prompt");
}
