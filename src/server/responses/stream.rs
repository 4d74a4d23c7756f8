//! A turn's events as a response's events, and the response that they add up to.
//!
//! [`Writer`] takes [`TurnEvent`]s and gives the wire's events; a response that is not streamed goes
//! the same way, and its events are thrown away. So both are the same: what the deltas say is what
//! the last object holds. `sequence_number` counts from 0 without a gap; an item keeps its id and its
//! index; items open and close one after another.

use super::{
    custom::Input,
    item::{Body, Content, Item, Phase, Status},
    object::{Response, State},
    tools::{Kind, Tools},
};
use crate::{
    harmony::{Channel, Ending, Message, Part, Role},
    server::{
        error::ApiError,
        id::fresh,
        sse::SseEvent,
        turn::{Finish, Outcome, TokenLogprob, TurnEvent},
    },
};
use serde_json::{Value, json};
use std::sync::Arc;

/// An item is complete.
pub(super) const ITEM_DONE: &str = "response.output_item.done";

/// An event on its way to the client.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    /// Its type.
    pub name: &'static str,
    /// All of it, type included.
    pub data: Value,
}

impl Event {
    /// As it goes over the wire.
    pub fn sse(&self) -> SseEvent {
        SseEvent::named(self.name, &self.data)
    }
}

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
        match self.response.state {
            State::Queued => self.whole("response.queued"),
            _ => self.whole("response.in_progress"),
        }
        self.take()
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
            TurnEvent::Text { text, logprobs, .. } => self.text(&text, &logprobs),
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
        let whole = match outcome.turn.ending {
            Ending::Open => Status::Incomplete,
            _ => Status::Completed,
        };
        if outcome.finish == Finish::Cancelled {
            self.close(whole);
            self.response.end(State::Cancelled, None);
            // There is no `response.cancelled`: this one's object says it.
            return self.whole("response.incomplete");
        }
        let cut = outcome.finish == Finish::Length;
        self.close(whole);
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
        // Its parts are added with events of their own.
        let mut added = item.value();
        for list in ["content", "summary"] {
            if let Some(Value::Array(parts)) = added.get_mut(list) {
                parts.clear();
            }
        }
        let output_index = self.response.output.len();
        self.say(
            "response.output_item.added",
            json!({"output_index": output_index, "item": added}),
        );
        self.part("added", &item);
        self.writing = Some(Writing {
            item,
            custom,
            closed: false,
        });
    }

    fn text(&mut self, text: &str, logprobs: &[TokenLogprob]) {
        let Some(mut writing) = self.writing.take() else {
            return;
        };
        let piece = match &mut writing.custom {
            Some(input) => input.push(text),
            None => text.to_owned(),
        };
        self.delta(&mut writing.item, &piece, logprobs);
        self.writing = Some(writing);
    }

    /// More of the item's text.
    fn delta(&mut self, item: &mut Item, piece: &str, tokens: &[TokenLogprob]) {
        if piece.is_empty() && tokens.is_empty() {
            return;
        }
        let list: Vec<Value> = tokens.iter().map(logprob).collect();
        let mut data = self.place(item);
        data["delta"] = piece.into();
        if let Body::Message { .. } = item.body {
            data["logprobs"] = json!(list);
        }
        self.say(self.names(&item.body).delta, data);
        match &mut item.body {
            Body::Message { content, .. } => {
                if let Some(Content::Output { text, logprobs }) = content.last_mut() {
                    text.push_str(piece);
                    logprobs.extend(list);
                }
            }
            Body::Reasoning { summary, content } => {
                if let Some(text) = summary.last_mut().or(content.last_mut()) {
                    text.push_str(piece);
                }
            }
            Body::Call { arguments, .. } => arguments.push_str(piece),
            Body::Custom { input, .. } => input.push_str(piece),
            Body::Result { .. } => {}
        }
    }

    /// Closes the item that is being written, if there is one.
    fn close(&mut self, status: Status) {
        let Some(mut writing) = self.writing.take() else {
            return;
        };
        if let Some(mut input) = writing.custom.take() {
            let rest = input.finish();
            self.delta(&mut writing.item, &rest, &[]);
        }
        let mut item = writing.item;
        item.status = status;
        let mut data = self.place(&item);
        match &item.body {
            Body::Message { content, .. } => {
                if let Some(Content::Output { text, logprobs }) = content.last() {
                    data["text"] = text.as_str().into();
                    data["logprobs"] = json!(logprobs);
                }
            }
            Body::Reasoning { summary, content } => {
                data["text"] = json!(summary.last().or(content.last()));
            }
            Body::Call {
                tool, arguments, ..
            } => {
                data["name"] = tool.name.as_str().into();
                data["arguments"] = arguments.as_str().into();
            }
            Body::Custom { input, .. } => data["input"] = input.as_str().into(),
            Body::Result { .. } => {}
        }
        self.say(self.names(&item.body).done, data);
        self.part("done", &item);
        let output_index = self.response.output.len();
        self.say(
            ITEM_DONE,
            json!({"output_index": output_index, "item": item.value()}),
        );
        self.response.output.push(Arc::new(item));
    }

    /// The events that begin and end a part, for items that have parts.
    fn part(&mut self, what: &'static str, item: &Item) {
        let (name, part) = match (&item.body, what) {
            (Body::Message { content, .. }, what) => {
                let part = content.last().map(Content::value);
                (content_part(what), part)
            }
            (Body::Reasoning { summary, content }, what) => {
                let of = |kind: &str, text: &String| json!({"type": kind, "text": text});
                match (summary.last(), what) {
                    (None, what) => {
                        let part = content.last().map(|text| of("reasoning_text", text));
                        (content_part(what), part)
                    }
                    (Some(text), "added") => (
                        "response.reasoning_summary_part.added",
                        Some(of("summary_text", text)),
                    ),
                    (Some(text), _) => (
                        "response.reasoning_summary_part.done",
                        Some(of("summary_text", text)),
                    ),
                }
            }
            _ => return,
        };
        let mut data = self.place(item);
        data["part"] = json!(part);
        self.say(name, data);
    }

    /// Where the part of `item` stands that is being written.
    fn place(&self, item: &Item) -> Value {
        let mut place = json!({"item_id": item.id, "output_index": self.response.output.len()});
        match &item.body {
            Body::Reasoning { summary, .. } if !summary.is_empty() => {
                place["summary_index"] = 0.into()
            }
            Body::Message { .. } | Body::Reasoning { .. } => place["content_index"] = 0.into(),
            _ => {}
        }
        place
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
        let response = self.response.value();
        self.say(name, json!({"response": response}));
    }

    fn say(&mut self, name: &'static str, fields: Value) {
        let mut data = json!({"type": name, "sequence_number": self.sequence});
        self.sequence += 1;
        if let (Value::Object(data), Value::Object(fields)) = (&mut data, fields) {
            data.extend(fields);
        }
        self.out.push(Event { name, data });
    }

    fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.out)
    }
}

struct Names {
    delta: &'static str,
    done: &'static str,
}

fn content_part(what: &str) -> &'static str {
    match what {
        "added" => "response.content_part.added",
        _ => "response.content_part.done",
    }
}

/// A token's log-probability, as the wire has it.
fn logprob(token: &TokenLogprob) -> Value {
    let one = |token: &TokenLogprob| json!({"token": token.token, "logprob": token.logprob, "bytes": token.bytes});
    let mut value = one(token);
    value["top_logprobs"] = token.top.iter().map(one).collect();
    value
}
