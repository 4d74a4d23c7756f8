//! A worker that scores given tokens: the engine's model, without its scheduler.

use super::{
    describe,
    frame::{self, Ask, Device, Frame, Hello, Memory, Tell},
    process::{Heard, Process},
    watch::Patience,
};
use crate::{
    config::Config,
    score::Scorer,
    trace::{self, Piece, Stage},
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::{
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

/// A worker's model as a [`Scorer`]. Layers are seen from outside: of the stages a trace has `embed`,
/// `out_proj_residual`, `expert_down_residual` and `norm_lm_head`.
pub struct MlxScorer {
    process: Process,
    heard: mpsc::Receiver<Heard>,
    hello: Hello,
    vocab: usize,
    context: usize,
    patience: Patience,
}

impl MlxScorer {
    /// Starts a worker with the model in `folder`, whose shape is `config`; `rope_upstream`: YaRN as mlx-lm
    /// has it, not as the released model means it.
    ///
    /// # Errors
    /// When Python, mlx-lm or the model can't be had; with the worker's last words.
    pub fn start(
        python: &Path,
        folder: &Path,
        rope_upstream: bool,
        config: &Config,
    ) -> Result<MlxScorer> {
        let (mut process, heard) = open("worker", python)?;
        let load = Ask::Load {
            path: folder,
            rope: super::rope(rope_upstream),
            cache_bytes: 0,
            padding: &[],
            memory: 0,
            pool_bytes: super::POOL,
        };
        process.tell(&load, &[]);
        let mut scorer = MlxScorer {
            process,
            heard,
            hello: Hello::default(),
            vocab: config.vocab,
            context: config.context,
            patience: Patience::default(),
        };
        scorer.hello = scorer.greet()?;
        let limit = scorer.patience.load;
        match scorer.next(limit)?.tell {
            Tell::Loaded { vocab } if vocab == config.vocab => Ok(scorer),
            Tell::Loaded { vocab } => bail!(
                "mlx-lm finds a vocabulary of {vocab} in this folder, expected {}",
                config.vocab
            ),
            other => Err(out_of_turn(&other)),
        }
    }

    /// What it runs on.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The worker's memory right now.
    pub fn memory(&mut self) -> Result<Memory> {
        self.process.tell(&Ask::Stats, &[]);
        match self.next(self.patience.pong)?.tell {
            Tell::Stats(memory) => Ok(memory),
            other => Err(out_of_turn(&other)),
        }
    }

    fn greet(&mut self) -> Result<Hello> {
        match self.next(self.patience.hello)?.tell {
            Tell::Hello(hello) => match hello.check() {
                Ok(()) => Ok(hello),
                Err(why) => bail!("the MLX worker: {why}"),
            },
            other => Err(out_of_turn(&other)),
        }
    }

    /// What it tells next. An error of its own is one here.
    fn next(&mut self, limit: Duration) -> Result<Frame> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.heard.recv_timeout(left) {
                Ok(Ok(frame)) => match frame.tell {
                    Tell::Error { message, .. } => bail!("the MLX worker: {message}"),
                    Tell::Pong => {}
                    _ => return Ok(frame),
                },
                Ok(Err(why)) => {
                    self.process.settle();
                    bail!("the MLX worker failed: {why}; {}", self.process.end());
                }
                Err(_) => {
                    let seconds = limit.as_secs();
                    bail!(
                        "the MLX worker said nothing for {seconds} s; {}",
                        self.process.end()
                    );
                }
            }
        }
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let (context, vocab) = (self.context, self.vocab);
        ensure!(
            ids.len() <= context,
            "{} tokens to score; the context is {context}",
            ids.len()
        );
        if let Some(at) = ids.iter().position(|&id| id as usize >= vocab) {
            bail!(
                "id {} at index {at}; the model's vocabulary has {vocab}",
                ids[at]
            );
        }
        Ok(())
    }

    /// Everything that is told up to the end, also after `take` failed: what comes next belongs to the
    /// next question.
    fn until(&mut self, end: &Tell, mut take: impl FnMut(Frame) -> Result<()>) -> Result<()> {
        let mut result = Ok(());
        loop {
            let frame = self.next(self.patience.step)?;
            if frame.tell == *end {
                return result;
            }
            if result.is_ok() {
                result = take(frame);
            }
        }
    }
}

/// What the Python `python` brings: starts a worker, and ends it again.
///
/// # Errors
/// As [`MlxScorer::start`]'s.
pub fn hello(python: &Path) -> Result<Hello> {
    hello_within(python, Patience::default())
}

/// The same with so much patience.
pub(super) fn hello_within(python: &Path, patience: Patience) -> Result<Hello> {
    let (mut process, heard) = open("worker", python)?;
    process.tell(&Ask::Shutdown, &[]);
    nobody(process, heard, patience).greet()
}

/// What MLX in the Python `python` computes on. Takes a fraction of a second: mlx-lm is not looked for.
///
/// # Errors
/// When Python or MLX can't be had.
pub fn device(python: &Path) -> Result<Device> {
    let (process, heard) = open("device", python)?;
    let mut nobody = nobody(process, heard, Patience::default());
    match nobody.next(nobody.patience.hello)?.tell {
        Tell::Device(device) => Ok(device),
        other => Err(out_of_turn(&other)),
    }
}

/// A worker without a model.
fn nobody(process: Process, heard: mpsc::Receiver<Heard>, patience: Patience) -> MlxScorer {
    MlxScorer {
        process,
        heard,
        hello: Hello::default(),
        vocab: 0,
        context: 0,
        patience,
    }
}

fn open(program: &str, python: &Path) -> Result<(Process, mpsc::Receiver<Heard>)> {
    let (sender, heard) = mpsc::channel();
    let process = Process::start_as(program, python, move |frame| {
        let _ = sender.send(frame);
    })?;
    Ok((process, heard))
}

fn out_of_turn(tell: &Tell) -> anyhow::Error {
    let text: String = format!("{tell:?}").chars().take(200).collect();
    anyhow!("the MLX worker said something else than what it was asked: {text}")
}

impl Scorer for MlxScorer {
    fn describe(&self) -> String {
        describe(&self.hello)
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn score(
        &mut self,
        ids: &[u32],
        first: usize,
        row: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.check(ids)?;
        self.process.tell(&Ask::Score { first }, &frame::ids(ids));
        let (vocab, mut next) = (self.vocab, first);
        self.until(&Tell::Scored, |Frame { tell, blob }| {
            let Tell::Scores { first, rows, width } = tell else {
                return Err(out_of_turn(&tell));
            };
            let values = frame::floats(&blob, rows, width);
            let values = values.filter(|_| width == vocab && first == next && rows > 0);
            let values = values.context("the MLX worker's logits have another shape than asked")?;
            for (logits, position) in values.chunks_exact(width).zip(first..) {
                row(position, logits)?;
            }
            next += rows;
            Ok(())
        })
    }

    fn trace(&mut self, ids: &[u32], sink: &mut trace::Sink) -> Result<()> {
        self.check(ids)?;
        self.process.tell(&Ask::Trace, &frame::ids(ids));
        self.until(&Tell::Traced, |Frame { tell, blob }| {
            let Tell::Piece {
                layer,
                stage,
                first: start,
                rows,
                width,
            } = tell
            else {
                return Err(out_of_turn(&tell));
            };
            let known = Stage::from_name(&stage).zip(frame::floats(&blob, rows, width));
            let (stage, values) =
                known.with_context(|| format!("the MLX worker's stage {stage:?} is none"))?;
            sink(Piece {
                layer,
                stage,
                start,
                width,
                values: &values,
            })
        })
    }
}
