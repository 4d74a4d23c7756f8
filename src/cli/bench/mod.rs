//! `gossamer bench`: how fast this machine runs a model, against what its memory allows.
//!
//! Tokens are random, one pass warms up and is not counted, nothing waits. Bytes are those that the
//! back end counts; the machine's bandwidth is measured in the same run.

mod driver;
mod engine;
mod masks;
mod micro;
mod report;

use super::{
    Usage,
    engine::PREFIXES,
    long,
    model::{Common, Loaded, positive},
};
use crate::{backend::Backend, bandwidth, checkpoint::Checkpoint, machine, mlx::Space};
use anyhow::Result;
use driver::{Driver, Work};
use indicatif::ProgressBar;
pub(super) use report::mean_and_deviation;
use report::{Bandwidth, Report};
use std::time::Duration;

/// A model's mapping is measured too from this size on: smaller ones fit into caches.
const LARGE_MAPPING: usize = 1 << 30;

/// What `bench` reads.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Tokens of the prompt to prefill; 0 leaves prefill out
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512)]
    prompt: usize,
    /// Tokens to decode, one at a time; 0 leaves decode out
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 64)]
    tokens: usize,
    /// Tokens already in the context, separated by commas: each is measured
    #[arg(
        short,
        long,
        value_name = "TOKENS",
        default_value = "0",
        value_delimiter = ','
    )]
    depth: Vec<usize>,
    /// Sequences that decode at once, separated by commas: each number is measured
    #[arg(long, value_name = "N", default_value = "1", value_delimiter = ',', value_parser = streams)]
    streams: Vec<usize>,
    /// Runs of each test
    #[arg(short, long, default_value_t = 3, value_name = "N", value_parser = positive)]
    repeat: usize,
    /// Also measure the parts by themselves: tokenizer, Harmony, sampler, product kernels
    #[arg(long)]
    micro: bool,
    /// Measure long contexts in place of all this: depths from 1k to 128k tokens on every back end here, with
    /// memory, facts found again and a report, in a budget of time
    #[arg(long, conflicts_with_all = ["prompt", "tokens", "depth", "streams", "repeat", "micro"])]
    long: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    long_flags: long::Flags,
}

const EXAMPLES: &str = "\
Examples:
  gossamer bench --model gpt-oss-20b
  gossamer bench --model gpt-oss-20b -p 512 -n 64 --depth 0,4096 -r 5
  gossamer bench --model gpt-oss-20b --streams 1,4,8,32 -n 16
  gossamer bench --model gpt-oss-20b --json > bench.json
  gossamer bench --model gpt-oss-20b --long --budget 10m

Columns: tok/s, of all streams together, with the spread (standard deviation) over the runs; the time
of a step (one forward pass and the choice of its tokens); GB/s of weights and KV cache read; their share
of what this machine's memory can deliver, measured before, between and after the tests. Decode is
limited by that bandwidth, prefill by arithmetic. `mixed` is one step in which all streams decode while
somebody's prompt is read: they wait that long for a token. With --backend mlx requests are timed as a user
would see them, and bytes are not known. Run it on an otherwise idle machine: it
says if it was not.";

/// Most sequences at once.
const MOST_STREAMS: usize = 256;

/// A number of sequences.
fn streams(text: &str) -> Result<usize, String> {
    match positive(text)? {
        n if n <= MOST_STREAMS => Ok(n),
        _ => Err(format!("must be at most {MOST_STREAMS}")),
    }
}

