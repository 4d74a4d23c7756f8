//! `usage` of chat and completions: what all choices of a request took together.

use crate::engine::{Miss, MissReason, Usage};
use serde_json::{Value, json};

/// The sum over a request's choices.
#[derive(Debug, Default)]
pub struct Total {
    prompts: usize,
    cached: usize,
    generated: usize,
    reasoning: usize,
    /// Why `cached` is not `prompts`, of the prompt that computed the most.
    miss: Option<Miss>,
    /// Tokens that prompt computed.
    computed: usize,
}

impl Total {
    /// Adds a prompt and its choices: the engine's figures and the reasoning tokens of each. The
    /// prompt counts once, with what its first computation took from the cache.
    pub fn add<'a>(&mut self, choices: impl IntoIterator<Item = (&'a Usage, usize, Option<Miss>)>) {
        let (mut prompt, mut cached, mut why) = (0, usize::MAX, None);
        for (usage, reasoning, miss) in choices {
            prompt = usage.prompt_tokens;
            if usage.cached_tokens < cached {
                (cached, why) = (usage.cached_tokens, miss);
            }
            self.generated += usage.generated_tokens;
            self.reasoning += reasoning;
        }
        let cached = cached.min(prompt);
        self.prompts += prompt;
        self.cached += cached;
        if why.is_some() && prompt - cached >= self.computed {
            (self.computed, self.miss) = (prompt - cached, why);
        }
    }

    /// As it stands in a response; `explain`: with the reason of a miss.
    pub fn value(&self, explain: bool) -> Value {
        let mut usage = json!({
            "prompt_tokens": self.prompts,
            "completion_tokens": self.generated,
            "total_tokens": self.prompts + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        });
        if explain {
            usage["prompt_tokens_details"]["miss"] = json!(self.miss.map(explained));
        }
        usage
    }
}

/// Why cached tokens are fewer than the prompt's: where they part, a word and a sentence.
pub fn explained(miss: Miss) -> Value {
    // Not the token that the cache has there: it may be another user's.
    json!({
        "at": miss.at,
        "reason": match miss.reason {
            MissReason::Unknown => "unknown",
            MissReason::Parted { .. } => "parted",
            MissReason::Evicted => "evicted",
            MissReason::Window => "window",
            MissReason::Disabled => "disabled",
        },
        "message": miss.to_string(),
    })
}
