//! Responses that run on by themselves.

use super::*;
use axum::{
    body::{Body, to_bytes},
    http::{self, Method},
};
use std::sync::{Condvar, Mutex};
use tower::ServiceExt;

/// Holds the model back until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().expect("a lock") = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let open = self.0.0.lock().expect("a lock");
        drop(self.0.1.wait_while(open, |open| !*open).expect("a lock"));
    }
}

const ANSWER: &str = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final\
                      <|message|>Hello.<|return|>";

/// A model that answers when the gate is open.
fn gated(settings: Settings, answer: &'static str) -> (Client, Gate) {
    let gate = Gate::default();
    let held = gate.clone();
    let client = client_with(settings, move |_| {
        held.pass();
        answer.to_owned()
    });
    (client, gate)
}

fn path(response: &Value) -> String {
    format!("/v1/responses/{}", response["id"].as_str().expect("an id"))
}

#[tokio::test]
async fn it_is_queued_then_runs_and_can_be_read_from_any_event_on() {
    let (client, gate) = gated(Settings::default(), ANSWER);
    let body = json!({"input": "?", "background": true});
    let first = respond(&client, body).await;
    assert_eq!(
        (&first["status"], &first["background"]),
        (&json!("queued"), &json!(true))
    );
    let status = client.get(&path(&first)).await.json()["status"].clone();
    assert!(status == "queued" || status == "in_progress", "{status}");
    // A response that is not complete has no continuation.
    let next = json!({"input": "?", "previous_response_id": first["id"]});
    create(&client, next)
        .await
        .is_error(400)
        .expect("not complete");
    // Somebody reads along from the start.
    let reader = tokio::spawn({
        let (client, path) = (client.clone(), path(&first));
        async move { named_events(&client.get(&format!("{path}?stream=true")).await) }
    });
    gate.open();
    let events = reader.await.expect("a reader");
    let last = check(&events);
    assert_eq!(last["status"], "completed");
    assert_eq!(client.get(&path(&first)).await.json(), last);
    for after in [0, 3, events.len() - 2, events.len() - 1, events.len() + 5] {
        let query = format!("{}?stream=true&starting_after={after}", path(&first));
        let rest = named_events(&client.get(&query).await);
        assert_eq!(
            rest,
            events.get(after + 1..).unwrap_or_default(),
            "after {after}"
        );
    }
    let next = json!({"input": "?", "previous_response_id": first["id"]});
    respond(&client, next).await;
    // Cancelling what is complete changes nothing.
    let again = client
        .send(Method::POST, &format!("{}/cancel", path(&first)))
        .await;
    assert_eq!(again.json(), last);
}

#[tokio::test]
async fn it_streams_from_its_start() {
    let client = says(ANSWER);
    let events = stream(&client, json!({"input": "?", "background": true})).await;
    assert_eq!(events[1]["type"], "response.queued");
    assert_eq!(events[2]["type"], "response.in_progress");
    let last = check(&events);
    assert_eq!(client.get(&path(&last)).await.json(), last);
}

#[tokio::test]
async fn it_can_be_cancelled() {
    let words = format!("<|channel|>final<|message|>{}", "word ".repeat(20_000));
    let (client, gate) = gated(Settings::default(), Box::leak(words.into_boxed_str()));
    let first = respond(&client, json!({"input": "?", "background": true})).await;
    gate.open();
    let cancelled = client
        .send(Method::POST, &format!("{}/cancel", path(&first)))
        .await
        .json();
    assert_complete(&cancelled);
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(client.get(&path(&first)).await.json(), cancelled);
    let events = named_events(&client.get(&format!("{}?stream=true", path(&first))).await);
    assert_eq!(check(&events), cancelled);
    // Once more is no error.
    let again = client
        .send(Method::POST, &format!("{}/cancel", path(&first)))
        .await
        .json();
    assert_eq!(again, cancelled);
}

