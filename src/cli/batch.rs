//! `gossamer batch`: a file of conversations in, an answer for each out, the model loaded once.

use super::{
    Usage,
    answer::{self, Show},
    engine::Opened,
    interrupt,
    model::{Common, positive},
    run, sampling,
};
use crate::{
    engine::{Cancel, Request},
    harmony::Conversation,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    path::PathBuf,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

/// More than any conversation that fits a context.
const LONGEST_LINE: u64 = 64 << 20;

/// Conversations that run together: a pass over the weights serves them all.
const AT_ONCE: usize = 8;
/// Places for the sliding windows, for what the conversations have in common.
const SNAPSHOTS: usize = 16;

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
pub(super) fn conversations(from: impl Read, name: &str) -> Result<Vec<Conversation>> {
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
    let Opened {
        engine,
        tokenizer,
        load_time,
        ..
    } = args.common.open_engine(AT_ONCE, SNAPSHOTS)?;
    let cancel = Cancel::default();
    let guard = interrupt::guard(&cancel)?;
    let answer = |conversation: &Conversation| {
        let (tokens, reader) = run::harmony(conversation, &tokenizer)?;
        let request = Request {
            tokens,
            sampling: sampling.clone(),
            max_tokens: args.max_tokens,
            stop_ids: tokenizer.stop_ids(),
            cancel: cancel.clone(),
            ..Request::default()
        };
        let show = Show {
            answer: false,
            reasoning: false,
        };
        answer::read(&*engine, request, reader, &[], show)
    };
    let mut failed = 0;
    let mut interrupted = false;
    let told = in_order(&conversations, &cancel, answer, |answer| {
        let line: Value = match &answer {
            Ok(answer) => answer.json(&engine.info().name, load_time),
            Err(error) => {
                failed += 1;
                json!({ "error": format!("{error:#}") })
            }
        };
        interrupted |= answer.is_ok_and(|answer| answer.finish == "cancelled");
        Ok(writeln!(io::stdout().lock(), "{line}")?)
    });
    drop(guard);
    told?;
    if interrupted || cancel.is_cancelled() {
        drop(engine);
        std::process::exit(interrupt::EXIT_CODE);
    }
    if failed > 0 {
        bail!("{failed} of {} conversations failed", conversations.len());
    }
    Ok(())
}

/// Does `work` on all items, [`AT_ONCE`] at a time, and `tell`s the results in order, each as soon as
/// those before it are told. After `cancel`, nothing is begun; an error of `tell` cancels.
fn in_order<T: Sync, R: Send>(
    items: &[T],
    cancel: &Cancel,
    work: impl Fn(&T) -> R + Sync,
    mut tell: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let (sender, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(items.len()) {
            let (sender, next, work) = (sender.clone(), &next, &work);
            scope.spawn(move || {
                while !cancel.is_cancelled() {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { return };
                    if sender.send((at, work(item))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut told = 0;
        for (at, result) in results {
            early.insert(at, result);
            while let Some(result) = early.remove(&told) {
                told += 1;
                if let Err(error) = tell(result) {
                    cancel.cancel();
                    return Err(error);
                }
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::{AT_ONCE, conversations, in_order};
    use crate::engine::Cancel;
    use std::sync::Barrier;

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

    #[test]
    fn results_come_in_order_though_work_ends_out_of_order() {
        let items: Vec<usize> = (0..AT_ONCE * 5).collect();
        let cancel = Cancel::default();
        let mut told = Vec::new();
        // The first ones wait for each other: they do run at once.
        let barrier = Barrier::new(AT_ONCE);
        let work = |&n: &usize| {
            if n < AT_ONCE {
                barrier.wait();
            }
            n
        };
        let all = in_order(&items, &cancel, work, |n| {
            told.push(n);
            Ok(())
        });
        all.unwrap();
        assert_eq!(told, items);
        // A reader that is gone ends it.
        let mut told = 0;
        let end = in_order(
            &items,
            &cancel,
            |_| (),
            |()| {
                told += 1;
                anyhow::bail!("closed")
            },
        );
        assert_eq!((end.unwrap_err().to_string(), told), ("closed".into(), 1));
        assert!(cancel.is_cancelled());
    }
}
