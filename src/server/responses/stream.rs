//! A turn's events as a response's events, and the response that they add up to.
//!
//! [`Writer`] takes [`TurnEvent`]s and gives the wire's events; a response that is not streamed goes
//! the same way, and its events are thrown away. So both are the same: what the deltas say is what
//! the last object holds. `sequence_number` counts from 0 without a gap; an item keeps its id and its
//! index; items open and close one after another.

use super::{
    custom::Input,
    event::{Data, Event, Place},
    item::{Body, Content, Item, Phase, Status},
    object::{Response, State},
    tools::{Kind, Tools},
};
use crate::{
    harmony::{Channel, Ending, Message, Part, Role},
    server::{
        error::ApiError,
        id::fresh,
        turn::{Finish, Outcome, TokenLogprob, TurnEvent},
    },
};
use std::sync::Arc;

/// An item is complete.
pub(super) const ITEM_DONE: &str = "response.output_item.done";

/// How the reasoning is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReasoningForm {
    /// `response.reasoning_text.*`, as OpenAI's clients know it.
    Text,
    /// `response.reasoning.*`, as Open Responses has it.
    Open,
    /// As its own summary.
    Summary,
}

/// The item that is being written.
struct Writing {
    item: Item,
    /// As it began: what its deltas belong to.
    begun: Arc<Item>,
    /// Reads a custom tool's input out of the call.
    custom: Option<Input>,
    /// The turn has closed it. Whether it was cut by that is known with the next event only.
    closed: bool,
}

/// Writes one response.
pub(super) struct Writer {
    response: Response,
    tools: Tools,
    form: ReasoningForm,
    /// The answer has a shape: text before it counts as reasoning.
    shaped: bool,
    sequence: u64,
    writing: Option<Writing>,
    out: Vec<Event>,
}

impl Writer {
    /// Of `response`, to be made with `tools`. `shaped`: its answer has a format, and what is said
    /// before it counts as reasoning, so that all output text is what the format allows.
    pub fn new(response: Response, tools: Tools, form: ReasoningForm, shaped: bool) -> Writer {
        Writer {
            response,
            tools,
            form,
            shaped,
            sequence: 0,
            writing: None,
            out: Vec::new(),
        }
    }

    /// The response so far.
    pub fn response(&self) -> &Response {
        &self.response
    }

    /// The first events.
    pub fn start(&mut self) -> Vec<Event> {
        self.whole("response.created");
        self.keep_alive()
    }

    /// An event that says nothing new and keeps the stream alive.
    pub fn keep_alive(&mut self) -> Vec<Event> {
        match self.response.state {
            State::Queued => self.whole("response.queued"),
            _ => self.whole("response.in_progress"),
        }
        self.take()
    }

    /// What happened in the turn.
    pub fn push(&mut self, event: TurnEvent) -> Vec<Event> {
        if self.response.state == State::Queued {
            self.response.state = State::InProgress;
            self.whole("response.in_progress");
        }
        match event {
            TurnEvent::Progress { .. } => {}
            TurnEvent::Open { part, header, .. } => {
                self.close(Status::Completed);
                self.open(&part, &header);
            }
            TurnEvent::Text { text, logprobs, .. } => self.text(text, logprobs),
            TurnEvent::Close { .. } => {
                if let Some(writing) = &mut self.writing {
                    writing.closed = true;
                }
            }
            TurnEvent::Done(outcome) => self.done(&outcome),
            TurnEvent::Failed(error) => self.failed(&error),
        }
        self.take()
    }

    fn done(&mut self, outcome: &Outcome) {
        self.response.account(outcome);
        // The turn closes its last message, also if that was cut.
        let last = match outcome.turn.ending {
            Ending::Open => Status::Incomplete,
            _ => Status::Completed,
        };
        if outcome.finish == Finish::Cancelled {
            self.close(last);
            self.response.end(State::Cancelled, None);
            // There is no `response.cancelled`: this one's object says it.
            return self.whole("response.incomplete");
        }
        let cut = outcome.finish == Finish::Length;
        self.close(last);
        let silent = |item: &Arc<Item>| matches!(item.body, Body::Reasoning { .. });
        if !cut && self.response.output.iter().all(silent) {
            // The model has ended its turn without an answer: the answer is the empty one.
            self.open(&Part::Text, &Message::assistant(Channel::Final, ""));
            self.close(Status::Completed);
        }
        match cut {
            true => {
                self.response
                    .end(State::Incomplete, Some("max_output_tokens"));
                self.whole("response.incomplete");
            }
            false => {
                self.response.end(State::Completed, None);
                self.whole("response.completed");
            }
        }
    }

    /// Ends the response as failed and forgets what it has said: there is no room for it.
    pub fn forget(&mut self, error: &ApiError) -> Vec<Event> {
        self.writing = None;
        self.response.output.clear();
        self.failed(error);
        self.take()
    }

    fn failed(&mut self, error: &ApiError) {
        let closed = self.writing.as_ref().is_some_and(|writing| writing.closed);
        self.close(match closed {
            true => Status::Completed,
            false => Status::Incomplete,
        });
        self.response.fail(error);
        self.whole("response.failed");
    }

