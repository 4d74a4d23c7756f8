//! Text to token ids and back, from a GGUF file's own vocabulary.
//!
//! Byte-level BPE as o200k defines it: text is cut into pieces ([`split`]), each piece is merged
//! from bytes upwards ([`bpe`]). Special tokens are reached by id only: [`Tokenizer::encode`] never
//! produces one, so text that looks like `<|end|>` stays text. Every id comes from the file; a small
//! vocabulary has its own.
//!
//! Invariants: a vocabulary holds all 256 single bytes, so every text can be encoded; `decode` of
//! `encode` gives the text back; time is linear in the text (n log n inside one giant piece).

use crate::{gguf::Gguf, safetensors::Lists};
use anyhow::{Result, bail, ensure};
use rustc_hash::FxHashMap;

mod bpe;
mod bytes;
mod queue;

pub mod sample;
mod split;
mod stream;
mod table;
mod vocabulary;

pub use bytes::{from_gpt2, to_gpt2};
pub use split::SPLIT;
pub use stream::{StreamDecoder, lossy};
pub use vocabulary::Vocabulary;

use bpe::Merges;
use table::Table;

/// What a token is, as `tokenizer.ggml.token_type` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Ordinary text, made by [`Tokenizer::encode`].
    Normal,
    /// The unknown token; byte-level vocabularies have none.
    Unknown,
    /// A control token such as `<|start|>`.
    Control,
    /// Added by whoever made the file; treated like a control token.
    UserDefined,
    /// Padding up to the embedding's size.
    Unused,
    /// A `<0xAB>` byte token of other tokenizers; never made here.
    Byte,
}

impl TokenKind {
    /// From ggml's number, 1 to 6.
    pub fn from_ggml(number: u32) -> Option<TokenKind> {
        Some(match number {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return None,
        })
    }

    /// ggml's number.
    pub fn ggml(self) -> i32 {
        match self {
            TokenKind::Normal => 1,
            TokenKind::Unknown => 2,
            TokenKind::Control => 3,
            TokenKind::UserDefined => 4,
            TokenKind::Unused => 5,
            TokenKind::Byte => 6,
        }
    }
}

