//! One pool of workers that runs a whole forward pass, and what the workers share.
//!
//! A forward pass is one call of [`Pool::run`]: every thread walks the layers, takes items of each
//! stage from an atomic counter and meets the others at [`Pool::barrier`]. Nothing is allocated and
//! no thread sleeps in between. A panic in one thread poisons the barrier, so that the others leave
//! too and `run` returns an error instead of hanging.
#![allow(unsafe_code)] // scoped pointers to workers, disjoint writes to shared buffers

use std::{
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

/// Spins before a waiting thread offers its core to others: about 20 us.
const SPINS: u32 = 4096;

/// A job of the pool: called once on each thread with the thread's number.
type Job = *const (dyn Fn(usize) + Sync);

/// The pointer crosses threads; [`Pool::run`] keeps its target alive until all are done with it.
#[derive(Clone, Copy)]
struct SendJob(Job);
// SAFETY: the target is Sync, and `run` outlives every use of the pointer.
unsafe impl Send for SendJob {}

struct State {
    generation: usize,
    job: Option<SendJob>,
    quit: bool,
}

struct Common {
    threads: usize,
    state: Mutex<State>,
    wake: Condvar,
    /// The current generation, for workers that spin between two forward passes.
    generation: AtomicUsize,
    finished: AtomicUsize,
    poisoned: AtomicBool,
    arrived: AtomicUsize,
    epoch: AtomicUsize,
}

/// Worker threads; the caller of [`Pool::run`] is thread 0.
pub struct Pool {
    common: Arc<Common>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: one at a time.
    running: Mutex<()>,
}

impl Pool {
    /// Starts `threads - 1` workers (at least one thread in all). If one can't be started, those that
    /// were end.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        Pool::start(threads, |id, work| {
            let worker = std::thread::Builder::new().name(format!("gossamer-{id}"));
            worker.spawn(work)
        })
    }

    fn start(
        threads: usize,
        spawn: impl Fn(usize, Box<dyn FnOnce() + Send>) -> std::io::Result<JoinHandle<()>>,
    ) -> std::io::Result<Pool> {
        let common = Arc::new(Common {
            threads: threads.max(1),
            state: Mutex::new(State {
                generation: 0,
                job: None,
                quit: false,
            }),
            wake: Condvar::new(),
            generation: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
            arrived: AtomicUsize::new(0),
            epoch: AtomicUsize::new(0),
        });
        // Dropped on an error, it ends the workers that it has.
        let mut pool = Pool {
            common: common.clone(),
            workers: Vec::new(),
            running: Mutex::new(()),
        };
        for id in 1..common.threads {
            let common = common.clone();
            let worker = spawn(id, Box::new(move || common.work(id)))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.common.threads
    }

    /// Runs `job(thread)` on every thread and returns when all are done; `false` if one panicked.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) -> bool {
        let _one_at_a_time = lock(&self.running);
        let common = &*self.common;
        common.poisoned.store(false, Ordering::Relaxed);
        common.arrived.store(0, Ordering::Relaxed);
        common.finished.store(0, Ordering::Relaxed);
        // SAFETY: only the lifetime changes; this function returns after every worker has counted
        // itself finished, and no worker touches the job after that.
        let job_static: Job = unsafe { std::mem::transmute(job) };
        {
            let mut state = lock(&common.state);
            state.generation += 1;
            state.job = Some(SendJob(job_static));
            common.generation.store(state.generation, Ordering::Release);
        }
        common.wake.notify_all();
        common.call(job, 0);
        let mut wait = Wait::default();
        while common.finished.load(Ordering::Acquire) + 1 < common.threads {
            wait.pause();
        }
        lock(&common.state).job = None;
        !common.poisoned.load(Ordering::Relaxed)
    }

    /// Waits until every thread of the running job is here.
    ///
    /// # Panics
    /// If another thread panicked; caught by [`Pool::run`].
    pub fn barrier(&self) {
        let common = &*self.common;
        if common.threads == 1 {
            return;
        }
        let epoch = common.epoch.load(Ordering::Relaxed);
        if common.arrived.fetch_add(1, Ordering::AcqRel) + 1 == common.threads {
            common.arrived.store(0, Ordering::Relaxed);
            common.epoch.store(epoch.wrapping_add(1), Ordering::Release);
            return;
        }
        self.spin_until(|| common.epoch.load(Ordering::Acquire) != epoch);
    }

    /// Spins until `ready()`; panics if another thread panicked, since it may never come.
    pub fn spin_until(&self, ready: impl Fn() -> bool) {
        let mut wait = Wait::default();
        while !ready() {
            assert!(
                !self.common.poisoned.load(Ordering::Relaxed),
                "another worker panicked"
            );
            wait.pause();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.common.state).quit = true;
        self.common.generation.fetch_add(1, Ordering::Release);
        self.common.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Common {
    fn work(&self, id: usize) {
        let mut seen = 0;
        loop {
            // Decode calls follow each other closely: spin a little before sleeping.
            let mut spins = 0;
            while self.generation.load(Ordering::Acquire) == seen && spins < 4 * SPINS {
                spins += 1;
                std::hint::spin_loop();
            }
            let job = {
                let mut state = lock(&self.state);
                while state.generation == seen && !state.quit {
                    state = self.wake.wait(state).unwrap_or_else(|e| e.into_inner());
                }
                if state.quit {
                    return;
                }
                seen = state.generation;
                state.job
            };
            if let Some(SendJob(job)) = job {
                // SAFETY: `run` waits for this thread's count before the job goes out of scope.
                self.call(unsafe { &*job }, id);
                self.finished.fetch_add(1, Ordering::Release);
            }
        }
    }

    fn call(&self, job: &(dyn Fn(usize) + Sync), id: usize) {
        if catch_unwind(AssertUnwindSafe(|| job(id))).is_err() {
            self.poisoned.store(true, Ordering::Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Busy waiting that yields the core once it has gone on for long.
#[derive(Default)]
struct Wait(u32);

impl Wait {
    fn pause(&mut self) {
        if self.0 < SPINS {
            self.0 += 1;
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

/// Processors (hardware threads) that this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Items of one stage, handed out in order to whichever thread asks next.
#[derive(Default)]
pub struct Queue(AtomicUsize);

impl Queue {
    /// The next item below `total`.
    pub fn next(&self, total: usize) -> Option<usize> {
        let item = self.0.fetch_add(1, Ordering::Relaxed);
        (item < total).then_some(item)
    }
    /// The items below `total` that fall to this thread, each with the one that it takes after.
    pub fn items(&self, total: usize) -> impl Iterator<Item = (usize, Option<usize>)> {
        let mut next = self.next(total);
        std::iter::from_fn(move || {
            let item = next?;
            next = self.next(total);
            Some((item, next))
        })
    }
    /// Starts again at item 0; only between two jobs.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// A buffer that threads write in disjoint ranges and read after a barrier.
pub struct Shared<'a, T> {
    data: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<'_, T> {}
// SAFETY: access goes through the unsafe methods below, whose callers promise disjoint ranges.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares `data` for as long as it is borrowed.
    pub fn new(data: &'a mut [T]) -> Self {
        Shared {
            data: data.as_mut_ptr(),
            len: data.len(),
            life: PhantomData,
        }
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// No thread writes them while the slice lives.
    pub unsafe fn get(&self, start: usize, len: usize) -> &'a [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: in bounds; no writer, by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.data.add(start), len) }
    }

    /// The elements `start..start + len`, to write.
    ///
    /// # Safety
    /// No other thread touches them while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn get_mut(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: in bounds; no other user, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_meets_at_every_barrier() {
        let pool = Pool::new(3).expect("threads");
        for _ in 0..20 {
            let counts: Vec<AtomicUsize> = (0..50).map(|_| AtomicUsize::new(0)).collect();
            assert!(pool.run(&|_| {
                for count in &counts {
                    count.fetch_add(1, Ordering::Relaxed);
                    pool.barrier();
                    assert_eq!(count.load(Ordering::Relaxed), 3);
                }
            }));
        }
    }

    #[test]
    fn a_worker_that_cannot_start_ends_the_others() {
        let ended = Arc::new(AtomicUsize::new(0));
        let pool = Pool::start(8, |id, work| {
            if id == 5 {
                return Err(std::io::Error::other("no more threads"));
            }
            let ended = ended.clone();
            Ok(std::thread::spawn(move || {
                work();
                ended.fetch_add(1, Ordering::Relaxed);
            }))
        });
        assert!(pool.is_err());
        assert_eq!(ended.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_panic_is_an_error_not_a_hang() {
        let pool = Pool::new(2).expect("threads");
        assert!(!pool.run(&|id| {
            assert!(id != 1, "on purpose");
            pool.barrier();
        }));
        assert!(pool.run(&|_| pool.barrier()));
    }
}
