//! What a client may ask of a turn, in our terms.

use crate::harmony::Conversation;
use serde_json::Value;

/// Shape of the final answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// Any JSON object.
    JsonObject,
    /// JSON that this schema accepts.
    JsonSchema {
        /// JSON Schema, as far as llguidance can express it.
        schema: Value,
    },
    /// Text that the whole of this pattern matches (Rust's regex syntax, without look-around).
    Regex(String),
    /// Text of a grammar, in llguidance's variant of Lark.
    Lark(String),
}

/// What a turn may say.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Shape of the final answer; any text if none.
    pub format: Option<Format>,
    /// The client's functions, those of the conversation.
    pub tools: Vec<RuledTool>,
    /// Which of them may or must be called.
    pub choice: ToolChoice,
    /// Whether a turn may make several calls.
    pub parallel: bool,
    /// Most tokens of reasoning; 0 means none at all.
    pub reasoning_budget: Option<usize>,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            format: None,
            tools: Vec::new(),
            choice: ToolChoice::Auto,
            parallel: true,
            reasoning_budget: None,
        }
    }
}

/// A function of the client.
#[derive(Debug, Clone, PartialEq)]
pub struct RuledTool {
    /// The client's name for it.
    pub name: String,
    /// Schema of the arguments, to be enforced.
    pub strict: Option<Value>,
}

/// Which functions may or must be called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// None may.
    None,
    /// The model decides.
    #[default]
    Auto,
    /// One must, whichever.
    Required,
    /// This one must.
    Named(String),
}

impl ToolChoice {
    /// Whether `name` may be called.
    pub fn allows(&self, name: &str) -> bool {
        match self {
            ToolChoice::None => false,
            ToolChoice::Auto | ToolChoice::Required => true,
            ToolChoice::Named(only) => only == name,
        }
    }

    /// Whether a call must come.
    pub fn requires(&self) -> bool {
        matches!(self, ToolChoice::Required | ToolChoice::Named(_))
    }
}

impl Rules {
    /// Whether there is anything to enforce in a turn of `conversation`. Where there is not, the
    /// parser alone makes sense of whatever comes.
    pub fn constrain(&self, conversation: &Conversation) -> bool {
        let tools = !self.tools.is_empty();
        let declared = tools || !conversation.tools.is_empty();
        let strict = self.tools.iter().any(|tool| tool.strict.is_some());
        self.format.is_some()
            || self.reasoning_budget.is_some()
            || match self.choice {
                ToolChoice::None => declared,
                // Not all that the model is told of need be allowed.
                ToolChoice::Auto => {
                    let fewer = self.tools.len() < conversation.tools.len();
                    strict || (tools && (fewer || !self.parallel))
                }
                ToolChoice::Required | ToolChoice::Named(_) => true,
            }
    }

    pub(super) fn check(&self) -> Result<(), GrammarError> {
        let fail = |message: String| Err(GrammarError::new(Place::ToolChoice, message));
        match &self.choice {
            ToolChoice::Required if self.tools.is_empty() => {
                fail("tool_choice: required, but no function is given in tools".to_owned())
            }
            ToolChoice::Named(name) if !self.tools.iter().any(|tool| tool.name == *name) => fail(
                format!("tool_choice: the function {name:?} is not among the given tools"),
            ),
            _ => Ok(()),
        }
    }
}

/// What of the rules can't be enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The answer's format.
    Format,
    /// The strict schema of [`Rules::tools`]' function of this index.
    Tool(usize),
    /// The choice of tools.
    ToolChoice,
}

/// Rules that can't be enforced: the client's error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct GrammarError {
    /// What is wrong, what was expected and what to do.
    pub message: String,
    /// The request's parameter, as chat completions name it.
    pub param: String,
    /// The same, for those who name it otherwise.
    pub place: Place,
}

impl GrammarError {
    pub(super) fn new(place: Place, message: String) -> GrammarError {
        GrammarError {
            message,
            param: match place {
                Place::Format => "response_format".to_owned(),
                Place::Tool(index) => format!("tools[{index}].function.parameters"),
                Place::ToolChoice => "tool_choice".to_owned(),
            },
            place,
        }
    }
}
