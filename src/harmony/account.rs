//! The account of a turn: every token and byte the model produced, exactly once, in order.

use rustc_hash::FxHashMap;
use std::fmt;

/// Something malformed that the parser put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Repair {
    /// Text where a header should stand: taken as the answer.
    MissingHeader,
    /// A header without `<|start|>` after a message has ended.
    MissingStart,
    /// `<|start|>` without a role: taken as the assistant.
    MissingRole,
    /// A header without a channel: `commentary` for a call, else `final`.
    MissingChannel,
    /// A header without `<|message|>`.
    MissingMessage,
    /// A message cut by the next one's header.
    MissingEnd,
    /// A marker, role, channel or recipient that was there already; the last one counts.
    Repeated,
    /// A role that doesn't exist: taken as the assistant.
    UnknownRole,
    /// A channel that doesn't exist: taken as `final`.
    UnknownChannel,
    /// A recipient that needed cleaning: no `to=`, an empty name, `to=assistant`, a glued `json`.
    Recipient,
    /// A call of a tool that was never declared: taken as text on `commentary`.
    UndeclaredTool,
    /// Letters or signs in a header that mean nothing.
    Junk,
    /// A control token where none belongs.
    StrayMarker,
    /// An id outside the vocabulary, or one of its reserved and padding ids.
    UnknownToken,
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Repair::MissingHeader => "missing header",
            Repair::MissingStart => "missing <|start|>",
            Repair::MissingRole => "missing role",
            Repair::MissingChannel => "missing channel",
            Repair::MissingMessage => "missing <|message|>",
            Repair::MissingEnd => "missing <|end|>",
            Repair::Repeated => "repeated header part",
            Repair::UnknownRole => "unknown role",
            Repair::UnknownChannel => "unknown channel",
            Repair::Recipient => "malformed recipient",
            Repair::UndeclaredTool => "call of an undeclared tool",
            Repair::Junk => "junk in a header",
            Repair::StrayMarker => "stray control token",
            Repair::UnknownToken => "unknown token",
        })
    }
}

/// How often each repair was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repairs {
    counts: FxHashMap<Repair, usize>,
}

impl Repairs {
    pub(super) fn add(&mut self, repair: Repair) {
        *self.counts.entry(repair).or_default() += 1;
    }

    /// How often `repair` was made.
    pub fn count(&self, repair: Repair) -> usize {
        self.counts.get(&repair).copied().unwrap_or(0)
    }

    /// All repairs together: 0 for a well-formed turn.
    pub fn total(&self) -> usize {
        self.counts.values().sum()
    }

    /// The kinds that occurred, with their counts, in the order in which [`Repair`] lists them.
    pub fn iter(&self) -> impl Iterator<Item = (Repair, usize)> {
        let mut kinds: Vec<(Repair, usize)> = self.counts.iter().map(|(&k, &n)| (k, n)).collect();
        kinds.sort_unstable();
        kinds.into_iter()
    }
}

/// What a piece of the output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Text of the message with this index.
    Text(usize),
    /// Part of a header.
    Header,
    /// A control token in its place.
    Marker,
    /// Neither: put right or left out.
    Repaired(Repair),
}

/// A run of bytes of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// What they are.
    pub class: Class,
    /// Number of bytes; 0 for an id outside the vocabulary.
    pub bytes: usize,
    /// Tokens that begin in this piece. A token that is part header, part text begins in the header.
    pub tokens: usize,
}

/// The account: the pieces' bytes, one after the other, are the decoded output, and their tokens
/// add up to the number of ids pushed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    pieces: Vec<Piece>,
    bytes: Vec<u8>,
    tokens: usize,
}

impl Account {
    pub(super) fn add(&mut self, class: Class, bytes: &[u8], tokens: usize) {
        self.bytes.extend_from_slice(bytes);
        self.tokens += tokens;
        if let Some(last) = self.pieces.last_mut()
            && last.class == class
        {
            last.bytes += bytes.len();
            last.tokens += tokens;
            return;
        }
        self.pieces.push(Piece {
            class,
            bytes: bytes.len(),
            tokens,
        });
    }

    /// The pieces, in order; neighbours differ in class.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// All bytes, in order, control tokens by their names.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of tokens in all.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The bytes of message `index`'s text.
    pub fn text_of(&self, index: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        for piece in &self.pieces {
            if piece.class == Class::Text(index) {
                out.extend_from_slice(&self.bytes[at..at + piece.bytes]);
            }
            at += piece.bytes;
        }
        out
    }
}
