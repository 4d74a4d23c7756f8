//! `gossamer run`: one prompt in, one answer out.

use super::{
    Usage,
    answer::{self, Reader, Show},
    engine::Opened,
    interrupt,
    model::{Common, positive},
    sampling,
};
use crate::{
    engine::Request,
    grammar::{Format, Grammars, Rules},
    harmony::{Conversation, Effort, Message, Parser, ResponseFormat, today},
    tokenizer::{Tokenizer, lossy},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
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
    /// Answer in JSON that this JSON Schema accepts, whatever the model would say; - reads it from
    /// standard input. The reasoning stays free; with --raw the whole text is that JSON
    #[arg(long, value_name = "FILE|JSON")]
    json_schema: Option<OsString>,
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
  gossamer run --model gpt-oss-20b --json-schema person.json \"Invent a person.\"
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
        let schema_is_piped = self.json_schema.as_ref().is_some_and(|from| from == "-");
        let text = match &self.prompt {
            Some(prompt) if prompt != "-" => prompt.to_string_lossy().into_owned(),
            _ if schema_is_piped => {
                let text = "--json-schema - reads standard input: give the prompt as an argument";
                return Err(Usage(text.into()).into());
            }
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

    /// The schema of `--json-schema`.
    fn schema(&self) -> Result<Option<Value>> {
        let Some(from) = &self.json_schema else {
            return Ok(None);
        };
        let name = from.to_string_lossy();
        let text = match &*name {
            "-" => read_text(io::stdin().lock(), "standard input")?,
            inline if inline.trim_start().starts_with('{') => inline.to_owned(),
            _ => {
                let file = File::open(Path::new(from));
                let file = file.with_context(|| format!("--json-schema {name}"))?;
                read_text(file, &name)?
            }
        };
        let schema = serde_json::from_str(&text);
        schema
            .map(Some)
            .with_context(|| format!("--json-schema {name:.80}: expected a JSON Schema"))
    }
}

/// How the model is told of `schema`.
fn told(schema: &Value) -> ResponseFormat {
    let title = schema.get("title").and_then(Value::as_str);
    let title = title.filter(|title| !title.is_empty() && !title.contains('\n'));
    ResponseFormat {
        name: title.unwrap_or("response").to_owned(),
        description: None,
        schema: schema.clone(),
    }
}

/// Answers one prompt.
pub fn run(args: Args) -> Result<()> {
    let sampling = args
        .sampling
        .sampling(args.common.model.is_none(), args.common.seed)?;
    let prompt = args.prompt()?;
    let schema = args.schema()?;
    let mut conversation = args.turn.conversation()?;
    conversation.response_formats = schema.iter().map(told).collect();
    conversation.messages = vec![Message::user(prompt.as_str())];
    let rules = Rules {
        format: schema.map(|schema| Format::JsonSchema { schema }),
        ..Rules::default()
    };
    // Nothing comes after it that would profit from a snapshot.
    let Opened {
        engine,
        tokenizer,
        load_time,
        ..
    } = args.common.open_engine(1, 0)?;
    let (tokens, reader) = if args.raw {
        let reader = Reader::Raw(tokenizer.stream_decoder(), tokenizer.clone());
        (tokenizer.encode(&prompt), reader)
    } else {
        harmony(&conversation, &tokenizer)?
    };
    let grammars = Grammars::new(tokenizer.clone());
    let constraint = match (&rules.format, args.raw) {
        (Some(format), true) => grammars.raw(format).map(Some),
        _ => grammars.constrain(&rules, &conversation),
    };
    let constraint = constraint.context("--json-schema")?;
    let request = Request {
        tokens,
        sampling,
        max_tokens: args.turn.max_tokens,
        stop_ids: tokenizer.stop_ids(),
        constraint: constraint.map(|constraint| constraint as _),
        ..Request::default()
    };
    let show = Show {
        answer: !args.json,
        reasoning: args.turn.show_reasoning,
    };
    let answer = answer::stream(&*engine, request, reader, &args.turn.stop, show)?;
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
