// SPDX-License-Identifier: Apache-2.0
//! A private `dunnage` daemon, with the shim under test first in its PATH.
//!
//! ```text
//! on(test) ── Manager::start ── test(&mut manager) ── Manager::finish
//!              its own root, state, sockets, namespace, in /tmp/dmN-N
//! ```
//! It is driven as its users do: by its own client and by every `ctr` there is.
//! ```text
//! api       its gRPC API, for what no client would ask
//! cut       its journal, cut at any byte
//! trace     strace on it, and its death at a system call
//! sweep     its death at many of them, in the life of a container and in a recovery
//! unread    its stderr, which nobody reads
//! net       a network for its containers, made by CNI's plugins
//! leavings  what it and its shims can leave on a machine
//! ```

pub mod api;
pub mod cut;
mod leavings;
pub mod net;
pub mod sweep;
pub mod trace;
mod unread;

use crate::containerd::capture::Capture;
use crate::containerd::ctr::{self, Ctr, Output};
use crate::containerd::fifo::Fifo;
use crate::containerd::release::Release;
use crate::{limit::Limit, peers, proc, program};
use serde_json::Value;
use std::env;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything that is expected at all may take on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// The manager under test: `MANAGER`, else what `make build` made.
pub fn binary() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let default = || peers::workspace().join("target/dist/dunnage");
        let path = env::var_os("MANAGER").map_or_else(default, PathBuf::from);
        assert!(
            path.exists(),
            "no manager at {}: `make build`, or set MANAGER",
            path.display()
        );
        path
    });
    &BINARY
}

/// Runs `test` with a daemon of its own, then proves that nothing is left of it.
pub fn on(test: impl FnOnce(&mut Manager)) {
    with("", test);
}

/// [`on`], with more in its configuration.
pub fn with(config: &str, test: impl FnOnce(&mut Manager)) {
    let mut manager = Manager::start(config, peers::shim());
    test(&mut manager);
    manager.finish();
}

/// [`on`], under another shim than the one under test.
pub fn under(shim: &Path, test: impl FnOnce(&mut Manager)) {
    let mut manager = Manager::start("", shim);
    test(&mut manager);
    manager.finish();
}

pub struct Manager {
    dir: PathBuf,
    process: Option<Child>,
    logs: Vec<Capture>,
    pub env: Vec<(&'static str, String)>,
    finished: bool,
    _limit: Limit,
}

impl Manager {
    fn start(config: &str, shim: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("/tmp/dm{}-{count}", std::process::id()));
        for name in ["bin", "share", "tmp"] {
            fs::create_dir_all(dir.join(name)).expect("a new directory");
        }
        program::copy(shim, &dir.join("bin/containerd-shim-runc-v2"));
        let [root, state] = ["r", "s"].map(|name| dir.join(name));
        let config = format!("root = {root:?}\nstate = {state:?}\n{config}");
        fs::write(dir.join("config.toml"), config).expect("config.toml");
        let mut it = Self {
            dir,
            process: None,
            logs: Vec::new(),
            env: Vec::new(),
            finished: false,
            _limit: Limit::of_this_test(),
        };
        it.up();
        it
    }

    fn up(&mut self) {
        assert!(self.process.is_none(), "it is up already");
        let mut child = self.spawn_daemon(&[], Stdio::piped());
        let log = Capture::of(child.stderr.take().expect("piped"));
        self.process = Some(child);
        self.logs.push(log.clone());
        log.wait_for("the daemon to serve", |log| {
            log.contains(" serves /").then_some(())
        });
    }

