//! Constrained turns: what is enforced holds in every turn of a model that says anything, as judged by
//! PyPI's `jsonschema` and our own parser; what is not enforced stays free; nothing a client sends
//! takes long or much memory.

#[path = "../common/mod.rs"]
mod common;
mod demo;
mod hostile;
mod random;
mod refusals;
mod rules;
mod walk;

use common::{fresh_seed, tool};
use gossamer::{
    grammar::{Format, Grammars, Rules, ToolChoice},
    harmony::{Channel, Conversation, Part, Turn},
    tokenizer::{Tokenizer, Vocabulary},
};
use random::{LARK_AS_REGEX, Rng};
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};
use walk::{Babbler, Walk};

/// The full vocabulary.
static O200K: LazyLock<(Arc<Tokenizer>, Grammars)> =
    LazyLock::new(|| of(Vocabulary::o200k_harmony().expect("the asset")));
/// Single bytes: every boundary is a token's.
static BYTES: LazyLock<(Arc<Tokenizer>, Grammars)> = LazyLock::new(|| of(Vocabulary::bytes()));

fn of(vocabulary: Vocabulary) -> (Arc<Tokenizer>, Grammars) {
    let tok = Arc::new(vocabulary.tokenizer().expect("a tokenizer"));
    (tok.clone(), Grammars::new(tok))
}

/// Fails unless every case fits: `{"schema" | "regex", "text"}`.
fn judge(cases: &[Value]) {
    let folder = tempfile::tempdir().expect("a folder");
    let (request, answer) = (folder.path().join("cases"), folder.path().join("answers"));
    let lines: Vec<String> = cases.iter().map(Value::to_string).collect();
    std::fs::write(&request, lines.join("\n")).expect("written");
    tool("judge_schema.py", &[&request, &answer]);
    let answers = std::fs::read_to_string(&answer).expect("answers");
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers.len(), cases.len());
    let wrong = cases
        .iter()
        .zip(&answers)
        .filter(|(_, answer)| **answer != "null");
    let wrong: Vec<String> = wrong
        .map(|(case, answer)| format!("{answer}\n  {case}"))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
}

#[test]
fn the_judge_finds_what_does_not_fit() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "maximum": 5}}});
    let wrong = [
        json!({"schema": schema, "text": "{\"a\": 6}"}),
        json!({"schema": schema, "text": "{\"a\": 5"}),
        json!({"schema": schema, "text": ""}),
        json!({"schema": {"type": "number"}, "text": "NaN"}),
        json!({"regex": "a+", "text": "aab"}),
    ];
    for case in wrong {
        let found = std::panic::catch_unwind(|| judge(std::slice::from_ref(&case)));
        assert!(found.is_err(), "{case}");
    }
    judge(&[
        json!({"schema": schema, "text": "{\"a\": 5}"}),
        json!({"regex": "a+", "text": "aa"}),
    ]);
}

/// The case for a text of `format`.
fn case(format: &Format, text: &str) -> Value {
    match format {
        Format::JsonObject => json!({"schema": {"type": "object"}, "text": text}),
        Format::JsonSchema { schema } => json!({"schema": schema, "text": text}),
        Format::Regex(pattern) => json!({"regex": pattern, "text": text}),
        Format::Lark(_) => json!({"regex": LARK_AS_REGEX, "text": text}),
    }
}

