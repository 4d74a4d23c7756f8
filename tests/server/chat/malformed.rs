//! Malformed turns: every one is an answer, and nothing of it is lost.

use super::{ask, both, functions, says, short, whole};
use crate::{
    scripted::{demo, marked},
    support::Client,
    turn::{Told, events},
};
use gossamer::{engine::FinishReason, server::Settings};
use serde_json::json;

#[tokio::test]
async fn malformed_turns_are_answers() {
    // Reported turns; what must become of each: reasoning, content, calls, finish.
    let a = "<|start|>assistant";
    let think = "<|channel|>analysis<|message|>Hm.<|end|>";
    let cases: Vec<(String, [&str; 4])> = vec![
        (r#"<|channel|>analysis to=functions.ffgrep code<|message|>{"path":"","pattern":"X"}<|call|>"#.into(),
            ["-", "-", r#"ffgrep({"path":"","pattern":"X"})"#, "tool_calls"]),
        (r#" to=functions.f<|channel|>analysis<|message|>{"a":1}<|call|>"#.into(), ["-", "-", r#"f({"a":1})"#, "tool_calls"]),
        (r#"<|channel|>analysis to=functions.f<|message|>{"a":1}<|call|>"#.into(), ["-", "-", r#"f({"a":1})"#, "tool_calls"]),
        (r#"<|channel|>commentary to=functions.f<|constrain|>json<|message|>{"a":1}<|call|>"#.into(), ["-", "-", r#"f({"a":1})"#, "tool_calls"]),
        (r#" to=functions.f<|channel|>commentary json<|message|>{"a":1}<|call|>"#.into(), ["-", "-", r#"f({"a":1})"#, "tool_calls"]),
        (r#"<|channel|>commentary to=functions.shelljson<|message|>{"a":1}<|call|>"#.into(), ["-", "-", r#"shell({"a":1})"#, "tool_calls"]),
        (format!("<|channel|>commentary to=assistant<|channel|>analysis<|message|>I'm thinking<|end|>{a}<|channel|>final<|message|>Hi<|return|>"),
            ["I'm thinking", "Hi", "", "stop"]),
        ("<|channel|>commentary to=assistant<|channel|>final<|message|>Hi<|return|>".into(), ["-", "Hi", "", "stop"]),
        (format!("<|channel|>commentary 2?<|end|>{a}{think}{a}<|channel|>final<|message|>Hi<|return|>"), ["Hm.", "Hi", "", "stop"]),
        (r#"<|channel|>final {"answer":1}<|return|>"#.into(), ["-", r#"{"answer":1}"#, "", "stop"]),
        ("<|channel|>final__HANDOFF__<|return|>".into(), ["-", "__HANDOFF__", "", "stop"]),
        ("bare text, no markup<|return|>".into(), ["-", "bare text, no markup", "", "stop"]),
        (r#"{"bare": "JSON"}<|return|>"#.into(), ["-", r#"{"bare": "JSON"}"#, "", "stop"]),
        (r#"<|channel|>analysis<|message|>r<|end|>{"country":"France"}<|return|>"#.into(), ["r", r#"{"country":"France"}"#, "", "stop"]),
        ("<|start|><|start|>assistant<|channel|>final<|message|>Hi<|return|>".into(), ["-", "Hi", "", "stop"]),
        (format!("{think} 364 {a}<|channel|>final<|message|>Hi<|return|>"), ["Hm.", "Hi", "", "stop"]),
        ("<|channel|><|message|>Hi<|return|>".into(), ["-", "Hi", "", "stop"]),
        (format!("<|constrain|>write: edit file with content.<|end|>{a}<|channel|>final<|message|>Hi<|return|>"), ["-", "write: edit file with content.\n\nHi", "", "stop"]),
        (" to=functions.web-browsing<|channel|>commentary to=functions.web-browsing<|message|>{}<|call|>".into(), ["-", "-", "web-browsing({})", "tool_calls"]),
        (" to=functions.f<|constrain|>json<|channel|>commentary<|message|>{}<|call|>".into(), ["-", "-", "f({})", "tool_calls"]),
        (r#"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":{"b":1}<|call|>"#.into(), ["-", "-", r#"f({"a":{"b":1})"#, "tool_calls"]),
        ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>import os\nprint(1)<|call|>".into(), ["-", "-", "f(import os\nprint(1))", "tool_calls"]),
        (r#"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}]<|call|>"#.into(), ["-", "-", r#"f({"a":1}])"#, "tool_calls"]),
        (format!("{think}{a}<|channel|>commentary<|message|>Let me see.<|end|>{a} to=functions.f<|channel|>commentary<|message|>{{}}<|end|>{a} to=functions.shell<|channel|>commentary<|message|>[]<|call|>"),
            ["Hm.", "Let me see.", "f({}) shell([])", "tool_calls"]),
        (" to=container.exec<|channel|>commentary<|message|>python3 -c 1<|call|>".into(), ["-", "python3 -c 1", "", "stop"]),
        ("<|channel|>commentary to=python <|constrain|>code<|message|>print(1)<|call|>".into(), ["-", "print(1)", "", "stop"]),
        ("<|return|>".into(), ["-", "-", "", "stop"]),
        ("<|channel|>analysis<|message|>Hm.<|return|>".into(), ["Hm.", "-", "", "stop"]),
        (format!("<|start|>user<|message|>And you?<|end|>{a}<|channel|>final<|message|>Hi<|return|>"), ["-", "And you?\n\nHi", "", "stop"]),
    ];
    let tools = functions(&["f", "ffgrep", "shell", "web-browsing"]);
    for (text, expected) in cases {
        let client = says(&text, FinishReason::Stop);
        let response = both(&client, &ask(json!({"tools": tools}))).await;
        assert_eq!(short(&response), expected, "{text}");
        // A turn that ended by itself has a content unless it calls.
        let message = &response["choices"][0]["message"];
        assert_eq!(
            message["content"].is_string(),
            expected[1] != "-" || expected[3] == "stop"
        );
        // The same turn cut short anywhere is an answer too, and says that it was cut.
        let (_, tok) = demo();
        let ids = marked(&tok, &text);
        for cut in 0..ids.len() {
            let ids = ids[..cut].to_vec();
            let heard = ids.clone();
            let told =
                Told::new(move |asked| events(&heard, asked.tokens.len(), FinishReason::Length));
            let client = Client::new(told.app(Settings::default()));
            let response = whole(&client, &ask(json!({"tools": tools}))).await;
            let [reasoning, content, calls, finish] = short(&response);
            assert_eq!(finish, "length");
            let said = [&reasoning, &content, &calls].map(String::as_str).concat();
            assert!(!said.contains("<|"), "{text} cut at {cut}: {said}");
            // What stood in a message by then is there.
            let so_far = tok.decode(&ids);
            let so_far = String::from_utf8_lossy(&so_far);
            for message in so_far.split("<|message|>").skip(1) {
                let body = message.split("<|").next().unwrap_or_default();
                assert!(
                    said.contains(body),
                    "{text} cut at {cut} lacks {body}: {said}"
                );
            }
        }
    }
}

#[tokio::test]
async fn characters_split_over_tokens_arrive_whole() {
    let (_, tok) = demo();
    let byte = |b: u8| (0..tok.vocab_size() as u32).find(|&id| tok.token_bytes(id) == [b]);
    let mut ids = marked(&tok, "<|channel|>final<|message|>");
    ids.extend("né 🧵".bytes().map(|b| byte(b).expect("a byte's token")));
    ids.extend(byte(0xF0));
    let told = Told::new(move |asked| events(&ids, asked.tokens.len(), FinishReason::Length));
    let client = Client::new(told.app(Settings::default()));
    let response = both(&client, &ask(json!({"logprobs": true}))).await;
    assert_eq!(short(&response)[1], "né 🧵\u{FFFD}");
    // Every byte has its token, the cut one too.
    let tokens = response["choices"][0]["logprobs"]["content"]
        .as_array()
        .expect("tokens");
    assert_eq!(tokens.len(), "né 🧵".len() + 1);
    assert_eq!(tokens[1]["bytes"], json!([0xC3]));
}
