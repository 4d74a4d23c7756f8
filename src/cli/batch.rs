//! `gossamer batch`: a file of conversations in, an answer for each out, the model loaded once.

use super::{
    Usage,
    answer::{self, Show},
    interrupt,
    model::{Common, positive},
    run, sampling,
};
use crate::{
    engine::{Engine, Request},
    harmony::Conversation,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    path::PathBuf,
};

/// More than any conversation that fits a context.
const LONGEST_LINE: u64 = 64 << 20;

/// What `batch` reads.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Conversations, one JSON object a line; `-` reads standard input
    #[arg(value_name = "FILE.jsonl|-")]
    file: PathBuf,
    /// Most tokens to generate for each, reasoning included. Default: as many as the context holds
    #[arg(long, short = 'n', value_name = "N", value_parser = positive)]
    max_tokens: Option<usize>,
    #[command(flatten)]
    sampling: sampling::Flags,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = r##"A line is a conversation; all fields but `messages` may be left out:
  {"effort":"low","date":"2026-01-31","instructions":"Be brief.",
   "tools":[{"name":"get_weather","description":"...","parameters":{JSON Schema}}],
   "response_formats":[{"name":"person","schema":{JSON Schema}}],
   "messages":[{"role":"user","content":"What is 17 + 25?"},
               {"role":"assistant","channel":"final","content":"42"},
               {"role":"user","content":"And 17 + 26?"}]}
The answers come on stdout in the same order, each the object that `gossamer run --json` prints, on
one line. A conversation that cannot be answered gives {"error":"..."} in its place.

Examples:
  gossamer batch questions.jsonl > answers.jsonl
  gossamer batch --model gpt-oss-20b --temperature 0 --max-tokens 2000 - < questions.jsonl

Exit codes: 0, 1 if a line is wrong (nothing is answered then) or could not be answered, 2 on wrong
usage, 130 after Ctrl-C."##;

/// Reads all conversations, so that a wrong line is told before the work begins.
fn conversations(from: impl Read, name: &str) -> Result<Vec<Conversation>> {
    let mut from = BufReader::new(from);
    let mut all = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = (&mut from)
            .take(LONGEST_LINE + 1)
            .read_until(b'\n', &mut line);
        if read.with_context(|| format!("reading {name}"))? == 0 {
            break;
        }
        ensure!(
            line.len() as u64 <= LONGEST_LINE,
            "{name}, line {number}: longer than {} MiB",
            LONGEST_LINE >> 20
        );
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let conversation: Conversation = serde_json::from_slice(&line)
            .with_context(|| format!("{name}, line {number}: expected a conversation"))?;
        ensure!(
            !conversation.messages.is_empty(),
            "{name}, line {number}: `messages` is empty; expected at least one message"
        );
        all.push(conversation);
    }
    Ok(all)
}

/// Answers every conversation of a file.
pub fn run(args: Args) -> Result<()> {
    let sampling = args
        .sampling
        .sampling(args.common.model.is_none(), args.common.seed)?;
    let conversations = if args.file.as_os_str() == "-" {
        conversations(io::stdin().lock(), "standard input")?
    } else {
        let name = args.file.display().to_string();
        let file = File::open(&args.file).with_context(|| name.clone())?;
        conversations(file, &name)?
    };
    if conversations.is_empty() {
        return Err(Usage(format!("{}: no conversations", args.file.display())).into());
    }
    let loaded = args.common.open()?;
    let load_time = loaded.load_time;
    let (engine, tokenizer) = loaded.into_engine()?;
    let show = Show {
        answer: false,
        reasoning: false,
    };
    let mut failed = 0;
    for conversation in &conversations {
        let answer = run::harmony(conversation, &tokenizer).and_then(|(tokens, reader)| {
            let request = Request {
                tokens,
                sampling: sampling.clone(),
                max_tokens: args.max_tokens,
                stop_ids: tokenizer.stop_ids(),
                ..Request::default()
            };
            answer::stream(&engine, request, reader, &[], show)
        });
        let line: Value = match &answer {
            Ok(answer) => answer.json(&engine.info().name, load_time),
            Err(error) => {
                failed += 1;
                json!({ "error": format!("{error:#}") })
            }
        };
        writeln!(io::stdout().lock(), "{line}")?;
        if answer.is_ok_and(|answer| answer.finish == "cancelled") {
            drop(engine);
            std::process::exit(interrupt::EXIT_CODE);
        }
    }
    if failed > 0 {
        bail!("{failed} of {} conversations failed", conversations.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::conversations;

    #[test]
    fn wrong_lines_are_named() {
        let good = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
        let read = |text: &str| conversations(text.as_bytes(), "q.jsonl");
        assert_eq!(read(&format!("{good}\n\n{good}")).unwrap().len(), 2);
        for bad in [
            "{}",
            "[1]",
            "{\"messages\":",
            r#"{"messages":[{"role":"user"}]}"#,
        ] {
            let error = format!("{:#}", read(&format!("{good}\n{bad}\n")).unwrap_err());
            assert!(error.starts_with("q.jsonl, line 2: "), "{error}");
        }
    }
}
