//! Schemas, patterns and grammars made to hang or to eat memory: each is refused, or works in time.

use super::{O200K, random::Rng, walk::Babbler};
use gossamer::{
    grammar::{Format, MAX_NESTING, MAX_SCHEMA_BYTES, MAX_TOOL_BYTES, Place, RuledTool, Rules},
    harmony::Conversation,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// More than any of them takes on a slow and busy machine; a hang takes for ever.
const LONG: Duration = Duration::from_secs(20);

fn nested(levels: usize) -> Value {
    let wrap = |inner, _| json!({"type": "object", "properties": {"a": inner}, "required": ["a"]});
    (0..levels).fold(json!({"type": "null"}), wrap)
}

fn hostile() -> Vec<(&'static str, Format)> {
    let schema = |schema: Value| Format::JsonSchema { schema };
    let words = |n: usize| {
        (0..n)
            .map(|i| format!("word number {i}"))
            .collect::<Vec<_>>()
    };
    let properties = |n: usize, required: bool| {
        let all = words(n);
        let fields: serde_json::Map<String, Value> = all
            .iter()
            .map(|w| (w.clone(), json!({"type": "integer"})))
            .collect();
        let required = if required { all } else { Vec::new() };
        json!({"type": "object", "properties": fields, "required": required, "additionalProperties": false})
    };
    let choice = |n: usize| {
        let options: Vec<Value> = (0..n).map(|i| json!({"type": "object", "properties": {"kind": {"const": format!("k{i}")}, "x": {"type": "string"}}, "required": ["kind"]})).collect();
        json!({"anyOf": options})
    };
    let doubled: serde_json::Map<String, Value> = (0..40)
        .map(|i| (format!("d{i}"), json!({"anyOf": [{"$ref": format!("#/$defs/d{}", i + 1)}, {"type": "array", "items": {"$ref": format!("#/$defs/d{}", i + 1)}}]})))
        .chain([("d40".to_owned(), json!({"type": "null"}))])
        .collect();
    vec![
        (
            "deep, as far as allowed",
            schema(nested(MAX_NESTING / 2 - 1)),
        ),
        (
            "a list of 10^9",
            schema(
                json!({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000_000}),
            ),
        ),
        (
            "at most 10^9 items",
            schema(json!({"type": "array", "maxItems": 1_000_000_000})),
        ),
        (
            "10^9 characters",
            schema(json!({"type": "string", "maxLength": 1_000_000_000})),
        ),
        (
            "at least 10^9 characters",
            schema(json!({"type": "string", "minLength": 1_000_000_000})),
        ),
        (
            "lists in lists",
            schema(
                json!({"type": "array", "maxItems": 2000, "items": {"type": "array", "maxItems": 2000, "items": {"type": "array", "maxItems": 2000}}}),
            ),
        ),
        ("5,000 words", schema(json!({"enum": words(5000)}))),
        ("2,000 fields", schema(properties(2000, true))),
        (
            "2,000 fields that need not be",
            schema(properties(2000, false)),
        ),
        (
            "at least one of 1,000 fields",
            schema({
                let mut all = properties(1000, false);
                all["minProperties"] = 1.into();
                all
            }),
        ),
        (
            "the same 1,000 fields 1,400 times",
            schema({
                let again = |i| json!({"$ref": "#/$defs/f", "properties": {"a": {"const": i}}});
                let options: Vec<Value> = (0..1400).map(again).collect();
                json!({"$defs": {"f": properties(1000, true)}, "anyOf": options})
            }),
        ),
        (
            "20,000 required names",
            schema(json!({"type": "object", "required": words(20_000)})),
        ),
        ("1,000 kinds", schema(choice(1000))),
        ("itself", schema(json!({"$ref": "#"}))),
        (
            "a list of itself",
            schema(json!({"type": "array", "items": {"$ref": "#"}})),
        ),
        (
            "doubling references",
            schema(json!({"$ref": "#/$defs/d0", "$defs": doubled})),
        ),
        (
            "references in a ring",
            schema(
                json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            ),
        ),
        (
            "everything of a ring",
            schema(json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]})),
        ),
        (
            "(a*)*b",
            schema(json!({"type": "string", "pattern": "^(a*)*(a|aa)*b$"})),
        ),
        (
            "a pattern of states",
            schema(json!({"type": "string", "pattern": "^(.*a.{18}b|.*c.{18}d)$"})),
        ),
        (
            "a large repeat",
            schema(json!({"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"})),
        ),
        (
            "the same as a regex",
            Format::Regex("((a{1,1000}){1,1000}){1,1000}".to_owned()),
        ),
        (
            "states of a regex",
            Format::Regex(".*[ab].{30}[cd].{30}".to_owned()),
        ),
        (
            "multiples",
            schema(json!({"type": "integer", "multipleOf": 9_973})),
        ),
        (
            "numbers of many digits",
            schema(
                json!({"type": "number", "minimum": -1.000_000_000_123e-300, "maximum": 1.797e308}),
            ),
        ),
        (
            "patterns for keys",
            schema(
                json!({"type": "object", "patternProperties": {"^a.*b$": {}, "^.*c.{12}$": {"type": "integer"}}}),
            ),
        ),
        (
            "an ambiguous grammar",
            Format::Lark("start: e\ne: e e | \"a\" | \"a\" e | ".to_owned()),
        ),
        (
            "an endless grammar",
            Format::Lark("start: start \"a\"".to_owned()),
        ),
        ("nothing", Format::Lark("start: /[^\\s\\S]/".to_owned())),
        (
            "a large grammar",
            Format::Lark("start: ".to_owned() + &"(\"a\" | \"b\")? ".repeat(2400)),
        ),
    ]
}

