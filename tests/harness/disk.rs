// SPDX-License-Identifier: Apache-2.0
//! File systems of a test's own that can be made to stand still, as a dead disk or server does.

use crate::bundle::MARK;
use crate::test::Test;
use crate::{proc, wait};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Runs a program of the machine's to its end.
fn tool(program: &str, args: &[&Path]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e} (tests/setup.sh installs it)"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

/// An ext4 in a file. Whoever writes to it while it is frozen waits in the kernel, and can't be
/// killed; who reads does not.
pub struct Disk(PathBuf);

impl Disk {
    /// Makes one, and mounts it at `dir`.
    pub fn new(test: &Test, dir: impl Into<PathBuf>) -> Self {
        Self::within(test.dir(), dir)
    }

    /// [`Disk::new`], with its file in the directory `place`.
    pub fn within(place: &Path, dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        fs::create_dir_all(&dir).expect("mount point");
        let name = dir.file_name().expect("a name").to_string_lossy();
        let image = place.join(format!("{name}.ext4"));
        let file = File::create(&image).expect("image");
        file.set_len(16 << 20).expect("image");
        tool("mkfs.ext4", &["-q".as_ref(), &image]);
        tool("mount", &["-o".as_ref(), "loop".as_ref(), &image, &dir]);
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Has it stand still until the answer is dropped.
    pub fn freeze(&self) -> Frozen<'_> {
        tool("fsfreeze", &["-f".as_ref(), &self.0]);
        Frozen(self)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Who still has something open has it a little longer.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// A disk that stands still.
pub struct Frozen<'a>(&'a Disk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let thawed = Command::new("fsfreeze").arg("-u").arg(&self.0.0).output();
        if !thawed.is_ok_and(|output| output.status.success()) {
            eprintln!("{} is still frozen", self.0.0.display());
        }
    }
}

/// A file system that a program serves (fuse-overlayfs). While that is stopped, who reads waits too.
pub struct Served {
    dir: PathBuf,
    server: Child,
}

impl Served {
    /// Mounts an empty one at `dir`.
    pub async fn new(test: &Test, dir: impl Into<PathBuf>) -> Self {
        Self::within(test.dir(), test.namespace(), dir).await
    }

    /// [`Served::new`], with what it serves in the directory `place`, of the test in `namespace`.
    pub async fn within(place: &Path, namespace: &str, dir: impl Into<PathBuf>) -> Self {
        Self::mounted(place, namespace, dir.into(), "allow_other").await
    }

    /// [`Served::new`], of whose names the kernel remembers nothing: each is asked for each time.
    pub async fn without_memory(test: &Test, dir: impl Into<PathBuf>) -> Self {
        let options = "allow_other,timeout=0";
        Self::mounted(test.dir(), test.namespace(), dir.into(), options).await
    }

    async fn mounted(place: &Path, namespace: &str, dir: PathBuf, options: &str) -> Self {
        let name = dir.file_name().expect("a name").to_string_lossy();
        let parts = ["lower", "upper", "work"];
        let [lower, upper, work] = parts.map(|part| place.join(format!("{name}-{part}")));
        for made in [&dir, &lower, &upper, &work] {
            fs::create_dir_all(made).expect("directory");
        }
        let options = format!(
            "{options},lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let server = Command::new("fuse-overlayfs")
            .args(["-f", "-o", &options])
            .arg(&dir)
            .env(MARK, namespace)
            .spawn()
            .expect("fuse-overlayfs (tests/setup.sh installs it)");
        let served = Self { dir, server };
        wait::until("a mount", || {
            let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
            match table.contains(&*served.dir.to_string_lossy()) {
                true => Ok(()),
                false => Err("not mounted".to_owned()),
            }
        })
        .await;
        served
    }

    /// Has it stand still until the answer is dropped.
    pub fn stop(&self) -> Stopped<'_> {
        wait::signal(self.server.id() as i32, libc::SIGSTOP).expect("the server");
        Stopped(self)
    }

    /// The shell's command that has it stand still.
    pub fn stop_command(&self) -> String {
        format!("kill -STOP {}", self.server.id())
    }

    /// Waits until somebody's [`Served::stop_command`] has it stand still; until the answer is dropped.
    pub async fn stopped(&self) -> Stopped<'_> {
        let pid = self.server.id() as i32;
        wait::until("a server that has stopped", || {
            match proc::stat(pid).map(|stat| stat.state) {
                Some('T') => Ok(()),
                state => Err(format!("{state:?}")),
            }
        })
        .await;
        Stopped(self)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).output();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// One whose server is stopped.
pub struct Stopped<'a>(&'a Served);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let _ = wait::signal(self.0.server.id() as i32, libc::SIGCONT);
    }
}

/// Waits until a thread of `pid` waits for a disk: it is in uninterruptible sleep.
pub async fn is_waited_for_by(pid: i32) {
    wait::until("a thread that waits for a disk", || {
        let states = proc::thread_states(pid);
        match states.contains(&'D') {
            true => Ok(()),
            false => Err(format!("{states:?}")),
        }
    })
    .await;
}
