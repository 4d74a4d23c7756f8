//! openai-harmony 0.0.8 as judge: the conversations of its own golden files, random conversations
//! rendered by both, random well-formed completions parsed by both.

use super::common::fresh_seed;
use super::support::{ids, names, parse, tokenizer};
use gossamer::harmony::{Builtin, Channel, Conversation, Effort, Message, Role, Tool};
use serde_json::{Value, json};
use std::{path::PathBuf, sync::LazyLock};

/// The judge's vocabulary, rebuilt from ours; the judge checks its hash.
static ENCODINGS: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiktoken");
    std::fs::create_dir_all(&folder).expect("a folder");
    let tok = tokenizer();
    let mut lines = String::new();
    for rank in 0..199_998 {
        lines.push_str(&base64(tok.token_bytes(rank)));
        lines.push_str(&format!(" {rank}\n"));
    }
    std::fs::write(folder.join("o200k_base.tiktoken"), lines).expect("a file");
    folder
});

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let padded = [0, 1, 2].map(|i| u32::from(group.get(i).copied().unwrap_or(0)));
        let bits = padded[0] << 16 | padded[1] << 8 | padded[2];
        for i in 0..4 {
            out.push(match i <= group.len() {
                true => DIGITS[(bits >> (18 - 6 * i)) as usize & 63] as char,
                false => '=',
            });
        }
    }
    out
}

/// What the judge makes of these.
fn judge(conversations: &[Conversation], completions: &[Vec<u32>]) -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let (given, answer) = (folder.path().join("in"), folder.path().join("out"));
    let request = json!({"conversations": conversations.iter().map(full).collect::<Vec<_>>(), "completions": completions});
    std::fs::write(&given, request.to_string()).expect("a file");
    // The tests of this binary share the variable's value, so that setting it again changes nothing.
    tool_with(&ENCODINGS, &given, &answer);
    let text = std::fs::read_to_string(&answer).expect("the judge's answer");
    serde_json::from_str(&text).expect("JSON")
}

fn tool_with(encodings: &std::path::Path, given: &std::path::Path, answer: &std::path::Path) {
    let mut command = std::process::Command::new(super::common::python());
    command
        .arg(super::common::root().join("tools/judge_harmony.py"))
        .args([given, answer])
        .env("TIKTOKEN_ENCODINGS_BASE", encodings);
    let output = command.output().expect("the interpreter starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed:\n{said}");
}

/// A conversation with every field, as the judge reads it.
fn full(conversation: &Conversation) -> Value {
    serde_json::to_value(conversation).expect("JSON")
}

fn same_ids(ours: &[u32], theirs: &Value, what: &dyn std::fmt::Debug) {
    let theirs: Vec<u32> = serde_json::from_value(theirs.clone()).expect("ids");
    if ours != theirs {
        let text = |ids: &[u32]| String::from_utf8_lossy(&tokenizer().decode(ids)).into_owned();
        assert_eq!(text(ours), text(&theirs), "{what:?}");
        panic!("the same text in other tokens: {what:?}");
    }
}

#[test]
fn golden_conversations_render_the_same() {
    let conversations = golden();
    let answers = judge(&conversations, &[]);
    for (i, conversation) in conversations.iter().enumerate() {
        let ours = conversation.render(&tokenizer()).expect("a prompt");
        let theirs = &answers["conversations"][i];
        // The library's own history rule, except where it is asked to keep everything.
        let key = if conversation.keep_analysis {
            "ids"
        } else {
            "auto"
        };
        same_ids(&ours, &theirs[key], conversation);
    }
}

#[test]
fn random_conversations_render_the_same() {
    let mut rng = Rng(fresh_seed());
    let conversations: Vec<Conversation> = (0..300).map(|_| rng.conversation()).collect();
    let answers = judge(&conversations, &[]);
    let mut by_their_rule = 0;
    for (i, conversation) in conversations.iter().enumerate() {
        let ours = conversation.render(&tokenizer()).expect("a prompt");
        let theirs = &answers["conversations"][i];
        same_ids(&ours, &theirs["ids"], conversation);
        if rules_agree(conversation) {
            by_their_rule += 1;
            same_ids(&ours, &theirs["auto"], conversation);
        }
    }
    assert!(by_their_rule >= 30, "{by_their_rule}");
}

