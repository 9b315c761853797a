// SPDX-License-Identifier: Apache-2.0
//! A private containerd of a chosen release, with the shim under test first in its PATH.
//!
//! ```text
//! on("1.7", test) ── Containerd::start ── test(&mut containerd) ── Containerd::finish
//!                     its own root, state, sockets, PATH,           deletes what the test left,
//!                     namespace and image, in /tmp/<namespace>      and asserts that nothing stays
//! release  which containerds there are
//! setup    config.toml
//! client   what a test asks of its containerd through ctr
//! capture  what a child writes, while it writes it
//! ctr      the release's own client, as a child with a deadline
//! events   `ctr events`, with marks that tell what has been received
//! fifo     a word between a test and a container
//! outage   containerd away for a while
//! leavings what a containerd and its shims can leave on a machine
//! ```
//! Every test has a containerd and a namespace of its own. A release that is not installed is
//! reported by name, and its test does nothing; in CI 1.6 and some 2.x must be there.

pub mod capture;
mod client;
pub mod ctr;
pub mod events;
pub mod fifo;
mod leavings;
pub mod outage;
pub mod release;
mod setup;

pub(crate) use self::leavings::KUBERNETES;

use self::capture::Capture;
pub use self::client::Task;
use self::events::Events;
use self::fifo::Fifo;
use self::release::Release;
pub(crate) use self::setup::Setup;
use crate::{limit::Limit, peers, proc, program};
use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once};
use std::time::Duration;
use std::{env, fs, io};

/// How long anything that is expected at all may take on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// The name of the image that tests/setup.sh makes.
pub const IMAGE: &str = "dunnage.test/busybox:latest";
/// The official name of the shim: what containerd looks for in its PATH.
pub const SHIM: &str = "containerd-shim-runc-v2";

/// Runs `test` with a containerd of release `name`, then proves that nothing is left of it.
pub fn on(name: &'static str, test: fn(&mut Containerd)) {
    if let Some(mut containerd) = start(name, Setup::default()) {
        test(&mut containerd);
        containerd.finish();
    }
}

/// [`on`], with more in its configuration; what `test` found, if the release is there.
pub fn with<T>(
    name: &'static str,
    config: String,
    test: impl FnOnce(&mut Containerd) -> T,
) -> Option<T> {
    let setup = Setup {
        config: config.leak(),
        ..Default::default()
    };
    let mut containerd = start(name, setup)?;
    let found = test(&mut containerd);
    containerd.finish();
    Some(found)
}

