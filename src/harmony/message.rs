//! What a conversation is made of.
//!
//! Names are the client's own: a function called `web-search` is `functions.web-search` here, and
//! only rendering and parsing know that the model sees `functions.web_search` (see [`super::names`]).

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Identity, date, effort and channels; written by [`Conversation::render`] itself.
    System,
    /// What chat APIs call the system prompt.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool's answer; [`Message::name`] says which tool's.
    Tool,
}

impl Role {
    /// As it stands in a header.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    /// The role a header's word names; `tool` is one too, though headers carry the tool's name.
    pub fn from_word(word: &str) -> Option<Role> {
        [
            Role::System,
            Role::Developer,
            Role::User,
            Role::Assistant,
            Role::Tool,
        ]
        .into_iter()
        .find(|role| role.as_str() == word)
    }
}

/// Where an assistant's message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// Reasoning, not meant for the user.
    Analysis,
    /// Tool calls, and what is said before them.
    Commentary,
    /// The answer.
    Final,
}

impl Channel {
    /// All of them, in the order in which the system message lists them.
    pub const ALL: [Channel; 3] = [Channel::Analysis, Channel::Commentary, Channel::Final];

    /// As it stands in a header.
    pub fn as_str(self) -> &'static str {
        match self {
            Channel::Analysis => "analysis",
            Channel::Commentary => "commentary",
            Channel::Final => "final",
        }
    }
}

/// One message, to be rendered or as parsed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// For a tool: its full name, `functions.get_weather` or `browser.search`; else a speaker's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only an assistant's messages need one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
    /// `functions.get_weather` for a call, `assistant` for a tool's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// As openai-harmony writes it: `json`, `code`, or `<|constrain|>json`, where the marker stands
    /// for the control token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The text.
    pub content: String,
}

impl Message {
    fn new(role: Role, content: impl Into<String>) -> Message {
        Message {
            role,
            name: None,
            channel: None,
            recipient: None,
            content_type: None,
            content: content.into(),
        }
    }

    /// What the person says.
    pub fn user(text: impl Into<String>) -> Message {
        Message::new(Role::User, text)
    }

    /// Instructions in the middle of a conversation; those at its start are
    /// [`Conversation::instructions`].
    pub fn developer(text: impl Into<String>) -> Message {
        Message::new(Role::Developer, text)
    }

    /// An assistant's message on `channel`.
    pub fn assistant(channel: Channel, text: impl Into<String>) -> Message {
        Message {
            channel: Some(channel),
            ..Message::new(Role::Assistant, text)
        }
    }

    /// The call of function `name` (the client's name for it) with `arguments`, a JSON text.
    pub fn call(name: &str, arguments: impl Into<String>) -> Message {
        Message {
            channel: Some(Channel::Commentary),
            recipient: Some(format!("functions.{name}")),
            content_type: Some("<|constrain|>json".to_owned()),
            ..Message::new(Role::Assistant, arguments)
        }
    }

    /// What function `name` (the client's name for it) answered.
    pub fn tool_result(name: &str, output: impl Into<String>) -> Message {
        Message {
            name: Some(format!("functions.{name}")),
            channel: Some(Channel::Commentary),
            recipient: Some(Role::Assistant.as_str().to_owned()),
            ..Message::new(Role::Tool, output)
        }
    }
}

/// How much the model should think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effort {
    /// Briefly.
    Low,
    /// The default.
    #[default]
    Medium,
    /// At length.
    High,
}

impl Effort {
    /// As it stands in the system message.
    pub fn as_str(self) -> &'static str {
        match self {
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
        }
    }
}

impl std::str::FromStr for Effort {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Effort> {
        match text {
            "low" => Ok(Effort::Low),
            "medium" => Ok(Effort::Medium),
            "high" => Ok(Effort::High),
            other => anyhow::bail!("reasoning effort: expected low, medium or high, found {other}"),
        }
    }
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// The client's name for it: any text but the empty one.
    pub name: String,
    /// What it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema of the arguments; none for a function without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
}

/// A tool that gpt-oss was trained with; it is described in the system message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Builtin {
    /// `browser.search`, `browser.open`, `browser.find`.
    Browser,
    /// `python`: raw code, usually on the analysis channel.
    Python,
}

/// A shape that the answer should have, told to the model at the end of the developer message.
/// Telling does not enforce it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResponseFormat {
    /// Its title.
    pub name: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema.
    pub schema: Value,
}

/// All that a prompt is rendered from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conversation {
    /// First line of the system message; the one gpt-oss was trained with if none.
    pub identity: Option<String>,
    /// `Reasoning:` of the system message.
    pub effort: Effort,
    /// `YYYY-MM-DD`. None leaves the line out; a fixed date keeps prompts, and cached prefixes, equal
    /// from day to day. [`today`] gives the current one.
    pub date: Option<String>,
    /// What chat APIs call the system prompt.
    pub instructions: Option<String>,
    /// Functions the model may call.
    pub tools: Vec<Tool>,
    /// Trained tools the model may call.
    pub builtins: Vec<Builtin>,
    /// Channels the system message allows; if none, all three with tools, and no commentary without.
    pub channels: Option<Vec<Channel>>,
    /// Shapes of the answer.
    pub response_formats: Vec<ResponseFormat>,
    /// Keep the reasoning of finished turns instead of leaving it out.
    pub keep_analysis: bool,
    /// What was said, oldest first.
    pub messages: Vec<Message>,
}

/// Today's date where this machine is, as [`Conversation::date`] wants it.
pub fn today() -> String {
    jiff::Zoned::now().date().to_string()
}
