//! Damaged GGUF files: every one is refused with an error or read, without a panic, a hang or memory
//! beyond what the file's size allows.
//!
//! 500 cases by default, `GOSSAMER_FUZZ_CASES=10000` for the long run. The seed is printed;
//! `GOSSAMER_TEST_SEED` repeats it. A failing file is kept and named.

mod common;
#[path = "common/gguf_file.rs"]
mod gguf_file;

use gguf_file::{GgufFile, Random, Shape, string};
use gossamer::{
    checkpoint::Checkpoint,
    cli::inspect,
    gguf::Gguf,
    quant::GgmlType,
    weights::{Matrix, Model},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

/// The system's allocator, counting bytes now in use and the most there were.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to `System` unchanged; only counters are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most heap in use during `work`, beyond what was in use before.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = IN_USE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = work();
    (result, PEAK.load(Relaxed).saturating_sub(before))
}

/// A number that counts and lengths go wrong with, or any.
fn awkward(random: &mut Random) -> u64 {
    let shift = random.below(64);
    match random.below(6) {
        0 => [0, 1, 2, 31, 32, 33, 255, 256][random.below(8)],
        1 => u64::MAX - random.below(64) as u64,
        2 => 1 << shift,
        3 => (1u64 << shift).wrapping_sub(1),
        4 => random.below(100_000) as u64,
        _ => random.next(),
    }
}

/// Small files that load, of every kind a user may have.
fn valid_files(random: &mut Random) -> Vec<GgufFile> {
    let small = Shape {
        layers: 1,
        experts: 2,
        experts_used: 1,
        vocab: 32,
        ..Shape::TINY
    };
    let wide = Shape {
        hidden: 256,
        heads: 16,
        kv_heads: 4,
        expert_width: 32,
        vocab: 64,
        ..small.clone()
    };
    let mut plain = small.file(gguf_file::Q8_0);
    let mut aligned = small.file(gguf_file::F16);
    aligned.version = 2;
    aligned.alignment = 64;
    aligned.u32("general.alignment", 64);
    let mut ollama = Shape {
        arch: "gptoss",
        ..small
    }
    .file(gguf_file::BF16);
    let mut mixed = wide.file(gguf_file::Q4_0);
    let kinds = [
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::IQ4_NL,
        GgmlType::Q4_K,
        GgmlType::Q5_K,
        GgmlType::Q6_K,
    ];
    let mut kinds = kinds.iter().cycle();
    for t in &mut mixed.tensors {
        if t.dims.len() == 2 && t.dims[0] == 256 && t.kind != gguf_file::F32 {
            let kind = *kinds.next().unwrap();
            t.kind = (kind as u32, kind.block_values(), kind.block_bytes());
        }
    }
    for t in &mut ollama.tensors {
        t.name = t.name.replace("attn_output", "attn_out");
        t.name = t.name.replace("attn_sinks.weight", "attn_sinks");
    }
    // Arrays in arrays, and strings that are no text.
    let nested = [
        &[9, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..],
        &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].repeat(2),
    ];
    plain.entry("a.nested", 9, nested.concat());
    plain.entry("a.bytes", 8, string([0xff, 0xfe, 0x1b, 0]));
    plain.entry("a.f64", 12, f64::NAN.to_le_bytes().into());
    let mut files = vec![plain, aligned, ollama, mixed];
    for file in &mut files {
        file.fill(random);
        for t in &mut file.tensors {
            // Small scales everywhere, so that the files are valid before they are damaged.
            let scales: &[usize] = match t.kind.0 {
                3 | 7 | 12 | 13 => &[0, 2],
                6 | 20 => &[0],
                _ => &[],
            };
            for block in t.data.as_deref_mut().unwrap().chunks_exact_mut(t.kind.2) {
                scales.iter().for_each(|at| block[at + 1] = 0x20);
            }
        }
    }
    files
}

