// SPDX-License-Identifier: Apache-2.0
//! A mount namespace that is open: what is mounted in it is for those that have it.

use super::idmap::hide_this_thread;
use crate::aside;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

/// It lasts as long as it is open, here or elsewhere, or a process is in it.
#[derive(Clone)]
pub struct Namespace(Arc<Open>);

/// `None` when it is dropped.
struct Open(Option<OwnedFd>);

impl Drop for Open {
    /// With the last of it goes what is mounted in it alone, and that may wait for a disk.
    fn drop(&mut self) {
        let fd = self.0.take();
        aside::forget(move || drop(fd));
    }
}

impl Namespace {
    /// A copy of this process's as it is now: it sees what is mounted there later, if that is shared, and
    /// shows it nothing.
    ///
    /// # Errors
    /// From unshare(2), mount(2) or open(2).
    pub async fn copy() -> io::Result<Self> {
        let copied = aside::alone(|| {
            hide_this_thread()?;
            File::open("/proc/thread-self/ns/mnt")
        });
        Ok(Self::from(OwnedFd::from(copied.await?)))
    }

    /// Does `work` in it, on a thread of its own.
    ///
    /// # Errors
    /// The work's, or from unshare(2) or setns(2).
    pub async fn run<T: Send + 'static, E: From<io::Error> + Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let own = self.clone();
        aside::alone(move || {
            own.enter()?;
            work()
        })
        .await
    }

    /// This thread is in it from now on.
    ///
    /// # Errors
    /// From unshare(2) or setns(2).
    pub fn enter(&self) -> io::Result<()> {
        // Root and working directory are the thread's own then.
        unshare(CloneFlags::CLONE_FS)?;
        Ok(setns(self, CloneFlags::CLONE_NEWNS)?)
    }
}

impl From<OwnedFd> for Namespace {
    fn from(fd: OwnedFd) -> Self {
        Self(Arc::new(Open(Some(fd))))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0.0 {
            Some(fd) => fd.as_fd(),
            None => unreachable!("it is dropped"),
        }
    }
}

/// Where a root filesystem is mounted.
#[derive(Clone)]
pub struct Place {
    /// `None`: this process's own.
    pub namespace: Option<Namespace>,
    pub dir: PathBuf,
}

impl From<PathBuf> for Place {
    fn from(dir: PathBuf) -> Self {
        Self {
            namespace: None,
            dir,
        }
    }
}

impl Place {
    /// Does `work` where it is, on a thread of its own: mounting changes what belongs to its thread.
    ///
    /// # Errors
    /// As for [`Namespace::run`].
    pub(super) async fn run<T: Send + 'static, E: From<io::Error> + Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        match &self.namespace {
            Some(namespace) => namespace.run(work).await,
            None => aside::alone(work).await,
        }
    }
}
