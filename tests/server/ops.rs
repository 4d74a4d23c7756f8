//! What surrounds the endpoints: hosts, keys, rates, limits of bodies, health, metrics, the
//! description of the API.

use super::support::{Answer, Client};
use axum::{
    body::Body,
    http::{Method, Request},
};
use futures_util::StreamExt as _;
use gossamer::server::Settings;
use serde_json::{Value, json};

fn demo() -> Client {
    Client::demo(Settings::default())
}

async fn with_headers(client: &Client, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).expect("a request");
    client.ask(request).await
}

#[tokio::test]
async fn tokens_go_there_and_back() {
    let client = demo();
    let text = "Hello, wörld <|start|> \u{1F600}";
    let there = client
        .post(
            "/tokenize",
            &json!({"prompt": text, "return_token_strs": true}),
        )
        .await;
    assert_eq!(there.status, 200, "{there}");
    let there = there.json();
    let tokens = there["tokens"].as_array().unwrap();
    assert_eq!(there["count"], tokens.len());
    assert_eq!(there["token_strs"].as_array().unwrap().len(), tokens.len());
    let back = client.post("/detokenize", &json!({"tokens": tokens})).await;
    assert_eq!(back.json(), json!({"prompt": text}));
}

#[tokio::test]
async fn conversations_are_tokenized_as_they_are_prompted() {
    let client = demo();
    let asked = json!({"messages": [{"role": "user", "content": "What is 2 + 2?"}]});
    let tokens = client.post("/tokenize", &asked).await.json();
    let answer = client.post("/v1/chat/completions", &asked).await.json();
    assert!(tokens["count"].as_u64() > Some(10), "{tokens}");
    assert_eq!(tokens["count"], answer["usage"]["prompt_tokens"]);
    let back = client.post("/detokenize", &tokens).await.json();
    let text = back["prompt"].as_str().unwrap();
    assert!(text.ends_with("2 + 2?<|end|><|start|>assistant"), "{text}");
    for wrong in [
        json!({"messages": []}),
        json!({"messages": [{"role": "nobody"}]}),
        json!({"messages": "Hello"}),
        json!({"messages": [], "prompt": "Hello"}),
    ] {
        let answer = client.post("/tokenize", &wrong).await;
        answer
            .is_error(400)
            .unwrap_or_else(|e| panic!("{wrong}: {e}"));
    }
}

#[tokio::test]
async fn detokenize_knows_its_vocabulary() {
    let client = demo();
    let answer = client
        .post("/detokenize", &json!({"tokens": [1, 4_000_000]}))
        .await;
    answer.is_error(400).unwrap();
    assert_eq!(answer.json()["error"]["param"], "tokens[1]");
    let answer = client
        .post("/detokenize", &json!({"tokens": [1, -1]}))
        .await;
    answer.is_error(400).unwrap();
    assert_eq!(answer.json()["error"]["param"], "tokens[1]", "{answer}");
    let answer = client.post("/detokenize", &json!({})).await;
    answer.is_error(400).unwrap();
    assert_eq!(answer.json()["error"]["code"], "missing_required_parameter");
}