/// [`on`], with more in the environment of the daemon, and with containerd's own tracing.
pub fn traced(
    name: &'static str,
    env: Vec<(&'static str, String)>,
    test: impl FnOnce(&mut Containerd),
) {
    let setup = Setup {
        env,
        ..Default::default()
    };
    if let Some(mut containerd) = start(name, setup) {
        test(&mut containerd);
        containerd.finish();
    }
}

/// [`on`], for shims that are not ours: what they leave is only reported. False if that release
/// is missing.
pub fn measure(name: &'static str, body: impl FnOnce(&Containerd)) -> bool {
    let measured = with(name, String::new(), |containerd| {
        body(containerd);
        containerd.known_leavings = Some("");
    });
    measured.is_some()
}

/// Starts release `name`. That it is missing is reported, and in CI a failure.
pub(crate) fn start(name: &'static str, setup: Setup) -> Option<Containerd> {
    let Some(release) = Release::find(name) else {
        report(&format!(
            "containerd {name} is MISSING (run tests/setup.sh): test not run"
        ));
        let needed = env::var("CI").is_ok_and(|ci| ci == "true") && name != "1.7";
        assert!(
            !needed,
            "CI needs containerd 1.6 and a 2.x, and {name} is missing"
        );
        return None;
    };
    Some(Containerd::start(release, setup))
}

/// Tells whoever runs the tests, even when the test passes: not through `print!`, which a
/// passing test swallows.
pub fn report(text: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(io::stderr(), "# {test}: {text}");
}

pub struct Containerd {
    pub release: Release,
    dir: PathBuf,
    namespace: String,
    network: Option<OwnedFd>,
    env: Vec<(&'static str, String)>,
    process: Option<Child>,
    /// What it and its shims said, once for each time it was started.
    logs: Vec<Capture>,
    /// Containers and groups: each may have had a shim's socket.
    ids: Mutex<BTreeSet<String>>,
    finished: bool,
    /// What begins so, and is left at the end, is only reported.
    known_leavings: Option<&'static str>,
    _limit: Limit,
}

impl Containerd {
    fn start(release: Release, setup: Setup) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        SWEEP.call_once(leavings::sweep);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Also the directory's name: short, for a unix socket's path has 107 bytes.
        let name = format!("{}{}-{count}", leavings::PREFIX, std::process::id());
        let dir = Path::new("/tmp").join(&name);
        fs::create_dir(&dir).expect("a new directory");
        for name in ["bin", "tmp", "fifo", "share"] {
            fs::create_dir(dir.join(name)).expect("a new directory");
        }
        let config = setup.config(&dir);
        fs::write(dir.join("config.toml"), config).expect("config.toml");
        if let Some(prepare) = setup.prepare {
            prepare(&dir);
        }
        let (logs, ids) = (Vec::new(), Mutex::default());
        let mut it = Self {
            release,
            dir,
            namespace: setup.namespace.map_or(name, str::to_owned),
            network: setup.network,
            env: setup.env,
            process: None,
            logs,
            ids,
            finished: false,
            known_leavings: peers::is_go().then_some("socket "),
            _limit: Limit::of_this_test(),
        };
        it.use_shim(&it.release.shim());
        it.up();
        it.import("busybox.tar");
        it
    }

    /// Makes an image known that tests/setup.sh made.
    pub(crate) fn import(&self, name: &str) {
        let image = peers::peers().join(name);
        self.ctr(&["images", "import", &image.to_string_lossy()])
            .ok();
    }

    /// Starts the daemon and waits until it says that it serves.
    fn up(&mut self) {
        assert!(self.process.is_none(), "containerd is up already");
        let mut command = self.command("containerd");
        command.arg("--config").arg(self.dir.join("config.toml"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("containerd");
        let log = Capture::of(child.stderr.take().expect("piped"));
        self.process = Some(child);
        self.logs.push(log.clone());
        log.wait_for("containerd to serve", |log| {
            log.contains("successfully booted").then_some(())
        });
    }

    /// SIGKILLs the daemon. Shims and containers go on.
    pub fn kill(&mut self) {
        let mut child = self.process.take().expect("containerd is up");
        child.kill().expect("kill containerd");
        child.wait().expect("wait for containerd");
    }

    /// Starts the daemon again, on the same root and state.
    pub fn restart(&mut self) {
        self.up();
    }

    /// What the daemon and its shims have logged.
    pub fn log(&self) -> String {
        self.logs.iter().map(Capture::text).collect()
    }

    pub fn pid(&self) -> i32 {
        self.process.as_ref().expect("containerd is up").id() as i32
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The gRPC address, which containerd gives to shims.
    pub fn address(&self) -> String {
        self.dir.join("c.sock").to_string_lossy().into_owned()
    }

    /// What runc knows of a container, while it exists.
    pub fn runc_state(&self, id: &str) -> PathBuf {
        Path::new("/run/containerd/runc")
            .join(&self.namespace)
            .join(id)
    }

    /// Puts another binary in the shim's place, in one step.
    pub fn use_shim(&self, binary: &Path) {
        program::copy(binary, &self.dir.join("bin").join(SHIM));
    }

    /// Puts a program into the PATH of shims.
    pub fn provide(&self, program: &Path) {
        let name = program.file_name().expect("a program's file");
        symlink(program, self.dir.join("bin").join(name)).expect("a program");
    }

    /// A program of this release, in the environment both the daemon and its client get.
    fn command(&self, program: &str) -> Command {
        let network = self.network.as_ref().map(AsRawFd::as_raw_fd);
        let bin = self.release.bin.display();
        let path = format!(
            "{}/bin:{bin}:{}",
            self.dir.display(),
            peers::path().display()
        );
        let mut command = Command::new(self.release.bin.join(program));
        command
            .env_clear()
            .env("PATH", path)
            .env("TMPDIR", self.dir.join("tmp"))
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
            .env("CONTAINERD_SNAPSHOTTER", release::snapshotter())
            .current_dir(&self.dir);
        // SAFETY: setns and prctl with these arguments only change the new process; the fd is
        // open for as long as `self` is.
        unsafe {
            // Nobody is left behind if the test's thread is gone.
            command.pre_exec(move || {
                let network = network.map_or(0, |fd| libc::setns(fd, libc::CLONE_NEWNET));
                match network | libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        command
    }

    /// Subscribed when this returns.
    pub fn events(&self) -> Events {
        Events::subscribe(self)
    }

    /// A FIFO that containers see as /share/NAME.
    pub fn fifo(&self, name: &str) -> Fifo {
        Fifo::make(self.dir.join("share").join(name))
    }

    /// The daemons (not `start` or `delete`) that serve this containerd.
    pub fn shims(&self) -> Vec<i32> {
        leavings::shims(&self.dir)
            .into_iter()
            .filter(|&(_, daemon)| daemon)
            .map(|s| s.0)
            .collect()
    }

    /// The shim of a task: the parent of its init.
    #[track_caller]
    pub fn shim_of(&self, task: &Task) -> i32 {
        let shim = proc::stat(task.pid)
            .unwrap_or_else(|| panic!("{task:?} is gone"))
            .ppid;
        let shims = self.shims();
        assert!(
            shims.contains(&shim),
            "parent {} is none of {shims:?}",
            proc::describe(shim)
        );
        shim
    }

    /// Remembers a container or group whose shim's socket must not be left behind.
    pub fn note(&self, id: &str) {
        self.ids.lock().expect("ids").insert(id.to_owned());
    }

    /// For a test that has shown how a peer's shim leaves something behind.
    pub fn tolerate_leavings(&mut self) {
        assert!(peers::is_go(), "ours leaves nothing behind");
        self.known_leavings = Some("");
    }

    /// For a test in which a Go shim serves a group: that of 2.x looks for the address of its
    /// socket in a bundle that containerd may have taken away by then, and leaves the socket.
    pub fn tolerate_socket_of_group(&mut self) {
        self.known_leavings = Some("socket ");
    }

    /// Deletes what the test left, the way a user would, and asserts that nothing else is left.
    pub(crate) fn finish(mut self) {
        if self.process.is_none() {
            self.up();
        }
        for task in self.tasks() {
            self.ctr(&["task", "delete", "--force", &task.id]).ok();
        }
        for id in self.containers() {
            self.ctr(&["containers", "rm", &id]).ok();
        }
        for shim in self.shims() {
            assert!(
                ctr::ends_within(shim, DEADLINE),
                "idle, but up: {}",
                proc::describe(shim)
            );
        }
        let ids = self.ids.lock().expect("ids").clone();
        let mut left = leavings::find(&self.dir, &ids);
        if let Some(prefix) = self.known_leavings {
            let known = |it: &String| it.starts_with(prefix);
            let (known, others): (Vec<String>, _) = left.into_iter().partition(known);
            left = others;
            if let Some(first) = known.first() {
                let more = known.len() - 1;
                report(&format!("left by Go's shim: {first}, and {more} more"));
            }
        }
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
        self.finished = true;
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if !self.finished {
            eprintln!(
                "---- log of containerd {} and its shims ----",
                self.release.version
            );
            let log = self.log();
            log.lines()
                .filter(|l| !l.contains("loading plugin"))
                .for_each(|l| eprintln!("{l}"));
            eprintln!("----");
        }
        if self.process.is_some() {
            self.kill();
        }
        let ids = std::mem::take(&mut *self.ids.lock().unwrap_or_else(|e| e.into_inner()));
        leavings::remove(&self.dir, &ids);
    }
}
