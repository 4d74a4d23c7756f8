//! The vocabulary as llguidance wants it.
//!
//! Only text is in its trie: control tokens and padding have no bytes there, so no grammar can reach
//! one. The end of a text is the one exception; it stands for whatever may end the message.

use crate::tokenizer::{TokenKind, Tokenizer};
use anyhow::{Context, Result};
use std::sync::Arc;
use toktrie::{TokRxInfo, TokTrie, TokenId, TokenizerEnv};

/// llguidance's view of a [`Tokenizer`].
pub(super) struct Vocabulary {
    tok: Arc<Tokenizer>,
    trie: TokTrie,
}

impl Vocabulary {
    /// # Errors
    /// When no token can end a text.
    pub fn new(tok: &Arc<Tokenizer>) -> Result<Vocabulary> {
        let end = ["<|return|>", "<|endoftext|>"];
        let end = end.iter().find_map(|name| tok.special(name));
        let end = end.context("tokenizer: neither <|return|> nor <|endoftext|>")?;
        let size = tok.vocab_size() as u32;
        let text = |id: u32| match tok.kind(id) {
            TokenKind::Normal | TokenKind::Byte => tok.token_bytes(id).to_vec(),
            _ => Vec::new(),
        };
        let words: Vec<Vec<u8>> = (0..size).map(text).collect();
        let info = TokRxInfo::new(size, end);
        Ok(Vocabulary {
            tok: Arc::clone(tok),
            trie: TokTrie::from(&info, &words),
        })
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// Our own encoding; bytes that are no text go in one by one.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let mut ids = Vec::with_capacity(bytes.len() / 3 + 1);
        for chunk in bytes.utf8_chunks() {
            ids.extend(self.tok.encode(chunk.valid()));
            for byte in chunk.invalid() {
                ids.extend(self.trie.token_id_at_bytes(&[*byte]));
            }
        }
        ids
    }
}