    /// The daemon, perhaps behind another program such as strace.
    fn spawn_daemon(&self, before: &[&str], stderr: Stdio) -> Child {
        let mut words: Vec<String> = before.iter().map(|&word| word.to_owned()).collect();
        words.push(binary().display().to_string());
        let mut command = self.environment(Command::new(&words[0]));
        command
            .args(&words[1..])
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .arg("daemon")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        command.spawn().unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    fn environment(&self, mut command: Command) -> Command {
        let path = format!("{}/bin:{}", self.dir.display(), peers::path().display());
        command
            .env_clear()
            .env("PATH", path)
            .env("TMPDIR", self.dir.join("tmp"))
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.dir);
        // SAFETY: prctl with these arguments only sets a flag of the new process.
        unsafe {
            command.pre_exec(
                || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                },
            );
        }
        command
    }

    pub fn pid(&self) -> i32 {
        self.process.as_ref().expect("it is up").id() as i32
    }

    /// SIGKILLs the daemon. Shims and containers go on.
    pub fn kill(&mut self) {
        let mut child = self.process.take().expect("it is up");
        // Behind strace it is a child, which would go on alone.
        for daemon in proc::children(child.id() as i32) {
            let words = proc::words(daemon, "cmdline");
            if words.iter().any(|word| word == "daemon") {
                let _ = crate::wait::signal(daemon, libc::SIGKILL);
                ctr::ends_within(daemon, DEADLINE);
            }
        }
        let _ = child.kill();
        child.wait().expect("wait for the daemon");
    }

    /// Starts the daemon again, on the same root and state.
    pub fn restart(&mut self) {
        self.up();
    }

    /// SIGHUP: a new image of the program, under the same pid.
    pub fn renew(&self) {
        let served = |log: &str| log.matches(" serves /").count();
        let log = self.logs.last().expect("a log");
        let before = served(&log.text());
        crate::wait::signal(self.pid(), libc::SIGHUP).expect("SIGHUP");
        log.wait_for("the new image to serve", |log| {
            (served(log) > before).then_some(())
        });
    }

    /// What the daemon and its shims have logged.
    pub fn log(&self) -> String {
        self.logs.iter().map(Capture::text).collect()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn state(&self) -> PathBuf {
        self.dir.join("s")
    }

    pub fn socket(&self) -> PathBuf {
        self.state().join("dunnage.sock")
    }

    /// Containers and their namespace are this test's alone, for runc's state is everybody's.
    pub fn namespace(&self) -> String {
        let name = self.dir.file_name().expect("a name");
        name.to_string_lossy().into_owned()
    }

    pub fn client(&self, args: &[&str]) -> Command {
        let mut command = self.environment(Command::new(binary()));
        command.arg("--config").arg(self.dir.join("config.toml"));
        command.args(["-n", &self.namespace()]).args(args);
        command
    }

    /// Our own client.
    pub fn dunnage(&self, args: &[&str]) -> Output {
        Ctr::spawn(self.client(args), Stdio::null()).finish()
    }

    /// Our own client, with nothing but these arguments.
    pub fn plain(&self, args: &[&str]) -> Output {
        let mut command = self.environment(Command::new(binary()));
        command.args(args);
        Ctr::spawn(command, Stdio::null()).finish()
    }

    pub fn spawn_dunnage(&self, args: &[&str]) -> Ctr {
        Ctr::spawn(self.client(args), Stdio::piped())
    }

    /// Every object that `dunnage --json …` prints.
    pub fn json(&self, args: &[&str]) -> Vec<Value> {
        let mut all = vec!["--json"];
        all.extend(args);
        let output = self.dunnage(&all).ok();
        let lines = output.stdout.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
            .collect()
    }

    /// `dunnage run OPTIONS --rootfs … ID WORDS`; /share is the same directory for all.
    pub fn run(&self, options: &[&str], id: &str, words: &[&str]) -> Output {
        Ctr::spawn(self.run_command(options, id, words), Stdio::null()).finish()
    }

    pub fn spawn_run(&self, options: &[&str], id: &str, words: &[&str]) -> Ctr {
        Ctr::spawn(self.run_command(options, id, words), Stdio::piped())
    }

    pub fn run_command(&self, options: &[&str], id: &str, words: &[&str]) -> Command {
        let rootfs = peers::rootfs().display().to_string();
        let share = format!("{}:/mnt", self.dir.join("share").display());
        let mut args = vec!["run", "--rootfs", &rootfs, "-v", &share];
        args.extend(options);
        args.push(id);
        args.extend(words);
        self.client(&args)
    }

    /// A FIFO that containers see as /mnt/NAME.
    pub fn fifo(&self, name: &str) -> Fifo {
        Fifo::make(self.dir.join("share").join(name))
    }

    /// The `ctr` of a release.
    pub fn ctr(&self, release: &Release, args: &[&str]) -> Output {
        self.spawn_ctr(release, args).finish()
    }

    pub fn spawn_ctr(&self, release: &Release, args: &[&str]) -> Ctr {
        Ctr::spawn(self.ctr_command(release, args), Stdio::piped())
    }

    pub fn ctr_command(&self, release: &Release, args: &[&str]) -> Command {
        let mut command = self.environment(Command::new(release.bin.join("ctr")));
        command
            .arg("-a")
            .arg(self.socket())
            .args(["-n", &self.namespace()])
            .args(args);
        command
    }

    /// `created`, `running`, `stopped`, …, or `-` for a container without a task.
    pub fn status(&self, id: &str) -> String {
        let all = self.json(&["ls"]);
        let found = all.iter().find(|row| row["id"] == id);
        found.map_or("none".into(), |row| {
            row["status"].as_str().unwrap_or("").to_owned()
        })
    }

    /// The pid of a container's init.
    pub fn pid_of(&self, id: &str) -> i32 {
        let all = self.json(&["ls"]);
        let row = all
            .iter()
            .find(|row| row["id"] == id)
            .unwrap_or_else(|| panic!("no {id}"));
        let pid = row["pid"].as_i64().unwrap_or_else(|| panic!("{row}"));
        pid as i32
    }

    /// Statuses and origins of the exits of a container's init that the journal has.
    pub fn exits(&self, id: &str) -> Vec<(u32, String)> {
        let exits = self.json(&["exits", id]);
        let of_init = exits.iter().filter(|exit| exit["exec"] == "");
        let read = |exit: &Value| {
            let status = exit["status"].as_u64().expect("a number");
            (
                status as u32,
                exit["origin"].as_str().expect("origin").to_owned(),
            )
        };
        of_init.map(read).collect()
    }

    /// Lets some time pass, or less if the daemon ends. The client only answers questions: there
    /// is nothing else to wait on.
    pub fn alive_for(&self, time: Duration) -> bool {
        !ctr::ends_within(self.pid(), time)
    }

    /// Waits until `what` is so.
    #[track_caller]
    pub fn until<T>(&self, what: &str, mut probe: impl FnMut(&Self) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = probe(self) {
                return found;
            }
            assert!(Instant::now() < end, "not {what}; log:\n{}", self.log());
            self.alive_for(Duration::from_millis(20));
        }
    }

    /// Processes of this test's shims, by their command line.
    pub fn shims(&self) -> Vec<i32> {
        leavings::shims(&self.socket())
    }

    /// The shim that has a container.
    pub fn shim_of(&self, id: &str) -> i32 {
        proc::stat(self.pid_of(id))
            .unwrap_or_else(|| panic!("{id} is gone"))
            .ppid
    }

    /// Deletes what the test left, the way a user would, and asserts that nothing else is left.
    fn finish(mut self) {
        if self.process.is_none() {
            self.up();
        }
        for row in self.json(&["ls"]) {
            let id = row["id"].as_str().expect("id");
            self.dunnage(&["delete", "--force", id]).ok();
        }
        self.until("all shims gone", |it| it.shims().is_empty().then_some(()));
        self.dunnage(&["doctor"]).ok().prints("nothing is wrong\n");
        let left = leavings::entries(&self.state().join("task").join(self.namespace()));
        assert!(left.is_empty(), "left: {left:?}");
        let left = leavings::entries(&self.dir.join("r/work").join(self.namespace()));
        assert!(left.is_empty(), "left: {left:?}");
        self.finished = true;
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if !self.finished {
            eprintln!("---- log of {}\n{}----", self.dir.display(), self.log());
        }
        if self.process.is_some() {
            self.kill();
        }
        for pid in self.shims() {
            for child in proc::children(pid) {
                let _ = crate::wait::signal(child, libc::SIGKILL);
            }
            let _ = crate::wait::signal(pid, libc::SIGKILL);
        }
        for mount in proc::mounts_under(&self.dir).iter().rev() {
            let _ = nix::mount::umount2(mount.as_str(), nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(self.namespace()));
        leavings::remove_cgroups(&self.namespace());
    }
}
