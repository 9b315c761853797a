// SPDX-License-Identifier: Apache-2.0
//! The paths of a process's streams as a client named them, and how long they may be.

use crate::error::{Error, Result};
use protos::task::{CreateTaskRequest, ExecProcessRequest};
use serde::{Deserialize, Serialize};

/// The longest id (containerd pkg/identifiers), and the longest path of a stream or URI of a logger
/// (limits.h, PATH_MAX), in bytes.
const MAX_ID: usize = 76;
const MAX_PATH: usize = 4096;

/// # Errors
/// InvalidArgument for an id or a path that is too long.
pub fn check_lengths(id: &str, paths: &Paths) -> Result<()> {
    let id = [("id", id, MAX_ID)];
    let paths = paths.named().map(|(name, path)| (name, path, MAX_PATH));
    for (what, text, most) in id.into_iter().chain(paths) {
        if text.len() > most {
            let text = format!("{what} of {} bytes: {most} is the most", text.len());
            return Err(Error::InvalidArgument(text));
        }
    }
    Ok(())
}

/// What a client asked for, as it asked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Paths {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

impl From<&CreateTaskRequest> for Paths {
    fn from(request: &CreateTaskRequest) -> Self {
        Self {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        }
    }
}

impl From<&ExecProcessRequest> for Paths {
    fn from(request: &ExecProcessRequest) -> Self {
        Self {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        }
    }
}

impl Paths {
    /// Each with its name.
    pub fn named(&self) -> [(&'static str, &str); 3] {
        [
            ("stdin", &self.stdin),
            ("stdout", &self.stdout),
            ("stderr", &self.stderr),
        ]
    }

    /// How long all are together, in bytes.
    pub fn length(&self) -> usize {
        self.named().iter().map(|(_, path)| path.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protos::Status;

    #[test]
    fn ids_and_paths_have_a_length() {
        let check = |id: usize, path: usize| {
            let paths = Paths {
                stderr: "/".repeat(path),
                ..Paths::default()
            };
            check_lengths(&"e".repeat(id), &paths)
                .err()
                .map(Status::from)
        };
        assert_eq!(check(76, 4096), None);
        for (id, path) in [(77, 0), (1, 4097)] {
            let status = check(id, path).unwrap();
            assert_eq!(status.code, protos::Code::InvalidArgument, "{status}");
        }
    }
}
