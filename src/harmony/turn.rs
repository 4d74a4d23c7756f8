//! A parsed turn, as the command line and servers want it.

use super::account::{Account, Class, Repairs};
use super::message::{Channel, Message};

/// What a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Reasoning: not shown unless asked for.
    Reasoning,
    /// Text for the user: the answer, or what is said before a call.
    Text,
    /// A tool call.
    Call {
        /// The function's name as the client declared it, or a builtin's full name.
        name: String,
    },
    /// Written in another's name (the model played the user or a tool): neither shown nor run.
    Foreign,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// Not at all: cut, or still going on.
    #[default]
    Open,
    /// With `<|end|>`: a message is over, the turn is not.
    End,
    /// With `<|return|>`: the answer is complete.
    Return,
    /// With `<|call|>`: a tool should run.
    Call,
    /// With `<|endoftext|>`.
    EndOfText,
}

/// A call of a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToolCall<'a> {
    /// Index of its message.
    pub index: usize,
    /// The function's name as the client declared it, or a builtin's full name.
    pub name: &'a str,
    /// What the model wrote: usually JSON, but nothing promises that it is.
    pub arguments: &'a str,
}

/// A whole turn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turn {
    /// The messages, in order.
    pub messages: Vec<Message>,
    /// What each message is for.
    pub parts: Vec<Part>,
    /// How it ended.
    pub ending: Ending,
    /// What had to be put right.
    pub repairs: Repairs,
    /// Every token of it.
    pub account: Account,
}

impl Turn {
    fn of<'a>(&'a self, wanted: &'a Part) -> impl Iterator<Item = &'a Message> {
        let both = self.messages.iter().zip(&self.parts);
        both.filter(move |(_, part)| *part == wanted)
            .map(|(message, _)| message)
    }

    /// All reasoning.
    pub fn reasoning(&self) -> String {
        let texts = self.of(&Part::Reasoning);
        texts.map(|message| message.content.as_str()).collect()
    }

    /// All text for the user: the final answer and what stands before it.
    pub fn text(&self) -> String {
        let texts = self.of(&Part::Text);
        texts.map(|message| message.content.as_str()).collect()
    }

    /// The final answer alone.
    pub fn answer(&self) -> String {
        self.of(&Part::Text)
            .filter(|message| message.channel == Some(Channel::Final))
            .map(|message| message.content.as_str())
            .collect()
    }

    /// The tool calls, in order.
    pub fn calls(&self) -> impl Iterator<Item = ToolCall<'_>> {
        let both = self.messages.iter().zip(&self.parts).enumerate();
        both.filter_map(|(index, (message, part))| match part {
            Part::Call { name } => Some(ToolCall {
                index,
                name,
                arguments: &message.content,
            }),
            _ => None,
        })
    }

    /// How many tokens are reasoning text.
    pub fn reasoning_tokens(&self) -> usize {
        let is_reasoning = |index: usize| self.parts.get(index) == Some(&Part::Reasoning);
        let pieces = self.account.pieces().iter();
        pieces
            .filter(|piece| matches!(piece.class, Class::Text(index) if is_reasoning(index)))
            .map(|piece| piece.tokens)
            .sum()
    }
}
