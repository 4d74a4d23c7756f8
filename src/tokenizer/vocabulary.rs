//! Vocabularies to write into files: the true o200k_harmony, and a small one of single bytes.

use super::{TokenKind, Tokenizer};
use crate::gguf::Gguf;
use anyhow::{Context, Result, ensure};
use std::io::Read;

/// Tokens, their kinds and the ids that files name.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// Raw bytes, in id order.
    pub tokens: Vec<Vec<u8>>,
    /// One a token.
    pub kinds: Vec<TokenKind>,
    /// Start of text.
    pub bos: u32,
    /// End of a turn, `<|return|>`.
    pub eos: u32,
    /// What converters call padding, `<|endoftext|>`.
    pub pad: u32,
}

/// The ordinary tokens of o200k, made by `examples/o200k_vocabulary.rs`: zlib of one length byte a
/// token, then all their bytes.
const O200K: &[u8] = include_bytes!("../../assets/o200k.zlib");
/// Ordinary tokens of o200k.
const O200K_TOKENS: usize = 199_998;
/// Bytes of all of them.
const O200K_BYTES: usize = 1_397_670;
/// gpt-oss's embedding has this many rows.
const O200K_PADDED: usize = 201_088;

/// The special tokens after the ordinary ones, in order; `None` is a reserved name.
const SPECIALS: [Option<&str>; 21] = [
    Some("<|startoftext|>"),
    Some("<|endoftext|>"),
    None,
    None,
    Some("<|return|>"),
    Some("<|constrain|>"),
    None,
    Some("<|channel|>"),
    Some("<|start|>"),
    Some("<|end|>"),
    Some("<|message|>"),
    None,
    None,
    None,
    Some("<|call|>"),
    None,
    None,
    None,
    None,
    None,
    Some("<|endofprompt|>"),
];

impl Vocabulary {
    /// o200k_harmony as gpt-oss's files hold it: 199,998 ordinary tokens, 21 specials, padding up
    /// to 201,088.
    pub fn o200k_harmony() -> Result<Vocabulary> {
        let mut data = Vec::with_capacity(O200K_TOKENS + O200K_BYTES);
        flate2::read::ZlibDecoder::new(O200K)
            .read_to_end(&mut data)
            .context("the o200k asset")?;
        ensure!(
            data.len() == O200K_TOKENS + O200K_BYTES,
            "the o200k asset holds {} bytes, expected {}",
            data.len(),
            O200K_TOKENS + O200K_BYTES
        );
        let (lengths, mut bytes) = data.split_at(O200K_TOKENS);
        let mut tokens = Vec::with_capacity(O200K_PADDED);
        for &length in lengths {
            let token;
            (token, bytes) = bytes
                .split_at_checked(usize::from(length))
                .context("the o200k asset: lengths exceed its bytes")?;
            tokens.push(token.to_vec());
        }
        Ok(Self::with_specials(tokens, O200K_PADDED))
    }

    /// The 256 bytes and the specials: the smallest vocabulary that spells everything.
    pub fn bytes() -> Vocabulary {
        let tokens = (0..=255).map(|byte| vec![byte]).collect();
        Self::with_specials(tokens, 288)
    }

    /// Ordinary `tokens`, the specials, then padding up to `size`.
    fn with_specials(mut tokens: Vec<Vec<u8>>, size: usize) -> Vocabulary {
        let first = tokens.len();
        let mut kinds = vec![TokenKind::Normal; first];
        for name in SPECIALS {
            let name = name.map_or_else(|| format!("<|reserved_{}|>", tokens.len()), str::to_owned);
            tokens.push(name.into_bytes());
            kinds.push(TokenKind::Control);
        }
        while tokens.len() < size {
            tokens.push(format!("[PAD{}]", tokens.len()).into_bytes());
            kinds.push(TokenKind::Unused);
        }
        let first = first as u32;
        Vocabulary {
            tokens,
            kinds,
            bos: first,
            eos: first + 4,
            pad: first + 1,
        }
    }

    /// The vocabulary of an open model.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`]'s, and when it lacks `<|return|>` or `<|endoftext|>`.
    pub fn from_gguf(gguf: &Gguf) -> Result<Vocabulary> {
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        let ids = 0..tokenizer.vocab_size() as u32;
        let special = |name: &str| {
            let id = tokenizer.special(name);
            id.with_context(|| format!("the vocabulary has no {name}"))
        };
        let pad = special("<|endoftext|>")?;
        Ok(Vocabulary {
            tokens: ids
                .clone()
                .map(|id| tokenizer.token_bytes(id).to_vec())
                .collect(),
            kinds: ids.map(|id| tokenizer.kind(id)).collect(),
            bos: tokenizer.special("<|startoftext|>").unwrap_or(pad),
            eos: special("<|return|>")?,
            pad,
        })
    }

    /// Ready to encode and decode.
    pub fn tokenizer(self) -> Result<Tokenizer> {
        Tokenizer::new(self.tokens, self.kinds)
    }
}
