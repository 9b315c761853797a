// SPDX-License-Identifier: Apache-2.0
//! The FIFOs (and plain files) that a client names: opened without ever blocking the loop.

use super::ends::{Sink, Source};
use crate::aside;
use crate::error::{Error, Result, words};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{Mode, SFlag, fstat};
use protos::ttrpc::Context;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long a client may take to open its end of an output FIFO (containerd/fifo, P/io.go).
const READER_DEADLINE: Duration = Duration::from_secs(30);
/// How often a FIFO is looked at that inotify can't tell of.
const LOOK: Duration = Duration::from_millis(10);

/// Opens where output goes. A FIFO is opened once its reader is there, at both ends: the
/// process shall not die of SIGPIPE when the client does (I5). Anything else is appended to.
///
/// # Errors
/// Code Unknown, naming the path; `GivenUp` if the caller did not wait for a reader.
pub async fn open_sink(path: &Path, context: &Context) -> Result<Sink> {
    open_or_make(path, false, context).await
}

/// [`open_sink`] for the path of a `file://` URI: makes the file, with the directories above it.
///
/// # Errors
/// Code Unknown, naming the path; `GivenUp` if the caller did not wait so long.
pub async fn make_sink(path: &Path, context: &Context) -> Result<Sink> {
    open_or_make(path, true, context).await
}

async fn open_or_make(path: &Path, make: bool, context: &Context) -> Result<Sink> {
    let failed = |e: io::Error| opening(path, &e);
    let handle = match look_up(path, make, context).await? {
        Named::Fifo(handle) => handle,
        Named::File(file) => return Ok(Sink::file(file)),
    };
    let nobody = || format!("somebody who opens the FIFO {} to read", path.display());
    let writer = match handle.open_end(OFlag::O_WRONLY) {
        Err(Errno::ENXIO) => {
            let _waiting = context.waits_for(nobody, 0);
            tokio::select! {
                writer = handle.writer_once_read() => writer.map_err(failed)?,
                why = context.cancelled() => return Err(Error::GivenUp(why)),
                () = tokio::time::sleep(READER_DEADLINE) => {
                    return Err(failed(io::Error::other("no reader within 30 s")));
                }
            }
        }
        other => other.map_err(|e| failed(e.into()))?,
    };
    let reader = handle
        .open_end(OFlag::O_RDONLY)
        .map_err(|e| failed(e.into()))?;
    Sink::pipe(writer, Some(reader))
}

/// Opens the FIFO that input comes from, and our own write end of it (I7).
///
/// # Errors
/// Code Unknown, naming the path.
pub async fn open_source(path: &Path, context: &Context) -> Result<(Source, OwnedFd)> {
    let failed = |e: io::Error| opening(path, &e);
    let Named::Fifo(handle) = look_up(path, false, context).await? else {
        return Err(failed(io::Error::other("not a FIFO")));
    };
    let reader = handle
        .open_end(OFlag::O_RDONLY)
        .map_err(|e| failed(e.into()))?;
    let writer = handle
        .open_end(OFlag::O_WRONLY)
        .map_err(|e| failed(e.into()))?;
    Ok((Source::pipe(reader)?, writer))
}

/// The path in what a client says, which may be a `fifo://` URI.
pub fn path(path: &str) -> &str {
    path.strip_prefix("fifo://").unwrap_or(path)
}

/// What a path names.
enum Named {
    Fifo(Handle),
    /// Anything else, opened for appending.
    File(File),
}

/// Finds, or makes, what is at `path`, which may lie on a disk that stands still.
async fn look_up(path: &Path, make: bool, context: &Context) -> Result<Named> {
    let path = path.to_owned();
    let found = aside::run(move || {
        let mut append = OpenOptions::new();
        append.append(true);
        match Handle::open(&path) {
            Ok(Some(handle)) => Ok(Named::Fifo(handle)),
            Err(e) if make && e.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent).map_err(Error::io("mkdir", parent))?;
                }
                let made = append.create(true).open(&path);
                made.map(Named::File).map_err(Error::io("open", &path))
            }
            found => found
                .and_then(|_| append.open(&path))
                .map(Named::File)
                .map_err(|e| opening(&path, &e)),
        }
    });
    tokio::select! {
        found = found => found,
        why = context.cancelled() => Err(Error::GivenUp(why)),
    }
}

fn opening(path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    Error::Refused(format!(
        "opening file \"{path}\" failed: open {path}: {}",
        words(error)
    ))
}

/// A FIFO held by an O_PATH fd: its ends open through /proc, even when the name is gone (I8).
struct Handle(File);

