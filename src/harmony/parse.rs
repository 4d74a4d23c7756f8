//! Token ids to messages, as they arrive; never fails.
//!
//! The parser is either in a header or in a message's text. A header's tokens are collected until
//! they can be read ([`super::header`]) and then accounted for at once; text goes out as it comes.
//!
//! What is decided where Harmony leaves it open:
//! - Text where a header should stand is the answer (`final`), from its first byte.
//! - A header without `<|message|>` ends where words follow that no header holds; these are the text,
//!   without the blanks before them. Signs and digits alone are text if the turn ends there or the
//!   channel is `final`; if the turn goes on they are junk.
//! - A header cut by the end of a message makes a message only if it calls a tool; one cut because
//!   the output stops makes none.
//! - `<|channel|>` or `<|start|>` within text begins a new message if a header follows; otherwise it
//!   is left out and the text goes on. Other control tokens within text are left out.
//! - The last of two recipients or channels counts.
//! - A recipient that was never declared makes no call: its message is text, on `commentary` at
//!   least, so that it is seen. An unknown function counts as a call if there are functions at all.
//! - Text is the message's bytes as [`String::from_utf8_lossy`] gives them, whatever stray tokens
//!   stand between; a character's bytes are held back until it is whole.
//! - Only a role other than the assistant's may go without a channel.

use super::account::{Class, Repair};
use super::control::{Control, Controls};
use super::header::{Header, LIMIT, MARKS, Reading, Start, Tail, Until, read};
use super::lex::{Collected, Lex, Lexeme};
use super::message::{Channel, Message, Role};
use super::names::ToolNames;
use super::turn::{Ending, Part, Turn};
use crate::tokenizer::{StreamDecoder, TokenKind, Tokenizer};
use anyhow::Result;
use std::sync::Arc;

/// A step of the turn. The texts of one index, put together, are that message's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// A message begins.
    Open {
        /// Its index among the turn's messages.
        index: usize,
        /// What it is for.
        part: Part,
        /// The message, still without content.
        header: Message,
    },
    /// More of its text; never empty, never half a character.
    Text {
        /// The message's index.
        index: usize,
        /// The text.
        text: String,
    },
    /// It is complete.
    Close {
        /// The message's index.
        index: usize,
        /// What ended it.
        ending: Ending,
    },
}

/// Reads a turn. Begins after the prompt's `<|start|>assistant`.
#[derive(Clone)]
pub struct Parser {
    tok: Arc<Tokenizer>,
    control: Controls,
    names: ToolNames,
    /// Text goes to the last message, through this; none while in a header.
    text: Option<StreamDecoder>,
    /// The decoder of a message that a header may have cut.
    cut: Option<StreamDecoder>,
    start: Start,
    collected: Collected,
    turn: Turn,
    out: Vec<Delta>,
}

impl Parser {
    /// A parser for one turn of a conversation that declares `names`
    /// ([`Conversation::tool_names`](super::Conversation::tool_names)).
    ///
    /// # Errors
    /// When the vocabulary lacks a control token of Harmony.
    pub fn new(tok: Arc<Tokenizer>, names: ToolNames) -> Result<Parser> {
        Ok(Parser {
            control: Controls::new(&tok)?,
            tok,
            names,
            text: None,
            cut: None,
            start: Start::Prompt,
            collected: Collected::default(),
            turn: Turn::default(),
            out: Vec::new(),
        })
    }

    /// Takes in the next id.
    pub fn push(&mut self, id: u32) -> Vec<Delta> {
        self.step(id);
        std::mem::take(&mut self.out)
    }

    /// Takes in several ids; the same as one after the other.
    pub fn extend(&mut self, ids: &[u32]) -> Vec<Delta> {
        ids.iter().for_each(|&id| self.step(id));
        std::mem::take(&mut self.out)
    }

    /// The turn so far; what is held back is in none of its messages yet.
    pub fn turn(&self) -> &Turn {
        &self.turn
    }

    /// Ends the turn: what was held back, and all of it.
    pub fn finish(mut self) -> (Vec<Delta>, Turn) {
        if self.text.is_none() {
            self.cut_header(None);
        }
        if self.text.is_some() {
            self.close(Ending::Open);
        }
        (self.out, self.turn)
    }

