// SPDX-License-Identifier: Apache-2.0
//! A program that a child of this process is to execute.
//!
//! As the standard library's `Command`, and made for many short commands of a process that must not
//! wait: the child shares this process's memory until it executes the program ([`sys::spawn`]), so it
//! does nothing but the steps that are known here, and finds all that it needs for them prepared.

use crate::rootfs::Namespace;
use crate::stdio::null;
use crate::sys::{self, NotExecuted};
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Where a program is looked for without a PATH (execvp(3)).
const PATH: &str = "/bin:/usr/bin";

/// A program, and how its process is to be when it executes it: with what this process has, but for what
/// is said here, and with no signal blocked or handled.
pub struct Command {
    program: OsString,
    name: Option<OsString>,
    args: Vec<OsString>,
    is_env_cleared: bool,
    /// What is set, and what is not to be there.
    env: BTreeMap<OsString, Option<OsString>>,
    dir: Option<PathBuf>,
    /// By the numbers that they are to have; `None` is the null device.
    files: BTreeMap<RawFd, Option<OwnedFd>>,
    mounts: Option<Namespace>,
    leads_group: bool,
    dies_with_parent: bool,
}

impl Command {
    /// `program` is looked for in PATH, that of its own environment, unless there is a `/` in it.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            name: None,
            args: Vec::new(),
            is_env_cleared: false,
            env: BTreeMap::new(),
            dir: None,
            files: BTreeMap::new(),
            mounts: None,
            leads_group: false,
            dies_with_parent: false,
        }
    }

    /// The first of its arguments, which is the program otherwise.
    pub fn arg0(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.name = Some(name.as_ref().to_owned());
        self
    }

    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args(&mut self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> &mut Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.args.extend(args);
        self
    }

    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        let value = Some(value.as_ref().to_owned());
        self.env.insert(name.as_ref().to_owned(), value);
        self
    }

    pub fn envs<N: AsRef<OsStr>, V: AsRef<OsStr>>(
        &mut self,
        all: impl IntoIterator<Item = (N, V)>,
    ) -> &mut Self {
        for (name, value) in all {
            self.env(name, value);
        }
        self
    }

    pub fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.env.insert(name.as_ref().to_owned(), None);
        self
    }

    /// Only what is set after this is there.
    pub fn env_clear(&mut self) -> &mut Self {
        self.is_env_cleared = true;
        self.env.clear();
        self
    }

    pub fn current_dir(&mut self, dir: impl Into<PathBuf>) -> &mut Self {
        self.dir = Some(dir.into());
        self
    }

    pub fn stdin(&mut self, file: impl Into<OwnedFd>) -> &mut Self {
        self.file(libc::STDIN_FILENO, file)
    }

    pub fn stdout(&mut self, file: impl Into<OwnedFd>) -> &mut Self {
        self.file(libc::STDOUT_FILENO, file)
    }

    pub fn stderr(&mut self, file: impl Into<OwnedFd>) -> &mut Self {
        self.file(libc::STDERR_FILENO, file)
    }

    /// It has `file` open under this number.
    pub fn file(&mut self, number: RawFd, file: impl Into<OwnedFd>) -> &mut Self {
        self.files.insert(number, Some(file.into()));
        self
    }

    /// It has the null device open under these numbers.
    pub fn null(&mut self, numbers: impl IntoIterator<Item = RawFd>) -> &mut Self {
        let nulls = numbers.into_iter().map(|number| (number, None));
        self.files.extend(nulls);
        self
    }

    /// It runs in this mount namespace.
    pub fn mounts(&mut self, namespace: Namespace) -> &mut Self {
        self.mounts = Some(namespace);
        self
    }

    /// It leads a process group of its own.
    pub fn lead_group(&mut self) -> &mut Self {
        self.leads_group = true;
        self
    }

    /// It is killed when the thread ends that has started it (prctl(2), `PR_SET_PDEATHSIG`): an OCI runtime
    /// must not go on with a bundle whose shim is gone.
    pub fn die_with_parent(&mut self) -> &mut Self {
        self.dies_with_parent = true;
        self
    }

    pub fn program(&self) -> &OsStr {
        &self.program
    }

    /// Starts a child that executes it, and does not wait until it does. The caller is the thread with
    /// which the child dies, if it is to.
    ///
    /// # Errors
    /// From open(2), fcntl(2) or clone(2); `InvalidInput` if a text has a NUL in it.
    pub fn spawn(&self) -> io::Result<(u32, NotExecuted)> {
        let mut opened = Vec::new();
        let files = self.open_files(&mut opened)?;
        let name = self.name.as_ref().unwrap_or(&self.program);
        let args = [name].into_iter().chain(&self.args);
        let set = self.env.iter().filter_map(|(name, value)| {
            let value = value.as_ref()?;
            Some([name.as_bytes(), b"=", value.as_bytes()].concat())
        });
        let is_inherited =
            |name: &[u8]| !self.is_env_cleared && !self.env.contains_key(OsStr::from_bytes(name));
        let dir = self.dir.as_ref().map(|dir| dir.as_os_str().as_bytes());
        let dir = dir.map(text).transpose()?;
        let steps = sys::Steps {
            programs: texts(self.candidates())?,
            args: texts(args.map(|arg| arg.as_bytes()))?,
            env: texts(set)?,
            dir,
            files,
            mounts: self.mounts.as_ref().map(|it| it.as_fd().as_raw_fd()),
            leads_group: self.leads_group,
            dies_with_parent: self.dies_with_parent,
        };
        sys::spawn(steps, is_inherited)
    }

    /// Which number is to be put where; what is opened for that is in `opened`. No file is in another's
    /// place, nor in its own, where dup3(2) would leave it to be closed.
    fn open_files(&self, opened: &mut Vec<OwnedFd>) -> io::Result<Vec<(RawFd, RawFd)>> {
        let first = self.files.last_key_value().map_or(0, |(last, _)| last + 1);
        let mut files = Vec::new();
        for (&number, file) in &self.files {
            let file = match file {
                Some(file) => file.as_fd(),
                None => {
                    opened.push(null().map_err(io::Error::other)?);
                    opened[opened.len() - 1].as_fd()
                }
            };
            let mut from = file.as_raw_fd();
            if from < first {
                let clear = sys::limits::from(file, first)?;
                from = clear.as_raw_fd();
                opened.push(clear);
            }
            files.push((from, number));
        }
        Ok(files)
    }

    /// The paths at which the program may be (execvp(3)).
    fn candidates(&self) -> Vec<Vec<u8>> {
        let program = self.program.as_bytes();
        if program.is_empty() || program.contains(&b'/') {
            return vec![program.to_owned()];
        }
        let path = match self.env.get(OsStr::new("PATH")) {
            Some(path) => path.clone(),
            None if self.is_env_cleared => None,
            None => std::env::var_os("PATH"),
        };
        let path = path.unwrap_or_else(|| PATH.into());
        let below = |dir: &[u8]| match dir {
            // The working directory.
            b"" => program.to_owned(),
            _ => [dir, b"/", program].concat(),
        };
        let dirs = path.as_bytes().split(|&byte| byte == b':');
        dirs.map(below).collect()
    }
}

impl std::fmt::Debug for Command {
    /// Its words, as a shell would be given them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.program)?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg:?}"))
    }
}

fn texts(all: impl IntoIterator<Item: Into<Vec<u8>>>) -> io::Result<Vec<CString>> {
    all.into_iter().map(text).collect()
}

fn text(of: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(of).map_err(|e| {
        let text = OsString::from_vec(e.into_vec());
        let text = format!("{text:?} has a NUL byte in it");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })
}

#[cfg(test)]
mod tests;
