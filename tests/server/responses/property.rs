//! Any turn at all, as events: the grammar holds, and both ways of asking say the same.

use super::*;
use crate::common::fresh_seed;
use gossamer::harmony::{Conversation, Parser, Part, Tool};

/// Pieces that turns are made of: control tokens, headers whole and broken, text.
const PIECES: &[&str] = &[
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|start|>assistant",
    "<|channel|>analysis<|message|>",
    "<|channel|>final<|message|>",
    "<|channel|>commentary<|message|>",
    "<|end|><|start|>assistant",
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
    " to=functions.g<|channel|>commentary<|message|>",
    "<|channel|>commentary to=functions.patch<|message|>",
    "{\"input\": \"",
    "\\n\\u00e9\\\"",
    "\"}",
    "{\"a\": 1}",
    "hello",
    " world",
    "\n\n",
    "größe 漢字 🪢",
    "analysis",
    "final",
    "json",
    "assistant",
    "??",
    "<|refusal|>",
    "user",
    "<|start|>user<|message|>",
];

/// xorshift64*: the same turns from the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    fn turn(&mut self) -> String {
        let pieces = 1 + self.below(16);
        let mut turn: String = (0..pieces)
            .map(|_| PIECES[self.below(PIECES.len())])
            .collect();
        turn += ["<|return|>", "<|call|>", "<|endoftext|>"][self.below(3)];
        turn
    }
}

#[tokio::test]
async fn random_turns_keep_the_grammar() {
    let seed = fresh_seed();
    let mut random = Random(seed | 1);
    let turns: Vec<String> = (0..200).map(|_| random.turn()).collect();
    let script = turns.clone();
    let client = any_turn(move |prompt| {
        let last = prompt.rsplit("turn ").next().unwrap_or_default();
        let n: usize = last
            .split('.')
            .next()
            .and_then(|n| n.parse().ok())
            .expect("a turn");
        script[n].clone()
    });
    let tools = json!([
        {"type": "function", "name": "f", "parameters": {"type": "object"}},
        {"type": "function", "name": "g", "parameters": {"type": "object"}},
        {"type": "custom", "name": "patch"},
    ]);
    for (n, turn) in turns.iter().enumerate() {
        let mut body = json!({"input": format!("turn {n}."), "tools": tools});
        if random.below(3) == 0 {
            body["reasoning"] = json!({"summary": "auto"});
        }
        if random.below(3) == 0 {
            body["max_output_tokens"] = json!(1 + random.below(12));
        }
        if random.below(3) == 0 {
            body["include"] = json!(["message.output_text.logprobs"]);
        }
        println!("{turn:?} {body}");
        let most = body["max_output_tokens"].as_u64();
        let streamed = check(&stream(&client, body.clone()).await);
        let whole = respond(&client, body).await;
        assert_eq!(plain(&streamed["output"]), plain(&whole["output"]));
        assert_eq!(streamed["status"], whole["status"]);
        let output = whole["output"].as_array().expect("items");
        assert!(whole["status"] != "completed" || !output.is_empty());
        nothing_is_lost(turn, most, output);
    }
}

/// Each message of the turn is an item with its text. Of a custom tool's call that is its input: not
/// the JSON around it, but every word.
fn nothing_is_lost(turn: &str, most: Option<u64>, output: &[Value]) {
    let (_, tokenizer) = scripted::demo();
    let tool = |name: &str| Tool {
        name: name.to_owned(),
        description: None,
        parameters: None,
    };
    let conversation = Conversation {
        tools: ["f", "g", "patch"].map(tool).to_vec(),
        ..Conversation::default()
    };
    let parser = Parser::new(tokenizer.clone(), conversation.tool_names());
    let mut parser = parser.expect("a parser");
    let ids = scripted::marked(&tokenizer, turn);
    let most = most.map_or(ids.len(), |most| most as usize);
    for id in ids.into_iter().take(most) {
        parser.push(id);
        if tokenizer.stop_ids().contains(&id) {
            break;
        }
    }
    let (_, said) = parser.finish();
    for (i, (message, part)) in said.messages.iter().zip(&said.parts).enumerate() {
        let text = text_of(&output[i]);
        let custom = matches!(part, Part::Call { name } if name == "patch");
        if !custom {
            assert_eq!(text, message.content, "item {i} of {turn:?}");
            continue;
        }
        let words = [
            "hello",
            " world",
            "größe",
            "analysis",
            "final",
            "json",
            "??",
            "{\"a\": 1}",
        ];
        for word in words {
            let (told, said) = (text.matches(word), message.content.matches(word));
            assert_eq!(
                told.count(),
                said.count(),
                "{word:?} in {text:?} of {turn:?}"
            );
        }
    }
}
