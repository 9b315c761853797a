// SPDX-License-Identifier: Apache-2.0
//! Exits: one for each process, after its start, init's last (X1 to X9).

use harness::events::{Event, Kind};
use harness::runtime::Runtime;
use harness::{Code, Status as Refusal, differs, proc, refused, runtime_differs, vm_differs, wait};
use protos::task_types::Status as State;
use serde_json::json;
use std::fs;

/// The place of the first event that `select` chooses.
fn place(events: &[Event], what: &str, select: impl Fn(&Kind) -> bool) -> usize {
    let found = events.iter().position(|e| select(&e.kind));
    found.unwrap_or_else(|| panic!("no {what} in {events:#?}"))
}

/// X1: the exit code, or 128 and the signal; the same in event, Wait, State and Delete.
#[test]
fn exit_status_is_the_code_or_128_plus_the_signal() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let cases = [
            ("zero", "exit 0", 0),
            ("seven", "exit 7", 7),
            ("max", "exit 255", 255),
            ("term", "kill -TERM $$", 143),
            ("kill", "kill -KILL $$", 137),
            ("segv", "kill -SEGV $$", 139),
            // Real-time signals have numbers and no names.
            ("rt3", "kill -37 $$", 165),
            ("rtmax", "kill -64 $$", 192),
        ];
        for (id, script, status) in cases {
            let pid = shim.run(bundle.exec_sh(id, script)).await;
            let event = test.events().exit("c", id).await;
            assert_eq!((event.pid, event.exit_status), (pid, status), "{script}");
            let waited = shim.wait("c", id).await.unwrap();
            assert_eq!(
                (waited.exit_status, waited.exited_at),
                (status, event.exited_at)
            );
            let state = shim.state("c", id).await.unwrap();
            assert_eq!(
                (state.exit_status, state.exited_at),
                (status, event.exited_at)
            );
            let deleted = shim.delete("c", id).await.unwrap();
            let got = (deleted.pid, deleted.exit_status, deleted.exited_at);
            assert_eq!(got, (pid, status, event.exited_at));
        }
    });
}

/// X1, X2: no end is lost among others that are reaped in the same go, whatever signal a process
/// dies of: those from 32 on have no names. Init's own end is the last of them.
#[test]
fn ends_by_every_signal_are_told_when_reaped_at_once() {
    harness::run_unless_vm_differs("one-process", async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        // The first process of a pid namespace dies of no signal but SIGKILL.
        let beside = test.bundle("beside").host_pid().build();
        shim.create(beside.create()).await.unwrap();
        shim.start("beside", "").await.unwrap();
        let mut ends = Vec::new();
        // Not 32: cargo's children ignore it, and so do the containers of a shim that they start.
        for signal in [9, 33, 34, 37, 50, 64, 9] {
            let id = format!("e{}", ends.len());
            let pid = shim.run(bundle.exec(&id, &["sleep", "600"])).await;
            ends.push(("c", id, pid as i32, signal));
        }
        for (id, signal) in [("c", 9), ("beside", 63)] {
            ends.push((id, id.to_owned(), shim.init(id).await, signal));
        }
        wait::signal(shim.pid(), libc::SIGSTOP).unwrap();
        for (_, id, pid, signal) in &ends {
            wait::signal(*pid, *signal).unwrap();
            // Each dies of its own before the next, and before init ends the rest of its pid
            // namespace; it lasts itself until the last of them is reaped.
            if id != "c" {
                wait::ended(*pid).await;
            }
        }
        wait::signal(shim.pid(), libc::SIGCONT).unwrap();
        for (container, id, pid, signal) in ends {
            let exit = test.events().exit(container, &id).await;
            let expected = 128 + signal as u32;
            assert_eq!((exit.pid as i32, exit.exit_status), (pid, expected), "{id}");
        }
    });
}

/// T50: every signal that the kernel has can be sent, to init as to an exec.
#[test]
fn real_time_signals_are_sent_like_any_other() {
    harness::run(async |test| {
        let bundle = test.bundle("c").host_pid().build();
        let shim = bundle.running().await;
        shim.run(bundle.exec("e", &["sleep", "600"])).await;
        shim.kill("c", "e", 34, false).await.unwrap();
        assert_eq!(test.events().exit("c", "e").await.exit_status, 162);
        shim.kill("c", "", 64, false).await.unwrap();
        assert_eq!(test.events().exit("c", "c").await.exit_status, 192);
    });
}

