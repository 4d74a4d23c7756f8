//! Random conversations and completions that openai-harmony can judge.

use super::support::{ids, tokenizer};
use gossamer::harmony::{Builtin, Channel, Conversation, Effort, Message, Tool};
use serde_json::{Value, json};

/// A small generator: the same seed, the same cases.
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    pub fn text(&mut self) -> String {
        const WORDS: [&str; 24] = [
            "the",
            " Paris",
            " 42",
            "\n",
            "\n\n",
            " {\"a\": [1, 2]}",
            " to=functions.f",
            "<|end|>",
            " analysis",
            " final",
            "assistant",
            " größer",
            " 日本語",
            " 👩‍🚀",
            "  ",
            "\t",
            " it's",
            " <|channel|>",
            ".",
            "?!",
            " json",
            "commentary",
            " 0x1f",
            " é",
        ];
        (0..self.below(12)).map(|_| self.pick(&WORDS)).collect()
    }

    /// A schema of what the judge can render.
    fn schema(&mut self, depth: usize) -> Value {
        let kinds = if depth == 0 { 6 } else { 9 };
        let mut schema = match self.below(kinds) {
            0 => json!({"type": "string"}),
            1 => json!({"type": "string", "enum": ["a", "b c", "d"]}),
            2 => json!({"type": "number"}),
            3 => json!({"type": "integer"}),
            4 => json!({"type": "boolean"}),
            5 => self.pick(&[
                json!({}),
                json!({"type": ["number", "string"]}),
                json!({"type": ["integer", "null"]}),
                json!({"type": "array"}),
            ]),
            6 => json!({"type": "array", "items": self.schema(depth - 1)}),
            7 => {
                let variants: Vec<Value> = (0..1 + self.below(3))
                    .map(|_| self.schema(depth - 1))
                    .collect();
                json!({"oneOf": variants})
            }
            _ => self.object(depth - 1),
        };
        if self.chance(30) {
            schema["description"] = json!(self.pick(&["What it is.", "Größe in cm", "two\nlines"]));
        }
        if self.chance(15) {
            schema["title"] = json!("A title");
        }
        if self.chance(15) {
            schema["nullable"] = json!(true);
        }
        if self.chance(15) {
            schema["examples"] = json!(["one", 2, "three \"3\""]);
        }
        if self.chance(20) {
            schema["default"] = self.pick(&[
                json!("x y"),
                json!(3),
                json!(0.5),
                json!(true),
                json!(null),
                json!(["a"]),
                json!({"k": 1}),
            ]);
        }
        schema
    }

    fn object(&mut self, depth: usize) -> Value {
        let mut properties = serde_json::Map::new();
        for i in 0..self.below(4) {
            let name = self.pick(&["zeta", "alpha", "with-dash", "mid"]);
            properties.insert(format!("{name}{i}"), self.schema(depth));
        }
        let required: Vec<String> = properties
            .keys()
            .filter(|_| self.chance(50))
            .cloned()
            .collect();
        json!({"type": "object", "properties": properties, "required": required})
    }

    pub fn conversation(&mut self) -> Conversation {
        let mut conversation = Conversation {
            identity: self
                .chance(10)
                .then(|| "You are a helpful model.".to_owned()),
            effort: self.pick(&[Effort::Low, Effort::Medium, Effort::High]),
            date: self.chance(50).then(|| "2026-02-28".to_owned()),
            instructions: self.chance(50).then(|| self.text()),
            keep_analysis: self.chance(20),
            ..Conversation::default()
        };
        for builtin in [Builtin::Python, Builtin::Browser] {
            if self.chance(25) {
                conversation.builtins.push(builtin);
            }
        }
        for i in 0..self.below(4) {
            conversation.tools.push(Tool {
                name: format!("tool_{i}"),
                description: self.chance(80).then(|| {
                    self.pick(&["Does it.", "Two\nlines.", "Größe\n\nfür alle"])
                        .to_owned()
                }),
                parameters: self.chance(80).then(|| self.object(3)),
            });
        }
        if self.chance(20) {
            conversation.channels =
                Some(self.pick(&[vec![], vec![Channel::Final], Channel::ALL.to_vec()]));
        }
        for _ in 0..self.below(4) {
            self.turn(&mut conversation.messages);
        }
        conversation
    }

    fn turn(&mut self, out: &mut Vec<Message>) {
        if self.chance(10) {
            out.push(Message::developer(self.text()));
        }
        let mut user = Message::user(self.text());
        user.name = self.chance(10).then(|| "ada".to_owned());
        out.push(user);
        for _ in 0..self.below(3) {
            if self.chance(70) {
                out.push(Message::assistant(Channel::Analysis, self.text()));
            }
            if self.chance(20) {
                out.push(Message::assistant(Channel::Commentary, self.text()));
            }
            match self.below(3) {
                0 => {
                    let mut call = Message::call("tool_0", self.text());
                    if self.chance(20) {
                        call.channel = Some(Channel::Analysis);
                        call.content_type = self.pick(&[None, Some("json".to_owned())]);
                    }
                    out.push(call);
                    out.push(Message::tool_result("tool_0", self.text()));
                }
                1 => {
                    let mut call = Message::assistant(Channel::Analysis, self.text());
                    call.recipient = Some("python".to_owned());
                    call.content_type = Some("code".to_owned());
                    out.push(call);
                    let mut result = Message::tool_result("x", self.text());
                    result.name = Some("python".to_owned());
                    result.channel = Some(Channel::Analysis);
                    out.push(result);
                }
                _ => {}
            }
        }
        if self.chance(80) {
            out.push(Message::assistant(Channel::Final, self.text()));
        }
    }

    /// A completion that the judge parses.
    pub fn completion(&mut self) -> Vec<u32> {
        let mut out = Vec::new();
        let messages = 1 + self.below(4);
        for i in 0..messages {
            let other = i > 0 && self.chance(15);
            if other {
                let head = self.pick(&[
                    "<|start|>functions.f to=assistant<|channel|>commentary",
                    "<|start|>browser.search to=assistant<|channel|>analysis",
                    "<|start|>user",
                    "<|start|>tool to=assistant<|channel|>commentary",
                    "<|start|>developer",
                ]);
                out.extend(ids(head));
            } else {
                if i > 0 {
                    out.extend(ids("<|start|>assistant"));
                }
                let channel = self.pick(&["analysis", "commentary", "final"]);
                let to = self.pick(&[
                    "functions.f",
                    "functions.get_weather",
                    "browser.search",
                    "python",
                    "f",
                ]);
                let kind = self.pick(&["", " <|constrain|>json", " json", " code"]);
                let header = match self.below(4) {
                    0 => format!(" to={to}<|channel|>{channel}{kind}"),
                    1 => format!("<|channel|>{channel} to={to}{kind}"),
                    2 => format!("<|channel|>{channel} to={to}<|constrain|>json"),
                    _ => format!("<|channel|>{channel}"),
                };
                out.extend(ids(&header));
            }
            out.extend(ids("<|message|>"));
            let text = self.text();
            out.extend(tokenizer().encode(&text));
            if self.chance(20) {
                // Bytes at random: whole characters, halves, and none.
                out.extend((0..self.below(6)).map(|_| self.below(256) as u32));
            }
            if i + 1 < messages || self.chance(80) {
                out.extend(ids(self.pick(&["<|end|>", "<|call|>", "<|return|>"])));
            }
        }
        out
    }
}