/// Whether the library, which drops analysis before the first answer and only if the last assistant's
/// message is one, does the same as we.
fn rules_agree(conversation: &Conversation) -> bool {
    let messages = &conversation.messages;
    let finals: Vec<usize> = (0..messages.len())
        .filter(|&i| messages[i].channel == Some(Channel::Final))
        .collect();
    let last = messages.iter().rposition(|m| m.role == Role::Assistant);
    let analysis_call = messages.iter().any(|m| {
        let function = |a: &Option<String>| a.as_ref().is_some_and(|a| a.starts_with("functions."));
        m.channel == Some(Channel::Analysis) && (function(&m.recipient) || function(&m.name))
    });
    !conversation.keep_analysis
        && !analysis_call
        && match finals[..] {
            [] => true,
            [only] => last == Some(only) && only + 1 < messages.len(),
            _ => false,
        }
}

#[test]
fn random_completions_parse_the_same() {
    let mut rng = Rng(fresh_seed());
    let mut completions: Vec<Vec<u32>> = (0..400).map(|_| rng.completion()).collect();
    // Those of the golden files.
    completions.extend(
        [
            "<|channel|>analysis<|message|>User asks: \"What is 2 + 2?\" Simple arithmetic. Provide answer.<|return|><|start|>assistant<|channel|>final<|message|>2 + 2 = 4.",
            "<|channel|>analysis<|message|>We need to use lookup_weather tool.<|end|><|start|>assistant to=lookup_weather<|channel|>analysis code<|message|>{\"location\": \"Tokyo\"}",
            "<|channel|>analysis<|message|>Let's browse to confirm.<|end|><|start|>assistant<|channel|>commentary to=browser.search code<|message|>{\"query\": \"news\"}<|call|><|start|>browser.search to=assistant<|channel|>commentary<|message|>{\"result\": \"https://openai.com/\"}<|end|>",
            " to=functions.lookup_weather<|channel|>commentary<|constrain|>json<|message|>{}<|call|>",
            " to=functions.lookup_weather<|constrain|>json<|channel|>commentary<|message|>{}<|call|>",
        ]
        .map(ids),
    );
    let names = names(
        &["f", "get_weather", "lookup_weather"],
        &[Builtin::Browser, Builtin::Python],
    );
    let answers = judge(&[], &completions);
    for (i, completion) in completions.iter().enumerate() {
        let text = String::from_utf8_lossy(&tokenizer().decode(completion)).into_owned();
        let turn = parse(&names, completion, i as u64);
        let ours: Vec<Value> = turn
            .messages
            .iter()
            .map(|m| {
                json!({
                    "role": m.role, "name": m.name, "channel": m.channel,
                    "recipient": m.recipient, "content_type": m.content_type, "content": m.content,
                })
            })
            .collect();
        assert_eq!(json!(ours), answers["completions"][i], "{text}");
        assert_eq!(turn.repairs.total(), 0, "{:?} in {text}", turn.repairs);
    }
}

