// SPDX-License-Identifier: Apache-2.0
//! Streams of a link (`protos::mux`) in place of a client's paths, or in place of the process: what a
//! VM's shim and its agent have between them, each one end of it.

use super::Paths;
use crate::error::{Error, Result};
use protos::mux::{Link, Stream};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// How a request names a stream of the link instead of a path.
const SCHEME: &str = "stream://";

/// The guest's end of each stream that a process has on a link.
#[derive(Default)]
pub struct Ends {
    pub stdin: Option<Stream>,
    pub stdout: Option<Stream>,
    pub stderr: Option<Stream>,
}

/// Opens a stream, and says in `name` how a request names it.
pub(super) fn open(link: &Rc<Link>, name: &mut String) -> Rc<Stream> {
    let stream = link.open();
    *name = format!("{SCHEME}{}", stream.number());
    Rc::new(stream)
}

/// The stream that a request named so, in another session with the same process.
///
/// # Errors
/// If there is none.
pub(super) fn again(link: &Rc<Link>, name: &str) -> Result<Rc<Stream>> {
    let number = name.strip_prefix(SCHEME).and_then(|name| name.parse().ok());
    let stream = number.and_then(|number| link.again(number));
    let none = || Error::InvalidArgument(format!("stream {name:?} is gone"));
    stream.map(Rc::new).ok_or_else(none)
}

/// Streams that the host has opened, until the request comes that names them.
pub struct Parked {
    link: Rc<Link>,
    streams: RefCell<HashMap<u32, Stream>>,
}

impl Parked {
    pub fn new(link: Rc<Link>) -> Self {
        let streams = RefCell::default();
        Self { link, streams }
    }

    /// Accepts every stream that the host opens, until the link ends.
    pub async fn park(&self) {
        while let Some(stream) = self.link.accept().await {
            self.add(stream);
        }
    }

    fn add(&self, stream: Stream) {
        self.streams.borrow_mut().insert(stream.number(), stream);
    }

    /// Those that `paths` names.
    ///
    /// # Errors
    /// InvalidArgument, if a name is none of a stream that is there.
    pub fn take(&self, paths: &Paths) -> Result<Ends> {
        Ok(Ends {
            stdin: self.stream(&paths.stdin)?,
            stdout: self.stream(&paths.stdout)?,
            stderr: self.stream(&paths.stderr)?,
        })
    }

    /// The stream of this number, if it is there.
    pub fn take_number(&self, number: u32) -> Option<Stream> {
        // It was opened before the request was sent, and may have come in the same read.
        while let Some(stream) = self.link.try_accept() {
            self.add(stream);
        }
        self.streams.borrow_mut().remove(&number)
    }

    fn stream(&self, name: &str) -> Result<Option<Stream>> {
        if name.is_empty() {
            return Ok(None);
        }
        let number = name.strip_prefix(SCHEME).and_then(|name| name.parse().ok());
        let stream = number.and_then(|number| self.take_number(number));
        let unknown = || Error::InvalidArgument(format!("{name:?} is no stream of the link"));
        stream.map(Some).ok_or_else(unknown)
    }
}
