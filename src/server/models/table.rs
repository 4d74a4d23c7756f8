//! Which models are in memory, who uses them, and which make room for others.
//!
//! Whoever uses a model, or waits until it is loaded, holds a [`Lease`]; only a model without one is
//! taken out of memory. Leases are given out under the table's lock, so what is idle there stays so.
//! Nothing is taken out before it is certain that this makes room enough.

use super::{Loaded, Source};
use crate::{engine::Stats, server::models::LoadFn};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// After a failure to load, until it is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// How many use a model; clones share the count.
#[derive(Clone)]
pub(in crate::server) struct Users {
    count: Arc<AtomicUsize>,
    changed: Arc<Notify>,
}

impl Users {
    /// One more, who may be anybody who has a lease already.
    pub fn enter(&self) -> Lease {
        self.count.fetch_add(1, Ordering::AcqRel);
        Lease(self.clone())
    }
}

/// While it is held, its model stays in memory.
pub(in crate::server) struct Lease(Users);

impl Drop for Lease {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

/// Where a model is.
pub(super) enum State {
    Unloaded,
    Loading,
    Loaded(Arc<Loaded>),
    /// It could not be loaded, then.
    Failed(Instant),
}

/// A model and what became of it.
pub(super) struct Entry {
    pub source: Source,
    pub state: State,
    users: Users,
    /// When it was last asked for, in requests.
    used: u64,
    /// What its engines counted that are gone: preemptions and steps.
    past: (u64, u64),
}

/// All models.
pub(super) struct Table {
    pub entries: Vec<Entry>,
    /// Bytes that the loaded ones may take together.
    limit: u64,
    clock: u64,
}

/// The place of a request in front of its model.
pub(super) struct Begun {
    /// Keeps the model.
    pub lease: Lease,
    /// To be done by the caller; `None`: it is done, or somebody else does it.
    pub load: Option<Load>,
}

/// How to bring a model into memory.
pub(super) struct Load {
    /// Give their memory back before the new one's is taken.
    pub out: Vec<Arc<Loaded>>,
    /// What loads it.
    pub load: LoadFn,
}

impl Table {
    /// None of `sources` is loaded; `changed` hears of every model that becomes idle.
    pub fn new(sources: Vec<Source>, limit: Option<u64>, changed: &Arc<Notify>) -> Table {
        let entry = |source| Entry {
            source,
            state: State::Unloaded,
            users: Users {
                count: Arc::default(),
                changed: changed.clone(),
            },
            used: 0,
            past: (0, 0),
        };
        Table {
            entries: sources.into_iter().map(entry).collect(),
            limit: limit.unwrap_or(u64::MAX),
            clock: 0,
        }
    }

    /// A place in front of model `index`, whatever its state; `None` while there is no room for it.
    /// With `evict`, idle models make room.
    pub fn begin(&mut self, index: usize, evict: bool) -> Option<Begun> {
        self.clock += 1;
        let clock = self.clock;
        let entry = &mut self.entries[index];
        entry.used = clock;
        let starts = match entry.state {
            State::Unloaded => true,
            State::Failed(at) => at.elapsed() >= RETRY,
            State::Loading | State::Loaded(_) => false,
        };
        let load = match starts {
            false => None,
            true => {
                let out = self.make_room(self.entries[index].source.bytes, evict)?;
                let entry = &mut self.entries[index];
                entry.state = State::Loading;
                let load = entry.source.load.clone();
                Some(Load { out, load })
            }
        };
        let lease = self.entries[index].users.enter();
        Some(Begun { lease, load })
    }

    /// Takes idle models out, those first that were asked for longest ago, until there is room.
    fn make_room(&mut self, needed: u64, evict: bool) -> Option<Vec<Arc<Loaded>>> {
        let limit = self.limit;
        // A model larger than the limit still runs, alone.
        let fits = |taken: u64| taken == 0 || taken.saturating_add(needed) <= limit;
        if !fits(self.bytes(|entry| !(evict && entry.is_idle()))) {
            return None;
        }
        let mut out = Vec::new();
        while !fits(self.bytes(|_| true)) {
            let idle = self.entries.iter_mut().filter(|entry| entry.is_idle());
            out.extend(idle.min_by_key(|entry| entry.used)?.take_out());
        }
        Some(out)
    }

    /// Bytes of the models in memory, or on their way there, that `counts` says yes to.
    fn bytes(&self, counts: impl Fn(&Entry) -> bool) -> u64 {
        let here = |entry: &&Entry| matches!(entry.state, State::Loaded(_) | State::Loading);
        let here = self.entries.iter().filter(here).filter(|e| counts(e));
        here.map(|e| e.source.bytes).fold(0, u64::saturating_add)
    }
}

impl Entry {
    fn is_idle(&self) -> bool {
        matches!(self.state, State::Loaded(_)) && self.users.count.load(Ordering::Acquire) == 0
    }

    fn take_out(&mut self) -> Option<Arc<Loaded>> {
        let Stats {
            preemptions, steps, ..
        } = self.stats();
        self.past = (preemptions, steps);
        match std::mem::replace(&mut self.state, State::Unloaded) {
            State::Loaded(loaded) => Some(loaded),
            _ => None,
        }
    }

    /// Who uses it.
    pub fn users(&self) -> Users {
        self.users.clone()
    }

    /// The model, if it is in memory.
    pub fn loaded(&self) -> Option<&Arc<Loaded>> {
        match &self.state {
            State::Loaded(loaded) => Some(loaded),
            _ => None,
        }
    }

    /// Its engine's gauges, and counters since the program's start, unloaded times included.
    pub fn stats(&self) -> Stats {
        let mut stats = self.loaded().map(|l| l.engine.stats()).unwrap_or_default();
        stats.preemptions += self.past.0;
        stats.steps += self.past.1;
        stats
    }
}
