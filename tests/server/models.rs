//! `/v1/models`, and which names mean which model.

use super::support::Client;
use axum::http::Method;
use gossamer::server::Settings;
use serde_json::json;

#[tokio::test]
async fn models_are_listed_with_their_headers() {
    let client = Client::demo(Settings::default());
    let answer = client.get("/v1/models").await;
    assert_eq!(answer.status, 200, "{answer}");
    let list = answer.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1), "{list}");
    let model = &list["data"][0];
    let file = include_bytes!("../../models/demo/demo.gguf").len();
    for (key, expected) in [
        ("id", json!("gossamer-demo")),
        ("object", json!("model")),
        ("owned_by", json!("gossamer")),
        ("quantization", json!("MXFP4")),
        ("file_size", json!(file)),
        ("tensor_count", json!(117)),
        ("context_length", json!(131_072)),
        ("loaded", json!(true)),
    ] {
        assert_eq!(model[key], expected, "{key} of {model}");
    }
    assert!(model["created"].as_u64() > Some(1_700_000_000), "{model}");
}

#[tokio::test]
async fn one_model_is_found_by_every_name() {
    let client = Client::demo(Settings::default());
    for name in [
        "gossamer-demo",
        "gpt-oss-20b",
        "openai/gpt-oss-20b",
        "openai%2Fgpt-oss-20b",
        "gpt-oss:20b",
        "gpt-oss-120b",
    ] {
        let answer = client.get(&format!("/v1/models/{name}")).await;
        assert_eq!(answer.status, 200, "{name}: {answer}");
        let model = answer.json();
        assert_eq!(model["id"], name.replace("%2F", "/"));
        assert_eq!(model["root"], "gossamer-demo");
    }
}

#[tokio::test]
async fn other_names_are_404_and_hear_what_there_is() {
    let client = Client::demo(Settings::default());
    for name in ["gpt-4o", "gpt-oss", "openai/gossamer-demo", "%20", "a/b/c"] {
        let answer = client.get(&format!("/v1/models/{name}")).await;
        answer.is_error(404).unwrap();
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], "model_not_found");
        assert_eq!(error["param"], "model");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("gossamer-demo"), "{message}");
    }
    let answer = client
        .post("/tokenize", &json!({"model": "gpt-4o", "prompt": "Hello"}))
        .await;
    answer.is_error(404).unwrap();
    let deleted = client
        .send(Method::DELETE, "/v1/models/gossamer-demo")
        .await;
    deleted.is_error(405).unwrap();
    assert_eq!(deleted.headers["allow"], "GET,HEAD");
}
