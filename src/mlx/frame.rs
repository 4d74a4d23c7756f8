//! What goes between this program and the worker: a header in JSON and a blob of raw numbers.
//!
//! Two little-endian u32 (bytes of the header, bytes of the blob), the header, the blob. Both lengths are
//! bounded before anything is read, and nothing is allocated before it is there.

use crate::sampler::{Mask, Sampling};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Read},
    path::Path,
};

/// The worker speaks this version, or another program.
pub const PROTOCOL: u32 = 1;
/// Longest header: log-probabilities of a batch take the most.
const MOST_HEADER: u32 = 64 << 20;
/// Longest blob: 64 rows of logits, of a vocabulary five times as large.
const MOST_BLOB: u32 = 256 << 20;

/// What the worker is told.
#[derive(Debug, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Ask<'a> {
    /// Load a model's folder: the first message.
    Load {
        path: &'a Path,
        /// `released`, or `upstream`: as mlx-lm has it.
        rope: &'static str,
        /// Most bytes of prefixes to keep.
        cache_bytes: u64,
        /// Ids that are never sampled.
        padding: &'a [u32],
        /// Bytes of arrays beyond which MLX waits for what runs before it takes more; 0: as it likes.
        memory: u64,
        /// Most bytes of freed memory that it keeps for reuse.
        pool_bytes: u64,
    },
    /// Continue the prompt in the blob.
    Generate {
        id: u64,
        max_tokens: usize,
        stop: &'a [u32],
        sampling: Choice<'a>,
        logprobs: Option<usize>,
        prompt_logprobs: Option<usize>,
        /// Each token waits for a mask.
        masked: bool,
        /// Whether it may begin with a kept prefix.
        cache: bool,
    },
    /// What may come next: `any`, or by the blob `bits`, `only` those ids, all `except` those.
    Mask { id: u64, kind: &'static str },
    /// End a request.
    Cancel { id: u64 },
    /// Logits of the ids in the blob, from row `first` on.
    Score { first: usize },
    /// What every layer leaves of the ids in the blob.
    Trace,
    /// Memory.
    Stats,
    /// So many tokens of every longer prompt count as read, from now on: keys and values are zeros.
    Pretend { tokens: usize },
    /// Are you there?
    Ping,
    /// End.
    Shutdown,
}

/// How to choose tokens; the seed is always given.
#[derive(Debug, Serialize)]
pub struct Choice<'a> {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: &'a [(u32, f32)],
    seed: u64,
}

impl<'a> Choice<'a> {
    /// All of `sampling`, with this seed.
    pub fn new(sampling: &'a Sampling, seed: u64) -> Choice<'a> {
        // No field is left out: one that is new does not compile until the worker knows it.
        let Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            ref logit_bias,
            seed: _,
        } = *sampling;
        Choice {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed,
        }
    }
}

/// What the worker tells.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Tell {
    /// The first message.
    Hello(Hello),
    /// What a Python with MLX computes on: all that it says.
    Device(Device),
    /// The model is there.
    Loaded {
        vocab: usize,
    },
    /// How much of a prompt is done; the first one tells what the cache spared.
    Progress {
        id: u64,
        done: usize,
        cached: Option<usize>,
        /// Tokens that the prompt shares with anything that is kept.
        #[serde(default)]
        shared: usize,
    },
    /// Log-probabilities of the prompt's next tokens.
    PromptLogprobs {
        id: u64,
        logprobs: Vec<f32>,
        top: Vec<Vec<(u32, f32)>>,
    },
    /// The tokens of one step.
    Tokens {
        tokens: Vec<Token>,
    },
    /// A request is over.
    Done {
        id: u64,
        reason: Reason,
    },
    /// Logits of `rows` positions from `first` on: f32 in the blob.
    Scores {
        first: usize,
        rows: usize,
        width: usize,
    },
    /// All logits were sent.
    Scored,
    /// The residual stream after a stage, or the logits: f32 `[rows, width]` in the blob.
    Piece {
        layer: Option<usize>,
        stage: String,
        first: usize,
        rows: usize,
        width: usize,
    },
    /// All pieces were sent.
    Traced,
    /// Memory.
    Stats(Memory),
    Pong,
    /// A request failed; without an id what was asked last, or everything.
    Error {
        id: Option<u64>,
        message: String,
        /// It was for want of memory.
        #[serde(default)]
        memory: bool,
    },
}

