//! A model that says what a test wants: a [`Backend`] whose logits put all weight on the next token of
//! a script. Everything above it runs as ever: scheduler, paged cache, sampler, parser, server.
//!
//! The paged cache holds the token ids themselves, and the script is chosen by what is read back from
//! there: a wrong block, position or prefix is a wrong answer. The back end keeps no state of its own
//! about an answer, so preemption and prefix reuse need no help from it. The vocabulary is the demo
//! model's.

use crate::common;
use anyhow::{Result, bail, ensure};
use gossamer::{
    backend::{Backend, Batch, KV_BLOCK, Limits, LogitRows, Segment, Work},
    config::Config,
    engine::{EngineOptions, NativeEngine},
    gguf::Gguf,
    tokenizer::Tokenizer,
};
use std::{collections::HashMap, sync::Arc};

/// What the model is asked, up to the `<|start|>assistant` that it continues.
pub struct Prompt {
    /// The prompt, control tokens by their names.
    pub text: String,
    /// Results of functions since the user last said something.
    pub results: usize,
}

/// What the model says to a prompt, control tokens by their names: `<|channel|>final<|message|>Hi<|return|>`.
pub type Script = Box<dyn Fn(&Prompt) -> String + Send>;

/// The scripted back end.
pub struct Scripted {
    config: Config,
    tokenizer: Arc<Tokenizer>,
    limits: Limits,
    script: Script,
    /// Answers by prompt.
    answers: HashMap<Vec<u32>, Vec<u32>>,
    /// Token ids by place: block, then position in it.
    cache: Vec<u32>,
    /// Logits of the rows asked for in the last batch.
    rows: Vec<Vec<f32>>,
    work: Work,
}

/// What an empty place of the cache holds; no token's id.
const EMPTY: u32 = u32::MAX;

/// The demo model's shape and vocabulary.
pub fn demo() -> (Config, Arc<Tokenizer>) {
    let path = common::root().join("models/demo/demo.gguf");
    let gguf = Gguf::open(&path).expect("the demo model");
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("its vocabulary");
    let config = Config::from_gguf(&gguf).expect("its shape");
    (config, Arc::new(tokenizer))
}

/// An engine that follows `script`, with room for a few long conversations.
pub fn engine(script: Script) -> (Arc<NativeEngine>, Arc<Tokenizer>) {
    let (config, tokenizer) = demo();
    let limits = Limits {
        slots: 4,
        kv_blocks: 4 * 40_000 / KV_BLOCK,
        batch_tokens: 512,
        snapshots: 64,
    };
    let options = EngineOptions {
        context: 40_000,
        padding: tokenizer.padding_ids().to_vec(),
        marker: tokenizer.special("<|start|>"),
        ..EngineOptions::default()
    };
    let backend = Scripted::new(config, tokenizer.clone(), limits, script);
    let engine = NativeEngine::start(Box::new(backend), options).expect("the engine starts");
    (Arc::new(engine), tokenizer)
}

impl Scripted {
    /// A back end of that shape, vocabulary and room.
    pub fn new(
        config: Config,
        tokenizer: Arc<Tokenizer>,
        limits: Limits,
        script: Script,
    ) -> Scripted {
        Scripted {
            config,
            tokenizer,
            limits,
            script,
            answers: HashMap::new(),
            cache: vec![EMPTY; limits.kv_blocks * KV_BLOCK],
            rows: Vec::new(),
            work: Work::default(),
        }
    }

    /// Writes the new tokens, or checks them against what was kept; returns the whole sequence.
    fn append(&mut self, segment: &Segment) -> Result<Vec<u32>> {
        let place = |p: usize| segment.blocks[p / KV_BLOCK] as usize * KV_BLOCK + p % KV_BLOCK;
        for (i, &token) in segment.tokens.iter().enumerate() {
            let p = segment.start + i;
            if p >= segment.kept {
                self.cache[place(p)] = token;
            }
            let held = self.cache[place(p)];
            ensure!(
                held == token,
                "position {p} was kept with token {held}, comes as {token}"
            );
        }
        let end = segment.start + segment.tokens.len();
        let sequence: Vec<u32> = (0..end).map(|p| self.cache[place(p)]).collect();
        let hole = sequence.iter().position(|&id| id == EMPTY);
        ensure!(hole.is_none(), "nothing at position {hole:?} of {end}");
        Ok(sequence)
    }

    /// The token after `sequence`.
    fn next(&mut self, sequence: &[u32]) -> Result<u32> {
        let turn = self.turn_start(sequence)?;
        let (prompt, said) = sequence.split_at(turn);
        if !self.answers.contains_key(prompt) {
            let text = String::from_utf8_lossy(&self.tokenizer.decode(prompt)).into_owned();
            let results = text
                .rsplit("<|start|>user")
                .next()
                .map_or(0, |rest| rest.matches("<|start|>functions.").count());
            let answer = (self.script)(&Prompt { text, results });
            let answer = marked(&self.tokenizer, &answer);
            self.answers.insert(prompt.to_vec(), answer);
        }
        let answer = &self.answers[prompt];
        let Some(rest) = answer.strip_prefix(said) else {
            bail!(
                "the script says {:?}, said was {:?}",
                self.end(answer),
                self.end(said)
            );
        };
        match rest.first() {
            Some(&id) => Ok(id),
            None => bail!("the script is over, and more is asked for"),
        }
    }

