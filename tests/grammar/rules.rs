//! What each rule allows and forbids, token by token.

use super::{
    BYTES, O200K,
    walk::{allowed, feed, is_text},
};
use gossamer::{
    grammar::{Format, RuledTool, Rules, ToolChoice},
    harmony::{Conversation, Parser, Tool, Turn},
    sampler::MaskSource,
    tokenizer::Tokenizer,
};
use serde_json::json;

/// Ids of text with control tokens by their names.
fn ids(tok: &Tokenizer, text: &str) -> Vec<u32> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("<|") {
        let end = at + rest[at..].find("|>").expect("a whole name") + 2;
        out.extend(tok.encode(&rest[..at]));
        out.push(tok.special(&rest[at..end]).expect("a control token"));
        rest = &rest[end..];
    }
    out.extend(tok.encode(rest));
    out
}

pub fn tools(names: &[&str]) -> (Vec<RuledTool>, Conversation) {
    let ruled = |name: &&str| RuledTool {
        name: (*name).to_owned(),
        strict: None,
    };
    let tool = |name: &&str| Tool {
        name: (*name).to_owned(),
        description: None,
        parameters: None,
    };
    let conversation = Conversation {
        tools: names.iter().map(tool).collect(),
        ..Conversation::default()
    };
    (names.iter().map(ruled).collect(), conversation)
}

/// A constraint over o200k, which has to be one.
fn constrain(rules: &Rules, conversation: &Conversation) -> Box<dyn MaskSource> {
    let constraint = O200K.1.constrain(rules, conversation);
    constraint
        .expect("rules that can be kept")
        .expect("rules that constrain")
}

/// Whether the turn may begin with, or go on by, all of `text`.
pub fn may(rules: &Rules, conversation: &Conversation, text: &str) -> bool {
    let mut source = constrain(rules, conversation);
    for id in ids(&O200K.0, text) {
        if !source.mask().expect("a mask").allows(id) {
            assert!(source.accept(id).is_err(), "token {id} of {text}");
            return false;
        }
        source.accept(id).expect("what the mask allows");
    }
    true
}

/// The parsed turn of `text`.
fn parse(conversation: &Conversation, text: &str) -> Turn {
    let (tok, _) = &*O200K;
    let mut parser = Parser::new(tok.clone(), conversation.tool_names()).expect("a parser");
    parser.extend(&ids(tok, text));
    parser.finish().1
}

const ANALYSIS: &str = "<|channel|>analysis<|message|>";
pub const FINAL: &str = "<|channel|>final<|message|>";
const NEXT: &str = "<|end|><|start|>assistant";

fn schema() -> Option<Format> {
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": false
    });
    Some(Format::JsonSchema { schema })
}

fn formatted() -> Rules {
    Rules {
        format: schema(),
        ..Rules::default()
    }
}

#[test]
fn rules_that_enforce_nothing_make_no_constraint() {
    let (_, grammars) = &*BYTES;
    let (ruled, conversation) = tools(&["f"]);
    let free = [
        (Rules::default(), Conversation::default()),
        (
            Rules {
                tools: ruled.clone(),
                ..Rules::default()
            },
            conversation.clone(),
        ),
        (
            Rules {
                choice: ToolChoice::None,
                ..Rules::default()
            },
            Conversation::default(),
        ),
    ];
    for (rules, conversation) in free {
        assert!(
            grammars
                .constrain(&rules, &conversation)
                .expect("no error")
                .is_none(),
            "{rules:?}"
        );
    }
}

#[test]
fn the_analysis_is_free_and_the_answer_is_not() {
    let (tok, _) = &*O200K;
    let rules = formatted();
    let conversation = Conversation::default();
    let mut source = constrain(&rules, &conversation);
    feed(&mut *source, &ids(tok, ANALYSIS));
    let end = tok.special("<|end|>").expect("a control token");
    // LM Studio#1555, vector 19: text that looks like the answer, or like a header.
    let thoughts = [
        "{\"",
        "analysis",
        "{\"name\":\"analysis\",\"age\":0}",
        " to=functions.x final",
        "}}}]\n\n\u{feff}日本",
    ];
    for text in thoughts {
        let mask = source.mask().expect("a mask");
        for id in 0..tok.vocab_size() as u32 {
            let free = is_text(tok, id) || id == end;
            assert!(mask.allows(id) == free || tok.is_padding(id), "token {id}");
        }
        feed(&mut *source, &tok.encode(text));
    }
    // SGLang#31019, vector 10: the header of the answer can't get lost.
    feed(&mut *source, &[end]);
    for text in ["<|start|>", "assistant", "<|channel|>"] {
        let expected = ids(tok, text);
        let mask = source.mask().expect("a mask");
        assert_eq!(allowed(&mask, tok), expected, "{text}");
        feed(&mut *source, &expected);
    }
    feed(&mut *source, &ids(tok, "final<|message|>"));
    let mask = source.mask().expect("a mask");
    for &id in &allowed(&mask, tok) {
        assert_eq!(tok.token_bytes(id)[0], b'{');
    }
    feed(
        &mut *source,
        &ids(tok, "{\"name\": \"analysis\", \"age\": 3}<|return|>"),
    );
}

