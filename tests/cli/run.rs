//! `run`: the prompt in, the answer out, as text or as JSON.

use super::{err, fails, json, out, piped, random_model, run};
use serde_json::Value;
use std::path::Path;

#[test]
fn the_demo_model_answers_and_introduces_itself() {
    let output = run(&["run", "What is 17 + 25?"]);
    assert_eq!(out(&output), "42\n", "{}", err(&output));
    let told: Vec<&str> = err(&output).lines().collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("demo model") && told[0].contains("gossamer pull gpt-oss-20b"));
    assert!(told[0].contains("--model gpt-oss-20b"));
    assert!(told[1].contains("tok/s"));
}

#[test]
fn the_prompt_comes_from_standard_input() {
    let question = "What is 17 + 25?";
    for input in [question.to_string(), format!("{question}\n")] {
        assert_eq!(out(&piped(&["run", "-"], input.as_bytes())), "42\n");
        assert_eq!(out(&piped(&["run"], input.as_bytes())), "42\n");
    }
    let empty = piped(&["run", "-"], b"\n");
    assert_eq!(empty.status.code(), Some(2));
    // Bytes that are not UTF-8 are U+FFFD: three bytes, three tokens of this model.
    let raw = |input: &[u8]| {
        let args = [
            "run",
            "--raw",
            "--json",
            "-n",
            "1",
            "-m",
            random_model(),
            "-",
        ];
        json(&piped(&args, input))["usage"]["prompt_tokens"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(raw(b"a\xffb"), raw("a\u{fffd}b".as_bytes()));
    // Text to continue is taken as it is.
    assert_eq!(raw(b"a\n"), raw(b"a") + 1);
}

#[test]
fn json_has_the_answer_and_what_it_took() {
    let answer = json(&run(&["run", "--json", "--seed", "7", "What is 17 + 25?"]));
    assert_eq!(answer["answer"], "42");
    assert!(!answer["reasoning"].as_str().unwrap().is_empty());
    assert_eq!(answer["finish_reason"], "stop");
    assert_eq!(answer["context_full"], false);
    assert_eq!(answer["tool_calls"], Value::Array(vec![]));
    assert_eq!(answer["repairs"], 0);
    assert_eq!(answer["seed"], 7);
    let usage = &answer["usage"];
    assert!(
        usage["prompt_tokens"].as_u64() > Some(10) && usage["completion_tokens"].as_u64() > Some(2)
    );
    for time in [
        "load_s",
        "prefill_s",
        "decode_s",
        "prefill_tok_per_s",
        "decode_tok_per_s",
    ] {
        assert!(answer["timing"][time].as_f64().unwrap() > 0.0, "{time}");
    }
}

#[test]
fn a_schema_shapes_the_answer() {
    let schema = r#"{"type":"object","properties":{"answer":{"type":"integer"}},"required":["answer"],"additionalProperties":false}"#;
    let file =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("schema-{}.json", std::process::id()));
    std::fs::write(&file, schema).unwrap();
    let question = "What is 17 + 25?";
    let fits = |text: &str| {
        let value: Value = serde_json::from_str(text).expect("the answer is JSON");
        let fields = value.as_object().expect("an object");
        assert!(fields.len() == 1 && fields["answer"].is_i64(), "{text}");
    };
    for seed in ["1", "2"] {
        let args = ["run", "--seed", seed, "--json-schema"];
        let from_file = [&args[..], &[file.to_str().unwrap(), question]].concat();
        fits(out(&run(&from_file)));
        fits(out(&run(&[&args[..], &[schema, question]].concat())));
        let piped = piped(&[&args[..], &["-", question]].concat(), schema.as_bytes());
        fits(out(&piped));
        let answer = json(&run(&[&from_file[..], &["--json"]].concat()));
        fits(answer["answer"].as_str().unwrap());
        assert!(!answer["reasoning"].as_str().unwrap().is_empty());
        assert_eq!(
            (&answer["finish_reason"], &answer["repairs"]),
            (&"stop".into(), &0.into())
        );
    }
    std::fs::remove_file(file).unwrap();
    // Without a conversation the whole text has the shape, whatever the weights.
    let colours = r#"{"enum":["red","green"]}"#;
    for seed in ["1", "2", "3"] {
        let args = ["run", "-m", random_model(), "--raw", "--seed", seed];
        let output = run(&[&args[..], &["--json-schema", colours, "The"]].concat());
        let text = out(&output).trim_end();
        assert!(
            ["\"red\"", "\"green\""].contains(&text),
            "{text:?} {}",
            err(&output)
        );
    }
}

#[test]
fn a_schema_that_cannot_be_kept_is_an_error() {
    let ask = |schema| ["run", "hi", "--json-schema", schema];
    fails(
        &ask("/no/such/file"),
        1,
        &["--json-schema", "/no/such/file"],
    );
    fails(
        &ask("{\"type\": \"object\""),
        1,
        &["--json-schema", "line 1"],
    );
    fails(&ask("{\"not\": {}}"), 1, &["--json-schema", "not"]);
    fails(
        &["run", "--json-schema", "-"],
        2,
        &["--json-schema -", "prompt"],
    );
}

#[test]
fn reasoning_is_shown_on_request_and_never_on_stdout() {
    let question = ["run", "What is 17 + 25?"];
    let hidden = run(&question);
    let shown = run(&[&question[..], &["--show-reasoning"]].concat());
    assert_eq!(out(&hidden), out(&shown));
    let reasoning = json(&run(&[&question[..], &["--json"]].concat()))["reasoning"].clone();
    let reasoning = reasoning.as_str().unwrap();
    assert!(err(&shown).contains(reasoning) && !err(&hidden).contains(reasoning));
}

#[test]
fn an_answer_that_is_only_reasoning_is_not_lost() {
    let output = run(&["run", "-n", "6", "What is 17 + 25?"]);
    assert_eq!(out(&output), "");
    assert!(
        err(&output).contains("only reasoning: "),
        "{}",
        err(&output)
    );
    assert!(err(&output).contains("--max-tokens 6"), "{}", err(&output));
    let output = json(&run(&["run", "-n", "6", "--json", "What is 17 + 25?"]));
    assert_eq!(
        (&output["answer"], &output["finish_reason"]),
        (&"".into(), &"length".into())
    );
    assert_eq!(output["usage"]["completion_tokens"], 6);
}