/// Damages what the file says, field by field, before it is written.
fn damage_fields(file: &mut GgufFile, random: &mut Random) {
    let (entries, tensors) = (file.entries.len(), file.tensors.len());
    let (e, t) = (random.below(entries), random.below(tensors));
    match random.below(14) {
        0 if entries > 0 => drop(file.entries.remove(e)),
        1 if tensors > 0 => drop(file.tensors.remove(t)),
        2 if entries > 0 => file.entries.push(file.entries[e].clone()),
        3 if tensors > 0 => file.tensors.push(file.tensors[t].clone()),
        4 if entries > 0 => file.entries[e].1 = random.below(15) as u32,
        5 if entries > 0 => {
            let value = awkward(random).to_le_bytes();
            let bytes = &mut file.entries[e].2;
            let n = bytes.len().min(8);
            bytes[..n].copy_from_slice(&value[..n]);
        }
        6 if tensors > 0 => {
            let dims = &mut file.tensors[t].dims;
            let d = random.below(dims.len());
            dims[d] = awkward(random);
        }
        7 if tensors > 0 => file.tensors[t].kind.0 = random.below(44) as u32,
        8 if tensors > 0 => file.tensors[t].offset = Some(awkward(random)),
        9 if tensors > 0 => {
            let other = random.below(tensors);
            file.tensors[t].name = file.tensors[other].name.clone();
        }
        10 if tensors > 0 => {
            let other = random.below(tensors);
            file.tensors.swap(t, other);
        }
        11 => file.version = awkward(random) as u32,
        _ if entries > 0 && file.entries[e].2.len() == 4 => {
            // A shape that could be, but not with these tensors; or could be after all.
            file.entries[e].2 = (random.below(300) as u32).to_le_bytes().into();
        }
        _ => {}
    }
}

/// Damages the bytes: bits, numbers, splices, cuts; mostly in the header.
fn damage_bytes(bytes: &mut Vec<u8>, header: usize, random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    let reach = if random.below(4) > 0 {
        header
    } else {
        bytes.len()
    };
    let at = random.below(reach.min(bytes.len()));
    match random.below(6) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 => {
            let value = awkward(random).to_le_bytes();
            let n = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
            bytes[at..at + n].copy_from_slice(&value[..n]);
        }
        3 => bytes.truncate(at),
        4 => {
            let from = random.below(bytes.len());
            let n = random.below(200).min(bytes.len() - from);
            let piece = bytes[from..from + n].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => {
            let end = (at + random.below(64)).min(bytes.len());
            bytes.drain(at..end);
        }
    }
}

/// How far a file came.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    NotOpened,
    NotLoaded,
    Loaded,
}

/// Opens, inspects and loads, and holds what comes of it to the file's size.
fn exercise(path: &Path, file_bytes: usize) -> Outcome {
    let (gguf, peak) = peak_of(|| Gguf::open(path));
    // Directory and keys as Rust keeps them, against as few bytes as they take in a file.
    let bound = 8 * file_bytes + (32 << 10);
    assert!(
        peak <= bound,
        "opening {file_bytes} bytes took {peak} of memory"
    );
    let gguf = match gguf {
        Ok(gguf) => gguf,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("fuzz") && text.len() < 10_000, "{text}");
            assert!(!text.contains(char::is_control), "{text:?}");
            return Outcome::NotOpened;
        }
    };
    let checkpoint = Checkpoint::from(gguf);
    for json in [false, true] {
        let (report, peak) = peak_of(|| inspect::report(&checkpoint, json).unwrap());
        assert!(!report.is_empty());
        let bound = 64 * file_bytes + (1 << 20);
        assert!(
            peak <= bound,
            "inspecting {file_bytes} bytes took {peak} of memory"
        );
    }
    let Checkpoint::Gguf(gguf) = checkpoint else {
        unreachable!("it was made from a file")
    };
    let (model, peak) = peak_of(|| Model::load_with_notes(&gguf));
    // The scratch of conversions is 64 KiB a thread; threads have their own costs.
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let bound = 8 * file_bytes + (threads + 1) * (128 << 10);
    assert!(
        peak <= bound,
        "loading {file_bytes} bytes took {peak} of memory"
    );
    match model {
        Ok((model, _)) => {
            check_matrices(&model, file_bytes);
            Outcome::Loaded
        }
        Err(error) => {
            let text = format!("{error:#}");
            assert!(text.contains("fuzz") && text.len() < 10_000, "{text}");
            Outcome::NotLoaded
        }
    }
}

/// Every matrix has the bytes its shape needs, and all of them no more than conversion explains.
fn check_matrices(model: &Model, file_bytes: usize) {
    let w = &model.weights;
    let mut matrices: Vec<&Matrix> = vec![&w.token_embd, &w.output];
    for layer in &w.layers {
        let linears = [&layer.q, &layer.k, &layer.v, &layer.o];
        let linears =
            linears
                .into_iter()
                .chain([&layer.router, &layer.gate, &layer.up, &layer.down]);
        matrices.extend(linears.map(|l| &l.weight));
    }
    let mut total = 0;
    for m in matrices {
        assert_eq!(m.data.len(), m.rows * m.format.row_bytes(m.cols));
        total += m.data.len();
        let mut row = vec![0.0; m.cols];
        m.row_to_f32(m.rows - 1, &mut row);
    }
    assert!(
        total <= 8 * file_bytes,
        "{total} bytes of matrices from {file_bytes}"
    );
}

