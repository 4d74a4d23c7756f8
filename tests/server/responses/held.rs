//! Streams of a model that takes its time: kept alive, and ended when nobody reads them.

use super::*;
use axum::{body::Body, http};
use futures_util::StreamExt;
use gossamer::engine::EventSender;
use std::{sync::Mutex, time::Duration};
use tower::ServiceExt;

/// An engine that says what the test says, when the test says it. Until then it reads the prompt: piece
/// by piece, which is progress, but nothing that a client is told of.
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

impl Held {
    /// A server of it that keeps streams alive.
    fn app() -> (Arc<Held>, Arc<Tokenizer>, Arc<App>) {
        let (info, tokenizer) = info();
        let held = Arc::new(Held {
            info,
            senders: Mutex::default(),
        });
        let settings = Settings {
            keep_alive: Duration::from_millis(5),
            ..Settings::default()
        };
        let app = App::for_engine("held", held.clone(), tokenizer.clone(), settings);
        (held, tokenizer, app.expect("a server"))
    }

    /// Reads on while somebody listens.
    async fn read(&self) {
        loop {
            if let Some(sender) = self.senders.lock().expect("a lock").last() {
                let _ = sender.send(Event::Prefill {
                    done: 1,
                    total: 1000,
                    cached: 0,
                    miss: None,
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn sender(&self) -> EventSender {
        let sender = self.senders.lock().expect("a lock").pop();
        sender.expect("a request")
    }

    /// Answers the last request.
    fn answer(&self, tokenizer: &Tokenizer) {
        let sender = self.sender();
        for id in scripted::marked(tokenizer, "<|channel|>final<|message|>Hi<|return|>") {
            let top = Vec::new();
            let event = Event::Token {
                id,
                logprob: None,
                top,
            };
            sender.send(event).expect("a listener");
        }
        let (reason, usage) = (FinishReason::Stop, Usage::default());
        let end = Event::Finish { reason, usage };
        sender.send(end).expect("a listener");
    }
}

/// The frames of the stream that answers `request` as they come, each one event.
async fn frames(
    app: &Arc<App>,
    request: http::request::Builder,
    body: Value,
) -> impl futures_util::Stream<Item = Value> + use<> {
    let request = request.header("host", "localhost");
    let request = request.body(Body::from(body.to_string()));
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

/// The first five events of a stream, then those up to its end, for which the answer comes.
async fn five_and_the_rest(
    stream: impl futures_util::Stream<Item = Value>,
    held: &Held,
    tokenizer: &Tokenizer,
) -> Vec<Value> {
    let mut stream = std::pin::pin!(stream);
    let patience = Duration::from_secs(60);
    let whole = async {
        let mut events = Vec::new();
        while events.len() < 5 {
            events.push(stream.next().await.expect("an event"));
        }
        held.answer(tokenizer);
        events.extend(stream.collect::<Vec<Value>>().await);
        events
    };
    tokio::select! {
        () = held.read() => Vec::new(),
        events = tokio::time::timeout(patience, whole) => events.expect("kept alive"),
    }
}

fn types(events: &[Value]) -> Vec<&str> {
    let types = events.iter().map(|event| event["type"].as_str());
    types.map(|kind| kind.expect("a type")).collect()
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_and_a_dropped_one_is_cancelled() {
    let (held, tokenizer, app) = Held::app();
    let post = || http::Request::post("/v1/responses");
    let body = json!({"input": "?", "stream": true});
    let stream = frames(&app, post(), body.clone()).await;
    let events = five_and_the_rest(stream, &held, &tokenizer).await;
    let mut expected = ["response.in_progress"; 5];
    expected[0] = "response.created";
    assert_eq!(types(&events[..5]), expected);
    let last = check_kept_alive(&events, true);
    assert_eq!(text_of(&last["output"][0]), "Hi");

    let mut second = Box::pin(frames(&app, post(), body).await);
    second.next().await.expect("an event");
    let sender = held.sender();
    drop(second);
    // Who hears nobody gives the turn up.
    tokio::time::timeout(Duration::from_secs(60), sender.closed())
        .await
        .expect("the turn is cancelled");
}

#[tokio::test]
async fn a_silent_background_response_tells_its_readers_that_it_runs() {
    let (held, tokenizer, app) = Held::app();
    let client = Client::new(app.clone());
    let first = respond(&client, json!({"input": "?", "background": true})).await;
    let path = format!("/v1/responses/{}", first["id"].as_str().expect("an id"));
    let reading = http::Request::get(format!("{path}?stream=true"));
    let stream = frames(&app, reading, Value::Null).await;
    let events = five_and_the_rest(stream, &held, &tokenizer).await;
    assert_eq!(
        types(&events[..5]),
        [
            "response.created",
            "response.queued",
            "response.in_progress",
            "response.in_progress",
            "response.in_progress"
        ]
    );
    let last = check_kept_alive(&events, true);
    assert_eq!(last["status"], "completed");
    // They are numbered like all others: who comes again goes on where it was.
    let rest = client
        .get(&format!("{path}?stream=true&starting_after=3"))
        .await;
    assert_eq!(named_events(&rest), events[4..]);
}
