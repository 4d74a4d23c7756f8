//! The program as people and scripts use it: exit codes, streams, JSON, seeds, stops, interrupts.

use serde_json::Value;
use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

fn gossamer(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gossamer"));
    command.args(args).stdin(Stdio::null());
    // Nothing pulled on this machine may answer for a name.
    command.env("HF_HUB_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command.env("NO_COLOR", "1");
    command
}

fn run(args: &[&str]) -> Output {
    gossamer(args).output().expect("the program starts")
}

fn piped(args: &[&str], input: &[u8]) -> Output {
    let mut command = gossamer(args);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("stdout is UTF-8")
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("stderr is UTF-8")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", err(output));
    serde_json::from_slice(&output.stdout).expect("stdout is JSON")
}

/// A model of random weights whose tokens are bytes: its answers are long and mean nothing.
fn random_model() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{}.gguf", std::process::id()));
        let made = run(&[
            "synth",
            path.to_str().unwrap(),
            "--preset",
            "tiny",
            "--seed",
            "3",
        ]);
        assert!(made.status.success(), "{}", err(&made));
        path
    });
    path.to_str().unwrap()
}

/// Fails unless the program exits with `code` after one line `error: …` with all of `words` in it.
fn fails(args: &[&str], code: i32, words: &[&str]) {
    let output = run(args);
    let text = err(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(
        output.stdout.is_empty(),
        "{args:?} prints {:?}",
        out(&output)
    );
    for word in words {
        assert!(
            text.contains(word),
            "{args:?} does not say {word:?}: {text}"
        );
    }
    assert!(
        text.contains("error: ") && !text.contains("panicked"),
        "{text}"
    );
    if code == 1 {
        let errors = text
            .lines()
            .filter(|line| !line.starts_with("This is the small demo"));
        assert_eq!(errors.count(), 1, "{args:?}: {text}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_names_the_flag() {
    fails(&["run", "--no-such-flag", "hi"], 2, &["--no-such-flag"]);
    fails(&["fly"], 2, &["fly"]);
    for (flag, value) in [
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--temperature", "-1"),
        ("--temperature", "NaN"),
        ("--min-p", "2"),
        ("--repetition-penalty", "0"),
        ("--presence-penalty", "3"),
        ("--frequency-penalty", "-3"),
        ("--logit-bias", "5"),
        ("--max-tokens", "0"),
        ("--ctx-size", "0"),
        ("--kv-type", "q8_0"),
        ("--reasoning", "some"),
        ("--date", "2026-13-01"),
        ("--seed", "x"),
        ("--threads", "100000"),
    ] {
        let flag_and_value = format!("{flag}={value}");
        fails(&["run", &flag_and_value, "hi"], 2, &[flag]);
    }
    fails(
        &["run", "--logit-bias", "1=101", "hi"],
        2,
        &["--logit-bias", "100"],
    );
    fails(&["run", ""], 2, &["prompt is empty"]);
    fails(
        &["run", "--raw", "--system", "x", "hi"],
        2,
        &["--raw", "--system"],
    );
    fails(
        &["run", "--ctx-size", "999999999", "hi"],
        2,
        &["--ctx-size", "131072"],
    );
    fails(
        &["bench", "--ctx-size", "100", "-p", "512"],
        2,
        &["--ctx-size", "512"],
    );
}

#[test]
fn errors_exit_with_1_and_one_line() {
    fails(
        &["run", "-m", "/nowhere/x.gguf", "hi"],
        1,
        &["/nowhere/x.gguf", "no such file"],
    );
    fails(
        &["run", "-m", "gpt-oss-20b", "hi"],
        1,
        &["gossamer pull gpt-oss-20b"],
    );
    fails(&["run", "-m", file!(), "hi"], 1, &[file!()]);
    fails(&["run", "--backend", "abacus", "hi"], 1, &["abacus"]);
    // Without the feature, without a driver, or without such a GPU.
    fails(
        &["run", "--backend", "cuda:4000", "hi"],
        1,
        &[
            "CUDA",
            if cfg!(feature = "cuda") {
                "CUDA: "
            } else {
                "--features cuda"
            },
        ],
    );
    fails(
        &["run", "--system", "@/nowhere", "hi"],
        1,
        &["--system @/nowhere"],
    );
    fails(
        &["run", "--logit-bias", "99999999=1", "hi"],
        1,
        &["logit_bias", "99999999"],
    );
    fails(
        &["run", "--ctx-size", "1", "hi"],
        1,
        &["context of 1 tokens", "--ctx-size"],
    );
    let long = "word ".repeat(300);
    fails(
        &["run", "--ctx-size", "64", &long],
        1,
        &["context holds 64", "--ctx-size"],
    );
}

#[test]
fn help_teaches() {
    assert_eq!(run(&[]).status.code(), Some(2));
    let help = run(&["--help"]);
    assert!(help.status.success());
    for command in ["run", "chat", "bench"] {
        assert!(out(&help).contains(command));
        let help = run(&[command, "--help"]);
        assert!(help.status.success());
        assert!(out(&help).contains("Examples:"), "{}", out(&help));
        assert!(out(&help).contains("--ctx-size"));
    }
}

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

/// What keeps the random model from ending its answer: its tokens from 256 on are specials.
fn no_specials() -> Vec<String> {
    (256..288)
        .map(|id| format!("--logit-bias={id}=-100"))
        .collect()
}

/// Arguments for the random model to go on with a fixed prompt.
fn random_args(more: &[&str]) -> Vec<String> {
    let args = ["run", "--raw", "-m", random_model(), "Once upon a time"];
    let args = args.iter().chain(more).map(|arg| arg.to_string());
    args.chain(no_specials()).collect()
}

/// The random model's answer to a fixed prompt.
fn random_answer(more: &[&str]) -> Value {
    let args = random_args(&[&["--json", "-n", "60"], more].concat());
    json(&run(&args.iter().map(String::as_str).collect::<Vec<_>>()))
}

#[test]
fn a_seed_gives_the_same_answer_on_any_number_of_threads() {
    let first = random_answer(&["--seed", "5", "--threads", "1"]);
    assert_eq!(first["usage"]["completion_tokens"], 60);
    for threads in ["1", "2", "3"] {
        let again = random_answer(&["--seed", "5", "--threads", threads]);
        assert_eq!(again["answer"], first["answer"], "{threads} threads");
    }
    assert_ne!(random_answer(&["--seed", "6"])["answer"], first["answer"]);
    // A made-up seed is told, and reproduces the answer.
    let free = random_answer(&[]);
    let seed = free["seed"].as_u64().unwrap().to_string();
    assert_eq!(random_answer(&["--seed", &seed])["answer"], free["answer"]);
}

#[test]
fn a_stop_string_ends_the_answer_before_itself() {
    let whole = random_answer(&["--seed", "11"]);
    let whole = whole["answer"].as_str().unwrap();
    // Four characters from the middle: tokens are bytes here, so it is split over several.
    let characters: Vec<char> = whole.chars().collect();
    let middle = characters.len() / 2;
    let stop: String = characters[middle..middle + 4].iter().collect();
    let expected = &whole[..whole.find(&stop).unwrap()];
    let stopped = random_answer(&["--seed", "11", "--stop", &stop]);
    assert_eq!(stopped["answer"], expected);
    assert_eq!(stopped["finish_reason"], "stop");
    let args = random_args(&["-n", "60", "--seed", "11", "--stop", &stop]);
    let streamed = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(
        out(&streamed).trim_end_matches('\n'),
        expected.trim_end_matches('\n')
    );
    // A stop string that never comes loses nothing, not even what looked like its beginning.
    let tail: String = characters[characters.len() - 1..].iter().collect();
    let never = random_answer(&[
        "--seed",
        "11",
        "--stop",
        &format!("{tail}{}", "\u{1}".repeat(9)),
    ]);
    assert_eq!(never["answer"], whole);
}

#[test]
fn a_full_context_ends_the_answer_and_says_so() {
    let args = random_args(&["--ctx-size", "64", "--seed", "1"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let full = json(&run(&[&args[..], &["--json"]].concat()));
    assert_eq!(full["finish_reason"], "length");
    assert_eq!(full["context_full"], true);
    let usage = &full["usage"];
    let tokens = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(tokens("prompt_tokens") + tokens("completion_tokens"), 64);
    let output = run(&args);
    assert!(
        output.status.success() && err(&output).contains("context is full"),
        "{}",
        err(&output)
    );
}

#[test]
fn a_closed_stdout_is_no_panic() {
    for args in [
        &["run", "What is 17 + 25?"][..],
        &["run", "--json", "hi"],
        &["bench", "-p", "8", "-n", "2"],
    ] {
        let mut command = gossamer(args);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut text = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert!(child.wait().unwrap().success(), "{args:?}: {text}");
        assert!(
            !text.contains("panicked") && !text.contains("error"),
            "{args:?}: {text}"
        );
    }
}

#[test]
fn a_closed_stderr_loses_no_answer() {
    let mut command = gossamer(&["run", "What is 17 + 25?"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(out(&output), "42\n");
}

#[cfg(unix)]
#[test]
fn one_interrupt_ends_the_answer_two_quit() {
    let interrupt = |pid: u32| {
        let status = Command::new("kill")
            .args(["-INT", &pid.to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    };
    let args = random_args(&["--ctx-size", "100000"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut child = gossamer(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    let mut stdout = child.stdout.take().unwrap();
    // The first byte of the answer: generation is on its way, and far from its end.
    stdout.read_exact(&mut first).unwrap();
    interrupt(child.id());
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{text}");
    assert!(
        text.contains("stopping") && text.contains("tok/s"),
        "{text}"
    );
}

#[test]
fn chat_answers_line_by_line() {
    let file =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chat-{}.json", std::process::id()));
    let _ = std::fs::remove_file(&file);
    let input = format!(
        "What is 17 + 25?\n/stats\n/reasoning high\n/system Be brief.\n\nWhat is \\\n8 + 9?\n/save {}\n/reset\nWhat is 17 + 25?\n/quit\nnever\n",
        file.display()
    );
    let output = piped(&["chat", "--date", "2026-01-31"], input.as_bytes());
    assert!(output.status.success(), "{}", err(&output));
    let answers: Vec<&str> = out(&output).lines().collect();
    assert_eq!(answers.len(), 3, "{answers:?} {}", err(&output));
    assert_eq!((answers[0], answers[2]), ("42", "42"));
    for word in [
        "context: ",
        "Reasoning: high",
        "Instructions: Be brief.",
        "Saved 6 messages",
        "forgotten",
    ] {
        assert!(
            err(&output).contains(word),
            "no {word:?} in {}",
            err(&output)
        );
    }
    let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let roles: Vec<_> = saved["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["role"].clone())
        .collect();
    assert_eq!(roles.iter().filter(|role| *role == "user").count(), 2);
    assert_eq!(saved["messages"][0]["content"], "What is 17 + 25?");
    assert_eq!(saved["instructions"], "Be brief.");
    // A file that is there is not written over, and a pipe that fails says so with its exit code.
    let again = piped(&["chat"], format!("/save {}\n", file.display()).as_bytes());
    assert_eq!(again.status.code(), Some(1));
    assert!(err(&again).contains("/save"), "{}", err(&again));
    std::fs::remove_file(file).unwrap();
    let unknown = piped(&["chat"], b"/frobnicate\n");
    assert_eq!(unknown.status.code(), Some(1));
    assert!(err(&unknown).contains("/frobnicate") && err(&unknown).contains("/help"));
}

#[test]
fn chat_keeps_what_was_said_before_a_stop_string() {
    let file =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stop-{}.json", std::process::id()));
    let _ = std::fs::remove_file(&file);
    let input = format!("What is the capital of France?\n/save {}\n", file.display());
    let output = piped(&["chat", "--stop", "capital"], input.as_bytes());
    assert_eq!(out(&output), "The \n", "{}", err(&output));
    let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let last = saved["messages"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(
        (&last["channel"], &last["content"]),
        (&"final".into(), &"The ".into())
    );
    std::fs::remove_file(file).unwrap();
}

/// The second turn computes its own tokens only: the first prompt is in the cache, though the
/// reasoning that followed it is not part of the conversation any more.
#[test]
fn chat_goes_on_from_the_cache() {
    let input = b"Say hello.\nWhat is 17 + 25?\n/stats\n";
    let output = piped(&["chat", "--date", "2026-01-31"], input);
    let told = err(&output);
    let cached = told
        .split_once("(+ ")
        .and_then(|(_, rest)| rest.split_once(" cached)"));
    let cached: usize = cached
        .unwrap_or_else(|| panic!("{told}"))
        .0
        .parse()
        .unwrap();
    let first = json(&run(&[
        "run",
        "--json",
        "--date",
        "2026-01-31",
        "Say hello.",
    ]));
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert!(
        (prompt..prompt + 3).contains(&cached),
        "{cached} of {prompt}: {told}"
    );
}
