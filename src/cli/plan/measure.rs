//! What a plan says beside what the system says, once all that was counted has been written.

use super::{Print, report::rows};
use crate::{
    backend::{Backend, Batch, Footprint, KV_BLOCK, LogitRows, Segment, Target},
    checkpoint::Checkpoint,
    cli::{
        model::{Common, Loaded},
        serve::Space,
    },
    engine::{Engine as _, Event, Events},
    hub::human,
    machine::{self, Resident},
    measure, mlx,
};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::hint::black_box;

/// Bytes of the smallest page: one byte of each is read.
const PAGE: usize = 4096;
/// Pages of the program that are first touched when it runs a model, and what its heap keeps.
const RUNNING: u64 = 4 << 20;

/// The fewest tokens whose keys and values MLX keeps, and most beginnings that are made to be kept.
const KEPT: usize = 32;
const MOST_KEPT: u64 = 1000;

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
    /// What the process holds, or what was taken of the GPU's memory; of MLX its arrays at most, what it keeps for
    /// reuse, and its process without them.
    pub measured: u64,
    /// By kind, on the processor.
    pub resident: Option<Resident>,
    /// The most that the process held at once.
    pub peak: Option<u64>,
    /// The most that MLX's arrays took at once, by its own count.
    pub mlx_peak: Option<u64>,
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
        mlx_peak: None,
        off: measured as f64 / predicted as f64 - 1.0,
    })
}

/// Starts MLX's process as `serve` would, fills its caches (with zeros, but for the last piece of a prompt, which
/// is computed), lets all sequences decode at once, and asks what that took at most.
pub fn measure_mlx(common: &Common, space: mlx::Space) -> Result<Measured> {
    let opened = common.open_mlx(space, |_| {})?;
    let (engine, room) = (&opened.engine, &opened.room);
    let info = engine.info();
    let hello = engine.hello();
    let vocab = info.vocab;
    let ids = |first: usize, n: usize| -> Vec<u32> {
        let at = |i: usize| if i == 0 { first } else { i * 97 };
        (0..n).map(|i| (at(i) % vocab) as u32).collect()
    };
    // Beginnings that are kept, a quarter of their room each.
    let ((token, windows), (piece, shared_piece)) = (opened.kv_bytes, opened.pieces);
    let each = (space.cache_bytes / 4).saturating_sub(windows) / token.max(1);
    let each = each.min(room.context as u64 / 2) as usize;
    if each > KEPT {
        let bytes = each as u64 * token + windows;
        engine.pretend(each - 2);
        for first in 0..=(space.cache_bytes / bytes).min(MOST_KEPT) as usize {
            measure::time(engine, measure::request(&ids(first, each), 1, 1))?;
        }
    }
    // One prompt's last piece, where it has the most before it.
    let steps = (space.slots + 8).min(room.context / 2);
    let prompt = room.context - steps;
    ensure!(
        prompt > 1,
        "--ctx-size {}: too short to measure",
        room.context
    );
    engine.pretend(prompt.saturating_sub(piece + 1));
    measure::time(engine, measure::request(&ids(vocab - 1, prompt), 1, 1))?;
    // All that may run at once, the last one beside the others.
    engine.pretend(prompt - 1);
    let own = |slot: usize| {
        let ids = ids((vocab - 2).saturating_sub(slot), prompt);
        measure::request(&ids, steps, slot as u64)
    };
    let mut others: Vec<Events> = (1..space.slots)
        .map(|slot| engine.submit(own(slot)))
        .collect();
    for events in &mut others {
        match events.find(|event| !matches!(event, Event::Queued | Event::Prefill { .. })) {
            Some(Event::Token { .. }) => {}
            other => bail!("MLX answered with no token: {other:?}"),
        }
    }
    engine.pretend(prompt.saturating_sub(shared_piece + 1));
    measure::time(engine, own(0))?;
    others.into_iter().for_each(|events| events.for_each(drop));
    let memory = engine.memory().context("MLX's process does not answer")?;
    let process = hello.resident + mlx::RUNNING;
    let footprint = Footprint {
        process,
        ..room.footprint
    };
    let predicted = footprint.bytes();
    // Arrays by MLX's own count, which GPUs have too. Of what is allocated some is never written.
    let measured = process + memory.peak + memory.pool;
    Ok(Measured {
        model: opened.checkpoint.config()?.name,
        backend: info.backend.clone(),
        context: room.context,
        kv_tokens: room.kv_tokens(),
        footprint,
        program: 0,
        predicted,
        measured,
        resident: None,
        peak: Some(memory.peak_resident),
        mlx_peak: Some(memory.peak),
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
            match self.mlx_peak {
                Some(_) => "measured, at most",
                None => "measured, all of it written",
            }
        ));
        if let Some(peak) = self.mlx_peak {
            lines.push(format!(
                "  {:<34} {:>10}",
                "of that arrays, by MLX's count",
                human(peak)
            ));
        }
        lines.push(format!(
            "  {:<34} {:>+9.2}%",
            "measured against predicted",
            self.off * 100.0
        ));
        if self.mlx_peak.is_some() {
            lines.push(format!("  {}", super::MLX_COVERS));
        }
        if let Some(peak) = self.peak {
            lines.push(format!("  {:<34} {:>10}", "most held at once", human(peak)));
        }
        lines.join("\n") + "\n"
    }
}
