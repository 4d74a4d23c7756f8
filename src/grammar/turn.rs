//! The state machine of one turn.
//!
//! A turn is messages: `header <|message|> text end`. Between the end of one and the header of the
//! next stands `<|start|>assistant`. What may come depends on what was said already; a turn may think
//! and announce at most [`MAX_MESSAGES`] times each and make at most [`MAX_CALLS`] calls, so it ends.
//!
//! Why no state is a dead end: at a header the answer is allowed or a call is. The answer is not
//! allowed only while a call is due (it was required, it was announced where the answer has a shape,
//! or a call ended with `<|end|>`, which says that another follows), and then calls are allowed,
//! since `<|end|>` is allowed only below the last call.

use super::{
    compile::{Mold, Shape},
    headers::{Header, Lead, Writer},
    rules::{Format, Rules, ToolChoice},
};
use crate::{
    harmony::{Controls, Conversation, Role},
    sampler::{Mask, MaskSource},
    tokenizer::{TokenKind, Tokenizer},
};
use anyhow::Result;
use std::sync::Arc;

/// Most messages of reasoning in a turn, and most announcements.
const MAX_MESSAGES: usize = 8;
/// Most calls in a turn.
const MAX_CALLS: usize = 32;

/// Enforces the rules of one turn. A copy goes on from where the original is.
#[derive(Clone)]
pub(super) struct Turn {
    control: Controls,
    /// Tokens that are no text.
    marks: Vec<u32>,
    /// `assistant`.
    role: Vec<u32>,
    headers: Vec<Header>,
    format: Option<Arc<Mold>>,
    /// The functions that may be called: the shape of their arguments.
    calls: Vec<Option<Arc<Mold>>>,
    /// A call must come.
    required: bool,
    parallel: bool,
    /// Tokens of reasoning that are left.
    budget: Option<usize>,
    thoughts: usize,
    announcements: usize,
    called: usize,
    state: State,
}

#[derive(Clone)]
enum State {
    /// In `<|start|>assistant`, after so many of its tokens.
    Role(usize),
    /// In a header: the candidates that are left, and how many of their tokens are done.
    Header { open: Vec<usize>, done: usize },
    /// In a text.
    Text(Box<Text>),
    /// After the turn's end.
    Done,
}

#[derive(Clone)]
struct Text {
    /// What a free text may not hold.
    mask: Mask,
    /// What may end it.
    ends: Vec<u32>,
    shape: Option<Shape>,
    analysis: bool,
}

impl Turn {
    /// `tools` are the functions that may be called, by the client's names.
    ///
    /// # Errors
    /// When the vocabulary lacks a control token of Harmony.
    pub fn new(
        tok: &Tokenizer,
        conversation: &Conversation,
        rules: &Rules,
        format: Option<Arc<Mold>>,
        tools: Vec<(String, Option<Arc<Mold>>)>,
    ) -> Result<Turn> {
        let control = Controls::new(tok)?;
        let names = conversation.tool_names();
        let mut writer = Writer::new(tok, &control);
        writer.analysis();
        let json = matches!(
            rules.format,
            Some(Format::JsonObject | Format::JsonSchema { .. })
        );
        writer.answer(json);
        let mut calls = Vec::new();
        for (name, shape) in tools {
            writer.call(calls.len(), &names.shown(&name));
            calls.push(shape);
        }
        if matches!(rules.choice, ToolChoice::Auto | ToolChoice::Required) {
            for &builtin in &conversation.builtins {
                writer.builtin(builtin);
            }
        }
        if writer.headers.iter().any(|header| header.lead.is_call()) {
            writer.preamble();
        }
        let headers = writer.headers;
        let is_mark = |&id: &u32| {
            !matches!(
                tok.kind(id),
                TokenKind::Normal | TokenKind::Byte | TokenKind::Unused
            )
        };
        let mut turn = Turn {
            marks: (0..tok.vocab_size() as u32).filter(is_mark).collect(),
            role: tok.encode(Role::Assistant.as_str()),
            control,
            headers,
            format,
            calls,
            required: rules.choice.requires(),
            parallel: rules.parallel,
            budget: rules.reasoning_budget,
            thoughts: 0,
            announcements: 0,
            called: 0,
            state: State::Done,
        };
        turn.state = turn.header();
        Ok(turn)
    }

    /// The headers that may come next.
    fn header(&self) -> State {
        let shaped = self.format.is_some();
        let due = match self.called {
            0 => self.required || (shaped && self.announcements > 0),
            _ => true,
        };
        let allowed = |lead: Lead| match lead {
            Lead::Analysis => self.thoughts < MAX_MESSAGES && self.budget != Some(0),
            Lead::Preamble => self.announcements < MAX_MESSAGES,
            Lead::Final => !due,
            Lead::Call(_) | Lead::Builtin => self.called < MAX_CALLS,
        };
        let open = self.headers.iter().enumerate();
        let open = open.filter(|(_, header)| allowed(header.lead));
        State::Header {
            open: open.map(|(index, _)| index).collect(),
            done: 0,
        }
    }

