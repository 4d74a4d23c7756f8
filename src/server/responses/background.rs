//! Responses that run on without anybody waiting for them.
//!
//! A task of its own drives the turn; its events are kept, so that a client can read them from any
//! point on, while the response runs and afterwards. How many run at once is bounded; when the server
//! stops they fail like every other request, with that as their last event.

use super::{
    item::Item,
    store::{Store, Stored},
    stream::{Event, ITEM_DONE, Writer},
};
use crate::server::{auth::Caller, sse::SseEvent, turn::TurnStream};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};
use tokio::sync::watch;

/// A background response's events, and the way to cancel it.
pub(super) struct Live {
    /// Event `sequence_number` stands at that index.
    events: Mutex<Vec<Arc<SseEvent>>>,
    bytes: AtomicUsize,
    /// How many events there are, and whether there will be more.
    told: watch::Sender<(usize, bool)>,
    cancel: watch::Sender<bool>,
}

impl Live {
    fn new() -> Live {
        Live {
            events: Mutex::default(),
            bytes: AtomicUsize::new(0),
            told: watch::Sender::new((0, true)),
            cancel: watch::Sender::new(false),
        }
    }

    fn events(&self) -> MutexGuard<'_, Vec<Arc<SseEvent>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, new: Vec<Event>) {
        let count = {
            let mut events = self.events();
            for event in new {
                let event = event.sse();
                if let SseEvent::Named { data, .. } = &event {
                    self.bytes.fetch_add(data.len() + 128, Ordering::Relaxed);
                }
                events.push(Arc::new(event));
            }
            events.len()
        };
        self.told.send_modify(|told| told.0 = count);
    }

    /// Roughly how much memory the events take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
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

    /// Event `index`, once it is there; none after the last.
    pub async fn event(&self, index: usize) -> Option<SseEvent> {
        let mut told = self.told.subscribe();
        let _ = told.wait_for(|&(count, runs)| count > index || !runs).await;
        self.events().get(index).map(|event| SseEvent::clone(event))
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
    mut writer: Writer,
    mut turn: TurnStream,
) -> Arc<Live> {
    let live = Arc::new(Live::new());
    let end = End(live.clone());
    let stored = move |writer: &Writer, live: &Arc<Live>| Stored {
        context: context.clone(),
        response: writer.response().clone(),
        live: Some(live.clone()),
    };
    live.push(writer.start());
    store.put(owner, stored(&writer, &live));
    let (store, told) = (store.clone(), live.clone());
    tokio::spawn(async move {
        let mut cancelled = false;
        loop {
            let event = tokio::select! {
                event = turn.next() => event,
                () = told.cancelled(), if !cancelled => {
                    cancelled = true;
                    turn.cancel();
                    continue;
                }
            };
            let Some(event) = event else { break };
            let before = writer.response().state;
            let events = writer.push(event);
            let item = events.iter().any(|event| event.name == ITEM_DONE);
            if item || writer.response().state != before {
                // Before the events say so: who reads them may ask at once.
                store.update(owner, stored(&writer, &told));
            }
            told.push(events);
        }
        drop((end, place));
        // The events are part of what the store counts.
        store.update(owner, stored(&writer, &told));
    });
    live
}
