//! The choices of one request: as many at once as the engine has slots, the others as those end.
//!
//! The queue is for other requests: a request of many choices takes no more of it than it can run. So
//! it fits whatever the queue's length. Where the queue is full when a later choice is due, that one
//! waits: what the request has computed by then is never thrown away.

use super::{error::ApiError, sse::SseEvent};
use axum::http::StatusCode;
use futures_util::{
    FutureExt, Stream, StreamExt,
    future::try_join_all,
    stream::{self, BoxStream},
};
use std::{sync::Arc, time::Duration};

/// Least time before a choice is submitted again.
const PAUSE: Duration = Duration::from_millis(100);

/// One choice, submitted to the engine. Dropping it cancels it.
pub trait Choice: Send + 'static {
    /// What comes of it.
    type Step: Send + 'static;

    /// The next step; `None` after the last.
    fn next(&mut self) -> impl Future<Output = Option<Self::Step>> + Send;

    /// Waits until it is admitted. Cancel-safe. What fails is also its last step.
    ///
    /// # Errors
    /// What kept it from being admitted.
    fn admitted(&mut self) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// The choices of a request, of which the first ones are submitted.
pub struct Choices<C> {
    first: Vec<C>,
    count: usize,
    at_once: usize,
    submit: Arc<dyn Fn(usize) -> C + Send + Sync>,
}

impl<C: Choice> Choices<C> {
    /// Submits the first of `count` choices by their index, `at_once` of them.
    pub fn start(
        count: usize,
        at_once: usize,
        submit: impl Fn(usize) -> C + Send + Sync + 'static,
    ) -> Choices<C> {
        let at_once = at_once.clamp(1, count.max(1));
        Choices {
            first: (0..at_once.min(count)).map(&submit).collect(),
            count,
            at_once,
            submit: Arc::new(submit),
        }
    }

    /// Waits until the first ones are admitted, but not for long: what fails by then can become the
    /// HTTP status, and a long wait must not look like a failure.
    ///
    /// # Errors
    /// What kept one of them from being admitted.
    pub async fn admitted(&mut self, patience: Duration) -> Result<(), ApiError> {
        let admitted = try_join_all(self.first.iter_mut().map(C::admitted));
        match tokio::time::timeout(patience, admitted).await {
            Ok(admitted) => admitted.map(drop),
            Err(_) => Ok(()),
        }
    }

    /// The steps of all, each with its choice's index, as they come. Dropping it cancels them.
    pub fn steps(self) -> BoxStream<'static, (usize, C::Step)> {
        let rest = (self.first.len()..self.count).map(|_| None);
        let choices = self.first.into_iter().map(Some).chain(rest).enumerate();
        let submit = self.submit;
        let steps = move |(index, begun): (usize, Option<C>)| {
            let submit = submit.clone();
            let begun = async move {
                match begun {
                    Some(choice) => choice,
                    None => patiently(|| submit(index)).await,
                }
            };
            let steps = begun.map(|choice| {
                stream::unfold(choice, |mut choice| async move {
                    let step = choice.next().await?;
                    Some((step, choice))
                })
            });
            steps
                .flatten_stream()
                .map(move |step| (index, step))
                .boxed()
        };
        stream::iter(choices)
            .flat_map_unordered(self.at_once, steps)
            .boxed()
    }
}

/// Writes the steps of choices as the events of one response.
pub trait Writer: Send + 'static {
    /// What comes of a choice.
    type Step: Send + 'static;

    /// Appends the events of a step of the choice `index`.
    ///
    /// # Errors
    /// What takes the place of the rest.
    fn step(
        &mut self,
        index: usize,
        step: Self::Step,
        out: &mut Vec<SseEvent>,
    ) -> Result<(), ApiError>;

    /// Appends what comes after the last step.
    fn end(&mut self, out: &mut Vec<SseEvent>);
}

/// The events that `writer` makes of `steps`, and `[DONE]`. Dropping it drops the steps.
pub fn events<W: Writer>(
    writer: W,
    steps: BoxStream<'static, (usize, W::Step)>,
) -> impl Stream<Item = SseEvent> + Send {
    let events = stream::unfold(Some((writer, steps)), |under_way| async move {
        let (mut writer, mut steps) = under_way?;
        let mut out = Vec::new();
        match steps.next().await {
            Some((index, step)) => match writer.step(index, step, &mut out) {
                Ok(()) => return Some((stream::iter(out), Some((writer, steps)))),
                Err(error) => out.push(SseEvent::error(&error)),
            },
            None => writer.end(&mut out),
        }
        out.push(SseEvent::Done);
        Some((stream::iter(out), None))
    });
    events.flatten()
}

/// A choice that is admitted, or failed for another reason than a full queue.
async fn patiently<C: Choice>(submit: impl Fn() -> C) -> C {
    loop {
        let mut choice = submit();
        match choice.admitted().await {
            Err(full) if full.status == StatusCode::TOO_MANY_REQUESTS => {
                let wait = full.retry_after.unwrap_or_default();
                tokio::time::sleep(wait.max(PAUSE)).await;
            }
            _ => return choice,
        }
    }
}