    fn open(&mut self, part: &Part, header: &Message) {
        let mut custom = None;
        let answers = header.channel == Some(Channel::Final) && *part == Part::Text;
        let part = match part {
            Part::Text | Part::Foreign if self.shaped && !answers => &Part::Reasoning,
            part => part,
        };
        let body = match part {
            Part::Reasoning => {
                let text = vec![String::new()];
                let (summary, content) = match self.form {
                    ReasoningForm::Summary => (text, Vec::new()),
                    _ => (Vec::new(), text),
                };
                Body::Reasoning { summary, content }
            }
            Part::Call { name } => {
                let (kind, tool) = self.tools.called(name);
                let call_id = fresh("call_");
                match kind {
                    Kind::Function => Body::Call {
                        call_id,
                        tool,
                        arguments: String::new(),
                    },
                    Kind::Custom => {
                        custom = Some(Input::default());
                        Body::Custom {
                            call_id,
                            tool,
                            input: String::new(),
                        }
                    }
                }
            }
            // What the model wrote in another's name is shown too: nothing else came there.
            Part::Text | Part::Foreign => Body::Message {
                role: Role::Assistant,
                phase: Some(match answers {
                    true => Phase::FinalAnswer,
                    false => Phase::Commentary,
                }),
                content: vec![Content::Output {
                    text: String::new(),
                    logprobs: Vec::new(),
                }],
            },
        };
        let mut item = Item::new(body);
        item.status = Status::InProgress;
        let bare = Item {
            body: item.body.clone().without_parts(),
            ..item.clone()
        };
        let begun = Arc::new(item.clone());
        self.say("response.output_item.added", Data::Item(self.place(bare)));
        self.part("added", &begun);
        self.writing = Some(Writing {
            item,
            begun,
            custom,
            closed: false,
        });
    }

    fn text(&mut self, text: String, logprobs: Vec<TokenLogprob>) {
        let Some(mut writing) = self.writing.take() else {
            return;
        };
        let piece = match &mut writing.custom {
            Some(input) => input.push(&text),
            None => text,
        };
        self.delta(&mut writing, piece, logprobs);
        self.writing = Some(writing);
    }

    /// More of the item's text.
    fn delta(&mut self, writing: &mut Writing, text: String, tokens: Vec<TokenLogprob>) {
        if text.is_empty() && tokens.is_empty() {
            return;
        }
        let tokens: Vec<Arc<TokenLogprob>> = tokens.into_iter().map(Arc::new).collect();
        match &mut writing.item.body {
            Body::Message { content, .. } => {
                if let Some(Content::Output {
                    text: all,
                    logprobs,
                }) = content.last_mut()
                {
                    all.push_str(&text);
                    logprobs.extend(tokens.iter().cloned());
                }
            }
            Body::Reasoning { summary, content } => {
                if let Some(all) = summary.last_mut().or(content.last_mut()) {
                    all.push_str(&text);
                }
            }
            Body::Call { arguments, .. } => arguments.push_str(&text),
            Body::Custom { input, .. } => input.push_str(&text),
            Body::Result { .. } => {}
        }
        let data = Data::Delta {
            place: self.place(writing.begun.clone()),
            text,
            logprobs: tokens,
        };
        self.say(self.names(&writing.begun.body).delta, data);
    }

    /// Closes the item that is being written, if there is one.
    fn close(&mut self, status: Status) {
        let Some(mut writing) = self.writing.take() else {
            return;
        };
        if let Some(mut input) = writing.custom.take() {
            let rest = input.finish();
            self.delta(&mut writing, rest, Vec::new());
        }
        let mut item = writing.item;
        item.status = status;
        let item = Arc::new(item);
        let names = self.names(&item.body);
        self.say(names.done, Data::Text(self.place(item.clone())));
        self.part("done", &item);
        self.say(ITEM_DONE, Data::Item(self.place(item.clone())));
        self.response.output.push(item);
    }

    /// The events that begin and end a part, for items that have parts.
    fn part(&mut self, what: &str, item: &Arc<Item>) {
        let name = match (&item.body, what) {
            (Body::Reasoning { summary, .. }, "added") if !summary.is_empty() => {
                "response.reasoning_summary_part.added"
            }
            (Body::Reasoning { summary, .. }, _) if !summary.is_empty() => {
                "response.reasoning_summary_part.done"
            }
            (Body::Message { .. } | Body::Reasoning { .. }, "added") => {
                "response.content_part.added"
            }
            (Body::Message { .. } | Body::Reasoning { .. }, _) => "response.content_part.done",
            _ => return,
        };
        self.say(name, Data::Part(self.place(item.clone())));
    }

    /// `item` as the output's next.
    fn place(&self, item: impl Into<Arc<Item>>) -> Place {
        Place {
            index: self.response.output.len(),
            item: item.into(),
        }
    }

    fn names(&self, body: &Body) -> Names {
        let (delta, done) = match (body, self.form) {
            (Body::Message { .. }, _) => {
                ("response.output_text.delta", "response.output_text.done")
            }
            (Body::Reasoning { .. }, ReasoningForm::Text) => (
                "response.reasoning_text.delta",
                "response.reasoning_text.done",
            ),
            (Body::Reasoning { .. }, ReasoningForm::Open) => {
                ("response.reasoning.delta", "response.reasoning.done")
            }
            (Body::Reasoning { .. }, ReasoningForm::Summary) => (
                "response.reasoning_summary_text.delta",
                "response.reasoning_summary_text.done",
            ),
            (Body::Custom { .. }, _) => (
                "response.custom_tool_call_input.delta",
                "response.custom_tool_call_input.done",
            ),
            (Body::Call { .. } | Body::Result { .. }, _) => (
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
            ),
        };
        Names { delta, done }
    }

    /// An event that holds the whole response.
    fn whole(&mut self, name: &'static str) {
        let response = Box::new(self.response.clone());
        self.say(name, Data::Response(response));
    }

    fn say(&mut self, name: &'static str, data: Data) {
        let sequence = self.sequence;
        self.sequence += 1;
        self.out.push(Event {
            name,
            sequence,
            data,
        });
    }

    fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.out)
    }
}

struct Names {
    delta: &'static str,
    done: &'static str,
}
