//! Answers that come before the request was read.
//!
//! A wrong key or a body that is too large is answered at once, while the client still writes. Were
//! the connection closed on what it writes, the client would see a broken connection in place of the
//! answer, and try again. So the rest is read and forgotten first, within bounds.

use super::state::App;
use axum::{
    body::{Body, BodyDataStream, Bytes, HttpBody},
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::Response,
};
use futures_util::{Stream, StreamExt};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

/// How long a client may go on writing what nobody reads.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request's body, also within reach of whoever answers without reading it.
#[derive(Clone)]
struct Shared(Arc<Mutex<Inner>>);

struct Inner {
    body: BodyDataStream,
    /// Somebody began to read it: a client that asked for leave to send it was given that.
    begun: bool,
    /// Its end was reached, or it broke off.
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream for Shared {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut inner = self.lock();
        inner.begun = true;
        let polled = Pin::new(&mut inner.body).poll_next(task);
        inner.ended |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }
}

/// Reads what the answer left unread.
pub(super) async fn finish(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let asks = request.headers().contains_key(header::EXPECT);
    let (parts, body) = request.into_parts();
    let rest = Shared(Arc::new(Mutex::new(Inner {
        body: body.into_data_stream(),
        begun: false,
        ended: false,
    })));
    let request = Request::from_parts(parts, Body::from_stream(rest.clone()));
    let response = next.run(request).await;
    let Inner { begun, ended, .. } = *rest.lock();
    // Whoever asks before it sends has sent nothing; who was too slow once will be again.
    let waits = asks && !begun || response.status() == StatusCode::REQUEST_TIMEOUT;
    if !waits && !ended {
        let most = app.settings.max_body_bytes.saturating_mul(2);
        let _ = tokio::time::timeout(PATIENCE, forget(rest, most)).await;
    }
    response
}

/// Reads to the end, but not much more than `most` bytes.
async fn forget(mut rest: Shared, most: usize) {
    let mut read = 0;
    while read <= most {
        match rest.next().await {
            Some(Ok(bytes)) => read += bytes.len(),
            _ => return,
        }
    }
}
