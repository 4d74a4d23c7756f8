//! Bytes to valid text: all at once at the door, or as they arrive.

use std::borrow::Cow;

/// Decodes UTF-8 that arrives in arbitrary cuts. A character is given out when it is whole; bytes
/// that can't be one become U+FFFD. The text does not depend on the cuts and equals
/// [`String::from_utf8_lossy`] of all bytes.
#[derive(Debug, Default, Clone)]
pub struct StreamDecoder {
    /// The start of a character, at most 3 bytes.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// The text that `bytes` complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut rest = self.pending.as_slice();
        let kept = loop {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    break 0;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            match error.error_len() {
                None => break after.len(),
                Some(bad) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[bad..];
                }
            }
        };
        self.pending.drain(..self.pending.len() - kept);
        text
    }

    /// Ends the text: U+FFFD if a character was cut, else nothing. The decoder is as new.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// Any bytes as text: what isn't UTF-8 becomes U+FFFD, a surrogate encoded on its own (three bytes,
/// as some programs write) one U+FFFD.
pub fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        let surrogate = rest.windows(3).position(|w| {
            w[0] == 0xED && matches!(w[1], 0xA0..=0xBF) && matches!(w[2], 0x80..=0xBF)
        });
        let Some(at) = surrogate else {
            text.push_str(&String::from_utf8_lossy(rest));
            return Cow::Owned(text);
        };
        text.push_str(&String::from_utf8_lossy(&rest[..at]));
        text.push(char::REPLACEMENT_CHARACTER);
        rest = &rest[at + 3..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_never_split() {
        let mut decoder = StreamDecoder::default();
        let bytes = "né 👩‍👧 終".as_bytes();
        let mut text = String::new();
        for byte in bytes {
            text += &decoder.push(&[*byte]);
        }
        assert_eq!(text.as_bytes(), bytes);
        assert_eq!(decoder.finish(), "");
        assert_eq!(decoder.push(b"a\xf0\x9f"), "a");
        assert_eq!(decoder.push(b"b\xc3"), "\u{fffd}b");
        assert_eq!(decoder.finish(), "\u{fffd}");
        assert_eq!(decoder.push(b"ok"), "ok");
    }

    #[test]
    fn surrogates_become_one_replacement() {
        assert_eq!(lossy(b"a\xed\xa0\xbdb"), "a\u{fffd}b");
        assert_eq!(lossy(b"\xed\x9f\xbf"), "\u{d7ff}");
        assert_eq!(lossy(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        assert!(matches!(lossy("é".as_bytes()), Cow::Borrowed("é")));
    }
}
