// SPDX-License-Identifier: Apache-2.0
//! The Task RPCs, beyond what the golden sequence covers.

use harness::events::Kind;
use harness::stdio::{Fifos, Stdio};
use harness::{Code, Status, differs, proc, refused, vm_differs, wait};
use protos::Timestamp;
use protos::task::CheckpointTaskRequest;
use protos::task_types::Status as State;
use std::fs;

const NEVER: Timestamp = Timestamp {
    seconds: -62_135_596_800,
    nanos: 0,
};

/// T1: every RPC but Connect and Shutdown names the container it does not find.
#[test]
fn unknown_container_is_not_found() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let s = bundle.running().await;
        let exec = protos::task::ExecProcessRequest {
            id: "x".into(),
            ..bundle.exec("e", &["true"])
        };
        let checkpoint = CheckpointTaskRequest {
            id: "x".into(),
            ..Default::default()
        };
        let answers = [
            refused(s.state("x", "").await),
            refused(s.start("x", "").await),
            refused(s.delete("x", "").await),
            refused(s.pids("x").await),
            refused(s.pause("x").await),
            refused(s.resume("x").await),
            refused(s.checkpoint(checkpoint).await),
            refused(s.kill("x", "", 9, false).await),
            refused(s.exec(exec).await),
            refused(s.resize("x", "", 1, 1).await),
            refused(s.close_io("x", "").await),
            refused(s.update("x", "{}").await),
            refused(s.wait("x", "").await),
            refused(s.stats("x").await),
            refused(s.state("x", "e").await),
        ];
        let expected = Status::new(Code::NotFound, "container not created: not found");
        for (n, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer, expected, "answer {n}");
        }
        assert_eq!(s.connect_call("x").await.unwrap().task_pid, 0);
    });
}

/// T76: Connect tells the pids, of the shim and of the container's init.
#[test]
fn connect_tells_the_pids() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().running().await;
        let pid = shim.init("c").await as u32;
        let answer = shim.connect_call("c").await.unwrap();
        assert_eq!((answer.shim_pid as i32, answer.task_pid), (shim.pid(), pid));
        assert_eq!(answer.version, "");
    });
}

/// T23: a second Start of an exec that could not start is refused; the shim lives on.
#[test]
fn failed_exec_cannot_be_started_again() {
    harness::run(async |test| {
        if differs("failed-exec-restart") {
            return;
        }
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        shim.exec(bundle.exec("e", &["/nonexistent"]))
            .await
            .unwrap();
        refused(shim.start("c", "e").await);
        refused(shim.start("c", "e").await);
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Running);
        shim.delete("c", "e").await.unwrap();
    });
}

/// T24, U2: Start of a running exec changes nothing: one exit, and init's after it.
#[test]
fn running_exec_started_again_has_one_exit() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        shim.exec(bundle.exec("e", &["sleep", "100000"]))
            .await
            .unwrap();
        shim.start("c", "e").await.unwrap();
        let again = refused(shim.start("c", "e").await);
        assert_eq!(
            again,
            Status::new(Code::Unknown, "cannot start a running process")
        );
        shim.kill("c", "e", 9, false).await.unwrap();
        assert_eq!(test.events().exit("c", "e").await.exit_status, 137);
        let stopped = refused(shim.start("c", "e").await);
        assert_eq!(
            stopped,
            Status::new(Code::Unknown, "cannot start a stopped process")
        );
        shim.kill("c", "", 9, false).await.unwrap();
        test.events().exit("c", "c").await;
        assert_eq!(test.events().count(|e| e.exit_of("c", "e").is_some()), 1);
    });
}

/// An exec's id becomes a file's name in the bundle.
#[test]
fn exec_id_with_a_slash_is_refused() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        for id in ["a/b", "../c", "..", "."] {
            let answer = shim.exec(bundle.exec(id, &["true"])).await;
            if differs("exec-id") {
                answer.unwrap();
            } else {
                assert_eq!(refused(answer).code, Code::InvalidArgument, "{id}");
            }
        }
    });
}

/// T30: twenty kilobytes of arguments.
#[test]
fn large_exec_arguments_arrive() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let long = "x".repeat(20_000);
        let request = bundle.exec("e", &["sh", "-c", "exit $((${#0} / 1000))", &long]);
        shim.exec(request).await.unwrap();
        shim.start("c", "e").await.unwrap();
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 20);
    });
}

/// T50: a signal for an exec reaches that exec alone.
#[test]
fn kill_of_an_exec_spares_the_others() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        for id in ["e1", "e2"] {
            shim.exec(bundle.exec(id, &["sleep", "100000"]))
                .await
                .unwrap();
            shim.start("c", id).await.unwrap();
        }
        shim.kill("c", "e1", libc::SIGTERM, true).await.unwrap();
        assert_eq!(shim.wait("c", "e1").await.unwrap().exit_status, 143);
        assert_eq!(
            shim.state("c", "e2").await.unwrap().status(),
            State::Running
        );
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Running);
    });
}

/// T61: a container that was never started may be deleted, and its process goes.
#[test]
fn created_container_can_be_deleted() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let pid = shim.create(bundle.create()).await.unwrap().pid;
        assert_eq!(shim.delete("c", "").await.unwrap().pid, pid);
        assert_eq!(test.events().delete("c").await.pid, pid);
        wait::ended(pid as i32).await;
        assert_eq!(bundle.mounts(), [] as [String; 0]);
        assert_eq!(refused(shim.state("c", "").await).code, Code::NotFound);
        assert_eq!(test.events().count(|e| matches!(e.kind, Kind::Start(_))), 0);
    });
}