#[test]
fn an_answer_ends_when_its_shape_is_complete_and_only_then() {
    let rules = formatted();
    let conversation = Conversation::default();
    let whole = "{\"name\":\"a\",\"age\":1}";
    assert!(may(
        &rules,
        &conversation,
        &format!("{FINAL}{whole}<|return|>")
    ));
    let json = "<|channel|>final <|constrain|>json<|message|>";
    assert!(may(
        &rules,
        &conversation,
        &format!("{json}{whole}<|return|>")
    ));
    for cut in ["", "{", "{\"name\":\"a\"", "{\"name\":\"a\",\"age\":"] {
        assert!(
            !may(&rules, &conversation, &format!("{FINAL}{cut}<|return|>")),
            "{cut}"
        );
    }
    for end in [
        "<|end|>",
        "<|call|>",
        "<|endoftext|>",
        "<|start|>",
        " more",
        "}",
    ] {
        assert!(
            !may(&rules, &conversation, &format!("{FINAL}{whole}{end}")),
            "{end}"
        );
    }
    // A number may go on, and need not.
    assert!(may(
        &rules,
        &conversation,
        &format!("{FINAL}{{\"name\":\"a\",\"age\":10}}<|return|>")
    ));
}

#[test]
fn json_may_be_pretty_but_not_all_blanks() {
    let conversation = Conversation::default();
    let may = |text: &str| may(&formatted(), &conversation, &format!("{FINAL}{text}"));
    let pretty = "{\n  \"name\": \"a\",\n  \"age\": 1\n}<|return|>";
    for text in [
        "{\"name\": \"a\", \"age\": 1}<|return|>",
        "{ \"name\" : \"a\" , \"age\" : 1 }<|return|>",
        pretty,
    ] {
        assert!(may(text), "{text}");
    }
    for text in [
        " {",
        "\n{",
        "{\n\n\n",
        "{  ",
        &format!("{{\n{}", " ".repeat(80)),
    ] {
        assert!(!may(text), "{text:?}");
    }
    // Escapes, also of characters that need none.
    assert!(may(
        "{\"name\": \"caf\\u00e9 \\u2019 \\ud83d\\ude00 \\n \\\\\", \"age\": 1}<|return|>"
    ));
    assert!(!may("{\"name\": \"\\ud83d\""), "half a pair");
    assert!(!may("{\"name\": \"a\nb\""), "a bare line's end");
}

#[test]
fn headers_are_those_the_parser_needs_not_repair() {
    let (ruled, conversation) = tools(&["get_weather", "get_time", "web-search"]);
    let rules = Rules {
        tools: ruled,
        choice: ToolChoice::Required,
        ..Rules::default()
    };
    let to = "to=functions.web_search";
    let good = [
        format!("<|channel|>commentary {to} <|constrain|>json<|message|>{{}}<|call|>"),
        format!("<|channel|>commentary {to} json<|message|>{{}}<|call|>"),
        format!("<|channel|>commentary {to}<|message|>{{}}<|call|>"),
        format!(" {to}<|channel|>commentary <|constrain|>json<|message|>{{\"a\": [1]}}<|call|>"),
        format!(" {to}<|channel|>commentary json<|message|>{{}}<|call|>"),
        format!(" {to}<|channel|>commentary<|message|>{{}}<|call|>"),
        format!(
            "{ANALYSIS}Hm.{NEXT}<|channel|>commentary<|message|>I look.{NEXT} {to}<|channel|>commentary<|message|>{{}}<|call|>"
        ),
    ];
    for text in &good {
        assert!(may(&rules, &conversation, text), "{text}");
        let turn = parse(&conversation, text);
        assert_eq!(turn.repairs.total(), 0, "{text}: {:?}", turn.repairs);
        let calls: Vec<_> = turn.calls().collect();
        assert_eq!(calls[0].name, "web-search", "{text}");
    }
    let malformed = [
        "<|channel|>analysis to=functions.get_time code<|message|>".to_owned(),
        " to=functions.get_time<|channel|>analysis<|message|>".to_owned(),
        format!("<|channel|>commentary {to}<|constrain|>json<|message|>"),
        "<|channel|>commentary to=functions.get_timejson<|message|>".to_owned(),
        "<|channel|>commentary to=functions.unknown<|message|>".to_owned(),
        "<|channel|>commentary to=assistant".to_owned(),
        "<|channel|>?".to_owned(),
        "commentary".to_owned(),
        "<|start|>".to_owned(),
        "<|message|>".to_owned(),
        "<|constrain|>".to_owned(),
        format!(" {to}<|channel|>commentary {to}"),
        "{".to_owned(),
        "<|return|>".to_owned(),
    ];
    for text in &malformed {
        assert!(!may(&rules, &conversation, text), "{text}");
    }
}

