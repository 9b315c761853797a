// SPDX-License-Identifier: Apache-2.0
//! Watches the memory.events of a version 2 cgroup (contract O2).
//!
//! cgroupfs tells of a change as it tells of urgent data: the open file polls as EPOLLPRI. So a
//! watch is two open files, and no inotify instance, of which a user has but 128.

use super::{read, stats_v2};
use crate::sys;
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub(super) struct Watch {
    dir: PathBuf,
    memory: AsyncFd<OwnedFd>,
    cgroup: AsyncFd<OwnedFd>,
    /// How many kills were told of.
    pub(super) published: Cell<u64>,
}

impl Watch {
    pub fn new(dir: &Path) -> io::Result<Self> {
        let open = |file| File::open(dir.join(file)).map(OwnedFd::from);
        Self::woken_by(dir, open("memory.events")?, open("cgroup.events")?)
    }

    /// Looks at the files in `dir` whenever one of the two has a change to tell of.
    fn woken_by(dir: &Path, memory: OwnedFd, cgroup: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            memory: sys::watch(memory, Interest::PRIORITY)?,
            cgroup: sys::watch(cgroup, Interest::PRIORITY)?,
            published: Cell::new(0),
        })
    }

    /// See [`super::OomWatch::next`]. Looks before it waits: a change between the two stays ready.
    pub async fn next(&self) -> Option<()> {
        loop {
            if self.flush() {
                return Some(());
            }
            if !self.populated() {
                return None;
            }
            let changed = tokio::select! {
                changed = self.memory.ready(Interest::PRIORITY) => changed,
                changed = self.cgroup.ready(Interest::PRIORITY) => changed,
            };
            // The loop's epoll tells every change once, read or not.
            changed.ok()?.clear_ready();
        }
    }

    /// See [`super::OomWatch::flush`].
    pub fn flush(&self) -> bool {
        let events = stats_v2::memory_events(&self.dir)
            .ok()
            .flatten()
            .unwrap_or_default();
        let news = events.oom_kill > self.published.get();
        self.published
            .set(self.published.get().max(events.oom_kill));
        news
    }

    /// False if no process is left, or no cgroup.
    fn populated(&self) -> bool {
        let events = read::text(&self.dir, "cgroup.events")
            .ok()
            .flatten()
            .unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }
}

#[cfg(test)]
mod tests {
    //! O2: on recorded and invented files, where version 2 has no controllers.