/// A vocabulary ready to encode and decode. Share it by `Arc`.
pub struct Tokenizer {
    /// Bytes of every token, by id, and their index.
    table: Table,
    kinds: Vec<TokenKind>,
    merges: Merges,
    splitter: split::Splitter,
    /// Control and user-defined tokens by their text.
    specials: FxHashMap<String, u32>,
    padding: Vec<u32>,
    stops: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.ggml.*`.
    ///
    /// `pre` must be `gpt-4o`; files without it (Ollama's) are read the same, as every gpt-oss uses
    /// the o200k split. Merges are optional: when the file lists them in another order than that of
    /// token ids, they decide; otherwise ids do, which is the same and needs no table.
    ///
    /// # Errors
    /// When a key is missing or of the wrong type, the tokenizer isn't byte-level BPE with the
    /// o200k split, a token's spelling isn't GPT-2's, or one of the 256 bytes has no token.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer> {
        match gguf.str("tokenizer.ggml.model")? {
            Some("gpt2") => {}
            other => bail!(gguf.error(format!(
                "tokenizer.ggml.model: expected gpt2 (byte-level BPE), found {}",
                other.unwrap_or("nothing")
            ))),
        }
        match gguf.str("tokenizer.ggml.pre")? {
            None | Some("gpt-4o") | Some("default") => {}
            Some(other) => bail!(gguf.error(format!(
                "tokenizer.ggml.pre: expected gpt-4o (the split that gpt-oss uses), found {other}"
            ))),
        }
        let missing = |key: &str| gguf.error(format!("{key} is missing"));
        let key = "tokenizer.ggml.tokens";
        let texts = gguf.strings(key)?.ok_or_else(|| missing(key))?;
        // Without it special tokens can't be told from text.
        let key = "tokenizer.ggml.token_type";
        let types = gguf.u32s(key)?.ok_or_else(|| missing(key))?;
        if types.len() != texts.len() {
            bail!(gguf.error(format!(
                "{key}: expected {} entries, one a token, found {}",
                texts.len(),
                types.len()
            )));
        }

        let mut kinds = Vec::with_capacity(types.len());
        let mut table = Table::with_capacity(types.len());
        for (id, (text, number)) in texts.clone().zip(types).enumerate() {
            let Some(mut kind) = TokenKind::from_ggml(number) else {
                bail!(gguf.error(format!("{key}[{id}]: expected 1 to 6, found {number}")));
            };
            // Ollama's converter pads with user-defined tokens.
            if kind != TokenKind::Normal && is_padding_name(text) {
                kind = TokenKind::Unused;
            }
            if kind != TokenKind::Normal {
                table.push(text);
            } else if !table.push_gpt2(text) {
                bail!(gguf.error(format!(
                    "tokenizer.ggml.tokens[{id}]: {:?} isn't GPT-2's spelling of bytes",
                    String::from_utf8_lossy(text)
                )));
            }
            kinds.push(kind);
        }
        let named = |error: anyhow::Error| gguf.error(format!("tokenizer: {error:#}"));
        let mut tokenizer = Self::build(table, kinds).map_err(named)?;

        let key = "tokenizer.ggml.merges";
        if let Some(lines) = gguf.strings(key)? {
            tokenizer.merges =
                Merges::from_lines(key, lines, texts, &tokenizer.table).map_err(named)?;
        }
        let mut stops = Vec::new();
        if let Some(id) = gguf.u64("tokenizer.ggml.eos_token_id")? {
            stops.push(id);
        }
        if let Some(ids) = gguf.u32s("tokenizer.ggml.eos_token_ids")? {
            stops.extend(ids.into_iter().map(u64::from));
        }
        let size = tokenizer.vocab_size();
        if let Some(id) = stops.iter().find(|&&id| id >= size as u64) {
            bail!(gguf.error(format!(
                "tokenizer.ggml.eos_token_id(s): expected token ids below {size}, found {id}"
            )));
        }
        tokenizer.add_stops(stops.into_iter().map(|id| id as u32).collect());
        Ok(tokenizer)
    }

    /// From what a folder's tokenizer.json lists, by the same rules.
    ///
    /// # Errors
    /// When an ordinary token or a merge isn't GPT-2's spelling of bytes, or one of the 256 bytes has no token.
    pub fn from_lists(lists: &Lists) -> Result<Tokenizer> {
        let mut table = Table::with_capacity(lists.tokens.len());
        for (id, (text, kind)) in lists.tokens.iter().zip(&lists.kinds).enumerate() {
            if *kind != TokenKind::Normal {
                table.push(text.as_bytes());
            } else if !table.push_gpt2(text.as_bytes()) {
                bail!("token {id}: {text:?} isn't GPT-2's spelling of bytes");
            }
        }
        let mut tokenizer = Self::build(table, lists.kinds.clone())?;
        let (lines, texts) = (
            lists.merges.iter().map(String::as_bytes),
            lists.tokens.iter().map(String::as_bytes),
        );
        tokenizer.merges = Merges::from_lines("merges", lines, texts, &tokenizer.table)?;
        tokenizer.add_stops(lists.stops.clone());
        Ok(tokenizer)
    }

    /// From raw token bytes in id order; merges go by id.
    ///
    /// # Errors
    /// When lengths differ or one of the 256 bytes has no token of kind `Normal`.
    pub fn new(tokens: Vec<Vec<u8>>, kinds: Vec<TokenKind>) -> Result<Tokenizer> {
        ensure!(
            tokens.len() == kinds.len(),
            "{} tokens but {} kinds",
            tokens.len(),
            kinds.len()
        );
        let mut table = Table::with_capacity(tokens.len());
        for token in &tokens {
            table.push(token);
        }
        Self::build(table, kinds)
    }

    fn build(mut table: Table, kinds: Vec<TokenKind>) -> Result<Tokenizer> {
        table.check_size(&kinds)?;
        table.index(&kinds);
        for byte in 0..=255u8 {
            ensure!(
                table.find(&[byte]).is_some(),
                "no token for byte 0x{byte:02x}: expected all 256 single bytes"
            );
        }
        let mut specials = FxHashMap::default();
        let mut padding = Vec::new();
        for (id, kind) in kinds.iter().enumerate() {
            let id = id as u32;
            match kind {
                TokenKind::Unused => padding.push(id),
                TokenKind::Control | TokenKind::UserDefined => {
                    let text = String::from_utf8_lossy(table.get(id)).into_owned();
                    specials.entry(text).or_insert(id);
                }
                _ => {}
            }
        }
        let mut tokenizer = Tokenizer {
            merges: Merges::by_id(&table),
            table,
            kinds,
            splitter: split::Splitter::new()?,
            specials,
            padding,
            stops: Vec::new(),
        };
        tokenizer.add_stops(Vec::new());
        Ok(tokenizer)
    }

    /// Sets the stops: the turn's ends by name, and `more`.
    fn add_stops(&mut self, more: Vec<u32>) {
        let named = ["<|return|>", "<|call|>", "<|endoftext|>"];
        self.stops = named
            .iter()
            .filter_map(|name| self.special(name))
            .chain(more)
            .collect();
        self.stops.sort_unstable();
        self.stops.dedup();
    }

    /// Number of tokens, specials and padding included.
    pub fn vocab_size(&self) -> usize {
        self.kinds.len()
    }

    /// Bytes of memory that its tables take, about.
    pub fn bytes(&self) -> usize {
        self.table.memory() + self.kinds.len() + self.padding.len() * size_of::<u32>()
    }

    /// The ids of ordinary tokens that spell `text`. Linear in its length.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 8);
        let mut scratch = bpe::Scratch::default();
        self.splitter.for_each(text, |piece| {
            self.merges
                .encode(&self.table, piece, &mut scratch, &mut ids);
        });
        ids
    }

    /// The bytes that `ids` spell; specials give their names, unknown ids nothing.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(self.token_bytes(id));
        }
        bytes
    }

    /// A token's bytes; empty for an id out of range.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.table.get(id)
    }

    /// What a token is; an id out of range is `Unused`.
    pub fn kind(&self, id: u32) -> TokenKind {
        let kind = self.kinds.get(id as usize);
        kind.copied().unwrap_or(TokenKind::Unused)
    }

    /// The id of a special token by its name, `<|start|>`.
    pub fn special(&self, text: &str) -> Option<u32> {
        self.specials.get(text).copied()
    }

    /// Whether `id` only pads the embedding (or is out of range): never sampled.
    pub fn is_padding(&self, id: u32) -> bool {
        self.kind(id) == TokenKind::Unused
    }

    /// The padding ids, ascending.
    pub fn padding_ids(&self) -> &[u32] {
        &self.padding
    }

    /// Ids that end a turn, ascending: return, call, endoftext and the file's own, where they exist.
    pub fn stop_ids(&self) -> Vec<u32> {
        self.stops.clone()
    }

    /// A decoder for text that arrives token by token.
    pub fn stream_decoder(&self) -> StreamDecoder {
        StreamDecoder::default()
    }

    /// Every way to merge two tokens into a third, as Hugging Face's converter lists them: by the
    /// merged id, then by the left and the right one.
    pub fn derive_merges(&self) -> Vec<(u32, u32)> {
        bpe::derive_merges(&self.table)
    }
}

/// `[PAD200019]`, as converters name padding.
fn is_padding_name(text: &[u8]) -> bool {
    text.strip_prefix(b"[PAD")
        .and_then(|rest| rest.strip_suffix(b"]"))
        .is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}
