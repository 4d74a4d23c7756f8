//! A model that says anything: random logits, drawn at temperature 1 within the masks.

use super::random::Rng;
use gossamer::{
    harmony::{Conversation, Parser, Turn},
    sampler::{Mask, MaskSource, Sampler, Sampling},
    tokenizer::{TokenKind, Tokenizer},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A vocabulary, random logits for it, and the tokens that end things.
pub struct Babbler {
    pub tok: Arc<Tokenizer>,
    pool: Vec<f32>,
    closers: Vec<u32>,
    boost: f32,
}

/// What a walk came to.
pub struct Walk {
    pub turn: Turn,
    pub ids: Vec<u32>,
    /// Ended by a stop token, not by the limit.
    pub complete: bool,
}

/// How long the masks of a walk took.
#[derive(Default)]
pub struct Timed {
    pub masks: Vec<Duration>,
    pub error: Option<String>,
}

impl Timed {
    pub fn longest(&self) -> Duration {
        self.masks.iter().max().copied().unwrap_or_default()
    }

    pub fn told(&self) -> String {
        self.error
            .iter()
            .map(|error| format!("; {error}"))
            .collect()
    }
}

impl Babbler {
    pub fn new(tok: Arc<Tokenizer>, rng: &mut Rng) -> Babbler {
        let vocab = tok.vocab_size();
        let mut normal = || {
            (0..4)
                .map(|_| rng.below(2000) as f32 / 500.0 - 2.0)
                .sum::<f32>()
        };
        let pool = (0..vocab + 4096).map(|_| normal()).collect();
        let single = |text: &str| tok.encode(text)[0];
        let ends = ["<|end|>", "<|return|>", "<|call|>"];
        let mut closers: Vec<u32> = ends.iter().filter_map(|name| tok.special(name)).collect();
        closers.extend(["\"", "}", "]", ",", ":"].map(single));
        Babbler {
            boost: (vocab as f32 / 15.0).ln(),
            pool,
            closers,
            tok,
        }
    }

    /// Says at most `most` tokens; the longer it takes, the more it wants to end.
    pub fn say(
        &self,
        source: &mut dyn MaskSource,
        conversation: &Conversation,
        most: usize,
        rng: &mut Rng,
    ) -> Walk {
        let tok = &self.tok;
        let vocab = tok.vocab_size();
        let sampling = Sampling {
            seed: Some(rng.next()),
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(&sampling, vocab, tok.padding_ids(), None, &[]);
        let parser = Parser::new(tok.clone(), conversation.tool_names());
        let mut parser = parser.expect("a vocabulary with Harmony's tokens");
        let mut ids = Vec::new();
        let stops = tok.stop_ids();
        let mut complete = false;
        while !complete && ids.len() < most {
            let mask = source.mask().unwrap_or_else(|e| self.fail(&ids, &e));
            let from = rng.below(4096);
            let mut logits = self.pool[from..from + vocab].to_vec();
            let late = ids.len() as f32 / most as f32;
            for &id in &self.closers {
                logits[id as usize] += self.boost + 8.0 * late;
            }
            let sampled = sampler.sample(&logits, &mask);
            let id = sampled
                .unwrap_or_else(|e| self.fail(&ids, &e.to_string()))
                .id;
            assert!(mask.allows(id));
            source.accept(id).unwrap_or_else(|e| self.fail(&ids, &e));
            parser.push(id);
            ids.push(id);
            complete = stops.contains(&id);
        }
        Walk {
            turn: parser.finish().1,
            ids,
            complete,
        }
    }

    /// [`Babbler::say`] until the mask fails, with the time of every mask.
    pub fn try_say(&self, source: &mut dyn MaskSource, most: usize, rng: &mut Rng) -> Timed {
        let mut timed = Timed::default();
        let tok = &self.tok;
        let sampling = Sampling {
            seed: Some(rng.next()),
            ..Sampling::default()
        };
        let vocab = tok.vocab_size();
        let mut sampler = Sampler::new(&sampling, vocab, tok.padding_ids(), None, &[]);
        for _ in 0..most {
            let start = Instant::now();
            let mask = source.mask();
            timed.masks.push(start.elapsed());
            let mask = match mask {
                Ok(mask) => mask,
                Err(error) => {
                    timed.error = Some(error);
                    break;
                }
            };
            let from = rng.below(4096);
            let sampled = sampler.sample(&self.pool[from..from + vocab], &mask);
            let id = sampled.expect("a mask that allows something").id;
            if let Err(error) = source.accept(id) {
                timed.error = Some(error);
                break;
            }
            if tok.stop_ids().contains(&id) {
                break;
            }
        }
        timed
    }

    fn fail(&self, ids: &[u32], error: &str) -> ! {
        let text = self.tok.decode(ids);
        panic!("{error}, after {:?}", String::from_utf8_lossy(&text));
    }
}

/// The bytes between the last `<|message|>` and the end.
pub fn last_text(tok: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    let message = tok.special("<|message|>").expect("a control token");
    let from = ids
        .iter()
        .rposition(|&id| id == message)
        .map_or(0, |at| at + 1);
    tok.decode(&ids[from..ids.len() - 1])
}

/// Takes `text` in, token by token, each of which has to be allowed.
pub fn feed(source: &mut dyn MaskSource, ids: &[u32]) {
    for (i, &id) in ids.iter().enumerate() {
        let mask = source.mask().expect("a mask");
        assert!(mask.allows(id), "token {id} at {i} of {ids:?}");
        source.accept(id).expect("what the mask allows");
    }
}

/// The allowed tokens.
pub fn allowed(mask: &Mask, tok: &Tokenizer) -> Vec<u32> {
    let sampled = |&id: &u32| mask.allows(id) && !tok.is_padding(id);
    (0..tok.vocab_size() as u32).filter(sampled).collect()
}

/// Tokens of ordinary text.
pub fn is_text(tok: &Tokenizer, id: u32) -> bool {
    tok.kind(id) == TokenKind::Normal
}
