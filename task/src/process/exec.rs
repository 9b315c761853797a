// SPDX-License-Identifier: Apache-2.0
//! A further process of a container, and what it will run.

use super::{Process, ProcessId};
use crate::error::{Error, Result};
use crate::handover::{self, Kept, Means};
use crate::json;
use crate::stdio::{Ends, Paths, check_lengths};
use serde_json::Value;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

/// The field of an OCI process that the request has its own word for.
const TERMINAL: &str = "terminal";
/// What one takes beside its texts, in bytes.
const EXEC: usize = 1 << 10;

/// A further process of a container, and what it will run.
pub struct Exec {
    pub process: Rc<Process>,
    /// The OCI process as JSON; taken when it is started.
    spec: RefCell<Vec<u8>>,
}

impl Exec {
    /// A process to be started later (T30). `spec` is an OCI process as JSON; the request's
    /// terminal wins over the one in it.
    ///
    /// # Errors
    /// An id that is no file name, or JSON that is none.
    pub fn new(id: &str, spec: &[u8], paths: Paths, ends: Option<Ends>) -> Result<Self> {
        if id.is_empty() || id.contains('/') || id.starts_with('.') {
            return Err(Error::InvalidArgument(format!("exec id {id:?}")));
        }
        check_lengths(id, &paths)?;
        let bad_spec = |e| Error::Refused(format!("spec of exec {id}: {e}"));
        let mut process = json::object(spec).map_err(bad_spec)?;
        process.retain(|key, _| !key.eq_ignore_ascii_case(TERMINAL));
        process.insert(TERMINAL.into(), paths.terminal.into());
        let spec = RefCell::new(Value::Object(process).to_string().into_bytes());
        Ok(Self {
            process: Rc::new(Process::new(ProcessId::Exec(id.to_owned()), paths, ends)),
            spec,
        })
    }

    /// Describes the exec for another process image.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<handover::Exec> {
        let process = self.process.hand_over(kept)?;
        let spec = self.spec.borrow().clone();
        Ok(handover::Exec { process, spec })
    }

    /// Goes on with an exec of another process image.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub fn take_over(id: String, exec: handover::Exec, means: &Means<'_>) -> Result<Self> {
        let process = Process::take_over(ProcessId::Exec(id), exec.process, means)?;
        let process = Rc::new(process);
        let spec = RefCell::new(exec.spec);
        Ok(Self { process, spec })
    }

    /// The OCI process as JSON, for who makes it.
    pub fn take_spec(&self) -> Vec<u8> {
        self.spec.take()
    }

    /// What it takes as long as it is not deleted, in bytes.
    pub(crate) fn size(&self) -> usize {
        let process = &self.process;
        EXEC + self.id().len() + process.paths.length() + self.spec.borrow().len()
    }

    pub fn id(&self) -> &str {
        self.process.id.exec_id()
    }

    #[cfg(any(test, fuzzing))]
    pub fn spec(&self) -> Vec<u8> {
        self.spec.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_ids_are_file_names() {
        for bad in ["", "../x", "a/b", ".hidden"] {
            let error = Exec::new(bad, b"{}", Paths::default(), None).err().unwrap();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
        assert!(Exec::new("e1", b"{}", Paths::default(), None).is_ok());
    }

    /// T30: the spec is passed on but for `terminal`, which is the request's to say.
    #[test]
    fn the_requests_terminal_wins() {
        let paths = Paths {
            terminal: true,
            ..Paths::default()
        };
        let spec = br#"{"terminal":false,"args":["sh"],"x":18446744073709551615,"y":1.845e294}"#;
        let exec = Exec::new("e", spec, paths, None).unwrap();
        let spec: Value = json::read(&exec.spec()).unwrap();
        assert_eq!(spec["terminal"], true);
        assert_eq!(
            (&spec["x"], &spec["y"]),
            (&u64::MAX.into(), &1.845e294.into())
        );
    }

    /// What Go's JSON takes is written so that no runtime has to: one written in C takes the first
    /// of two, and no `null`.
    #[test]
    fn a_spec_is_what_go_makes_of_it() {
        let spec = br#"{"Terminal":1,"args":["no"],"args":["sh"],"env":null,"user":{"uid":1},
            "user":{"gid":2},"x":"\ud800"}"#;
        let exec = Exec::new("e", spec, Paths::default(), None).unwrap();
        let text = String::from_utf8(exec.spec()).unwrap();
        let expected =
            r#"{"args":["sh"],"terminal":false,"user":{"gid":2,"uid":1},"x":"REPLACED"}"#;
        assert_eq!(text, expected.replace("REPLACED", "\u{fffd}"));
        for bad in ["[]", "5", "{", "{}x"] {
            assert!(
                Exec::new("e", bad.as_bytes(), Paths::default(), None).is_err(),
                "{bad}"
            );
        }
    }
}
