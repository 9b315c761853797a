// SPDX-License-Identifier: Apache-2.0
//! Why nothing runs, or was not done, and the exit codes that tell of it.

/// Exit codes, as podman's and docker's: nothing was run; the command can't be; there is none.
pub const NOT_RUN: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// And of all else that failed.
const FAILED: u8 = 1;
/// A refusal's text.
pub fn said(e: tonic::Status) -> String {
    e.message().to_owned()
}

/// Why nothing runs, and the exit code that tells of it.
pub struct NotRun {
    why: String,
    code: u8,
    is_of_task: bool,
}

impl From<String> for NotRun {
    fn from(why: String) -> Self {
        Self {
            why,
            code: NOT_RUN,
            is_of_task: false,
        }
    }
}

impl NotRun {
    /// What was asked of this container, and was not done.
    pub fn refused(id: &str, why: String) -> Self {
        let why = match why.contains(id) {
            true => why,
            false => format!("{id}: {why}"),
        };
        Self {
            why,
            code: FAILED,
            is_of_task: false,
        }
    }

    /// Whether a shim may have said so of the streams.
    pub fn is_of_task(&self) -> bool {
        self.is_of_task && self.code == NOT_RUN
    }

    pub fn why(self) -> String {
        self.why
    }

    /// What the OCI runtime says of a command: runc's words are `exec: "NAME": …`, crun's speak of an
    /// executable. The same errno of a mount is no word about the command.
    pub fn of_command(refusal: tonic::Status) -> Self {
        let is_of_task = refusal.code() == tonic::Code::Unknown;
        let why = said(refusal);
        // A plugin's word on a program that it misses is none about the command.
        if why.starts_with("network ") {
            return why.into();
        }
        let of_command = why.rsplit_once("exec: \"").map(|(_, said)| said);
        let of_command = of_command.or_else(|| why.split_once("executable").map(|(_, said)| said));
        let words = of_command.unwrap_or_default().to_lowercase();
        let says = |phrases: &[&str]| phrases.iter().any(|&phrase| words.contains(phrase));
        let code = if says(&["permission denied", "is a directory", "exec format error"]) {
            NOT_EXECUTABLE
        } else if says(&["not found", "no such file"]) {
            NOT_FOUND
        } else {
            NOT_RUN
        };
        Self {
            why,
            code,
            is_of_task,
        }
    }
}

/// The exit code of what runs something: its own, and 125 to 127 if it did not run.
pub fn exit_code(ran: Result<u8, NotRun>) -> u8 {
    ran.unwrap_or_else(|e| {
        super::complain(&e.why);
        e.code
    })
}