    fn step(&mut self, id: u32) {
        let control = self.control.get(id);
        if self.text.is_some() {
            return self.step_text(id, control);
        }
        let tok = Arc::clone(&self.tok);
        let bytes = tok.token_bytes(id);
        match control {
            Some(Control::Message) => {
                let (lexemes, reading) = self.read(Until::Message);
                self.account_header(&lexemes, &reading, lexemes.len());
                self.turn.account.add(Class::Marker, bytes, 1);
                self.open(reading, None);
            }
            Some(Control::Start) => {
                self.cut_header(Some(id));
                // The header's end may have given its tokens back to a message.
                if self.text.is_some() {
                    return self.step_text(id, control);
                }
                self.start = Start::Marker;
                self.collected.mark(id, Lex::Mark(Control::Start), bytes);
            }
            Some(Control::End | Control::Return | Control::Call | Control::EndOfText) => {
                self.cut_header(Some(id));
                if self.text.is_some() {
                    self.step_text(id, control);
                }
            }
            Some(mark @ (Control::Channel | Control::Constrain)) => {
                self.collected.mark(id, Lex::Mark(mark), bytes);
                self.decide();
            }
            None => {
                match self.alien(id) {
                    Some(repair) => self.collected.mark(id, Lex::Alien(repair), bytes),
                    None => self.collected.text(id, bytes),
                }
                self.decide();
            }
        }
    }

    /// Whether `id` stands for no text: a control token without a meaning in Harmony, an unknown one.
    fn alien(&self, id: u32) -> Option<Repair> {
        match self.tok.kind(id) {
            _ if self.tok.token_bytes(id).is_empty() => Some(Repair::UnknownToken),
            TokenKind::Normal | TokenKind::Byte => None,
            TokenKind::Control | TokenKind::UserDefined => Some(Repair::StrayMarker),
            TokenKind::Unknown | TokenKind::Unused => Some(Repair::UnknownToken),
        }
    }

    fn step_text(&mut self, id: u32, control: Option<Control>) {
        let tok = Arc::clone(&self.tok);
        let bytes = tok.token_bytes(id);
        let ending = match control {
            None => {
                match self.alien(id) {
                    Some(repair) => self.repaired(repair, bytes),
                    None => self.put(bytes, 1),
                }
                return;
            }
            Some(Control::Message | Control::Constrain) => {
                return self.repaired(Repair::StrayMarker, bytes);
            }
            Some(mark @ (Control::Start | Control::Channel)) => {
                self.cut = self.text.take();
                self.start = match mark {
                    Control::Start => Start::Marker,
                    _ => Start::Missing,
                };
                return self.collected.mark(id, Lex::Mark(mark), bytes);
            }
            Some(Control::EndOfText) => {
                self.repaired(Repair::StrayMarker, bytes);
                return self.close(Ending::EndOfText);
            }
            Some(Control::End) => Ending::End,
            Some(Control::Return) => Ending::Return,
            Some(Control::Call) => Ending::Call,
        };
        self.turn.account.add(Class::Marker, bytes, 1);
        self.close(ending);
    }

    fn read(&self, until: Until) -> (Vec<Lexeme>, Reading) {
        let lexemes = self.collected.lexemes();
        let reading = read(&self.collected, &lexemes, self.start, &self.names, until);
        (lexemes, reading)
    }

    /// Goes over to text if the collected tokens can't be a header any more; gives a header up that
    /// only repeats itself.
    fn decide(&mut self) {
        let (lexemes, reading) = self.read(Until::More);
        let too_long = self.collected.marks() > MARKS || self.collected.bytes.len() > 2 * LIMIT;
        match reading.tail {
            Tail::Text => self.text_follows(&lexemes, reading),
            Tail::Junk | Tail::Word(_) if too_long => self.text_follows(&lexemes, reading),
            _ if too_long => {
                self.account_header(&lexemes, &reading, lexemes.len());
                self.turn.repairs.add(Repair::MissingMessage);
                self.resume();
            }
            _ => {}
        }
    }

    /// Back to the message that a header seemed to cut, or on to the next header.
    fn resume(&mut self) {
        self.text = self.cut.take();
        self.start = Start::Missing;
        self.collected = Collected::default();
    }

