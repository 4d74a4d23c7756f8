//! Work over chunks of rows, on all cores.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

/// Runs `work` on every chunk; stops at the first error.
pub(super) fn each<C: Send>(
    chunks: impl Iterator<Item = C> + Send,
    work: impl Fn(C) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let chunks = Mutex::new(chunks);
    let (failed, stop) = (Mutex::new(None), AtomicBool::new(false));
    let worker = || {
        while !stop.load(Ordering::Relaxed)
            && let Some(chunk) = chunks.lock().ok().and_then(|mut chunks| chunks.next())
        {
            if let Err(what) = work(chunk) {
                stop.store(true, Ordering::Relaxed);
                if let Ok(mut failed) = failed.lock() {
                    failed.get_or_insert(what);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(worker);
        }
        worker();
    });
    failed.into_inner().unwrap_or_default().map_or(Ok(()), Err)
}
