// SPDX-License-Identifier: Apache-2.0
//! A file system that stands still holds up nobody who does not need it (docs/architecture.md, "Who
//! may block"): the log's, the bundle's. Root filesystems are in `mounts_more`.

use harness::disk::{self, Disk, Served};
use harness::stdio::{Fifos, Stdio};
use harness::{Bundle, Code, Shim, Test, differs, peers, proc, refused, sweep, wait};
use protos::task_types::Status as State;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long an answer may take that waits for nothing, on a busy machine and in a VM there; the disk
/// stands still for longer.
const AT_ONCE: Duration = Duration::from_secs(10);
/// What a pipe and a buffer hold is a part of these lines.
const LINES: usize = 40_000;

fn in_group(test: &Test, id: &str, script: &str) -> Bundle {
    let builder = test.bundle(id).sh(script);
    builder
        .annotation("io.containerd.runc.v2.group", "g")
        .build()
}

/// Container `quiet`, which runs, and its shim, to be shared.
async fn quiet(test: &Test) -> Shim {
    in_group(test, "quiet", "exec sleep 100000").running().await
}

/// All that must not wait for another container's disk; ends with `id`'s end.
async fn answers(shim: &Shim, id: &str) {
    let begin = async {
        let state = shim.state(id, "").await.unwrap();
        assert_eq!(state.status(), State::Running);
        assert!(!shim.pids(id).await.unwrap().processes.is_empty());
        shim.stats(id).await.unwrap();
    };
    wait::within(AT_ONCE, "State, Pids, Stats", begin).await;
    let (ended, ()) = tokio::join!(shim.wait(id, ""), async {
        let kill = shim.kill(id, "", libc::SIGKILL, false);
        wait::within(AT_ONCE, "Kill", kill).await.unwrap();
    });
    assert_eq!(ended.unwrap().exit_status, 137);
    wait::within(AT_ONCE, "Delete", shim.delete(id, ""))
        .await
        .unwrap();
}

