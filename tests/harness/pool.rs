// SPDX-License-Identifier: Apache-2.0
//! A pool of VMs, in a directory of its own, for shims that its configuration is given to.

use crate::bundle::Bundle;
use crate::{Shim, peers, proc, wait};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// VMs boot one after the other, behind everything else that a machine does.
pub const BOOTS: Duration = Duration::from_secs(150);

/// The pool of a test, in a directory of its own; it ends with this.
pub struct Pool {
    process: RefCell<Child>,
    pub config: PathBuf,
    pub dir: PathBuf,
}

impl Pool {
    /// `shim pool`, with these lines in section `[pool]`, and otherwise `base` for a configuration; its
    /// files are in `scratch`, whose name is its own.
    pub fn start(scratch: &Path, base: &str, settings: &str) -> Self {
        let name = scratch.file_name().expect("a name").to_string_lossy();
        let dir = PathBuf::from(format!("/run/dunnage/pool-{name}"));
        let config = scratch.join("pool.toml");
        let pool = format!("[pool]\ndirectory = {dir:?}\n{settings}\n");
        fs::write(&config, format!("{base}\n{pool}")).expect("a configuration");
        let log = fs::File::create(scratch.join("pool.log")).expect("a log");
        let mut command = Command::new(peers::vm_shim());
        command.arg("pool").env("DUNNAGE_VM_CONFIG", &config);
        command.stdin(Stdio::null()).stderr(log);
        let process = command.spawn().expect("the pool");
        Self {
            process: RefCell::new(process),
            config,
            dir,
        }
    }

    /// One of so many VMs, all of which are in store.
    pub fn of(scratch: &Path, size: usize) -> Self {
        let pool = Self::start(scratch, &base(), &format!("size = {size}"));
        pool.has(size);
        pool
    }

    pub fn pid(&self) -> i32 {
        self.process.borrow().id() as i32
    }

    /// The sockets of the VMs in store, each by the pid of its spare.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let kinds = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let kinds = kinds.filter(|dir| dir.file_name().to_string_lossy().starts_with("kind-"));
        let sockets = kinds.filter_map(|dir| fs::read_dir(dir.path()).ok());
        sockets.flatten().flatten().map(|it| it.path()).collect()
    }

    /// Waits until so many VMs are in store; their spares.
    pub fn has(&self, count: usize) -> Vec<i32> {
        let sockets = wait::until_within(BOOTS, "VMs in store", || {
            let sockets = self.sockets();
            let right = sockets.len() == count;
            if right {
                Ok(sockets)
            } else {
                Err(format!("{sockets:?}"))
            }
        });
        let pid = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
        sockets.iter().filter_map(pid).collect()
    }

    /// A shim that may take a VM, of a container that runs.
    pub async fn running(&self, bundle: &Bundle) -> Shim {
        self.running_with(bundle, "").await
    }

    /// The same, with what becomes of a VM whose shim is killed.
    pub async fn running_with(&self, bundle: &Bundle, on_death: &str) -> Shim {
        let start = bundle.start().binary(&peers::vm_shim());
        let config = self.config.to_string_lossy();
        let start = start.env("DUNNAGE_VM_CONFIG", &config);
        let shim = start.env("DUNNAGE_ON_SHIM_DEATH", on_death).shim().await;
        shim.create(bundle.create()).await.expect("Create");
        shim.start(&bundle.id, "").await.expect("Start");
        shim
    }

    /// Ends it as an operator does; nothing of it is left.
    pub fn end(&self) {
        let spares: Vec<i32> = proc::children(self.pid());
        wait::signal(self.pid(), libc::SIGTERM).expect("it runs");
        let status = self.process.borrow_mut().wait().expect("its end");
        assert!(status.success(), "{status}");
        let untaken = spares.into_iter().filter(|pid| holds(*pid).is_none());
        for pid in untaken {
            assert!(!proc::alive(pid), "{}", proc::describe(pid));
        }
        let left: BTreeSet<_> = names(&self.dir).into_iter().collect();
        assert_eq!(left, ["lock".to_owned()].into(), "in the pool's directory");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let process = self.process.get_mut();
        let _ = process.kill();
        let _ = process.wait();
        for pid in self
            .sockets()
            .iter()
            .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        {
            let _ = wait::signal(pid, libc::SIGKILL);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The configuration of all tests, to be read elsewhere.
pub fn base() -> String {
    let path = std::env::var_os("DUNNAGE_VM_CONFIG").expect("set");
    let path = Path::new(&path);
    let text = fs::read_to_string(path).expect("the configuration");
    let absolute = |line: &str| {
        let named = line
            .split_once(" = \"")
            .filter(|(_, value)| value.contains('/'));
        let dir = path.parent().expect("a file");
        match named {
            Some((name, value)) => format!("{name} = {:?}", dir.join(value.trim_end_matches('"'))),
            None => line.to_owned(),
        }
    };
    text.lines().map(absolute).collect::<Vec<_>>().join("\n")
}

/// What is in a directory.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// The processes that `pid` holds, if it is what a spare becomes.
pub fn holds(pid: i32) -> Option<Vec<i32>> {
    let words = proc::words(pid, "cmdline");
    let is_it = words.get(1).is_some_and(|word| word == "hold");
    is_it.then(|| {
        words[2..]
            .iter()
            .filter_map(|pid| pid.parse().ok())
            .collect()
    })
}
