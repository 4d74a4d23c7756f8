//! `gossamer plan`: what a model takes of memory, and what fits, before any of it is loaded.
//!
//! The sums are the back ends' own, and the room is found as `serve` finds it: what is said to fit here
//! is what the other commands make room for. `--measure` loads the model, writes all that was counted,
//! and puts what the system says beside it.

mod measure;
mod report;

use super::{
    engine::folder,
    model::{Common, up_to},
    serve::{Space, bytes},
};
use crate::{
    backend::{Footprint, KvRoom, Limits, Memory, Room, Target},
    checkpoint::Checkpoint,
    config::Config,
    mlx::{self, Device, Needs},
    weights::Check,
};
use anyhow::{Context, Result, bail};
use report::{Outcome, Report, Sequences};
use std::io::Write;

/// Most sequences at once that are counted.
const MOST_SEQUENCES: usize = 256;

/// What MLX's sums leave out.
const MLX_COVERS: &str = "not counted: log-probabilities of whole prompts, and what a driver takes; requests that \
                          would outgrow this wait";
const UNMEASURED: &str = "never measured on a GPU; not counted: log-probabilities of whole prompts, and what a \
                          driver takes; requests that would outgrow this wait";

/// What `plan` reads.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Requests that run at once, up to 256, as `serve` takes it
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = up_to::<MOST_SEQUENCES>)]
    max_seqs: usize,
    /// Memory for snapshots of the sliding windows, as `serve` takes it
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = bytes)]
    cache_bytes: u64,
    /// Plan for so much free memory, such as 16GB, instead of what is free here
    #[arg(long, value_name = "BYTES", value_parser = bytes, conflicts_with = "measure")]
    memory: Option<u64>,
    /// Load the model, use all of the memory that is planned, and print what that took beside it
    #[arg(long)]
    measure: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  gossamer plan --model gpt-oss-20b                      every back end found here
  gossamer plan --model gpt-oss-20b --memory 16GB        another machine
  gossamer plan --model gpt-oss-20b --ctx-size 131072 --max-seqs 4
  gossamer plan --model gpt-oss-20b --measure            load it, and see whether that was true
  gossamer plan --model FOLDER --measure --backend mlx   the same for MLX's process

`serve` and `run` make room by the same sums, and refuse a --ctx-size that can't fit instead of being ended
by the system. Pages of the model's files are counted, but can be had back: a model larger than memory
runs, as slowly as the disk. Exit code 1 where nothing fits.";

/// Plans, and measures where asked to.
pub fn run(args: Args) -> Result<()> {
    if args.measure {
        let measured = match args.common.is_mlx() {
            true => measure::measure_mlx(&args.common, args.space().of_mlx())?,
            false => measure::measure(&args.common, args.space())?,
        };
        return print(&measured, args.json);
    }
    let checkpoint = args.common.open_checkpoint()?;
    let check = checkpoint.check()?;
    let targets = match args.common.backend.as_str() {
        "auto" => Target::all(),
        "mlx" => Vec::new(),
        name => vec![(name.to_owned(), Target::of(name)?)],
    };
    let mut outcomes = Vec::new();
    for (name, target) in targets {
        let mut memory = target.memory();
        if let Some(free) = args.memory {
            memory.free = Some(free);
        }
        outcomes.push(args.outcome(name, &target, memory, &check)?);
    }
    if args.common.is_mlx() || args.common.backend == "auto" && checkpoint.path().is_dir() {
        outcomes.push(args.mlx(&checkpoint, &check.model.config)?);
    }
    let report = Report {
        model: check.model.config.name.clone(),
        file: checkpoint.path().display().to_string(),
        file_bytes: checkpoint.file_bytes(),
        context: check.model.config.context,
        notes: check.cost.notes,
        outcomes,
    };
    print(&report, args.json)?;
    match report.outcomes.iter().any(|o| o.refused.is_none()) {
        true => Ok(()),
        false => bail!("{}: no back end here has room for that", report.file),
    }
}

/// What can be printed as a table or as JSON.
trait Print: serde::Serialize {
    fn table(&self) -> String;
}

fn print(report: &impl Print, json: bool) -> Result<()> {
    let text = match json {
        true => serde_json::to_string_pretty(report)? + "\n",
        false => report.table(),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).context("writing the plan")
}

impl Args {
    fn space(&self) -> Space {
        Space::new(self.max_seqs, self.cache_bytes)
    }

