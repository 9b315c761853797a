// SPDX-License-Identifier: Apache-2.0
//! A directory tree of ours, whose disk may stand still: what is asked of it is done beside the loop,
//! by so many threads at most.

use crate::failure::{Failure, unavailable};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use task::aside;
use tokio::sync::Semaphore;

/// So many requests may wait for a thread's turn.
const WAITING: usize = 1024;

pub struct Disk {
    path: PathBuf,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// One that waits.
pub struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Disk {
    /// So many threads at most wait for what is at `path`.
    pub fn new(path: &Path, threads: usize) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            turns: Arc::new(Semaphore::new(threads)),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Does `work` when its turn comes. Who stops waiting then does not stop the work.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let work = move || {
            let done = work();
            drop(turn);
            done
        };
        aside::run(work).await
    }

    /// [`Disk::run`] for work that goes as deep as a tree of directories.
    ///
    /// # Errors
    /// That there can be no thread.
    pub async fn run_deep<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<T> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let work = move || {
            let done = work();
            drop(turn);
            Ok(done)
        };
        aside::deep(work).await
    }

    /// [`Disk::run`] for a client's request, of which there may be any number.
    ///
    /// # Errors
    /// `Unavailable` if too many wait already, or the work's.
    pub async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let _waits = self.admit()?;
        self.run(work).await
    }

    /// Counts a client's request as one that waits.
    ///
    /// # Errors
    /// `Unavailable` if too many do.
    pub fn admit(&self) -> Result<Waits<'_>, Failure> {
        let others = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waits = Waits(&self.waiting);
        match others < WAITING {
            true => Ok(waits),
            false => Err(self.stands_still()),
        }
    }

    pub fn stands_still(&self) -> Failure {
        unavailable(format!(
            "{}: the file system does not answer",
            self.path.display()
        ))
    }
}
