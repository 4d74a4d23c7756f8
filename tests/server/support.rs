//! A client of the router, without a socket.

use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, Method, Request},
};
use gossamer::server::{App, Settings, router};
use serde_json::Value;
use std::{fmt, sync::Arc, time::Duration};
use tower::ServiceExt;

/// No answer of these tests takes this long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks a server in this process.
#[derive(Clone)]
pub struct Client {
    /// The server's state.
    pub app: Arc<App>,
    router: axum::Router,
}

/// What came back, complete.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Client {
    pub fn new(app: Arc<App>) -> Client {
        let router = router(app.clone());
        Client { app, router }
    }

    /// Of a server of the demo model.
    pub fn demo(settings: Settings) -> Client {
        Client::new(App::demo(settings).expect("the demo model"))
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string()).await
    }

    /// A body that may be anything.
    pub async fn post_bytes(&self, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::post(path).header("content-type", "application/json");
        let request = request.body(body.into()).expect("a request");
        self.ask(request).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path).await
    }

    /// A request without a body.
    pub async fn send(&self, method: Method, path: &str) -> Answer {
        let request = Request::builder().method(method).uri(path);
        self.ask(request.body(Body::empty()).expect("a request"))
            .await
    }

    /// Any request; to `localhost` if it names no host.
    pub async fn ask(&self, mut request: Request<Body>) -> Answer {
        if !request.headers().contains_key("host") {
            let host = "localhost:3000".parse().expect("a host");
            request.headers_mut().insert("host", host);
        }
        let what = format!("{} {}", request.method(), request.uri());
        let answer = async {
            let response = self.router.clone().oneshot(request).await;
            let response = response.expect("a router never fails");
            let (parts, body) = response.into_parts();
            let bytes = to_bytes(body, usize::MAX).await.expect("a body");
            Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                text: String::from_utf8(bytes.into()).expect("UTF-8"),
            }
        };
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer,
            Err(_) => panic!("{what}: no answer after {PATIENCE:?}"),
        }
    }
}

impl Answer {
    /// The body; null if it is no JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// A stream's events: each must be JSON, but for `[DONE]`, which is left out.
    pub fn events(&self) -> Vec<Value> {
        let data = self
            .text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "));
        let events = data.filter(|data| *data != "[DONE]");
        events
            .map(|data| serde_json::from_str(data).unwrap_or_else(|e| panic!("{e} in {data}")))
            .collect()
    }

    /// Whether this is OpenAI's error object with `status`; else what is wrong.
    pub fn is_error(&self, status: u16) -> Result<(), String> {
        let error = &self.json()["error"];
        let is_text = |key: &str| error[key].as_str().is_some_and(|text| !text.is_empty());
        let is_text_or_null = |key: &str| error[key].is_null() || is_text(key);
        let has_all = ["message", "type", "param", "code"]
            .iter()
            .all(|key| error.get(key).is_some());
        if self.status != status {
            Err(format!("expected {status}, found {self}"))
        } else if !has_all || !is_text("message") || !is_text("type") {
            Err(format!("expected OpenAI's error object, found {self}"))
        } else if !is_text_or_null("param") || !is_text_or_null("code") {
            Err(format!("param and code are text or null: {self}"))
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = self.text.chars().take(600).collect();
        write!(f, "{} {text}", self.status)
    }
}
