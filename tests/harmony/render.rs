//! Rendering where openai-harmony has nothing to compare with: what is said more, what is refused.

use super::support::{ids, names, parse, tokenizer};
use gossamer::{
    harmony::{
        Builtin, Channel, Conversation, Message, Parser, ResponseFormat, Role, Tool, ToolNames,
    },
    tokenizer::{TokenKind, Tokenizer},
};
use serde_json::{Value, json};
use std::sync::Arc;

const SYSTEM: &str = "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n\
    Knowledge cutoff: 2024-06\n\nReasoning: medium\n\n\
    # Valid channels: analysis, final. Channel must be included for every message.<|end|>";

fn text(conversation: &Conversation) -> String {
    conversation.render_text(&tokenizer()).expect("a prompt")
}

fn error(conversation: &Conversation) -> String {
    let error = conversation.render(&tokenizer()).expect_err("an error");
    format!("{error:#}")
}

fn tool(name: &str, parameters: Value) -> Tool {
    Tool {
        name: name.to_owned(),
        description: None,
        parameters: Some(parameters),
    }
}

/// How a function's parameters are shown.
fn shown(parameters: Value) -> String {
    let conversation = Conversation {
        tools: vec![tool("f", parameters)],
        ..Conversation::default()
    };
    let text = text(&conversation);
    let (_, rest) = text.split_once("type f = (_: ").expect("the type");
    rest.rsplit_once(") => any;").expect("its end").0.to_owned()
}

fn property(schema: Value) -> String {
    let shown = shown(json!({"type": "object", "properties": {"x": schema}}));
    let inner = shown
        .strip_prefix("{\n")
        .and_then(|s| s.strip_suffix("\n}"));
    inner.expect("an object").to_owned()
}

#[test]
fn a_prompt_is_exactly_this() {
    let conversation = Conversation {
        instructions: Some("Be brief.".into()),
        messages: vec![
            Message::user("Hi"),
            Message::assistant(Channel::Analysis, "Greet."),
            Message::assistant(Channel::Final, "Hello!"),
            Message::user("Bye"),
        ],
        ..Conversation::default()
    };
    let expected = format!(
        "{SYSTEM}<|start|>developer<|message|># Instructions\n\nBe brief.<|end|><|start|>user<|message|>Hi<|end|>\
         <|start|>assistant<|channel|>final<|message|>Hello!<|end|><|start|>user<|message|>Bye<|end|><|start|>assistant"
    );
    assert_eq!(text(&conversation), expected);
    assert_eq!(
        conversation.render(&tokenizer()).expect("a prompt"),
        ids(&expected)
    );
}

#[test]
fn response_formats_end_the_developer_message() {
    let conversation = Conversation {
        instructions: Some("Answer in JSON.".into()),
        tools: vec![Tool {
            name: "f".into(),
            description: None,
            parameters: None,
        }],
        response_formats: vec![ResponseFormat {
            name: "shopping_list".into(),
            description: Some("What to buy\nand where".into()),
            schema: json!({"type": "object", "properties": {"items": {"type": "array"}}}),
        }],
        ..Conversation::default()
    };
    let expected = "<|start|>developer<|message|># Instructions\n\nAnswer in JSON.\n\n# Tools\n\n## functions\n\n\
        namespace functions {\n\ntype f = () => any;\n\n} // namespace functions\n\n\
        # Response Formats\n\n## shopping_list\n\n// What to buy\n// and where\n\
        {\"type\":\"object\",\"properties\":{\"items\":{\"type\":\"array\"}}}<|end|>";
    assert!(
        text(&conversation).contains(expected),
        "{}",
        text(&conversation)
    );
}