    /// Where the answer begins: after the first `<|start|>assistant` that follows everybody else's
    /// last message.
    fn turn_start(&self, sequence: &[u32]) -> Result<usize> {
        let start = self.tokenizer.special("<|start|>");
        let assistant = self.tokenizer.encode("assistant");
        let mut found = None;
        for (i, &id) in sequence.iter().enumerate().rev() {
            let rest = &sequence[i + 1..];
            if Some(id) != start || (rest.len() < assistant.len() && assistant.starts_with(rest)) {
                continue; // no header, or one that the answer has only begun
            }
            if !rest.starts_with(&assistant) {
                break;
            }
            found = Some(i + 1 + assistant.len());
        }
        found.ok_or_else(|| anyhow::anyhow!("no turn of the assistant in {:?}", self.end(sequence)))
    }

    /// The last of `sequence`, for messages.
    fn end(&self, sequence: &[u32]) -> String {
        let end = &sequence[sequence.len().saturating_sub(60)..];
        String::from_utf8_lossy(&self.tokenizer.decode(end)).into_owned()
    }
}

/// Token ids of text in which control tokens are written by their names.
pub fn marked(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let name = rest.find("|>").map(|end| &rest[..end + 2]);
        let special = name.filter(|name| name.starts_with("<|"));
        match special.and_then(|name| Some((name, tokenizer.special(name)?))) {
            Some((name, id)) => {
                ids.extend(tokenizer.encode(&std::mem::take(&mut plain)));
                ids.push(id);
                rest = &rest[name.len()..];
            }
            None => {
                plain.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    ids.extend(tokenizer.encode(&plain));
    ids
}

impl Backend for Scripted {
    fn config(&self) -> &Config {
        &self.config
    }

    fn describe(&self) -> String {
        "scripted".into()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: &Batch) -> Result<()> {
        batch.check(&self.config, &self.limits)?;
        self.work.token_rows += batch.tokens() as u64;
        self.rows.clear();
        for segment in &batch.segments {
            let sequence = self.append(segment)?;
            match segment.logits {
                LogitRows::None => {}
                LogitRows::Last | LogitRows::Draw(_) => {
                    let id = self.next(&sequence)?;
                    let mut logits = vec![-100.0; self.config.vocab];
                    logits[id as usize] = 100.0;
                    self.rows.push(logits);
                }
                LogitRows::All => bail!("a script has no logits of the prompt"),
            }
        }
        self.work.logit_rows += self.rows.len() as u64;
        Ok(())
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<()> {
        let from = from as usize * KV_BLOCK;
        self.cache
            .copy_within(from..from + KV_BLOCK, to as usize * KV_BLOCK);
        Ok(())
    }

    // A script has no sliding windows.
    fn save(&mut self, _slot: usize, _snapshot: usize) -> Result<()> {
        Ok(())
    }

    fn restore(&mut self, _slot: usize, _snapshot: usize) -> Result<()> {
        Ok(())
    }

    fn batch_invariant(&self) -> bool {
        true
    }

    fn logits(&self, row: usize) -> &[f32] {
        &self.rows[row]
    }

    fn work(&self) -> Work {
        self.work
    }
}

#[test]
fn the_script_is_said_to_prompts_short_and_long_over_a_shared_beginning() {
    use gossamer::{engine::*, harmony::*};
    const THOUGHT: &str = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant";
    let (engine, tokenizer) = engine(Box::new(|prompt| {
        let last = prompt.text.rsplit("<|message|>").next().unwrap_or_default();
        let (length, results) = (last.len(), prompt.results);
        format!(
            "{THOUGHT}<|channel|>final<|message|>{length} after {results} results 🪢 <|x|><|return|>"
        )
    }));
    let mut conversation = Conversation {
        messages: vec![Message::user("hello ".repeat(1500))],
        ..Conversation::default()
    };
    for results in 0..3 {
        let tokens = conversation.render(&tokenizer).expect("a prompt");
        let stop_ids = tokenizer.stop_ids();
        let request = Request {
            tokens,
            stop_ids,
            ..Request::default()
        };
        let (mut ids, mut ends) = (Vec::new(), None);
        for event in engine.submit(request) {
            match event {
                Event::Token { id, .. } => ids.push(id),
                Event::Finish { reason, .. } => ends = Some(reason),
                Event::Error(error) => panic!("{error}"),
                _ => {}
            }
        }
        assert_eq!(ends, Some(FinishReason::Stop));
        let length = match results {
            0 => 9000 + "<|end|><|start|>assistant".len(),
            _ => "done<|end|><|start|>assistant".len(),
        };
        let expected = format!(
            "{THOUGHT}<|channel|>final<|message|>{length} after {results} results 🪢 <|x|><|return|>"
        );
        assert_eq!(String::from_utf8_lossy(&tokenizer.decode(&ids)), expected);
        conversation.messages.push(Message::call("f", "{}"));
        conversation
            .messages
            .push(Message::tool_result("f", "done"));
    }
}