#[tokio::test]
async fn bodies_that_are_no_json_are_400() {
    let client = Client::demo(Settings {
        max_json_depth: 10,
        max_json_values: 100,
        ..Settings::default()
    });
    let deep = format!("{}{}", "[".repeat(11), "]".repeat(11));
    let many = format!("{{\"tokens\":[{}1]}}", "1,".repeat(100));
    for (body, says) in [
        (&b""[..], "empty"),
        (b"  \n", "empty"),
        (b"{", "EOF"),
        (b"{\"prompt\": \"Hel", "EOF"),
        (b"{\"prompt\": NaN}", "expected value"),
        (b"{\"prompt\": 1e999}", "out of range"),
        (b"{\"prompt\": \"\xff\"}", "UTF-8"),
        (b"{\"prompt\": \"\\ud800\"}", "hex escape"),
        (b"{\"prompt\": \"a\", \"prompt\": \"b\"}", "twice"),
        (b"{\"x\": {\"a\": 1, \"a\": 1}, \"prompt\": \"\"}", "twice"),
        (b"{} {}", "trailing"),
        (b"[]", "an array"),
        (b"null", "null"),
        (b"\"text\"", "a string"),
        (deep.as_bytes(), "deeper than 10"),
        (many.as_bytes(), "more than 100 values"),
    ] {
        let answer = client.post_bytes("/tokenize", body.to_vec()).await;
        let name = String::from_utf8_lossy(body);
        answer
            .is_error(400)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let message = answer.json()["error"]["message"].to_string();
        assert!(message.contains(says), "{name}: {message}");
    }
}

#[tokio::test]
async fn wrong_types_name_their_field() {
    let client = demo();
    for (path, body, code, param) in [
        ("/tokenize", json!({"prompt": 5}), "invalid_type", "prompt"),
        (
            "/tokenize",
            json!({"model": [], "prompt": ""}),
            "invalid_type",
            "model",
        ),
        (
            "/detokenize",
            json!({"tokens": "x"}),
            "invalid_type",
            "tokens",
        ),
        (
            "/detokenize",
            json!({"tokens": [0.5]}),
            "invalid_type",
            "tokens[0]",
        ),
        (
            "/tokenize",
            json!({}),
            "missing_required_parameter",
            "prompt",
        ),
    ] {
        let answer = client.post(path, &body).await;
        answer
            .is_error(400)
            .unwrap_or_else(|e| panic!("{body}: {e}"));
        let error = &answer.json()["error"];
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!(code), &json!(param))
        );
    }
    let unknown = json!({"prompt": "Hi", "nobody_knows": {"this": [null]}});
    assert_eq!(client.post("/tokenize", &unknown).await.status, 200);
}

#[tokio::test]
async fn bodies_have_a_limit() {
    let client = Client::demo(Settings {
        max_body_bytes: 1000,
        ..Settings::default()
    });
    let body = |bytes: usize| json!({"prompt": "x".repeat(bytes - 13)}).to_string();
    assert_eq!(body(1000).len(), 1000);
    assert_eq!(client.post_bytes("/tokenize", body(1000)).await.status, 200);
    let answer = client.post_bytes("/tokenize", body(1001)).await;
    answer.is_error(413).unwrap();
    assert_eq!(answer.json()["error"]["code"], "request_too_large");
    // Without a length in the headers it is found out on the way.
    let chunks = futures_util::stream::iter([(); 2].map(|()| Ok::<_, std::io::Error>(body(900))));
    let answer = client
        .post_bytes("/tokenize", Body::from_stream(chunks))
        .await;
    answer.is_error(413).unwrap();
}

#[tokio::test]
async fn what_is_read_at_once_is_bounded() {
    let client = Client::demo(Settings {
        max_body_bytes: 1 << 20,
        max_json_values: 0,
        ..Settings::default()
    });
    // Bodies that arrive slowly: each has sent all but its end.
    let (sender, never) = tokio::sync::watch::channel(());
    let slow = |_| {
        let mut never = never.clone();
        let most = Ok::<_, std::io::Error>(vec![b' '; 1 << 20]);
        let rest = async move {
            let _ = never.changed().await;
            Ok(Vec::new())
        };
        let body = futures_util::stream::iter([most]).chain(futures_util::stream::once(rest));
        client.post_bytes("/tokenize", Body::from_stream(body))
    };
    let five = futures_util::future::join_all((0..5).map(slow));
    let (answers, ()) = tokio::join!(biased; five, async { drop(sender) });
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [400, 400, 400, 400, 429]);
    answers[4].is_error(429).unwrap();
    assert!(answers[4].headers.contains_key("retry-after"));
    // What they held is free again.
    let body = Body::from(" ".repeat(1 << 20));
    assert_eq!(client.post_bytes("/tokenize", body).await.status, 400);
}

