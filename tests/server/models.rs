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
        puppet::Puppet,
        support::{Answer, Client},
    };
    use gossamer::{
        engine::FinishReason,
        server::{App, Settings, models::Source, state::Phase},
    };
    use serde_json::json;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    /// Models of these names and bytes.
    struct Several {
        client: Client,
        puppets: Vec<Arc<Puppet>>,
        /// How often each was loaded.
        loads: Vec<Arc<AtomicUsize>>,
    }

    /// `wait`: for room.
    fn several(models: &[(&str, u64)], limit: Option<u64>, wait: Duration) -> Several {
        let (mut sources, mut puppets, mut loads) = (Vec::new(), Vec::new(), Vec::new());
        for &(name, bytes) in models {
            let puppet = Puppet::new();
            let source = puppet.source(name);
            let load = source.load.clone();
            let count = Arc::new(AtomicUsize::new(0));
            let counter = count.clone();
            sources.push(Source {
                bytes,
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
            load_wait: wait,
            ..Settings::default()
        };
        let app = App::new(settings, sources).expect("a server");
        app.life.enter(Phase::Ready);
        Several {
            client: Client::new(app),
            puppets,
            loads,
        }
    }

    /// Longer than anything here waits, unless it hangs.
    const PATIENCE: Duration = Duration::from_secs(60);

    impl Several {
        fn counts(&self) -> Vec<usize> {
            let counts = self.loads.iter().map(|n| n.load(Ordering::SeqCst));
            counts.collect()
        }

        /// Which are in memory.
        async fn loaded(&self) -> Vec<bool> {
            let list = self.client.get("/v1/models").await.json();
            let models = list["data"].as_array().expect("models").clone();
            models.iter().map(|model| model["loaded"] == true).collect()
        }

        async fn answered(&self, index: usize, model: &str) -> Answer {
            answered(&self.client, &self.puppets[index], model).await
        }
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

    #[tokio::test]
    async fn models_are_loaded_when_asked_for_and_the_idle_ones_make_room() {
        let models = [("a", 10), ("b", 10), ("c", 10)];
        let all = several(&models, Some(20), PATIENCE);
        for (i, name, expected) in [
            (0, "a", [1, 0, 0]),
            (1, "b", [1, 1, 0]),
            (0, "a", [1, 1, 0]),
            // No room for three: b was asked for longest ago.
            (2, "c", [1, 1, 1]),
            (0, "a", [1, 1, 1]),
            (1, "b", [1, 2, 1]),
        ] {
            let answer = all.answered(i, name).await;
            assert_eq!(answer.status, 200, "{answer}");
            assert_eq!(answer.json()["model"], name);
            assert_eq!(all.counts(), expected, "after {name}");
        }
        assert_eq!(all.loaded().await, [true, true, false]);
    }

    #[tokio::test]
    async fn nothing_makes_room_in_vain() {
        let models = [("a", 10), ("b", 10), ("c", 20)];
        let all = several(&models, Some(20), Duration::from_millis(20));
        assert_eq!(all.answered(0, "a").await.status, 200);
        let client = all.client.clone();
        let first = tokio::spawn(async move { complete(&client, "b").await });
        let asked = all.puppets[1].next().await;
        asked.admit();
        // Without a there is still no room beside b, which answers: a stays.
        let refused = complete(&all.client, "c").await;
        refused.is_error(503).unwrap();
        assert_eq!(refused.json()["error"]["code"], "model_busy");
        assert!(refused.headers.contains_key("retry-after"));
        assert_eq!(all.loaded().await, [true, true, false]);
        asked.say("fine");
        asked.finish(FinishReason::Stop);
        let answer = first.await.expect("no panic");
        assert_eq!(answer.json()["choices"][0]["text"], "fine", "{answer}");
        assert_eq!(all.answered(2, "c").await.status, 200);
        assert_eq!(all.loaded().await, [false, false, true]);
        assert_eq!(all.counts(), [1, 1, 1]);
    }

    #[tokio::test]
    async fn who_waits_for_room_is_served_first() {
        let all = several(&[("a", 10), ("b", 10)], Some(10), PATIENCE);
        let client = all.client.clone();
        let first = tokio::spawn(async move { complete(&client, "a").await });
        let asked = all.puppets[0].next().await;
        asked.admit();
        // Polled in this order: b waits for room before a is asked for again.
        let (second, third, ()) = tokio::join!(
            biased;
            complete(&all.client, "b"),
            complete(&all.client, "a"),
            async {
                asked.finish(FinishReason::Stop);
                let asked = all.puppets[1].next().await;
                asked.admit();
                asked.finish(FinishReason::Stop);
                let asked = all.puppets[0].next().await;
                asked.admit();
                asked.finish(FinishReason::Stop);
            }
        );
        assert_eq!(first.await.expect("no panic").status, 200);
        assert_eq!(
            (second.status, third.status),
            (200, 200),
            "{second} {third}"
        );
        assert_eq!(all.counts(), [2, 1], "a made room for b in between");
    }

    #[tokio::test]
    async fn preloading_throws_nothing_out() {
        let models = [("a", 10), ("b", 10), ("c", 10)];
        let all = several(&models, Some(20), PATIENCE);
        let models = all.client.app.models.clone();
        let loading = tokio::task::spawn_blocking(move || models.load_all());
        loading.await.expect("no panic").expect("loaded");
        assert_eq!(all.loaded().await, [true, true, false]);
        assert_eq!(all.counts(), [1, 1, 0]);
    }

    #[tokio::test]
    async fn a_model_larger_than_the_limit_runs_alone() {
        let all = several(&[("a", 10), ("b", 30)], Some(20), PATIENCE);
        for (i, name, loaded) in [
            (0, "a", [true, false]),
            (1, "b", [false, true]),
            (0, "a", [true, false]),
        ] {
            assert_eq!(all.answered(i, name).await.status, 200);
            assert_eq!(all.loaded().await, loaded);
        }
    }

    #[tokio::test]
    async fn who_waits_at_the_end_is_told() {
        let (free, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let source = Puppet::new().source("b");
        let load = source.load.clone();
        let slow = Source {
            load: Arc::new(move || {
                let _ = held.lock().expect("no panic").recv();
                load()
            }),
            ..source
        };
        let sources = vec![Puppet::new().source("a"), slow];
        let app = App::new(Settings::default(), sources).expect("a server");
        app.life.enter(Phase::Ready);
        let client = Client::new(app.clone());
        let (answer, ()) = tokio::join!(biased; complete(&client, "b"), async {
            app.life.enter(Phase::Draining);
            app.life.stop_answers();
        });
        answer.is_error(503).unwrap();
        assert_eq!(answer.json()["error"]["code"], "server_shutting_down");
        drop(free);
    }

    #[tokio::test]
    async fn what_is_unloaded_counts_nothing_and_forgets_nothing() {
        let all = several(&[("a", 10), ("b", 10)], Some(10), PATIENCE);
        let metric = async |name: &str| {
            let text = all.client.get("/metrics").await.text;
            let start = format!("{name}{{model_name=\"a\"}} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&start));
            line.unwrap_or_else(|| panic!("no {start}"))
                .parse::<f64>()
                .expect("a number")
        };
        // Counters are there before anything was asked.
        assert_eq!(metric("vllm:prompt_tokens_total").await, 0.0);
        assert_eq!(all.answered(0, "a").await.status, 200);
        *all.puppets[0].stats.lock().expect("no panic") = gossamer::engine::Stats {
            running: 3,
            steps: 7,
            ..Default::default()
        };
        assert_eq!(metric("vllm:num_requests_running").await, 3.0);
        assert_eq!(all.answered(1, "b").await.status, 200);
        for (name, value) in [
            ("gossamer_model_loaded", 0.0),
            ("vllm:num_requests_running", 0.0),
            ("gossamer_engine_steps_total", 7.0),
        ] {
            assert_eq!(metric(name).await, value, "{name}");
        }
        // A new engine counts from 0; the sum goes on.
        assert_eq!(all.answered(0, "a").await.status, 200);
        assert_eq!(metric("gossamer_engine_steps_total").await, 14.0);
    }

    #[tokio::test]
    async fn many_who_ask_at_once_load_it_once() {
        let all = several(&[("a", 10), ("b", 10)], None, PATIENCE);
        let answers = (0..8).map(|_| complete(&all.client, "b"));
        let serving = async {
            for _ in 0..8 {
                let asked = all.puppets[1].next().await;
                asked.admit();
                asked.finish(FinishReason::Stop);
            }
        };
        let (answers, ()) = tokio::join!(futures_util::future::join_all(answers), serving);
        assert!(answers.iter().all(|answer| answer.status == 200));
        assert_eq!(all.counts(), [0, 1]);
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
        for name in ["b", "c"] {
            let answer = complete(&client, name).await;
            answer.is_error(500).unwrap();
            // What is wrong with the server's files is for its log.
            assert!(answer.text.contains(&format!("'{name}'")), "{answer}");
            assert!(!answer.text.contains("blk"), "{answer}");
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