/// One case: a valid file, damaged; in some cases as the parts of a split model.
fn case(files: &[GgufFile], seed: u64, number: usize, dir: &Path) -> (Vec<PathBuf>, usize) {
    let mut random = Random(seed ^ (number as u64) << 32);
    let mut file = files[random.below(files.len())].clone();
    let in_fields = random.below(2) == 0;
    if in_fields {
        (0..=random.below(2)).for_each(|_| damage_fields(&mut file, &mut random));
    }
    let mut parts = vec![file];
    if random.below(8) == 0 && parts[0].tensors.len() > 1 {
        let half = parts[0].tensors.len() / 2;
        let mut second = GgufFile::new();
        second.alignment = parts[0].alignment;
        second.u32("general.alignment", second.alignment as u32);
        second.tensors = parts[0].tensors.split_off(half);
        parts.push(second);
        for (i, part) in parts.iter_mut().enumerate() {
            part.u32("split.no", i as u32);
            part.u32("split.count", 2);
        }
    }
    let whole = parts.len() == 1;
    let mut total = 0;
    let mut paths = Vec::new();
    let count = parts.len();
    for (i, part) in parts.iter().enumerate() {
        let header = part.head().0.len();
        let mut bytes = part.bytes();
        if !in_fields || random.below(4) == 0 {
            (0..=random.below(3)).for_each(|_| damage_bytes(&mut bytes, header, &mut random));
        }
        let path = if whole {
            dir.join("fuzz.gguf")
        } else {
            dir.join(format!("fuzz-{:05}-of-{count:05}.gguf", i + 1))
        };
        std::fs::write(&path, &bytes).unwrap();
        total += bytes.len();
        paths.push(path);
    }
    (paths, total)
}

#[test]
fn damaged_files_are_errors_or_results() {
    let cases: usize = match std::env::var("GOSSAMER_FUZZ_CASES") {
        Ok(text) => text.parse().expect("GOSSAMER_FUZZ_CASES is a number"),
        Err(_) => 500,
    };
    let seed = common::fresh_seed();
    let dir = tempfile::tempdir().unwrap();
    let files = valid_files(&mut Random(seed));
    for (i, file) in files.iter().enumerate() {
        let gguf = Gguf::from_bytes("valid", &file.bytes()).unwrap();
        Model::load_with_notes(&gguf).unwrap_or_else(|e| panic!("file {i} before damage: {e:#}"));
    }
    // The cases run beside a watch: one that hangs is named.
    let (send, receive) = mpsc::channel();
    let at = dir.path().to_owned();
    let worker = std::thread::spawn(move || {
        for number in 0..cases {
            let (paths, bytes) = case(&files, seed, number, &at);
            let outcome = catch_unwind(AssertUnwindSafe(|| exercise(&paths[0], bytes)));
            if send.send((paths, outcome.ok())).is_err() {
                return;
            }
        }
    });
    let mut outcomes = Vec::new();
    for number in 0..cases {
        let failed = |what: &str| -> ! {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{seed}-{number}"));
            std::fs::create_dir_all(&kept).unwrap();
            for file in std::fs::read_dir(dir.path()).unwrap().flatten() {
                let _ = std::fs::copy(file.path(), kept.join(file.file_name()));
            }
            panic!(
                "case {number} of seed {seed} {what}; its files: {}",
                kept.display()
            )
        };
        match receive.recv_timeout(Duration::from_secs(60)) {
            Ok((_, Some(outcome))) => outcomes.push(outcome),
            Ok((_, None)) => failed("panicked, or took too much memory"),
            Err(mpsc::RecvTimeoutError::Timeout) => failed("hangs"),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    worker.join().unwrap();
    let of = |outcome| outcomes.iter().filter(|o| **o == outcome).count();
    let [not_opened, not_loaded, loaded] =
        [Outcome::NotOpened, Outcome::NotLoaded, Outcome::Loaded].map(of);
    println!("{cases} files: {not_opened} not opened, {not_loaded} not loaded, {loaded} loaded");
    // Damage that is always found at once, or never, would test little.
    let least = cases / 50;
    assert!(not_opened > least && not_loaded > least && loaded > least);
}
