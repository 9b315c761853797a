// SPDX-License-Identifier: Apache-2.0
//! The syntax of JSON, as Go's encoding/json has it: where a value ends, what a string says.

use super::Error;
use std::borrow::Cow;

/// As deep as Go goes (encoding/json, `maxNestingDepth`).
const DEEPEST: usize = 10_000;
/// Stands for what is no character.
const REPLACEMENT: char = '\u{fffd}';

/// A field's name, as it is written, if it is an object's; and its value.
pub type Part<'a> = (Option<&'a [u8]>, &'a [u8]);

/// Text of a document, from `at` on.
#[derive(Clone, Copy)]
pub struct Scan<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    pub fn new(json: &'a [u8]) -> Self {
        Self { json, at: 0 }
    }

    /// The value that begins here. It is looked through, not kept: no depth needs more than a byte
    /// a level.
    ///
    /// # Errors
    /// At the first byte that is none of JSON's.
    pub fn value(&mut self) -> Result<&'a [u8], Error> {
        self.space();
        let begin = self.at;
        let mut open = Vec::new();
        loop {
            match self.peek() {
                Some(b'{') => {
                    self.open(&mut open, b'}')?;
                    if self.peek() != Some(b'}') {
                        self.key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.open(&mut open, b']')?;
                    if self.peek() != Some(b']') {
                        continue;
                    }
                }
                Some(b'"') => drop(self.string()?),
                Some(b'-' | b'0'..=b'9') => self.number()?,
                _ => self.literal()?,
            }
            // A value has ended, or is about to; so do those around it, until one goes on.
            loop {
                let Some(&close) = open.last() else {
                    return Ok(&self.json[begin..self.at]);
                };
                self.space();
                match self.peek() {
                    Some(byte) if byte == close => {
                        self.at += 1;
                        open.pop();
                    }
                    Some(b',') => {
                        self.at += 1;
                        self.space();
                        if close == b'}' {
                            self.key()?;
                        }
                        break;
                    }
                    _ => return Err(self.unexpected()),
                }
            }
        }
    }

    /// # Errors
    /// If anything but white space is left.
    pub fn end(&mut self) -> Result<(), Error> {
        self.space();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected()),
        }
    }

    /// The parts of the array or object that begins here: with their keys, as they are written, if
    /// it is one.
    ///
    /// # Errors
    /// At the first byte that is none of JSON's.
    pub fn parts(&mut self) -> Result<Vec<Part<'a>>, Error> {
        self.space();
        let (close, keys) = match self.peek() {
            Some(b'{') => (b'}', true),
            Some(b'[') => (b']', false),
            _ => return Err(self.unexpected()),
        };
        let mut parts = Vec::new();
        self.at += 1;
        self.space();
        while self.peek() != Some(close) {
            let key = if keys { Some(self.key()?) } else { None };
            parts.push((key, self.value()?));
            self.space();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.space();
                    if self.peek() == Some(close) {
                        return Err(self.unexpected());
                    }
                }
                Some(byte) if byte == close => {}
                _ => return Err(self.unexpected()),
            }
        }
        self.at += 1;
        Ok(parts)
    }

    fn open(&mut self, open: &mut Vec<u8>, close: u8) -> Result<(), Error> {
        if open.len() >= DEEPEST {
            return Err(Error::new(format!("nested deeper than {DEEPEST} levels")));
        }
        open.push(close);
        self.at += 1;
        self.space();
        Ok(())
    }

    /// A key, and the colon after it.
    fn key(&mut self) -> Result<&'a [u8], Error> {
        let key = self.string()?;
        self.space();
        self.expect(b':')?;
        self.space();
        Ok(key)
    }

    /// A string with its quotes; its bytes need be no UTF-8.
    fn string(&mut self) -> Result<&'a [u8], Error> {
        let begin = self.at;
        self.expect(b'"')?;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(&self.json[begin..self.at]);
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {}
                        Some(b'u') => {
                            for _ in 0..4 {
                                self.at += 1;
                                if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                                    return Err(self.unexpected());
                                }
                            }
                        }
                        _ => return Err(self.unexpected()),
                    }
                    self.at += 1;
                }
                Some(b' '..) => self.at += 1,
                _ => return Err(self.unexpected()),
            }
        }
    }

    fn number(&mut self) -> Result<(), Error> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Error> {
        let begin = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == begin {
            return Err(self.unexpected());
        }
        Ok(())
    }

    fn literal(&mut self) -> Result<(), Error> {
        let rest = &self.json[self.at..];
        let words: [&[u8]; 3] = [b"null", b"true", b"false"];
        let word = words.into_iter().find(|word| rest.starts_with(word));
        self.at += word.ok_or_else(|| self.unexpected())?.len();
        Ok(())
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), Error> {
        if self.peek() != Some(byte) {
            return Err(self.unexpected());
        }
        self.at += 1;
        Ok(())
    }

    fn peek(&self) -> Option<u8> {
        self.json.get(self.at).copied()
    }

    fn unexpected(&self) -> Error {
        let at = self.at;
        Error::new(match self.peek() {
            Some(byte) => format!("'{}' at byte {at} is no JSON", byte.escape_ascii()),
            None => format!("it ends at byte {at}, in the middle"),
        })
    }
}

/// What a string says, `raw` being a valid one with its quotes. Bytes that are no UTF-8, and halves
/// of surrogate pairs, become U+FFFD, as in Go.
pub fn text(raw: &[u8]) -> Cow<'_, str> {
    let inside = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    if !inside.contains(&b'\\')
        && let Ok(text) = std::str::from_utf8(inside)
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(inside.len());
    let mut rest = inside;
    while let Some(at) = rest.iter().position(|&byte| byte == b'\\') {
        push_lossy(&mut text, &rest[..at]);
        let (char, length) = escaped(&rest[at..]);
        text.push(char);
        rest = rest.get(at + length..).unwrap_or_default();
    }
    push_lossy(&mut text, rest);
    Cow::Owned(text)
}

/// As Go, one U+FFFD a byte.
fn push_lossy(text: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| REPLACEMENT));
    }
}

/// The character that an escape sequence at the front of `text` stands for, and its length.
fn escaped(text: &[u8]) -> (char, usize) {
    let simple = |char| (char, 2);
    match text.get(1) {
        Some(b'b') => simple('\u{8}'),
        Some(b'f') => simple('\u{c}'),
        Some(b'n') => simple('\n'),
        Some(b'r') => simple('\r'),
        Some(b't') => simple('\t'),
        Some(b'u') => {
            let first = unit(text);
            let pair =
                [first, unit(text.get(6..).unwrap_or_default())].map(Option::unwrap_or_default);
            match char::decode_utf16(pair).next() {
                Some(Ok(char)) => (char, 6 * char.len_utf16()),
                _ => (REPLACEMENT, 6),
            }
        }
        Some(&byte) => simple(byte.into()),
        None => (REPLACEMENT, 1),
    }
}

/// The number of `\uXXXX` at the front of `text`.
fn unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
