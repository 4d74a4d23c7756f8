//! Server-sent events: each one a single body frame, so that no reader sees half of one.
//!
//! The events' stream is owned by the response's body. A client that goes away drops the body, which
//! drops the stream, which cancels whatever the stream owned.

use super::{error::ApiError, log};
use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures_util::{FutureExt, Stream, StreamExt};
use serde_json::json;
use std::{convert::Infallible, panic::AssertUnwindSafe, time::Duration};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SseEvent {
    /// `data:`, JSON without a line break.
    Data(String),
    /// `event:` and `data:`.
    Named {
        /// The event's type.
        event: &'static str,
        /// JSON without a line break.
        data: String,
    },
    /// `data: [DONE]`, the end of a chat or completions stream.
    Done,
    /// A comment, which clients skip.
    Comment(&'static str),
}

impl SseEvent {
    /// An event of `value` as JSON.
    pub fn json(value: &impl serde::Serialize) -> SseEvent {
        SseEvent::Data(to_json(value))
    }

    /// A named event of `value` as JSON.
    pub fn named(event: &'static str, value: &impl serde::Serialize) -> SseEvent {
        let data = to_json(value);
        SseEvent::Named { event, data }
    }

    /// What went wrong in the middle of a stream: `data: {"error": …}`.
    pub fn error(error: &ApiError) -> SseEvent {
        SseEvent::Data(error.body().to_string())
    }

    /// The bytes that go out, blank line included.
    pub fn frame(&self) -> Bytes {
        let text = match self {
            SseEvent::Data(data) => format!("data: {data}\n\n"),
            SseEvent::Named { event, data } => format!("event: {event}\ndata: {data}\n\n"),
            SseEvent::Done => "data: [DONE]\n\n".to_owned(),
            SseEvent::Comment(text) => format!(": {text}\n\n"),
        };
        Bytes::from(text)
    }
}

fn to_json(value: &impl serde::Serialize) -> String {
    // Our own wire types have string keys only, so this can't fail; if one ever did, the client
    // would be told.
    serde_json::to_string(value).unwrap_or_else(|error| {
        tracing::error!(%error, "an event can't be written as JSON");
        ApiError::internal("An event can't be written as JSON.")
            .body()
            .to_string()
    })
}

/// The response that sends `events`, as chat and completions do. After `keep_alive` of silence a
/// comment goes out; with `None` the stream sees to that itself.
///
/// A panic in the stream becomes an error event, and the last one.
pub fn stream(
    events: impl Stream<Item = SseEvent> + Send + 'static,
    keep_alive: Option<Duration>,
) -> Response {
    send(events, keep_alive, |error| {
        vec![SseEvent::error(error), SseEvent::Done]
    })
}

/// The same for events that have names, as those of responses.
pub fn named_stream(
    events: impl Stream<Item = SseEvent> + Send + 'static,
    keep_alive: Option<Duration>,
) -> Response {
    send(events, keep_alive, |error| {
        let ApiError { code, message, .. } = error;
        let value = json!({"type": "error", "code": code, "message": message, "param": null});
        vec![SseEvent::named("error", &value)]
    })
}

/// What is sent after a panic.
type Last = fn(&ApiError) -> Vec<SseEvent>;

fn send(
    events: impl Stream<Item = SseEvent> + Send + 'static,
    keep_alive: Option<Duration>,
    last: Last,
) -> Response {
    let frames = frames(events, keep_alive, last).map(Ok::<_, Infallible>);
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // Asks nginx not to collect events before it passes them on.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn frames(
    events: impl Stream<Item = SseEvent> + Send + 'static,
    keep_alive: Option<Duration>,
    last: Last,
) -> impl Stream<Item = Bytes> + Send + 'static {
    enum State<S> {
        Going(S),
        Panicked(std::vec::IntoIter<SseEvent>),
    }
    let state = State::Going(Box::pin(events));
    futures_util::stream::unfold(state, move |state| async move {
        let mut events = match state {
            State::Going(events) => events,
            State::Panicked(mut rest) => {
                return Some((rest.next()?.frame(), State::Panicked(rest)));
            }
        };
        let next = AssertUnwindSafe(events.next()).catch_unwind();
        let next = match keep_alive {
            None => next.await,
            Some(silence) => match tokio::time::timeout(silence, next).await {
                Ok(next) => next,
                Err(_) => {
                    let ping = SseEvent::Comment("ping").frame();
                    return Some((ping, State::Going(events)));
                }
            },
        };
        match next {
            Ok(event) => Some((event?.frame(), State::Going(events))),
            Err(panic) => {
                let mut rest = last(&log::panicked_here(&*panic)).into_iter();
                Some((rest.next()?.frame(), State::Panicked(rest)))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::HttpBody as _;
    use futures_util::stream;

    async fn next_frame(body: &mut Body) -> Option<String> {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx));
        let data = frame.await?.expect("a frame").into_data().expect("data");
        Some(String::from_utf8(data.to_vec()).expect("UTF-8"))
    }

    async fn frames_of(response: Response) -> Vec<String> {
        let mut body = response.into_body();
        let mut frames = Vec::new();
        while let Some(frame) = next_frame(&mut body).await {
            frames.push(frame);
        }
        frames
    }

    #[tokio::test]
    async fn each_event_is_one_frame() {
        let named = SseEvent::named("response.created", &serde_json::json!({"a": "x\ny"}));
        let data = SseEvent::json(&serde_json::json!([1]));
        let events = stream::iter([named, data, SseEvent::Done]);
        let frames = frames_of(super::stream(events, None)).await;
        assert_eq!(
            frames,
            [
                "event: response.created\ndata: {\"a\":\"x\\ny\"}\n\n",
                "data: [1]\n\n",
                "data: [DONE]\n\n"
            ]
        );
    }

    #[tokio::test]
    async fn silence_is_filled_and_nothing_is_lost_by_it() {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let events = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
        let silence = Some(Duration::from_millis(1));
        let mut body = super::stream(events, silence).into_body();
        let mut seen = Vec::new();
        // The n-th event is sent after the n-th comment, so each comes after a silence.
        for n in 0..3 {
            loop {
                let frame = next_frame(&mut body).await.expect("a frame");
                let silent = frame == ": ping\n\n";
                if silent && seen.len() == n {
                    let _ = sender.send(SseEvent::Data(n.to_string()));
                }
                if !silent {
                    seen.push(frame);
                    break;
                }
            }
        }
        assert_eq!(seen[2], "data: 2\n\n");
    }

    #[tokio::test]
    async fn a_panic_ends_a_stream_in_its_own_form() {
        let events = || {
            stream::iter(0..3).map(|n| match n {
                1 => panic!("on purpose"),
                n => SseEvent::Data(n.to_string()),
            })
        };
        let frames = frames_of(super::stream(events(), None)).await;
        assert_eq!(frames.len(), 3, "{frames:?}");
        assert!(frames[1].contains("\"internal_error\""), "{frames:?}");
        assert_eq!(frames[2], "data: [DONE]\n\n");
        let frames = frames_of(super::named_stream(events(), None)).await;
        assert_eq!(frames.len(), 2, "{frames:?}");
        assert!(
            frames[1].starts_with("event: error\ndata: {\"type\":\"error\""),
            "{frames:?}"
        );
    }
}