/// X2, X3: twenty processes that end at once: start before exit, and one exit, for each.
#[test]
fn start_is_published_before_exit_for_parallel_execs() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let all: Vec<_> = (0..20)
            .map(|n| {
                let (shim, bundle) = (shim.clone(), bundle.clone());
                tokio::task::spawn_local(async move {
                    let id = format!("e{n}");
                    shim.exec(bundle.exec(&id, &["true"])).await.unwrap();
                    let pid = shim.start("c", &id).await.unwrap().pid;
                    assert_eq!(shim.wait("c", &id).await.unwrap().exit_status, 0);
                    (id, pid)
                })
            })
            .collect();
        let mut pids = Vec::new();
        for task in all {
            pids.push(task.await.unwrap());
        }
        test.events()
            .wait_count("TaskExit", 20, |e| matches!(e.kind, Kind::Exit(_)))
            .await;
        let events = test.events().about("c");
        for (id, pid) in pids {
            let start = place(
                &events,
                "TaskExecStarted",
                |kind| matches!(kind, Kind::ExecStarted(e) if e.exec_id == id && e.pid == pid),
            );
            let exit = place(
                &events,
                "TaskExit",
                |kind| matches!(kind, Kind::Exit(e) if e.id == id && e.pid == pid && e.exit_status == 0),
            );
            assert!(start < exit, "{id}: {events:#?}");
            assert_eq!(test.events().exits("c", &id), 1);
        }
    });
}

/// X3, X8: an init that ends at once is created, started, ended and deleted, in this order.
#[test]
fn short_lived_init_is_published_in_order() {
    harness::run(async |test| {
        let bundle = test.bundle("c0").build();
        let shim = bundle.start().shim().await;
        let rounds = if vm_differs("fewer-cycles") { 3 } else { 10 };
        for n in 1..=rounds {
            let id = format!("c{n}");
            let bundle = test.bundle(&id).sh("exit 9").build();
            shim.create(bundle.create()).await.unwrap();
            shim.start(&id, "").await.unwrap();
            assert_eq!(shim.wait(&id, "").await.unwrap().exit_status, 9);
            shim.delete(&id, "").await.unwrap();
            test.events().delete(&id).await;
            let names: Vec<String> = test
                .events()
                .about(&id)
                .into_iter()
                .map(|event| event.topic)
                .collect();
            assert_eq!(
                names,
                [
                    "/tasks/create",
                    "/tasks/start",
                    "/tasks/exit",
                    "/tasks/delete"
                ]
            );
        }
    });
}

/// X3: the exec ended before Start's answer was even known.
#[test]
fn exit_during_exec_start_comes_after_exec_started() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let (runtime, mut gate) = Runtime::lingering(test, "exec");
        let shim = bundle.start().shim().await;
        let request = runtime.create(&bundle);
        shim.create(request).await.unwrap();
        shim.start("c", "").await.unwrap();
        shim.exec(bundle.exec_sh("e", "exit 4")).await.unwrap();
        let starting = {
            let shim = shim.clone();
            async move { shim.start("c", "e").await }
        };
        let starting = tokio::task::spawn_local(starting);
        gate.arrival().await;
        let pid: i32 = fs::read_to_string(bundle.file("e.pid"))
            .unwrap()
            .parse()
            .unwrap();
        wait::ended(pid).await;
        gate.open().await;
        assert_eq!(starting.await.unwrap().unwrap().pid as i32, pid);
        assert_eq!(test.events().exit("c", "e").await.exit_status, 4);
        let events = test.events().about("c");
        let start = place(&events, "TaskExecStarted", |k| {
            matches!(k, Kind::ExecStarted(_))
        });
        let exit = place(&events, "TaskExit", |k| matches!(k, Kind::Exit(_)));
        assert!(start < exit, "{events:#?}");
        assert_eq!(test.events().exits("c", "e"), 1);
    });
}

/// T13: init ended before Create's answer was known: TaskCreate, then TaskExit; then stopped.
#[test]
fn exit_during_create_comes_after_task_create() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let (runtime, mut gate) = Runtime::lingering(test, "create");
        let shim = bundle.start().shim().await;
        let request = runtime.create(&bundle);
        let creating = {
            let shim = shim.clone();
            async move { shim.create(request).await }
        };
        let creating = tokio::task::spawn_local(creating);
        gate.arrival().await;
        let pid: i32 = fs::read_to_string(bundle.file("init.pid"))
            .unwrap()
            .parse()
            .unwrap();
        wait::signal(pid, libc::SIGKILL).unwrap();
        wait::ended(pid).await;
        gate.open().await;
        assert_eq!(creating.await.unwrap().unwrap().pid as i32, pid);
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        let events = test.events().about("c");
        let create = place(&events, "TaskCreate", |k| matches!(k, Kind::Create(_)));
        let exit = place(&events, "TaskExit", |k| matches!(k, Kind::Exit(_)));
        assert!(create < exit, "{events:#?}");
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Stopped);
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 137);
        shim.delete("c", "").await.unwrap();
    });
}

/// X7, issue 9103: killed between Create and Start: stopped, not lost.
#[test]
fn init_killed_before_start_is_stopped() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create()).await.unwrap();
        shim.kill("c", "", libc::SIGKILL, false).await.unwrap();
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 137);
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Stopped);
        let start = refused(shim.start("c", "").await);
        assert_eq!(start.message, "cannot start a stopped process");
        shim.delete("c", "").await.unwrap();
        test.events().delete("c").await;
        assert_eq!(test.events().exits("c", "c"), 1);
    });
}

