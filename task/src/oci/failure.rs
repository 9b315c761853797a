// SPDX-License-Identifier: Apache-2.0
//! How a command of the OCI runtime failed: the only file that reads the runtime's English.

use crate::error::{Error, words};
use crate::json;
use crate::reaper::ExitStatus;
use protos::Status;
use serde::Deserialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A command of the OCI runtime that did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// What the process said and how it ended, in go-runc's words.
    text: String,
    /// What it logged; see [`Failure::with_log`].
    log: Option<Result<Option<String>, String>>,
    given_up: Option<Status>,
}

impl Failure {
    /// The command never ran (Go's os/exec words).
    pub(super) fn not_spawned(program: &str, source: &io::Error) -> Self {
        let text = match source.kind() {
            io::ErrorKind::NotFound if !program.contains('/') => {
                format!("exec: \"{program}\": executable file not found in $PATH")
            }
            _ => format!("fork/exec {program}: {}", words(source)),
        };
        Self {
            text,
            log: None,
            given_up: None,
        }
    }

    pub(super) fn ended(program: &str, status: ExitStatus, output: &[u8]) -> Self {
        let output = String::from_utf8_lossy(output);
        let text = format!("{program} did not terminate successfully: {status}: {output}");
        Self {
            text,
            log: None,
            given_up: None,
        }
    }

    pub(super) fn given_up(why: Status) -> Self {
        Self {
            text: why.to_string(),
            log: None,
            given_up: Some(why),
        }
    }

    pub fn is_given_up(&self) -> bool {
        self.given_up.is_some()
    }

    /// A command that said it succeeded and did not do what success means.
    pub fn broken_promise(text: String) -> Self {
        Self {
            text,
            log: None,
            given_up: None,
        }
    }

    /// Adds the last error that the runtime logged since `mark`.
    pub(super) fn with_log(mut self, mark: &LogMark) -> Self {
        let log = mark.last_error();
        self.log = Some(log.map_err(|e| format!("open {}: {}", mark.path.display(), words(&e))));
        self
    }

    /// The error of a command whose log tells why it failed (T11, T20, T23; P/utils.go).
    pub fn oci(self, what: &str) -> Error {
        if let Some(status) = self.given_up {
            return Error::GivenUp(status);
        }
        Error::Refused(match self.log {
            Some(Ok(Some(message))) => format!("{what}: {message}"),
            Some(Err(e)) => {
                format!(
                    "{what}: unable to retrieve OCI runtime error ({e}): {}",
                    self.text
                )
            }
            _ => format!("{what}: {}", self.text),
        })
    }

    /// The error of a signal that did not reach its process (T50; P/utils.go).
    pub fn kill(self) -> Error {
        const FINISHED: [&str; 3] = [
            "os: process already finished",
            "container not running",
            "no such process",
        ];
        let said = self.said();
        if let Some(status) = self.given_up {
            Error::GivenUp(status)
        } else if FINISHED.iter().any(|text| said.contains(text)) {
            Error::NotFound("process already finished".into())
        } else if self.is_unknown_container() {
            Error::NotFound("no such container".into())
        } else {
            Error::Refused(format!("unknown error after kill: {}", self.text))
        }
    }

    /// The error of a checkpoint: what the runtime said first, and where CRIU's log is (T73).
    pub fn checkpoint(self, log: &Path) -> Error {
        if let Some(status) = self.given_up {
            return Error::GivenUp(status);
        }
        let first = self.text.lines().next().unwrap_or_default();
        Error::Refused(format!("{first} path= {}", log.display()))
    }

    /// The runtime does not know the container (any more).
    pub fn is_unknown_container(&self) -> bool {
        let said = self.said();
        // crun names what it did not find: its record of the container, or the directory of it.
        let not_found = "`: no such file or directory";
        said.contains("does not exist")
            || said.contains(&format!("/status{not_found}"))
            || (said.contains("cannot open directory `") && said.contains(not_found))
    }

    /// The runtime has a container of that name, which is not ours to clean up.
    pub fn is_known_container(&self) -> bool {
        self.said().contains("already exists") || self.said().contains("ID already in use")
    }

    fn said(&self) -> String {
        let logged = match &self.log {
            Some(Ok(Some(message))) => message.as_str(),
            _ => "",
        };
        format!("{logged}\n{}", self.text).to_lowercase()
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.log {
            Some(Ok(Some(message))) => f.write_str(message),
            _ => f.write_str(self.text.trim_end()),
        }
    }
}

/// How much of a runtime's log is read, and how long it may be after a command, in bytes.
const MOST: u64 = 1 << 20;

/// How long a runtime's log was before a command, so that what the command adds can be told.
#[derive(Debug)]
pub struct LogMark {
    path: PathBuf,
    length: u64,
}

impl LogMark {
    pub fn new(path: PathBuf) -> Self {
        let length = path.metadata().map_or(0, |metadata| metadata.len());
        Self { path, length }
    }

