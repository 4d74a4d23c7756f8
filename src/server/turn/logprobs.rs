//! Which text each token's log-probability belongs to.
//!
//! The parser may hold tokens back until it knows whether they are header or text. Its account of
//! the turn classes every token exactly once and in order, so the tokens queue here until it does.
//! A token goes out with the text that it begins, or with the end of its message if a character was
//! cut there; tokens of headers and markers go nowhere.

use crate::{
    harmony::{Class, Turn},
    tokenizer::{StreamDecoder, Tokenizer, lossy},
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use std::collections::VecDeque;

/// Stands for minus infinity, which JSON can't say; OpenAI's own value for it.
const LEAST: f32 = -9999.0;

/// A token of a message's text, with how likely the model found it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its text; U+FFFD where its bytes are no whole characters.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens in its place, best first; `top` is empty in these.
    pub top: Vec<TokenLogprob>,
}

impl TokenLogprob {
    /// Of token `id` and its rivals.
    pub fn new(tok: &Tokenizer, id: u32, logprob: f32, top: &[(u32, f32)]) -> TokenLogprob {
        let bytes = tok.token_bytes(id).to_vec();
        TokenLogprob {
            id,
            token: lossy(&bytes).into_owned(),
            bytes,
            logprob: logprob.max(LEAST),
            top: top
                .iter()
                .map(|&(id, logprob)| TokenLogprob::new(tok, id, logprob, &[]))
                .collect(),
        }
    }
}

impl TokenLogprob {
    /// Roughly how much memory it takes, in bytes.
    pub fn memory(&self) -> usize {
        let texts = 2 * (16 + self.bytes.len());
        let rivals: usize = self.top.iter().map(TokenLogprob::memory).sum();
        size_of::<TokenLogprob>() + texts + rivals
    }
}

/// As an element of chat's `logprobs.content` and of responses' `logprobs`.
impl Serialize for TokenLogprob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        plain(self, &mut map)?;
        map.serialize_entry("top_logprobs", &Rivals(&self.top))?;
        map.end()
    }
}

/// What a token and its rivals have in common.
fn plain<M: SerializeMap>(token: &TokenLogprob, map: &mut M) -> Result<(), M::Error> {
    map.serialize_entry("token", &token.token)?;
    map.serialize_entry("logprob", &token.logprob)?;
    map.serialize_entry("bytes", &token.bytes)
}

struct Rivals<'a>(&'a [TokenLogprob]);

struct Rival<'a>(&'a TokenLogprob);

impl Serialize for Rivals<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Rival))
    }
}

impl Serialize for Rival<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        plain(self.0, &mut map)?;
        map.end()
    }
}

/// Tokens of one text, waiting for the text that they begin.
#[derive(Default)]
pub struct Pending {
    /// With the byte of the text at which each begins.
    queue: VecDeque<(usize, TokenLogprob)>,
    decoder: StreamDecoder,
    /// Bytes of text so far.
    at: usize,
}

impl Pending {
    /// The text's next token.
    pub fn push(&mut self, token: TokenLogprob) {
        let begin = self.at;
        self.at += self.decoder.push(&token.bytes).len();
        self.queue.push_back((begin, token));
    }

    /// The tokens that begin before byte `end` of the text and have not gone out yet, with the byte
    /// at which each begins.
    pub fn take(&mut self, end: usize) -> Vec<(usize, TokenLogprob)> {
        let due = || self.queue.pop_front_if(|(begin, _)| *begin < end);
        std::iter::from_fn(due).collect()
    }
}

/// The queue from tokens to messages' texts.
#[derive(Default)]
pub(super) struct Ledger {
    /// Not yet in the account.
    unaccounted: VecDeque<TokenLogprob>,
    /// How far the account has been read: pieces, and tokens of the last one.
    pieces: usize,
    tokens: usize,
    /// Accounted as text, by message; the messages in order.
    pending: VecDeque<(usize, Pending)>,
}

impl Ledger {
    /// A token on its way into the parser.
    pub fn push(&mut self, token: TokenLogprob) {
        self.unaccounted.push_back(token);
    }

    /// Sorts the tokens that the parser has accounted for since the last call.
    pub fn read(&mut self, turn: &Turn) {
        let pieces = turn.account.pieces();
        while let Some(piece) = pieces.get(self.pieces) {
            for _ in self.tokens..piece.tokens {
                if let Some(token) = self.unaccounted.pop_front() {
                    self.sort(piece.class, token);
                }
            }
            self.tokens = piece.tokens;
            if self.pieces + 1 == pieces.len() {
                return;
            }
            self.pieces += 1;
            self.tokens = 0;
        }
    }

    fn sort(&mut self, class: Class, token: TokenLogprob) {
        let Class::Text(index) = class else { return };
        if self.pending.back().is_none_or(|(last, _)| *last != index) {
            self.pending.push_back((index, Pending::default()));
        }
        if let Some((_, pending)) = self.pending.back_mut() {
            pending.push(token);
        }
    }

    /// The tokens that begin before byte `end` of message `index`'s text and have not gone out yet.
    pub fn take(&mut self, index: usize, end: usize) -> Vec<TokenLogprob> {
        // Messages before this one are closed.
        while self.pending.pop_front_if(|(i, _)| *i < index).is_some() {}
        match self.pending.front_mut() {
            Some((i, pending)) if *i == index => pending
                .take(end)
                .into_iter()
                .map(|(_, token)| token)
                .collect(),
            _ => Vec::new(),
        }
    }
}
