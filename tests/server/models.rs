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

mod several {
    use super::super::{
        puppet::{Asked, Puppet},
        support::{Answer, Client},
    };
    use gossamer::{
        engine::FinishReason,
        server::{App, Settings, models::Source, state::Phase},
    };
    use serde_json::json;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    /// Models of 10 bytes each, and how often each was loaded.
    fn several(
        names: &[&str],
        limit: Option<u64>,
    ) -> (Client, Vec<Arc<Puppet>>, Vec<Arc<AtomicUsize>>) {
        let (mut sources, mut puppets, mut loads) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            let puppet = Puppet::new();
            let source = puppet.source(name);
            let load = source.load.clone();
            let count = Arc::new(AtomicUsize::new(0));
            let counter = count.clone();
            sources.push(Source {
                bytes: 10,
                load: Arc::new(move || {
                    counter.fetch_add(1, Ordering::SeqCst);
                    load()
                }),
                ..source
            });
            puppets.push(puppet);
            loads.push(count);
        }
        let settings = Settings {
            model_memory: limit,
            ..Settings::default()
        };
        let app = App::new(settings, sources).expect("a server");
        app.life.enter(Phase::Ready);
        (Client::new(app), puppets, loads)
    }

    async fn answered(client: &Client, puppet: &Puppet, model: &str) -> Answer {
        let (answer, ()) = tokio::join!(complete(client, model), async {
            let asked = puppet.next().await;
            asked.admit();
            asked.finish(FinishReason::Stop);
        });
        answer
    }

    async fn complete(client: &Client, model: &str) -> Answer {
        let body = json!({"model": model, "prompt": "Hello"});
        client.post("/v1/completions", &body).await
    }

    fn counts(loads: &[Arc<AtomicUsize>]) -> Vec<usize> {
        loads.iter().map(|n| n.load(Ordering::SeqCst)).collect()
    }

    #[tokio::test]
    async fn models_are_loaded_when_asked_for_and_the_idle_ones_make_room() {
        let (client, puppets, loads) = several(&["a", "b", "c"], Some(20));
        for (i, name, expected) in [
            (0, "a", [1, 0, 0]),
            (1, "b", [1, 1, 0]),
            (0, "a", [1, 1, 0]),
            // No room for three: b was asked for longest ago.
            (2, "c", [1, 1, 1]),
            (0, "a", [1, 1, 1]),
            (1, "b", [1, 2, 1]),
        ] {
            let answer = answered(&client, &puppets[i], name).await;
            assert_eq!(answer.status, 200, "{answer}");
            assert_eq!(answer.json()["model"], name);
            assert_eq!(counts(&loads), expected, "after {name}");
        }
        let list = client.get("/v1/models").await.json();
        let loaded: Vec<_> = (0..3).map(|i| list["data"][i]["loaded"].clone()).collect();
        assert_eq!(loaded, [json!(true), json!(true), json!(false)]);
    }

    #[tokio::test]
    async fn a_model_that_answers_is_never_unloaded() {
        let (client, puppets, loads) = several(&["a", "b"], Some(10));
        let asking = client.clone();
        let first = tokio::spawn(async move { complete(&asking, "a").await });
        let asked: Asked = puppets[0].next().await;
        asked.admit();
        // No room beside it; it goes on undisturbed.
        let refused = complete(&client, "b").await;
        refused.is_error(503).unwrap();
        assert!(refused.headers.contains_key("retry-after"));
        asked.say("fine");
        asked.finish(FinishReason::Stop);
        let answer = first.await.expect("no panic");
        assert_eq!(answer.json()["choices"][0]["text"], "fine", "{answer}");
        assert_eq!(answered(&client, &puppets[1], "b").await.status, 200);
        assert_eq!(counts(&loads), [1, 1]);
    }

    #[tokio::test]
    async fn many_who_ask_at_once_load_it_once() {
        let (client, puppets, loads) = several(&["a", "b"], None);
        let answers = (0..8).map(|_| complete(&client, "b"));
        let serving = async {
            for _ in 0..8 {
                let asked = puppets[1].next().await;
                asked.admit();
                asked.finish(FinishReason::Stop);
            }
        };
        let (answers, ()) = tokio::join!(futures_util::future::join_all(answers), serving);
        assert!(answers.iter().all(|answer| answer.status == 200));
        assert_eq!(counts(&loads), [0, 1]);
    }

    #[tokio::test]
    async fn a_model_that_cannot_be_loaded_breaks_nothing_else() {
        let puppet = Puppet::new();
        let broken = |name: &str, panics: bool| Source {
            load: Arc::new(move || match panics {
                true => panic!("on purpose"),
                false => anyhow::bail!("tensor blk.0: 7 bytes, expected 8"),
            }),
            ..Puppet::new().source(name)
        };
        let sources = vec![puppet.source("a"), broken("b", false), broken("c", true)];
        let app = App::new(Settings::default(), sources).expect("a server");
        app.life.enter(Phase::Ready);
        let client = Client::new(app);
        for (name, says) in [("b", "tensor blk.0"), ("c", "panicked")] {
            let answer = complete(&client, name).await;
            answer.is_error(500).unwrap();
            assert!(answer.text.contains(says), "{answer}");
        }
        assert_eq!(answered(&client, &puppet, "a").await.status, 200);
    }

    #[tokio::test]
    async fn while_it_loads_the_server_says_so() {
        let app = App::new(Settings::default(), vec![Puppet::new().source("a")]).expect("a server");
        let client = Client::new(app.clone());
        for (phase, says) in [(Phase::Starting, "starting"), (Phase::Loading, "loading")] {
            app.life.enter(phase);
            let answer = client.get("/ready").await;
            assert_eq!(
                (answer.status, &answer.json()["status"]),
                (503, &json!(says))
            );
            assert_eq!(client.get("/health").await.status, 200);
            assert_eq!(client.get("/v1/models").await.status, 200);
            let answer = complete(&client, "a").await;
            answer.is_error(503).unwrap();
            assert!(answer.headers.contains_key("retry-after"));
        }
        app.life.enter(Phase::Ready);
        assert_eq!(client.get("/ready").await.status, 200);
    }

    #[test]
    fn names_are_unique() {
        let puppet = Puppet::new();
        let two = vec![puppet.source("a"), puppet.source("a")];
        let error = App::new(Settings::default(), two).map(drop).unwrap_err();
        assert!(error.to_string().contains("'a'"), "{error}");
        assert!(App::new(Settings::default(), Vec::new()).is_err());
    }
}
