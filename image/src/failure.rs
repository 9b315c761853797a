// SPDX-License-Identifier: Apache-2.0
//! Why something was not done, in one line that names what it is about.

use std::fmt::Display;
use std::io;

pub type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is none of this name.
    #[error("{0}: no such image")]
    NoImage(String),
    /// What was given, or what is in it, is not what it should be.
    #[error("{what}: {why}")]
    Refused { what: String, why: String },
    #[error("{what}: {error}")]
    Io {
        what: String,
        #[source]
        error: io::Error,
    },
}

impl Failure {
    /// The same, of something that `what` has in it.
    pub fn of(self, what: &dyn Display) -> Self {
        let said = match &self {
            Self::NoImage(_) => return self,
            Self::Refused { what, .. } | Self::Io { what, .. } => what,
        };
        let what = format!("{what}: {said}");
        match self {
            Self::Io { error, .. } => Self::Io { what, error },
            Self::Refused { why, .. } => Self::Refused { what, why },
            other => other,
        }
    }
}

pub fn refused(what: impl Display, why: impl Display) -> Failure {
    Failure::Refused {
        what: what.to_string(),
        why: why.to_string(),
    }
}

/// What becomes of an error of the system that `what` had.
pub fn io<E: Into<io::Error>>(what: impl Display) -> impl FnOnce(E) -> Failure {
    move |error| Failure::Io {
        what: what.to_string(),
        error: error.into(),
    }
}
