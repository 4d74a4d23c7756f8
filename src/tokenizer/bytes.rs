//! GPT-2's spelling of bytes as printable characters, in which GGUF files write tokens.
//!
//! The 188 bytes that print in Latin-1 stand for themselves; the other 68 take the characters from
//! U+0100 on, in order.

/// Whether a byte stands for itself.
const fn printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// Byte to character.
const SPELLING: [char; 256] = {
    let mut spelling = ['\0'; 256];
    let (mut byte, mut next) = (0, 0x100u32);
    while byte < 256 {
        spelling[byte] = if printable(byte as u8) {
            byte as u8 as char
        } else {
            next += 1;
            match char::from_u32(next - 1) {
                Some(character) => character,
                None => '\0',
            }
        };
        byte += 1;
    }
    spelling
};

/// Character (below U+0144) to byte; 256 for none.
const BYTES: [u16; 0x144] = {
    let mut bytes = [256; 0x144];
    let mut byte = 0;
    while byte < 256 {
        bytes[SPELLING[byte] as usize] = byte as u16;
        byte += 1;
    }
    bytes
};

/// Appends the bytes that `text` (UTF-8) spells to `out`; `None`, and a partial `out`, when a
/// character spells no byte.
pub fn from_gpt2(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = text;
    loop {
        // All characters of the spelling take one or two bytes.
        let character = match *rest {
            [] => return Some(()),
            [one, ref after @ ..] if one < 0x80 => {
                rest = after;
                usize::from(one)
            }
            [lead @ 0xC2..0xDF, next @ 0x80..0xC0, ref after @ ..] => {
                rest = after;
                usize::from(lead & 0x1F) << 6 | usize::from(next & 0x3F)
            }
            _ => return None,
        };
        out.push(u8::try_from(*BYTES.get(character)?).ok()?);
    }
}

/// The spelling of `bytes`.
pub fn to_gpt2(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| SPELLING[byte as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_as_gpt2_does() {
        assert_eq!(
            to_gpt2(b" \n\x00\xad!~\xff"),
            "\u{120}\u{10a}\u{100}\u{143}!~\u{ff}"
        );
        let all: Vec<u8> = (0..=255).collect();
        let mut back = Vec::new();
        assert!(from_gpt2(to_gpt2(&all).as_bytes(), &mut back).is_some());
        assert_eq!(back, all);
        assert!(from_gpt2(b"a b", &mut back).is_none());
        assert!(from_gpt2("\u{144}".as_bytes(), &mut back).is_none());
        assert!(from_gpt2(b"\xc4", &mut back).is_none());
        assert!(from_gpt2("€".as_bytes(), &mut back).is_none());
    }
}