#[test]
fn the_choice_of_tools_is_kept() {
    let (ruled, conversation) = tools(&["f", "g"]);
    let of = |choice: ToolChoice| Rules {
        tools: ruled.clone(),
        choice,
        parallel: false,
        ..Rules::default()
    };
    let call = |name: &str| {
        format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>")
    };
    let thought = format!("{ANALYSIS}x{NEXT}");
    let expected = [
        (ToolChoice::None, true, false, false),
        (ToolChoice::Auto, true, true, true),
        (ToolChoice::Required, false, true, true),
        (ToolChoice::Named("g".to_owned()), false, false, true),
    ];
    for (choice, answer, f, g) in expected {
        let rules = of(choice);
        for before in ["", &thought] {
            for (text, allowed) in [(FINAL, answer), (&call("f"), f), (&call("g"), g)] {
                let text = format!("{before}{text}");
                assert_eq!(
                    may(&rules, &conversation, &text),
                    allowed,
                    "{:?}: {text}",
                    rules.choice
                );
            }
        }
    }
    // Where a call must come, its arguments are JSON; elsewhere they are the model's.
    let text = format!("{}print(1)<|call|>", call("f"));
    assert!(may(&of(ToolChoice::Auto), &conversation, &text));
    assert!(!may(&of(ToolChoice::Required), &conversation, &text));
}

#[test]
fn several_calls_need_leave() {
    let (ruled, conversation) = tools(&["f"]);
    let call = " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{\"a\":1}";
    for parallel in [false, true] {
        let rules = Rules {
            tools: ruled.clone(),
            choice: ToolChoice::Required,
            parallel,
            ..Rules::default()
        };
        assert!(may(&rules, &conversation, &format!("{call}<|call|>")));
        let two = format!("{call}{NEXT}{call}<|call|>");
        assert_eq!(may(&rules, &conversation, &two), parallel);
        assert!(!may(&rules, &conversation, &format!("{call}{NEXT}{FINAL}")));
        if parallel {
            let turn = parse(&conversation, &two);
            assert_eq!((turn.calls().count(), turn.repairs.total()), (2, 0));
        }
    }
}

#[test]
fn strict_arguments_fit_their_own_schema_in_every_call() {
    let (mut ruled, conversation) = tools(&["f", "g"]);
    let schema = |key: &str| json!({"type": "object", "properties": {key: {"type": "integer"}}, "required": [key], "additionalProperties": false});
    ruled[0].strict = Some(schema("a"));
    ruled[1].strict = Some(schema("b"));
    let rules = Rules {
        tools: ruled,
        ..Rules::default()
    };
    let call = |name: &str, arguments: &str| {
        format!("<|channel|>commentary to=functions.{name}<|message|>{arguments}")
    };
    let (f, g) = (call("f", "{\"a\":1}"), call("g", "{\"b\":2}"));
    assert!(may(
        &rules,
        &conversation,
        &format!("{f}{NEXT}{g}{NEXT}{f}<|call|>")
    ));
    assert!(may(
        &rules,
        &conversation,
        &format!("{FINAL}Anything.<|return|>")
    ));
    for wrong in [
        call("f", "{\"b\""),
        call("g", "{}"),
        call("f", "{\"a\":1}x"),
        call("f", "<|call|>"),
    ] {
        assert!(!may(&rules, &conversation, &wrong), "{wrong}");
    }
}

