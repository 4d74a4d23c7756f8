//! Harmony, the conversation format of gpt-oss: messages to token ids, and token ids back.
//!
//! Rendering ([`Conversation::render`]) writes the prompt; control tokens enter by id alone, every
//! other byte through [`Tokenizer::encode`](crate::tokenizer::Tokenizer::encode), so that text which
//! looks like `<|end|>` stays text. Parsing ([`Parser`]) reads what the model answers, one id at a
//! time, and never fails: what is malformed is repaired, and every repair is counted ([`Turn`]).

mod account;
mod control;
mod header;
mod lex;
mod message;
mod names;
mod parse;
mod render;
mod schema;
mod turn;

pub(crate) use control::Controls;

pub use account::{Account, Class, Piece, Repair, Repairs};
pub use message::{
    Builtin, Channel, Conversation, Effort, Message, ResponseFormat, Role, Tool, today,
};
pub use names::ToolNames;
pub use parse::{Delta, Parser};
pub use turn::{Ending, Part, ToolCall, Turn};
