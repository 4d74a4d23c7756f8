//! `gossamer bench`: how fast this machine runs a model, against what its memory allows.
//!
//! Tokens are random, one pass warms up and is not counted, nothing waits. Bytes are those that the
//! back end counts; the machine's bandwidth is measured in the same run.

mod micro;
mod report;

use super::{
    Usage,
    model::{Common, Loaded, positive},
};
use crate::{
    backend::{Backend, Batch, LogitRows, Segment},
    bandwidth, machine,
    sampler::{Mask, Sampler, Sampling},
    tokenizer::{TokenKind, Tokenizer},
};
use anyhow::Result;
use indicatif::ProgressBar;
use report::{Bandwidth, Report};
use std::time::{Duration, Instant};

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
    /// Runs of each test
    #[arg(short, long, default_value_t = 3, value_name = "N", value_parser = positive)]
    repeat: usize,
    /// Also measure the parts by themselves: tokenizer, Harmony, sampler, product kernels
    #[arg(long)]
    micro: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  gossamer bench --model gpt-oss-20b
  gossamer bench --model gpt-oss-20b -p 512 -n 64 --depth 0,4096 -r 5
  gossamer bench --model gpt-oss-20b --json > bench.json

Columns: tok/s with the spread (standard deviation) over the runs; GB/s of weights and KV cache read;
their share of what this machine's memory can deliver, measured in the same run. Decode is limited by
that bandwidth, prefill by arithmetic. Run it on an otherwise idle machine: it says if it was not.";

/// One test: the same number of tokens at the same depth, several times.
pub struct Test {
    /// `prefill` or `decode`.
    name: &'static str,
    tokens: usize,
    depth: usize,
    runs: Vec<Duration>,
    /// Bytes read in all runs together.
    bytes: u64,
}

/// Measures and reports.
pub fn run(args: Args) -> Result<()> {
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
    let loaded = common.open()?;
    let micro = args.micro.then(|| micro::measure(&loaded)).transpose()?;
    let Loaded {
        model,
        tokenizer,
        backend,
        gguf,
        file_bytes,
        load_time,
        ..
    } = loaded;
    let watch = machine::Watch::start();
    let mut driver = Driver::new(backend, &tokenizer, common.seed);
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner.set_message("warming up");
    driver.warm_up(args.prompt)?;
    let mut tests = Vec::new();
    for &depth in &args.depth {
        for (name, tokens) in [("prefill", args.prompt), ("decode", args.tokens)] {
            if tokens > 0 {
                spinner.set_message(format!("{name} of {tokens} tokens at depth {depth}"));
                tests.push(driver.measure(name, tokens, depth, args.repeat)?);
            }
        }
    }
    // Before the bandwidth's own buffer counts.
    let peak_memory = machine::peak_memory();
    spinner.set_message("reading memory");
    let threads = match common.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let bandwidth = measure_bandwidth(&gguf, threads)?;
    let other_load = watch.stop();
    spinner.finish_and_clear();
    let report = Report {
        model: model.config.name.clone(),
        file: gguf.path().display().to_string(),
        file_bytes,
        backend: driver.backend.describe(),
        cpu: machine::cpu_name(),
        load_time,
        peak_memory,
        bandwidth,
        other_load,
        tests,
        micro,
    };
    report.print(args.json)
}

/// What memory delivers: from a buffer on large pages, and from the model's mapping if it is large.
fn measure_bandwidth(gguf: &crate::gguf::Gguf, threads: usize) -> Result<Bandwidth> {
    let free = machine::available_memory().unwrap_or(1 << 30);
    let size = (free / 4).clamp(64 << 20, 1 << 30) as usize;
    let buffer = bandwidth::Buffer::new(size, threads)?;
    let memory = bandwidth::read(buffer.bytes(), threads, 8);
    let mapping = gguf
        .files
        .iter()
        .map(|(_, map)| &map[..])
        .max_by_key(|map| map.len());
    let mapping = mapping.filter(|map| map.len() >= LARGE_MAPPING);
    let mapping = mapping.map(|map| {
        let part = &map[..map.len().min(4 * LARGE_MAPPING)];
        bandwidth::read(part, threads, 4)
    });
    Ok(Bandwidth {
        threads,
        memory,
        mapping,
    })
}

