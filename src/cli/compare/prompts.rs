//! What both sides read: prompts of this program, a file's, or given ids.

use super::Args;
use crate::{
    cli::{Usage, batch, score},
    harmony::{Channel, Conversation, Effort, Message, Tool},
    tokenizer::{TokenKind, Tokenizer},
};
use anyhow::{Context, Result};
use serde_json::json;
use std::fs::File;

/// A text long enough to leave the sliding window behind.
const LETTER: &str = "\
Dear Anna, the house by the lake is finished at last. We moved in on Monday, in the rain, with two vans and my \
brother's old car, and by the evening every room was full of boxes. The kitchen looks south, over the garden and \
down to the water; there is room for twelve at the table, so you have no excuse. Tom has built shelves along the \
whole wall of the small room upstairs, and the books stand there now, in no order at all. The dog likes the stairs, \
the cat does not like the dog, and the neighbour has already told us three times how high the water stood in 1987. \
On Friday the last of the painters comes, for the blue door that you chose. The ferry goes every hour until ten; if \
you take the one at four, we will meet you at the pier with the key, which is number 4471, and a lamp, since there \
is no light on the path yet. Bring warm clothes and something to read. Yours, Marie.";

/// The built-in conversations: short and long, a second turn, a tool, code, another language.
fn built_in() -> Vec<Conversation> {
    let ask = |effort, text: &str| Conversation {
        effort,
        date: Some("2026-01-31".into()),
        messages: vec![Message::user(text)],
        ..Conversation::default()
    };
    let letter = format!("{LETTER}\n\nWhich number has the key, and who writes?");
    let mut turns = ask(Effort::Low, "What is the capital of France?");
    turns.messages.extend([
        Message::assistant(Channel::Final, "Paris."),
        Message::user("And of Italy?"),
    ]);
    let mut tool = ask(Effort::Low, "What is the weather in Oslo?");
    tool.tools = vec![Tool {
        name: "get_weather".into(),
        description: Some("The weather of a city".into()),
        parameters: Some(json!({
            "type": "object",
            "properties": { "city": { "type": "string" } },
            "required": ["city"]
        })),
    }];
    vec![
        ask(Effort::Medium, &letter),
        ask(Effort::Medium, "What is 17 + 25?"),
        ask(
            Effort::High,
            "Why is the sky blue in the day and red in the evening?",
        ),
        turns,
        tool,
        ask(
            Effort::Low,
            "Write a Python function that returns the n-th Fibonacci number.",
        ),
        ask(
            Effort::Low,
            "Übersetze ins Englische: Der Zug nach Zürich fährt um 7:45 Uhr von Gleis 12.",
        ),
    ]
}

impl Args {
    /// Token ids of every prompt, as `tokenizer` has them.
    pub(super) fn prompt_ids(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<Vec<u32>>> {
        if let Some(path) = &self.ids {
            return Ok(vec![score::read_ids(path)?]);
        }
        let Some(tokenizer) = tokenizer else {
            return Err(Usage("A's model has no tokenizer: give --ids".into()).into());
        };
        let (conversations, name) = match &self.prompts {
            None => (built_in(), "a built-in prompt".to_owned()),
            Some(path) => {
                let name = path.display().to_string();
                let file = File::open(path).with_context(|| name.clone())?;
                (batch::conversations(file, &name)?, name)
            }
        };
        if conversations.is_empty() {
            return Err(Usage(format!("{name}: no conversations")).into());
        }
        let rendered = conversations.iter().map(|c| c.render(tokenizer));
        rendered
            .collect::<Result<_>>()
            .with_context(|| format!("{name} (--ids compares without prompts)"))
    }

    /// Prompts to time: the first one warms up, no two begin alike, and all are made of ordinary tokens.
    pub(super) fn timed_ids(&self, tokenizer: Option<&Tokenizer>, vocab: usize) -> Vec<Vec<u32>> {
        if self.no_speed {
            return Vec::new();
        }
        let is_ordinary = |&id: &u32| match tokenizer {
            Some(t) => matches!(t.kind(id), TokenKind::Normal | TokenKind::Byte),
            None => true,
        };
        let ordinary: Vec<u32> = (0..vocab as u32).filter(is_ordinary).collect();
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut draw = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let at = random % ordinary.len().max(1) as u64;
            ordinary.get(at as usize).copied().unwrap_or(0)
        };
        (0..=self.repeat)
            .map(|_| (0..self.prompt).map(|_| draw()).collect())
            .collect()
    }
}
