//! One line a request, with an id that the client gets too. Never a body, never a key.
//!
//! The line is written when the answer is complete, or given up: for a stream that is long after the
//! handler returned.

use super::{error::ApiError, id, memory::Hold, metrics::Metrics, state::App};
use crate::engine::Event;
use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode},
    middleware::Next,
    response::Response,
};
use futures_util::StreamExt;
use std::{
    any::Any,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tracing::{Instrument as _, Span};

tokio::task_local! {
    /// Of the request that this task answers.
    static CURRENT: Figures;
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING: HeaderName = HeaderName::from_static("openai-processing-ms");

/// What is known of a request, from wherever it is answered; clones share it.
#[derive(Clone)]
pub(super) struct Figures {
    sums: Arc<Mutex<Sums>>,
    metrics: Metrics,
}

/// What its log line tells of the model's work; filled in by the [gate](super::gate).
struct Sums {
    started: Instant,
    model: Option<String>,
    prompt: usize,
    cached: usize,
    completion: usize,
    first_token: Option<Duration>,
    /// Of the memory for requests that are being read.
    held: Option<Hold>,
}

/// Those of the request that this task answers.
pub(super) fn current() -> Option<Figures> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Keeps `hold` until the request is in the engine's queue, or answered.
pub(super) fn hold(hold: Hold) {
    if let Some(figures) = current() {
        figures.with(|sums| sums.held = Some(hold));
    }
}

impl Figures {
    /// Starts counting now.
    fn new(metrics: Metrics) -> Figures {
        let sums = Arc::new(Mutex::new(Sums {
            started: Instant::now(),
            model: None,
            prompt: 0,
            cached: 0,
            completion: 0,
            first_token: None,
            held: None,
        }));
        Figures { sums, metrics }
    }

    /// Gives back the memory that the request held while it was read.
    pub fn release(&self) {
        self.with(|sums| sums.held = None);
    }

    /// Which model answers.
    pub fn model(&self, name: &str) {
        self.with(|sums| sums.model = Some(name.to_owned()));
    }

    /// Takes note of an event.
    pub fn note(&self, event: &Event) {
        self.with(|sums| match event {
            Event::Prefill {
                done,
                total,
                cached,
                ..
            } if done == cached => {
                sums.prompt += total;
                sums.cached += cached;
            }
            Event::Token { .. } => {
                sums.completion += 1;
                let started = sums.started;
                sums.first_token.get_or_insert_with(|| started.elapsed());
            }
            _ => {}
        });
    }

    fn with<T>(&self, read: impl FnOnce(&mut Sums) -> T) -> T {
        read(&mut self.sums.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Writes the line when dropped.
struct Line {
    id: String,
    method: Method,
    path: String,
    status: StatusCode,
    figures: Figures,
    /// The answer went out to its end.
    complete: bool,
}

impl Line {
    /// All of the answer is on its way.
    fn finish(mut self) {
        self.complete = true;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.figures.metrics.in_flight().decrement(1.0);
        self.figures.with(|sums| {
            let ms = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
            // What asks again and again whether all is well is not worth a line each time.
            let often = matches!(self.path.as_str(), "/health" | "/ready" | "/metrics");
            macro_rules! line {
                ($level:ident) => {
                    tracing::$level!(
                        target: "gossamer::request",
                        id = self.id,
                        method = %self.method,
                        path = self.path,
                        status = self.status.as_u16(),
                        model = sums.model,
                        prompt = sums.model.is_some().then_some(sums.prompt),
                        cached = sums.model.is_some().then_some(sums.cached),
                        completion = sums.model.is_some().then_some(sums.completion),
                        ttft_ms = sums.first_token.map(ms),
                        total_ms = ms(sums.started.elapsed()),
                        disconnected = (!self.complete).then_some(true),
                    )
                };
            }
            if often && self.status.is_success() {
                line!(debug);
            } else {
                line!(info);
            }
        });
    }
}

/// Gives the request its id, times and counts it, and logs it at its end.
pub(super) async fn observe(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request.headers().get(REQUEST_ID).filter(|id| is_usable(id));
    let id = id.and_then(|id| id.to_str().ok()).map(str::to_owned);
    let id = id.unwrap_or_else(|| id::fresh("req_"));
    if let Ok(value) = HeaderValue::from_str(&id) {
        request.headers_mut().insert(REQUEST_ID, value);
    }
    // At the level of errors: whatever is logged, it is known whose it is.
    let span = tracing::error_span!("request", id);
    let figures = Figures::new(app.metrics.clone());
    app.metrics.in_flight().increment(1.0);
    let mut line = Line {
        method: request.method().clone(),
        // Without what stands behind `?`, and no longer than a log can bear.
        path: request.uri().path().chars().take(200).collect(),
        status: StatusCode::OK,
        figures: figures.clone(),
        complete: false,
        id,
    };
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("other", MatchedPath::as_str).to_owned();
    let answering = next.run(request).instrument(span.clone());
    let mut response = CURRENT.scope(figures.clone(), answering).await;
    figures.release();
    line.status = response.status();
    let method = method_name(&line.method);
    app.metrics
        .http_request(method, &route, line.status.as_u16());
    let milliseconds = figures.with(|sums| sums.started.elapsed().as_millis() as u64);
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&line.id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(PROCESSING, HeaderValue::from(milliseconds));
    if response.body().size_hint().exact().is_some() {
        // All of it is there.
        line.finish();
        return response;
    }
    response.map(|body| Body::from_stream(Logged { body, line, span }.frames()))
}

/// A body that is still being made, and the line to write at its end.
struct Logged {
    body: Body,
    line: Line,
    span: Span,
}

impl Logged {
    fn frames(
        self,
    ) -> impl futures_util::Stream<Item = Result<axum::body::Bytes, axum::Error>> + Send {
        let Logged { body, line, span } = self;
        let frames = body.into_data_stream();
        futures_util::stream::unfold((frames, line), move |(mut frames, line)| {
            // The body is made while it is sent: what happens then belongs to the request too.
            let (figures, span) = (line.figures.clone(), span.clone());
            async move {
                let next = frames.next().instrument(span);
                match CURRENT.scope(figures, next).await {
                    Some(frame) => Some((frame, (frames, line))),
                    None => {
                        line.finish();
                        None
                    }
                }
            }
        })
    }
}

/// A client's id is repeated only if it can do no harm in a header or a log.
fn is_usable(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=128).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

/// Of a bounded set: it becomes a label.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::HEAD => "HEAD",
        _ => "other",
    }
}

/// Logs and counts a panic; what the client is told.
pub(super) fn panicked(metrics: &Metrics, panic: &(dyn Any + Send)) -> ApiError {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!("answering panicked: {}", text.unwrap_or("no message"));
    metrics.panicked();
    ApiError::internal("The server failed while it was answering.")
}

/// The same, in the request that this task answers.
pub(super) fn panicked_here(panic: &(dyn Any + Send)) -> ApiError {
    let metrics = current().map_or_else(Metrics::new, |figures| figures.metrics);
    panicked(&metrics, panic)
}
