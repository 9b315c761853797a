// SPDX-License-Identifier: Apache-2.0
//! Whole cgroups: recorded version 2 ones, and version 1 ones of this machine where it has them.

use super::*;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(10);

/// A host with version 2: `/proc` of one process and the hierarchy, where the process is in
/// `/pods/c1`.
struct Unified(TempDir);

impl Unified {
    const PID: u32 = 4021;

    fn new() -> Self {
        let host = Self(TempDir::new().unwrap());
        let sys = host.sys("");
        let mountinfo = format!("31 23 0:28 / {} rw - cgroup2 cgroup2 rw\n", sys.display());
        host.write("proc/self/mountinfo", &mountinfo);
        host.write(&format!("proc/{}/cgroup", Self::PID), "0::/pods/c1\n");
        host.write("sys/cgroup.controllers", "cpu memory pids\n");
        for dir in ["", "pods/", "pods/c1/"] {
            host.write(&format!("sys/{dir}cgroup.subtree_control"), "");
        }
        host
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.0.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn sys(&self, path: &str) -> PathBuf {
        self.0.path().join("sys").join(path)
    }

    fn cgroup(&self) -> Cgroup {
        Cgroup::find(&self.0.path().join("proc"), &self.sys(""), Self::PID).unwrap()
    }

    fn enabled(&self, dir: &str) -> String {
        fs::read_to_string(self.sys(dir).join(SUBTREE_CONTROL)).unwrap()
    }
}

#[test]
fn t79_metrics_have_bare_names() {
    let host = Unified::new();
    host.write("sys/pods/c1/pids.current", "7\n");
    let stats = host.cgroup().stats().unwrap();
    assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
    let metrics = any::unpack::<protos::cgroups::v2::Metrics>(&stats)
        .unwrap()
        .unwrap();
    assert_eq!(metrics.pids.unwrap().current, 7);
    let gone = Cgroup(Place::V1(find::Dirs(vec![("memory", host.sys("gone"))])));
    assert_eq!(
        gone.stats().unwrap().type_url,
        "io.containerd.cgroups.v1.Metrics"
    );
}

/// T79: a memory controller that is there still, of a container whose others are gone.
#[test]
fn t79_half_a_cgroup_has_no_figures() {
    let host = Unified::new();
    host.write("sys/memory/c1/memory.stat", "total_rss 4096\n");
    let dirs = ["memory", "pids"].map(|name| (name, host.sys(name).join("c1")));
    let cgroup = Cgroup(Place::V1(find::Dirs(dirs.into())));
    let memory = || {
        let stats = cgroup.stats().unwrap();
        let stats = any::unpack::<protos::cgroups::v1::Metrics>(&stats);
        stats.unwrap().unwrap().memory
    };
    assert_eq!(memory(), None);
    host.write("sys/pids/c1/pids.current", "1\n");
    assert_eq!(memory().unwrap().total_rss, 4096);
}

/// The kernel says so of a cgroup that is gone; this one is there.
#[test]
fn a_cgroup_may_be_called_deleted() {
    let host = Unified::new();
    let cgroup = "0::/pods/c1 (deleted)\n";
    host.write(&format!("proc/{}/cgroup", Unified::PID), cgroup);
    let found = || Cgroup::find(&host.0.path().join("proc"), &host.sys(""), Unified::PID);
    assert!(matches!(found(), Err(Error::None(_))));
    host.write("sys/pods/c1 (deleted)/pids.current", "7\n");
    assert_eq!(
        found().unwrap().dir(),
        Some(&*host.sys("pods/c1 (deleted)"))
    );
}

#[test]
fn t70_processes_below_are_listed_too() {
    let host = Unified::new();
    host.write("sys/pods/c1/cgroup.procs", "4021\n");
    host.write("sys/pods/c1/a/cgroup.procs", "5\n0\n5\n");
    host.write("sys/pods/c1/a/b/cgroup.procs", "4022\n17\n");
    host.write("sys/pods/c2/cgroup.procs", "99\n");
    let cgroup = host.cgroup();
    assert_eq!(cgroup.procs(), [5, 17, 4021, 4022]);
    fs::remove_dir_all(host.sys("pods")).unwrap();
    assert_eq!(cgroup.procs(), [0u32; 0]);
}

#[test]
fn controllers_are_enabled_above_the_cgroup_only() {
    let host = Unified::new();
    host.write("sys/cgroup.subtree_control", "memory cpu pids\n");
    host.write("sys/pods/cgroup.subtree_control", "pids\n");
    host.cgroup().enable_controllers().unwrap();
    assert_eq!(host.enabled(""), "memory cpu pids\n");
    assert_eq!(host.enabled("pods"), "+cpu +memory ");
    assert_eq!(host.enabled("pods/c1"), "");
}

#[test]
fn an_error_further_up_does_not_matter_if_the_parent_is_right() {
    let host = Unified::new();
    let (top, parent) = (
        host.sys(SUBTREE_CONTROL),
        host.sys("pods").join(SUBTREE_CONTROL),
    );
    fs::remove_file(top).unwrap();
    host.cgroup().enable_controllers().unwrap();
    assert_eq!(host.enabled("pods"), "+cpu +memory +pids ");
    fs::remove_file(&parent).unwrap();
    let error = host.cgroup().enable_controllers().unwrap_err();
    assert!(
        error.to_string().starts_with(parent.to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn a_process_that_is_gone_has_no_cgroup() {
    assert!(matches!(
        Cgroup::of_pid(u32::MAX),
        Err(Error::None(u32::MAX))
    ));
}

/// A cgroup of the version 1 memory controller, removed with its processes when dropped.
struct Memory(PathBuf);

impl Memory {
    /// `None`, with a word about it, on a machine where this cannot be.
    fn new(limit: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dunnage-test-{}-{number}", std::process::id());
        let dir = Path::new("/sys/fs/cgroup/memory").join(name);
        if !dir.with_file_name("memory.oom_control").exists() || fs::create_dir(&dir).is_err() {
            println!("skipped: needs root and the version 1 memory controller");
            return None;
        }
        fs::write(dir.join("memory.limit_in_bytes"), limit).unwrap();
        Some(Self(dir))
    }

    fn below(&self, name: &str) -> Self {
        let dir = self.0.join(name);
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    /// Runs a shell that does `script` once it is in the cgroup and `go` is called.
    fn run(&self, script: &str) -> Held {
        let script = format!("echo $$ >\"$0\"; echo in; read go; {script}");
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(script)
            .arg(self.0.join("cgroup.procs"));
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut word = [0; 3];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut word).unwrap();
        Held(child)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A process that waits to be told to go.
struct Held(Child);

impl Held {
    fn cgroup(&self) -> Cgroup {
        Cgroup::of_pid(self.0.id()).unwrap()
    }

    fn go(&mut self) {
        drop(self.0.stdin.take());
    }

    /// Waits for its end; if another test's reaper was faster, that is just as well.
    #[expect(
        clippy::disallowed_methods,
        reason = "the reaper is not part of this test"
    )]
    fn wait(&mut self) {
        let _ = self.0.wait();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        self.wait();
    }
}

const EAT_ALL_MEMORY: &str = "exec tail /dev/zero";

async fn next(watch: &OomWatch) -> Option<()> {
    timeout(DEADLINE, watch.next()).await.unwrap()
}

#[tokio::test]
async fn o1_a_kill_is_told_once_and_removal_is_the_end() {
    let Some(memory) = Memory::new("8M") else {
        return;
    };
    let mut hungry = memory.run(EAT_ALL_MEMORY);
    let cgroup = hungry.cgroup();
    assert_eq!(cgroup.procs(), [hungry.0.id()]);
    let watch = OomWatch::new(&cgroup).unwrap();
    assert!(timeout(Duration::ZERO, watch.next()).await.is_err());
    hungry.go();
    assert_eq!(next(&watch).await, Some(()));
    hungry.wait();
    assert!(!watch.flush());
    let stats = cgroup.stats().unwrap();
    let metrics = any::unpack::<protos::cgroups::v1::Metrics>(&stats)
        .unwrap()
        .unwrap();
    assert_eq!(metrics.memory_oom_control.unwrap().oom_kill, 1);
    assert_eq!(metrics.memory.unwrap().usage.unwrap().limit, 8 << 20);
    drop(memory);
    assert_eq!(next(&watch).await, None);
    assert_eq!(next(&watch).await, None);
    assert_eq!(cgroup.procs(), [0u32; 0]);
}

#[tokio::test]
async fn x6_flush_knows_of_a_kill_as_soon_as_the_process_is_dead() {
    let Some(memory) = Memory::new("8M") else {
        return;
    };
    let mut hungry = memory.run(EAT_ALL_MEMORY);
    let watch = OomWatch::new(&hungry.cgroup()).unwrap();
    hungry.go();
    hungry.wait();
    assert!(watch.flush());
    assert!(!watch.flush());
    drop(memory);
    assert_eq!(next(&watch).await, None);
}

#[tokio::test]
async fn o1_only_the_cgroup_of_the_victim_tells() {
    let Some(pod) = Memory::new("8M") else { return };
    let (one, other) = (pod.below("one"), pod.below("other"));
    let (mut hungry, mut modest) = (one.run(EAT_ALL_MEMORY), other.run("true"));
    let (told, silent) = (
        OomWatch::new(&hungry.cgroup()).unwrap(),
        OomWatch::new(&modest.cgroup()).unwrap(),
    );
    let whole = Cgroup(Place::V1(find::Dirs(vec![("memory", pod.0.clone())])));
    let whole = OomWatch::new(&whole).unwrap();
    hungry.go();
    assert_eq!(next(&told).await, Some(()));
    assert_eq!(next(&whole).await, Some(()));
    modest.go();
    modest.wait();
    drop(other);
    // The kernel signalled it, but the end is all it tells.
    assert_eq!(next(&silent).await, None);
    hungry.wait();
}