    /// What stands after the reading's anchor is text.
    fn text_follows(&mut self, lexemes: &[Lexeme], reading: Reading) {
        if self.cut.is_some() && !reading.found {
            return self.give_back(lexemes);
        }
        let after = |lexeme: &&Lexeme| {
            lexeme.start >= reading.anchor && (reading.anchor == 0 || lexeme.lex != Lex::Blank)
        };
        let begin = lexemes.iter().find(after);
        let begin = begin.map_or(self.collected.bytes.len(), |lexeme| lexeme.start);
        let headed = lexemes
            .iter()
            .take_while(|lexeme| lexeme.end <= begin && lexeme.start < begin);
        let headed = headed.count();
        self.account_header(lexemes, &reading, headed);
        let collected = std::mem::take(&mut self.collected);
        let missing = match reading.found {
            true => Repair::MissingMessage,
            false => Repair::MissingHeader,
        };
        self.open(reading, Some(missing));
        // A token that is part header, part text counts as header.
        let tokens = collected.tokens();
        let next = tokens.iter().position(|token| token.start >= begin);
        let next = next.unwrap_or(tokens.len());
        let rest = tokens
            .get(next)
            .map_or(collected.bytes.len(), |token| token.start);
        if begin < rest {
            self.put(&collected.bytes[begin..rest], 0);
        }
        for token in &tokens[next..] {
            self.step(token.id);
        }
    }

    /// The collected tokens belong to the message before them after all; marks are left out.
    fn give_back(&mut self, lexemes: &[Lexeme]) {
        let collected = std::mem::take(&mut self.collected);
        self.resume();
        for lexeme in lexemes {
            let bytes = &collected.bytes[lexeme.start..lexeme.end];
            match lexeme.lex {
                Lex::Mark(_) => self.repaired(Repair::StrayMarker, bytes),
                Lex::Alien(repair) => self.repaired(repair, bytes),
                _ => self.put(bytes, collected.tokens_in(lexeme)),
            }
        }
    }

    /// A header ends without `<|message|>`: by token `end`, or with the output.
    fn cut_header(&mut self, end: Option<u32>) {
        let control = end.and_then(|id| self.control.get(id));
        let begins = control == Some(Control::Start);
        let (lexemes, reading) = self.read(match end {
            Some(_) => Until::Cut,
            None => Until::More,
        });
        let channel = reading.header.channel;
        let goes_on = begins || control == Some(Control::End);
        let bare = self.start == Start::Prompt && reading.anchor == 0;
        let is_text = match reading.tail {
            Tail::Nothing => false,
            Tail::Words => (bare || end.is_some()) && !goes_on,
            Tail::Junk => !goes_on || channel == Some(Channel::Final),
            Tail::Word(unfinished) => bare || end.is_some() || !unfinished,
            Tail::Text => true,
        };
        if is_text {
            return self.text_follows(&lexemes, reading);
        }
        if self.cut.is_some() && !reading.found && end.is_some() {
            return self.give_back(&lexemes);
        }
        let empty = self.collected.is_empty();
        let repeated =
            begins && lexemes.len() == 1 && !reading.found && self.start == Start::Marker;
        self.account_header(&lexemes, &reading, lexemes.len());
        self.collected = Collected::default();
        let calls = self.calls(&reading.header).is_some();
        let start = std::mem::replace(&mut self.start, Start::Missing);
        match control {
            None => self.text = self.cut.take(),
            Some(_) if calls => {
                self.start = start;
                return self.open(reading, Some(Repair::MissingMessage));
            }
            Some(Control::Start) if empty && start != Start::Prompt => {}
            Some(Control::Start) if empty || repeated => self.turn.repairs.add(Repair::Repeated),
            Some(_) if empty => {}
            Some(_) => self.turn.repairs.add(Repair::MissingMessage),
        }
        if let Some(id) = end.filter(|_| !begins) {
            self.end_without_message(id, empty);
        }
    }

    /// Accounts for the end marker of a header that made no message.
    fn end_without_message(&mut self, id: u32, stray: bool) {
        self.close_cut();
        let tok = Arc::clone(&self.tok);
        let ending = match self.control.get(id) {
            Some(Control::Return) => Ending::Return,
            Some(Control::Call) => Ending::Call,
            Some(Control::EndOfText) => Ending::EndOfText,
            _ => Ending::End,
        };
        match stray {
            true => self.repaired(Repair::StrayMarker, tok.token_bytes(id)),
            false => self.turn.account.add(Class::Marker, tok.token_bytes(id), 1),
        }
        if ending != Ending::End || self.turn.ending == Ending::Open {
            self.turn.ending = ending;
        }
    }

