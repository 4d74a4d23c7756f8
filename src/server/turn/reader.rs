//! Tokens to turn events: Harmony's deltas, with stop strings and log-probabilities applied.
//!
//! Stop strings count in the final text alone. What could be the beginning of one waits; once one is
//! complete nothing of it nor after it goes out, in events or in the [`Turn`]. The same end is made
//! after a call where the request wants one call at most.

use super::{TurnEvent, logprobs::Ledger, logprobs::TokenLogprob};
use crate::{
    harmony::{Channel, Delta, Parser, Part, Turn},
    stop::StopStrings,
    tokenizer::Tokenizer,
};
use std::sync::Arc;

/// One turn's reader.
pub(super) struct Reader {
    tok: Arc<Tokenizer>,
    parser: Parser,
    teller: Teller,
    tokens: usize,
}

impl Reader {
    /// `one_call`: the turn ends with its first call. `logprobs`: tokens come with theirs.
    pub fn new(
        tok: Arc<Tokenizer>,
        parser: Parser,
        stops: Vec<String>,
        one_call: bool,
        logprobs: bool,
    ) -> Reader {
        Reader {
            tok,
            parser,
            teller: Teller {
                stops,
                one_call,
                ledger: logprobs.then(Ledger::default),
                open: None,
                cut: None,
                stopped_by: None,
            },
            tokens: 0,
        }
    }

    /// Whether the turn is over before the model ends it: a stop string, or enough calls.
    pub fn is_over(&self) -> bool {
        self.teller.cut.is_some()
    }

    /// Takes in a token; nothing comes of those after the end.
    pub fn push(
        &mut self,
        id: u32,
        logprob: Option<f32>,
        top: &[(u32, f32)],
        out: &mut impl Extend<TurnEvent>,
    ) {
        if self.is_over() {
            return;
        }
        self.tokens += 1;
        let deltas = self.parser.push(id);
        if let Some(ledger) = &mut self.teller.ledger {
            let logprob = logprob.unwrap_or(f32::NEG_INFINITY);
            ledger.push(TokenLogprob::new(&self.tok, id, logprob, top));
            ledger.read(self.parser.turn());
        }
        for delta in deltas {
            self.teller.delta(delta, out);
        }
    }

    /// The events that were held back, and all that was told.
    pub fn finish(mut self, out: &mut impl Extend<TurnEvent>) -> Told {
        let (deltas, mut turn) = self.parser.finish();
        if let Some(ledger) = &mut self.teller.ledger {
            ledger.read(&turn);
        }
        // A call that ends only now was not enough of one: the limit ended the turn, not the call.
        self.teller.one_call = false;
        for delta in deltas {
            self.teller.delta(delta, out);
        }
        if let Some((last, said)) = self.teller.cut {
            turn.messages.truncate(last + 1);
            turn.parts.truncate(last + 1);
            if let Some(message) = turn.messages.last_mut() {
                message.content.truncate(said);
            }
        }
        Told {
            turn,
            tokens: self.tokens,
            cut: self.teller.cut.is_some(),
            stopped_by: self.teller.stopped_by,
        }
    }
}

/// A turn that is over.
pub(super) struct Told {
    /// Its messages, none of them longer than was told.
    pub turn: Turn,
    /// Tokens read.
    pub tokens: usize,
    /// It was over before the model ended it.
    pub cut: bool,
    /// The stop string that ended it.
    pub stopped_by: Option<String>,
}

/// Deltas to events.
struct Teller {
    stops: Vec<String>,
    one_call: bool,
    ledger: Option<Ledger>,
    open: Option<Open>,
    /// The message that ends the turn early, and how many bytes of it were said.
    cut: Option<(usize, usize)>,
    stopped_by: Option<String>,
}

/// The message whose text arrives.
struct Open {
    index: usize,
    is_call: bool,
    /// Only in final text.
    stops: Option<StopStrings>,
    /// Bytes of its text that went out.
    said: usize,
}

impl Teller {
    fn delta(&mut self, delta: Delta, out: &mut impl Extend<TurnEvent>) {
        if self.cut.is_some() {
            return;
        }
        match delta {
            Delta::Open {
                index,
                part,
                header,
            } => {
                let is_final = part == Part::Text && header.channel == Some(Channel::Final);
                self.open = Some(Open {
                    index,
                    is_call: matches!(part, Part::Call { .. }),
                    stops: (is_final && !self.stops.is_empty())
                        .then(|| StopStrings::new(&self.stops)),
                    said: 0,
                });
                out.extend([TurnEvent::Open {
                    index,
                    part,
                    header,
                }]);
            }
            Delta::Text { text, .. } => self.say(&text, false, out),
            Delta::Close { .. } => self.say("", true, out),
        }
    }

    /// More text of the open message, and its end.
    fn say(&mut self, text: &str, closes: bool, out: &mut impl Extend<TurnEvent>) {
        let Some(open) = &mut self.open else { return };
        let (mut hit, mut text) = (false, text.to_owned());
        if let Some(stops) = &mut open.stops {
            text = stops.push(&text);
            hit = stops.hit();
            self.stopped_by = stops.matched().map(str::to_owned);
            if closes && !hit {
                text += &stops.finish();
            }
        }
        open.said += text.len();
        // At the end also tokens of whose bytes no text came.
        let end = match closes && !hit {
            true => usize::MAX,
            false => open.said,
        };
        let logprobs = self.ledger.as_mut().map(|l| l.take(open.index, end));
        let logprobs = logprobs.unwrap_or_default();
        let index = open.index;
        if !text.is_empty() || !logprobs.is_empty() {
            out.extend([TurnEvent::Text {
                index,
                text,
                logprobs,
            }]);
        }
        if hit || (closes && open.is_call && self.one_call) {
            self.cut = Some((index, open.said));
        }
        if closes || hit {
            out.extend([TurnEvent::Close { index }]);
            self.open = None;
        }
    }
}
