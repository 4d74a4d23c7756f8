//! Converts weights of types that back ends don't compute with, once, at load.
//!
//! To F16: rounding there moves a value by at most one part in 2048, a hundredth of what 4 to 6 bits
//! have already moved it, and F32 would double memory and the bytes read for every token. A tensor
//! with a value beyond F16's range becomes F32. Never Q8_0, whose error would be felt.

use super::Format;
use crate::{
    gguf::Bytes,
    quant::{self, GgmlType},
};
use half::{f16, slice::HalfFloatSliceExt};
use memmap2::MmapMut;
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// Values decoded at a time by one thread: a multiple of every block, small enough for its caches.
const CHUNK: usize = 1 << 14;

/// Why a chunk stopped.
#[derive(Clone, Copy, PartialEq)]
enum Stop {
    /// A value is beyond F16's range.
    TooLarge,
    /// The value at this index is infinite or NaN.
    NotFinite(usize),
}

/// Decodes all of `bytes` to F16 or F32 in fresh, page-aligned memory; the only other memory is one
/// chunk a thread. `cols` only serves to name the row of a bad value.
pub(super) fn convert(
    kind: GgmlType,
    bytes: &[u8],
    cols: usize,
) -> Result<(Format, Bytes), String> {
    let not_finite = |i: usize| {
        let (row, col) = (i / cols, i % cols);
        format!("expected finite values, found another at row {row}, column {col}")
    };
    for format in [Format::F16, Format::F32] {
        match convert_to(format, kind, bytes)
            .map_err(|e| format!("converting to {}: {e}", format.name()))?
        {
            Ok(data) => return Ok((format, data)),
            Err(Stop::TooLarge) => continue,
            Err(Stop::NotFinite(i)) => return Err(not_finite(i)),
        }
    }
    Err("converting: a value beyond the range of F32".to_owned())
}

fn convert_to(
    format: Format,
    kind: GgmlType,
    bytes: &[u8],
) -> Result<Result<Bytes, Stop>, std::io::Error> {
    let values = bytes.len() / kind.block_bytes() * kind.block_values();
    let size = format.row_bytes(1);
    let mut map = MmapMut::map_anon(values * size)?;
    let chunk_bytes = CHUNK / kind.block_values() * kind.block_bytes();
    let work = Mutex::new(
        bytes
            .chunks(chunk_bytes)
            .zip(map.chunks_mut(CHUNK * size))
            .enumerate(),
    );
    // The first chunk that stopped, so that the error is the same on any number of threads.
    let stopped_at = AtomicUsize::new(usize::MAX);
    let stopped = Mutex::new(None);
    let worker = || {
        let mut scratch = vec![0.0; CHUNK];
        loop {
            let Some((i, (bytes, out))) = work.lock().ok().and_then(|mut w| w.next()) else {
                return;
            };
            if i > stopped_at.load(Ordering::Relaxed) {
                return;
            }
            let scratch = &mut scratch[..out.len() / size];
            quant::dequantize(kind, bytes, scratch);
            if let Err(stop) = store(format, scratch, out)
                && let Ok(mut first) = stopped.lock()
                && i < stopped_at.fetch_min(i, Ordering::Relaxed)
            {
                *first = Some(match stop {
                    Stop::NotFinite(k) => Stop::NotFinite(i * CHUNK + k),
                    other => other,
                });
            }
        }
    };
    let chunks = bytes.len().div_ceil(chunk_bytes);
    let threads = std::thread::available_parallelism()
        .map_or(1, |n| n.get())
        .min(chunks);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(worker);
        }
        worker();
    });
    if let Some(stop) = stopped.into_inner().unwrap_or_default() {
        return Ok(Err(stop));
    }
    let map = Arc::new(map.make_read_only()?);
    Ok(Ok(Bytes::Mapped(map, 0..values * size)))
}

/// Writes `values` as `format`, unless one doesn't fit.
fn store(format: Format, values: &[f32], out: &mut [u8]) -> Result<(), Stop> {
    let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        return Err(Stop::NotFinite(i));
    }
    match format {
        Format::F16 => {
            if largest > f16::MAX.to_f32() {
                return Err(Stop::TooLarge);
            }
            let mut halves = [f16::ZERO; 256];
            for (values, out) in values.chunks(256).zip(out.chunks_mut(512)) {
                let halves = &mut halves[..values.len()];
                halves.convert_from_f32_slice(values);
                for (half, out) in halves.iter().zip(out.chunks_exact_mut(2)) {
                    out.copy_from_slice(&half.to_le_bytes());
                }
            }
        }
        _ => {
            for (value, out) in values.iter().zip(out.chunks_exact_mut(4)) {
                out.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    Ok(())
}
