//! Names in lines of words: letters, digits and `-._/` stand for themselves, every other byte is `%XX`.
//!
//! The encoding is injective, and only what `encode` writes can be decoded, so that a text has one meaning and a
//! meaning has one text.

use std::fmt::Write as _;

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._/".contains(&byte)
}

pub(crate) fn encode(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if is_plain(byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let [high, low, tail @ ..] = rest else { return None };
            bytes.push(hex(*high)? << 4 | hex(*low)?);
            rest = tail;
        } else {
            bytes.push(*first);
        }
    }
    // Whatever was written otherwise than `encode` writes it (lower case, needless escapes) is refused here.
    String::from_utf8(bytes).ok().filter(|name| encode(name) == text)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_and_only_the_one_text_is_decoded() {
        for name in ["inbox/3", "a b", "%20", "{x}*?", "\u{1f980}/0", "\u{e9}", "a%b c/1"] {
            let text = encode(name);
            assert!(text.is_ascii() && !text.contains(' '), "{text}");
            assert_eq!(decode(&text).as_deref(), Some(name));
        }
        assert_eq!(encode("a b%"), "a%20b%25");
        for bad in ["a b", "%", "%2", "%zz", "%41", "%c3%a9", "%C3", "\u{e9}"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
