//! One request's events to text: the answer to stdout as it comes, reasoning (if wanted) dimmed to
//! stderr, and an [`Answer`] that has lost nothing of what the model said.

use super::{interrupt, model::BATCH_TOKENS};
use crate::{
    engine::{Engine, Event, FinishReason, Request, Usage},
    harmony::{Delta, Message, Parser, Part, Turn},
    stop::StopStrings,
    tokenizer::{StreamDecoder, Tokenizer},
};
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::{
    io::{self, IsTerminal, Write},
    sync::Arc,
    time::Duration,
};

/// How tokens become text.
pub enum Reader {
    /// As Harmony: channels, reasoning, tool calls.
    Harmony(Box<Parser>),
    /// As they are.
    Raw(StreamDecoder, Arc<Tokenizer>),
}

/// What to show while the answer comes.
#[derive(Debug, Clone, Copy)]
pub struct Show {
    /// The answer, on stdout.
    pub answer: bool,
    /// The reasoning, on stderr.
    pub reasoning: bool,
}

/// All that came of one request.
#[derive(Debug)]
pub struct Answer {
    /// What is meant for the user: the final channel, and what is said before tool calls.
    pub text: String,
    /// The analysis channel.
    pub reasoning: String,
    /// Tool calls: recipient and arguments, as the model wrote them.
    pub calls: Vec<(String, String)>,
    /// What the model wrote in another's name, as if the user or a tool spoke.
    pub foreign: Vec<String>,
    /// The messages, for the conversation's history (Harmony only).
    pub messages: Vec<Message>,
    /// Malformed places that the parser repaired.
    pub repairs: usize,
    /// `stop`, `length`, `tool_calls` or `cancelled`.
    pub finish: &'static str,
    /// What it took.
    pub usage: Usage,
}

/// Runs `request` and shows what comes. Ctrl-C ends it early.
///
/// # Errors
/// When the engine fails, or stdout is closed.
pub fn stream(
    engine: &dyn Engine,
    request: Request,
    reader: Reader,
    stops: &[String],
    show: Show,
) -> Result<Answer> {
    let _guard = interrupt::guard(&request.cancel)?;
    read(engine, request, reader, stops, show)
}

/// As [`stream`], for callers that see to Ctrl-C themselves.
pub fn read(
    engine: &dyn Engine,
    request: Request,
    reader: Reader,
    stops: &[String],
    show: Show,
) -> Result<Answer> {
    let cancel = request.cancel.clone();
    let mut screen = Screen::new(show, StopStrings::new(stops));
    let mut reader = reader;
    let mut bar = None;
    for event in engine.submit(request) {
        match event {
            Event::Queued | Event::PromptLogprobs(_) => {}
            Event::Prefill {
                done,
                total,
                cached,
                ..
            } => progress(&mut bar, done, total, cached),
            Event::Token { id, .. } => {
                if let Some(bar) = bar.take() {
                    bar.finish_and_clear();
                }
                match &mut reader {
                    Reader::Harmony(parser) => {
                        for delta in parser.push(id) {
                            screen.delta(delta)?;
                        }
                    }
                    Reader::Raw(decoder, tokenizer) => {
                        if !tokenizer.stop_ids().contains(&id) {
                            screen.say(&decoder.push(tokenizer.token_bytes(id)))?;
                        }
                    }
                }
                if screen.stops.hit() {
                    cancel.cancel();
                }
            }
            Event::Finish { reason, usage } => {
                return screen.finish(reader, reason, usage);
            }
            Event::Error(error) => bail!(error),
        }
    }
    bail!("the engine ended an answer without a word")
}

