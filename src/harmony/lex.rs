//! A header's tokens, collected until they can be read, and cut into lexemes.
//!
//! The cut depends on bytes and on where tokens meet, never on how ids were pushed.

use super::account::Repair;
use super::control::Control;

const LITERAL_CONSTRAIN: &str = "<|constrain|>";
/// Words that models glue to what follows them.
const GLUED: [&str; 4] = ["assistant", "analysis", "commentary", "final"];

/// Signs that text begins with, and broken headers don't.
const OPENERS: &str = "{}[](\"'`*#>“‘«";

/// What a lexeme is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lex {
    Blank,
    /// Letters, digits and the signs of names.
    Word(String),
    /// `to=` and what follows it.
    To(String),
    /// Other signs; true if they look like the beginning of text (a brace, a quote).
    Junk(bool),
    /// `<|constrain|>`, or a beginning of it, spelled in ordinary tokens.
    Literal,
    Mark(Control),
    /// A token that has no meaning anywhere.
    Alien(Repair),
}

/// A lexeme and its bytes in the header.
#[derive(Debug, Clone)]
pub(super) struct Lexeme {
    pub lex: Lex,
    pub start: usize,
    pub end: usize,
}

/// The tokens of a header, so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Collected {
    pub bytes: Vec<u8>,
    tokens: Vec<Token>,
    /// Control tokens and unknown ids among them.
    marks: Vec<Lexeme>,
}

/// A collected token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub id: u32,
    /// Offset of its first byte.
    pub start: usize,
    /// Whether it is a lexeme of its own.
    pub mark: bool,
}

impl Collected {
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub fn text(&mut self, id: u32, bytes: &[u8]) {
        self.token(id, bytes, false);
    }

    pub fn mark(&mut self, id: u32, lex: Lex, bytes: &[u8]) {
        let start = self.bytes.len();
        self.token(id, bytes, true);
        self.marks.push(Lexeme {
            lex,
            start,
            end: start + bytes.len(),
        });
    }

    fn token(&mut self, id: u32, bytes: &[u8], mark: bool) {
        let start = self.bytes.len();
        self.tokens.push(Token { id, start, mark });
        self.bytes.extend_from_slice(bytes);
    }

    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// How many tokens begin in a lexeme.
    pub fn tokens_in(&self, lexeme: &Lexeme) -> usize {
        match lexeme.lex {
            Lex::Mark(_) | Lex::Alien(_) => 1,
            _ => self.text_tokens(lexeme.start, lexeme.end),
        }
    }

    /// How many tokens that are no marks begin in these bytes.
    pub fn text_tokens(&self, start: usize, end: usize) -> usize {
        let inside = |token: &&Token| !token.mark && (start..end).contains(&token.start);
        self.tokens.iter().filter(inside).count()
    }

    pub fn marks(&self) -> usize {
        self.marks.len()
    }

    /// All of it as lexemes; every byte is in one, and every mark is one.
    pub fn lexemes(&self) -> Vec<Lexeme> {
        let mut out = Vec::new();
        let mut at = 0;
        for mark in &self.marks {
            self.cut(at, mark.start, &mut out);
            out.push(mark.clone());
            at = mark.end;
        }
        self.cut(at, self.bytes.len(), &mut out);
        out
    }

    fn cut(&self, start: usize, end: usize, out: &mut Vec<Lexeme>) {
        let chars = chars(&self.bytes[start..end], start);
        let mut i = 0;
        while let Some(&(at, c)) = chars.get(i) {
            let kind = kind(c);
            let rest = &self.bytes[at..end];
            let literal = LITERAL_CONSTRAIN.as_bytes();
            let (lex, next) = if rest.starts_with(literal) || literal.starts_with(rest) {
                (Lex::Literal, i + rest.len().min(literal.len()))
            } else if kind == Kind::Word && rest.starts_with(b"to=") {
                let name = run(&chars, i + 3, Kind::Word);
                (Lex::To(collect(&chars[i + 3..name])), name)
            } else {
                let next = run(&chars, i, kind);
                let lex = match kind {
                    Kind::Blank => Lex::Blank,
                    Kind::Junk => Lex::Junk(false),
                    Kind::Word => Lex::Word(collect(&chars[i..next])),
                };
                match lex {
                    Lex::Word(word) => {
                        let length = self.glued(&word, at).unwrap_or(next - i);
                        (Lex::Word(collect(&chars[i..i + length])), i + length)
                    }
                    // A literal may begin inside a run of signs.
                    Lex::Junk(_) => {
                        let next = (i + 1..next).find(|&j| chars[j].1 == '<').unwrap_or(next);
                        let opens = |&(_, c): &(usize, char)| OPENERS.contains(c);
                        (Lex::Junk(chars[i..next].iter().any(opens)), next)
                    }
                    lex => (lex, next),
                }
            };
            let to = chars.get(next).map_or(end, |&(at, _)| at);
            out.push(Lexeme {
                lex,
                start: at,
                end: to,
            });
            i = next;
        }
    }

    /// How many characters of `word`, which begins at byte `at`, are a known word that something else
    /// is glued to: a token ends there, or no lower-case letter follows, or another such word does.
    fn glued(&self, word: &str, at: usize) -> Option<usize> {
        GLUED.iter().map(|known| known.len()).find(|&length| {
            let Some((head, tail)) = word.split_at_checked(length) else {
                return false;
            };
            let splits = || {
                self.tokens.iter().any(|token| token.start == at + length)
                    || !tail.starts_with(|c: char| c.is_lowercase())
                    || tail.starts_with("to=")
                    || GLUED.iter().any(|known| tail.starts_with(known))
            };
            !tail.is_empty() && GLUED.iter().any(|k| head.eq_ignore_ascii_case(k)) && splits()
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Blank,
    Word,
    Junk,
}

fn kind(c: char) -> Kind {
    match c {
        _ if c.is_whitespace() => Kind::Blank,
        _ if c.is_alphanumeric() => Kind::Word,
        '_' | '.' | '$' | '-' | ':' | '/' | '+' | '=' => Kind::Word,
        _ => Kind::Junk,
    }
}

/// The characters of `bytes` with their offsets from `base` on; what isn't UTF-8 is U+FFFD.
fn chars(bytes: &[u8], base: usize) -> Vec<(usize, char)> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = base;
    for chunk in bytes.utf8_chunks() {
        out.extend(chunk.valid().char_indices().map(|(i, c)| (at + i, c)));
        at += chunk.valid().len();
        if !chunk.invalid().is_empty() {
            out.push((at, char::REPLACEMENT_CHARACTER));
            at += chunk.invalid().len();
        }
    }
    out
}

/// The index after the run of `kind` at `from`.
fn run(chars: &[(usize, char)], from: usize, wanted: Kind) -> usize {
    let rest = chars.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|&&(_, c)| kind(c) == wanted).count()
}

fn collect(chars: &[(usize, char)]) -> String {
    chars.iter().map(|&(_, c)| c).collect()
}