#[test]
fn names_that_are_no_identifiers_are_mapped_and_mapped_back() {
    let functions = ["web-search", "web_search", "2fast", "größe", "a.b c"];
    let conversation = Conversation {
        tools: functions
            .map(|name| tool(name, json!({"type": "object"})))
            .to_vec(),
        messages: vec![
            Message::call("web-search", "{}"),
            Message::tool_result("web-search", "ok"),
            Message::call("gone-since", "{}"),
            Message::tool_result("gone-since", "ok"),
        ],
        ..Conversation::default()
    };
    let text = text(&conversation);
    for name in ["web_search_2", "web_search", "_2fast", "größe", "a_b_c"] {
        assert!(
            text.contains(&format!("type {name} = (_: ")),
            "{name} in {text}"
        );
    }
    assert!(text.contains(
        "<|start|>assistant to=functions.web_search_2<|channel|>commentary <|constrain|>json<|message|>{}<|call|>\
         <|start|>functions.web_search_2 to=assistant<|channel|>commentary<|message|>ok<|end|>\
         <|start|>assistant to=functions.gone_since<|channel|>commentary <|constrain|>json<|message|>{}<|call|>\
         <|start|>functions.gone_since to=assistant<|channel|>commentary<|message|>ok<|end|>"
    ));
    let names = conversation.tool_names();
    for name in functions {
        let call = format!(
            "<|channel|>commentary to=functions.{}<|message|>{{}}<|call|>",
            names.shown(name)
        );
        let turn = parse(&names, &ids(&call), 1);
        let call = turn.calls().next().expect("a call");
        assert_eq!((call.name, turn.repairs.total()), (name, 0));
        assert_eq!(
            turn.messages[0].recipient,
            Some(format!("functions.{name}"))
        );
    }
}

#[test]
fn finished_turns_lose_their_reasoning_and_open_ones_keep_it() {
    let kept = |messages: Vec<Message>| -> Vec<String> {
        let conversation = Conversation {
            messages,
            ..Conversation::default()
        };
        let text = text(&conversation);
        let thoughts = text.split("<|channel|>analysis").skip(1);
        let content = |t: &str| {
            let (_, rest) = t.split_once("<|message|>")?;
            Some(rest.split("<|").next()?.to_owned())
        };
        thoughts.filter_map(content).collect()
    };
    let think = |text: &str| Message::assistant(Channel::Analysis, text);
    let answer = || Message::assistant(Channel::Final, "ok");
    let preamble = || Message::assistant(Channel::Commentary, "I'll look.");
    let call = || Message::call("f", "{}");
    let result = || Message::tool_result("f", "1");
    let user = || Message::user("q");
    // Two finished turns, then a turn between calls: its thoughts stay, with those before the calls.
    let turns = vec![
        user(),
        think("a"),
        call(),
        result(),
        think("b"),
        answer(),
        user(),
        think("c"),
        answer(),
        user(),
        think("d"),
        preamble(),
        call(),
        result(),
        think("e"),
        call(),
        result(),
    ];
    assert_eq!(kept(turns), ["d", "e"]);
    assert_eq!(kept(vec![user(), think("a"), answer(), user()]), [""; 0]);
    // A preamble is no answer.
    assert_eq!(
        kept(vec![user(), think("a"), preamble(), call(), result()]),
        ["a"]
    );
    // An answer that nothing follows doesn't finish its own turn yet.
    assert_eq!(
        kept(vec![
            user(),
            think("a"),
            answer(),
            user(),
            think("b"),
            answer()
        ]),
        ["b"]
    );
    // A function's call and result stay together, wherever they were made; python's go with the thought.
    let on_analysis = |to: &str, content: &str| Message {
        recipient: Some(to.to_owned()),
        ..think(content)
    };
    assert_eq!(
        kept(vec![
            user(),
            on_analysis("functions.f", "x"),
            result(),
            on_analysis("python", "y"),
            answer(),
            user()
        ]),
        ["x"]
    );
}

