//! The body of `POST /v1/responses`, and what it asks for in our terms.

use super::{
    input::{self, Context},
    tools::Tools,
};
use crate::{
    grammar::Rules,
    harmony::Conversation,
    server::{
        Served,
        chat::format,
        error::ApiError,
        json::{invalid, wrong_type},
        sampling::{Fields, Seed, max_tokens, rivals},
        settings::Settings,
        turn::{Ask, effort},
    },
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

/// Values of `include`; only the log-probabilities are something we have.
const INCLUDES: [&str; 8] = [
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];
const LOGPROBS: &str = "message.output_text.logprobs";

/// A response to create. Fields that do nothing here are left out; see docs/api.md.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[schema(as = CreateResponse)]
pub(super) struct Create {
    /// A name of a served model; absent: the default one.
    #[schema(example = "gpt-oss-20b")]
    pub model: Option<String>,
    /// A text, or items: messages, reasoning, calls and their outputs, references to stored items.
    #[schema(value_type = Option<Value>, example = "What is 17 + 25?")]
    pub input: Option<Value>,
    /// A system message; not inherited from the previous response.
    pub instructions: Option<String>,
    /// A stored response that this one goes on from.
    pub previous_response_id: Option<String>,
    /// Keep the response for later (default).
    pub store: Option<bool>,
    /// Answer at once and run on; needs `store`.
    pub background: Option<bool>,
    /// Send events as they happen.
    pub stream: Option<bool>,
    /// What else to return.
    pub include: Option<Vec<String>>,
    /// Most tokens to generate, reasoning included.
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<u64>,
    /// Most calls of built-in tools, of which there are none.
    #[schema(minimum = 1)]
    pub max_tool_calls: Option<u64>,
    /// Up to 16 texts to keep with the response.
    #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
    pub metadata: Option<Map<String, Value>>,
    /// Whether the turn may make several calls.
    pub parallel_tool_calls: Option<bool>,
    /// Effort and summary.
    pub reasoning: Option<Reasoning>,
    /// Format of the answer.
    pub text: Option<Text>,
    /// Functions, custom tools, namespaces of them.
    #[schema(value_type = Option<Vec<Value>>)]
    pub tools: Option<Vec<Value>>,
    /// none, auto, required, or an object that names tools.
    #[schema(value_type = Option<Value>)]
    pub tool_choice: Option<Value>,
    /// 0 (greedy) to 2.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    /// 0 to 1.
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    /// Extension: keep that many of the likeliest tokens; 0 keeps all.
    pub top_k: Option<i64>,
    /// Extension: keep tokens with this share of the likeliest one's probability.
    pub min_p: Option<f64>,
    /// Extension: above 1 makes repetition less likely.
    pub repetition_penalty: Option<f64>,
    /// Extension: -2 to 2.
    pub presence_penalty: Option<f64>,
    /// Extension: -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Extension: the same request with the same seed has the same answer.
    #[schema(value_type = Option<i64>)]
    pub seed: Option<Seed>,
    /// Rivals of each token to list, with their log-probabilities.
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<u64>,
    /// disabled (default), or auto: the oldest turns go where the prompt does not fit.
    pub truncation: Option<String>,
    /// Returned as it is.
    pub prompt_cache_key: Option<String>,
    /// Returned as it is.
    pub safety_identifier: Option<String>,
    /// Our own settings.
    pub gossamer: Option<Extension>,
    #[schema(ignore)]
    pub conversation: Option<Value>,
    #[schema(ignore)]
    pub prompt: Option<Value>,
    #[schema(ignore)]
    pub moderation: Option<Value>,
}

/// How to think.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[schema(as = ResponseReasoning)]
pub(super) struct Reasoning {
    /// none, minimal, low, medium, high, xhigh, max.
    pub effort: Option<String>,
    /// auto, concise or detailed: return the reasoning as summary.
    pub summary: Option<String>,
    /// The old name of `summary`.
    pub generate_summary: Option<String>,
    /// `all_turns` keeps the reasoning of finished turns.
    pub context: Option<String>,
}

/// The answer's format.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[schema(as = ResponseText)]
pub(super) struct Text {
    /// `{"type": "text" | "json_object" | "json_schema" | "regex" | "lark", …}`
    #[schema(value_type = Option<Value>)]
    pub format: Option<Value>,
    /// Does nothing.
    #[schema(value_type = Option<Value>)]
    pub verbosity: Option<Value>,
}

/// Our own settings.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[schema(as = ResponseExtension)]
pub(super) struct Extension {
    /// Say in `usage` why the cache held no more of the prompt.
    pub explain_cache: Option<bool>,
}

impl Create {
    /// Whether the reasoning is to be returned as its own summary.
    pub fn summary(&self) -> bool {
        let reasoning = self.reasoning.as_ref();
        reasoning.is_some_and(|r| r.summary.is_some() || r.generate_summary.is_some())
    }

    /// Whether log-probabilities are to be returned.
    pub fn logprobs(&self) -> bool {
        let included = self.include.iter().flatten().any(|name| name == LOGPROBS);
        included || self.top_logprobs.is_some_and(|n| n > 0)
    }

    /// Whether the response is to be kept.
    pub fn stored(&self) -> bool {
        self.store.unwrap_or(true)
    }

    /// What stands on its own: fields that are refused, and fields with a few values.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn check(&self) -> Result<(), ApiError> {
        let refuse = |field: &str, value: &Option<Value>, why: &str| match value {
            Some(_) => Err(ApiError::unsupported(
                field,
                format!("'{field}' is not supported: {why}"),
            )),
            None => Ok(()),
        };
        refuse(
            "conversation",
            &self.conversation,
            "carry a conversation on with 'previous_response_id'.",
        )?;
        refuse(
            "prompt",
            &self.prompt,
            "prompt templates are kept by OpenAI; send 'input'.",
        )?;
        refuse("moderation", &self.moderation, "nothing is moderated here.")?;
        if self.background == Some(true) && !self.stored() {
            let message = "Invalid 'background': it needs 'store', which is false.";
            return Err(ApiError::invalid("background", message));
        }
        for (i, name) in self.include.iter().flatten().enumerate() {
            one_of(&format!("include[{i}]"), Some(name), &INCLUDES)?;
        }
        let words = ["auto", "concise", "detailed"];
        let reasoning = self.reasoning.clone().unwrap_or_default();
        one_of("reasoning.summary", reasoning.summary.as_ref(), &words)?;
        let older = reasoning.generate_summary.as_ref();
        one_of("reasoning.generate_summary", older, &words)?;
        let context = ["auto", "current_turn", "all_turns"];
        one_of("reasoning.context", reasoning.context.as_ref(), &context)?;
        one_of(
            "truncation",
            self.truncation.as_ref(),
            &["auto", "disabled"],
        )?;
        if self.max_tool_calls == Some(0) {
            return Err(invalid("max_tool_calls", "expected 1 or more, found 0"));
        }
        self.check_metadata()
    }

    fn check_metadata(&self) -> Result<(), ApiError> {
        let pairs = self.metadata.as_ref();
        if pairs.is_some_and(|pairs| pairs.len() > 16) {
            return Err(invalid("metadata", "expected at most 16 pairs"));
        }
        for (key, value) in pairs.into_iter().flatten() {
            let path = format!("metadata.{key:.64}");
            let Value::String(value) = value else {
                return Err(wrong_type(&path, "a string", value));
            };
            if key.chars().count() > 64 || value.chars().count() > 512 {
                let message = "expected a key of at most 64 characters and a value of at most 512";
                return Err(invalid(&path, message));
            }
        }
        Ok(())
    }

    /// What to generate, going on from `context`.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn ask(
        &self,
        tools: &mut Tools,
        context: &Context,
        served: &Served,
    ) -> Result<Ask, ApiError> {
        let settings = &served.settings;
        let choice = tools.choose(self.tool_choice.as_ref(), settings.max_tools)?;
        let prompt = input::prompt(self.instructions.as_deref(), context)?;
        let format = self.text.as_ref().and_then(|text| text.format.as_ref());
        let shape = format::read(format, "text.format", false, settings)?;
        let (format, told) = shape.map_or((None, None), |(format, told)| (Some(format), told));
        let reasoning = self.reasoning.clone().unwrap_or_default();
        let (effort, reasoning_budget) = effort("reasoning.effort", reasoning.effort.as_deref())?;
        let fields = Fields {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias: None,
            seed: self.seed,
        };
        let (usual, vocab) = (served.default_temperature(), served.engine.info().vocab);
        let rivals = rivals("top_logprobs", self.top_logprobs, settings)?;
        Ok(Ask {
            conversation: Conversation {
                effort,
                date: Some(settings.today()),
                instructions: prompt.instructions,
                tools: tools.declared(),
                response_formats: told.into_iter().collect(),
                keep_analysis: reasoning.context.as_deref() == Some("all_turns"),
                messages: prompt.messages,
                ..Conversation::default()
            },
            rules: Rules {
                format,
                tools: tools.ruled(&choice),
                choice,
                parallel: self.parallel_tool_calls.unwrap_or(true),
                reasoning_budget,
            },
            sampling: fields.sampling(settings, usual, vocab)?,
            max_tokens: max_tokens("max_output_tokens", self.max_output_tokens, 1)?,
            stop: Vec::new(),
            logprobs: self.logprobs().then_some(rivals),
        })
    }

    /// `text` as the response object repeats it.
    pub fn text_echo(&self) -> Value {
        let text = self.text.clone().unwrap_or_default();
        let format = text.format.unwrap_or_else(|| json!({"type": "text"}));
        let mut echo = json!({"format": format});
        if let Some(verbosity) = text.verbosity {
            echo["verbosity"] = verbosity;
        }
        echo
    }

    /// `reasoning` as the response object repeats it.
    pub fn reasoning_echo(&self) -> Value {
        let reasoning = self.reasoning.clone().unwrap_or_default();
        let effort = reasoning.effort.unwrap_or_else(|| "medium".to_owned());
        json!({
            "effort": effort,
            "summary": reasoning.summary.or(reasoning.generate_summary),
        })
    }
}

fn one_of(path: &str, found: Option<&String>, words: &[&str]) -> Result<(), ApiError> {
    match found {
        Some(found) if !words.contains(&found.as_str()) => {
            let message = format!("expected one of {}, found '{found:.60}'", words.join(", "));
            Err(invalid(path, &message))
        }
        _ => Ok(()),
    }
}

/// `tools` of the request.
///
/// # Errors
/// 400 that names the field.
pub(super) fn tools(create: &Create, settings: &Settings) -> Result<Tools, ApiError> {
    match &create.tools {
        None => Ok(Tools::default()),
        Some(tools) => Tools::read(tools, settings.max_tools),
    }
}
