//! The control tokens that Harmony is made of, by the vocabulary's own ids.

use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};

/// A control token of Harmony.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    Start,
    Message,
    Channel,
    Constrain,
    End,
    Return,
    Call,
    EndOfText,
}

/// Their ids.
#[derive(Debug, Clone)]
pub(crate) struct Controls {
    pub start: u32,
    pub message: u32,
    pub channel: u32,
    pub constrain: u32,
    pub end: u32,
    pub ret: u32,
    pub call: u32,
    /// Vocabularies made for Harmony alone need none.
    pub end_of_text: Option<u32>,
}

impl Controls {
    /// # Errors
    /// When the vocabulary lacks one.
    pub fn new(tok: &Tokenizer) -> Result<Controls> {
        let id = |name: &str| {
            tok.special(name).with_context(|| {
                format!(
                    "tokenizer: no control token {name}; expected a vocabulary with Harmony's \
                     (<|start|>, <|message|>, <|channel|>, <|constrain|>, <|end|>, <|return|>, <|call|>), \
                     as every gpt-oss file has: this model can't speak Harmony"
                )
            })
        };
        Ok(Controls {
            start: id("<|start|>")?,
            message: id("<|message|>")?,
            channel: id("<|channel|>")?,
            constrain: id("<|constrain|>")?,
            end: id("<|end|>")?,
            ret: id("<|return|>")?,
            call: id("<|call|>")?,
            end_of_text: tok.special("<|endoftext|>"),
        })
    }

    /// Which of them `id` is.
    pub fn get(&self, id: u32) -> Option<Control> {
        Some(match id {
            _ if id == self.start => Control::Start,
            _ if id == self.message => Control::Message,
            _ if id == self.channel => Control::Channel,
            _ if id == self.constrain => Control::Constrain,
            _ if id == self.end => Control::End,
            _ if id == self.ret => Control::Return,
            _ if id == self.call => Control::Call,
            _ if Some(id) == self.end_of_text => Control::EndOfText,
            _ => return None,
        })
    }
}