#[test]
fn what_a_prompt_renders_a_parser_reads() {
    let spoken = vec![
        Message::assistant(Channel::Analysis, "Let me see."),
        Message::assistant(Channel::Commentary, "I'll look it up."),
        Message::call("web-search", "{\"q\": \"größe\"}"),
        Message::tool_result("web-search", "185 cm"),
        Message::assistant(Channel::Analysis, "So."),
        Message::assistant(Channel::Final, "185 cm."),
    ];
    let conversation = Conversation {
        tools: vec![tool("web-search", json!({}))],
        messages: spoken.clone(),
        keep_analysis: true,
        ..Conversation::default()
    };
    let empty = Conversation {
        messages: vec![],
        ..conversation.clone()
    };
    let tok = tokenizer();
    let (all, head) = (
        conversation.render(&tok).expect("a prompt"),
        empty.render(&tok).expect("a prompt"),
    );
    let turn = parse(
        &conversation.tool_names(),
        &all[head.len()..all.len() - 2],
        5,
    );
    assert_eq!(turn.messages, spoken);
    assert_eq!(turn.repairs.total(), 0);
}

#[test]
fn builtins_are_listed_once_in_one_order() {
    let of = |builtins: &[Builtin]| {
        text(&Conversation {
            builtins: builtins.to_vec(),
            ..Conversation::default()
        })
    };
    let both = of(&[Builtin::Browser, Builtin::Python]);
    assert_eq!(
        of(&[Builtin::Python, Builtin::Browser, Builtin::Python]),
        both
    );
    assert!(both.contains("# Valid channels: analysis, commentary, final."));
    assert!(
        !both.contains("Calls to these tools"),
        "these are no functions"
    );
}

#[test]
fn schemas_say_more_than_any() {
    for (schema, expected) in [
        (
            json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}),
            "x?: number | null,",
        ),
        (
            json!({"anyOf": [{"type": "string"}, {"type": "string", "format": "uri"}]}),
            "x?: string,",
        ),
        (json!({"allOf": [{"type": "string"}]}), "x?: string,"),
        (json!({"const": "on"}), "x?: \"on\","),
        (json!({"type": "integer", "enum": [1, 2]}), "x?: 1 | 2,"),
        (json!({"enum": ["a", 1, null]}), "x?: \"a\" | 1 | null,"),
        (json!({"type": "null"}), "x?: null,"),
        (
            json!({"properties": {"y": {"type": "string"}}}),
            "x?: {\n    y?: string,\n    },",
        ),
        (json!({"items": {"type": "number"}}), "x?: number[],"),
        (
            json!({"items": {"anyOf": [{"type": "number"}, {"type": "null"}]}}),
            "x?: (number | null)[],",
        ),
        (
            json!({"type": ["array", "null"], "items": {"type": "string"}}),
            "x?: string[] | null,",
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "number"}}),
            "x?: {\n    [key: string]: number,\n    },",
        ),
        (
            json!({"anyOf": [{"type": "string", "description": "by name"}, {"type": "number", "description": "by id"}]}),
            "x?:\n | string // by name\n | number // by id\n,",
        ),
        (json!({"not": {}}), "x?: any,"),
        (json!(true), "x?: any,"),
        (
            json!({"$ref": "https://example.org/schema"}),
            "x?: any /* schema */,",
        ),
        (json!({"$ref": "#/nowhere"}), "x?: any /* nowhere */,"),
    ] {
        assert_eq!(property(schema.clone()), expected, "{schema}");
    }
}

