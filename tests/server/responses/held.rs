//! Streams of a model that takes its time: kept alive, and ended when nobody reads them.

use super::*;
use axum::{body::Body, http};
use futures_util::StreamExt;
use gossamer::engine::EventSender;
use std::{sync::Mutex, time::Duration};
use tower::ServiceExt;

/// An engine that says what the test says, when the test says it.
struct Held {
    info: ModelInfo,
    senders: Mutex<Vec<EventSender>>,
}

impl Engine for Held {
    fn submit(&self, request: Request) -> Events {
        let (sender, events) = Events::channel();
        let total = request.tokens.len();
        for event in [
            Event::Queued,
            Event::Prefill {
                done: 0,
                total,
                cached: 0,
                miss: None,
            },
        ] {
            sender.send(event).expect("a listener");
        }
        self.senders.lock().expect("a lock").push(sender);
        events
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}

/// A stream's frames as they come, each one event.
async fn frames(app: &Arc<App>) -> impl futures_util::Stream<Item = Value> + use<> {
    let body = json!({"input": "?", "stream": true}).to_string();
    let request = http::Request::post("/v1/responses")
        .header("host", "localhost")
        .body(Body::from(body));
    let router = gossamer::server::router(app.clone());
    let response = router.oneshot(request.expect("a request")).await;
    let frames = response.expect("an answer").into_body().into_data_stream();
    frames.map(|frame| {
        let frame = String::from_utf8(frame.expect("a frame").to_vec()).expect("UTF-8");
        let (name, data) = frame.split_once("\ndata: ").expect("one event");
        let data: Value = serde_json::from_str(data.trim_end()).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        assert!(frame.ends_with("\n\n") && frame.trim_end().lines().count() == 2);
        data
    })
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_and_a_dropped_one_is_cancelled() {
    let (config, tokenizer) = scripted::demo();
    let held = Arc::new(Held {
        info: ModelInfo {
            name: config.name.clone(),
            backend: "held".into(),
            vocab: config.vocab,
            context: config.context,
            slots: 1,
            deterministic: true,
        },
        senders: Mutex::default(),
    });
    let settings = Settings {
        keep_alive: Duration::from_millis(5),
        ..Settings::default()
    };
    let app = App::for_engine("held", held.clone(), tokenizer.clone(), settings).expect("a server");
    let mut first = frames(&app).await;
    let mut events = Vec::new();
    while events.len() < 5 {
        events.push(first.next().await.expect("an event"));
    }
    let types: Vec<&Value> = events.iter().map(|event| &event["type"]).collect();
    let mut expected = vec!["response.in_progress"; 5];
    expected[0] = "response.created";
    assert_eq!(types, expected);
    let sender = held
        .senders
        .lock()
        .expect("a lock")
        .pop()
        .expect("a request");
    for id in scripted::marked(&tokenizer, "<|channel|>final<|message|>Hi<|return|>") {
        let top = Vec::new();
        let event = Event::Token {
            id,
            logprob: None,
            top,
        };
        sender.send(event).expect("a listener");
    }
    let (reason, usage) = (FinishReason::Stop, Usage::default());
    sender
        .send(Event::Finish { reason, usage })
        .expect("a listener");
    while let Some(event) = first.next().await {
        events.push(event);
    }
    let last = check(&events);
    assert_eq!(text_of(&last["output"][0]), "Hi");

    let mut second = frames(&app).await;
    second.next().await.expect("an event");
    let sender = held
        .senders
        .lock()
        .expect("a lock")
        .pop()
        .expect("a request");
    drop(second);
    // Who hears nobody gives the turn up.
    tokio::time::timeout(Duration::from_secs(60), sender.closed())
        .await
        .expect("the turn is cancelled");
}