impl Handle {
    /// `None` if `path` is there but no FIFO.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let fd = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let kind = SFlag::from_bits_truncate(fstat(&fd)?.st_mode & SFlag::S_IFMT.bits());
        Ok((kind == SFlag::S_IFIFO).then(|| Self(fd.into())))
    }

    fn open_end(&self, mode: OFlag) -> nix::Result<OwnedFd> {
        open(
            &reopened(&self.0),
            mode | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
    }

    /// Waits for somebody to open the FIFO for reading, and gives its write end.
    ///
    /// A reader that blocks in open(2) is announced by nothing until there is a writer. So there is
    /// one from the start, made with a reader of our own that goes again: from then on every open
    /// returns at once, and inotify tells of it.
    async fn writer_once_read(&self) -> io::Result<OwnedFd> {
        self.writer_once(Watch::of([&self.0], AddWatchFlags::IN_OPEN)?)
            .await
    }

    /// [`Handle::writer_once_read`], with `opened` as what tells of opens from now on.
    async fn writer_once(&self, opened: Watch) -> io::Result<OwnedFd> {
        let own_reader = self.open_end(OFlag::O_RDONLY)?;
        let writer = self.open_end(OFlag::O_WRONLY)?;
        drop(own_reader);
        // Without a reader, another write end can't be opened.
        while self.open_end(OFlag::O_WRONLY).is_err() {
            opened.next().await?;
        }
        Ok(writer)
    }
}

/// The file behind `fd`, whatever its name is by now.
fn reopened(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Tells what is done with some FIFOs, by whomever.
pub enum Watch {
    /// By inotify(7).
    Told(AsyncFd<OwnedFd>),
    /// Containers have used up what root may have of that: to look now and then must do.
    Looks,
}

impl Watch {
    /// # Errors
    /// From inotify_init(2) or inotify_add_watch(2).
    pub fn of<'a, F: AsRawFd + 'a>(
        fifos: impl IntoIterator<Item = &'a F>,
        events: AddWatchFlags,
    ) -> io::Result<Self> {
        let inotify = match Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC) {
            // Instances, or files at all.
            Err(Errno::EMFILE) => return Ok(Self::Looks),
            made => made?,
        };
        for fifo in fifos {
            match inotify.add_watch(&reopened(fifo), events) {
                Err(Errno::ENOSPC) => return Ok(Self::Looks),
                added => added.map(drop)?,
            }
        }
        Ok(Self::Told(sys::watch(inotify.into(), Interest::READABLE)?))
    }

    /// Waits for the next event, or some; perhaps there was none.
    ///
    /// # Errors
    /// From read(2).
    pub async fn next(&self) -> io::Result<()> {
        let Self::Told(told) = self else {
            tokio::time::sleep(LOOK).await;
            return Ok(());
        };
        loop {
            let mut ready = told.readable().await?;
            match nix::unistd::read(told.get_ref(), &mut [0; 1024]) {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                other => return Ok(other.map(drop)?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::mkfifo;

    #[tokio::test]
    async fn an_output_fifo_waits_for_its_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let context = Context::background();
        let mut sink = Box::pin(open_sink(&path, &context));
        tokio::select! {
            biased;
            _ = &mut sink => panic!("there is no reader yet"),
            () = std::future::ready(()) => {}
        }
        let _reader = Handle::open(&path)
            .unwrap()
            .unwrap()
            .open_end(OFlag::O_RDONLY)
            .unwrap();
        sink.await.unwrap();
    }

    /// Such a reader is a reader, and inotify does not tell of it.
    #[tokio::test]
    async fn a_reader_that_blocks_in_open_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        for _ in 0..200 {
            let blocked = path.clone();
            let reader = std::thread::spawn(move || File::open(blocked).unwrap());
            let sink = open_sink(&path, &Context::background()).await.unwrap();
            drop(reader.join().unwrap());
            drop(sink);
        }
    }

    /// All of root's containers share 128 inotify instances with us (inotify(7),
    /// `max_user_instances`), and may have them all.
    #[tokio::test]
    async fn a_reader_is_seen_without_inotify_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let handle = Handle::open(&path).unwrap().unwrap();
        let mut writer = Box::pin(handle.writer_once(Watch::Looks));
        tokio::select! {
            biased;
            _ = &mut writer => panic!("there is no reader yet"),
            () = std::future::ready(()) => {}
        }
        let blocked = path.clone();
        let reader = std::thread::spawn(move || File::open(blocked).unwrap());
        writer.await.unwrap();
        drop(reader.join().unwrap());
    }

    #[tokio::test]
    async fn a_missing_output_path_is_named() {
        let text = open_sink(Path::new("/nonexistent/x"), &Context::background()).await;
        let text = text.err().unwrap().to_string();
        assert_eq!(
            text,
            "opening file \"/nonexistent/x\" failed: open /nonexistent/x: no such file or directory"
        );
    }
}
