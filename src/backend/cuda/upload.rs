//! Moves matrices from the file's mapping to the device: threads copy pieces into page-locked buffers,
//! the link carries them over, and a kernel puts them into tiles, all at once.

use super::{
    Buffer, Device, Event, Grid, Kernel, Pinned,
    tiles::{Order, TILE, TileFormat, Tiles},
};
use crate::weights::{Format, Matrix};
use anyhow::{Result, anyhow, bail};
use indicatif::ProgressBar;
use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

/// Bytes of a piece, at most, where eight rows are no more.
const PIECE: usize = 8 << 20;
/// Buffers that pieces go through.
const BUFFERS: usize = 16;
/// Threads that copy; more don't help.
const THREADS: usize = 8;
/// Rows that the kernel takes at a time.
const GROUP: usize = 8;

/// A matrix, and where it goes.
pub(super) struct Job<'a> {
    /// The tensor's name, for errors.
    pub(super) name: String,
    pub(super) matrix: &'a Matrix,
    pub(super) to: Target,
}

/// Where and how a matrix is kept.
pub(super) enum Target {
    /// As in the file, at this address.
    Raw(u64),
    /// In tiles.
    Tiles {
        /// Of the whole: experts one after another, or the matrices that are one.
        tiles: Tiles,
        format: TileFormat,
        order: Order,
        /// [`Order::Heads`]: the first head; [`Order::Pairs`]: which half of a tile.
        offset: usize,
    },
}

/// Some rows of a job.
struct Piece {
    job: usize,
    rows: Range<usize>,
}

/// What the kernel `repack` takes, as in kernels/repack.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct RepackArgs {
    from: u64,
    to: u64,
    fault: u64,
    first_group: i64,
    rows: i64,
    cols: i32,
    units: i32,
    source: i32,
    format: i32,
    order: i32,
    offset: i32,
    fault_code: u32,
    pad: u32,
}

/// A page-locked buffer on its way, and the part of the device's staging that belongs to it.
struct Carrier {
    number: usize,
    bytes: Pinned<u8>,
}

/// Moves all of `jobs`; `progress` counts bytes.
pub(super) fn upload(device: &Arc<Device>, jobs: &[Job], progress: &ProgressBar) -> Result<()> {
    let pieces = cut(jobs);
    let largest = pieces.iter().map(|p| len(jobs, p)).max();
    let size = largest.unwrap_or(0).next_multiple_of(256);
    let staging = device.alloc::<u8>(BUFFERS * size, "staging of weights")?;
    let mut fault = device.alloc::<u32>(1, "a flag")?;
    fault.zero()?;
    let mover = Mover {
        device,
        jobs,
        staging: &staging,
        size,
        fault: &fault,
        kernel: device.kernel("repack")?,
    };
    let (free, freed) = mpsc::channel();
    for number in 0..BUFFERS {
        let bytes = device.pinned(size, "staging of weights")?;
        free.send(Carrier { number, bytes })?;
    }
    let (filled, full) = mpsc::channel();
    let (freed, next) = (Mutex::new(freed), AtomicUsize::new(0));
    let fill = |filled: mpsc::Sender<(usize, Carrier)>| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(index) else {
                return;
            };
            // Where the other side gave up, so does this.
            let Some(mut carrier) = freed.lock().ok().and_then(|f| f.recv().ok()) else {
                return;
            };
            write(jobs, piece, &mut carrier.bytes[..len(jobs, piece)]);
            if filled.send((index, carrier)).is_err() {
                return;
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, THREADS) {
            let filled = filled.clone();
            scope.spawn(|| fill(filled));
        }
        drop(filled);
        drive(&mover, &pieces, free, full, progress)
    })?;
    device.synchronize()?;
    let mut code = [0];
    fault.download(0, &mut code)?;
    match code[0] {
        0 => Ok(()),
        code => Err(refused(&jobs[code as usize - 1])),
    }
}

/// Sends what is filled, and gives buffers back once they have been carried over. Both channels end
/// with it.
fn drive(
    mover: &Mover,
    pieces: &[Piece],
    free: mpsc::Sender<Carrier>,
    full: mpsc::Receiver<(usize, Carrier)>,
    progress: &ProgressBar,
) -> Result<()> {
    let mut under_way: VecDeque<(Carrier, Event)> = VecDeque::new();
    for _ in pieces {
        let Ok((index, carrier)) = full.recv() else {
            bail!("a thread that reads weights panicked; its message is above");
        };
        mover.piece(&pieces[index], &carrier)?;
        progress.inc(len(mover.jobs, &pieces[index]) as u64);
        under_way.push_back((carrier, mover.device.record()?));
        while let Some((_, event)) = under_way.front() {
            if under_way.len() > BUFFERS / 2 {
                event.wait()?;
            } else if !event.is_done()? {
                break;
            }
            if let Some((carrier, _)) = under_way.pop_front() {
                // Nobody waits for it when all pieces have been taken.
                let _ = free.send(carrier);
            }
        }
    }
    Ok(())
}