#[tokio::test]
async fn deleting_it_ends_it_and_places_are_bounded() {
    let settings = Settings {
        max_background: 1,
        ..Settings::default()
    };
    let (client, gate) = gated(settings, ANSWER);
    let body = json!({"input": "?", "background": true});
    let first = respond(&client, body.clone()).await;
    let busy = create(&client, body.clone()).await;
    busy.is_error(429).expect("one place");
    assert!(busy.headers.contains_key("retry-after"));
    // Whoever has begun to read sees it end; it is not stored again.
    let request = http::Request::get(format!("{}?stream=true", path(&first)))
        .header("host", "localhost")
        .body(Body::empty());
    let router = gossamer::server::router(client.app.clone());
    let reading = router.oneshot(request.expect("a request")).await;
    let reading = reading.expect("a stream").into_body();
    let deleted = client.send(Method::DELETE, &path(&first)).await;
    assert_eq!(deleted.json()["deleted"], true);
    gate.open();
    let text = to_bytes(reading, usize::MAX).await.expect("a body");
    let text = String::from_utf8(text.into()).expect("UTF-8");
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = data.map(|data| serde_json::from_str(data).expect("JSON"));
    let last = check(&events.collect::<Vec<Value>>());
    let status = last["status"].as_str().expect("a status");
    // The model may have been through before it heard of it.
    assert!(["cancelled", "completed"].contains(&status), "{status}");
    client
        .get(&path(&first))
        .await
        .is_error(404)
        .expect("deleted");
    let again = async {
        loop {
            let answer = create(&client, body.clone()).await;
            match answer.status {
                // The place is given back with the last event; the task may be a step behind.
                429 => tokio::task::yield_now().await,
                _ => break assert_eq!(answer.status, 200, "{answer}"),
            }
        }
    };
    let patience = std::time::Duration::from_secs(60);
    let again = tokio::time::timeout(patience, again).await;
    again.expect("the place is given back");
}

#[tokio::test]
async fn it_fails_with_the_server_and_needs_to_be_stored() {
    let (client, gate) = gated(Settings::default(), ANSWER);
    let first = respond(&client, json!({"input": "?", "background": true})).await;
    client.app.life.stop_answers();
    let events = named_events(&client.get(&format!("{}?stream=true", path(&first))).await);
    let last = check(&events);
    assert_eq!(last["status"], "failed");
    assert_eq!(last["error"]["code"], "server_shutting_down");
    gate.open();
    let refused = create(
        &client,
        json!({"input": "?", "background": true, "store": false}),
    )
    .await;
    refused.is_error(400).expect("nothing to find it by");
    assert_eq!(refused.json()["error"]["param"], "background");
}

#[tokio::test]
async fn what_grows_too_large_fails_and_stays_readable() {
    let settings = Settings {
        max_stored_bytes: 100_000,
        ..Settings::default()
    };
    let client = any_turn_with(settings, |prompt| {
        let words = match prompt.contains("long") {
            true => "word ".repeat(30_000),
            false => "Hello.".to_owned(),
        };
        format!("<|channel|>final<|message|>{words}<|return|>")
    });
    let body = |text: &str| json!({"input": text, "background": true});
    let events = stream(&client, body("long")).await;
    let last = &events.last().expect("events")["response"];
    assert_eq!(last["status"], "failed", "{last:.300}");
    assert_eq!(last["error"]["code"], "storage_full");
    assert_eq!(client.get(&path(last)).await.json(), *last);
    let whole = named_events(&client.get(&format!("{}?stream=true", path(last))).await);
    assert_eq!(whole, events[events.len() - 1..]);
    // Its place and its room are free again.
    let short = check(&stream(&client, body("short")).await);
    assert_eq!(short["status"], "completed");
    assert_eq!(client.get(&path(&short)).await.json(), short);
    // Without the background it needs no such room; it is not kept, and pushes nobody out.
    let long = respond(&client, json!({"input": "long"})).await;
    assert_eq!(long["status"], "completed");
    client.get(&path(&long)).await.is_error(404).expect("large");
    assert_eq!(client.get(&path(&short)).await.json(), short);
}

/// A log that fails where a turn ends without an answer.
struct Trap;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Trap {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let at = event.metadata();
        assert!(
            *at.level() != tracing::Level::INFO || at.target() != "gossamer::server::turn",
            "on purpose"
        );
    }
}

#[tokio::test]
async fn a_panic_on_the_way_is_a_failed_response() {
    use tracing_subscriber::layer::SubscriberExt;
    let _trap = tracing::subscriber::set_default(tracing_subscriber::registry().with(Trap));
    let client = any_turn(|_| "<|channel|>analysis<|message|>Hm.<|return|>".to_owned());
    for background in [false, true] {
        let events = stream(&client, json!({"input": "?", "background": background})).await;
        let last = check(&events);
        assert_eq!(last["status"], "failed");
        assert_eq!(last["error"]["code"], "internal_error");
        assert_eq!(client.get(&path(&last)).await.json(), last);
        let next = json!({"input": "?", "previous_response_id": last["id"]});
        let answer = create(&client, next).await;
        answer.is_error(400).expect("nothing can go on from it");
        assert_eq!(answer.json()["error"]["param"], "previous_response_id");
    }
}
