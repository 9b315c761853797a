// SPDX-License-Identifier: Apache-2.0
//! The status a call ends with: gRPC's codes and a text.

use crate::text;
use std::fmt;

/// gRPC status codes (google/rpc/code.proto), as ttrpc carries them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    Ok = 0,
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl From<i32> for Code {
    /// A number no code has is `Unknown`, as gRPC prescribes.
    fn from(number: i32) -> Self {
        use Code::*;
        const CODES: [Code; 17] = [
            Ok,
            Canceled,
            Unknown,
            InvalidArgument,
            DeadlineExceeded,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Aborted,
            OutOfRange,
            Unimplemented,
            Internal,
            Unavailable,
            DataLoss,
            Unauthenticated,
        ];
        usize::try_from(number)
            .ok()
            .and_then(|n| CODES.get(n))
            .copied()
            .unwrap_or(Unknown)
    }
}

/// How a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: Code,
    /// At most [`text::MAX`] bytes.
    pub message: String,
}

impl Status {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > text::MAX {
            message = text::cut(&message, text::MAX).into_owned();
        }
        Self { code, message }
    }

    /// The caller's deadline passed; Go's words.
    pub fn deadline_exceeded() -> Self {
        Self::new(Code::DeadlineExceeded, "context deadline exceeded")
    }

    /// The caller went away; Go's words.
    pub fn canceled() -> Self {
        Self::new(Code::Canceled, "context canceled")
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_wire() {
        for n in 0..17 {
            assert_eq!(Code::from(n) as i32, n);
        }
        assert_eq!(Code::from(99), Code::Unknown);
        assert_eq!(Code::from(-1), Code::Unknown);
    }

    /// What a runtime or a guest says may be of any length.
    #[test]
    fn a_text_has_a_bound() {
        let status = Status::new(Code::Unknown, "x".repeat(1 << 20));
        assert!(status.message.len() <= text::MAX);
    }
}
