// SPDX-License-Identifier: Apache-2.0
//! Containers that run while packages come and go: whatever happens, none of them is touched.

use harness::containerd::{Containerd, SHIM, Task};
use harness::{proc, program};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Output;

/// As many as an upgrade is expected to go through with.
const CONTAINERS: usize = 20;
/// Upgrades and ways back, one after the other.
pub const ROUNDS: usize = 20;

/// Has containerd find its shim by a link to `place`, once the one that it came with is at `theirs`.
pub fn find_shim_at(containerd: &Containerd, place: &str, theirs: &str) {
    if !Path::new(theirs).exists() {
        program::copy(&containerd.release.go_shim(), Path::new(theirs));
    }
    let link = containerd.dir().join("bin").join(SHIM);
    fs::remove_file(&link).expect("the shim");
    symlink(place, link).expect("a link");
}

pub struct Fleet {
    tasks: Vec<Task>,
    /// Of each container, in the same order.
    shims: Vec<i32>,
}

impl Fleet {
    pub fn start(containerd: &Containerd) -> Self {
        let names = (0..CONTAINERS).map(|n| format!("c{n}"));
        let tasks: Vec<Task> = names
            .map(|name| containerd.run_service(&[], &name))
            .collect();
        let shims = tasks.iter().map(|task| containerd.shim_of(task)).collect();
        Self { tasks, shims }
    }

    /// What an upgrade said names every shim.
    #[track_caller]
    pub fn is_named_in(&self, said: &str) {
        for shim in &self.shims {
            let told = said.contains(&format!("pid {shim}: runs "));
            assert!(told, "{shim} is not upgraded: {said}");
        }
    }

    /// No container was touched, and every shim is the program that is there now.
    #[track_caller]
    pub fn runs(&self, containerd: &Containerd, own: &Path) {
        self.is_there(containerd);
        let own = fs::metadata(own).expect("the shim").ino();
        for shim in &self.shims {
            let runs = fs::metadata(format!("/proc/{shim}/exe")).expect("a program");
            assert_eq!(runs.ino(), own, "{}", proc::describe(*shim));
        }
    }

    /// Every container has the shim that it was started with, whatever that runs.
    #[track_caller]
    pub fn is_there(&self, containerd: &Containerd) {
        let found = containerd.tasks();
        for (task, shim) in self.tasks.iter().zip(&self.shims) {
            assert!(found.contains(task), "{task:?} is not in {found:?}");
            assert_eq!(proc::stat(task.pid).expect("a container").ppid, *shim);
        }
    }

    /// They end as they were asked to, with `others`, and containerd hears of each.
    pub fn ends(self, containerd: &Containerd, others: &[&Task]) {
        let events = containerd.events();
        for task in self.tasks.iter().chain(others.iter().copied()) {
            containerd.kill_task("SIGTERM", &task.id);
            events.until_seen(&format!("exit {} 6", task.id));
        }
    }
}

/// What a file is, whatever its name.
pub fn digest(path: &Path) -> Vec<u8> {
    Sha256::digest(fs::read(path).expect("a file")).to_vec()
}

/// The program that a shim runs.
pub fn program_of(shim: i32) -> Vec<u8> {
    digest(Path::new(&format!("/proc/{shim}/exe")))
}

/// The shim for VMs, as installed at `path`, is not removed while it runs.
pub fn while_a_vm_runs(path: &Path, remove: impl Fn() -> Output) {
    harness::test::run(async |test| {
        let bundle = test.bundle("c").build();
        let _shim = bundle.start().binary(path).shim().await;
        let refused = remove();
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        let said = !refused.status.success() && why.contains("containers have to end first");
        assert!(said, "{refused:?}");
        assert!(path.exists(), "it is removed");
    });
}
