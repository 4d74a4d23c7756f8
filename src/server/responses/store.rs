//! Stored responses, bounded by count, bytes and age.
//!
//! What is over the limits makes room: first what is too old, then what was used least recently. A
//! response that still runs in the background stays, and counts; what alone is over the limit is not
//! kept. Each belongs to the API key that made it; to every
//! other key it does not exist. Nothing is written to disk: a restart forgets all of it.

use super::{background::Live, item::Item, object::Response};
use crate::server::{auth::Caller, settings::Settings};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A stored response.
#[derive(Clone)]
pub(super) struct Stored {
    /// What it was made from: the items of all responses before it, and its own input.
    pub context: Arc<[Arc<Item>]>,
    /// As it is now.
    pub response: Response,
    /// Its events, and the way to cancel it, if it runs or ran in the background.
    pub live: Option<Arc<Live>>,
}

impl Stored {
    /// Roughly how much memory it takes, in bytes. Items that it shares with earlier responses count
    /// again: these may be gone while it keeps their items.
    fn bytes(&self) -> usize {
        let items = self.context.iter().chain(&self.response.output);
        let items: usize = items.map(|item| item.bytes()).sum();
        let events = self.live.as_ref().map_or(0, |live| live.bytes());
        items + events + self.response.bytes()
    }

    fn runs(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.runs())
    }

    /// Everything a response that goes on from this one is made from.
    pub fn items(&self) -> impl Iterator<Item = &Arc<Item>> {
        self.context.iter().chain(&self.response.output)
    }
}

struct Entry {
    owner: Caller,
    stored: Stored,
    bytes: usize,
    made: Instant,
    /// When it was last used, in uses of the store.
    used: u64,
}

#[derive(Default)]
struct Table {
    entries: HashMap<String, Entry>,
    /// Ids by when they were last used.
    order: BTreeMap<u64, String>,
    clock: u64,
    bytes: usize,
}

/// The stored responses.
pub struct Store {
    table: Mutex<Table>,
    most: usize,
    most_bytes: usize,
    age: Duration,
}

impl Store {
    /// Within the limits of `settings`.
    pub fn new(settings: &Settings) -> Store {
        Store {
            table: Mutex::default(),
            most: settings.max_stored_responses,
            most_bytes: settings.max_stored_bytes,
            age: settings.stored_age,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a response.
    pub(super) fn put(&self, owner: Caller, stored: Stored) {
        self.keep(&mut self.table(), owner, stored);
    }

    /// Keeps the newer state of a response, unless it was deleted meanwhile. False: those that run are
    /// too large together.
    pub(super) fn update(&self, owner: Caller, stored: Stored) -> bool {
        let mut table = self.table();
        match table.entries.contains_key(&stored.response.id) {
            true => self.keep(&mut table, owner, stored),
            false => true,
        }
    }

    /// Makes room, after a response has ceased to run.
    pub(super) fn trim(&self) {
        self.make_room(&mut self.table());
    }

    fn keep(&self, table: &mut Table, owner: Caller, stored: Stored) -> bool {
        table.clock += 1;
        let used = table.clock;
        let id = stored.response.id.clone();
        let before = table.remove(&id);
        let bytes = stored.bytes();
        if bytes > self.most_bytes && !stored.runs() {
            // It would push all others out, and then itself.
            tracing::warn!(id, bytes, "a response is too large to be kept");
            return true;
        }
        table.bytes += bytes;
        table.order.insert(used, id.clone());
        let made = before.map_or_else(Instant::now, |before| before.made);
        let entry = Entry {
            owner,
            stored,
            bytes,
            made,
            used,
        };
        table.entries.insert(id, entry);
        self.make_room(table);
        table.bytes <= self.most_bytes
    }

    fn make_room(&self, table: &mut Table) {
        let old: Vec<String> = table
            .entries
            .iter()
            .filter(|(_, entry)| entry.made.elapsed() > self.age && !entry.stored.runs())
            .map(|(id, _)| id.clone())
            .collect();
        for id in old {
            table.remove(&id);
        }
        while table.entries.len() > self.most || table.bytes > self.most_bytes {
            let mut ids = table.order.values();
            let idle = ids.find(|id| {
                let entry = table.entries.get(*id);
                entry.is_some_and(|entry| !entry.stored.runs())
            });
            let Some(id) = idle.cloned() else { return };
            table.remove(&id);
        }
    }

    /// A response of `owner`'s.
    pub(super) fn get(&self, owner: Caller, id: &str) -> Option<Stored> {
        let mut table = self.table();
        self.make_room(&mut table);
        table.clock += 1;
        let now = table.clock;
        let entry = table
            .entries
            .get_mut(id)
            .filter(|entry| entry.owner == owner)?;
        let before = std::mem::replace(&mut entry.used, now);
        let stored = entry.stored.clone();
        let id = table.order.remove(&before);
        table.order.extend(id.map(|id| (now, id)));
        Some(stored)
    }

    /// Forgets a response of `owner`'s, and gives it.
    pub(super) fn delete(&self, owner: Caller, id: &str) -> Option<Stored> {
        let mut table = self.table();
        table.entries.get(id).filter(|entry| entry.owner == owner)?;
        table.remove(id).map(|entry| entry.stored)
    }

    /// The items of `owner`'s responses that have these ids.
    pub(super) fn items(&self, owner: Caller, ids: &HashSet<&str>) -> HashMap<String, Arc<Item>> {
        let mut found = HashMap::new();
        let mut table = self.table();
        self.make_room(&mut table);
        for id in table.order.values().rev() {
            let entry = table.entries.get(id).filter(|entry| entry.owner == owner);
            for item in entry.iter().flat_map(|entry| entry.stored.items()) {
                if ids.contains(item.id.as_str()) {
                    found.entry(item.id.clone()).or_insert_with(|| item.clone());
                }
            }
            if found.len() == ids.len() {
                break;
            }
        }
        found
    }
}

impl Table {
    fn remove(&mut self, id: &str) -> Option<Entry> {
        let entry = self.entries.remove(id)?;
        self.order.remove(&entry.used);
        self.bytes -= entry.bytes;
        Some(entry)
    }
}
