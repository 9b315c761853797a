// SPDX-License-Identifier: Apache-2.0
//! Telling when the kernel kills a container's process for lack of memory.

use super::find::Place;
use super::kills::{Found, Kills};
use super::{Cgroup, oom_v1, oom_v2};
use std::io;

/// Watches one cgroup; dropping it releases all that it holds.
#[derive(Debug)]
pub struct OomWatch {
    version: Version,
    kills: Kills,
}

#[derive(Debug)]
enum Version {
    V1(oom_v1::Watch),
    V2(oom_v2::Watch),
}

impl OomWatch {
    /// Starts to watch `cgroup`, whose life so far counts too (contract O2, O3). Must be called on
    /// a tokio runtime. Fails if the container has no memory controller, or if the limit on file
    /// descriptors is reached.
    pub fn new(cgroup: &Cgroup) -> io::Result<Self> {
        let dir = cgroup.memory_dir().ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            version: match &cgroup.0 {
                Place::V1(_) => Version::V1(oom_v1::Watch::new(dir)?),
                Place::V2 { .. } => Version::V2(oom_v2::Watch::new(dir)?),
            },
            kills: Kills::of(dir),
        })
    }

    /// Who was killed, as far as that was not asked before: what is not to be known is one kill of
    /// which no process is told. For after [`OomWatch::next`] and [`OomWatch::flush`].
    /// `known` are the pids of its processes that are known.
    pub async fn killed(&self, known: &[u32]) -> Vec<Found> {
        self.kills.take(known).await
    }

    /// Waits for the kernel to kill a process, or several at once, that was not told of yet.
    /// `None`: the cgroup is gone, or empty for good; nothing will ever come. May be cancelled and
    /// called again at any time.
    pub async fn next(&self) -> Option<()> {
        match &self.version {
            Version::V1(watch) => watch.next(&self.kills).await,
            Version::V2(watch) => watch.next().await,
        }
    }

    /// How many kills were told of, in cgroups that are there.
    pub fn published(&self) -> u64 {
        match &self.version {
            Version::V1(watch) => watch.published(),
            Version::V2(watch) => watch.published.get(),
        }
    }

    /// That many kills were told of by another process image.
    pub fn set_published(&self, published: u64) {
        match &self.version {
            Version::V1(watch) => watch.set_published(published),
            Version::V2(watch) => watch.published.set(published),
        }
    }

    /// True if there was a kill that was not told of yet; from then on it was. For the end of
    /// init, so that TaskOOM comes before TaskExit (contract X6).
    pub fn flush(&self) -> bool {
        match &self.version {
            Version::V1(watch) => watch.flush(),
            Version::V2(watch) => watch.flush(),
        }
    }
}
