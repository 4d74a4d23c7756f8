//! Masks are computed beside the forward pass, by a thread or two of their own.
//!
//! A constraint travels to such a thread with the token that came last, and comes back with the next
//! mask. One that is slow or panics holds up its own request; the others wait a tenth of a forward
//! pass for it at most.

use crate::{
    engine::{Cancel, Failure},
    sampler::{Mask, MaskSource},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Threads. The first takes any mask; the others only those that were quick the last time, so that
/// slow schemas, however many, leave them to the rest.
const THREADS: usize = 2;
/// A mask that takes longer is a slow one.
const SLOW: Duration = Duration::from_millis(5);

/// A request's constraint, and where it is.
pub struct Constraint {
    /// Here, or with a thread.
    source: Option<Box<dyn MaskSource>>,
    /// The token that it has not been told of.
    last: Option<u32>,
    /// What may come next, once that is known.
    mask: Option<Result<Mask, Failure>>,
    /// What its last mask took.
    cost: Duration,
}

impl Constraint {
    pub fn new(source: Box<dyn MaskSource>) -> Constraint {
        Constraint {
            source: Some(source),
            last: None,
            mask: None,
            cost: Duration::ZERO,
        }
    }

    /// Notes the token that came.
    pub fn take(&mut self, id: u32) {
        self.last = Some(id);
        self.mask = None;
    }

    /// The next mask or what went wrong with it; `None` while it is being computed.
    pub fn mask(&self) -> Option<&Result<Mask, Failure>> {
        self.mask.as_ref()
    }

    /// Takes the answer of a thread.
    pub fn put(&mut self, done: Done) {
        self.source = done.source;
        self.mask = Some(done.mask);
        self.cost = done.cost;
    }
}

/// One mask to compute.
struct Task {
    id: u64,
    source: Box<dyn MaskSource>,
    last: Option<u32>,
    /// What the request's last mask took.
    cost: Duration,
    /// When it would be there, had a thread taken it at once.
    due: Instant,
    cancel: Cancel,
}

/// A mask, and the constraint back.
pub struct Done {
    /// The request.
    pub id: u64,
    source: Option<Box<dyn MaskSource>>,
    mask: Result<Mask, Failure>,
    cost: Duration,
}

/// Tasks that no thread has taken yet.
#[derive(Default)]
struct Queue {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
struct Pending {
    tasks: Vec<Task>,
    /// No more come.
    over: bool,
}

impl Queue {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending());
        self.changed.notify_all();
    }

    /// The next task, once there is one; of the quick ones only, if `quick`. A quick one passes a
    /// slow one that came before, but not for ever. `None` at the end.
    fn next(&self, quick: bool) -> Option<Task> {
        let mut pending = self.pending();
        while !pending.over {
            // Their requests end without.
            pending.tasks.retain(|task| !task.cancel.is_cancelled());
            let mine = pending.tasks.iter().enumerate();
            let mine = mine.filter(|(_, task)| !quick || task.cost <= SLOW);
            match mine.min_by_key(|(_, task)| task.due) {
                Some((at, _)) => return Some(pending.tasks.swap_remove(at)),
                None => {
                    let changed = self.changed.wait(pending);
                    pending = changed.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        None
    }
}

/// Where finished masks go.
type Deliver = dyn Fn(Done) -> bool + Send + Sync;

/// The threads, started when first needed.
pub struct Masks {
    queue: Option<Arc<Queue>>,
    deliver: Arc<Deliver>,
}

impl Masks {
    /// Finished masks go to `deliver`, which says whether more are wanted.
    pub fn new(deliver: impl Fn(Done) -> bool + Send + Sync + 'static) -> Masks {
        Masks {
            queue: None,
            deliver: Arc::new(deliver),
        }
    }

    /// Begins to compute the next mask of request `id`, unless that is known or under way. It is not
    /// computed once `cancel` is set.
    pub fn begin(&mut self, id: u64, constraint: &mut Constraint, cancel: &Cancel) {
        if constraint.mask.is_some() {
            return;
        }
        let Some(source) = constraint.source.take() else {
            return;
        };
        let task = Task {
            id,
            source,
            last: constraint.last.take(),
            cost: constraint.cost,
            due: Instant::now() + constraint.cost,
            cancel: cancel.clone(),
        };
        match self.queue() {
            Some(queue) => queue.change(|pending| pending.tasks.push(task)),
            // No threads to be had: compute it here.
            None => constraint.put(task.run()),
        }
    }

    fn queue(&mut self) -> Option<&Queue> {
        if self.queue.is_none() {
            let queue = Arc::new(Queue::default());
            let mut started = 0;
            for n in 0..THREADS {
                let (queue, deliver, quick) = (queue.clone(), self.deliver.clone(), started > 0);
                let thread = std::thread::Builder::new().name(format!("masks-{n}"));
                let work = move || {
                    while let Some(task) = queue.next(quick) {
                        if !deliver(task.run()) {
                            return;
                        }
                    }
                };
                started += usize::from(thread.spawn(work).is_ok());
            }
            self.queue = (started > 0).then_some(queue);
        }
        self.queue.as_deref()
    }
}

impl Drop for Masks {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.change(|pending| pending.over = true);
        }
    }
}

impl Task {
    fn run(self) -> Done {
        let Task {
            id,
            mut source,
            last,
            ..
        } = self;
        let started = Instant::now();
        let next = catch_unwind(AssertUnwindSafe(|| {
            let accepted = last.map_or(Ok(()), |last| source.accept(last));
            accepted.and_then(|()| source.mask())
        }));
        let cost = started.elapsed();
        match next {
            Ok(mask) => Done {
                id,
                cost,
                source: Some(source),
                // It would fail so every time: the request asks for what can't be enforced.
                mask: mask.map_err(Failure::Invalid),
            },
            Err(panic) => Done {
                id,
                cost,
                source: None,
                mask: Err(Failure::Broken(format!(
                    "the constraint panicked: {}",
                    super::words(&*panic)
                ))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Says that its mask was begun, and waits until it may be done.
    struct Gated(u64, mpsc::Sender<u64>, mpsc::Receiver<()>);

    impl MaskSource for Gated {
        fn mask(&mut self) -> Result<Mask, String> {
            let _ = self.1.send(self.0);
            let _ = self.2.recv();
            Ok(Mask::Any)
        }

        fn accept(&mut self, _: u32) -> Result<(), String> {
            Ok(())
        }
    }

    #[test]
    fn slow_masks_leave_a_thread_to_quick_ones() {
        let (inbox, finished) = mpsc::channel();
        let (begun, began) = mpsc::channel();
        let mut masks = Masks::new(move |done| inbox.send(done).is_ok());
        let mut gates = Vec::new();
        let mut begin = |id, cost, cancel: &Cancel| {
            let (permit, gate) = mpsc::channel();
            let mut constraint = Constraint::new(Box::new(Gated(id, begun.clone(), gate)));
            constraint.cost = cost;
            masks.begin(id, &mut constraint, cancel);
            gates.push(Some(permit));
        };
        let (slow, cancel) = (Duration::from_secs(1), Cancel::default());
        let patience = Duration::from_secs(60);
        let next = || began.recv_timeout(patience);
        let done = || match finished.recv_timeout(patience) {
            Ok(done) => done.id,
            Err(_) => panic!("no mask"),
        };
        // Four of one slow schema, the third of them given up meanwhile; then a quick one.
        begin(0, slow, &Cancel::default());
        assert_eq!(next(), Ok(0));
        begin(1, 2 * slow, &Cancel::default());
        begin(2, slow, &cancel);
        begin(3, slow, &Cancel::default());
        cancel.cancel();
        begin(4, Duration::ZERO, &Cancel::default());
        assert_eq!(next(), Ok(4));
        gates[4] = None;
        assert_eq!(done(), 4);
        // The less slow one first, and nothing of what was given up.
        gates[0] = None;
        assert_eq!((done(), next()), (0, Ok(3)));
        gates[3] = None;
        assert_eq!((done(), next()), (3, Ok(1)));
        gates[1] = None;
        assert_eq!(done(), 1);
    }
}
