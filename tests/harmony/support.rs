//! The true vocabulary, ids from text with control tokens, and what must hold of every parse.

use gossamer::{
    harmony::{Builtin, Class, Conversation, Delta, Ending, Parser, ToolNames, Turn},
    tokenizer::{Tokenizer, Vocabulary},
};
use std::sync::{Arc, LazyLock};

static O200K: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let vocabulary = Vocabulary::o200k_harmony().expect("the asset");
    Arc::new(vocabulary.tokenizer().expect("a complete vocabulary"))
});

pub fn tokenizer() -> Arc<Tokenizer> {
    Arc::clone(&O200K)
}

pub const CONTROLS: [&str; 8] = [
    "<|start|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
];

/// Ids of `text`, in which control tokens are written by their names.
pub fn ids(text: &str) -> Vec<u32> {
    let tok = tokenizer();
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let next = CONTROLS
            .iter()
            .filter_map(|name| rest.find(name).map(|at| (at, *name)))
            .min();
        let (at, name) = next.unwrap_or((rest.len(), ""));
        out.extend(tok.encode(&rest[..at]));
        out.extend(tok.special(name));
        rest = &rest[at + name.len()..];
    }
    out
}

pub fn names(functions: &[&str], builtins: &[Builtin]) -> ToolNames {
    ToolNames::from_names(functions.iter().copied(), builtins)
}

/// Parses `ids`, and checks that the account is complete, that the deltas tell the same as the turn,
/// and that the result does not depend on how the ids are pushed. `cuts` chooses another way to.
pub fn parse(names: &ToolNames, ids: &[u32], cuts: u64) -> Turn {
    let tok = tokenizer();
    let parser = || Parser::new(tokenizer(), names.clone()).expect("a Harmony vocabulary");

    let mut one_by_one = parser();
    let mut deltas = Vec::new();
    let mut pushed = 0;
    for &id in ids {
        pushed += tok.token_bytes(id).len();
        deltas.extend(one_by_one.push(id));
        // Only a header is held back, and that is short.
        let held = pushed - one_by_one.turn().account.bytes().len();
        assert!(held <= 1200, "{held} bytes held back");
    }
    let (last, turn) = one_by_one.finish();
    deltas.extend(last);

    let mut in_slices = parser();
    let mut sliced = Vec::new();
    let mut rest = ids;
    let mut state = cuts | 1;
    while !rest.is_empty() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let n = ((state >> 33) as usize % 9).min(rest.len());
        sliced.extend(in_slices.extend(&rest[..n]));
        rest = &rest[n..];
    }
    let (last, other) = in_slices.finish();
    sliced.extend(last);
    assert_eq!(turn, other, "the turn depends on how ids are pushed");
    assert_eq!(deltas, sliced, "the deltas depend on how ids are pushed");

    let account = &turn.account;
    assert_eq!(account.bytes(), tok.decode(ids), "the account's bytes");
    assert_eq!(account.tokens(), ids.len(), "the account's tokens");
    let sums = account
        .pieces()
        .iter()
        .fold((0, 0), |(bytes, tokens), piece| {
            (bytes + piece.bytes, tokens + piece.tokens)
        });
    assert_eq!(sums, (account.bytes().len(), ids.len()), "the pieces");
    for (index, message) in turn.messages.iter().enumerate() {
        let bytes = account.text_of(index);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(message.content, text, "message {index}'s text");
    }
    let texts = account
        .pieces()
        .iter()
        .filter_map(|piece| match piece.class {
            Class::Text(index) => Some(index),
            _ => None,
        });
    assert!(texts.clone().all(|index| index < turn.messages.len()));
    assert!(texts.is_sorted(), "texts in the messages' order");

    check_deltas(&deltas, &turn);
    // Whatever was said, the conversation can go on.
    let conversation = Conversation {
        messages: turn.messages.clone(),
        ..Conversation::default()
    };
    conversation.render(&tok).expect("a prompt with this turn");
    turn
}

/// Every message is opened, written and closed once, in order, with the turn's text.
fn check_deltas(deltas: &[Delta], turn: &Turn) {
    let mut contents: Vec<String> = Vec::new();
    let mut open = None;
    let mut last = None;
    for delta in deltas {
        match delta {
            Delta::Open {
                index,
                part,
                header,
            } => {
                assert_eq!((open, *index), (None, contents.len()));
                assert_eq!(*part, turn.parts[*index]);
                let mut message = turn.messages[*index].clone();
                message.content.clear();
                assert_eq!(*header, message);
                contents.push(String::new());
                open = Some(*index);
            }
            Delta::Text { index, text } => {
                assert_eq!(open, Some(*index));
                assert!(!text.is_empty());
                contents[*index].push_str(text);
            }
            Delta::Close { index, ending } => {
                assert_eq!(open, Some(*index));
                open = None;
                last = Some(*ending);
            }
        }
    }
    assert_eq!(open, None, "every message is closed");
    let told: Vec<&String> = turn
        .messages
        .iter()
        .map(|message| &message.content)
        .collect();
    assert_eq!(contents.iter().collect::<Vec<_>>(), told);
    if turn.ending == Ending::Open && !turn.messages.is_empty() {
        assert_eq!(last, Some(Ending::Open));
    }
}
