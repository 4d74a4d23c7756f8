//! Cuts text into the pieces inside which BPE merges: the o200k pattern, matched in linear time.
//!
//! The original ends in `\s+(?!\S)|\s+`: a run of blanks leaves its last one to the word that
//! follows. A finite automaton has no look-ahead, so three patterns share one automaton instead:
//! what ends where the match ends (blanks at the end of the text included), a run of two or more
//! blanks, whose last character is given back, and a lone blank. Earlier patterns win.

use anyhow::{Context, Result};
use regex_automata::{
    Anchored, Input, PatternID,
    meta::{Config, Regex},
    util::syntax,
};

/// The whole pattern, as tokenizer.json files spell it.
pub const SPLIT: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Everything but look-ahead. Named parts follow the pattern's own order.
const WHOLE: &str = concat!(
    // A word: an optional leading mark, capitals then small letters; then a contraction.
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    // Up to three digits.
    r"|\p{N}{1,3}",
    // Punctuation, with the line ends and slashes after it.
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*",
    // Blanks that end in line ends, or end the text.
    r"|\s*[\r\n]+",
    r"|\s+$",
);
/// Blanks before something else: the last one belongs to what follows.
const GIVE_BACK: &str = r"\s+\s";
const LONE: &str = r"\s+";

/// The compiled pattern; shared by threads.
pub(super) struct Splitter {
    regex: Regex,
}

impl Splitter {
    pub fn new() -> Result<Splitter> {
        let regex = Regex::builder()
            // The automaton's states for many scripts outgrow the default cache of 2 MiB.
            .configure(Config::new().hybrid_cache_capacity(16 << 20))
            .syntax(syntax::Config::new())
            .build_many(&[WHOLE, GIVE_BACK, LONE])
            .context("the o200k split pattern")?;
        Ok(Splitter { regex })
    }

    /// Calls `visit` with every piece's bytes, in order; together they are `text`.
    pub fn for_each(&self, text: &str, mut visit: impl FnMut(&[u8])) {
        let mut start = 0;
        while start < text.len() {
            let input = Input::new(text).range(start..).anchored(Anchored::Yes);
            let end = match self.regex.search_half(&input) {
                Some(found) if found.pattern() == PatternID::must(1) => {
                    let run = &text[start..found.offset()];
                    found.offset() - run.chars().next_back().map_or(0, char::len_utf8)
                }
                Some(found) => found.offset(),
                // Every character is a letter, a digit, a blank or something else.
                None => text.len(),
            };
            visit(&text.as_bytes()[start..end]);
            start = end;
        }
    }
}
