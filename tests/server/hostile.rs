//! Requests that nobody should send. All are made by a generator whose every product is wrong, so
//! that each has to come back as the right 4xx with OpenAI's error object, and soon.
//!
//! `GOSSAMER_FUZZ_CASES` sets how many, 500 if unset.

use crate::{
    common::{fresh_seed, models::Random},
    support::Client,
    table::{self, Spot},
};
use axum::http::Method;
use gossamer::server::Settings;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longer than any refusal may take, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Limits that a test can pass without moving megabytes.
fn settings() -> Settings {
    Settings {
        max_body_bytes: 256 << 10,
        max_json_values: 10_000,
        max_schema_bytes: 4 << 10,
        ..Settings::default()
    }
}

/// A request, what is wrong with it, and the status that says so.
struct Bad {
    what: String,
    status: u16,
    method: Method,
    path: String,
    body: Vec<u8>,
}

struct Generator {
    random: Random,
    settings: Settings,
    spots: Vec<Spot>,
    /// Whole requests: path and body.
    whole: Vec<(String, Value)>,
}

impl Generator {
    fn new(seed: u64) -> Generator {
        let mut whole = table::bodies();
        whole.push(("/tokenize".into(), json!({"prompt": "Hello"})));
        whole.push(("/detokenize".into(), json!({"tokens": [5, 6]})));
        Generator {
            random: Random(seed),
            settings: settings(),
            spots: table::spots(),
            whole,
        }
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len())].clone()
    }

    fn next(&mut self) -> Bad {
        match self.random.below(10) {
            0 => self.no_json(),
            1 => self.no_utf8(),
            2 => self.bad_token(),
            3 => self.too_much(),
            4 => self.past_a_limit(),
            5 => self.wrong_reference(),
            6 => self.no_such_route(),
            7 => self.no_object(),
            _ => self.wrong_type(),
        }
    }

    fn post(&self, what: &str, path: &str, body: impl Into<Vec<u8>>) -> Bad {
        let (what, path, body) = (what.to_owned(), path.to_owned(), body.into());
        Bad {
            what,
            status: 400,
            method: Method::POST,
            path,
            body,
        }
    }

    /// Cut off, doubled, or with something behind.
    fn no_json(&mut self) -> Bad {
        let (path, body) = self.pick(&self.whole.clone());
        let mut text = body.to_string();
        match self.random.below(4) {
            0 => {
                let at = self.random.below(text.len());
                text.truncate(
                    (0..=at)
                        .rev()
                        .find(|&at| text.is_char_boundary(at))
                        .unwrap_or(0),
                );
                self.post("cut off", &path, text)
            }
            1 => {
                text.push_str(self.pick(&["}", "x", " {}", ",", "\0"]));
                self.post("something behind", &path, text)
            }
            2 => {
                let text = text.replacen('{', "{\"same\":1,\"same\":2,", 1);
                self.post("a key that stands twice", &path, text)
            }
            _ => {
                let text = text.replacen('"', self.pick(&["'", "`", "", "//\""]), 1);
                self.post("other quotes", &path, text)
            }
        }
    }

    fn no_utf8(&mut self) -> Bad {
        let (path, body) = self.pick(&self.whole.clone());
        let mut bytes = body.to_string().into_bytes();
        let broken: [&[u8]; 5] = [
            b"\xff",
            b"\xc3\x28",
            b"\xed\xa0\x80",
            b"\xf0\x9f\x98",
            b"\xc0\x80",
        ];
        let at = self.random.below(bytes.len());
        let broken = self.pick(&broken);
        bytes.splice(at..at, broken.iter().copied());
        self.post("invalid UTF-8", &path, bytes)
    }

    /// A value that JSON has not, in place of one that it has.
    fn bad_token(&mut self) -> Bad {
        const TOKENS: [&str; 18] = [
            "NaN",
            "Infinity",
            "-Infinity",
            "1e999",
            "-1e999",
            "01",
            ".5",
            "1.",
            "+1",
            "0x10",
            "undefined",
            "tru",
            "'x'",
            r#""\ud800""#,
            r#""\udc00x""#,
            r#""\x41""#,
            "\"\n\"",
            r#""\u12""#,
        ];
        let spot = self.pick(&self.spots.clone());
        let body = spot.place.with(&spot.body, Some("@@".into()));
        let token = self.pick(&TOKENS);
        let text = body.to_string().replacen("\"@@\"", token, 1);
        self.post(&format!("{} = {token}", spot.field), &spot.path, text)
    }

    /// Deep, long or large.
    fn too_much(&mut self) -> Bad {
        let (path, body) = self.pick(&self.whole.clone());
        let text = body.to_string();
        let (what, more) = match self.random.below(3) {
            0 => {
                let depth = self.settings.max_json_depth + 1 + self.random.below(20_000);
                let (open, close) = self.pick(&[("[", "]"), ("{\"a\":", "}")]);
                let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                ("nested too deep", deep)
            }
            1 => {
                let values = self.settings.max_json_values + 1 + self.random.below(10_000);
                ("too many values", format!("[{}1]", "1,".repeat(values)))
            }
            _ => {
                let bytes = self.settings.max_body_bytes + self.random.below(1 << 20);
                ("too large", format!("\"{}\"", "x".repeat(bytes)))
            }
        };
        let text = text.replacen('{', &format!("{{\"more\":{more},"), 1);
        let status = if what == "too large" { 413 } else { 400 };
        Bad {
            status,
            ..self.post(what, &path, text)
        }
    }

    /// More of something than the settings allow.
    fn past_a_limit(&mut self) -> Bad {
        let more = 1 + self.random.below(3);
        let (limits, hi) = (
            self.settings.clone(),
            json!([{"role": "user", "content": "Hi"}]),
        );
        let stops: Vec<String> = (0..limits.max_stop + more)
            .map(|i| format!("s{i}"))
            .collect();
        let bias: serde_json::Map<String, Value> = (0..limits.max_logit_bias + more)
            .map(|i| (i.to_string(), json!(1)))
            .collect();
        let names: Vec<String> = (0..limits.max_tools + more)
            .map(|i| format!("f{i}"))
            .collect();
        let long = json!({"type": "string", "enum": ["x".repeat(limits.max_schema_bytes + more)]});
        let n = limits.max_n + more;
        let (what, path, body) = match self.random.below(8) {
            0 => ("n", "/v1/chat/completions", json!({"messages": hi, "n": n})),
            1 => ("n", "/v1/completions", json!({"prompt": "Hi", "n": n})),
            2 => (
                "stop",
                "/v1/chat/completions",
                json!({"messages": hi, "stop": stops}),
            ),
            3 => (
                "logit_bias",
                "/v1/completions",
                json!({"prompt": "Hi", "logit_bias": bias}),
            ),
            4 => {
                let tool = |name| json!({"type": "function", "function": {"name": name}});
                let tools: Vec<Value> = names.into_iter().map(tool).collect();
                (
                    "tools",
                    "/v1/chat/completions",
                    json!({"messages": hi, "tools": tools}),
                )
            }
            5 => {
                let tool = |name| json!({"type": "function", "name": name, "parameters": {}});
                let tools: Vec<Value> = names.into_iter().map(tool).collect();
                (
                    "tools",
                    "/v1/responses",
                    json!({"input": "Hi", "tools": tools}),
                )
            }
            6 => {
                let format =
                    json!({"type": "json_schema", "json_schema": {"name": "x", "schema": long}});
                (
                    "schema",
                    "/v1/chat/completions",
                    json!({"messages": hi, "response_format": format}),
                )
            }
            _ => {
                let prompts = vec!["Hi"; limits.max_prompts + more];
                ("prompts", "/v1/completions", json!({"prompt": prompts}))
            }
        };
        self.post(
            &format!("too many or too much: {what}"),
            path,
            body.to_string(),
        )
    }

    /// Ids and names of what does not exist.
    fn wrong_reference(&mut self) -> Bad {
        let id = self.pick(&[
            "call_x",
            "",
            "../../etc/passwd",
            "\u{0}",
            "💥",
            "%00",
            "null",
            "<|call|>",
        ]);
        let user = json!({"role": "user", "content": "Hi"});
        let (what, path, body) = match self.random.below(7) {
            0 => {
                let tool = json!({"role": "tool", "tool_call_id": id, "content": "5"});
                (
                    "an answer without its call",
                    "/v1/chat/completions",
                    json!({"messages": [user, tool]}),
                )
            }
            1 => {
                let output = json!({"type": "function_call_output", "call_id": id, "output": "5"});
                (
                    "an output without its call",
                    "/v1/responses",
                    json!({"input": [output]}),
                )
            }
            2 => (
                "no such response",
                "/v1/responses",
                json!({"input": "Hi", "previous_response_id": id}),
            ),
            3 => {
                let item = json!({"type": "item_reference", "id": id});
                ("no such item", "/v1/responses", json!({"input": [item]}))
            }
            4 => {
                let choice = json!({"type": "function", "function": {"name": id}});
                (
                    "no such tool",
                    "/v1/chat/completions",
                    json!({"messages": [user], "tool_choice": choice}),
                )
            }
            5 => (
                "no such model",
                "/v1/chat/completions",
                json!({"messages": [user], "model": format!("m{id}")}),
            ),
            _ => (
                "no such role",
                "/v1/chat/completions",
                json!({"messages": [{"role": id, "content": "Hi"}]}),
            ),
        };
        let status = match what {
            "no such model" | "no such item" => 404,
            _ => 400,
        };
        Bad {
            status,
            ..self.post(what, path, body.to_string())
        }
    }

    fn no_such_route(&mut self) -> Bad {
        const ROUTES: [(Method, &str, u16); 18] = [
            (Method::GET, "/v1", 404),
            (Method::GET, "/v1/", 404),
            (Method::GET, "/v1/chat/completions", 405),
            (Method::PUT, "/v1/chat/completions", 405),
            (Method::DELETE, "/v1/models", 405),
            (Method::POST, "/v1/embeddings", 404),
            (Method::POST, "/v1/images/generations", 404),
            (Method::GET, "/v1/models/no-such-model", 404),
            (Method::GET, "/v1/models/%ff%fe", 400),
            (Method::GET, "/v1/models/..%2f..%2fetc%2fpasswd", 404),
            (Method::GET, "/v1/responses/resp_nope", 404),
            (Method::GET, "/v1/responses/%00", 404),
            (Method::DELETE, "/v1/responses/resp_nope", 404),
            (Method::POST, "/v1/responses/resp_nope/cancel", 404),
            (Method::GET, "/v1/responses/resp_nope/input_items", 404),
            (
                Method::GET,
                "/v1/responses/resp_nope/input_items?limit=x",
                400,
            ),
            (Method::PATCH, "/tokenize", 405),
            (Method::GET, "/../../etc/passwd", 404),
        ];
        let (method, path, status) = self.pick(&ROUTES);
        Bad {
            what: "no such route".into(),
            status,
            method,
            path: path.into(),
            body: Vec::new(),
        }
    }

    fn no_object(&mut self) -> Bad {
        let (path, _) = self.pick(&self.whole.clone());
        let text = self.pick(&[
            "",
            "[]",
            "\"x\"",
            "1",
            "null",
            "true",
            "[[]]",
            "-0",
            "\u{feff}{}",
        ]);
        self.post("no object", &path, text)
    }

    /// A value of a type that the field can't have, in any field that is honoured.
    fn wrong_type(&mut self) -> Bad {
        let spot = self.pick(&self.spots.clone());
        loop {
            let value = self.value(3);
            let kind = match &value {
                Value::Null => continue,
                Value::Bool(_) => "boolean",
                Value::Number(n) if n.is_f64() => "number",
                Value::Number(_) => "integer",
                Value::String(_) => "string",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            };
            let has = |name: &str| spot.types.iter().any(|t| t == name);
            // Numbers that are far out of any range are wrong where numbers are right.
            let is_far = value.as_f64().is_some_and(|n| n.abs() > 1e30);
            let fits = has(kind) || kind == "integer" && has("number");
            if !fits || is_far {
                let what = format!("{} = {value}", spot.field);
                let body = spot.place.with(&spot.body, Some(value));
                return self.post(&what, &spot.path, body.to_string());
            }
        }
    }

    fn value(&mut self, depth: usize) -> Value {
        let numbers = [
            json!(1e308),
            json!(-1e308),
            json!(-1),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(0.5),
        ];
        let texts = [
            "", "x", "\u{0}", "💥", "NaN", "null", "true", "<|call|>", "0", "-1",
        ];
        match self.random.below(if depth == 0 { 3 } else { 5 }) {
            0 => json!(self.random.below(2) == 0),
            1 => self.pick(&numbers),
            2 => json!(self.pick(&texts)),
            3 => (0..self.random.below(4))
                .map(|_| self.value(depth - 1))
                .collect(),
            _ => {
                let keys = ["type", "role", "a", ""];
                let entry = |_| (self.pick(&keys).to_owned(), self.value(depth - 1));
                Value::Object((0..2).map(entry).collect())
            }
        }
    }
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let cases =
        std::env::var("GOSSAMER_FUZZ_CASES").map_or(500, |text| text.parse().expect("a number"));
    let client = Client::demo(settings());
    let mut generator = Generator::new(fresh_seed());
    let mut wrong = Vec::new();
    for _ in 0..cases {
        let Bad {
            what,
            status,
            method,
            path,
            body,
        } = generator.next();
        let started = Instant::now();
        let answer = match method {
            Method::POST => client.post_bytes(&path, body.clone()).await,
            _ => client.send(method.clone(), &path).await,
        };
        let mut said = answer.is_error(status);
        if said.is_ok() && started.elapsed() > PATIENCE {
            said = Err(format!("refused only after {:?}", started.elapsed()));
        }
        if let Err(why) = said {
            let body: String = String::from_utf8_lossy(&body).chars().take(300).collect();
            wrong.push(format!("{method} {path}: {what}: {why}\n    {body}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {cases}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    // It still answers.
    let body =
        json!({"messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0});
    let answer = client.post("/v1/chat/completions", &body).await;
    let text = &answer.json()["choices"][0]["message"]["content"];
    assert!(
        text.as_str().is_some_and(|text| text.contains("42")),
        "{answer}"
    );
}

/// Schemas and expressions made to take forever, or all memory: an answer or a 400, and soon.
#[tokio::test]
async fn hostile_grammars_do_no_harm() {
    let client = Client::demo(Settings::default());
    let mut deep = json!({"type": "string"});
    for _ in 0..20 {
        deep = json!({"type": "object", "properties": {"a": deep.clone()}, "required": ["a"]});
    }
    // The model is told of it too, and that takes its time.
    let many: Vec<String> = (0..1000).map(|i| format!("value {i}")).collect();
    let schemas = [
        json!({"type": "string", "maxLength": 1_000_000_000}),
        json!({"type": "string", "minLength": 1_000_000_000}),
        json!({"type": "array", "minItems": 100_000_000, "items": {"type": "integer"}}),
        json!({"$ref": "#"}),
        json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        json!({"$ref": "https://example.com/schema.json"}),
        json!({"$ref": "file:///etc/passwd"}),
        json!({"type": "string", "pattern": "((((a{1000}){1000}){1000}){1000})"}),
        json!({"type": "string", "pattern": "(a|a)*(b|b)*(a+)+$"}),
        json!({"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": 1_000_000}),
        json!({"enum": many}),
        json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
        json!({"oneOf": [{"type": "number"}, {"type": "integer"}]}),
        json!({"not": {}}),
        json!(false),
        deep,
    ];
    let mut formats: Vec<Value> = schemas
        .into_iter()
        .map(
            |schema| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
        )
        .collect();
    formats.push(json!({"type": "regex", "pattern": "(((x{1,1000}){1,1000}){1,1000}){1,1000}"}));
    formats.push(json!({"type": "lark", "grammar": "start: start start | \"a\""}));
    formats.push(json!({"type": "lark", "grammar": "start: \"\""}));
    for format in formats {
        let body = json!({
            "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20, "response_format": format,
        });
        let started = Instant::now();
        let answer = client.post("/v1/chat/completions", &body).await;
        let took = started.elapsed();
        println!("{took:?} {} {format:.100}", answer.status);
        let fine = answer.status == 200 || answer.is_error(400).is_ok();
        assert!(
            fine && took < PATIENCE,
            "{format:.200}: after {took:?}: {answer}"
        );
    }
}