    /// A text without any control token but `ends`.
    fn text(&self, ends: Vec<u32>, shape: Option<Shape>, analysis: bool) -> Text {
        let not_end = |id: &&u32| !ends.contains(id);
        let marks: Vec<u32> = self.marks.iter().filter(not_end).copied().collect();
        Text {
            mask: Mask::Except(Arc::from(marks)),
            ends,
            shape,
            analysis,
        }
    }

    /// The text that follows a header.
    fn begin(&mut self, lead: Lead) -> Text {
        let control = self.control.clone();
        match lead {
            Lead::Analysis => {
                self.thoughts += 1;
                self.text(vec![control.end], None, true)
            }
            Lead::Preamble => {
                self.announcements += 1;
                self.text(vec![control.end], None, false)
            }
            Lead::Final => {
                let shape = self.format.as_ref().map(Shape::new);
                self.text(vec![control.ret], shape, false)
            }
            Lead::Call(_) | Lead::Builtin => {
                self.called += 1;
                let mut ends = vec![control.call];
                if self.parallel && self.called < MAX_CALLS {
                    ends.push(control.end);
                }
                let mold = match lead {
                    Lead::Call(index) => self.calls.get(index).and_then(Option::as_ref),
                    _ => None,
                };
                let shape = mold.map(Shape::new);
                self.text(ends, shape, false)
            }
        }
    }

    /// The token of `header` after `done`.
    fn token(&self, header: usize, done: usize) -> Option<u32> {
        self.headers.get(header)?.tokens.get(done).copied()
    }

    /// The token of `<|start|>assistant` after `done`.
    fn role_token(&self, done: usize) -> Option<u32> {
        match done {
            0 => Some(self.control.start),
            _ => self.role.get(done - 1).copied(),
        }
    }
}

impl Lead {
    fn is_call(self) -> bool {
        matches!(self, Lead::Call(_) | Lead::Builtin)
    }
}

impl MaskSource for Turn {
    fn mask(&mut self) -> Result<Mask, String> {
        if let State::Text(text) = &mut self.state {
            if text.analysis && self.budget == Some(0) {
                return Ok(Mask::Only(text.ends.clone().into()));
            }
            return match &mut text.shape {
                Some(shape) => shape.mask(&text.ends),
                None => Ok(text.mask.clone()),
            };
        }
        match &self.state {
            State::Role(done) => Ok(Mask::Only(self.role_token(*done).into_iter().collect())),
            State::Header { open, done } => {
                let next = open.iter().filter_map(|&i| self.token(i, *done));
                let mut next: Vec<u32> = next.collect();
                next.sort_unstable();
                next.dedup();
                Ok(Mask::Only(next.into()))
            }
            _ => Ok(Mask::Only([self.control.ret].into())),
        }
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        let next = match &mut self.state {
            State::Done => return Ok(()),
            State::Text(text) => {
                let ended = match &mut text.shape {
                    Some(shape) => shape.accept(id, &text.ends)?,
                    None => text.ends.contains(&id),
                };
                let spent = text.analysis && !ended;
                if !ended && text.shape.is_none() && !text.mask.allows(id) {
                    return Err(format!("token {id} can't stand in a text"));
                }
                if spent && let Some(budget) = &mut self.budget {
                    *budget = budget
                        .checked_sub(1)
                        .ok_or("the reasoning is longer than its budget")?;
                }
                match ended {
                    false => return Ok(()),
                    true if id == self.control.end => State::Role(0),
                    true => State::Done,
                }
            }
            State::Role(done) => {
                let done = *done + 1;
                if self.role_token(done - 1) != Some(id) {
                    return Err(format!("token {id} where <|start|>assistant must stand"));
                }
                match self.role_token(done) {
                    Some(_) => State::Role(done),
                    None => self.header(),
                }
            }
            State::Header { open, done } => {
                let (open, done) = (std::mem::take(open), *done);
                let fits = |&i: &usize| self.token(i, done) == Some(id);
                let open: Vec<usize> = open.into_iter().filter(fits).collect();
                let Some(&first) = open.first() else {
                    return Err(format!(
                        "token {id} belongs to no header that may come here"
                    ));
                };
                let done = done + 1;
                match (self.token(first, done), self.headers.get(first)) {
                    (None, Some(header)) => State::Text(Box::new(self.begin(header.lead))),
                    _ => State::Header { open, done },
                }
            }
        };
        self.state = next;
        Ok(())
    }
}
