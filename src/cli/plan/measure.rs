//! What a plan says beside what the system says, once all that was counted has been written.

use super::{Print, report::rows};
use crate::{
    backend::{Backend, Batch, Footprint, KV_BLOCK, LogitRows, Segment, Target},
    checkpoint::Checkpoint,
    cli::{
        model::{Common, Loaded},
        serve::Space,
    },
    hub::human,
    machine::{self, Resident},
};
use anyhow::{Context, Result};
use serde::Serialize;
use std::hint::black_box;

/// Bytes of the smallest page: one byte of each is read.
const PAGE: usize = 4096;
/// Pages of the program that are first touched when it runs a model, and what its heap keeps.
const RUNNING: u64 = 4 << 20;

/// Predicted beside measured, in bytes.
#[derive(Serialize)]
pub struct Measured {
    pub model: String,
    pub backend: String,
    pub context: usize,
    pub kv_tokens: usize,
    pub footprint: Footprint,
    /// The program itself, its libraries and the tokenizer: what was held before the model, and what running
    /// adds. Nothing of a GPU's memory.
    pub program: u64,
    /// `footprint` and `program`.
    pub predicted: u64,
    /// What the process holds, or what was taken of the GPU's memory.
    pub measured: u64,
    /// By kind, on the processor.
    pub resident: Option<Resident>,
    /// The most that the process held at once.
    pub peak: Option<u64>,
    /// `measured` over `predicted`, less 1.
    pub off: f64,
}

/// Loads the model as `serve` would, writes everything, and asks the system.
pub fn measure(common: &Common, space: Space) -> Result<Measured> {
    let told = "this system does not tell what a process holds in memory";
    let target = Target::of(&common.backend)?;
    let before = machine::resident().filter(|_| !target.is_gpu());
    let free = target.memory().free;
    let checkpoint = common.open_checkpoint()?;
    let check = checkpoint.check()?;
    let config = check.model.config.clone();
    let limits = |kv, batch| space.limits(&config, kv, batch);
    let mut loaded = common.open_with(true, limits)?;
    let limits = loaded.backend.limits();
    let footprint = target.footprint(&check, common.threads, &limits);
    // The model inside the program is there twice: as a part of it, and where it is used.
    let inside = if loaded.is_demo { loaded.file_bytes } else { 0 };
    // They would keep a mapping of their own.
    drop((checkpoint, check));
    use_all(&mut loaded)?;
    let resident = machine::resident();
    let (program, measured, resident) = match target.is_gpu() {
        true => {
            let now = target.memory().free;
            let taken = free.zip(now).map(|(then, now)| then.saturating_sub(now));
            (
                0,
                taken.context("the GPU does not tell what is free")?,
                None,
            )
        }
        false => {
            let (before, now) = before.zip(resident).context(told)?;
            let running = RUNNING + loaded.tokenizer.bytes() as u64 + inside;
            (before.bytes() + running, now.bytes(), Some(now))
        }
    };
    let predicted = footprint.bytes() + program;
    Ok(Measured {
        model: config.name,
        backend: loaded.backend.describe(),
        context: loaded.context,
        kv_tokens: limits.kv_blocks * KV_BLOCK,
        footprint,
        program,
        predicted,
        measured,
        resident,
        peak: machine::peak_memory(),
        off: measured as f64 / predicted as f64 - 1.0,
    })
}

/// Reads every page of a mapped model, fills a batch in every slot, and writes every block, window and snapshot.
fn use_all(loaded: &mut Loaded) -> Result<()> {
    // A folder's pages were let go of when its weights were rearranged.
    let mapped = match &loaded.checkpoint {
        Checkpoint::Gguf(gguf) => &gguf.files[..],
        Checkpoint::Folder(_) => &[],
    };
    for (_, map) in mapped {
        let sum = map.iter().step_by(PAGE).map(|&byte| u64::from(byte));
        black_box(sum.sum::<u64>());
    }
    let backend = &mut *loaded.backend;
    let limits = backend.limits();
    let rows = (limits.batch_tokens / limits.slots).clamp(1, limits.kv_blocks * KV_BLOCK);
    let slots = limits.slots.min(limits.batch_tokens);
    let vocab = backend.config().vocab;
    let segment = |slot: usize, rows: usize| Segment {
        slot,
        start: 0,
        kept: 0,
        // Many tokens, so that many experts are read.
        tokens: (0..rows)
            .map(|i| ((slot * rows + i) * 97 % vocab) as u32)
            .collect(),
        // Slots write the same blocks: nobody reads what comes of it.
        blocks: (0..rows.div_ceil(KV_BLOCK) as u32).collect(),
        logits: LogitRows::Last,
    };
    let segments = (0..slots).map(|slot| segment(slot, rows)).collect();
    backend.forward(&Batch { segments })?;
    for block in 1..limits.kv_blocks as u32 {
        backend.copy_block(0, block)?;
    }
    windows(backend, &segment)
}

/// Writes all sliding windows and all snapshots.
fn windows(backend: &mut dyn Backend, segment: &dyn Fn(usize, usize) -> Segment) -> Result<()> {
    let limits = backend.limits();
    for snapshot in 0..limits.snapshots {
        backend.save(0, snapshot)?;
    }
    // Without snapshots, by as many tokens as a window holds.
    let window = (backend.config().window + 2 * KV_BLOCK).min(limits.kv_blocks * KV_BLOCK);
    let rows = window.min(limits.batch_tokens);
    for slot in 0..limits.slots {
        match limits.snapshots {
            0 => backend.forward(&Batch {
                segments: vec![segment(slot, rows)],
            })?,
            _ => backend.restore(slot, 0)?,
        }
    }
    Ok(())
}

impl Print for Measured {
    fn table(&self) -> String {
        let mut lines = vec![format!("{}, {}", self.model, self.backend)];
        rows(&self.footprint, self.kv_tokens, &mut lines);
        if self.program > 0 {
            let program = human(self.program);
            lines.push(format!(
                "  {:<34} {program:>10}",
                "the program and the tokenizer"
            ));
        }
        lines.push(format!(
            "  {:<34} {:>10}",
            "predicted",
            human(self.predicted)
        ));
        let kinds = self.resident.map_or(String::new(), |held| {
            format!(
                " ({} anonymous, {} of files)",
                human(held.anonymous),
                human(held.files)
            )
        });
        let measured = human(self.measured);
        lines.push(format!(
            "  {:<34} {measured:>10}{kinds}",
            "measured, all of it written"
        ));
        lines.push(format!(
            "  {:<34} {:>+9.2}%",
            "measured against predicted",
            self.off * 100.0
        ));
        if let Some(peak) = self.peak {
            lines.push(format!("  {:<34} {:>10}", "most held at once", human(peak)));
        }
        lines.join("\n") + "\n"
    }
}