#[tokio::test]
async fn long_bodies_and_long_texts() {
    let client = Client::demo(Settings {
        max_tokenize_bytes: 1 << 20,
        max_token_texts: 1000,
        ..Settings::default()
    });
    let text = "Hello ".repeat(100_000);
    let answer = client.post("/tokenize", &json!({"prompt": text})).await;
    assert_eq!(answer.status, 200, "{answer}");
    let tokens = answer.json();
    let back = client.post("/detokenize", &tokens).await;
    assert_eq!(back.json()["prompt"], text);
    for (body, param) in [
        (
            json!({"prompt": text, "return_token_strs": true}),
            "return_token_strs",
        ),
        (json!({"prompt": "x".repeat((1 << 20) + 1)}), "prompt"),
        (json!({"prompt": text, "model": [text]}), "model"),
    ] {
        let answer = client.post("/tokenize", &body).await;
        answer.is_error(400).unwrap();
        assert_eq!(answer.json()["error"]["param"], param);
    }
}

#[tokio::test]
async fn messages_repeat_no_more_than_can_be_read() {
    let client = demo();
    let long = "x".repeat(1 << 20);
    for body in [
        json!({"messages": [{"role": "user", "content": "Hi"}], "n": long}),
        json!({"messages": [{"role": "user", "content": "Hi"}], "model": long}),
    ] {
        let answer = client.post("/v1/chat/completions", &body).await;
        assert!((400..500).contains(&answer.status), "{answer}");
        assert!(answer.text.len() < 3000, "{} bytes", answer.text.len());
    }
}

#[tokio::test]
async fn slow_and_broken_bodies_end() {
    let client = Client::demo(Settings {
        body_timeout: std::time::Duration::from_millis(50),
        ..Settings::default()
    });
    let never = futures_util::stream::pending::<Result<String, std::io::Error>>();
    let answer = client
        .post_bytes("/tokenize", Body::from_stream(never))
        .await;
    answer.is_error(408).unwrap();
    let broken =
        futures_util::stream::iter([Ok("{".to_owned()), Err(std::io::Error::other("gone"))]);
    let answer = client
        .post_bytes("/tokenize", Body::from_stream(broken))
        .await;
    answer.is_error(400).unwrap();
}

#[tokio::test]
async fn web_pages_must_say_json() {
    let client = demo();
    let post = async |kind: Option<&str>, origin: Option<&str>| {
        let mut request = Request::post("/tokenize");
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let body = Body::from("{\"prompt\": \"Hi\"}");
        client.ask(request.body(body).unwrap()).await
    };
    for kind in [
        None,
        Some("text/plain"),
        Some("application/json; charset=utf-8"),
    ] {
        assert_eq!(post(kind, None).await.status, 200, "{kind:?}");
    }
    let page = Some("https://evil.example");
    for kind in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        post(kind, page).await.is_error(415).unwrap();
    }
    assert_eq!(post(Some("Application/JSON"), page).await.status, 200);
    let gzip = Request::post("/tokenize").header("content-encoding", "gzip");
    let gzip = gzip.body(Body::from("{}")).unwrap();
    client.ask(gzip).await.is_error(415).unwrap();
}

#[tokio::test]
async fn unknown_paths_and_methods_have_error_objects() {
    let client = demo();
    for path in [
        "/nothing",
        "/v1",
        "/v1/",
        "/v1/engines",
        "/v1/models/",
        "//",
    ] {
        let answer = client.get(path).await;
        answer
            .is_error(404)
            .unwrap_or_else(|e| panic!("{path}: {e}"));
    }
    for (method, path, allow) in [
        (Method::PUT, "/tokenize", "POST"),
        (Method::GET, "/tokenize", "POST"),
        (Method::POST, "/v1/models", "GET,HEAD"),
        (Method::PATCH, "/health", "GET,HEAD"),
    ] {
        let answer = client.send(method, path).await;
        answer
            .is_error(405)
            .unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(answer.headers["allow"], allow, "{path}");
    }
}