fn uri(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn lines(count: usize) -> String {
    (1..=count).map(|n| format!("{n}\n")).collect()
}

/// The rule itself: in a container's life the loop asks the kernel for no file but those that the
/// kernel makes up.
#[test]
fn loop_names_no_file_that_may_lie_on_a_disk() {
    if peers::is_go() {
        return;
    }
    harness::run_unless_vm_differs("boot", async |test| {
        let mut paths = sweep::paths(test).await;
        assert!(!paths.is_empty(), "nothing was traced");
        let is_memory = |path: &String| {
            // The last is the shim's own, in memory.
            let prefixes = ["/proc/", "/sys/fs/cgroup", "/dev/null", "dev/null"];
            prefixes.iter().any(|prefix| path.starts_with(prefix))
        };
        paths.retain(|path| !is_memory(path));
        assert_eq!(paths, [] as [String; 0]);
    });
}

/// Issue: moby 30605, containerd 1722. The disk of a log stands still: nobody else is held up, nor
/// what of the container itself is not output; and then nothing is lost.
#[test]
fn log_on_a_disk_that_stands_still_holds_up_nobody() {
    harness::run(async |test| {
        let disk = Disk::new(test, test.dir().join("disk"));
        let shim = quiet(test).await;
        let log = disk.path().join("log");
        let talker = in_group(test, "talker", &format!("seq 1 {LINES}; exit 3"));
        talker.start().shim().await;
        let request = talker.create().stdio("", &uri(&log), &uri(&log));
        shim.create(request).await.unwrap();

        let frozen = disk.freeze();
        shim.start("talker", "").await.unwrap();
        disk::is_waited_for_by(shim.pid()).await;
        let of_talker = async {
            let state = shim.state("talker", "").await.unwrap();
            assert_eq!(state.status(), State::Running);
            shim.pids("talker").await.unwrap();
        };
        wait::within(AT_ONCE, "State of who writes", of_talker).await;
        answers(&shim, "quiet").await;
        drop(frozen);
        let exit = shim.wait("talker", "").await.unwrap();
        assert_eq!(exit.exit_status, 3);
        shim.delete("talker", "").await.unwrap();
        assert!(fs::read_to_string(&log).unwrap() == lines(LINES), "lost");
        shim.one_thread().await;
        shim.released().await;
    });
}

/// The same of a container that is killed meanwhile: its exit is told, and its Delete is over
/// when the time for output is (T60).
#[test]
fn exit_does_not_wait_for_a_log_that_stands_still() {
    harness::run(async |test| {
        let disk = Disk::new(test, test.dir().join("disk"));
        let shim = quiet(test).await;
        let log = uri(&disk.path().join("log"));
        let talker = in_group(test, "talker", "while :; do echo hi; done");
        talker.start().shim().await;
        shim.create(talker.create().stdio("", &log, &log))
            .await
            .unwrap();
        let _frozen = disk.freeze();
        shim.start("talker", "").await.unwrap();
        disk::is_waited_for_by(shim.pid()).await;
        let end = async {
            shim.kill("talker", "", libc::SIGKILL, false).await.unwrap();
            let told = test.events().exit("talker", "talker").await;
            assert_eq!(told.exit_status, 137);
            assert_eq!(shim.wait("talker", "").await.unwrap().exit_status, 137);
        };
        wait::within(AT_ONCE, "Kill and exit of who writes", end).await;
        let delete = shim.delete("talker", "");
        let (deleted, ()) = tokio::join!(delete, answers(&shim, "quiet"));
        assert_eq!(deleted.unwrap().exit_status, 137);
    });
}

/// A Create whose log's disk stands still waits for it, or for its caller's deadline; afterwards
/// it can be tried again.
#[test]
fn create_waits_alone_for_its_log() {
    if differs("create-lock") {
        return;
    }
    harness::run(async |test| {
        let disk = Disk::new(test, test.dir().join("disk"));
        let shim = quiet(test).await;
        let stuck = in_group(test, "stuck", "echo hi");
        stuck.start().shim().await;
        let log = disk.path().join("dir/log");
        let request = stuck.create().stdio("", &uri(&log), &uri(&log));
        let frozen = disk.freeze();
        let limit = Duration::from_secs(1);
        let create = shim.call_for(&request, limit);
        let (created, ()) = tokio::join!(create, async {
            disk::is_waited_for_by(shim.pid()).await;
            answers(&shim, "quiet").await;
        });
        assert_eq!(refused(created).code, Code::DeadlineExceeded);
        drop(frozen);
        let again = async {
            while let Err(error) = shim.create(request.clone()).await {
                let status = refused::<()>(Err(error));
                assert!(status.message.contains("already exists"), "{status}");
            }
        };
        wait::soon("a second Create", again).await;
        shim.start("stuck", "").await.unwrap();
        shim.wait("stuck", "").await.unwrap();
        shim.delete("stuck", "").await.unwrap();
        assert_eq!(fs::read_to_string(log).unwrap(), "hi\n");
    });
}

/// While something is being started, on a disk that stands still, what ends may be its; and whoever
/// has no pid namespace of its own leaves the shim as many orphans as it likes: they are reaped when
/// there is room to keep their exits. Who is known is reaped at once.
#[test]
fn orphans_stay_zombies_while_a_start_waits_for_a_disk() {
    /// More than a shim that reaps them all has at any time.
    const MANY: usize = 1000;
    if peers::is_go() {
        return;
    }
    harness::run_unless_vm_differs("one-process", async |test| {
        let disk = Disk::new(test, test.dir().join("disk"));
        let shim = quiet(test).await;
        let builder = test.bundle("forker").host_pid();
        // As many as it takes, and no more: the machine has only so many pids.
        let script =
            "n=0; while [ $n -lt 900 ]; do (: & : & : & : & : & : & : & :&); n=$((n + 1)); done
                      sleep 100000";
        let builder = builder.annotation("io.containerd.runc.v2.group", "g");
        let forker = builder.sh(script).build();
        forker.start().shim().await;
        shim.create(forker.create()).await.unwrap();
        let stuck = in_group(test, "stuck", "echo hi");
        stuck.start().shim().await;
        let log = uri(&disk.path().join("dir/log"));
        let request = stuck.create().stdio("", &log, &log);
        let zombies = || proc::zombies(shim.pid()).len();

        let frozen = disk.freeze();
        let (created, ()) = tokio::join!(shim.create(request), async {
            disk::is_waited_for_by(shim.pid()).await;
            shim.start("forker", "").await.unwrap();
            let many = || match zombies() {
                MANY.. => Ok(()),
                few => Err(format!("{few} zombies")),
            };
            wait::until("orphans that are not reaped", many).await;
            answers(&shim, "quiet").await;
            answers(&shim, "forker").await;
            assert!(zombies() >= MANY, "there was room for them");
            drop(frozen);
        });
        created.unwrap();
        wait::until("all are reaped", || match zombies() {
            0 => Ok(()),
            some => Err(format!("{some} zombies")),
        })
        .await;
        shim.start("stuck", "").await.unwrap();
        assert_eq!(shim.wait("stuck", "").await.unwrap().exit_status, 0);
        shim.delete("stuck", "").await.unwrap();
    });
}

/// A bundle on a disk that stands still: the exits of its container wait until they are recorded,
/// also that of a terminal; nobody else's do.
#[test]
fn bundle_on_a_disk_that_stands_still_holds_up_nobody_else() {
    harness::run(async |test| {
        let disk = Disk::new(test, test.tasks_dir().join("stuck"));
        let shim = quiet(test).await;
        let stuck = in_group(test, "stuck", "exec sleep 100000");
        stuck.start().shim().await;
        shim.create(stuck.create()).await.unwrap();
        shim.start("stuck", "").await.unwrap();
        shim.run(stuck.exec("e", &["sleep", "100000"])).await;
        let screen = Fifos::new(test.dir().join("screen"));
        let _screen = screen.stdout.reader();
        shim.exec(stuck.exec("tty", &["cat"]).terminal(&screen))
            .await
            .unwrap();

        let frozen = disk.freeze();
        let of_stuck = async {
            // Not by the runtime, which logs into the bundle.
            shim.kill("stuck", "e", libc::SIGKILL, false).await.unwrap();
            shim.pids("stuck").await.unwrap();
            shim.state("stuck", "").await.unwrap();
        };
        wait::within(AT_ONCE, "Kill and Pids of the bundle's", of_stuck).await;
        let start = shim.start("stuck", "tty");
        let (started, ()) = tokio::join!(start, async {
            if !peers::is_go() {
                disk::is_waited_for_by(shim.pid()).await;
            }
            answers(&shim, "quiet").await;
            // Reaped, though nobody is told yet: there is nothing to be killed.
            if !differs("exit-record") {
                let again = shim.kill("stuck", "e", libc::SIGKILL, false);
                let again = wait::within(AT_ONCE, "Kill of the dead", again).await;
                assert_eq!(refused(again).code, Code::NotFound);
                let told = test.events();
                let told = told.count(|event| event.exit_of("stuck", "e").is_some());
                assert_eq!(told, 0, "told before it was recorded");
            }
            drop(frozen);
        });
        started.unwrap();
        assert_eq!(shim.wait("stuck", "e").await.unwrap().exit_status, 137);
        if !differs("exit-record") {
            let record = fs::read_to_string(stuck.file("exits/exec-e.json")).unwrap();
            assert!(record.contains("137"), "{record}");
        }
        for exec in ["e", "tty"] {
            let _ = shim.kill("stuck", exec, libc::SIGKILL, false).await;
            shim.wait("stuck", exec).await.unwrap();
            shim.delete("stuck", exec).await.unwrap();
        }
        answers(&shim, "stuck").await;
        shim.one_thread().await;
        shim.shutdown("").await.unwrap();
        wait::ended(shim.pid()).await;
    });
}

/// A bundle whose server has stopped: also reading waits, and nobody else does.
#[test]
fn bundle_whose_server_has_stopped_holds_up_nobody_else() {
    if differs("create-lock") {
        return;
    }
    harness::run(async |test| {
        let served = Served::new(test, test.tasks_dir().join("stuck")).await;
        let shim = quiet(test).await;
        let stuck = in_group(test, "stuck", "exec sleep 100000");
        stuck.start().shim().await;
        shim.one_thread().await;
        let stopped = served.stop();
        let create = shim.create(stuck.create());
        let (created, ()) = tokio::join!(create, async {
            wait::until("a thread that waits", || match shim.footprint().threads {
                1 => Err("one thread".to_owned()),
                _ => Ok(()),
            })
            .await;
            answers(&shim, "quiet").await;
            drop(stopped);
        });
        created.unwrap();
        shim.start("stuck", "").await.unwrap();
        let stopped = served.stop();
        let (ended, ()) = tokio::join!(shim.wait("stuck", ""), async {
            let kill = shim.kill("stuck", "", libc::SIGKILL, false);
            wait::within(AT_ONCE, "Kill", kill).await.unwrap();
            let state = shim.state("stuck", "");
            wait::within(AT_ONCE, "State", state).await.unwrap();
            drop(stopped);
        });
        assert_eq!(ended.unwrap().exit_status, 137);
        shim.delete("stuck", "").await.unwrap();
        shim.shutdown("").await.unwrap();
        wait::ended(shim.pid()).await;
    });
}

/// An upgrade while a log's disk stands still is refused, and harms nothing; afterwards it works.
#[test]
fn upgrade_waits_for_no_disk() {
    if differs("upgrade") {
        return;
    }
    harness::run(async |test| {
        let disk = Disk::new(test, test.dir().join("disk"));
        let log = disk.path().join("log");
        let talker = in_group(test, "talker", &format!("seq 1 {LINES}; exit 3"));
        let shim = talker.start().shim().await;
        let request = talker.create().stdio("", &uri(&log), &uri(&log));
        shim.create(request).await.unwrap();
        let frozen = disk.freeze();
        shim.start("talker", "").await.unwrap();
        disk::is_waited_for_by(shim.pid()).await;
        let upgrade = async || {
            let mut command = Command::new(peers::shim());
            command.args(["-namespace", test.namespace(), "upgrade"]);
            wait::output(command, None).await
        };
        let (refused, ()) = tokio::join!(upgrade(), async {
            let state = shim.state("talker", "").await.unwrap();
            assert_eq!(state.status(), State::Running);
        });
        assert_ne!(refused.code(), Some(0), "{refused:?}");
        let said = refused.out() + &refused.err();
        assert!(said.contains("a file system did not answer"), "{said}");
        drop(frozen);
        // In the middle of the output, or behind it.
        let done = upgrade().await;
        assert_eq!(done.code(), Some(0), "{done:?}");
        assert_eq!(shim.wait("talker", "").await.unwrap().exit_status, 3);
        shim.delete("talker", "").await.unwrap();
        assert!(fs::read_to_string(&log).unwrap() == lines(LINES), "lost");
    });
}
