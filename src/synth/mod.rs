//! Models with random weights in the layout of the released files: the same keys, tensors, types,
//! sizes and (if asked for) vocabulary, for measuring and testing without the real weights.
//!
//! Everything depends on the shape, the vocabulary and the seed alone: the same bytes on any machine
//! with any number of threads.

use crate::{
    config::{Config, Rope},
    gguf::write,
    tokenizer::{TokenKind, Vocabulary},
};
use anyhow::{Result, bail, ensure};
use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

pub(crate) mod header;
mod layout;
mod values;

use layout::Tensor;

/// Shapes by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// gpt-oss-20b: 24 layers, 32 experts, 12.1 GB.
    #[value(name = "20b")]
    B20,
    /// gpt-oss-120b: 36 layers, 128 experts, 63.4 GB.
    #[value(name = "120b")]
    B120,
    /// 4 layers, hidden 256, 8 experts, for tests: a few megabytes.
    Tiny,
}

impl Preset {
    /// The shape, for a vocabulary of `vocab` tokens.
    pub fn config(self, vocab: usize) -> Config {
        let (label, layers, experts) = match self {
            Preset::B20 => ("20b", 24, 32),
            Preset::B120 => ("120b", 36, 128),
            Preset::Tiny => ("tiny", 4, 8),
        };
        let tiny = self == Preset::Tiny;
        Config {
            name: format!("Random gpt-oss {label}"),
            layers,
            hidden: if tiny { 256 } else { 2880 },
            heads: if tiny { 8 } else { 64 },
            kv_heads: if tiny { 2 } else { 8 },
            head_dim: 64,
            experts,
            experts_used: 4,
            expert_width: if tiny { 256 } else { 2880 },
            vocab,
            context: 131_072,
            window: 128,
            rms_eps: 1e-5,
            swiglu_limit: 7.0,
            rope: Rope {
                theta: 150_000.0,
                factor: 32.0,
                original_context: 4096,
                beta_fast: 32.0,
                beta_slow: 1.0,
                rounded: false,
            },
        }
    }
}

/// A file to be: its front, and where which random values go.
pub struct Synth {
    seed: u64,
    header: Vec<u8>,
    tensors: Vec<Tensor>,
    data_bytes: u64,
}

/// Bytes a thread makes at a time, about; whole blocks.
const CHUNK: u64 = 4 << 20;

impl Synth {
    /// Lays the file out.
    ///
    /// # Errors
    /// When inner dimensions aren't multiples of 32, heads don't divide, more experts are used than
    /// exist, or the vocabulary's size isn't the shape's.
    pub fn new(config: &Config, vocabulary: &Vocabulary, seed: u64) -> Result<Synth> {
        let c = config;
        ensure!(
            c.vocab == vocabulary.tokens.len(),
            "the vocabulary has {} tokens, the shape says {}",
            vocabulary.tokens.len(),
            c.vocab
        );
        for (what, inner) in [
            ("hidden size", c.hidden),
            ("expert width", c.expert_width),
            ("query heads x head size", c.heads * c.head_dim),
        ] {
            ensure!(
                inner > 0 && inner.is_multiple_of(32),
                "{what}: expected a multiple of 32 (a block of the quantized types), found {inner}"
            );
        }
        ensure!(
            c.layers > 0 && c.kv_heads > 0 && c.heads.is_multiple_of(c.kv_heads),
            "expected at least one layer and query heads ({}) a multiple of KV heads ({})",
            c.heads,
            c.kv_heads
        );
        ensure!(
            (1..=c.experts).contains(&c.experts_used),
            "experts: a token uses {}, the model has {}",
            c.experts_used,
            c.experts
        );
        let padding = vocabulary
            .kinds
            .iter()
            .position(|&kind| kind == TokenKind::Unused);
        let tensors = layout::tensors(config, padding.map_or(u64::MAX, |id| id as u64));
        let data_bytes = tensors
            .last()
            .map_or(0, |t| t.offset + t.bytes.next_multiple_of(write::ALIGNMENT));
        Ok(Synth {
            seed,
            header: header::header(config, vocabulary, &tensors)?,
            tensors,
            data_bytes,
        })
    }

    /// Size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes
    }

    /// Number of tensors.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// The whole file in memory, for small models.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut file = self.header.clone();
        file.resize(self.file_bytes() as usize, 0);
        let data = &mut file[self.header.len()..];
        for tensor in &self.tensors {
            let key = values::stream(self.seed, &tensor.name);
            let range = tensor.offset as usize..(tensor.offset + tensor.bytes) as usize;
            values::fill(tensor, key, 0, &mut data[range]);
        }
        file
    }

    /// Writes the file under a temporary name and renames it when it is whole. With `sparse` only
    /// the front is written and the data is a hole of the true size. `progress` hears the number of
    /// bytes just written, from several threads.
    ///
    /// # Errors
    /// When the disk has too little space, or writing fails; the temporary file is removed.
    pub fn write(&self, path: &Path, sparse: bool, progress: impl Fn(u64) + Sync) -> Result<()> {
        let needed = if sparse { 0 } else { self.file_bytes() };
        write::replace(path, needed, |partial| {
            self.write_to(partial, sparse, &progress)
        })
    }

    fn write_to(
        &self,
        partial: &Path,
        sparse: bool,
        progress: &(impl Fn(u64) + Sync),
    ) -> Result<()> {
        let mut file = File::create(partial)?;
        file.write_all(&self.header)?;
        file.set_len(self.file_bytes())?;
        if sparse {
            return Ok(());
        }
        progress(self.header.len() as u64);

        // (tensor, first block, blocks)
        let mut work = Vec::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            let (_, block) = tensor.values.block();
            let blocks = tensor.bytes / block;
            let step = CHUNK / block;
            work.extend(
                (0..blocks)
                    .step_by(step as usize)
                    .map(|b| (index, b, step.min(blocks - b))),
            );
        }
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let first_error = Mutex::new(None);
        let worker = || -> Result<()> {
            // A handle of its own: each thread seeks.
            let mut file = File::options().write(true).open(partial)?;
            let mut buffer = Vec::new();
            while !failed.load(Ordering::Relaxed)
                && let Some(&(index, first, blocks)) =
                    work.get(next.fetch_add(1, Ordering::Relaxed))
            {
                let tensor = &self.tensors[index];
                let (_, block) = tensor.values.block();
                buffer.resize((blocks * block) as usize, 0);
                let key = values::stream(self.seed, &tensor.name);
                values::fill(tensor, key, first, &mut buffer);
                let at = self.header.len() as u64 + tensor.offset + first * block;
                file.seek(SeekFrom::Start(at))?;
                file.write_all(&buffer)?;
                progress(buffer.len() as u64);
            }
            Ok(())
        };
        let threads = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(8);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    if let Err(error) = worker() {
                        failed.store(true, Ordering::Relaxed);
                        if let Ok(mut slot) = first_error.lock() {
                            slot.get_or_insert(error);
                        }
                    }
                });
            }
        });
        match first_error.into_inner() {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(error),
            Err(_) => bail!("a writing thread died"),
        }
    }
}