    /// Accounts for the first `count` lexemes of the header, and counts their repairs.
    fn account_header(&mut self, lexemes: &[Lexeme], reading: &Reading, count: usize) {
        let mut junk = false;
        for (lexeme, &class) in lexemes.iter().zip(&reading.classes).take(count) {
            let tokens = self.collected.tokens_in(lexeme);
            let bytes = &self.collected.bytes[lexeme.start..lexeme.end];
            self.turn.account.add(class, bytes, tokens);
            let is_junk = class == Class::Repaired(Repair::Junk);
            if let Class::Repaired(repair) = class
                && !(is_junk && junk)
            {
                self.turn.repairs.add(repair);
            }
            // Junk with blanks in it is one repair.
            junk = is_junk || (junk && lexeme.lex == Lex::Blank);
        }
    }

    /// The tool that a header calls.
    fn calls(&self, header: &Header) -> Option<super::names::Resolved> {
        let to = header.recipient.as_ref()?;
        let own = header.role == Role::Assistant;
        own.then(|| self.names.resolve(to)).flatten()
    }

    /// Begins a message; `missing` is what its header lacks instead of `<|message|>`.
    fn open(&mut self, reading: Reading, missing: Option<Repair>) {
        let (no_role, mut header) = (reading.no_role, reading.header);
        let start = self.start;
        self.close_cut();
        let mut repair = |when: bool, repair: Repair| {
            if when {
                self.turn.repairs.add(repair);
            }
        };
        let headed = missing != Some(Repair::MissingHeader);
        repair(start == Start::Missing && headed, Repair::MissingStart);
        repair(no_role && headed, Repair::MissingRole);
        if let Some(missing) = missing {
            repair(true, missing);
        }
        let mut part = Part::Foreign;
        if header.role == Role::Assistant {
            let unnamed = header.channel.is_none() && headed;
            let known = reading.classes.iter().any(|class| {
                matches!(
                    class,
                    Class::Repaired(Repair::UnknownChannel | Repair::MissingChannel)
                )
            });
            repair(unnamed && !known, Repair::MissingChannel);
            let call = header
                .recipient
                .as_ref()
                .and_then(|to| self.names.resolve(to));
            let undeclared = header.recipient.is_some() && call.is_none();
            repair(undeclared, Repair::UndeclaredTool);
            let usual = match header.recipient.is_some() {
                true => Channel::Commentary,
                false => Channel::Final,
            };
            let mut channel = header.channel.unwrap_or(usual);
            if undeclared && channel == Channel::Analysis {
                channel = Channel::Commentary;
            }
            header.channel = Some(channel);
            part = match (call, channel) {
                (Some(call), _) => {
                    header.recipient = Some(call.address);
                    Part::Call { name: call.name }
                }
                (None, Channel::Analysis) => Part::Reasoning,
                (None, _) => Part::Text,
            };
        }
        let message = Message {
            role: header.role,
            name: header.name,
            channel: header.channel,
            recipient: header.recipient,
            content_type: header.content_type,
            content: String::new(),
        };
        self.out.push(Delta::Open {
            index: self.turn.messages.len(),
            part: part.clone(),
            header: message.clone(),
        });
        self.turn.messages.push(message);
        self.turn.parts.push(part);
        self.turn.ending = Ending::Open;
        self.collected = Collected::default();
        self.text = Some(self.tok.stream_decoder());
    }

    /// Bytes of the open message's text.
    fn put(&mut self, bytes: &[u8], tokens: usize) {
        let index = self.turn.messages.len().saturating_sub(1);
        self.turn.account.add(Class::Text(index), bytes, tokens);
        let text = self.text.as_mut().map(|decoder| decoder.push(bytes));
        self.say(text.unwrap_or_default());
    }

    fn say(&mut self, text: String) {
        let index = self.turn.messages.len().saturating_sub(1);
        if let Some(message) = self.turn.messages.last_mut()
            && !text.is_empty()
        {
            message.content.push_str(&text);
            self.out.push(Delta::Text { index, text });
        }
    }

    /// Ends the message that a header has cut.
    fn close_cut(&mut self) {
        if let Some(decoder) = self.cut.take() {
            self.text = Some(decoder);
            self.turn.repairs.add(Repair::MissingEnd);
            self.close(Ending::End);
        }
    }

    fn close(&mut self, ending: Ending) {
        let rest = self.text.take().map(|mut decoder| decoder.finish());
        self.say(rest.unwrap_or_default());
        let index = self.turn.messages.len().saturating_sub(1);
        self.out.push(Delta::Close { index, ending });
        self.turn.ending = ending;
        self.start = Start::Missing;
    }

    fn repaired(&mut self, repair: Repair, bytes: &[u8]) {
        self.turn.account.add(Class::Repaired(repair), bytes, 1);
        self.turn.repairs.add(repair);
    }
}
