// SPDX-License-Identifier: Apache-2.0
//! The keys that part a client from its container, which goes on.

/// What they are unless said, as docker has it.
pub const USUAL: &str = "ctrl-p,ctrl-q";

/// What a terminal sends for each, one after the other; nothing for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(Vec<u8>);

/// Reads keys such as `ctrl-p,ctrl-q` or `a`.
///
/// # Errors
/// A text with the key that is none.
pub fn read(text: &str) -> Result<Keys, String> {
    if text.is_empty() {
        return Ok(Keys(Vec::new()));
    }
    let key = |key: &str| {
        let byte = match key.as_bytes() {
            [byte] if byte.is_ascii_graphic() => Some(*byte),
            [
                b'c',
                b't',
                b'r',
                b'l',
                b'-',
                byte @ (b'a'..=b'z' | b'@' | b'['..=b'_'),
            ] => Some(byte.to_ascii_uppercase() & 0x1f),
            _ => None,
        };
        byte.ok_or_else(|| format!("{key:?} is no key such as ctrl-p or a"))
    };
    text.split(',').map(key).collect::<Result<_, _>>().map(Keys)
}

/// Looks for them in what is typed.
pub struct Matcher {
    keys: Keys,
    /// How many of them were typed.
    typed: usize,
}

impl Matcher {
    pub fn new(keys: Keys) -> Self {
        Self { keys, typed: 0 }
    }

    /// What of this goes on to the container, and whether they were typed: what is behind them is
    /// nobody's. The begin of them is kept back until it is known that it is none.
    pub fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let keys = &self.keys.0;
        let mut passed = Vec::with_capacity(typed.len());
        if keys.is_empty() {
            return (typed.to_vec(), false);
        }
        for &byte in typed {
            if byte != keys[self.typed] {
                passed.extend_from_slice(&keys[..self.typed]);
                self.typed = 0;
            }
            if byte != keys[self.typed] {
                passed.push(byte);
                continue;
            }
            self.typed += 1;
            if self.typed == keys.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_docker_reads_them() {
        assert_eq!(read(USUAL), Ok(Keys(vec![16, 17])));
        assert_eq!(
            read("ctrl-@,ctrl-[,ctrl-\\,ctrl-]"),
            Ok(Keys(vec![0, 27, 28, 29]))
        );
        assert_eq!(read("a,Q"), Ok(Keys(vec![97, 81])));
        assert_eq!(read(""), Ok(Keys(Vec::new())));
        for text in ["ctrl-", "ctrl-pp", "ctrl-P", "ab", ",", "ctrl-1", "\u{e4}"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_typed_goes_on_but_for_the_keys() {
        let mut matcher = Matcher::new(read("a,b").unwrap());
        assert_eq!(matcher.pass(b"xa"), (b"x".to_vec(), false));
        assert_eq!(matcher.pass(b"ay"), (b"aay".to_vec(), false));
        assert_eq!(matcher.pass(b"za"), (b"z".to_vec(), false));
        assert_eq!(matcher.pass(b"bmore"), (Vec::new(), true));
        let mut none = Matcher::new(read("").unwrap());
        assert_eq!(none.pass(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