/// Checks a turn against its rules; what the judge has to see goes to `cases`.
fn check(
    walk: &Walk,
    tok: &Tokenizer,
    rules: &Rules,
    conversation: &Conversation,
    cases: &mut Vec<Value>,
) {
    let turn: &Turn = &walk.turn;
    let told = || {
        format!(
            "{rules:?}\n{:?}",
            String::from_utf8_lossy(&tok.decode(&walk.ids))
        )
    };
    assert_eq!(turn.repairs.total(), 0, "{:?}\n{}", turn.repairs, told());
    assert!(!turn.parts.contains(&Part::Foreign), "{}", told());
    if let Some(budget) = rules.reasoning_budget {
        assert!(turn.reasoning_tokens() <= budget, "{}", told());
        assert!(
            budget > 0 || !turn.parts.contains(&Part::Reasoning),
            "{}",
            told()
        );
    }
    let calls: Vec<_> = turn.calls().collect();
    let most = if rules.parallel { 32 } else { 1 };
    assert!(calls.len() <= most, "{}", told());
    for call in &calls {
        let function = rules.tools.iter().find(|tool| tool.name == call.name);
        match &rules.choice {
            ToolChoice::None => panic!("a call: {}", told()),
            ToolChoice::Named(name) => assert_eq!(call.name, name),
            _ => assert!(
                function.is_some() || !conversation.builtins.is_empty(),
                "{}",
                told()
            ),
        }
    }
    if !walk.complete {
        return;
    }
    assert!(
        !calls.is_empty() || !rules.choice.requires(),
        "no call: {}",
        told()
    );
    for call in &calls {
        let function = rules.tools.iter().find(|tool| tool.name == call.name);
        match function.map(|function| &function.strict) {
            Some(Some(schema)) => cases.push(json!({"schema": schema, "text": call.arguments})),
            Some(None) if rules.choice.requires() => {
                cases.push(case(&Format::JsonObject, call.arguments))
            }
            _ => {}
        }
    }
    let answered = turn
        .messages
        .iter()
        .any(|message| message.channel == Some(Channel::Final));
    assert_ne!(
        answered,
        !calls.is_empty(),
        "an answer or calls: {}",
        told()
    );
    if answered {
        // What the grammar accepted is what the client reads.
        let text = turn.answer();
        let bytes = walk::last_text(tok, &walk.ids);
        match &rules.format {
            None => assert_eq!(text, String::from_utf8_lossy(&bytes)),
            Some(format) => {
                assert_eq!(text.as_bytes(), bytes, "{}", told());
                assert_eq!(text, turn.text(), "nothing before it: {}", told());
                cases.push(case(format, &text));
            }
        }
    }
}

/// `turns` random turns under random rules; at least four in five come to their end.
fn babble((tok, grammars): &(Arc<Tokenizer>, Grammars), turns: usize, most: usize) {
    let mut rng = Rng(fresh_seed());
    let babbler = Babbler::new(tok.clone(), &mut rng);
    let (mut constrained, mut complete) = (0, 0);
    let mut cases = Vec::new();
    while constrained < turns {
        let (rules, conversation) = rng.rules();
        let constraint = grammars.constrain(&rules, &conversation);
        let constraint = constraint.unwrap_or_else(|e| panic!("{e}: {rules:?}"));
        let Some(mut constraint) = constraint else {
            continue;
        };
        constrained += 1;
        let walk = babbler.say(&mut *constraint, &conversation, most, &mut rng);
        check(&walk, tok, &rules, &conversation, &mut cases);
        complete += usize::from(walk.complete);
    }
    println!(
        "{complete} of {turns} turns complete, {} texts judged",
        cases.len()
    );
    assert!(complete * 5 >= turns * 4, "{complete} of {turns}");
    assert!(cases.len() * 2 >= turns);
    judge(&cases);
}

#[test]
fn random_turns_of_single_bytes_keep_their_rules() {
    babble(&BYTES, 700, 1500);
}

#[test]
fn random_turns_of_o200k_keep_their_rules() {
    babble(&O200K, 300, 400);
}

#[test]
fn random_texts_keep_their_shape() {
    let (tok, grammars) = &*BYTES;
    let mut rng = Rng(fresh_seed());
    let babbler = Babbler::new(tok.clone(), &mut rng);
    let mut cases = Vec::new();
    for _ in 0..200 {
        let schema = rng.root_schema();
        let format = Format::JsonSchema { schema };
        let mut source = grammars.raw(&format).expect("a schema");
        let walk = babbler.say(&mut *source, &Conversation::default(), 1000, &mut rng);
        if walk.complete {
            let text = tok.decode(&walk.ids[..walk.ids.len() - 1]);
            let text = String::from_utf8(text).expect("text");
            cases.push(case(&format, &text));
        }
    }
    assert!(cases.len() > 150, "{} complete", cases.len());
    judge(&cases);
}
