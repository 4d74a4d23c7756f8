//! A custom tool's input, out of the JSON in which the model writes it, as it comes.
//!
//! The model is told of a function with one string, `input`, and usually writes `{"input": "…"}`; then
//! the string's text is the input. What is not of that form is the input as it stands: nothing is lost.
//! The pieces that [`Input::push`] and [`Input::finish`] give are the whole, in order.

use std::iter::Peekable;
use std::str::Chars;

/// The text between `{` and the string: `"input":`, blanks left out.
const KEY: &str = "{\"input\":\"";

/// Takes the input out of a call's arguments.
#[derive(Debug, Default)]
pub(super) struct Input {
    state: State,
    /// What is not decided yet: the beginning, or an escape that is not whole.
    held: String,
}

#[derive(Debug, Default, PartialEq)]
enum State {
    /// Nothing but a part of [`KEY`] so far.
    #[default]
    Start,
    /// In the string.
    Text,
    /// After it.
    After,
    /// It is no such JSON: the text is the input.
    Raw,
}

impl Input {
    /// More of the arguments; gives what that adds to the input.
    pub fn push(&mut self, text: &str) -> String {
        match self.state {
            State::Raw => return text.to_owned(),
            State::After => return String::new(),
            State::Start | State::Text => self.held.push_str(text),
        }
        if self.state == State::Start {
            match begins(&self.held) {
                Begin::Open => return String::new(),
                Begin::Other => {
                    self.state = State::Raw;
                    return std::mem::take(&mut self.held);
                }
                Begin::Text(at) => {
                    self.state = State::Text;
                    self.held.drain(..at);
                }
            }
        }
        self.unescape()
    }

    /// The end of the arguments; gives what was held back.
    pub fn finish(&mut self) -> String {
        match self.state {
            // The call was cut, or is `{}`.
            State::Start | State::Text => std::mem::take(&mut self.held),
            State::After | State::Raw => String::new(),
        }
    }

    /// Decodes what is held, up to the string's end or an escape that is not whole.
    fn unescape(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        let mut out = String::with_capacity(held.len());
        let mut rest = held.as_str();
        while let Some(at) = rest.find(['"', '\\']) {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            if rest.starts_with('"') {
                self.state = State::After;
                return out;
            }
            match escape(rest) {
                Some((character, bytes)) => {
                    out.push(character);
                    rest = &rest[bytes..];
                }
                None => {
                    self.held = rest.to_owned();
                    return out;
                }
            }
        }
        out.push_str(rest);
        out
    }
}

enum Begin {
    /// It may still become the key.
    Open,
    /// The string begins at this byte.
    Text(usize),
    Other,
}

fn begins(text: &str) -> Begin {
    let mut key = KEY.chars();
    let mut within = false;
    for (at, c) in text.char_indices() {
        if !within && c.is_ascii_whitespace() {
            continue;
        }
        if key.next() != Some(c) {
            return Begin::Other;
        }
        within ^= c == '"';
        if key.as_str().is_empty() {
            return Begin::Text(at + 1);
        }
    }
    Begin::Open
}

/// The character of the escape that `text` begins with, and its bytes. None: it is not whole. What is
/// no escape of JSON stands for itself.
fn escape(text: &str) -> Option<(char, usize)> {
    let mut chars = text.chars().peekable();
    chars.next();
    let simple = match chars.next()? {
        '"' => '"',
        '/' => '/',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        '\\' => '\\',
        'u' => return unicode(chars),
        _ => return Some(('\\', 1)),
    };
    Some((simple, 2))
}

/// After `\u`: four hexadecimal digits, and if they are the first half of a pair, the second.
fn unicode(mut chars: Peekable<Chars>) -> Option<(char, usize)> {
    let first = match hex(&mut chars)? {
        Some(first) => first,
        None => return Some(('\\', 1)),
    };
    let lone = (char::REPLACEMENT_CHARACTER, 6);
    if !(0xd800..0xdc00).contains(&first) {
        return Some(char::from_u32(first).map_or(lone, |c| (c, 6)));
    }
    if *chars.peek()? != '\\' {
        return Some(lone);
    }
    chars.next();
    if *chars.peek()? != 'u' {
        return Some(lone);
    }
    chars.next();
    match hex(&mut chars)? {
        Some(second) if (0xdc00..0xe000).contains(&second) => {
            let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            Some(char::from_u32(code).map_or(lone, |c| (c, 12)))
        }
        _ => Some(lone),
    }
}

/// Four hexadecimal digits: outer `None` if they are not all there, inner if they are no such digits.
fn hex(chars: &mut Peekable<Chars>) -> Option<Option<u32>> {
    let mut value = 0;
    for _ in 0..4 {
        let Some(digit) = chars.peek()?.to_digit(16) else {
            return Some(None);
        };
        chars.next();
        value = value * 16 + digit;
    }
    Some(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The input of `text`, cut at every place in turn, and whole.
    fn read(text: &str) -> String {
        let whole = |cuts: &[usize]| {
            let mut input = Input::default();
            let mut out = String::new();
            let mut from = 0;
            for &to in cuts.iter().chain([&text.len()]) {
                out += &input.push(&text[from..to]);
                from = to;
            }
            out + &input.finish()
        };
        let every: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let one = whole(&[]);
        assert_eq!(one, whole(&every), "{text}");
        for &at in &every {
            assert_eq!(one, whole(&[at]), "{text} cut at {at}");
        }
        one
    }

    #[test]
    fn json_gives_its_string() {
        let texts = [
            "",
            "ls -l",
            "a \"quoted\" \\ line\nand\ttabs \u{8}\u{c}\r/",
            "größe 漢字 😀",
            "{\"input\":\"nested\"}",
        ];
        for text in texts {
            let json = serde_json::json!({"input": text});
            assert_eq!(read(&json.to_string()), text);
            let pretty = serde_json::to_string_pretty(&json).expect("JSON");
            assert_eq!(read(&pretty), text);
        }
        assert_eq!(read(r#"{"input":"\ud83d\ude00 \u00e9 \/"}"#), "😀 é /");
    }

    #[test]
    fn what_is_no_such_json_stays() {
        for text in [
            "*** Begin Patch\n*** End Patch",
            "{\"path\": \"x\"}",
            "{}",
            "{\"input\": 5}",
            "  {\"inp",
            "",
        ] {
            assert_eq!(read(text), text);
        }
    }

    #[test]
    fn broken_strings_lose_nothing() {
        assert_eq!(read(r#"{"input":"cut"#), "cut");
        assert_eq!(read(r#"{"input":"cut\"#), "cut\\");
        assert_eq!(read(r#"{"input":"cut\u00"#), "cut\\u00");
        assert_eq!(
            read(r#"{"input":"\q \ud800x \ud800\n"}"#),
            "\\q \u{fffd}x \u{fffd}\n"
        );
    }
}