/// Cuts matrices into pieces of whole groups of rows.
fn cut(jobs: &[Job]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (job, Job { matrix, .. }) in jobs.iter().enumerate() {
        let row = sent(matrix).row_bytes(matrix.cols).max(1);
        let step = (PIECE / row / GROUP * GROUP).max(GROUP);
        for start in (0..matrix.rows).step_by(step) {
            let rows = start..matrix.rows.min(start + step);
            pieces.push(Piece { job, rows });
        }
    }
    pieces
}

/// The format in which the device gets a matrix: F32 where its values are two arrays here.
pub(super) fn sent(matrix: &Matrix) -> Format {
    match matrix.offsets {
        Some(_) => Format::F32,
        None => matrix.format,
    }
}

fn len(jobs: &[Job], piece: &Piece) -> usize {
    let matrix = jobs[piece.job].matrix;
    piece.rows.len() * sent(matrix).row_bytes(matrix.cols)
}

/// The rows of `piece`, as [`sent`] says.
fn write(jobs: &[Job], piece: &Piece, out: &mut [u8]) {
    let matrix = jobs[piece.job].matrix;
    if matrix.offsets.is_none() {
        // Populating its pages in one call first was slower: 0.68 s for 12 GB, not 0.44.
        return out.copy_from_slice(matrix.row_data(piece.rows.clone()));
    }
    let mut values = vec![0.0; matrix.cols];
    for (row, out) in piece
        .rows
        .clone()
        .zip(out.chunks_exact_mut(matrix.cols * 4))
    {
        matrix.row_to_f32(row, &mut values);
        for (out, value) in out.chunks_exact_mut(4).zip(&values) {
            out.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// Why tiles can't hold a matrix.
fn refused(job: &Job) -> anyhow::Error {
    let expected = match sent(job.matrix) {
        Format::MXFP4 => "block exponents up to 240 (scales up to 2^113), found a larger one",
        _ => "finite values below 2^31, found another",
    };
    anyhow!(
        "tensor `{}`: the CUDA back end expected {expected}; run this file with --backend cpu",
        job.name
    )
}

/// What moving a piece takes.
struct Mover<'a> {
    device: &'a Arc<Device>,
    jobs: &'a [Job<'a>],
    staging: &'a Buffer<u8>,
    /// Of one carrier.
    size: usize,
    fault: &'a Buffer<u32>,
    kernel: Kernel,
}

impl Mover<'_> {
    fn piece(&self, piece: &Piece, carrier: &Carrier) -> Result<()> {
        let Job { matrix, to, .. } = &self.jobs[piece.job];
        let row = sent(matrix).row_bytes(matrix.cols);
        let len = piece.rows.len() * row;
        let (tiles, format, order, offset) = match to {
            Target::Raw(to) => {
                let to = to + (piece.rows.start * row) as u64;
                return self.device.upload_to(to, &carrier.bytes, len);
            }
            Target::Tiles {
                tiles,
                format,
                order,
                offset,
            } => (tiles, *format, *order, *offset),
        };
        let from = self.staging.at(carrier.number * self.size);
        self.device.upload_to(from, &carrier.bytes, len)?;
        // The last tile is filled with zeros.
        let end = match order {
            Order::Natural if piece.rows.end == matrix.rows => matrix.rows.next_multiple_of(TILE),
            _ => piece.rows.end,
        };
        let args = RepackArgs {
            from,
            to: tiles.data,
            fault: self.fault.ptr(),
            first_group: (piece.rows.start / GROUP) as i64,
            rows: matrix.rows as i64,
            cols: matrix.cols as i32,
            units: tiles.units,
            source: sent(matrix).kind() as i32,
            format: format as i32,
            order: order as i32,
            offset: offset as i32,
            fault_code: piece.job as u32 + 1,
            pad: 0,
        };
        let grid = Grid {
            blocks: ((end - piece.rows.start).div_ceil(GROUP) as u32, 1, 1),
            threads: 128,
            shared: 0,
            dependent: false,
        };
        self.device.launch(&self.kernel, grid, &args)
    }
}
