//! Requests of more choices than the engine has slots: whatever the order in which they end and however
//! full the queue is, all are answered.

use crate::{
    puppet::{Asked, Puppet, tokenizer},
    support::{Answer, Client},
};
use gossamer::{
    engine::{Event, Failure, FinishReason},
    server::{App, Settings},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

const CHAT: &str = "/v1/chat/completions";
const PLAIN: &str = "/v1/completions";

/// A request of six choices; the engine of these tests has four slots.
fn bodies() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let chat = json!({"messages": messages, "n": 6});
    let completions = json!({"prompt": ["a", "b", "c"], "n": 2});
    let mut all = Vec::new();
    for stream in [false, true] {
        for (path, body) in [(CHAT, &chat), (PLAIN, &completions)] {
            let mut body = body.clone();
            body["stream"] = stream.into();
            all.push((path, body));
        }
    }
    all
}

fn server() -> (Arc<Puppet>, Client) {
    let puppet = Puppet::new();
    let app = App::for_engine("puppet", puppet.clone(), tokenizer(), Settings::default());
    (puppet, Client::new(app.expect("a server")))
}

fn busy() -> Event {
    Event::Error(Failure::Busy {
        waiting: 7,
        retry_after: Duration::ZERO,
    })
}

fn answer(asked: &Asked, text: &str) {
    asked.admit();
    asked.say(text);
    asked.finish(FinishReason::Stop);
}

/// The texts of the choices, in their order.
fn texts(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{answer}");
    let parts = match answer.text.starts_with("data: ") {
        true => answer.events(),
        false => vec![answer.json()],
    };
    let mut texts = vec![String::new(); 6];
    for choice in parts.iter().flat_map(|part| part["choices"].as_array()) {
        for choice in choice {
            let index = choice["index"].as_u64().expect("an index") as usize;
            let said = ["/text", "/message/content", "/delta/content"];
            let said = said.iter().filter_map(|at| choice.pointer(at)?.as_str());
            texts[index].extend(said);
        }
    }
    texts
}

#[tokio::test]
async fn choices_that_wait_begin_as_others_end_and_a_full_queue_only_delays_them() {
    for (path, body) in bodies() {
        let (puppet, client) = server();
        let asking = tokio::spawn(async move { client.post(path, &body).await });
        let mut asked = Vec::new();
        for _ in 0..4 {
            asked.push(puppet.next().await);
        }
        // The first one takes longest.
        answer(&asked[3], "three");
        let fifth = puppet.next().await;
        fifth.send(busy());
        let fifth = puppet.next().await;
        fifth.send(busy());
        answer(&puppet.next().await, "four");
        answer(&puppet.next().await, "five");
        for (asked, text) in asked.iter().zip(["zero", "one", "two"]) {
            answer(asked, text);
        }
        let told = asking.await.expect("an answer");
        assert_eq!(
            texts(&told),
            ["zero", "one", "two", "three", "four", "five"]
        );
    }
}

#[tokio::test]
async fn a_queue_that_is_full_from_the_start_is_told() {
    for (path, body) in bodies() {
        let (puppet, client) = server();
        let asking = tokio::spawn(async move { client.post(path, &body).await });
        let mut asked = Vec::new();
        for _ in 0..4 {
            asked.push(puppet.next().await);
        }
        asked[2].send(busy());
        asking.await.expect("an answer").is_error(429).unwrap();
        // Nobody waits for the others.
        for (i, asked) in asked.iter().enumerate() {
            let gone = asked.events.closed();
            let gone = tokio::time::timeout(Duration::from_secs(60), gone).await;
            assert!(i == 2 || gone.is_ok(), "choice {i} goes on");
        }
    }
}

#[tokio::test]
async fn what_fails_after_a_stop_string_takes_nothing_away() {
    for (path, mut body) in bodies() {
        body["n"] = 1.into();
        body["stop"] = "END".into();
        if path == PLAIN {
            body["prompt"] = "a".into();
        }
        let (puppet, client) = server();
        let streamed = body["stream"] == true;
        let asking = tokio::spawn(async move { client.post(path, &body).await });
        let asked = puppet.next().await;
        asked.admit();
        asked.say("All of it. END");
        let failure = Failure::Invalid("the next mask takes too long".to_owned());
        asked.send(Event::Error(failure));
        let told = asking.await.expect("an answer");
        assert_eq!(texts(&told)[0], "All of it. ", "{told}");
        assert!(told.text.contains("\"finish_reason\":\"stop\""), "{told}");
        if !streamed {
            let tokens = asked.request.tokens.len();
            assert_eq!(told.json()["usage"]["prompt_tokens"], tokens);
        }
    }
}
