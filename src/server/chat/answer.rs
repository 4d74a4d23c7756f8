//! A turn's events as steps of an answer, and the steps as a whole message.
//!
//! Streamed or not, an answer is made of the same [`Step`]s, so both say the same. Several messages
//! of text are paragraphs of one content, as are several of reasoning. Text before the answer counts
//! as reasoning where the answer has a shape: the content then is what the shape allows, no more.

use crate::{
    harmony::{Channel, Part},
    server::{
        id,
        turn::{Finish, Outcome, TokenLogprob, TurnEvent},
    },
};
use serde_json::{Value, json};

/// A step of the answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// More reasoning.
    Reasoning(String),
    /// More of the answer's text.
    Text {
        /// May be empty if tokens come with it.
        text: String,
        /// The tokens that begin in it, where asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// A call begins.
    Call {
        /// Its index among the calls.
        index: usize,
        /// What its answer will name.
        id: String,
        /// The function.
        name: String,
    },
    /// More of its arguments.
    Arguments {
        /// Its index among the calls.
        index: usize,
        /// As the model writes them.
        text: String,
    },
}

/// Where the text of the open message goes.
#[derive(Debug, Clone, Copy, Default)]
enum Place {
    #[default]
    Reasoning,
    Text,
    Call(usize),
}

/// Turn events to steps.
#[derive(Debug, Default)]
pub struct Teller {
    /// The answer has a shape.
    shaped: bool,
    place: Place,
    calls: usize,
    /// A paragraph must begin before more of it comes: of reasoning, of text.
    breaks: (bool, bool),
    /// Something was said: reasoning, text.
    said: (bool, bool),
}

impl Teller {
    /// `shaped`: the answer has a shape.
    pub fn new(shaped: bool) -> Teller {
        Teller {
            shaped,
            ..Teller::default()
        }
    }

    /// What `event` adds to the answer.
    pub fn tell(&mut self, event: TurnEvent) -> Option<Step> {
        match event {
            TurnEvent::Open { part, header, .. } => self.open(part, header.channel),
            TurnEvent::Text { text, logprobs, .. } => Some(match self.place {
                Place::Call(index) => Step::Arguments { index, text },
                Place::Reasoning => {
                    Step::Reasoning(paragraph(text, &mut self.breaks.0, &mut self.said.0))
                }
                Place::Text => Step::Text {
                    text: paragraph(text, &mut self.breaks.1, &mut self.said.1),
                    logprobs,
                },
            }),
            _ => None,
        }
    }

    fn open(&mut self, part: Part, channel: Option<Channel>) -> Option<Step> {
        let is_answer = channel == Some(Channel::Final) && part == Part::Text;
        match part {
            Part::Call { name } => {
                let index = self.calls;
                self.calls += 1;
                self.place = Place::Call(index);
                let id = id::fresh("call_");
                return Some(Step::Call { index, id, name });
            }
            Part::Text | Part::Foreign if is_answer || !self.shaped => {
                self.place = Place::Text;
                self.breaks.1 = self.said.1;
            }
            _ => {
                self.place = Place::Reasoning;
                self.breaks.0 = self.said.0;
            }
        }
        None
    }
}

fn paragraph(text: String, breaks: &mut bool, said: &mut bool) -> String {
    if text.is_empty() {
        return text;
    }
    *said = true;
    match std::mem::take(breaks) {
        true => format!("\n\n{text}"),
        false => text,
    }
}

/// A whole answer.
#[derive(Debug, Default)]
pub struct Answer {
    reasoning: String,
    text: Option<String>,
    logprobs: Vec<TokenLogprob>,
    /// Id, function, arguments.
    calls: Vec<(String, String, String)>,
}

/// How an answer is written down.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// With its reasoning.
    pub reasoning: bool,
    /// With log-probabilities.
    pub logprobs: bool,
    /// With `function_call` in place of `tool_calls`.
    pub legacy: bool,
}

impl Answer {
    /// Takes in a step.
    pub fn add(&mut self, step: Step) {
        match step {
            Step::Reasoning(text) => self.reasoning += &text,
            Step::Text { text, logprobs } => {
                *self.text.get_or_insert_default() += &text;
                self.logprobs.extend(logprobs);
            }
            Step::Call { id, name, .. } => self.calls.push((id, name, String::new())),
            Step::Arguments { index, text } => {
                if let Some((_, _, arguments)) = self.calls.get_mut(index) {
                    *arguments += &text;
                }
            }
        }
    }

    /// As one of a response's `choices`.
    pub fn choice(self, index: usize, outcome: &Outcome, style: Style) -> Value {
        let content = match (self.text, outcome.finish) {
            (Some(text), _) => Value::String(text),
            (None, Finish::Stop) => Value::String(String::new()),
            (None, _) => Value::Null,
        };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if style.reasoning {
            let reasoning = Some(self.reasoning).filter(|text| !text.is_empty());
            message["reasoning"] = json!(reasoning);
            message["reasoning_content"] = json!(reasoning);
        }
        let mut calls = self.calls.into_iter();
        if style.legacy {
            if let Some((_, name, arguments)) = calls.next() {
                message["function_call"] = json!({"name": name, "arguments": arguments});
            }
        } else if calls.len() > 0 {
            message["tool_calls"] = calls
                .map(|(id, name, arguments)| {
                    let function = json!({"name": name, "arguments": arguments});
                    json!({"id": id, "type": "function", "function": function})
                })
                .collect();
        }
        json!({
            "index": index,
            "message": message,
            "logprobs": style.logprobs.then(|| logprobs(&self.logprobs)),
            "finish_reason": finish_reason(outcome.finish, style),
        })
    }
}

/// `finish_reason`.
pub fn finish_reason(finish: Finish, style: Style) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        // A turn that was cancelled ends with an error; its choice says that it is not whole.
        Finish::Length | Finish::Cancelled => "length",
        Finish::ToolCalls if style.legacy => "function_call",
        Finish::ToolCalls => "tool_calls",
    }
}

/// A choice's `logprobs`.
pub fn logprobs(tokens: &[TokenLogprob]) -> Value {
    json!({"content": tokens, "refusal": null})
}
