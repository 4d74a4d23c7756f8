//! The headers that a constrained turn may choose from, as tokens.
//!
//! They are the ones the parser reads without a repair, spelled as the tokenizer spells them: the
//! model chooses among them wherever two part.

use crate::{
    harmony::{Builtin, Controls},
    tokenizer::Tokenizer,
};

/// What a header leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lead {
    /// Reasoning.
    Analysis,
    /// What is said before a call.
    Preamble,
    /// The answer.
    Final,
    /// A call of the function with this index.
    Call(usize),
    /// A call of a trained tool.
    Builtin,
}

/// A header: the tokens between `<|start|>assistant` and the text, `<|message|>` included.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub tokens: Vec<u32>,
    pub lead: Lead,
}

/// How a call names its type: not at all, by a word, by the marked word.
enum Type {
    None,
    Word(&'static str),
    Marked(&'static str),
}

/// Makes headers.
pub(super) struct Writer<'a> {
    tok: &'a Tokenizer,
    control: &'a Controls,
    pub headers: Vec<Header>,
}

impl<'a> Writer<'a> {
    pub fn new(tok: &'a Tokenizer, control: &'a Controls) -> Writer<'a> {
        Writer {
            tok,
            control,
            headers: Vec::new(),
        }
    }

    /// `before<|channel|>after<|message|>`, the type at the end of `after`.
    fn add(&mut self, lead: Lead, before: &str, after: &str, kind: &Type) {
        let mut tokens = Vec::new();
        let text = |text: &str, tokens: &mut Vec<u32>| {
            if !text.is_empty() {
                tokens.extend(self.tok.encode(text));
            }
        };
        text(before, &mut tokens);
        tokens.push(self.control.channel);
        match kind {
            Type::None => text(after, &mut tokens),
            Type::Word(word) => text(&format!("{after} {word}"), &mut tokens),
            Type::Marked(word) => {
                text(&format!("{after} "), &mut tokens);
                tokens.push(self.control.constrain);
                text(word, &mut tokens);
            }
        }
        tokens.push(self.control.message);
        if !self.headers.iter().any(|known| known.tokens == tokens) {
            self.headers.push(Header { tokens, lead });
        }
    }

    pub fn analysis(&mut self) {
        self.add(Lead::Analysis, "", "analysis", &Type::None);
    }

    pub fn preamble(&mut self) {
        self.add(Lead::Preamble, "", "commentary", &Type::None);
    }

    /// The answer's; `json` if it may say that it is.
    pub fn answer(&mut self, json: bool) {
        self.add(Lead::Final, "", "final", &Type::None);
        if json {
            self.add(Lead::Final, "", "final", &Type::Marked("json"));
        }
    }

    /// Those of calls of function `index`, which the model knows as `shown`.
    pub fn call(&mut self, index: usize, shown: &str) {
        let to = format!(" to=functions.{shown}");
        for kind in [Type::Marked("json"), Type::Word("json"), Type::None] {
            self.add(Lead::Call(index), "", &format!("commentary{to}"), &kind);
            self.add(Lead::Call(index), &to, "commentary", &kind);
        }
    }

    /// Those of calls of a trained tool.
    pub fn builtin(&mut self, builtin: Builtin) {
        let (names, kinds): (&[&str], _) = match builtin {
            Builtin::Python => (&["python"], [Type::Word("code"), Type::Marked("code")]),
            Builtin::Browser => (
                &["browser.search", "browser.open", "browser.find"],
                [Type::Word("code"), Type::Marked("json")],
            ),
        };
        for name in names {
            let to = format!(" to={name}");
            for kind in kinds.iter().chain([&Type::None]) {
                for channel in ["analysis", "commentary"] {
                    self.add(Lead::Builtin, "", &format!("{channel}{to}"), kind);
                    self.add(Lead::Builtin, &to, channel, kind);
                }
            }
        }
    }
}