#[test]
fn hostile_shapes_are_refused_or_work_in_time() {
    let (tok, grammars) = &*O200K;
    grammars.warm();
    let mut rng = Rng(super::fresh_seed());
    let babbler = Babbler::new(tok.clone(), &mut rng);
    for (name, format) in hostile() {
        let start = Instant::now();
        let source = grammars.raw(&format);
        let compiled = start.elapsed();
        assert!(compiled < LONG, "{name}: {compiled:?} to compile");
        let mut source = match source {
            Ok(source) => source,
            Err(error) => {
                assert!(
                    !error.message.is_empty() && error.message.len() < 2000,
                    "{name}: {error}"
                );
                println!("{name}: refused in {compiled:?}: {error}");
                continue;
            }
        };
        let walk = babbler.try_say(&mut *source, 60, &mut rng);
        println!(
            "{name}: compiled in {compiled:?}; {} tokens, longest mask {:?}{}",
            walk.masks.len(),
            walk.longest(),
            walk.told()
        );
        assert!(
            walk.longest() < LONG,
            "{name}: {:?} for a mask",
            walk.longest()
        );
    }
}

#[test]
fn limits_are_told() {
    let (_, grammars) = &*O200K;
    let told = |format: Format| match grammars.raw(&format) {
        Err(error) => error.message,
        Ok(_) => panic!("must be refused"),
    };
    let deep = told(Format::JsonSchema {
        schema: nested(100),
    });
    assert!(deep.contains("64 levels"), "{deep}");
    let fields: serde_json::Map<String, Value> =
        (0..1500).map(|i| (format!("f{i}"), json!({}))).collect();
    let optional = told(Format::JsonSchema {
        schema: json!({"properties": fields}),
    });
    assert!(optional.contains("1500 fields"), "{optional}");
    let multiple = |of: Value| Format::JsonSchema {
        schema: json!({"type": "number", "multipleOf": of}),
    };
    for of in [json!(1_000_003), json!(0.000_123_457), json!(1.000_003e300)] {
        let message = told(multiple(of));
        assert!(message.contains("multipleOf"), "{message}");
    }
    assert!(grammars.raw(&multiple(json!(0.01))).is_ok());
    let long = "x".repeat(MAX_SCHEMA_BYTES + 1);
    let described = json!({"description": long});
    for (format, most) in [
        (Format::JsonSchema { schema: described }, "131072"),
        (Format::Regex(long.clone()), "32768"),
        (Format::Lark(long.clone()), "32768"),
    ] {
        let message = told(format);
        assert!(message.contains(most), "{message}");
    }
}

#[test]
fn strict_tools_share_a_bound() {
    let large = "x".repeat(MAX_SCHEMA_BYTES - 100);
    let schema = |i: usize| json!({"type": "object", "description": large, "title": i.to_string()});
    let of = |count: usize| Rules {
        tools: (0..count)
            .map(|i| RuledTool {
                name: format!("f{i}"),
                strict: Some(schema(i)),
            })
            .collect(),
        ..Rules::default()
    };
    let (_, grammars) = &*O200K;
    let conversation = Conversation::default();
    assert!(grammars.constrain(&of(4), &conversation).is_ok());
    match grammars.constrain(&of(5), &conversation) {
        Err(error) => assert_eq!(error.place, Place::Tool(4), "{error}"),
        Ok(_) => panic!("{MAX_TOOL_BYTES} bytes is the bound"),
    }
}

#[test]
fn many_at_once_share_what_is_costly() {
    let (tok, grammars) = &*O200K;
    let schema =
        json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]});
    let format = Format::JsonSchema { schema };
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let format = &format;
            scope.spawn(move || {
                let mut rng = Rng(seed);
                let babbler = Babbler::new(tok.clone(), &mut rng);
                for _ in 0..5 {
                    let mut source = grammars.raw(format).expect("a schema");
                    let walk = babbler.say(&mut *source, &Conversation::default(), 300, &mut rng);
                    assert!(walk.ids.len() > 2);
                }
            });
        }
    });
}

#[test]
fn what_was_compiled_or_refused_is_known_the_next_time() {
    let (_, grammars) = &*O200K;
    grammars.warm();
    // More tools than that no request may have.
    let of = |i: usize| {
        let properties = json!({format!("field {i}"): {"type": "string"}});
        json!({"type": "object", "properties": properties})
    };
    let tools = (0..512).map(|i| RuledTool {
        name: format!("f{i}"),
        strict: Some(of(i)),
    });
    let rules = Rules {
        tools: tools.collect(),
        ..Rules::default()
    };
    let large = Format::Lark("start: ".to_owned() + &"(\"a\" | \"b\")? ".repeat(2401));
    let took = |work: &dyn Fn() -> bool| {
        let start = Instant::now();
        assert!(work());
        start.elapsed()
    };
    let compile = || {
        let conversation = Conversation::default();
        grammars.constrain(&rules, &conversation).is_ok()
    };
    let refuse = || grammars.raw(&large).is_err();
    for work in [&compile as &dyn Fn() -> bool, &refuse] {
        let (first, again) = (took(work), took(work));
        assert!(again * 4 < first, "{again:?} after {first:?}");
    }
}
