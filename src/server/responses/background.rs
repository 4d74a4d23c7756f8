//! Responses that run on without anybody waiting for them.
//!
//! A task of its own drives the turn; its events are kept, so that a client can read them from any
//! point on, while the response runs and afterwards. How many run at once is bounded, and so is their
//! memory, with that of all stored responses: where nothing else can make room, a response fails and
//! what it has said is forgotten. When the server stops they fail like every other request.

use super::{
    event::{Data, Event},
    item::Item,
    run::Run,
    store::{Store, Stored},
    stream::{ITEM_DONE, Writer},
};
use crate::server::{auth::Caller, error::ApiError};
use axum::http::StatusCode;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};
use tokio::sync::watch;
use tracing::Instrument;

/// Bytes of new events after which the store is told of them.
const GROWTH: usize = 64 << 10;

/// A background response's events, and the way to cancel it.
pub(super) struct Live {
    events: Mutex<Kept>,
    /// How many events there are, and whether there will be more.
    told: watch::Sender<(usize, bool)>,
    cancel: watch::Sender<bool>,
}

/// The events from `sequence_number` `first` on; those before were forgotten.
#[derive(Default)]
struct Kept {
    first: usize,
    events: Vec<Event>,
    /// Roughly how much memory they take.
    bytes: usize,
}

impl Live {
    fn new() -> Live {
        Live {
            events: Mutex::default(),
            told: watch::Sender::new((0, true)),
            cancel: watch::Sender::new(false),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, new: Vec<Event>) {
        let count = {
            let mut kept = self.kept();
            kept.bytes += new.iter().map(Event::bytes).sum::<usize>();
            kept.events.extend(new);
            kept.first + kept.events.len()
        };
        self.told.send_modify(|told| told.0 = count);
    }

    /// Forgets all events; those that follow are `new`.
    fn replace(&self, new: Vec<Event>) {
        let first = new.first().map_or(0, |event| event.sequence as usize);
        *self.kept() = Kept {
            first,
            ..Kept::default()
        };
        self.push(new);
    }

    /// Roughly how much memory the events take, in bytes.
    pub fn bytes(&self) -> usize {
        self.kept().bytes
    }

    /// Whether more events will come.
    pub fn runs(&self) -> bool {
        self.told.borrow().1
    }

    /// Ends the response; its last event still comes.
    pub fn cancel(&self) {
        self.cancel.send_replace(true);
    }

    /// Waits until somebody cancels it.
    async fn cancelled(&self) {
        let mut cancel = self.cancel.subscribe();
        let _ = cancel.wait_for(|&cancel| cancel).await;
    }

    /// Waits until the last event is there.
    pub async fn ended(&self) {
        let mut told = self.told.subscribe();
        let _ = told.wait_for(|&(_, runs)| !runs).await;
    }

    /// Event `index`, or the first after it that was not forgotten, once it is there; none after the
    /// last.
    pub async fn event(&self, index: usize) -> Option<Event> {
        let mut told = self.told.subscribe();
        let _ = told.wait_for(|&(count, runs)| count > index || !runs).await;
        let kept = self.kept();
        kept.events.get(index.saturating_sub(kept.first)).cloned()
    }
}

/// Says that there will be no more events, however the task ends.
struct End(Arc<Live>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.told.send_modify(|told| told.1 = false);
    }
}

/// How many responses run in the background.
#[derive(Default)]
pub(super) struct Running(Arc<AtomicUsize>);

/// A background response's place among those.
pub(super) struct Place(Arc<AtomicUsize>);

impl Running {
    /// A place, if fewer than `most` are taken.
    pub fn enter(&self, most: usize) -> Option<Place> {
        let more = |running| (running < most).then_some(running + 1);
        let taken = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.ok().map(|_| Place(self.0.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Lets a response run in the background, and stores it.
pub(super) fn start(
    store: &Arc<Store>,
    owner: Caller,
    place: Place,
    context: Arc<[Arc<Item>]>,
    mut run: Run,
) -> Arc<Live> {
    let live = Arc::new(Live::new());
    let end = End(live.clone());
    let stored = move |writer: &Writer, live: &Arc<Live>| Stored {
        context: context.clone(),
        response: writer.response().clone(),
        live: Some(live.clone()),
    };
    live.push(run.writer.start());
    store.put(owner, stored(&run.writer, &live));
    let (store, told) = (store.clone(), live.clone());
    let task = async move {
        let mut cancelled = false;
        let mut counted = 0;
        loop {
            let events = tokio::select! {
                events = run.next() => events,
                () = told.cancelled(), if !cancelled => {
                    cancelled = true;
                    run.cancel();
                    continue;
                }
            };
            let Some(events) = events else { break };
            let newer =
                |event: &Event| event.name == ITEM_DONE || matches!(event.data, Data::Response(_));
            if events.iter().any(newer) || told.bytes() >= counted + GROWTH {
                counted = told.bytes();
                // Before the events say so: who reads them may ask at once.
                if !store.update(owner, stored(&run.writer, &told)) {
                    told.replace(run.writer.forget(&no_room()));
                    store.update(owner, stored(&run.writer, &told));
                    break;
                }
            }
            told.push(events);
        }
        drop((run, end, place));
        store.trim();
    };
    // The log knows it by the request that began it.
    tokio::spawn(task.in_current_span());
    live
}

fn no_room() -> ApiError {
    let message = "The responses that run in the background are larger together than what the server \
                   keeps of responses. Ask for this one with 'stream' and without 'background'.";
    ApiError::new(StatusCode::INSUFFICIENT_STORAGE, message).code("storage_full")
}