#[test]
fn an_announcement_before_a_shaped_answer_must_lead_to_a_call() {
    let (ruled, conversation) = tools(&["f"]);
    let announced = format!("<|channel|>commentary<|message|>I look.{NEXT}");
    for (format, answer) in [(None, true), (schema(), false)] {
        let rules = Rules {
            format,
            tools: ruled.clone(),
            parallel: false,
            ..Rules::default()
        };
        assert!(may(&rules, &conversation, FINAL));
        assert_eq!(
            may(&rules, &conversation, &format!("{announced}{FINAL}")),
            answer
        );
        assert!(may(
            &rules,
            &conversation,
            &format!("{announced} to=functions.f<|channel|>commentary<|message|>")
        ));
    }
}

#[test]
fn thinking_ends_with_its_budget() {
    let conversation = Conversation::default();
    let (tok, _) = &*O200K;
    let of = |n: usize| Rules {
        reasoning_budget: Some(n),
        ..Rules::default()
    };
    assert!(!may(&of(0), &conversation, "<|channel|>analysis"));
    assert!(may(&of(0), &conversation, &format!("{FINAL}x<|return|>")));
    for n in [1, 5] {
        let mut source = constrain(&of(n), &conversation);
        feed(&mut *source, &ids(tok, ANALYSIS));
        let word = tok.encode(" a");
        for _ in 0..n {
            feed(&mut *source, &word);
        }
        assert_eq!(
            allowed(&source.mask().expect("a mask"), tok),
            ids(tok, "<|end|>")
        );
        assert!(source.accept(word[0]).is_err());
        feed(&mut *source, &ids(tok, &format!("{NEXT}<|channel|>")));
        let mask = source.mask().expect("a mask");
        assert_eq!(allowed(&mask, tok), tok.encode("final"));
    }
    // What one message leaves is there for the next.
    assert!(may(
        &of(2),
        &conversation,
        &format!("{ANALYSIS} a{NEXT}{ANALYSIS} a<|end|>")
    ));
    assert!(!may(
        &of(2),
        &conversation,
        &format!("{ANALYSIS} a{NEXT}{ANALYSIS} a a")
    ));
}

#[test]
fn a_turn_does_not_think_for_ever() {
    let rules = formatted();
    let conversation = Conversation::default();
    let thoughts = format!("{ANALYSIS}x{NEXT}").repeat(8);
    assert!(may(&rules, &conversation, &format!("{thoughts}{FINAL}")));
    assert!(!may(
        &rules,
        &conversation,
        &format!("{thoughts}{ANALYSIS}")
    ));
}

#[test]
fn patterns_and_grammars_shape_answers_too() {
    let conversation = Conversation::default();
    let of = |format: Format| Rules {
        format: Some(format),
        ..Rules::default()
    };
    let pattern = of(Format::Regex("(yes|no)!?".to_owned()));
    let lark = of(Format::Lark("start: (\"yes\" | \"no\") \"!\"?".to_owned()));
    for rules in [pattern, lark] {
        let may = |text: &str| may(&rules, &conversation, &format!("{FINAL}{text}"));
        assert!(may("yes<|return|>") && may("no!<|return|>"));
        assert!(!may("maybe") && !may("yes!!") && !may("<|return|>"));
    }
}

#[test]
fn a_plain_text_is_shaped_from_its_first_token() {
    let (tok, grammars) = &*O200K;
    let format = schema().expect("a schema");
    for end in ["<|return|>", "<|endoftext|>"] {
        let mut source = grammars.raw(&format).expect("a schema");
        assert!(!source.mask().expect("a mask").allows(ids(tok, end)[0]));
        feed(&mut *source, &ids(tok, "{\"name\":\"é\",\"age\":-4}"));
        feed(&mut *source, &ids(tok, end));
    }
}

#[test]
fn copies_of_a_constraint_go_their_own_ways() {
    let (tok, grammars) = &*O200K;
    let rules = formatted();
    let turn = grammars.constrain(&rules, &Conversation::default());
    let mut turn = turn.expect("a schema").expect("a constraint");
    let mut plain = grammars
        .raw(&schema().expect("a schema"))
        .expect("a schema");
    feed(&mut *turn, &ids(tok, FINAL));
    for begun in [&mut turn, &mut plain] {
        let mut fresh = begun.clone();
        feed(&mut **begun, &ids(tok, "{\"name\":\"é\""));
        let mut other = begun.clone();
        feed(
            &mut *fresh,
            &ids(tok, "{\"name\":\"x\",\"age\":5}<|return|>"),
        );
        feed(&mut **begun, &ids(tok, ",\"age\":1"));
        feed(&mut *other, &ids(tok, ",\"age\":22}<|return|>"));
        feed(&mut **begun, &ids(tok, "}<|return|>"));
    }
}