/// What a worker runs on.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Python's version.
    pub python: String,
    /// mlx's version.
    pub mlx: String,
    /// mlx-lm's version.
    pub mlx_lm: String,
    /// What computes.
    pub device: String,
    /// It is a GPU.
    pub gpu: bool,
    /// Bytes that the process holds before it has a model.
    #[serde(default)]
    pub resident: u64,
}

/// What MLX computes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// It is a GPU.
    pub gpu: bool,
    /// It is Apple's.
    pub metal: bool,
    /// Bytes that a GPU lets a model have, where it tells.
    pub free: Option<u64>,
}

impl Device {
    /// What this kind of machine computes on, where nobody can be asked.
    pub fn expected() -> Device {
        let metal = cfg!(all(target_os = "macos", target_arch = "aarch64"));
        Device {
            name: if metal { "Apple's GPU" } else { "cpu" }.to_owned(),
            gpu: metal,
            metal,
            free: None,
        }
    }
}

/// One chosen token.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Token {
    pub id: u64,
    pub token: u32,
    pub logprob: Option<f32>,
    #[serde(default)]
    pub top: Vec<(u32, f32)>,
}

/// Why a request is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Stop,
    Length,
    Cancelled,
}

/// The worker's memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Memory {
    /// Of MLX's arrays, now.
    pub active: u64,
    /// Of MLX's arrays, at most so far.
    pub peak: u64,
    /// Kept by MLX for reuse.
    pub pool: u64,
    /// Of the whole process, now.
    pub resident: u64,
    /// Of the whole process, at most so far.
    pub peak_resident: u64,
}

/// Bytes that a worker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Now.
    pub now: u64,
    /// At most so far.
    pub most: u64,
}

impl Held {
    /// On a GPU, of whose memory the system need not tell, the process before it had a model, and arrays by MLX's
    /// own count; else what the system says of the process.
    pub fn of(memory: &Memory, hello: &Hello) -> Held {
        if !hello.gpu {
            return Held {
                now: memory.resident,
                most: memory.peak_resident,
            };
        }
        let with = |arrays: u64| {
            [hello.resident, arrays, memory.pool]
                .into_iter()
                .fold(0, u64::saturating_add)
        };
        Held {
            now: with(memory.active),
            most: with(memory.peak),
        }
    }
}

/// A message with its blob.
#[derive(Debug, PartialEq)]
pub struct Frame {
    pub tell: Tell,
    pub blob: Vec<u8>,
}

/// The bytes of a message.
///
/// # Errors
/// When it is longer than a frame may be.
pub fn encode(ask: &Ask, blob: &[u8]) -> io::Result<Vec<u8>> {
    let header = serde_json::to_vec(ask)?;
    let too_long = |_| io::Error::other("a message is longer than a frame");
    let lengths = [header.len(), blob.len()].map(|n| u32::try_from(n).map_err(too_long));
    let [head, tail] = lengths;
    let mut bytes = Vec::with_capacity(8 + header.len() + blob.len());
    bytes.extend(head?.to_le_bytes());
    bytes.extend(tail?.to_le_bytes());
    bytes.extend(header);
    bytes.extend(blob);
    Ok(bytes)
}