    /// After the command, and after [`Failure::with_log`]: a log that has grown too long begins anew.
    pub fn keep_small(&self) {
        let length = self.path.metadata().map_or(0, |metadata| metadata.len());
        if length > MOST {
            log::warn!("{}: {length} bytes, emptied", self.path.display());
            let file = OpenOptions::new().write(true).open(&self.path);
            if let Err(e) = file.and_then(|file| file.set_len(0)) {
                log::error!("{}: {e}", self.path.display());
            }
        }
    }

    /// The message of the last error logged since; lines that are not JSON are passed over.
    fn last_error(&self) -> io::Result<Option<String>> {
        let mut file = File::open(&self.path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(self.length.max(end.saturating_sub(MOST))))?;
        let mut text = Vec::new();
        file.take(MOST).read_to_end(&mut text)?;
        Ok(last_error(&text))
    }
}

fn last_error(log: &[u8]) -> Option<String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Line {
        level: String,
        msg: String,
    }
    let lines = log.split(|&byte| byte == b'\n').rev();
    let lines = lines.filter_map(|line| json::read::<Line>(line).ok());
    let mut errors = lines.filter(|line| line.level == "error");
    errors.next().map(|line| line.msg.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_the_log_counts() {
        let log = "{\"level\":\"error\",\"msg\":\"first\"}\nnoise\n\
                   {\"level\":\"error\",\"msg\":\"last \"}\n{\"level\":\"info\",\"msg\":\"x\"}\n";
        assert_eq!(last_error(log.as_bytes()).as_deref(), Some("last"));
        assert_eq!(last_error(b"{\"level\":\"warning\",\"msg\":\"w\"}"), None);
    }

    #[test]
    fn only_what_the_command_itself_logged_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        std::fs::write(&path, "{\"level\":\"error\",\"msg\":\"old\"}\n").unwrap();
        let mark = LogMark::new(path.clone());
        assert_eq!(mark.last_error().unwrap(), None);
        let both =
            std::fs::read_to_string(&path).unwrap() + "{\"level\":\"error\",\"msg\":\"new\"}";
        std::fs::write(&path, both).unwrap();
        assert_eq!(mark.last_error().unwrap().as_deref(), Some("new"));
    }

    #[test]
    fn a_log_of_any_length_is_read_to_a_bound_and_kept_small() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        std::fs::write(&path, "").unwrap();
        let mark = LogMark::new(path.clone());
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        assert_eq!(mark.last_error().unwrap(), None);
        mark.keep_small();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        std::fs::write(&path, "{\"level\":\"error\",\"msg\":\"new\"}").unwrap();
        LogMark::new(path.clone()).keep_small();
        assert_ne!(std::fs::metadata(&path).unwrap().len(), 0);
    }

    /// T11, word for word.
    #[test]
    fn a_missing_runtime_is_named_as_go_names_it() {
        let not_found = io::Error::from_raw_os_error(libc::ENOENT);
        let failure = Failure::not_spawned("no-runc", &not_found);
        let failure = failure.with_log(&LogMark::new("/nonexistent/log.json".into()));
        assert_eq!(
            failure.oci("OCI runtime create failed").to_string(),
            "OCI runtime create failed: unable to retrieve OCI runtime error \
             (open /nonexistent/log.json: no such file or directory): \
             exec: \"no-runc\": executable file not found in $PATH"
        );
    }

    /// T60, runc's and crun's sentences.
    #[test]
    fn unknown_containers_are_known_by_the_runtimes_words() {
        for (text, unknown) in [
            ("container does not exist\n", true),
            (
                "cannot open directory `/run/crun/c`: No such file or directory",
                true,
            ),
            (
                "error opening file `/run/crun/c/status`: No such file or directory",
                true,
            ),
            (
                "error opening file `/dev/null`: No such file or directory",
                false,
            ),
            ("cannot delete container that is not stopped", false),
        ] {
            let failure = Failure::ended("r", ExitStatus::Code(1), text.as_bytes());
            assert_eq!(failure.is_unknown_container(), unknown, "{text}");
        }
    }

    /// T50, runc's and crun's sentences.
    #[test]
    fn kill_errors_tell_finished_from_unknown() {
        let kill = |text: &str| {
            Failure::ended("runc", ExitStatus::Code(1), text.as_bytes())
                .kill()
                .to_string()
        };
        assert_eq!(
            kill("container not running\n"),
            "process already finished: not found"
        );
        assert_eq!(
            kill("kill: No such process"),
            "process already finished: not found"
        );
        assert_eq!(
            kill("container does not exist\n"),
            "no such container: not found"
        );
        assert_eq!(
            kill("error opening file `/run/crun/c/status`: No such file or directory\n"),
            "no such container: not found"
        );
        assert_eq!(
            kill("unable to signal init: invalid argument\n"),
            "unknown error after kill: runc did not terminate successfully: exit status 1: \
             unable to signal init: invalid argument\n"
        );
    }
}
