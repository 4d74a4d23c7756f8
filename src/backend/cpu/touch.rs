//! Brings a mapped model into memory and its pages into the page table before the first token.
//!
//! A page fault every 64 KiB would otherwise cost the first tokens more than their arithmetic, and a
//! cold file would be read in the order in which experts happen to be chosen. Only advice: where the
//! system doesn't know the call, or memory is smaller than the model, pages come as they are used.
#![allow(unsafe_code)] // madvise

use super::threads::{Pool, Queue};
use crate::{
    machine,
    weights::{Matrix, Weights},
};

/// Bytes of one call, so that threads share the work.
const PIECE: usize = 16 << 20;

/// Touches every weight that lies in a mapped file, on all threads.
pub fn touch(weights: &Weights, pool: &Pool) {
    let mut pieces: Vec<&[u8]> = Vec::new();
    let mut total = 0;
    for m in matrices(weights) {
        total += m.data.len();
        pieces.extend(m.data.chunks(PIECE));
    }
    if machine::available_memory().is_some_and(|free| free < total as u64) {
        return;
    }
    let queue = Queue::default();
    pool.run(&|_| {
        while let Some(i) = queue.next(pieces.len()) {
            populate(pieces[i]);
        }
    });
}

fn matrices(weights: &Weights) -> Vec<&Matrix> {
    let mut all = vec![&weights.output];
    for layer in &weights.layers {
        let linears = [
            &layer.q,
            &layer.k,
            &layer.v,
            &layer.o,
            &layer.router,
            &layer.gate,
            &layer.up,
            &layer.down,
        ];
        all.extend(linears.map(|l| &l.weight));
    }
    all
}

#[cfg(target_os = "linux")]
fn populate(bytes: &[u8]) {
    // SAFETY: asks for a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(1 << 16);
    let start = bytes.as_ptr() as usize / page * page;
    let len = bytes.as_ptr() as usize + bytes.len() - start;
    // SAFETY: reads pages of a live mapping into the page table; changes no contents. A failure
    // (an older kernel, a converted matrix on the heap) means only that pages come later.
    unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_POPULATE_READ) };
}

#[cfg(not(target_os = "linux"))]
fn populate(_bytes: &[u8]) {}