#[tokio::test]
async fn foreign_hosts_are_refused_without_a_key() {
    let client = demo();
    for host in ["localhost", "127.0.0.1:3000", "[::1]:3000"] {
        let answer = with_headers(&client, "/health", &[("host", host)]).await;
        assert_eq!(answer.status, 200, "{host}");
    }
    for host in ["evil.example", "127.0.0.1.nip.io", "192.168.1.5:3000"] {
        let answer = with_headers(&client, "/v1/models", &[("host", host)]).await;
        answer.is_error(403).unwrap();
        assert!(answer.text.contains("--allowed-hosts"), "{answer}");
    }
    let open = Client::demo(Settings {
        allowed_hosts: vec!["gpt.lan".into()],
        ..Settings::default()
    });
    let answer = with_headers(&open, "/v1/models", &[("host", "gpt.lan:3000")]).await;
    assert_eq!(answer.status, 200);
    // A key is better protection than a name.
    let keyed = Client::demo(Settings {
        api_keys: vec!["k".into()],
        ..Settings::default()
    });
    let headers = [("host", "evil.example"), ("authorization", "Bearer k")];
    assert_eq!(
        with_headers(&keyed, "/v1/models", &headers).await.status,
        200
    );
}

#[tokio::test]
async fn keys_open_the_door() {
    let client = Client::demo(Settings {
        api_keys: vec!["sk-one".into(), "sk-two".into()],
        ..Settings::default()
    });
    for (header, allowed) in [
        ("Bearer sk-one", true),
        ("bearer sk-two", true),
        ("Bearer  sk-two", true),
        ("Bearer sk-three", false),
        ("Bearer", false),
        ("Bearer ", false),
        ("Basic sk-one", false),
        ("sk-one", false),
    ] {
        for path in ["/v1/models", "/metrics", "/openapi.json", "/nothing"] {
            let answer = with_headers(&client, path, &[("authorization", header)]).await;
            if allowed {
                assert_ne!(answer.status, 401, "{header} {path}");
            } else {
                answer.is_error(401).unwrap();
                assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
                assert!(answer.headers.contains_key("www-authenticate"));
            }
        }
    }
    client.get("/v1/models").await.is_error(401).unwrap();
    client
        .post("/tokenize", &json!({"prompt": ""}))
        .await
        .is_error(401)
        .unwrap();
    for path in ["/health", "/ready"] {
        assert_eq!(client.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn pages_of_this_machine_may_read_answers() {
    let client = Client::demo(Settings {
        cors_origins: vec!["https://chat.example".into()],
        api_keys: vec!["k".into()],
        ..Settings::default()
    });
    let preflight = async |origin: &str| {
        let request = Request::options("/v1/chat/completions")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,content-type",
            );
        client.ask(request.body(Body::empty()).unwrap()).await
    };
    for origin in [
        "http://localhost:5173",
        "http://127.0.0.1:8080",
        "https://chat.example",
    ] {
        let answer = preflight(origin).await;
        assert_eq!(answer.status, 200, "{answer}");
        assert_eq!(answer.headers["access-control-allow-origin"], origin);
        let headers = answer.headers["access-control-allow-headers"]
            .to_str()
            .unwrap();
        assert!(headers.contains("authorization"), "{headers}");
        // Errors too, or the page could not tell why.
        let answer = with_headers(&client, "/v1/models", &[("origin", origin)]).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.headers["access-control-allow-origin"], origin);
    }
    for origin in [
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
    ] {
        let answer = preflight(origin).await;
        assert!(
            !answer.headers.contains_key("access-control-allow-origin"),
            "{origin}"
        );
    }
}

#[tokio::test]
async fn the_rate_is_limited_for_each_key() {
    let client = Client::demo(Settings {
        api_keys: vec!["a".into(), "b".into()],
        rate_limit: Some(2),
        ..Settings::default()
    });
    let ask = async |key: &str| {
        let key = format!("Bearer {key}");
        with_headers(&client, "/v1/models", &[("authorization", &key)]).await
    };
    for left in ["1", "0"] {
        let answer = ask("a").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["x-ratelimit-limit-requests"], "2");
        assert_eq!(answer.headers["x-ratelimit-remaining-requests"], left);
    }
    let answer = ask("a").await;
    answer.is_error(429).unwrap();
    assert_eq!(answer.json()["error"]["code"], "rate_limit_exceeded");
    let wait: u64 = answer.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    let message = answer.json()["error"]["message"].to_string();
    assert!(message.contains("try again in"), "{message}");
    assert_eq!(ask("b").await.status, 200);
}

