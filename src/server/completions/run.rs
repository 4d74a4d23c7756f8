//! One choice of a completion: the engine's events as text with its log-probabilities.
//!
//! Nothing is read into the tokens: control tokens stand in the text by their names, as they did in
//! the model's output, but for the one that ends it. Stop strings count in what was generated.

use crate::{
    engine::{Cancel, Event, Events, Failure, FinishReason, Miss, Usage},
    server::{
        choices::Choice,
        error::ApiError,
        turn::{Pending, TokenLogprob, stopped},
    },
    stop::StopStrings,
    tokenizer::{StreamDecoder, Tokenizer},
};
use serde_json::{Map, Value, json};
use std::{collections::VecDeque, sync::Arc};

/// A choice on its way. Dropping it cancels it.
pub struct Run {
    /// What the engine does.
    pub events: Events,
    /// Ends it.
    pub cancel: Cancel,
    /// How its tokens become text.
    pub reader: Reader,
    /// Steps that are there already.
    pub ready: VecDeque<Step>,
}

/// What comes of a choice.
#[derive(Debug)]
pub enum Step {
    /// More text.
    Text(Piece),
    /// The choice is complete; nothing follows.
    Done(Box<Done>),
    /// It failed; nothing follows.
    Failed(ApiError),
}

/// A piece of a choice's text.
#[derive(Debug, Default)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// The tokens that begin in it, where asked for.
    pub tokens: Vec<Entry>,
}

impl Piece {
    /// Appends the piece after this one.
    pub fn add(&mut self, mut next: Piece) {
        self.text += &next.text;
        self.tokens.append(&mut next.tokens);
    }
}

/// A complete choice.
#[derive(Debug)]
pub struct Done {
    /// What was held back.
    pub rest: Piece,
    /// `stop` or `length`.
    pub finish: &'static str,
    /// What it took.
    pub usage: Usage,
    /// Why cached tokens are fewer than the prompt's.
    pub miss: Option<Miss>,
}

/// A token in `logprobs`.
#[derive(Debug)]
pub struct Entry {
    /// Character of the choice's text at which it begins.
    offset: usize,
    token: TokenLogprob,
    /// It is the prompt's first, which nothing comes before.
    first: bool,
}

impl Choice for Run {
    type Step = Step;

    /// The next step. Cancel-safe.
    async fn next(&mut self) -> Option<Step> {
        loop {
            if let Some(step) = self.ready.pop_front() {
                return Some(step);
            }
            if self.reader.over {
                return None;
            }
            self.read().await;
        }
    }