/// The next message; `None` at the end.
///
/// # Errors
/// What is no frame of this protocol, in words; or the pipe's error.
pub fn read(from: &mut impl Read) -> io::Result<Option<Frame>> {
    let Some(head) = length(from)? else {
        return Ok(None);
    };
    let Some(tail) = length(from)? else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    if head > MOST_HEADER || tail > MOST_BLOB {
        let text = format!("a frame of {head} + {tail} bytes: this is no worker of ours");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let header = exactly(from, head)?;
    let blob = exactly(from, tail)?;
    let tell = serde_json::from_slice(&header).map_err(|error| {
        let start: String = String::from_utf8_lossy(&header).chars().take(80).collect();
        let text = format!("a message that can't be read ({error}): {start}");
        io::Error::new(io::ErrorKind::InvalidData, text)
    })?;
    Ok(Some(Frame { tell, blob }))
}

fn length(from: &mut impl Read) -> io::Result<Option<u32>> {
    let mut bytes = [0; 4];
    let mut got = 0;
    while got < bytes.len() {
        match from.read(&mut bytes[got..]) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(u32::from_le_bytes(bytes)))
}

/// `n` bytes, taken as they come: a length that lies costs no memory.
fn exactly(from: &mut impl Read, n: u32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(u64::from(n)).read_to_end(&mut bytes)?;
    match bytes.len() == n as usize {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Ids as a blob.
pub fn ids(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// A blob of `rows * width` f32; `None` if it has another length.
pub fn floats(blob: &[u8], rows: usize, width: usize) -> Option<Vec<f32>> {
    let (values, rest) = blob.as_chunks::<4>();
    let fits = rest.is_empty() && rows.checked_mul(width) == Some(values.len());
    fits.then(|| values.iter().map(|v| f32::from_le_bytes(*v)).collect())
}

/// A mask as the worker reads it: its kind and the blob.
pub fn mask(mask: &Mask) -> (&'static str, Vec<u8>) {
    match mask {
        Mask::Any => ("any", Vec::new()),
        Mask::Except(these) => ("except", ids(these)),
        Mask::Only(these) => ("only", ids(these)),
        Mask::Bits(words) => ("bits", ids(words)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(header: &str, blob: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u32).to_le_bytes().to_vec();
        bytes.extend((blob.len() as u32).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(blob);
        bytes
    }

    #[test]
    fn frames_are_read_whole_and_in_order() -> io::Result<()> {
        let mut bytes = frame(r#"{"op":"pong"}"#, b"");
        let scores = r#"{"op":"scores","first":3,"rows":1,"width":2}"#;
        let values: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        bytes.extend(frame(scores, &values));
        let mut from = &bytes[..];
        assert_eq!(read(&mut from)?.map(|f| f.tell), Some(Tell::Pong));
        let Some(Frame { tell, blob }) = read(&mut from)? else {
            panic!("no second frame");
        };
        let (first, rows, width) = (3, 1, 2);
        assert_eq!(tell, Tell::Scores { first, rows, width });
        assert_eq!(floats(&blob, rows, width), Some(vec![1.5, -2.0]));
        assert_eq!(floats(&blob, usize::MAX, 2), None);
        assert_eq!(floats(&blob, 1, 3), None);
        assert_eq!(read(&mut from)?, None);
        Ok(())
    }

    #[test]
    fn a_frame_that_is_cut_or_too_long_is_an_error() {
        let whole = frame(r#"{"op":"pong"}"#, b"12345");
        for n in 1..whole.len() {
            assert!(read(&mut &whole[..n]).is_err(), "cut at {n}");
        }
        let mut long = whole.clone();
        long[3] = 0xff;
        let error = read(&mut &long[..]).map(drop);
        assert!(error.is_err_and(|e| e.to_string().contains("no worker of ours")));
        // What a library printed into the pipe.
        let error = read(&mut &b"Fetching 12 files: 100%"[..]).map(drop);
        assert!(error.is_err_and(|e| e.to_string().contains("no worker of ours")));
    }

    proptest! {
        #[test]
        fn junk_is_an_error_and_never_a_panic(junk in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut from = &junk[..];
            while let Ok(Some(_)) = read(&mut from) {}
            let mut from = &frame(&String::from_utf8_lossy(&junk), &junk)[..];
            let _ = read(&mut from);
        }
    }

    #[test]
    fn what_a_worker_holds_is_told_by_who_knows() {
        let memory = Memory {
            active: 100,
            peak: 200,
            pool: 30,
            resident: 1_000,
            peak_resident: 2_000,
        };
        let on = |gpu| {
            let hello = Hello {
                gpu,
                resident: 7,
                ..Hello::default()
            };
            let held = Held::of(&memory, &hello);
            (held.now, held.most)
        };
        assert_eq!(on(false), (1_000, 2_000));
        assert_eq!(on(true), (137, 237));
    }
}