/// Feeds random tokens to a back end and times it.
struct Driver {
    backend: Box<dyn Backend>,
    batch: Batch,
    /// Tokens in the cache.
    len: usize,
    /// Ordinary tokens to draw from.
    ordinary: Vec<u32>,
    random: u64,
    sampler: Sampler,
}

impl Driver {
    fn new(backend: Box<dyn Backend>, tokenizer: &Tokenizer, seed: Option<u64>) -> Driver {
        let vocab = backend.config().vocab;
        let ordinary: Vec<u32> = (0..vocab as u32)
            .filter(|&id| matches!(tokenizer.kind(id), TokenKind::Normal | TokenKind::Byte))
            .collect();
        let greedy = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let segment = Segment {
            slot: 0,
            start: 0,
            kept: 0,
            tokens: Vec::new(),
            blocks: (0..backend.limits().kv_blocks as u32).collect(),
            logits: LogitRows::None,
        };
        Driver {
            batch: Batch {
                segments: vec![segment],
            },
            len: 0,
            ordinary,
            random: seed
                .unwrap_or(1)
                .wrapping_mul(2)
                .wrapping_add(0x9e37_79b9_7f4a_7c15)
                | 1,
            sampler: Sampler::new(&greedy, vocab, tokenizer.padding_ids(), None, &[]),
            backend,
        }
    }

    fn random_token(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let n = self.ordinary.len().max(1) as u64;
        self.ordinary
            .get((self.random % n) as usize)
            .copied()
            .unwrap_or(0)
    }

    /// Appends `count` random tokens, in pieces as large as the back end takes.
    fn append(&mut self, count: usize, logits: LogitRows) -> Result<()> {
        let end = self.len + count;
        while self.len < end {
            let piece = (end - self.len).min(self.backend.limits().batch_tokens);
            let tokens: Vec<u32> = (0..piece).map(|_| self.random_token()).collect();
            let segment = &mut self.batch.segments[0];
            segment.start = self.len;
            segment.tokens = tokens;
            segment.logits = if self.len + piece == end {
                logits
            } else {
                LogitRows::None
            };
            self.backend.forward(&self.batch)?;
            self.len += piece;
        }
        Ok(())
    }

    /// Decodes `count` random tokens: each runs alone, and a next token is chosen as for a user. It
    /// is not the one that runs: a model of random weights would soon repeat itself, and its experts.
    fn decode(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            self.append(1, LogitRows::Last)?;
            self.sampler.sample(self.backend.logits(0), &Mask::Any)?;
        }
        Ok(())
    }

    /// Leaves exactly `depth` tokens in the cache.
    fn go_to(&mut self, depth: usize) -> Result<()> {
        if self.len != depth {
            self.len = match depth {
                0 => 0,
                _ if depth < self.len => self.backend.rewind(0, depth).min(depth),
                _ => self.len,
            };
            self.append(depth - self.len, LogitRows::None)?;
        }
        Ok(())
    }

    /// Touches all weights and fills all buffers once.
    fn warm_up(&mut self, prompt: usize) -> Result<()> {
        self.append(prompt.max(1), LogitRows::Last)?;
        self.go_to(0)?;
        self.decode(4)?;
        self.go_to(0)
    }

    fn measure(
        &mut self,
        name: &'static str,
        tokens: usize,
        depth: usize,
        runs: usize,
    ) -> Result<Test> {
        let mut test = Test {
            name,
            tokens,
            depth,
            runs: Vec::new(),
            bytes: 0,
        };
        for _ in 0..runs {
            self.go_to(depth)?;
            let before = self.backend.work().bytes;
            let started = Instant::now();
            match name {
                "decode" => self.decode(tokens)?,
                _ => self.append(tokens, LogitRows::Last)?,
            }
            test.runs.push(started.elapsed());
            test.bytes += self.backend.work().bytes - before;
        }
        Ok(test)
    }
}