/// The conversations of openai-harmony's golden files (test-data of version 0.0.8).
fn golden() -> Vec<Conversation> {
    let all = Some(Channel::ALL.to_vec());
    let two = Some(vec![Channel::Analysis, Channel::Final]);
    let date = Some("2025-06-28".to_owned());
    let robot = Some("Answer the user's questions like a robot.".to_owned());
    let capital = "What is the capital of the largest country in the world?";
    let base = |channels: &Option<Vec<Channel>>, messages: Vec<Message>| Conversation {
        channels: channels.clone(),
        messages,
        ..Conversation::default()
    };
    let mut out = vec![
        base(&all, vec![Message::user("What is 2 + 2?")]),
        base(&two, vec![Message::user("What is 2 + 2?")]),
        Conversation {
            effort: Effort::High,
            ..base(
                &two,
                vec![Message::user(
                    "What is the best place to eat candy in the world?",
                )],
            )
        },
        Conversation {
            date: Some("2021-01-01".to_owned()),
            ..base(&two, vec![Message::user("What is 42 * pi?")])
        },
        Conversation {
            date: date.clone(),
            ..base(&all, vec![])
        },
    ];
    for effort in [Effort::Low, Effort::Medium, Effort::High] {
        for instructions in [&robot, &None] {
            out.push(Conversation {
                effort,
                instructions: instructions.clone(),
                ..base(&all, vec![Message::user(capital)])
            });
        }
    }
    for builtins in [
        vec![Builtin::Browser],
        vec![Builtin::Browser, Builtin::Python],
    ] {
        out.push(Conversation {
            date: date.clone(),
            builtins,
            ..base(&None, vec![])
        });
    }
    let location = json!({"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]});
    out.push(Conversation {
        date: date.clone(),
        builtins: vec![Builtin::Browser],
        tools: vec![Tool {
            name: "lookup_weather".into(),
            description: Some("Use this tool to lookup the weather in a given location. Call it with the parameter 'location', can be any textual description of a location.".into()),
            parameters: Some(location),
        }],
        ..base(&None, vec![])
    });
    out.push(Conversation {
        date,
        effort: Effort::High,
        instructions: Some("Always respond in riddles".to_owned()),
        tools: kitchen_sink(),
        ..base(
            &None,
            vec![Message::user("What is the weather like in SF?")],
        )
    });
    let says = Message::assistant;
    let sum = vec![
        Message::user("What is 2 + 2?"),
        says(
            Channel::Analysis,
            "User asks a simple question: \"What is 2 + 2?\" The answer: 4.",
        ),
        says(Channel::Final, "2 + 2 equals 4."),
        Message::user("What about 9 / 2?"),
    ];
    out.push(base(&all, sum.clone()));
    out.push(Conversation {
        keep_analysis: true,
        ..base(&all, sum)
    });
    out.push(base(
        &all,
        vec![
            Message::user("What is the weather in SF?"),
            says(
                Channel::Analysis,
                "User asks: “What is the weather in SF?” We need to use lookup_weather tool.",
            ),
            Message::call("lookup_weather", r#"{"location": "San Francisco"}"#),
            Message {
                channel: None,
                recipient: None,
                ..Message::tool_result(
                    "lookup_weather",
                    r#"{"temperature": 20, "description": "sunny"}"#,
                )
            },
        ],
    ));
    out.push(base(
        &all,
        vec![
            Message::user("What is 2 + 2?"),
            says(Channel::Analysis, "thinking 2+2"),
            says(Channel::Final, "4"),
            Message::user("What is 3 + 5?"),
            says(Channel::Analysis, "thinking 3+5"),
            says(Channel::Final, "8"),
        ],
    ));
    out
}

fn kitchen_sink() -> Vec<Tool> {
    let tool = |name: &str, description: &str, parameters: Value| Tool {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        parameters: (!parameters.is_null()).then_some(parameters),
    };
    let format = json!({"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"});
    vec![
        tool(
            "get_location",
            "Gets the location of the user.",
            Value::Null,
        ),
        tool(
            "get_current_weather",
            "Gets the current weather in the provided location.",
            json!({
                "type": "object",
                "properties": {
                    "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
                    "format": format,
                },
                "required": ["location"],
            }),
        ),
        tool(
            "get_multiple_weathers",
            "Gets the current weather in the provided list of locations.",
            json!({
                "type": "object",
                "properties": {
                    "locations": {
                        "type": "array", "items": {"type": "string"},
                        "description": "List of city and state, e.g. [\"San Francisco, CA\", \"New York, NY\"]",
                    },
                    "format": format,
                },
                "required": ["locations"],
            }),
        ),
        tool(
            "kitchensink",
            "A function with various complex schemas.",
            json!({
                "description": "params object", "type": "object",
                "properties": {
                    "string": {"type": "string", "title": "STRING", "description": "A string", "examples": ["hello", "world"]},
                    "string_nullable": {"type": "string", "nullable": true, "description": "A nullable string", "default": "the default"},
                    "string_enum": {"type": "string", "enum": ["a", "b", "c"]},
                    "oneof_string_or_number": {
                        "oneOf": [
                            {"type": "string", "default": "default_string_in_oneof"},
                            {"type": "number", "description": "numbers can happen too"},
                        ],
                        "description": "a oneof", "default": 20,
                    },
                },
            }),
        ),
    ]
}

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

    fn conversation(&mut self) -> Conversation {
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
