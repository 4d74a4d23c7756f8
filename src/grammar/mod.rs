//! What a turn may say, enforced while it is generated: the shape of the answer, the schemas of
//! tools, which tools may or must be called, how long the model may think.
//!
//! Two layers. A [`Turn`](turn::Turn) is a small state machine over the tokens of a Harmony turn:
//! which headers may come, how a message may end. Inside the one message whose shape matters (the
//! answer, or a call of a strict tool) an llguidance matcher decides; the rest stays free. So the
//! analysis is never bent to the schema, and a header can't be malformed where anything is enforced.
//!
//! Always: a mask allows at least one token; the text of a finished message is what its grammar
//! accepted, byte for byte; what a client sends (schemas, patterns, grammars) is bounded in size,
//! in memory and in the time of a mask, and beyond the bounds it is an error.

mod cache;
mod compile;
mod headers;
mod rules;
mod turn;
mod vocabulary;

pub use compile::{
    MASK_ITEMS, MASK_STEPS, MAX_COUNTED, MAX_FIELDS, MAX_GRAMMAR_BYTES, MAX_MULTIPLES, MAX_NESTING,
    MAX_OPTIONAL, MAX_SCHEMA_BYTES, MAX_STATES,
};
pub use rules::{Format, GrammarError, Place, RuledTool, Rules, ToolChoice};

use crate::{
    harmony::Conversation,
    sampler::{Mask, MaskSource},
    tokenizer::Tokenizer,
};
use compile::{Compiler, Mold, Shape};
use std::sync::{Arc, OnceLock};

/// Most bytes of all strict tools' schemas of one request together.
pub const MAX_TOOL_BYTES: usize = 4 * MAX_SCHEMA_BYTES;

/// Makes constraints for one model. What llguidance needs to know of the vocabulary is built on the
/// first use (about a second with o200k) and shared.
pub struct Grammars {
    tok: Arc<Tokenizer>,
    compiler: OnceLock<Result<Compiler, String>>,
}

impl Grammars {
    /// For models that speak through `tok`. Costs nothing yet.
    pub fn new(tok: Arc<Tokenizer>) -> Grammars {
        Grammars {
            tok,
            compiler: OnceLock::new(),
        }
    }

    /// Builds now what the first schema would have to wait for; blocks meanwhile.
    pub fn warm(&self) {
        // What goes wrong is told to whoever asks for a schema.
        let _ = self.compiler();
    }

    /// The constraint of a turn of `conversation`, from the token after the prompt's
    /// `<|start|>assistant` on. `None` where the rules leave nothing to enforce: no format, no strict
    /// tool, no choice of tools, no budget.
    ///
    /// # Errors
    /// When a schema, pattern or grammar can't be enforced or is beyond the limits; when the choice
    /// names a tool that isn't there; when the vocabulary has no Harmony.
    pub fn constrain(
        &self,
        rules: &Rules,
        conversation: &Conversation,
    ) -> Result<Option<Box<Constraint>>, GrammarError> {
        if !rules.constrain(conversation) {
            return Ok(None);
        }
        rules.check()?;
        let mold = |format: &Format, place: Place| {
            self.mold(format)
                .map_err(|message| GrammarError::new(place, message))
        };
        let format = match &rules.format {
            Some(format) => Some(mold(format, Place::Format)?),
            None => None,
        };
        let mut bytes = 0;
        let mut tools = Vec::new();
        for (index, tool) in rules.tools.iter().enumerate() {
            if !rules.choice.allows(&tool.name) {
                continue;
            }
            let place = Place::Tool(index);
            let arguments = match &tool.strict {
                Some(schema) => {
                    bytes += schema.to_string().len();
                    if bytes > MAX_TOOL_BYTES {
                        let message = format!(
                            "the strict tools' schemas up to this one: {bytes} bytes; at most \
                             {MAX_TOOL_BYTES} can be enforced"
                        );
                        return Err(GrammarError::new(place, message));
                    }
                    let schema = schema.clone();
                    Some(mold(&Format::JsonSchema { schema }, place)?)
                }
                None if rules.choice.requires() => Some(mold(&Format::JsonObject, place)?),
                None => None,
            };
            tools.push((tool.name.clone(), arguments));
        }
        let turn = turn::Turn::new(&self.tok, conversation, rules, format, tools);
        let turn = turn.map_err(|error| GrammarError::new(Place::Format, format!("{error:#}")))?;
        Ok(Some(Box::new(Constraint(Kind::Turn(Box::new(turn))))))
    }

    /// The constraint of a plain text: `format` from its first token to its end.
    ///
    /// # Errors
    /// As [`Grammars::constrain`]'s.
    pub fn raw(&self, format: &Format) -> Result<Box<Constraint>, GrammarError> {
        let mold = self.mold(format);
        let mold = mold.map_err(|message| GrammarError::new(Place::Format, message))?;
        let ends = ["<|return|>", "<|endoftext|>"];
        let ends = ends.iter().filter_map(|name| self.tok.special(name));
        Ok(Box::new(Constraint(Kind::Plain(Box::new(Plain {
            shape: Shape::new(&mold),
            ends: ends.collect(),
            ended: false,
        })))))
    }

    fn mold(&self, format: &Format) -> Result<Arc<Mold>, String> {
        let compiler = self.compiler().as_ref();
        compiler.map_err(String::clone)?.mold(format)
    }

    fn compiler(&self) -> &Result<Compiler, String> {
        self.compiler
            .get_or_init(|| Compiler::new(&self.tok).map_err(|error| format!("{error:#}")))
    }
}

/// What one answer may say. A copy of one that has not begun costs next to nothing, so it is made
/// once for all answers to a request.
#[derive(Clone)]
pub struct Constraint(Kind);

#[derive(Clone)]
enum Kind {
    Turn(Box<turn::Turn>),
    Plain(Box<Plain>),
}

impl MaskSource for Constraint {
    fn mask(&mut self) -> Result<Mask, String> {
        match &mut self.0 {
            Kind::Turn(turn) => turn.mask(),
            Kind::Plain(plain) => plain.mask(),
        }
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        match &mut self.0 {
            Kind::Turn(turn) => turn.accept(id),
            Kind::Plain(plain) => plain.accept(id),
        }
    }
}

/// A text that is one shape and nothing else.
#[derive(Clone)]
struct Plain {
    shape: Shape,
    ends: Vec<u32>,
    ended: bool,
}

impl MaskSource for Plain {
    fn mask(&mut self) -> Result<Mask, String> {
        match self.ended {
            true => Ok(Mask::Only(self.ends.clone().into())),
            false => self.shape.mask(&self.ends),
        }
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        if self.ended {
            return Ok(());
        }
        self.ended = self.shape.accept(id, &self.ends)?;
        Ok(())
    }
}
