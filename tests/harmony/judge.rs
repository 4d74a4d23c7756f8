//! openai-harmony 0.0.8 as judge: the conversations of its own golden files, random conversations
//! rendered by both, random well-formed completions parsed by both.

use super::common::{fresh_seed, python, root};
use super::random::Rng;
use super::support::{ids, names, parse, tokenizer};
use gossamer::harmony::{Builtin, Channel, Conversation, Effort, Message, Role, Tool};
use serde_json::{Value, json};
use std::sync::LazyLock;

/// The judge's vocabulary file, rebuilt from ours; the judge checks its hash.
static RANKS: LazyLock<String> = LazyLock::new(|| {
    let tok = tokenizer();
    let line = |rank| format!("{} {rank}\n", base64(tok.token_bytes(rank)));
    (0..199_998).map(line).collect()
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
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("o200k_base.tiktoken"), RANKS.as_str()).expect("a file");
    let request = json!({"conversations": conversations, "completions": completions});
    std::fs::write(file("request"), request.to_string()).expect("a file");
    let mut command = std::process::Command::new(python());
    command
        .arg(root().join("tools/judge_harmony.py"))
        .args([file("request"), file("answer")])
        .env("TIKTOKEN_ENCODINGS_BASE", folder.path());
    let output = command.output().expect("the interpreter starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed:\n{said}");
    let text = std::fs::read_to_string(file("answer")).expect("the judge's answer");
    serde_json::from_str(&text).expect("JSON")
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
