//! `gossamer run`: one prompt in, one answer out.

use super::{
    Usage,
    answer::{self, Reader, Show},
    interrupt,
    model::{Common, positive},
    sampling,
};
use crate::{
    engine::{Engine, Request},
    harmony::{Conversation, Effort, Message, Parser, today},
    tokenizer::{Tokenizer, lossy},
};
use anyhow::{Context, Result, ensure};
use std::{
    ffi::OsString,
    fs::File,
    io::{self, IsTerminal, Read, Write},
    path::Path,
    sync::Arc,
};

/// More text than any context holds.
const MOST_TEXT: u64 = 64 << 20;

/// What `run` reads.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The prompt; `-`, or none when something is piped in, reads it from standard input
    #[arg(value_name = "PROMPT")]
    prompt: Option<OsString>,
    #[command(flatten)]
    turn: TurnFlags,
    /// Continue the prompt as plain text: no conversation, no system message
    #[arg(long, conflicts_with_all = ["system", "reasoning", "show_reasoning", "date"])]
    raw: bool,
    /// Print one JSON object when the answer is complete, instead of text as it comes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: sampling::Flags,
    #[command(flatten)]
    common: Common,
}

/// Flags of an answer, shared with `chat`.
#[derive(clap::Args, Debug, Clone)]
pub struct TurnFlags {
    /// Instructions for the model; @FILE reads them from a file
    #[arg(long, value_name = "TEXT|@FILE")]
    pub system: Option<OsString>,
    /// How much the model thinks before it answers
    #[arg(long, value_name = "low|medium|high", default_value = "medium")]
    pub reasoning: Effort,
    /// Show the reasoning, dimmed, on stderr
    #[arg(long)]
    pub show_reasoning: bool,
    /// Most tokens to generate, reasoning included. Default: as many as the context holds
    #[arg(long, short = 'n', value_name = "N", value_parser = positive)]
    pub max_tokens: Option<usize>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// The date in the system message. Default: today
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = date)]
    pub date: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  gossamer run \"What is 17 + 25?\"
  gossamer run --model gpt-oss-20b --reasoning high --show-reasoning \"Why is the sky blue?\"
  cat letter.txt | gossamer run --model gpt-oss-20b --system \"Translate into French.\" -
  gossamer run --model gpt-oss-20b --temperature 0 --json \"Name three rivers.\"
  gossamer run --model gpt-oss-20b --raw --max-tokens 20 \"Once upon a time\"

The answer goes to stdout, everything else to stderr. Ctrl-C ends the answer, twice quits.
Exit codes: 0, 1 on an error, 2 on wrong usage, 130 after Ctrl-C.";

pub(super) fn date(text: &str) -> Result<String, String> {
    let expected = || "expected a date such as 2026-01-31".to_string();
    // jiff also reads other forms; the model knows this one.
    let date: jiff::civil::Date = text.parse().map_err(|_| expected())?;
    if date.to_string() == text {
        Ok(text.into())
    } else {
        Err(expected())
    }
}

impl TurnFlags {
    /// An empty conversation with these settings.
    pub fn conversation(&self) -> Result<Conversation> {
        let instructions = match &self.system {
            None => None,
            Some(text) => Some(instructions(&text.to_string_lossy())?),
        };
        Ok(Conversation {
            effort: self.reasoning,
            date: Some(self.date.clone().unwrap_or_else(today)),
            instructions,
            ..Conversation::default()
        })
    }
}

/// Instructions as given, or those in the file after `@`.
pub fn instructions(text: &str) -> Result<String> {
    let Some(path) = text.strip_prefix('@') else {
        return Ok(text.to_string());
    };
    let file = File::open(Path::new(path)).with_context(|| format!("--system @{path}"))?;
    read_text(file, path)
}

/// All of `from` as text: bytes that are not UTF-8 become U+FFFD.
fn read_text(from: impl Read, name: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let read = from.take(MOST_TEXT + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("reading {name}"))?;
    ensure!(
        bytes.len() as u64 <= MOST_TEXT,
        "{name}: more than {} MiB of text",
        MOST_TEXT >> 20
    );
    Ok(lossy(&bytes).into_owned())
}

impl Args {
    fn prompt(&self) -> Result<String> {
        let text = match &self.prompt {
            Some(prompt) if prompt != "-" => prompt.to_string_lossy().into_owned(),
            None if io::stdin().is_terminal() => {
                let text = "no prompt: give one as an argument, or `-` to read standard input";
                return Err(Usage(text.into()).into());
            }
            _ => {
                let mut text = read_text(io::stdin().lock(), "standard input")?;
                // The line's end belongs to the shell; text to continue is taken as it is.
                if !self.raw && text.ends_with('\n') {
                    text.pop();
                }
                text
            }
        };
        if text.is_empty() {
            return Err(Usage("the prompt is empty".into()).into());
        }
        Ok(text)
    }
}

/// Answers one prompt.
pub fn run(args: Args) -> Result<()> {
    let sampling = args
        .sampling
        .sampling(args.common.model.is_none(), args.common.seed)?;
    let prompt = args.prompt()?;
    let conversation = args.turn.conversation()?;
    let loaded = args.common.open()?;
    let load_time = loaded.load_time;
    let (engine, tokenizer) = loaded.into_engine()?;
    let (tokens, reader) = if args.raw {
        let reader = Reader::Raw(tokenizer.stream_decoder(), tokenizer.clone());
        (tokenizer.encode(&prompt), reader)
    } else {
        let messages = vec![Message::user(prompt)];
        harmony(
            &Conversation {
                messages,
                ..conversation
            },
            &tokenizer,
        )?
    };
    let request = Request {
        tokens,
        sampling,
        max_tokens: args.turn.max_tokens,
        stop_ids: tokenizer.stop_ids(),
        ..Request::default()
    };
    let show = Show {
        answer: !args.json,
        reasoning: args.turn.show_reasoning,
    };
    let answer = answer::stream(&engine, request, reader, &args.turn.stop, show)?;
    if args.json {
        let mut json = answer.json(&engine.info().name, load_time);
        if args.common.verbose {
            json["backend"] = engine.info().backend.clone().into();
        }
        let mut stdout = io::stdout().lock();
        serde_json::to_writer_pretty(&mut stdout, &json).map_err(io::Error::from)?;
        writeln!(stdout)?;
    } else {
        answer.tell_rest(show);
        tell!("{}", answer.speed());
    }
    if answer.finish == "cancelled" {
        drop(engine);
        std::process::exit(interrupt::EXIT_CODE);
    }
    Ok(())
}

/// The prompt that `conversation` renders to, and the reader of its answer.
pub fn harmony(
    conversation: &Conversation,
    tokenizer: &Arc<Tokenizer>,
) -> Result<(Vec<u32>, Reader)> {
    let tokens = conversation.render(tokenizer)?;
    let parser = Parser::new(tokenizer.clone(), conversation.tool_names())?;
    Ok((tokens, Reader::Harmony(Box::new(parser))))
}
