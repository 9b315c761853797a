// SPDX-License-Identifier: Apache-2.0
//! JSON that others write, read as Go's encoding/json reads it: what containerd, runc and every
//! other shim take must not stop us.
//!
//! * `null` is as good as nothing, and is not kept.
//! * Of a value that is said twice the last counts; two objects become one.
//! * The case of a field's name does not matter; that of a map's key does.
//! * Bytes that are no UTF-8 become U+FFFD.
//! * What nobody asks for is passed over, whatever is in it, up to 10,000 levels.
//! * A number for an integer has no fraction and no exponent, and fits.
//!
//! What an OCI runtime is to get is read as a `serde_json::Value` and written anew: one that is not
//! written in Go need not know these rules.

mod de;
mod scan;
#[cfg(test)]
mod tests;

pub use de::lenient;

use de::Said;
use scan::Scan;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fmt::Display;

/// What is wrong with a document, and where in it.
#[derive(Debug, PartialEq)]
pub struct Error {
    /// Keys and places, the innermost first.
    path: Vec<String>,
    text: String,
}

impl Error {
    fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            path: Vec::new(),
            text,
        }
    }

    fn within(mut self, part: impl Into<String>) -> Self {
        self.path.push(part.into());
        self
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut path = self.path.iter().rev();
        if let Some(first) = path.next() {
            f.write_str(first)?;
            path.try_for_each(|part| write!(f, ".{part}"))?;
            f.write_str(": ")?;
        }
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(e: Error) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, e)
    }
}

/// Reads a document (Go's `json.Unmarshal`).
///
/// # Errors
/// If it is none, or a value that is asked for is of another type.
pub fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    let mut scan = Scan::new(json);
    let value = scan.value()?;
    scan.end()?;
    T::deserialize(Said::once(value))
}

/// Reads a document that is an object, to be written anew.
///
/// # Errors
/// If it is none.
pub fn object(json: &[u8]) -> Result<Map<String, Value>, Error> {
    match read(json)? {
        Value::Object(object) => Ok(object),
        Value::Null => Ok(Map::new()),
        _ => Err(Error::new("is no object")),
    }
}

/// Reads the document at the front of `json`, and not what follows it (Go's `json.Decoder`, with
/// which shims and runc read config.json).
///
/// # Errors
/// As [`read`].
pub fn read_first<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    T::deserialize(Said::once(Scan::new(json).value()?))
}

/// Reads again what was read as a value of no type yet.
///
/// # Errors
/// If a value that is asked for is of another type.
pub fn of_value<T: DeserializeOwned>(value: &Value) -> Result<T, Error> {
    read(value.to_string().as_bytes())
}