/// Issue 6429: no exit for a process whose Start or Create failed.
#[test]
fn failed_starts_have_no_exit() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        shim.exec(bundle.exec("nx", &["/nonexistent"]))
            .await
            .unwrap();
        refused(shim.start("c", "nx").await);
        let broken = test.bundle("broken").args(&["/nonexistent"]).build();
        shim.create(broken.create())
            .await
            .map(|_| ())
            .or_else(|e| match e {
                protos::ttrpc::CallError::Status(_) => Ok(()),
                other => Err(other),
            })
            .unwrap();
        let wrong = test
            .bundle("wrong")
            .set("/process/cwd", json!("bin"))
            .build();
        if !runtime_differs("relative-cwd") {
            refused(shim.create(wrong.create()).await);
        }
        // A fence: what was to be published before it has been.
        shim.run(bundle.exec_sh("fence", "true")).await;
        test.events().exit("c", "fence").await;
        assert_eq!(test.events().exits("c", "nx"), 0);
        assert_eq!(test.events().exits("wrong", "wrong"), 0);
        assert_eq!(test.events().about("wrong"), []);
    });
}

/// X2: nobody is told of processes that the shim did not start.
#[test]
fn orphans_are_reaped_silently() {
    harness::run(async |test| {
        let bundle = test.bundle("c").host_pid().build();
        let shim = bundle.running().await;
        let usual = proc::children(shim.pid()).len();
        for n in 0..5 {
            let id = format!("e{n}");
            shim.run(bundle.exec_sh(&id, "(sleep 0 & sleep 0 &) ; true"))
                .await;
            test.events().exit("c", &id).await;
        }
        wait::until("no zombies, no orphans", || {
            match proc::children(shim.pid()) {
                few if few.len() <= usual => Ok(()),
                more => Err(format!(
                    "{:?}",
                    more.into_iter().map(proc::describe).collect::<Vec<_>>()
                )),
            }
        })
        .await;
        assert_eq!(test.events().count(|e| matches!(e.kind, Kind::Exit(_))), 5);
    });
}

/// T75: Wait answers before, while and after the exit.
#[test]
fn wait_may_come_before_start_and_after_exit() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        shim.exec(bundle.exec_sh("e", "exit 6")).await.unwrap();
        let early = {
            let shim = shim.clone();
            async move { shim.wait("c", "e").await }
        };
        let early = tokio::task::spawn_local(early);
        shim.state("c", "e").await.unwrap();
        shim.start("c", "e").await.unwrap();
        let first = early.await.unwrap().unwrap();
        assert_eq!(first.exit_status, 6);
        for _ in 0..3 {
            assert_eq!(shim.wait("c", "e").await.unwrap(), first);
        }
    });
}

/// X2, D4: an exec may be called `init`, and is none: neither its pid nor its exit are taken for
/// those of the container.
#[test]
fn an_exec_called_init_is_not_init() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let pid_file = || fs::read_to_string(bundle.file("init.pid")).unwrap_or_default();
        let before = pid_file();
        shim.run(bundle.exec_sh("init", "exit 3")).await;
        assert_eq!(test.events().exit("c", "init").await.exit_status, 3);
        assert_eq!(shim.wait("c", "init").await.unwrap().exit_status, 3);
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Running);
        let of_pids = differs("exec-named-init");
        assert!(of_pids || pid_file() == before);
        assert!(!bundle.file("exits/init.json").exists());
        assert_eq!(shim.delete("c", "init").await.unwrap().exit_status, 3);
        assert!(of_pids || pid_file() == before);
        assert_eq!(test.events().exits("c", "c"), 0);
        shim.kill("c", "", libc::SIGKILL, false).await.unwrap();
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        let deleted = shim.delete("c", "").await.unwrap();
        assert_eq!(deleted.exit_status, 137);
    });
}

/// X2: an event has one id for init and for execs, and init's is the container's: whoever hears of
/// an exec of that name would take its end for the container's.
#[test]
fn an_exec_cannot_have_its_containers_id() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let added = shim.exec(bundle.exec("c", &["true"])).await;
        if differs("exec-named-as-container") {
            return added.unwrap();
        }
        let expected = Refusal::new(Code::AlreadyExists, "id c: already exists");
        assert_eq!(refused(added), expected);
        assert_eq!(refused(shim.state("c", "c").await).code, Code::NotFound);
        // Another container's is as good as any.
        shim.run(bundle.exec_sh("d", "exit 4")).await;
        assert_eq!(test.events().exit("c", "d").await.exit_status, 4);
        assert_eq!(test.events().exits("c", "c"), 0);
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Running);
    });
}