    use super::*;
    use crate::rootfs::mountinfo;
    use nix::sys::socket::{MsgFlags, send};
    use std::cell::RefCell;
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command, Stdio};
    use std::rc::Rc;
    use std::time::Duration;
    use tempfile::TempDir;
    use tokio::task::LocalSet;
    use tokio::time::timeout;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// The two files of a cgroup; the recorded ones with another number of kills. Only those of
    /// cgroupfs can be polled, so sockets tell of the changes to these: by urgent data, too.
    struct Events {
        dir: TempDir,
        tell: RefCell<Option<[UnixStream; 2]>>,
    }

    impl Events {
        fn new() -> Self {
            let events = Self {
                dir: TempDir::new().unwrap(),
                tell: RefCell::default(),
            };
            events.kills(0);
            events.populated(true);
            events
        }

        fn write(&self, file: usize, name: &str, text: &str) {
            fs::write(self.dir.path().join(name), text).unwrap();
            if let Some(tell) = &*self.tell.borrow() {
                send(tell[file].as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
            }
        }

        fn kills(&self, kills: u64) {
            let text =
                format!("low 0\nhigh 0\nmax 2213\noom 9\noom_kill {kills}\noom_group_kill 0\n");
            self.write(0, "memory.events", &text);
        }

        fn populated(&self, populated: bool) {
            let text = format!("populated {}\nfrozen 0\n", u8::from(populated));
            self.write(1, "cgroup.events", &text);
        }

        fn watch(&self) -> Watch {
            let (memory, tell_memory) = UnixStream::pair().unwrap();
            let (cgroup, tell_cgroup) = UnixStream::pair().unwrap();
            self.tell.replace(Some([tell_memory, tell_cgroup]));
            Watch::woken_by(self.dir.path(), memory.into(), cgroup.into()).unwrap()
        }
    }

    async fn next(watch: &Watch) -> Option<()> {
        timeout(DEADLINE, watch.next()).await.unwrap()
    }

    async fn nothing_is_told(watch: &Watch) {
        assert!(timeout(Duration::ZERO, watch.next()).await.is_err());
    }

    #[tokio::test]
    async fn o2_every_rise_of_oom_kill_is_told_once() {
        let events = Events::new();
        let watch = events.watch();
        nothing_is_told(&watch).await;
        events.kills(1);
        assert_eq!(next(&watch).await, Some(()));
        events.kills(1);
        nothing_is_told(&watch).await;
        events.kills(3);
        assert_eq!(next(&watch).await, Some(()));
        nothing_is_told(&watch).await;
    }

    #[tokio::test]
    async fn o2_a_change_while_waiting_is_seen() {
        let events = Events::new();
        let watch = events.watch();
        let change = async {
            tokio::task::yield_now().await;
            events.kills(1);
        };
        let (told, ()) = tokio::join!(next(&watch), change);
        assert_eq!(told, Some(()));
    }

    #[tokio::test]
    async fn o2_the_last_process_to_leave_while_waiting_is_the_end() {
        let events = Events::new();
        let watch = events.watch();
        let change = async {
            tokio::task::yield_now().await;
            events.populated(false);
        };
        let (told, ()) = tokio::join!(next(&watch), change);
        assert_eq!(told, None);
    }

    #[tokio::test]
    async fn o2_kills_before_the_watch_count() {
        let events = Events::new();
        events.kills(1);
        assert_eq!(next(&events.watch()).await, Some(()));
    }

    #[tokio::test]
    async fn x6_flush_tells_what_nobody_was_told() {
        let events = Events::new();
        let watch = events.watch();
        assert!(!watch.flush());
        events.kills(1);
        assert!(watch.flush());
        assert!(!watch.flush());
        nothing_is_told(&watch).await;
    }

    #[tokio::test]
    async fn an_empty_cgroup_is_the_end_but_its_last_kill_comes_first() {
        let events = Events::new();
        let watch = events.watch();
        events.kills(1);
        events.populated(false);
        assert_eq!(next(&watch).await, Some(()));
        assert_eq!(next(&watch).await, None);
        assert_eq!(next(&watch).await, None);
    }

    #[tokio::test]
    async fn a_removed_cgroup_is_the_end() {
        let events = Events::new();
        let watch = events.watch();
        nothing_is_told(&watch).await;
        drop(events);
        assert_eq!(next(&watch).await, None);
        assert!(!watch.flush());
    }

    #[tokio::test]
    async fn without_the_memory_controller_there_is_no_watch() {
        let scratch = TempDir::new().unwrap();
        let error = Watch::new(scratch.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    /// A cgroup of this machine's with one process that sleeps in it.
    struct Real {
        dir: PathBuf,
        process: Child,
    }

    impl Real {
        /// `None`, with a word about it, where there can be none.
        fn new(name: &str) -> Option<Self> {
            let table = fs::read("/proc/self/mountinfo").unwrap();
            let unified = mountinfo::parse(&table).find(|mount| mount.kind == b"cgroup2");
            let Some(unified) = unified else {
                println!("skipped: no cgroup2 is mounted");
                return None;
            };
            let name = format!("dunnage-{}-{name}", std::process::id());
            let dir = mountinfo::path(unified.point).join(name);
            if let Err(error) = fs::create_dir(&dir) {
                println!("skipped: {}: {error}", dir.display());
                return None;
            }
            let process = Command::new("sleep")
                .arg("1000")
                .stdin(Stdio::null())
                .spawn();
            let real = Self {
                dir,
                process: process.unwrap(),
            };
            let pid = real.process.id().to_string();
            fs::write(real.dir.join("cgroup.procs"), pid).unwrap();
            Some(real)
        }

        /// Its memory.events is there only if it has that controller; the other one will do.
        fn watch(&self) -> Watch {
            let open = || File::open(self.dir.join("cgroup.events")).unwrap().into();
            Watch::woken_by(&self.dir, open(), open()).unwrap()
        }

        #[expect(clippy::disallowed_methods, reason = "the test's own child")]
        fn kill(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    impl Drop for Real {
        fn drop(&mut self) {
            self.kill();
            let _ = fs::remove_dir(&self.dir);
        }
    }

    #[tokio::test]
    async fn o2_cgroupfs_tells_of_changes_to_more_watches_than_inotify_has() {
        let Some(mut real) = Real::new("many") else {
            return;
        };
        let watches: Vec<Watch> = (0..300).map(|_| real.watch()).collect();
        let waiting = Rc::new(Cell::new(0));
        let wait = |watch: Watch| {
            let waiting = Rc::clone(&waiting);
            tokio::task::spawn_local(async move {
                nothing_is_told(&watch).await;
                waiting.set(waiting.get() + 1);
                next(&watch).await
            })
        };
        let all = async {
            let tasks: Vec<_> = watches.into_iter().map(wait).collect();
            while waiting.get() < tasks.len() {
                tokio::task::yield_now().await;
            }
            real.kill();
            for task in tasks {
                assert_eq!(task.await.unwrap(), None);
            }
        };
        LocalSet::new().run_until(all).await;
    }

    #[tokio::test]
    async fn o2_every_change_of_cgroupfs_is_told() {
        let Some(real) = Real::new("freeze") else {
            return;
        };
        let watch = real.watch();
        for frozen in ["1", "0", "1", "0"] {
            let changes = async {
                while let Ok(mut ready) = watch.cgroup.ready(Interest::PRIORITY).await {
                    ready.clear_ready();
                    let events = read::text(&real.dir, "cgroup.events").unwrap().unwrap();
                    if events.contains(&format!("frozen {frozen}")) {
                        break;
                    }
                }
            };
            let freeze = async {
                tokio::task::yield_now().await;
                fs::write(real.dir.join("cgroup.freeze"), frozen).unwrap();
            };
            let both = async { tokio::join!(changes, freeze) };
            timeout(DEADLINE, both).await.unwrap();
        }
    }
}
