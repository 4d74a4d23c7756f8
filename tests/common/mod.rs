//! What the tests share: the Python judges, error measures, random models in memory.
#![allow(dead_code)] // every test binary uses its own part

pub mod golden;
pub mod models;

use gossamer::{
    backend::{self, Backend, Batch, KV_BLOCK, Limits, LogitRows, Options, Segment},
    weights::Model,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The interpreter that has the judges: `GOSSAMER_PYTHON`, else `.venv/bin/python3`.
pub fn python() -> PathBuf {
    let python = match std::env::var_os("GOSSAMER_PYTHON") {
        Some(path) => path.into(),
        None => root().join(".venv/bin/python3"),
    };
    assert!(
        python.exists(),
        "no Python judges at {}: run the test command of README.md, which makes them, or set GOSSAMER_PYTHON",
        python.display()
    );
    python
}

/// Runs `tools/NAME` with the judges' interpreter and fails with what it said on stderr.
pub fn tool(name: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) {
    let mut command = Command::new(python());
    command
        .arg(root().join("tools").join(name))
        .args(args.iter().map(|a| a.as_ref()));
    // Judges work on local files only.
    command.envs([("HF_HUB_OFFLINE", "1"), ("HF_HUB_DISABLE_TELEMETRY", "1")]);
    let output = command.output().expect("the interpreter starts");
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A fresh seed, printed so that a failure can be repeated with `GOSSAMER_TEST_SEED`.
pub fn fresh_seed() -> u64 {
    let seed = match std::env::var("GOSSAMER_TEST_SEED") {
        Ok(seed) => seed.parse().expect("GOSSAMER_TEST_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.expect("a clock after 1970").as_nanos() as u64 >> 10 & 0xffff_ffff
        }
    };
    println!("GOSSAMER_TEST_SEED={seed}");
    seed
}

/// `|a - b| / |b|`, in f64; infinite when `a` is not finite.
pub fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    if a.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let square = |x: f64| x * x;
    let difference: f64 = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| square(a as f64 - b as f64))
        .sum();
    let norm: f64 = b.iter().map(|&b| square(b as f64)).sum();
    (difference / norm).sqrt()
}

/// [`relative_l2`] of every row.
pub fn row_errors(a: &[Vec<f32>], b: &[Vec<f32>]) -> Vec<f64> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| relative_l2(a, b)).collect()
}

pub fn max(errors: &[f64]) -> f64 {
    errors.iter().copied().fold(0.0, f64::max)
}

pub fn mean(errors: &[f64]) -> f64 {
    errors.iter().sum::<f64>() / errors.len() as f64
}

/// The greatest logit, ties to the lower id, and by how much it leads.
pub fn greedy(logits: &[f32]) -> (usize, f32) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    (order[0], logits[order[0]] - logits[order[1]])
}

/// Rows of a two-dimensional .npy file of f32 or f16, as f32.
pub fn read_npy(path: &Path) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(bytes.starts_with(b"\x93NUMPY\x01"), "{}", path.display());
    let data = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let header = std::str::from_utf8(&bytes[10..data]).expect("a text header");
    let shape = header
        .split_once('(')
        .and_then(|(_, s)| s.split_once(')'))
        .expect("a shape")
        .0;
    let cols: usize = shape
        .split(',')
        .nth(1)
        .and_then(|n| n.trim().parse().ok())
        .expect("columns");
    let values: Vec<f32> = if header.contains("'<f2'") {
        bytes[data..]
            .chunks_exact(2)
            .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect()
    } else {
        assert!(header.contains("'<f4'"), "{header}");
        bytes[data..]
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    };
    values.chunks_exact(cols).map(<[f32]>::to_vec).collect()
}

/// Opens `name` with room for `slots` sequences of `tokens` tokens, two threads.
pub fn open(model: &Arc<Model>, name: &str, slots: usize, tokens: usize) -> Box<dyn Backend> {
    let limits = Limits {
        slots,
        kv_blocks: slots * tokens.div_ceil(KV_BLOCK),
        batch_tokens: slots * tokens,
        snapshots: 0,
    };
    open_with(model, name, 2, limits)
}

/// Opens `name` with just this room.
pub fn open_with(
    model: &Arc<Model>,
    name: &str,
    threads: usize,
    limits: Limits,
) -> Box<dyn Backend> {
    let options = Options {
        backend: name.into(),
        threads,
        limits,
    };
    backend::open(model.clone(), &options).unwrap_or_else(|e| panic!("{name}: {e:#}"))
}

/// A segment of slot 0 whose block `i` is block `i`.
pub fn segment(start: usize, tokens: &[u32], logits: LogitRows) -> Segment {
    let blocks = (start + tokens.len()).div_ceil(KV_BLOCK) as u32;
    Segment {
        slot: 0,
        start,
        kept: 0,
        tokens: tokens.to_vec(),
        blocks: (0..blocks).collect(),
        logits,
    }
}

/// Logits of every position, the prompt fed in pieces of `piece` tokens.
pub fn score(backend: &mut dyn Backend, ids: &[u32], piece: usize) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    for (i, tokens) in ids.chunks(piece).enumerate() {
        let batch = Batch {
            segments: vec![segment(i * piece, tokens, LogitRows::All)],
        };
        backend
            .forward(&batch)
            .unwrap_or_else(|e| panic!("{}: {e:#}", backend.describe()));
        rows.extend((0..tokens.len()).map(|row| backend.logits(row).to_vec()));
    }
    rows
}

/// [`score`] by a back end opened for it, in one piece.
pub fn score_with(name: &str, model: &Arc<Model>, ids: &[u32]) -> Vec<Vec<f32>> {
    score(&mut *open(model, name, 1, ids.len()), ids, ids.len())
}

/// Every instruction set of the fast CPU back end that this machine has, as `--backend` names it.
pub fn cpu_backends() -> Vec<String> {
    let isas = backend::cpu::isas();
    isas.into_iter().map(|isa| format!("cpu:{isa}")).collect()
}