/// T70: Pids has children, and processes that moved to a cgroup below the container's.
#[test]
fn pids_are_found_in_cgroups_below() {
    harness::run_unless_vm_differs("guests-cgroups", async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let init = shim.init("c").await as u32;
        shim.exec(bundle.exec("e", &["sleep", "100000"]))
            .await
            .unwrap();
        let pid = shim.start("c", "e").await.unwrap().pid;
        let name = format!("{}-c", test.namespace());
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
            let dir = hierarchy.unwrap().path().join(&name);
            if dir.join("cpuset.cpus").exists() || !dir.exists() {
                continue;
            }
            fs::create_dir(dir.join("below")).unwrap();
            fs::write(dir.join("below/cgroup.procs"), pid.to_string()).unwrap();
        }
        let mut pids: Vec<u32> = shim
            .pids("c")
            .await
            .unwrap()
            .processes
            .iter()
            .map(|p| p.pid)
            .collect();
        pids.sort();
        let mut expected = [init, pid];
        expected.sort();
        assert_eq!(pids, expected);
        shim.kill("c", "e", 9, false).await.unwrap();
        shim.wait("c", "e").await.unwrap();
    });
}

/// T72: a paused container dies of SIGKILL, and can be deleted.
#[test]
fn paused_container_can_be_killed_and_deleted() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().running().await;
        shim.pause("c").await.unwrap();
        shim.kill("c", "", 9, false).await.unwrap();
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 137);
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Stopped);
        shim.delete("c", "").await.unwrap();
    });
}

/// T72: the same when the kernel kills it, past the runtime.
#[test]
fn container_that_dies_while_paused_can_be_deleted() {
    harness::run_unless_vm_differs("guests-cgroups", async |test| {
        let shim = test.bundle("c").build().running().await;
        let pid = shim.init("c").await as u32;
        shim.pause("c").await.unwrap();
        wait::signal(pid as i32, libc::SIGKILL).unwrap();
        // A frozen process dies when it is thawed; the operator does that here.
        let state = format!(
            "/sys/fs/cgroup/freezer/{}-c/freezer.state",
            test.namespace()
        );
        fs::write(state, "THAWED").unwrap();
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Stopped);
        shim.delete("c", "").await.unwrap();
    });
}

/// T74: resources of created and of paused containers can be changed.
#[test]
fn update_works_before_start_and_while_paused() {
    harness::run(async |test| {
        let bundle = test.bundle("c").memory_limit(64 << 20).build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create()).await.unwrap();
        let limit = async || shim.figures("c").await.memory_limit >> 20;
        assert_eq!(limit().await, 64);
        shim.update("c", r#"{"memory":{"limit":50331648}}"#)
            .await
            .unwrap();
        assert_eq!(limit().await, 48);
        shim.start("c", "").await.unwrap();
        shim.pause("c").await.unwrap();
        shim.update("c", r#"{"memory":{"limit":33554432}}"#)
            .await
            .unwrap();
        assert_eq!(limit().await, 32);
        shim.resume("c").await.unwrap();
    });
}

/// T73: CRIU refuses an image directory that is a file; the text says where its log is.
#[test]
fn failed_checkpoint_names_crius_log_and_the_container_goes_on() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let pid = shim.init("c").await as u32;
        let path = test.dir().join("image");
        fs::write(&path, "").unwrap();
        let request = CheckpointTaskRequest {
            id: "c".into(),
            path: path.to_string_lossy().into_owned(),
            ..Default::default()
        };
        let status = refused(shim.checkpoint(request).await);
        if vm_differs("checkpoint") {
            assert_eq!(status.code, Code::Unimplemented, "{status}");
            return;
        }
        let log = format!(" path= {}", bundle.file("criu-dump.log").display());
        assert_eq!(status.code, Code::Unknown, "{status}");
        assert!(status.message.ends_with(&log), "{status}");
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Running);
        assert!(proc::alive(pid as i32));
    });
}

/// T62: an exec that has not started has nothing to wait for: Delete, then Wait is NotFound.
#[test]
fn unstarted_exec_is_deleted_with_no_exit() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        shim.exec(bundle.exec("e", &["true"])).await.unwrap();
        let deleted = shim.delete("c", "e").await.unwrap();
        assert_eq!(
            (deleted.pid, deleted.exit_status, deleted.exited_at),
            (0, 0, Some(NEVER))
        );
        assert_eq!(refused(shim.wait("c", "e").await).code, Code::NotFound);
        shim.exec(bundle.exec("e", &["true"]))
            .await
            .expect("the id is free again");
        assert!(!bundle.file("e.pid").exists());
        shim.start("c", "e").await.unwrap();
        shim.wait("c", "e").await.unwrap();
        assert_eq!(bundle.file("e.pid").exists(), !vm_differs("guests-bundle"));
        shim.delete("c", "e").await.unwrap();
        assert!(
            !bundle.file("e.pid").exists(),
            "1.6: <exec>.pid goes with the exec"
        );
    });
}

/// A container starts with no signal blocked, whatever its shim waits for.
#[test]
fn container_and_exec_start_with_a_clean_signal_mask() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let masks = bundle.exec(
            "e",
            &[
                "grep",
                "-h",
                "SigBlk",
                "/proc/1/status",
                "/proc/self/status",
            ],
        );
        shim.run(masks.output(&fifos)).await;
        assert_eq!(out.text().await, "SigBlk:\t0000000000000000\n".repeat(2));
    });
}