/// A bar for prompts of more than one piece, on a terminal only.
fn progress(bar: &mut Option<ProgressBar>, done: usize, total: usize, cached: usize) {
    if bar.is_none() && total - cached > BATCH_TOKENS {
        let style =
            ProgressStyle::with_template("reading the prompt {wide_bar} {pos}/{len} tokens, {eta}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        *bar = Some(ProgressBar::new(total as u64).with_style(style));
    }
    if let Some(bar) = bar {
        bar.set_position(done as u64);
    }
}

/// Puts text where it belongs, and keeps it.
struct Screen {
    show: Show,
    stops: StopStrings,
    /// What each message is for.
    parts: Vec<Part>,
    text: String,
    /// Bytes of [`Screen::text`] that are of its last message.
    said: usize,
    reasoning: String,
    /// Dim text is on the terminal's line.
    dimmed: bool,
}

impl Screen {
    fn new(show: Show, stops: StopStrings) -> Screen {
        Screen {
            show,
            stops,
            parts: Vec::new(),
            text: String::new(),
            said: 0,
            reasoning: String::new(),
            dimmed: false,
        }
    }

    fn delta(&mut self, delta: Delta) -> Result<()> {
        match delta {
            Delta::Open { part, .. } => {
                if part == Part::Text {
                    self.begin_text()?;
                }
                self.parts.push(part);
            }
            Delta::Text { index, text } => match self.parts.get(index) {
                Some(Part::Reasoning) => self.think(&text),
                // Told when they are complete.
                Some(Part::Call { .. } | Part::Foreign) => {}
                Some(Part::Text) | None => self.say(&text)?,
            },
            Delta::Close { .. } => {}
        }
        Ok(())
    }

    /// Begins a message of the answer: a paragraph of its own. No stop string spans two.
    fn begin_text(&mut self) -> Result<()> {
        let tail = self.stops.finish();
        self.out(&tail)?;
        if !self.text.is_empty() && !self.stops.hit() {
            self.out("\n\n")?;
        }
        self.said = 0;
        Ok(())
    }

    /// Text of the answer.
    fn say(&mut self, text: &str) -> Result<()> {
        let text = self.stops.push(text);
        self.out(&text)
    }

    fn out(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.undim();
        self.text.push_str(text);
        self.said += text.len();
        if self.show.answer {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes())?;
            stdout.flush()?;
        }
        Ok(())
    }

    /// Text of the reasoning. stderr may be closed: that loses nothing that was asked for.
    fn think(&mut self, text: &str) {
        self.reasoning.push_str(text);
        if self.show.reasoning && !text.is_empty() {
            if !self.dimmed && colour() {
                eprint_quietly("\x1b[2m");
            }
            self.dimmed = true;
            eprint_quietly(text);
        }
    }

    /// Ends dim text, on a line of its own.
    fn undim(&mut self) {
        if std::mem::take(&mut self.dimmed) {
            eprint_quietly(if colour() { "\x1b[0m\n" } else { "\n" });
        }
    }
}

impl Screen {
    /// What is left to say, and the whole as an [`Answer`].
    fn finish(mut self, reader: Reader, reason: FinishReason, usage: Usage) -> Result<Answer> {
        let stopped = self.stops.hit();
        let mut turn = Turn::default();
        match reader {
            Reader::Raw(mut decoder, _) => {
                let tail = decoder.finish();
                self.say(&tail)?;
            }
            Reader::Harmony(parser) => {
                let (deltas, whole) = parser.finish();
                for delta in deltas {
                    self.delta(delta)?;
                }
                turn = whole;
            }
        }
        let tail = self.stops.finish();
        self.out(&tail)?;
        self.undim();
        if self.show.answer && !self.text.is_empty() && !self.text.ends_with('\n') {
            let mut stdout = io::stdout().lock();
            stdout.write_all(b"\n")?;
            stdout.flush()?;
        }
        let calls: Vec<_> = turn
            .calls()
            .map(|call| (call.name.to_string(), call.arguments.to_string()))
            .collect();
        let finish = match reason {
            _ if stopped => "stop",
            FinishReason::Stop if !calls.is_empty() => "tool_calls",
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        };
        if stopped && let Some(last) = turn.parts.iter().rposition(|part| *part == Part::Text) {
            // What the stop string cut off was never said.
            turn.messages[last].content.truncate(self.said);
        }
        let (mut messages, mut foreign) = (Vec::new(), Vec::new());
        for (message, part) in turn.messages.into_iter().zip(turn.parts) {
            match part {
                Part::Foreign => foreign.push(message.content),
                _ => messages.push(message),
            }
        }
        Ok(Answer {
            text: self.text,
            reasoning: self.reasoning,
            calls,
            foreign,
            messages,
            repairs: turn.repairs.total(),
            finish,
            usage,
        })
    }
}

