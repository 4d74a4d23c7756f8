//! A fact in a long text, and the question for it: recall.
//!
//! The text is made of the words that the demo model knows; every other model knows them too.

use crate::{
    harmony::{Conversation, Effort, Message},
    tokenizer::Tokenizer,
};
use anyhow::Result;

const SUBJECTS: [&str; 8] = [
    "The river",
    "A small bird",
    "The old clock",
    "My neighbor",
    "A quiet street",
    "The librarian",
    "The harbor",
    "A cold wind",
];
const VERBS: [&str; 7] = [
    "waits near",
    "moves past",
    "looks at",
    "belongs to",
    "stands beside",
    "comes back to",
    "rests behind",
];
const OBJECTS: [&str; 9] = [
    "the stone bridge",
    "a wooden door",
    "the tall tower",
    "the morning light",
    "the red house",
    "an open window",
    "the north road",
    "the apple trees",
    "the blue hills",
];
const NAMES: [&str; 6] = ["Leka", "Bodra", "Nilo", "Tavel", "Rumo", "Kelsa"];

/// A prompt that holds a fact, and what is to be answered.
pub struct Needle {
    pub tokens: Vec<u32>,
    pub expected: String,
}

/// A conversation of about `length` tokens with a fact at `place` of its text (0: the beginning, 1: the end).
/// The text is the same for all places, and the seed decides name and number.
pub fn needle(tokenizer: &Tokenizer, length: usize, place: f64, seed: u64) -> Result<Needle> {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below.max(1) as u64) as usize
    };
    let name = NAMES[draw(NAMES.len())];
    let number = (100_000 + draw(900_000)).to_string();
    let fact = format!("The phone number of {name} is {number}.");
    let question = format!("What is the phone number of {name}?");
    let around = conversation(&fact, &question).render(tokenizer)?.len();
    let mut left = length.saturating_sub(around);
    let mut sentences = Vec::new();
    loop {
        let (subject, verb) = (draw(SUBJECTS.len()), draw(VERBS.len()));
        let object = OBJECTS[draw(OBJECTS.len())];
        let sentence = format!("{} {} {object}.", SUBJECTS[subject], VERBS[verb]);
        let tokens = tokenizer.encode(&format!(" {sentence}")).len();
        if tokens > left {
            break;
        }
        left -= tokens;
        sentences.push(sentence);
    }
    let at = (place.clamp(0.0, 1.0) * sentences.len() as f64).round() as usize;
    sentences.insert(at.min(sentences.len()), fact);
    let tokens = conversation(&sentences.join(" "), &question).render(tokenizer)?;
    Ok(Needle {
        tokens,
        expected: number,
    })
}

fn conversation(text: &str, question: &str) -> Conversation {
    Conversation {
        effort: Effort::Low,
        // A day like any other: the prompt is the same every day.
        date: Some("2026-01-01".into()),
        messages: vec![Message::user(format!("{text}\n\n{question}"))],
        ..Conversation::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::Common;

    #[test]
    fn a_needle_lies_where_it_was_put() -> Result<()> {
        let tokenizer = Common::default().open_checkpoint()?.tokenizer()?;
        let text = |needle: &Needle| {
            String::from_utf8_lossy(&tokenizer.decode(&needle.tokens)).into_owned()
        };
        let mut found = Vec::new();
        for place in [0.0, 0.5, 1.0] {
            let needle = needle(&tokenizer, 1024, place, 3)?;
            let length = needle.tokens.len();
            assert!((980..=1024).contains(&length), "{length} tokens");
            let text = text(&needle);
            assert_eq!(text.matches(&needle.expected).count(), 1);
            let fact = text.find("The phone number of").expect("a fact");
            found.push(fact as f64 / text.len() as f64);
        }
        assert!(
            found[0] < 0.3 && (0.4..0.65).contains(&found[1]) && found[2] > 0.8,
            "{found:?}"
        );
        // A length that holds no filler still asks.
        assert!(needle(&tokenizer, 0, 0.5, 1)?.tokens.len() > 20);
        Ok(())
    }
}