    async fn admitted(&mut self) -> Result<(), ApiError> {
        while !self.reader.admitted && !self.reader.over {
            self.read().await;
        }
        match self.ready.back() {
            Some(Step::Failed(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

impl Run {
    async fn read(&mut self) {
        let event = self.events.next_event().await;
        let event = event.unwrap_or(Event::Error(Failure::Stopped));
        self.ready.extend(self.reader.read(event));
        if self.reader.stops.hit() {
            self.cancel.enough();
        }
    }
}

/// Events to steps.
pub struct Reader {
    tok: Arc<Tokenizer>,
    stop_ids: Vec<u32>,
    stops: StopStrings,
    decoder: StreamDecoder,
    pending: Option<Pending>,
    /// Bytes of generated text that went out.
    said: usize,
    /// Characters of the whole text that went out.
    characters: usize,
    /// The prompt's text, until it went out.
    echo: Option<StreamDecoder>,
    generated: usize,
    /// As far as it is known before the end.
    usage: Usage,
    miss: Option<Miss>,
    admitted: bool,
    over: bool,
}

impl Reader {
    /// `echo`: the prompt's tokens come too, as [`Event::PromptLogprobs`].
    pub fn new(tok: Arc<Tokenizer>, stops: &[String], logprobs: bool, echo: bool) -> Reader {
        Reader {
            stop_ids: tok.stop_ids(),
            tok,
            stops: StopStrings::new(stops),
            decoder: StreamDecoder::default(),
            pending: logprobs.then(Pending::default),
            said: 0,
            characters: 0,
            echo: echo.then(StreamDecoder::default),
            generated: 0,
            usage: Usage::default(),
            miss: None,
            admitted: false,
            over: false,
        }
    }

    /// Text before all that comes of the model.
    pub fn prefix(&mut self, text: String) -> Step {
        self.characters += text.chars().count();
        Step::Text(Piece {
            text,
            tokens: Vec::new(),
        })
    }

    fn read(&mut self, event: Event) -> Option<Step> {
        match event {
            Event::Queued => None,
            Event::Prefill {
                total,
                cached,
                miss,
                ..
            } => {
                (self.usage.prompt_tokens, self.usage.cached_tokens) = (total, cached);
                self.miss = miss;
                self.admitted = true;
                None
            }
            Event::PromptLogprobs(tokens) => {
                let mut piece = Piece::default();
                for token in tokens {
                    let first = token.logprob.is_none();
                    let logprob = token.logprob.unwrap_or(0.0);
                    let entry = TokenLogprob::new(&self.tok, token.id, logprob, &token.top);
                    let decoder = self.echo.get_or_insert_default();
                    let text = decoder.push(&entry.bytes);
                    piece.tokens.push(Entry {
                        offset: self.characters,
                        token: entry,
                        first,
                    });
                    self.characters += text.chars().count();
                    piece.text += &text;
                }
                Some(Step::Text(piece))
            }
            Event::Token { id, logprob, top } => {
                let mut piece = self.end_of_echo();
                if !self.stops.hit() {
                    self.generated += 1;
                    if !self.stop_ids.contains(&id) {
                        if let Some(pending) = &mut self.pending {
                            let logprob = logprob.unwrap_or(f32::NEG_INFINITY);
                            pending.push(TokenLogprob::new(&self.tok, id, logprob, &top));
                        }
                        let text = self.decoder.push(self.tok.token_bytes(id));
                        let text = self.stops.push(&text);
                        self.say(text, false, &mut piece);
                    }
                }
                let empty = piece.text.is_empty() && piece.tokens.is_empty();
                (!empty).then_some(Step::Text(piece))
            }
            Event::Finish { reason, usage } => Some(self.finish(reason, usage)),
            // All of the text is there: what fails after it takes nothing away.
            Event::Error(_) if self.stops.hit() => {
                Some(self.finish(FinishReason::Stop, self.usage))
            }
            Event::Error(failure) => {
                self.over = true;
                let error = ApiError::from(failure);
                Some(Step::Failed(match error.code {
                    Some("context_length_exceeded") => error.param("prompt"),
                    _ => error,
                }))
            }
        }
    }

    fn finish(&mut self, reason: FinishReason, mut usage: Usage) -> Step {
        self.over = true;
        let mut rest = self.end_of_echo();
        if !self.stops.hit() {
            let text = self.decoder.finish();
            let text = self.stops.push(&text) + &self.stops.finish();
            let complete = !self.stops.hit();
            self.say(text, complete, &mut rest);
        }
        usage.generated_tokens = self.generated;
        let finish = match reason {
            _ if self.stops.hit() => "stop",
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => return Step::Failed(stopped()),
        };
        Step::Done(Box::new(Done {
            rest,
            finish,
            usage,
            miss: self.miss,
        }))
    }

    /// What is left of a character that the prompt's end cut.
    fn end_of_echo(&mut self) -> Piece {
        let text = self.echo.take().map(|mut decoder| decoder.finish());
        let text = text.unwrap_or_default();
        self.characters += text.chars().count();
        Piece {
            text,
            tokens: Vec::new(),
        }
    }

    /// Generated text goes out, with the tokens that begin in it; at the end with all that are left.
    fn say(&mut self, text: String, last: bool, piece: &mut Piece) {
        let (said, characters) = (self.said, self.characters);
        self.said += text.len();
        self.characters += text.chars().count();
        let end = match last {
            true => usize::MAX,
            false => self.said,
        };
        let due = self.pending.as_mut().map(|pending| pending.take(end));
        for (begin, token) in due.into_iter().flatten() {
            let before = text.get(..begin.saturating_sub(said)).unwrap_or(&text);
            piece.tokens.push(Entry {
                offset: characters + before.chars().count(),
                token,
                first: false,
            });
        }
        piece.text += &text;
    }
}

/// The `logprobs` object of a piece of text.
pub fn logprobs(tokens: &[Entry]) -> Value {
    let value = |entry: &Entry| match entry.first {
        true => Value::Null,
        false => json!(entry.token.logprob),
    };
    let top = |entry: &Entry| {
        if entry.first {
            return Value::Null;
        }
        let mut top = Map::new();
        for token in entry.token.top.iter().chain([&entry.token]) {
            top.entry(spelled(token)).or_insert(json!(token.logprob));
        }
        Value::Object(top)
    };
    json!({
        "tokens": tokens.iter().map(|entry| spelled(&entry.token)).collect::<Value>(),
        "token_logprobs": tokens.iter().map(value).collect::<Value>(),
        "top_logprobs": tokens.iter().map(top).collect::<Value>(),
        "text_offset": tokens.iter().map(|entry| entry.offset).collect::<Value>(),
    })
}

/// A token's text; if its bytes are no text, `bytes:` and each in hexadecimal, as OpenAI has it.
fn spelled(token: &TokenLogprob) -> String {
    if std::str::from_utf8(&token.bytes).is_ok() {
        return token.token.clone();
    }
    let hex = token.bytes.iter().map(|byte| format!("\\x{byte:02x}"));
    format!("bytes:{}", hex.collect::<String>())
}
