//! What gpt-oss has been seen to write for headers (groups 1 to 8), and what it must become.
//!
//! One test per group of reports. An expected message is `part | channel | recipient | text`; the
//! repairs are listed one by one, in the order of [`Repair`]. Every case also passes the checks of
//! [`super::support::parse`].

use super::case::{THINK, given};
use super::support::ids;
use gossamer::harmony::{
    Ending,
    Repair::{self, *},
};

#[test]
fn group_01_call_on_analysis_with_type_code() {
    given(r#"<|channel|>analysis to=functions.ffgrep code<|message|>{"path":"","pattern":"X"}<|call|>"#)
        .gives(
            &[r#"call ffgrep | analysis | functions.ffgrep | {"path":"","pattern":"X"}"#],
            Ending::Call,
            &[],
        );
}

#[test]
fn group_02_recipient_on_role_or_channel() {
    for input in [
        r#" to=functions.f<|channel|>analysis<|message|>{"a":1}"#,
        r#"<|channel|>analysis to=functions.f<|message|>{"a":1}"#,
    ] {
        given(input).gives(
            &[r#"call f | analysis | functions.f | {"a":1}"#],
            Ending::Open,
            &[],
        );
    }
    // On every channel, and by the bare name.
    for channel in ["analysis", "commentary", "final"] {
        for to in ["functions.f", "f"] {
            for header in [
                format!(" to={to}<|channel|>{channel}"),
                format!("<|channel|>{channel} to={to}"),
            ] {
                given(&format!("{header}<|message|>{{}}<|call|>")).gives(
                    &[&format!("call f | {channel} | {to} | {{}}")],
                    Ending::Call,
                    &[],
                );
            }
        }
    }
    given("<|channel|>commentary functions.f json<|message|>{}<|call|>").gives(
        &["call f | commentary | functions.f | {}"],
        Ending::Call,
        &[Recipient],
    );
}

#[test]
fn group_03_glued_constrain_and_bare_type() {
    for (input, content_type) in [
        (
            "<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>",
            "<|constrain|>json",
        ),
        (
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
            "<|constrain|>json",
        ),
        (
            " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
            "<|constrain|>json",
        ),
        (
            " to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
            "json",
        ),
        (
            "<|channel|>commentary to=functions.f json<|message|>{}<|call|>",
            "json",
        ),
        (
            "<|channel|>commentary to=functions.f code<|message|>{}<|call|>",
            "code",
        ),
    ] {
        let turn = given(input).gives(
            &["call f | commentary | functions.f | {}"],
            Ending::Call,
            &[],
        );
        assert_eq!(turn.messages[0].content_type.as_deref(), Some(content_type));
    }
}

#[test]
fn group_04_json_glued_to_the_name() {
    let input = r#"<|channel|>commentary to=functions.shelljson<|message|>{"cmd":"ls"}<|call|>"#;
    let shell = [r#"call shell | commentary | functions.shell | {"cmd":"ls"}"#];
    given(input).gives(&shell, Ending::Call, &[Recipient]);
    // A declared name is left alone.
    given(input).functions(&["shell", "shelljson"]).gives(
        &[r#"call shelljson | commentary | functions.shelljson | {"cmd":"ls"}"#],
        Ending::Call,
        &[],
    );
    // So is one that only ends like it.
    given("<|channel|>commentary to=functions.parse_json<|message|>{}<|call|>").gives(
        &["call parse_json | commentary | functions.parse_json | {}"],
        Ending::Call,
        &[],
    );
}

#[test]
fn group_05_to_assistant_and_a_second_channel() {
    given("<|channel|>commentary to=assistant<|channel|>analysis<|message|>I'm thinking<|end|><|start|>assistant<|channel|>final<|message|>Hi")
        .gives(
            &["reasoning | analysis | - | I'm thinking", "text | final | - | Hi"],
            Ending::Open,
            &[Repeated, Recipient],
        );
    given("<|channel|>commentary to=assistant<|channel|>final<|message|>Hi<|return|>").gives(
        &["text | final | - | Hi"],
        Ending::Return,
        &[Repeated, Recipient],
    );
    given(&format!("{THINK}<|start|>assistant<|channel|>commentary to=assistant<|channel|>final<|message|>Hi<|return|>"))
        .gives(
            &["reasoning | analysis | - | Hm.", "text | final | - | Hi"],
            Ending::Return,
            &[Repeated, Recipient],
        );
    given(" to=assistant<|channel|>final<|message|>Hi<|return|>").gives(
        &["text | final | - | Hi"],
        Ending::Return,
        &[Recipient],
    );
}

#[test]
fn group_06_nonsense_for_a_channel() {
    let good = "<|end|><|start|>assistant<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>";
    let answer = ["reasoning | analysis | - | Hm.", "text | final | - | Hi"];
    // The header is given up: junk, then a good start.
    for junk in [
        "??",
        "commentary?",
        "commentary 2?",
        "commentary?commentary?",
        "analysis?",
    ] {
        given(&format!("<|channel|>{junk}{good}")).gives(
            &answer,
            Ending::Return,
            &[MissingMessage, Junk],
        );
    }
    // The same before text.
    for (junk, channel) in [
        ("??", "final"),
        ("commentary?", "commentary"),
        ("commentary 2?", "commentary"),
        ("commentary?commentary?", "commentary"),
        ("final?", "final"),
    ] {
        let repairs: &[Repair] = match junk {
            "??" => &[MissingChannel, Junk],
            _ => &[Junk],
        };
        given(&format!("<|channel|>{junk}<|message|>Hi<|return|>")).gives(
            &[&format!("text | {channel} | - | Hi")],
            Ending::Return,
            repairs,
        );
    }
    // Where nothing else comes it is the answer.
    given("<|channel|>??<|return|>").gives(
        &["text | final | - | ??"],
        Ending::Return,
        &[MissingHeader],
    );
    given("<|channel|>commentary 2?<|return|>").gives(
        &["text | commentary | - | 2?"],
        Ending::Return,
        &[MissingMessage],
    );
    // Free text is never lost.
    given(&format!("<|channel|>Let me see what the user wants.{good}")).gives(
        &[
            "text | final | - | Let me see what the user wants.",
            answer[0],
            answer[1],
        ],
        Ending::Return,
        &[MissingHeader],
    );
    given("<|channel|>Paris is the capital.<|return|>").gives(
        &["text | final | - | Paris is the capital."],
        Ending::Return,
        &[MissingHeader],
    );
    given("<|channel|>Paris<|return|>").gives(
        &["text | final | - | Paris"],
        Ending::Return,
        &[MissingHeader],
    );
    given("<|channel|>commentary? I will look it up.<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>")
        .gives(
            &["text | commentary | - | ? I will look it up.", "text | final | - | Hi"],
            Ending::Return,
            &[MissingMessage],
        );
    given("<|channel|>thought<|message|>Hi<|return|>").gives(
        &["text | final | - | Hi"],
        Ending::Return,
        &[UnknownChannel],
    );
}

#[test]
fn group_07_to_assistant_then_nonsense() {
    given("<|channel|>commentary to=assistant<|channel|>commentary?<|message|>Hi<|return|>").gives(
        &["text | commentary | - | Hi"],
        Ending::Return,
        &[Repeated, Recipient, Junk],
    );
    given("<|channel|>commentary to=assistant<|channel|>commentary?<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>")
        .gives(
            &["text | final | - | Hi"],
            Ending::Return,
            &[MissingMessage, Repeated, Recipient, Junk],
        );
    // Dashes before the channel's name, after the marker or in its place.
    given("<|channel|>––commentary<|message|>Hi<|return|>").gives(
        &["text | commentary | - | Hi"],
        Ending::Return,
        &[Junk],
    );
    given("––commentary<|message|>Hi<|return|>").gives(
        &["text | commentary | - | Hi"],
        Ending::Return,
        &[MissingChannel, Junk],
    );
    given("<|channel|>commentary to=functions.f ––commentary<|message|>{}<|call|>").gives(
        &["call f | commentary | functions.f | {}"],
        Ending::Call,
        &[Junk],
    );
    given("<|channel|>commentary to=functions.f––commentary<|message|>{}<|call|>").gives(
        &["call f | commentary | functions.f | {}"],
        Ending::Call,
        &[Junk],
    );
}

#[test]
fn group_08_no_message_marker() {
    given(r#"<|channel|>final {"answer":1}<|return|>"#).gives(
        &[r#"text | final | - | {"answer":1}"#],
        Ending::Return,
        &[MissingMessage],
    );
    let handoff = vec![200005, 17196, 771, 157262, 41265, 771, 200002];
    assert_eq!(handoff, ids("<|channel|>final__HANDOFF__<|return|>"));
    given("<|channel|>final__HANDOFF__<|return|>").gives(
        &["text | final | - | __HANDOFF__"],
        Ending::Return,
        &[MissingMessage],
    );
    for (text, shown) in [
        (" 42", "42"),
        (" The answer is 42.", "The answer is 42."),
        ("The answer is 42.", "The answer is 42."),
        ("\n\n# Title\n", "# Title\n"),
        (" Paris", "Paris"),
        (" code is law", "code is law"),
        (" [1, 2]", "[1, 2]"),
        (" 👍", "👍"),
    ] {
        given(&format!("<|channel|>final{text}<|return|>")).gives(
            &[&format!("text | final | - | {shown}")],
            Ending::Return,
            &[MissingMessage],
        );
        given(&format!("<|channel|>final{text}")).gives(
            &[&format!("text | final | - | {shown}")],
            Ending::Open,
            &[MissingMessage],
        );
    }
    given("<|channel|>analysisThe user wants a joke.<|end|><|start|>assistant<|channel|>final<|message|>Ha<|return|>")
        .gives(
            &["reasoning | analysis | - | The user wants a joke.", "text | final | - | Ha"],
            Ending::Return,
            &[MissingMessage],
        );
    given(r#"<|channel|>commentary to=functions.f <|constrain|>json{"a":1}<|call|>"#).gives(
        &[r#"call f | commentary | functions.f | {"a":1}"#],
        Ending::Call,
        &[MissingMessage],
    );
    given(r#" to=functions.f<|channel|>commentary {"a":1}<|call|>"#).gives(
        &[r#"call f | commentary | functions.f | {"a":1}"#],
        Ending::Call,
        &[MissingMessage],
    );
    // A call without arguments is a call; a header cut by the end of output is not.
    given("<|channel|>commentary to=functions.f<|call|>").gives(
        &["call f | commentary | functions.f | "],
        Ending::Call,
        &[MissingMessage],
    );
    given("<|channel|>commentary to=functions.f").gives(&[], Ending::Open, &[]);
    given("<|channel|>ana").gives(&[], Ending::Open, &[]);
}
