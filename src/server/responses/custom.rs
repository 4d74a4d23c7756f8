//! A custom tool's input, out of the JSON in which the model writes it, as it comes.
//!
//! The model is told of a function with one string, `input`, and usually writes `{"input": "…"}`; then
//! the string's text is the input. What is not of that form is the input as it stands, and a quote that
//! does not end the object is one that the model forgot to escape: nothing is lost. The pieces that
//! [`Input::push`] and [`Input::finish`] give are the whole, in order.

use std::{iter::Peekable, mem::take, ops::Range, str::Chars};

/// The text between `{` and the string, blanks left out.
const KEY: &str = "{\"input\":\"";
/// Where in [`KEY`] no blank can be left out: before the name's letters and the quote that ends it.
const NAME: Range<usize> = 2..8;

/// Takes the input out of a call's arguments.
#[derive(Debug, Default)]
pub(super) struct Input {
    state: State,
    /// What is not decided yet: all of the beginning, an escape that is not whole, or what may be the
    /// end.
    held: String,
}

#[derive(Debug, PartialEq)]
enum State {
    /// So many bytes of [`KEY`], and nothing else but blanks.
    Key(usize),
    /// In the string.
    Text,
    /// In an escape.
    Escape,
    /// At a quote; it ends the string if nothing but the object's end (`closed`) and blanks follow.
    Quote { closed: bool },
    /// It is no such JSON: the text is the input.
    Raw,
}

impl Default for State {
    fn default() -> State {
        State::Key(0)
    }
}

impl Input {
    /// More of the arguments; gives what that adds to the input.
    pub fn push(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            self.read(c, &mut out);
        }
        out
    }

    /// The end of the arguments; gives what was held back.
    pub fn finish(&mut self) -> String {
        match self.state {
            // The call was cut, or is `{}`.
            State::Key(_) | State::Escape => take(&mut self.held),
            _ => String::new(),
        }
    }

    fn read(&mut self, c: char, out: &mut String) {
        match self.state {
            State::Raw => out.push(c),
            State::Key(at) => {
                self.held.push(c);
                if c.is_ascii_whitespace() && !NAME.contains(&at) {
                    return;
                }
                if !KEY.get(at..).is_some_and(|rest| rest.starts_with(c)) {
                    self.state = State::Raw;
                    out.push_str(&take(&mut self.held));
                } else if at + 1 < KEY.len() {
                    self.state = State::Key(at + 1);
                } else {
                    self.state = State::Text;
                    self.held.clear();
                }
            }
            State::Text => {
                self.state = match c {
                    '"' => State::Quote { closed: false },
                    '\\' => State::Escape,
                    c => return out.push(c),
                };
                self.held.push(c);
            }
            State::Escape => {
                self.held.push(c);
                if let Some((character, bytes)) = escape(&self.held) {
                    out.push(character);
                    self.resume(bytes, out);
                }
            }
            State::Quote { closed } => {
                self.held.push(c);
                match c {
                    '}' if !closed => self.state = State::Quote { closed: true },
                    c if c.is_ascii_whitespace() => {}
                    _ => {
                        out.push('"');
                        self.resume(1, out);
                    }
                }
            }
        }
    }

    /// Goes on in the string with what is held, but for its first `bytes`.
    fn resume(&mut self, bytes: usize, out: &mut String) {
        self.state = State::Text;
        let rest = self.held.split_off(bytes);
        self.held.clear();
        for c in rest.chars() {
            self.read(c, out);
        }
    }
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
        assert_eq!(read(r#"{"input":"cut" "#), "cut");
        assert_eq!(read(r#"{"input":"cut\"#), "cut\\");
        assert_eq!(read(r#"{"input":"cut\u00"#), "cut\\u00");
        assert_eq!(
            read(r#"{"input":"\q \ud800x \ud800\n"}"#),
            "\\q \u{fffd}x \u{fffd}\n"
        );
    }

    #[test]
    fn quotes_that_end_nothing_belong_to_the_text() {
        for (text, input) in [
            (
                r#"{"input":"grep "foo bar" /etc/x"}"#,
                r#"grep "foo bar" /etc/x"#,
            ),
            (r#"{"input":"echo "{}""}"#, r#"echo "{}""#),
            (
                r#"{"input":"say "a"} and \"b\"\n"}"#,
                "say \"a\"} and \"b\"\n",
            ),
            (
                r#"{"input":"ls","workdir":"/tmp"}"#,
                r#"ls","workdir":"/tmp"#,
            ),
            (r#"{"input":"x"}]"#, r#"x"}]"#),
            ("{\"input\":\"x\" \n } ", "x"),
            (r#"{"input":"""}"#, "\""),
            (r#"{"input":""}}"#, "\"}}"),
        ] {
            assert_eq!(read(text), input, "{text}");
        }
    }

    #[test]
    fn blanks_without_end_are_read_once() {
        let mut input = Input::default();
        let begun = std::time::Instant::now();
        let mut out = input.push("{");
        for _ in 0..1_000_000 {
            out += &input.push(" ");
        }
        out += &input.push("\"input\":\"x\"");
        for _ in 0..1_000_000 {
            out += &input.push("\n");
        }
        assert_eq!(out + &input.finish(), "x");
        // Read again from its start with every token it would take hours.
        assert!(begun.elapsed() < std::time::Duration::from_secs(60));
    }
}