/// Measures and reports.
pub fn run(args: Args) -> Result<()> {
    if args.long {
        return long::run(args.common, &args.long_flags, args.json);
    }
    if args.long_flags != long::Flags::default() {
        let text = "--budget, --lengths, --output and --fresh are flags of bench --long";
        return Err(Usage(text.into()).into());
    }
    let deepest = args.depth.iter().max().copied().unwrap_or(0);
    let needed = deepest.saturating_add(args.prompt.max(args.tokens).max(1));
    let mut common = args.common.clone();
    match common.ctx_size {
        Some(size) if size < needed => {
            let text = format!("--ctx-size {size}: these depths and lengths need {needed} tokens");
            return Err(Usage(text).into());
        }
        _ => common.ctx_size = Some(common.ctx_size.unwrap_or(needed)),
    }
    if common.is_mlx() && args.micro {
        let text = "--micro measures the parts of this program: not with --backend mlx";
        return Err(Usage(text.into()).into());
    }
    let most_streams = args.streams.iter().max().copied().unwrap_or(1);
    let mut for_mlx = common.clone();
    // The token that comes with the prompt.
    for_mlx.ctx_size = common
        .ctx_size
        .map(|size| size.max(needed.saturating_add(2)));
    let space = Space {
        slots: most_streams,
        cache_bytes: PREFIXES,
    };
    if !args.micro
        && let Some(opened) = for_mlx.open_mlx_if_wanted(space, |_| {})?
    {
        return engine::run(&args, &for_mlx, opened);
    }
    // The context is given: memory bounds nothing on the processor.
    let loaded = common.open_with(false, |room, batch| {
        driver::room(most_streams, room.context, batch)
    })?;
    let micro = args.micro.then(|| micro::measure(&loaded)).transpose()?;
    let Loaded {
        model,
        tokenizer,
        backend,
        checkpoint,
        context,
        file_bytes,
        load_time,
        ..
    } = loaded;
    let watch = machine::Watch::start();
    let mut driver = Driver::new(backend, context, &tokenizer, common.seed)?;
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner.set_message("warming up");
    driver.warm_up(args.prompt, most_streams)?;
    let threads = match common.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let peak_memory = machine::peak_memory();
    let mut memory = Memory::new(&checkpoint, threads)?;
    let mut tests = Vec::new();
    for &depth in &args.depth {
        let mut plan = vec![(Work::Prefill(args.prompt), 1)];
        for &streams in &args.streams {
            plan.push((Work::Decode(args.tokens), streams));
            if streams > 1 {
                plan.push((Work::Mixed(args.prompt), streams));
            }
        }
        for (work, streams) in plan {
            let (Work::Prefill(tokens) | Work::Decode(tokens) | Work::Mixed(tokens)) = work;
            if tokens > 0 {
                spinner.set_message(format!("{} at depth {depth}", work.name()));
                memory.measure(&mut *driver.backend)?;
                tests.push(driver.measure(work, streams, depth, args.repeat)?);
            }
        }
    }
    memory.measure(&mut *driver.backend)?;
    // Less the buffer that the bandwidth was measured on.
    let later = machine::peak_memory().map(|peak| peak.saturating_sub(memory.buffer_bytes()));
    let other_load = watch.stop();
    spinner.finish_and_clear();
    let report = Report {
        model: model.config.name.clone(),
        file: checkpoint.path().display().to_string(),
        file_bytes,
        backend: driver.backend.describe(),
        cpu: machine::cpu_name(),
        load_time,
        peak_memory: peak_memory.max(later),
        bandwidth: memory.best,
        other_load,
        tests,
        micro,
    };
    report.print(args.json)
}

/// What memory delivers: from a buffer on large pages, and from the model's mapping if it is large.
/// It drifts with the machine's other guests, so it is measured often and the best counts.
struct Memory<'a> {
    buffer: bandwidth::Buffer,
    mapping: Option<&'a [u8]>,
    best: Bandwidth,
}

impl<'a> Memory<'a> {
    fn new(checkpoint: &'a Checkpoint, threads: usize) -> Result<Memory<'a>> {
        let free = machine::available_memory().unwrap_or(1 << 30);
        let size = (free / 4).clamp(64 << 20, 1 << 30) as usize;
        let mapping = checkpoint
            .files()
            .iter()
            .map(|(_, map)| &map[..])
            .max_by_key(|map| map.len());
        let mapping = mapping.filter(|map| map.len() >= LARGE_MAPPING);
        Ok(Memory {
            buffer: bandwidth::Buffer::new(size, threads)?,
            mapping: mapping.map(|map| &map[..map.len().min(2 * LARGE_MAPPING)]),
            best: Bandwidth {
                threads,
                memory: 0.0,
                mapping: mapping.map(|_| 0.0),
                device: None,
            },
        })
    }

    fn measure(&mut self, backend: &mut dyn Backend) -> Result<()> {
        if let Some(speed) = backend.read_bandwidth()? {
            self.best.device = Some(self.best.device.map_or(speed, |best| best.max(speed)));
            return Ok(());
        }
        let threads = self.best.threads;
        let memory = bandwidth::read(self.buffer.bytes(), threads, 4);
        self.best.memory = self.best.memory.max(memory);
        if let (Some(part), Some(best)) = (self.mapping, &mut self.best.mapping) {
            *best = best.max(bandwidth::read(part, threads, 2));
        }
        Ok(())
    }

    fn buffer_bytes(&self) -> u64 {
        self.buffer.bytes().len() as u64
    }
}
