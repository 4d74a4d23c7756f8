//! The events of a response.
//!
//! An event is written down when it is sent. Until then it shares the items of its response, so that
//! the events of one that runs in the background take little more memory than its text.

use super::{
    item::{Body, Content, Item, reasoning_part, summary_part},
    object::Response,
};
use crate::server::{sse::SseEvent, turn::TokenLogprob};
use serde::{Serialize, Serializer, ser::SerializeMap};
use std::sync::Arc;

/// An event on its way to the client.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// Its type.
    pub name: &'static str,
    /// How many came before it.
    pub sequence: u64,
    /// What it says.
    pub data: Data,
}

/// What an event says.
#[derive(Debug, Clone)]
pub(super) enum Data {
    /// The whole response as it is then.
    Response(Box<Response>),
    /// An item.
    Item(Place),
    /// The item's part.
    Part(Place),
    /// The item's text, complete.
    Text(Place),
    /// More of the item's text.
    Delta {
        place: Place,
        text: String,
        logprobs: Vec<Arc<TokenLogprob>>,
    },
}

/// An item of the output.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Its index.
    pub index: usize,
    /// As it is then.
    pub item: Arc<Item>,
}

impl Event {
    /// As it goes over the wire.
    pub fn sse(&self) -> SseEvent {
        SseEvent::named(self.name, self)
    }

    /// Roughly how much memory it takes besides the response's items, in bytes.
    pub fn bytes(&self) -> usize {
        let data = match &self.data {
            Data::Response(response) => 1024 + size_of_val(response.output.as_slice()),
            Data::Delta { text, logprobs, .. } => {
                let tokens: usize = logprobs.iter().map(|token| token.memory()).sum();
                text.len() + tokens
            }
            Data::Item(_) | Data::Part(_) | Data::Text(_) => 0,
        };
        size_of::<Event>() + data
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", self.name)?;
        map.serialize_entry("sequence_number", &self.sequence)?;
        match &self.data {
            Data::Response(response) => map.serialize_entry("response", response)?,
            Data::Item(place) => {
                map.serialize_entry("output_index", &place.index)?;
                map.serialize_entry("item", &place.item)?;
            }
            Data::Part(place) => {
                place.write(&mut map)?;
                match &place.item.body {
                    Body::Reasoning { summary, content } => {
                        let summary = summary.last().map(summary_part);
                        let part = summary.or(content.last().map(reasoning_part));
                        map.serialize_entry("part", &part)?;
                    }
                    Body::Message { content, .. } => {
                        map.serialize_entry("part", &content.last())?;
                    }
                    _ => {}
                }
            }
            Data::Text(place) => {
                place.write(&mut map)?;
                match &place.item.body {
                    Body::Message { content, .. } => {
                        if let Some(Content::Output { text, logprobs }) = content.last() {
                            map.serialize_entry("text", text)?;
                            map.serialize_entry("logprobs", logprobs)?;
                        }
                    }
                    Body::Reasoning { summary, content } => {
                        map.serialize_entry("text", &summary.last().or(content.last()))?;
                    }
                    Body::Call {
                        tool, arguments, ..
                    } => {
                        map.serialize_entry("name", &tool.name)?;
                        map.serialize_entry("arguments", arguments)?;
                    }
                    Body::Custom { input, .. } => map.serialize_entry("input", input)?,
                    Body::Result { .. } => {}
                }
            }
            Data::Delta {
                place,
                text,
                logprobs,
            } => {
                place.write(&mut map)?;
                map.serialize_entry("delta", text)?;
                if let Body::Message { .. } = place.item.body {
                    map.serialize_entry("logprobs", logprobs)?;
                }
            }
        }
        map.end()
    }
}

impl Place {
    /// Where the item's text stands: calls have no parts, the others one.
    fn write<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("item_id", &self.item.id)?;
        map.serialize_entry("output_index", &self.index)?;
        match &self.item.body {
            Body::Reasoning { summary, .. } if !summary.is_empty() => {
                map.serialize_entry("summary_index", &0)
            }
            Body::Message { .. } | Body::Reasoning { .. } => {
                map.serialize_entry("content_index", &0)
            }
            _ => Ok(()),
        }
    }
}
