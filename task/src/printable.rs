// SPDX-License-Identifier: Apache-2.0
//! Text of others on its way to a terminal: a name, a status or an error must not move its cursor.

use std::borrow::Cow;
use std::fmt::Write;

/// `text` with each control character, and each that changes the direction of what follows, as
/// `\u001b`: also within JSON it means the same then. Newlines and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(moves) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if moves(char) {
            // Writing to a String does not fail.
            let _ = write!(safe, "\\u{:04x}", u32::from(char));
        } else {
            safe.push(char);
        }
    }
    Cow::Owned(safe)
}

/// True for what a terminal does not show, but does (Unicode's Cc, and Bidi_Control).
fn moves(char: char) -> bool {
    match char {
        '\n' | '\t' => false,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            true
        }
        _ => char.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(printable("a\tb\nc ü 漢"), "a\tb\nc ü 漢");
        assert_eq!(
            printable("\u{1b}[2Jx\r\u{7f}\u{9b}1m\u{202e}"),
            "\\u001b[2Jx\\u000d\\u007f\\u009b1m\\u202e"
        );
        let json = serde_json::json!({"a": "\u{9b}\u{202e}"}).to_string();
        let back: serde_json::Value = serde_json::from_str(&printable(&json)).unwrap();
        assert_eq!(back["a"], "\u{9b}\u{202e}");
    }
}
