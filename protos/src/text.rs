// SPDX-License-Identifier: Apache-2.0
//! Text that somebody else wrote, no longer than so many bytes.

use std::borrow::Cow;

/// The longest text of a status, and the longest message of a log line, in bytes. A client of gRPC
/// takes 16 KiB of headers, and each byte of a status may take three there.
pub const MAX: usize = 4 << 10;

/// `text`, or as much of it as has room in `most` bytes beside a note of how much is missing.
pub fn cut(text: &str, most: usize) -> Cow<'_, str> {
    const NOTE: usize = 32;
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let mut end = most.saturating_sub(NOTE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let missing = text.len() - end;
    Cow::Owned(format!("{} … ({missing} bytes more)", &text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_says_how_much_is_missing() {
        assert_eq!(cut("short", 5), "short");
        let long = "ä".repeat(5000);
        let shown = cut(&long, MAX);
        assert!(shown.len() <= MAX, "{}", shown.len());
        assert!(shown.ends_with("ä … (5936 bytes more)"), "{shown}");
    }
}
