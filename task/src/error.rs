// SPDX-License-Identifier: Apache-2.0
//! What a request can fail with, in the words a client of containerd expects (contract T1 to T3).

use nix::errno::Errno;
use protos::{Code, Status};
use std::io;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One variant per status a caller can act on; the text is what the caller reads.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}: not found")]
    NotFound(String),
    #[error("{0}: already exists")]
    AlreadyExists(String),
    #[error("{0}: failed precondition")]
    FailedPrecondition(String),
    #[error("{0}: invalid argument")]
    InvalidArgument(String),
    /// A bound is reached: see docs/limits.md.
    #[error("{0}: resource exhausted")]
    Exhausted(String),
    /// The state does not allow it, or the OCI runtime said no; code Unknown, as Go's shim has it.
    #[error("{0}")]
    Refused(String),
    #[error("{doing} {}: {}", path.display(), words(source))]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The answer of another engine, which has the containers.
    #[error("{0}")]
    Told(Status),
    /// The caller went away or its deadline passed.
    #[error("{0}")]
    GivenUp(Status),
}

impl Error {
    /// What a signal to a process that has ended is answered with.
    pub fn finished() -> Self {
        Self::NotFound("process already finished".into())
    }

    /// For `map_err`: names what was being done, and to which file.
    pub fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}

/// What went wrong, as Go and strerror(3) say it: users know these words.
pub fn words(error: &io::Error) -> String {
    let Some(number) = error.raw_os_error() else {
        return error.to_string();
    };
    let text = match Errno::from_raw(number) {
        // As Go has it: the number, which the caller can look up.
        Errno::UnknownErrno => return format!("errno {number}"),
        known => known.desc(),
    };
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_lowercase().chain(chars).collect())
        .unwrap_or_default()
}

/// The error of the system call that has just failed with `errno`: nix forgets the number of one
/// that it has no name for, such as the ENOTSUPP (524) of a file system.
pub fn of_call(errno: Errno) -> io::Error {
    match errno {
        Errno::UnknownErrno => io::Error::last_os_error(),
        known => known.into(),
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Told(status)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NotFound(_) => Code::NotFound,
            Error::AlreadyExists(_) => Code::AlreadyExists,
            Error::FailedPrecondition(_) => Code::FailedPrecondition,
            Error::InvalidArgument(_) => Code::InvalidArgument,
            Error::Exhausted(_) => Code::ResourceExhausted,
            Error::Refused(_) | Error::Io { .. } => Code::Unknown,
            Error::Told(status) | Error::GivenUp(status) => return status.clone(),
        };
        Status::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_read_as_everywhere() {
        let error = Error::io("open", "/x")(io::Error::from_raw_os_error(2));
        assert_eq!(error.to_string(), "open /x: no such file or directory");
        let error = Error::io("parse", "/x")(io::Error::other("no JSON"));
        assert_eq!(error.to_string(), "parse /x: no JSON");
        // ENOTSUPP, as network file systems give it, has a number only.
        let error = Error::io("mkdir", "/x")(io::Error::from_raw_os_error(524));
        assert_eq!(error.to_string(), "mkdir /x: errno 524");
    }
}
