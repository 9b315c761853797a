// SPDX-License-Identifier: Apache-2.0
//! Where `start` puts the daemon: OOM score, cgroup, core scheduling; and the way back when it
//! cannot.

use harness::runtime::Runtime;
use harness::stdio::{Fifos, Stdio};
use harness::{Stdin, Test, differs, peers, proc, vm_differs, wait};
use protos::runc::Options;
use std::fs;
use std::path::PathBuf;

/// B39: the OOM killer takes a shim before containerd, and containers before the shim.
#[test]
fn oom_score_is_one_above_the_callers() {
    harness::run(async |test| {
        for (n, (caller, expected)) in [(500, 501), (1000, 1000)].into_iter().enumerate() {
            let bundle = test.bundle(&format!("c{n}")).build();
            let mut start = bundle.start();
            let script = format!("echo {caller} >/proc/self/oom_score_adj; \"$0\" \"$@\"; exit $?");
            start.wrapper = ["sh", "-c", &script].map(str::to_owned).into();
            let shim = start.shim().await;
            let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", shim.pid())).unwrap();
            assert_eq!(score.trim(), expected.to_string(), "caller at {caller}");
        }
    });
}

/// The cgroup hierarchies of version 1 that are mounted here.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = mounts.lines().filter(|line| line.contains(" - cgroup "));
    cgroups
        .map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()))
        .collect()
}

/// A cgroup in every hierarchy, which the test has to remove.
fn make_cgroups(name: &str) -> Vec<PathBuf> {
    let make = |hierarchy: PathBuf| {
        let dir = hierarchy.join(name);
        fs::create_dir(&dir).unwrap();
        // An empty cpuset takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(hierarchy.join(file)) {
                fs::write(dir.join(file), value).unwrap();
            }
        }
        dir
    };
    hierarchies().into_iter().map(make).collect()
}

fn stdin(cgroup: &str) -> Stdin {
    Stdin::Options(Options {
        shim_cgroup: cgroup.to_owned(),
        ..Default::default()
    })
}

/// B38: the daemon runs in the cgroup that the options name.
#[test]
fn shim_cgroup_is_joined_in_every_hierarchy() {
    harness::run(async |test| {
        let name = format!("{}-shim", test.namespace());
        let dirs = make_cgroups(&name);
        assert!(
            !dirs.is_empty(),
            "cgroup version 1 is mounted on the machine of this suite"
        );
        let bundle = test.bundle("c").build();
        let shim = bundle
            .start()
            .stdin(stdin(&format!("/{name}")))
            .shim()
            .await;
        for dir in &dirs {
            let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
            let pids: Vec<i32> = procs.lines().map(|pid| pid.parse().unwrap()).collect();
            assert_eq!(pids, [shim.pid()], "{}", dir.display());
        }
        shim.stopped().await;
        for dir in &dirs {
            let gone = || fs::remove_dir(dir).map_err(|e| e.to_string());
            wait::until("an empty cgroup", gone).await;
        }
    });
}

fn living(test: &Test) -> Vec<String> {
    let own = std::process::id() as i32;
    let ours = |pid: &i32| *pid != own && proc::mentions(*pid, test.namespace());
    proc::all()
        .into_iter()
        .filter(ours)
        .map(proc::describe)
        .collect()
}

/// B38, B40: no such cgroup, no shim: neither process nor socket stay.
#[test]
fn missing_shim_cgroup_fails_and_leaves_nothing() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let output = bundle.start().stdin(stdin("/no-such-cgroup")).run().await;
        assert_eq!((output.code(), output.out().as_str()), (Some(1), ""));
        assert!(output.err().starts_with(peers::shim_type()), "{output:?}");
        wait::until("end of the daemon", || match living(test) {
            none if none.is_empty() => Ok(()),
            some => Err(format!("{some:?}")),
        })
        .await;
        assert!(!test.socket_of("c").exists(), "B40");
    });
}

/// The scheduling cookie of a process; an error where the kernel has no core scheduling.
fn cookie(pid: i32) -> std::io::Result<u64> {
    const PR_SCHED_CORE: i32 = 62;
    const GET: u64 = 0;
    const THREAD: u64 = 0;
    let mut cookie = 0u64;
    // SAFETY: PR_SCHED_CORE_GET writes one u64 to the address in its last argument.
    match unsafe { libc::prctl(PR_SCHED_CORE, GET, pid as u64, THREAD, &raw mut cookie) } {
        0 => Ok(cookie),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// B37: a core scheduling domain of the shim's own; where the kernel has none, an error.
#[test]
fn sched_core_gives_the_shim_a_core_of_its_own() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let start = bundle.start().env("SCHED_CORE", "1");
        match cookie(0) {
            Ok(own) => {
                let shim = start.shim().await;
                let theirs = cookie(shim.pid()).unwrap();
                assert!(
                    theirs != 0 && theirs != own,
                    "cookie {theirs}, the test's {own}"
                );
            }
            Err(e) => {
                println!("no core scheduling on this kernel: {e}");
                let output = start.run().await;
                assert_eq!(
                    (output.code(), output.out().as_str()),
                    (Some(1), ""),
                    "{output:?}"
                );
                assert!(
                    output.err().contains("sched core support"),
                    "{}",
                    output.err()
                );
                assert!(!test.socket_of("c").exists(), "B40");
            }
        }
    });
}

/// The soft and the hard limit on open files of `pid`.
fn open_files(pid: i32) -> (u64, u64) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"));
    let mut numbers = line.unwrap().split_whitespace().map(|n| n.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// systemd gives a service 1,024 open files, and many more if it asks. The daemon needs several for
/// each process that runs, and asks; what it starts, OCI runtimes, loggers and containers, has what
/// containerd had.
#[test]
fn open_files_are_many_for_the_daemon_and_as_before_for_others() {
    harness::run(async |test| {
        const FEW: u64 = 64;
        let mut start = test.bundle("c").build().start();
        let limit = format!("ulimit -Sn {FEW}; exec \"$0\" \"$@\"");
        start.wrapper = ["sh", "-c", &limit].map(str::to_owned).into();
        let shim = start.shim().await;
        let (_, hard) = open_files(std::process::id() as i32);
        assert!(hard > FEW, "the test needs a hard limit over {FEW}");
        wait::until("a raised limit", || match open_files(shim.pid()) {
            limits if limits == (hard, hard) => Ok(()),
            limits => Err(format!("{limits:?}")),
        })
        .await;
        let bundle = &start.bundle;
        let record = test.dir().join("limits");
        let body = format!(
            "echo \"$ACTION $(ulimit -Sn)\" >>{}; exec \"$RUNC\" \"$@\"",
            record.display()
        );
        let runtime = Runtime::script(test, "tells-its-limit", &body);
        shim.create(runtime.create(bundle)).await.unwrap();
        shim.start("c", "").await.unwrap();
        let mut readers = Vec::new();
        for n in 0..FEW / 4 {
            let id = format!("e{n}");
            let fifos = Fifos::new(test.dir().join(&id));
            readers.push(fifos.readers());
            shim.run(bundle.exec(&id, &["sleep", "100000"]).fifos(&fifos))
                .await;
        }
        // runc may raise its own as well, for the container too.
        if !vm_differs("guests-runtime") && !differs("limits-of-children") {
            let text = fs::read_to_string(record).unwrap();
            let few = |line: &str| line.ends_with(&format!(" {FEW}"));
            assert!(text.lines().count() > 2 && text.lines().all(few), "{text}");
        }
    });
}
