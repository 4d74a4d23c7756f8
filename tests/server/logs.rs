//! What `gossamer serve` writes on stderr, for people and for programs.

use super::program::Program;
use serde_json::{Value, json};

/// Requests that leave traces: one whose handler says something, one whose stream does, and one with
/// more choices than run at once.
fn ask(program: &Program) {
    let hi = json!([{"role": "user", "content": "What is 17 + 25?"}]);
    let tools = json!([{"type": "of_tomorrow"}]);
    let body = json!({"messages": hi, "tools": tools});
    let (status, text) = program.post_as("told-1", "/v1/chat/completions", &body);
    assert_eq!(status, 200, "{text}");
    // Without an answer after the reasoning: an empty one, of which the log tells at the end.
    let body = json!({
        "prompt": "Hello", "n": 5, "max_tokens": 3, "stream": true, "temperature": 1,
        "logit_bias": super::serve::no_end(),
    });
    let (status, text) = program.post_as("many-1", "/v1/completions", &body);
    assert_eq!(status, 200, "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(program.get("/nothing").0, 404);
}

#[test]
fn json_lines_are_json_and_name_their_request() {
    let program = Program::start(&["--log-format", "json", "--max-seqs", "2"]);
    ask(&program);
    let lines: Vec<Value> = program
        .end()
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let find = |what: &str, is: &dyn Fn(&Value) -> bool| {
        let found: Vec<&Value> = lines.iter().filter(|line| is(line)).collect();
        assert_eq!(found.len(), 1, "{what}: {found:?} of {lines:#?}");
        found[0].clone()
    };
    let says = |text: &'static str| {
        move |line: &Value| {
            let message = line["message"].as_str();
            message.is_some_and(|message| message.contains(text))
        }
    };
    for text in ["demo model", "listening on", "ready; ", "stopping"] {
        assert_eq!(find(text, &says(text))["level"], "INFO");
    }
    let told = find("a tool left out", &says("a tool of a type"));
    assert_eq!(told["span"]["id"], "told-1", "{told}");
    let line = |id: &'static str| {
        move |line: &Value| line["target"] == "gossamer::request" && line["id"] == id
    };
    let answered = find("told-1", &line("told-1"));
    assert_eq!(answered["status"], 200);
    assert_eq!(answered["path"], "/v1/chat/completions");
    assert!(answered["completion"].as_u64() > Some(0), "{answered}");
    // All five choices are counted, also those that began while the answer was sent.
    let many = find("many-1", &line("many-1"));
    assert_eq!(many["completion"], 15, "{many}");
    assert_eq!(many["prompt"].as_u64().map(|tokens| tokens % 5), Some(0));
    find("the 404", &|line| line["status"] == 404);
}

#[test]
fn text_is_plain_where_no_terminal_is() {
    let program = Program::start(&[]);
    ask(&program);
    let lines = program.end();
    assert!(
        lines.iter().all(|line| !line.contains('\u{1b}')),
        "{lines:#?}"
    );
    let told = lines.iter().find(|line| line.contains("a tool of a type"));
    assert!(
        told.is_some_and(|line| line.contains("told-1")),
        "{lines:#?}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("listening on http")),
        "{lines:#?}"
    );
}
