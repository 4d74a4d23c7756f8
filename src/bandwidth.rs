//! How fast this machine can read memory: the yardstick of every speed that bytes limit.
//!
//! Every thread sums its own share of a buffer that is much larger than the caches, along two
//! streams at once, and asks for lines ahead into the second-level cache, as the back ends read
//! weights. Plain loads that the compiler vectorizes: a sum costs far less than the bytes it waits
//! for. A yardstick that the back ends outrun is none: it must stay the fastest way known here.

use memmap2::{Mmap, MmapMut};
use std::{
    hint::black_box,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

/// Address streams of one thread.
const STREAMS: usize = 2;
/// Bytes read from one stream before the next: two lines.
const STEP: usize = 128;
/// Bytes ahead that lines are asked for.
const AHEAD: usize = 8192;

/// A large anonymous buffer of random bytes, on huge pages where the system gives them.
pub struct Buffer(Mmap);

impl Buffer {
    /// Makes a buffer of `bytes`, filled by `threads` threads: pages that were never written read
    /// faster than memory can.
    pub fn new(bytes: usize, threads: usize) -> std::io::Result<Buffer> {
        let mut map = MmapMut::map_anon(bytes.max(1))?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let share = bytes.div_ceil(threads.max(1)).max(1);
        thread::scope(|scope| {
            for (i, part) in map.chunks_mut(share).enumerate() {
                scope.spawn(move || {
                    let mut state = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    for word in part.chunks_mut(8) {
                        // xorshift64
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
                    }
                });
            }
        });
        Ok(Buffer(map.make_read_only()?))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Bytes a second that `threads` threads read from `memory`: the fastest of `passes` passes, after
/// one that is not counted.
pub fn read(memory: &[u8], threads: usize, passes: usize) -> f64 {
    let threads = threads.max(1);
    let share = memory.len().div_ceil(threads).max(1);
    let parts: Vec<&[u8]> = memory.chunks(share).collect();
    let barrier = Barrier::new(parts.len());
    let slowest = |pass: &[Duration]| pass.iter().max().copied().unwrap_or_default();
    let times: Vec<Vec<Duration>> = thread::scope(|scope| {
        let barrier = &barrier;
        let run = |part| {
            move || {
                let mut times = Vec::with_capacity(passes + 1);
                for _ in 0..=passes {
                    barrier.wait();
                    let started = Instant::now();
                    black_box(sum(black_box(part)));
                    times.push(started.elapsed());
                }
                times
            }
        };
        let workers: Vec<_> = parts.iter().map(|part| scope.spawn(run(part))).collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().ok())
            .collect()
    });
    let best = (1..=passes)
        .map(|pass| slowest(&times.iter().map(|t| t[pass]).collect::<Vec<_>>()))
        .min()
        .unwrap_or_default();
    if best.is_zero() {
        return 0.0;
    }
    memory.len() as f64 / best.as_secs_f64()
}

/// The sum of all words, read along [`STREAMS`] streams.
fn sum(memory: &[u8]) -> u64 {
    let stream = memory.len() / STREAMS / STEP * STEP;
    let mut lanes = [0u64; LANES];
    for offset in (0..stream).step_by(STEP) {
        for s in 0..STREAMS {
            let at = s * stream + offset;
            fetch(memory, at + AHEAD);
            fetch(memory, at + AHEAD + STEP / 2);
            add_words(&mut lanes, &memory[at..at + STEP]);
        }
    }
    add_words(&mut lanes, &memory[stream * STREAMS..]);
    lanes.into_iter().fold(0, u64::wrapping_add)
}

/// Asks for the line at `at` into the second-level cache, where the processor knows such a request.
#[inline(always)]
fn fetch(memory: &[u8], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and may point anywhere.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch(memory.as_ptr().wrapping_add(at).cast(), _MM_HINT_T1)
        };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (memory, at);
}

/// Sums that run side by side.
const LANES: usize = 16;

#[inline(always)]
fn add_words(lanes: &mut [u64; LANES], bytes: &[u8]) {
    let (words, rest) = bytes.as_chunks::<8>();
    let (rows, words) = words.as_chunks::<LANES>();
    for row in rows {
        for (lane, word) in lanes.iter_mut().zip(row) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    let tail = rest.iter().map(|&b| u64::from(b));
    let words = words.iter().map(|w| u64::from_le_bytes(*w));
    lanes[0] = words.chain(tail).fold(lanes[0], u64::wrapping_add);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read() {
        let buffer = Buffer::new(100_003, 3).unwrap();
        let bytes = buffer.bytes();
        assert_eq!(bytes.len(), 100_003);
        let plain = sum(bytes);
        for at in [0, 1, 4096, 25_000, 50_000, 99_999, 100_002] {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1;
            assert_ne!(sum(&changed), plain, "byte {at}");
        }
        let zeros = bytes.iter().filter(|&&b| b == 0).count();
        assert!(zeros < 1000, "{zeros} zero bytes: not random");
    }

    #[test]
    fn odd_sizes_are_measured() {
        for len in [0, 1, 7, 4096, 70_001] {
            let memory = vec![1u8; len];
            for threads in [1, 2, 5] {
                let speed = read(&memory, threads, 2);
                assert!(speed.is_finite() && speed >= 0.0);
            }
        }
    }
}
