//! One comparison, step by step: A continues the prompts and is timed, both score and are traced, B is timed.

use super::{
    Args,
    fidelity::Fidelity,
    found::{Found, Sequence, SideFound, Speed},
    side::Side,
    verdict,
    wire::{Say, Task},
};
use crate::{
    checkpoint::Checkpoint,
    cli::{Usage, model::Common},
    config::Config,
    tokenizer::Tokenizer,
};
use anyhow::{Context, Result, bail, ensure};

/// Tokens of all timed prompts together.
const MOST_TIMED: usize = 16 << 20;

/// One comparison under way.
pub struct Comparison<'a> {
    pub(super) args: &'a Args,
    /// With their flags.
    pub(super) sides: [(&'a Side, Common); 2],
    models: [Checkpoint; 2],
    tokenizer: Option<Tokenizer>,
    /// A's.
    pub(super) config: Config,
    pub(super) vocab: usize,
    context: usize,
}

impl<'a> Comparison<'a> {
    /// Opens both models' files and checks that they can be compared at all.
    pub fn new(args: &'a Args, a: &'a Side, b: &'a Side) -> Result<Comparison<'a>> {
        let sides = [a, b].map(|side| (side, side.common(&args.common)));
        let open = |i: usize| -> Result<Checkpoint> {
            let (side, common) = &sides[i];
            common.open_checkpoint().with_context(|| format!("{side}"))
        };
        let models = [open(0)?, open(1)?];
        let configs = [models[0].config()?, models[1].config()?];
        let tokenizers = [models[0].tokenizer().ok(), models[1].tokenizer().ok()];
        let vocab = configs[0].vocab;
        ensure!(
            vocab == configs[1].vocab,
            "A's vocabulary has {vocab} tokens, B's {}: the same ids don't mean the same",
            configs[1].vocab
        );
        if let [Some(a), Some(b)] = &tokenizers
            && let Some(id) = (0..vocab as u32).find(|&id| a.token_bytes(id) != b.token_bytes(id))
        {
            bail!("token {id} is not the same in A's vocabulary and B's");
        }
        let [tokenizer, _] = tokenizers;
        let context = configs[0].context.min(configs[1].context);
        let [config, _] = configs;
        Ok(Comparison {
            args,
            sides,
            models,
            tokenizer,
            config,
            vocab,
            context,
        })
    }

    /// All of it.
    pub fn run(&self) -> Result<Found> {
        let args = self.args;
        let prompts = args.prompt_ids(self.tokenizer.as_ref())?;
        self.check_ids(&prompts)?;
        let timed = args.timed_ids(self.tokenizer.as_ref(), self.vocab);
        let (mut a, continued) = self.engine(0, prompts.clone(), timed.clone())?;
        let sequences: Vec<Sequence> = prompts
            .into_iter()
            .zip(continued)
            .map(|(ids, more)| Sequence {
                prompt_tokens: ids.len(),
                ids: [ids, more].concat(),
            })
            .collect();
        let judge = self.judge(&sequences)?;
        let scored = self.score(&sequences, judge)?;
        let (mut b, _) = self.engine(1, Vec::new(), timed)?;
        for (side, (description, load_s)) in [&mut a, &mut b].into_iter().zip(scored.ready) {
            side.backend = description;
            side.load_s = load_s;
        }
        let fidelity = Fidelity::of(&scored.positions);
        let beyond = scored.trace.as_ref().and_then(|t| t.first_beyond.as_ref());
        let verdict = verdict::judge(
            args.prefer,
            args.min_agreement,
            &fidelity,
            beyond.map(|stage| stage.place()).as_deref(),
            (&a, &b),
            scored.judged.as_ref(),
        );
        Ok(Found {
            version: env!("CARGO_PKG_VERSION"),
            processor: crate::machine::cpu_name(),
            a,
            b,
            sequences,
            fidelity,
            min_agreement: args.min_agreement,
            trace: scored.trace,
            judged: scored.judged,
            verdict,
            positions: scored.positions,
        })
    }

    fn check_ids(&self, prompts: &[Vec<u32>]) -> Result<()> {
        let args = self.args;
        for ids in prompts {
            if let Some(at) = ids.iter().position(|&id| id as usize >= self.vocab) {
                bail!(
                    "id {} at index {at}; the vocabulary has {}",
                    ids[at],
                    self.vocab
                );
            }
        }
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let timed = match args.no_speed {
            true => 0,
            false => args.prompt.saturating_add(args.tokens),
        };
        let needed = longest.saturating_add(args.max_tokens).max(timed);
        if needed > self.context {
            let text = format!(
                "{needed} tokens are needed; the context is {}",
                self.context
            );
            return Err(Usage(text).into());
        }
        let drawn = args.repeat.saturating_add(1).saturating_mul(args.prompt);
        if !args.no_speed && drawn > MOST_TIMED {
            let text = format!(
                "--repeat {} of --prompt {}: {MOST_TIMED} tokens of prompts at most",
                args.repeat, args.prompt
            );
            return Err(Usage(text).into());
        }
        Ok(())
    }

    /// Says what is going on.
    pub(super) fn tell(&self, i: usize, what: &str) {
        tell!("{}: {what} ({})", ["A", "B"][i], self.sides[i].0);
    }

    /// Continues prompts and times one side; nothing is run where neither is asked.
    fn engine(
        &self,
        i: usize,
        prompts: Vec<Vec<u32>>,
        timed: Vec<Vec<u32>>,
    ) -> Result<(SideFound, Vec<Vec<u32>>)> {
        let args = self.args;
        let (side, common) = &self.sides[i];
        let model = &self.models[i];
        let mut found = SideFound {
            side: side.text.clone(),
            model: model
                .path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            model_bytes: model.file_bytes(),
            ..SideFound::default()
        };
        let mut continued = Vec::new();
        let continues = args.max_tokens > 0 && !prompts.is_empty();
        if !continues {
            continued = vec![Vec::new(); prompts.len()];
        }
        if !continues && timed.is_empty() {
            return Ok((found, continued));
        }
        self.tell(
            i,
            if timed.is_empty() {
                "continuing prompts"
            } else {
                "timing"
            },
        );
        let (prompts, max_tokens) = match continues {
            true => (prompts, args.max_tokens),
            false => (Vec::new(), 0),
        };
        let task = Task::Engine {
            prompts,
            max_tokens,
            stop_ids: self
                .tokenizer
                .as_ref()
                .map(Tokenizer::stop_ids)
                .unwrap_or_default(),
            timed,
            timed_tokens: args.tokens,
        };
        let mut runs = Vec::new();
        let done = side.run(common, task, &mut |said, _| {
            match said {
                Say::Continued { ids } => continued.push(ids),
                Say::Timed(run) => runs.push(run),
                _ => {}
            }
            Ok(())
        })?;
        if let Say::Done {
            peak_memory,
            others,
        } = done
        {
            found.speed = Speed::of(runs, args.prompt, args.tokens, peak_memory, others);
        }
        Ok((found, continued))
    }
}
