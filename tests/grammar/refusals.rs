//! What can't be kept is refused, and says why.

use super::{
    BYTES,
    rules::{FINAL, may, tools},
};
use gossamer::{
    grammar::{Format, GrammarError, Place, Rules, ToolChoice},
    harmony::Conversation,
};
use serde_json::json;

fn refused(rules: &Rules) -> GrammarError {
    let (_, conversation) = tools(&["f"]);
    match BYTES.1.constrain(rules, &conversation) {
        Err(error) => error,
        Ok(_) => panic!("{rules:?} must be refused"),
    }
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let (ruled, _) = tools(&["f"]);
    let error = refused(&Rules {
        choice: ToolChoice::Required,
        ..Rules::default()
    });
    assert_eq!(
        (error.place, error.param.as_str()),
        (Place::ToolChoice, "tool_choice")
    );
    let named = ToolChoice::Named("g".to_owned());
    let error = refused(&Rules {
        choice: named,
        tools: ruled.clone(),
        ..Rules::default()
    });
    assert!(error.message.contains("\"g\""), "{error}");
    let inexpressible = [
        (json!({"not": {"type": "string"}}), "not"),
        (json!({"if": {}, "then": {}}), "if"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"type": "string", "format": "no-such"}), "no-such"),
        (json!({"$ref": "https://example.com/schema"}), "example.com"),
        (json!({"$ref": "#/$defs/absent"}), "absent"),
        (json!({"type": "string", "pattern": "(?=a)b"}), "(?=a)b"),
        (
            json!({"type": "integer", "minimum": 5, "maximum": 4}),
            "minimum",
        ),
        (json!({"type": "colour"}), "colour"),
        (
            json!({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}),
            "anyOf",
        ),
        (json!("string"), "object"),
        (json!(false), "object"),
    ];
    for (schema, word) in inexpressible {
        let format = Format::JsonSchema {
            schema: schema.clone(),
        };
        let error = refused(&Rules {
            format: Some(format),
            ..Rules::default()
        });
        assert_eq!(
            (error.place, error.param.as_str()),
            (Place::Format, "response_format")
        );
        assert!(error.message.contains(word), "{schema}: {error}");
        assert!(
            !error.message.contains("non-verbose") && !error.message.contains("panic"),
            "{error}"
        );
        let mut tools = ruled.clone();
        tools[0].strict = Some(schema);
        let error = refused(&Rules {
            tools,
            ..Rules::default()
        });
        assert_eq!(
            (error.place, error.param.as_str()),
            (Place::Tool(0), "tools[0].function.parameters")
        );
        assert!(error.message.contains(word), "{error}");
    }
    for format in [
        Format::Regex("(".to_owned()),
        Format::Regex("a(?!b)".to_owned()),
        Format::Lark("start: ".to_owned() + "missing"),
        Format::Lark("start: <|end|>".to_owned()),
        Format::Lark("start: <[7]>".to_owned()),
        Format::Lark("%llguidance {\"allow_invalid_utf8\": true}\nstart: /x/".to_owned()),
        Format::Lark(String::new()),
    ] {
        let error = refused(&Rules {
            format: Some(format.clone()),
            ..Rules::default()
        });
        assert_eq!(error.place, Place::Format, "{format:?}: {error}");
    }
}

#[test]
fn llguidance_is_not_the_clients_to_configure() {
    let schema = json!({
        "x-guidance": {"whitespace_flexible": true, "whitespace_pattern": " *", "lenient": true},
        "type": "object"
    });
    let rules = Rules {
        format: Some(Format::JsonSchema { schema }),
        ..Rules::default()
    };
    assert!(!may(
        &rules,
        &Conversation::default(),
        &format!("{FINAL}{{   ")
    ));
}
