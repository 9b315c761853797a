// SPDX-License-Identifier: Apache-2.0
//! A container's life in a VM: its calls, events and exit codes, in order.

use harness::events::Kind;
use harness::stdio::{Fifos, Stdio};
use harness::{Code, refused};
use protos::task_types::Status as State;
use serde_json::json;
use std::fs;

/// The whole of it, in one VM: another kernel, every call, each event once and in its order.
#[test]
fn container_lives_in_a_vm_from_create_to_delete() {
    crate::run(async |test| {
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, mut err) = fifos.readers();
        let script = "uname -r; cat /proc/sys/kernel/random/entropy_avail; \
                      id -u >&2; exec sleep 100000";
        let bundle = test.bundle("c").sh(script).build();
        let shim = bundle.start().shim().await;
        let created = shim.create(bundle.create().output(&fifos)).await.unwrap();
        let state = shim.state("c", "").await.unwrap();
        assert_eq!((state.status(), state.pid), (State::Created, created.pid));
        assert_eq!(state.bundle, bundle.path.to_string_lossy());
        assert_eq!(state.stdout, fifos.stdout.name(), "what the client named");
        let qemu = fs::read_to_string(format!("/proc/{}/comm", created.pid)).unwrap();
        assert!(
            qemu.starts_with("qemu-system"),
            "the host's pid is the VM's: {qemu}"
        );
        assert_eq!(shim.start("c", "").await.unwrap().pid, created.pid);
        let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let guest = out.line().await;
        assert!(!guest.is_empty() && guest != host.trim(), "kernel {guest}");
        assert_eq!(out.line().await, "256", "nobody waits for random numbers");
        assert_eq!(err.line().await, "0");

        // Execs: exit codes, a signal, output of their own, twice the same id.
        shim.exec(bundle.exec_sh("e1", "exit 42")).await.unwrap();
        let again = refused(shim.exec(bundle.exec_sh("e1", "true")).await);
        assert_eq!(again.code, Code::AlreadyExists);
        assert_eq!(shim.state("c", "e1").await.unwrap().pid, 0, "not started");
        shim.start("c", "e1").await.unwrap();
        assert_eq!(shim.wait("c", "e1").await.unwrap().exit_status, 42);
        let deleted = shim.delete("c", "e1").await.unwrap();
        assert_eq!((deleted.exit_status, deleted.pid), (42, created.pid));
        assert_eq!(refused(shim.state("c", "e1").await).code, Code::NotFound);
        shim.run(bundle.exec("e2", &["sleep", "100000"])).await;
        let pids = shim.pids("c").await.unwrap().processes;
        assert!(pids.iter().all(|process| process.pid == created.pid));
        assert_eq!(
            pids.iter().filter(|process| process.info.is_some()).count(),
            1
        );
        shim.kill("c", "e2", 15, false).await.unwrap();
        assert_eq!(shim.wait("c", "e2").await.unwrap().exit_status, 143);
        let late = refused(shim.kill("c", "e2", 9, false).await);
        assert_eq!(late.code, Code::NotFound, "{late}");

        // Paused, a container's state says so, and it can be killed after it goes on.
        shim.pause("c").await.unwrap();
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Paused);
        shim.resume("c").await.unwrap();
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Running);
        let no = refused(
            shim.checkpoint(protos::task::CheckpointTaskRequest {
                id: "c".into(),
                ..Default::default()
            })
            .await,
        );
        assert_eq!(no.code, Code::Unimplemented, "{no}");

        shim.kill("c", "", 9, false).await.unwrap();
        let exit = shim.wait("c", "").await.unwrap();
        assert_eq!(exit.exit_status, 137);
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Stopped);
        let deleted = shim.delete("c", "").await.unwrap();
        assert_eq!(
            (deleted.exit_status, deleted.exited_at),
            (137, exit.exited_at)
        );
        test.events().delete("c").await;
        let told: Vec<String> = test.events().about("c").iter().map(name).collect();
        assert_eq!(
            told,
            [
                "create",
                "start",
                "added e1",
                "started e1",
                "exit e1 42",
                "added e2",
                "started e2",
                "exit e2 143",
                "paused",
                "resumed",
                "exit c 137",
                "delete",
            ]
        );
        shim.released().await;
    });
}

/// Nobody in a VM can write to the OCI runtime (CVE-2019-5736), however privileged; and it is not in a
/// tmpfs, from which crun would copy itself whenever it is run.
#[test]
fn the_runtime_cannot_be_written_to() {
    crate::run(async |test| {
        let bundle = test.bundle("c").host_pid().build();
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, mut err) = fifos.readers();
        let shim = bundle.running().await;
        let script = "cd /proc/1/root/usr/bin; stat -f -c %T runc; exec 3>>runc";
        let mut look = harness::bundle::process(test, &["sh", "-c", script]);
        for set in ["bounding", "effective", "permitted"] {
            let all = ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"];
            look["capabilities"][set] = json!(all);
        }
        shim.run(bundle.exec_spec("e", &look).fifos(&fifos)).await;
        assert_eq!(out.line().await, "ramfs");
        let refused = err.line().await;
        assert!(refused.ends_with("Read-only file system"), "{refused}");
        shim.stopped().await;
    });
}

fn name(event: &harness::events::Event) -> String {
    match &event.kind {
        Kind::Create(_) => "create".into(),
        Kind::Start(_) => "start".into(),
        Kind::ExecAdded(e) => format!("added {}", e.exec_id),
        Kind::ExecStarted(e) => format!("started {}", e.exec_id),
        Kind::Exit(e) => format!("exit {} {}", e.id, e.exit_status),
        Kind::Delete(_) => "delete".into(),
        Kind::Paused(_) => "paused".into(),
        Kind::Resumed(_) => "resumed".into(),
        other => format!("{other:?}"),
    }
}