#[tokio::test]
async fn every_answer_has_an_id() {
    let client = demo();
    let made = client.get("/health").await;
    let id = made.headers["x-request-id"].to_str().unwrap();
    assert!(id.starts_with("req_") && id.len() > 20, "{id}");
    assert!(made.headers.contains_key("openai-processing-ms"));
    let mine = with_headers(&client, "/nothing", &[("x-request-id", "mine-1")]).await;
    assert_eq!(mine.headers["x-request-id"], "mine-1");
    for bad in ["two words", "", &"x".repeat(129)] {
        let answer = with_headers(&client, "/health", &[("x-request-id", bad)]).await;
        assert_ne!(answer.headers["x-request-id"], bad);
    }
}

#[tokio::test]
async fn metrics_count_under_vllms_names() {
    let client = demo();
    client.get("/nothing").await;
    let text = client.get("/metrics").await.text;
    let line = |name: &str| {
        let found = text.lines().find(|line| line.starts_with(name));
        found
            .unwrap_or_else(|| panic!("no {name} in\n{text}"))
            .to_owned()
    };
    let model = "{model_name=\"gossamer-demo\"}";
    assert_eq!(
        line("vllm:num_requests_running"),
        format!("vllm:num_requests_running{model} 0")
    );
    assert_eq!(
        line("vllm:kv_cache_usage_perc"),
        format!("vllm:kv_cache_usage_perc{model} 0")
    );
    assert!(line("vllm:cache_config_info").contains("block_size=\"32\""));
    assert_eq!(
        line("gossamer_model_loaded"),
        format!("gossamer_model_loaded{model} 1")
    );
    assert!(line("gossamer_http_requests_total").contains("route=\"other\""));
    // No label holds what a client sent.
    assert!(!text.contains("nothing"));
}

#[tokio::test]
async fn the_api_describes_itself() {
    let client = demo();
    let answer = client.get("/openapi.json").await;
    assert_eq!(answer.headers["content-type"], "application/json");
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    for path in [
        "/v1/models",
        "/v1/models/{id}",
        "/tokenize",
        "/detokenize",
        "/health",
        "/ready",
        "/metrics",
    ] {
        assert!(paths.contains_key(path), "{path} of {:?}", paths.keys());
    }
    // Every reference leads somewhere.
    let mut references = Vec::new();
    find_references(&document, &mut references);
    assert!(!references.is_empty());
    for reference in references {
        let pointer = reference.trim_start_matches('#');
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            let responses = &operation["responses"];
            for status in ["400", "401", "404", "429", "500", "503"] {
                assert!(responses[status].is_object(), "{method} {path} {status}");
            }
        }
    }
}

fn find_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                found.push(reference.to_owned());
            }
            map.values().for_each(|value| find_references(value, found));
        }
        Value::Array(values) => values
            .iter()
            .for_each(|value| find_references(value, found)),
        _ => {}
    }
}