impl Answer {
    /// Tells on stderr what a reader of the answer alone would miss.
    pub fn tell_rest(&self, show: Show) {
        for text in &self.foreign {
            tell!("The model wrote, in another's name: {text}");
        }
        for (name, arguments) in &self.calls {
            tell!("The model calls the tool {name}, which nobody runs here, with: {arguments}");
        }
        if self.text.is_empty() && self.calls.is_empty() && self.foreign.is_empty() {
            if self.reasoning.is_empty() {
                tell!("The model answered nothing.");
            } else if show.reasoning {
                tell!("The model gave no answer, only reasoning.");
            } else {
                tell!(
                    "The model gave no answer, only reasoning: {}",
                    self.reasoning
                );
            }
        }
        match self.finish {
            "length" if self.usage.context_full => tell!(
                "The context is full: {} tokens of prompt and {} of answer (--ctx-size makes more room, up \
                 to the model's).",
                self.usage.prompt_tokens,
                self.usage.generated_tokens
            ),
            "length" => tell!(
                "The answer was cut at --max-tokens {}.",
                self.usage.generated_tokens
            ),
            _ => {}
        }
    }

    /// One line of figures.
    pub fn speed(&self) -> String {
        let usage = &self.usage;
        let fresh = usage.prompt_tokens - usage.cached_tokens;
        let cached = match usage.cached_tokens {
            0 => String::new(),
            n => format!(" (+ {n} cached)"),
        };
        format!(
            "{} tokens, {}; prompt {fresh} tokens{cached}, {}, {:.2} s",
            usage.generated_tokens,
            rate(self.decode_rate()),
            rate(self.prefill_rate()),
            usage.prefill_time.as_secs_f64()
        )
    }

    /// Tokens a second after the first one, whose logits came with the prompt.
    fn decode_rate(&self) -> Option<f64> {
        let steps = self
            .usage
            .generated_tokens
            .checked_sub(1)
            .filter(|&n| n > 0)?;
        Some(steps as f64 / self.usage.decode_time.as_secs_f64())
    }

    fn prefill_rate(&self) -> Option<f64> {
        let fresh = self.usage.prompt_tokens - self.usage.cached_tokens;
        let seconds = self.usage.prefill_time.as_secs_f64();
        (seconds > 0.0).then_some(fresh as f64 / seconds)
    }

    /// The answer for a program.
    pub fn json(&self, model: &str, load_time: Duration) -> Value {
        let usage = &self.usage;
        let calls = self.calls.iter();
        let calls: Vec<Value> = calls
            .map(|(name, arguments)| json!({ "name": name, "arguments": arguments }))
            .collect();
        json!({
            "model": model,
            "answer": self.text,
            "reasoning": self.reasoning,
            "tool_calls": calls,
            "foreign": self.foreign,
            "finish_reason": self.finish,
            "context_full": usage.context_full,
            "repairs": self.repairs,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.generated_tokens,
            },
            "timing": {
                "load_s": load_time.as_secs_f64(),
                "prefill_s": usage.prefill_time.as_secs_f64(),
                "decode_s": usage.decode_time.as_secs_f64(),
                "prefill_tok_per_s": self.prefill_rate(),
                "decode_tok_per_s": self.decode_rate(),
            },
            "seed": usage.seed,
        })
    }
}

fn rate(rate: Option<f64>) -> String {
    rate.map_or("no rate".into(), |rate| format!("{rate:.1} tok/s"))
}

/// Whether stderr shows colours.
fn colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// stderr may be closed: that loses nothing that was asked for.
fn eprint_quietly(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr
        .write_all(text.as_bytes())
        .and_then(|()| stderr.flush());
}