#[test]
fn references_are_followed_but_never_forever() {
    let schema = json!({
        "type": "object",
        "properties": {"home": {"$ref": "#/$defs/Address"}, "root": {"$ref": "#/$defs/Node"}, "all": {"$ref": "#"}},
        "$defs": {
            "Address": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            "Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "value": {"$ref": "#/$defs/Value"}}},
            "Value": {"type": "string", "description": "What it holds."},
        },
    });
    let text = shown(schema);
    assert!(text.starts_with(
        "{\nhome?: {\n    city: string,\n    },\nroot?: {\n    next?: any /* Node */,\n    // What it holds.\n    value?: string,\n    },\nall?: {\n"
    ), "{text}");

    // Each of 40 definitions twice the one before it: 2^40 if followed blindly.
    let mut defs = serde_json::Map::new();
    defs.insert("D0".into(), json!({"type": "string"}));
    for i in 1..40 {
        let before = json!({"$ref": format!("#/$defs/D{}", i - 1)});
        defs.insert(
            format!("D{i}"),
            json!({"type": "object", "properties": {"a": before, "b": before}}),
        );
    }
    let text = shown(
        json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/D39"}}, "$defs": defs}),
    );
    assert!(text.len() < 1 << 20, "{} bytes", text.len());
    assert!(text.contains("any /* D"), "what is left out is said");

    // A type named twice at each of 30 levels: 2^30 if written twice.
    let mut twice = json!({"type": "string"});
    for _ in 0..30 {
        twice = json!({"type": ["object", "object"], "properties": {"x": twice}});
    }
    let text = shown(twice);
    assert_eq!(text.matches("string").count(), 1, "{text}");

    // Nested deeper than anyone means.
    let mut deep = json!({"type": "string"});
    for _ in 0..500 {
        deep = json!({"type": "array", "items": deep});
    }
    let text = property(deep);
    assert!(text.contains("any /* nested deeper than"), "{text}");
}

#[test]
fn what_cannot_be_rendered_is_named() {
    let of = |message: Message| Conversation {
        messages: vec![Message::user("q"), message],
        ..Conversation::default()
    };
    for (conversation, expected) in [
        (
            Conversation {
                date: Some("28.02.2026".into()),
                ..Conversation::default()
            },
            "date: expected YYYY-MM-DD, found \"28.02.2026\"",
        ),
        (
            Conversation {
                date: Some("2026-02-30".into()),
                ..Conversation::default()
            },
            "date: expected YYYY-MM-DD, found \"2026-02-30\"",
        ),
        (
            Conversation {
                tools: vec![tool("", json!({}))],
                ..Conversation::default()
            },
            "tools[0]: its name is empty",
        ),
        (
            Conversation {
                tools: vec![tool("f", json!([1]))],
                ..Conversation::default()
            },
            "tool f: parameters: expected a JSON Schema (an object), found [1]",
        ),
        (
            of(Message {
                name: None,
                ..Message::tool_result("f", "1")
            }),
            "messages[1]: a tool's message must name the tool",
        ),
        (
            of(Message {
                recipient: Some("a b".into()),
                ..Message::call("f", "{}")
            }),
            "messages[1]: recipient: expected a word, found \"a b\"",
        ),
        (
            of(Message {
                name: Some("Ada Lovelace".into()),
                ..Message::user("q")
            }),
            "messages[1]: name: expected a word, found \"Ada Lovelace\"",
        ),
    ] {
        let error = error(&conversation);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_vocabulary_without_harmony_is_refused() {
    let bytes: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let tok = Tokenizer::new(bytes, vec![TokenKind::Normal; 256]).expect("a vocabulary");
    let error = Conversation::default()
        .render(&tok)
        .expect_err("no control tokens");
    assert!(
        error.to_string().contains("no control token <|start|>"),
        "{error}"
    );
    assert!(Parser::new(Arc::new(tok), ToolNames::default()).is_err());
}

#[test]
fn a_type_on_the_final_channel_is_no_recipient() {
    // openai-harmony takes this type for a recipient; structured answers are written so.
    let turn = parse(
        &names(&["f"], &[]),
        &ids("<|channel|>final <|constrain|>json<|message|>{}<|return|>"),
        3,
    );
    let message = &turn.messages[0];
    assert_eq!(
        (message.role, message.channel),
        (Role::Assistant, Some(Channel::Final))
    );
    assert_eq!(
        (
            message.recipient.as_deref(),
            message.content_type.as_deref()
        ),
        (None, Some("<|constrain|>json"))
    );
    assert_eq!((turn.repairs.total(), turn.answer().as_str()), (0, "{}"));
}