    fn outcome(
        &self,
        backend: String,
        target: &Target,
        memory: Memory,
        check: &Check,
    ) -> Result<Outcome> {
        let (common, config) = (&self.common, &check.model.config);
        let room = |common: &Common, space: Space| {
            let limits = |kv: KvRoom, batch| space.limits(config, kv, batch);
            common.room_on(target, &memory, check, true, &limits)
        };
        let (room, refused) = match room(common, self.space()) {
            Ok(room) => (Some(room), None),
            Err(why) if why.chain().any(|e| e.is::<super::Usage>()) => return Err(why),
            Err(why) => (None, Some(format!("{why:#}"))),
        };
        let any = Common {
            ctx_size: None,
            ..common.clone()
        };
        let alone = self::alone(&any, target, &memory, check);
        let footprint = |limits: &Limits| target.footprint(check, common.threads, limits);
        let batch_tokens = target.batch_tokens();
        let sequences = lengths(config).map(|tokens| Sequences {
            tokens,
            most: most(
                &memory,
                &footprint,
                self.space(),
                config,
                tokens,
                batch_tokens,
            ),
        });
        let streams = room.as_ref().is_some_and(|r| memory.streams(&r.footprint));
        Ok(Outcome {
            backend,
            memory: memory.name.clone(),
            free: memory.free,
            refused,
            note: None,
            streams,
            context: room.as_ref().map(|room| room.context),
            sequences_at_once: self.max_seqs,
            kv_tokens: room.as_ref().map(Room::kv_tokens),
            footprint: room.map(|room| room.footprint),
            longest: alone,
            sequences: sequences.collect(),
        })
    }
}

impl Args {
    /// What the model takes with MLX. Where MLX is not to be had here, as this kind of machine would run it.
    fn mlx(&self, checkpoint: &Checkpoint, config: &Config) -> Result<Outcome> {
        let common = &self.common;
        let found = mlx::find(common.mlx_python.as_deref());
        let found = found.and_then(|python| mlx::device(&python));
        let (device, missing) = match found {
            Ok(device) => (device, None),
            Err(why) => (
                Device::expected(),
                Some(format!("MLX can't be run here: {why:#}")),
            ),
        };
        let note = match (device.gpu, missing) {
            (_, Some(missing)) => missing,
            (true, None) => UNMEASURED.to_owned(),
            (false, None) => MLX_COVERS.to_owned(),
        };
        let needs = Needs::new(folder(checkpoint)?, config, device);
        let mut memory = needs.memory();
        if let Some(free) = self.memory {
            memory.free = Some(free);
        }
        let space = self.space().of_mlx();
        let (room, refused) = match common.mlx_room(&needs, &memory, space) {
            Ok(room) => (Some(room), None),
            Err(why) if why.chain().any(|e| e.is::<super::Usage>()) => return Err(why),
            Err(why) => (None, Some(format!("{why:#}"))),
        };
        let one = mlx::Space {
            slots: 1,
            cache_bytes: 0,
        };
        let longest = needs.room(&memory, None, one).ok();
        let sequences = lengths(config).map(|tokens| {
            let fits = |&slots: &usize| {
                let space = mlx::Space { slots, ..space };
                memory.fits(&needs.footprint(tokens, tokens.saturating_mul(slots), space))
            };
            let most = (1..=MOST_SEQUENCES).take_while(fits).last();
            Sequences {
                tokens,
                most: most.unwrap_or(0),
            }
        });
        Ok(Outcome {
            backend: "mlx".to_owned(),
            memory: memory.name.clone(),
            free: memory.free,
            refused,
            note: Some(note),
            streams: false,
            context: room.as_ref().map(|room| room.context),
            sequences_at_once: self.max_seqs,
            kv_tokens: room.as_ref().map(Room::kv_tokens),
            longest: longest.map(|room| room.context),
            sequences: sequences.collect(),
            footprint: room.map(|room| room.footprint),
        })
    }
}

/// The longest context of one sequence, without snapshots.
fn alone(common: &Common, target: &Target, memory: &Memory, check: &Check) -> Option<usize> {
    let config = &check.model.config;
    let limits = |kv: KvRoom, batch| Space::new(1, 0).limits(config, kv, batch);
    let room = common.room_on(target, memory, check, false, &limits);
    room.ok().map(|room| room.context)
}

/// The lengths that numbers of sequences are told for.
fn lengths(config: &Config) -> impl Iterator<Item = usize> {
    let full = config.context;
    let shorter = [4096, 32_768].into_iter().filter(move |&n| n < full);
    shorter.chain([full])
}

/// The most sequences that fit when each of them takes `tokens`.
fn most(
    memory: &Memory,
    footprint: &dyn Fn(&Limits) -> Footprint,
    space: Space,
    config: &Config,
    tokens: usize,
    batch_tokens: usize,
) -> usize {
    let fits = |&seqs: &usize| {
        let all = tokens * seqs;
        let space = Space { seqs, ..space };
        let kv = KvRoom {
            context: all,
            tokens: all,
        };
        memory.fits(&footprint(&space.limits(config, kv, batch_tokens)))
    };
    (1..=MOST_SEQUENCES).take_while(fits).last().unwrap_or(0)
}
