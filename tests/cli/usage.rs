//! Wrong usage, errors and help.

use super::{fails, out, run};

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
    let cuda = match cfg!(feature = "cuda") {
        true => "CUDA: ",
        false => "--features cuda",
    };
    fails(&["run", "--backend", "cuda:4000", "hi"], 1, &["CUDA", cuda]);
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
