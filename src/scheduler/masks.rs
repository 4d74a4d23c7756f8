//! Masks are computed beside the forward pass, by a thread or two of their own.
//!
//! A constraint travels to such a thread with the token that came last, and comes back with the next
//! mask. One that is slow or panics holds up nobody but its own request.

use super::Message;
use crate::{
    engine::Failure,
    sampler::{Mask, MaskSource},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
};

/// Threads; one slow schema leaves the other one for the rest.
const THREADS: usize = 2;

/// A request's constraint, and where it is.
pub struct Constraint {
    /// Here, or with a thread.
    source: Option<Box<dyn MaskSource>>,
    /// The token that it has not been told of.
    last: Option<u32>,
    /// What may come next, once that is known.
    mask: Option<Result<Mask, Failure>>,
}

impl Constraint {
    pub fn new(source: Box<dyn MaskSource>) -> Constraint {
        Constraint {
            source: Some(source),
            last: None,
            mask: None,
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
    }
}

/// One mask to compute.
struct Task {
    id: u64,
    source: Box<dyn MaskSource>,
    last: Option<u32>,
}

/// A mask, and the constraint back.
pub struct Done {
    /// The request.
    pub id: u64,
    source: Option<Box<dyn MaskSource>>,
    mask: Result<Mask, Failure>,
}

/// The threads, started when first needed.
pub struct Masks {
    tasks: Option<mpsc::Sender<Task>>,
    inbox: mpsc::Sender<Message>,
}

impl Masks {
    /// Finished masks go to `inbox`.
    pub fn new(inbox: mpsc::Sender<Message>) -> Masks {
        Masks { tasks: None, inbox }
    }

    /// Begins to compute the next mask of request `id`, unless that is known or under way.
    pub fn begin(&mut self, id: u64, constraint: &mut Constraint) {
        if constraint.mask.is_some() {
            return;
        }
        let Some(source) = constraint.source.take() else {
            return;
        };
        let last = constraint.last.take();
        let task = Task { id, source, last };
        let unsent = match self.tasks() {
            Some(tasks) => tasks.send(task).err().map(|error| error.0),
            None => Some(task),
        };
        // No threads to be had: compute it here.
        if let Some(task) = unsent {
            constraint.put(task.run());
        }
    }

    fn tasks(&mut self) -> Option<&mpsc::Sender<Task>> {
        if self.tasks.is_none() {
            let (sender, receiver) = mpsc::channel::<Task>();
            let receiver = Arc::new(Mutex::new(receiver));
            let mut started = 0;
            for n in 0..THREADS {
                let (receiver, inbox) = (receiver.clone(), self.inbox.clone());
                let thread = std::thread::Builder::new().name(format!("masks-{n}"));
                let work = move || {
                    loop {
                        let task = receiver
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .recv();
                        let Ok(task) = task else { return };
                        if inbox.send(Message::Mask(task.run())).is_err() {
                            return;
                        }
                    }
                };
                started += usize::from(thread.spawn(work).is_ok());
            }
            self.tasks = (started > 0).then_some(sender);
        }
        self.tasks.as_ref()
    }
}

impl Task {
    fn run(self) -> Done {
        let Task {
            id,
            mut source,
            last,
        } = self;
        let next = catch_unwind(AssertUnwindSafe(|| {
            let accepted = last.map_or(Ok(()), |last| source.accept(last));
            accepted.and_then(|()| source.mask())
        }));
        match next {
            Ok(mask) => Done {
                id,
                source: Some(source),
                // It would fail so every time: the request asks for what can't be enforced.
                mask: mask.map_err(Failure::Invalid),
            },
            Err(panic) => Done {
                id,
                source: None,
                mask: Err(Failure::Broken(format!(
                    "the constraint panicked: {}",
                    super::words(&*panic)
                ))),
            },
        }
    }
}
