// SPDX-License-Identifier: Apache-2.0
//! Digests: what content is called by, and whether content is what it is called.

use crate::failure::{Result, refused};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read};
use std::rc::Rc;

/// `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest(String);

impl Digest {
    /// # Errors
    /// What names it, if it is none of SHA-256.
    pub fn parse(text: &str) -> Result<Self> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        match hex.len() == 64 && hex.chars().all(is_digit) {
            true => Ok(Self(text.to_owned())),
            false => Err(refused(format!("{text:?}"), "not a SHA-256 digest")),
        }
    }

    pub fn of(bytes: &[u8]) -> Self {
        Self::from(Sha256::new_with_prefix(bytes))
    }

    fn from(sum: Sha256) -> Self {
        let hex = sum
            .finalize()
            .iter()
            .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        Self(format!("sha256:{hex}"))
    }

    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    pub fn text(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Digest {
    type Error = crate::failure::Failure;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The sum of what is read through it.
pub struct Sum(Rc<RefCell<(Sha256, u64)>>);

impl Sum {
    pub fn new() -> Self {
        Self(Rc::default())
    }

    pub fn over<R: Read>(&self, from: R) -> Summed<R> {
        Summed {
            from,
            sum: Self(Rc::clone(&self.0)),
        }
    }

    pub fn bytes(&self) -> u64 {
        self.0.borrow().1
    }

    /// # Errors
    /// If the sum is another; `what` says of what it is.
    pub fn must_be(&self, digest: &Digest, what: &str) -> Result<()> {
        let found = Digest::from(self.0.borrow().0.clone());
        match found == *digest {
            true => Ok(()),
            false => Err(refused(digest, format!("damaged: {what} is {found}"))),
        }
    }
}

pub struct Summed<R> {
    from: R,
    sum: Sum,
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        let mut sum = self.sum.0.borrow_mut();
        sum.0.update(&buffer[..read]);
        sum.1 += read as u64;
        Ok(read)
    }
}
