// SPDX-License-Identifier: Apache-2.0
//! The bugs of containerd's own shim that no other file here names (contract U1 to U12): none of them
//! is ours. U2 is in task.rs, U3 in runtime.rs, U4 in golden, U6 in terminal.rs, U7 in stdio.rs;
//! U10 is a unit test of task's logger.

use harness::events::Kind;
use harness::runtime::Runtime;
use harness::stdio::Fifo;
use harness::{Code, Stdin, peers, proc, program, refused, vm_differs, wait};
use protos::Message;
use protos::bootstrap::BootstrapParams;
use protos::runc::Options;
use protos::task::ExecProcessRequest;
use std::fs;

/// U1: Go's shim panics when an exec that failed to start is started again, and again.
#[test]
fn u1_failed_exec_may_be_started_ever_again_and_fails() {
    if peers::is_go() {
        return;
    }
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        shim.exec(bundle.exec("nx", &["/nonexistent"]))
            .await
            .unwrap();
        for _ in 0..5 {
            assert_eq!(refused(shim.start("c", "nx").await).code, Code::Unknown);
        }
        assert!(shim.alive());
        assert_eq!(
            test.events().count(|e| matches!(e.kind, Kind::Exit(_))),
            0,
            "no exit of what never ran"
        );
    });
}

/// U5: options from a legacy caller are no BootstrapParams: id and socket are the flags'.
#[test]
fn u5_legacy_options_leave_id_and_socket_alone() {
    harness::run(async |test| {
        for id in ["one", "two"] {
            let bundle = test.bundle(id).build();
            let options = Options {
                binary_name: peers::runc().to_string_lossy().into_owned(),
                systemd_cgroup: false,
                ..Default::default()
            };
            let shim = bundle.start().stdin(Stdin::Options(options)).shim().await;
            assert_eq!(shim.socket(), test.socket_of(id));
            let words = proc::words(shim.pid(), "cmdline");
            let at = words.iter().position(|word| word == "-id").unwrap();
            assert_eq!(words[at + 1], id);
        }
    });
}

/// U8: the bundle that the shim runs in goes before the shim does, as a pod's pause container
/// may; its socket, in a directory of the caller's, goes all the same.
#[test]
fn u8_socket_goes_although_the_first_bundle_went_before() {
    if peers::is_go() {
        return;
    }
    harness::run(async |test| {
        let group = |id| {
            let builder = test.bundle(id);
            builder
                .annotation("io.containerd.runc.v2.group", "g")
                .build()
        };
        let (pause, other) = (group("pause"), group("other"));
        let dir = test.dir().join("sockets");
        let params = BootstrapParams {
            socket_dir: Some(dir.to_string_lossy().into_owned()),
            ..pause.start().bootstrap_params()
        };
        let stdin = Stdin::Raw(params.encode_to_vec());
        let shim = pause.start().stdin(stdin).shim().await;
        assert!(shim.socket().starts_with(&dir));
        for bundle in [&pause, &other] {
            shim.create(bundle.create()).await.unwrap();
            shim.start(&bundle.id, "").await.unwrap();
        }
        shim.kill("pause", "", libc::SIGKILL, true).await.unwrap();
        shim.wait("pause", "").await.unwrap();
        shim.delete("pause", "").await.unwrap();
        fs::remove_dir_all(&pause.path).unwrap();
        shim.kill("other", "", libc::SIGKILL, true).await.unwrap();
        shim.wait("other", "").await.unwrap();
        shim.delete("other", "").await.unwrap();
        shim.stopped().await;
        assert!(!shim.socket().exists(), "the socket is left");
    });
}

/// U9: created tasks that are deleted before their exit is seen leave nothing in the shim, and
/// their names are free again.
#[test]
fn u9_deleted_created_tasks_are_forgotten() {
    if peers::is_go() {
        return;
    }
    harness::run(async |test| {
        let rounds = if vm_differs("fewer-cycles") { 3 } else { 20 };
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let before = shim.footprint();
        for _ in 0..rounds {
            shim.create(bundle.create()).await.unwrap();
            shim.delete("c", "").await.unwrap();
        }
        let exit = |e: &harness::events::Event| e.exit_of("c", "c").is_some();
        test.events().wait_count("TaskExit", rounds, exit).await;
        wait::until("the shim is as it was", || match shim.footprint() {
            now if now == before => Ok(()),
            now => Err(format!("{now:?}, before {before:?}")),
        })
        .await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        shim.exec(bundle.exec_sh("e", "exit 3")).await.unwrap();
        shim.start("c", "e").await.unwrap();
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 3);
        shim.kill("c", "", libc::SIGKILL, false).await.unwrap();
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 137);
        test.events().wait_count("TaskExit", rounds + 1, exit).await;
        assert_eq!(test.events().count(exit), rounds + 1, "one exit each");
    });
}

/// U11: an init that ends while it is being started still takes its processes along, and its
/// exit is the last.
#[test]
fn u11_early_init_exit_kills_what_it_leaves() {
    if peers::is_go() {
        return;
    }
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let (pid, go) = (test.share().join("pid"), test.share().join("go"));
        let (pid, go) = (Fifo::new(pid), Fifo::new(go));
        let mut pid = pid.reader();
        let script = "sleep 100000 & echo $! >/mnt/pid; read go </mnt/go; exit 5";
        let bundle = test.bundle("c").share().host_pid().sh(script).build();
        let (runtime, mut gate) = Runtime::lingering(test, "start");
        let shim = bundle.start().shim().await;
        let init = shim.create(runtime.create(&bundle)).await.unwrap().pid as i32;
        let starting = tokio::task::spawn_local({
            let shim = shim.clone();
            async move { shim.start("c", "").await }
        });
        gate.arrival().await;
        let child: i32 = pid.line().await.parse().unwrap();
        assert!(proc::alive(child), "the init's child runs");
        go.writer().await.write("now\n").await;
        wait::ended(init).await;
        gate.open().await;
        starting.await.unwrap().unwrap();
        wait::ended(child).await;
        assert_eq!(test.events().exit("c", "c").await.exit_status, 5);
        let topics: Vec<String> = test
            .events()
            .about("c")
            .into_iter()
            .map(|event| event.topic)
            .collect();
        assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit"]);
    });
}

/// U12: a logger that is gone does not hold up a process on a terminal: nobody keeps its read
/// ends open.
#[test]
fn u12_dead_logger_of_a_terminal_blocks_nobody() {
    if peers::is_go() {
        return;
    }
    harness::run(async |test| {
        let logger = test.dir().join("logger");
        program::write(&logger, "#!/bin/sh\nexec 5>&-\nexit 0\n");
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        let stdin = Fifo::new(test.share().join("in"));
        let request = ExecProcessRequest {
            stdin: stdin.name(),
            stdout: format!("binary://{}", logger.display()),
            terminal: true,
            ..bundle.exec_sh("e", "yes | head -c 1000000; exit 3")
        };
        shim.exec(request).await.unwrap();
        shim.start("c", "e").await.unwrap();
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 3);
        shim.delete("c", "e").await.unwrap();
    });
}
