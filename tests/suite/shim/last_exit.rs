// SPDX-License-Identifier: Apache-2.0
//! Init's exit: it takes everyone along, and comes last (X4, X5).

use harness::events::{Event, Kind};
use harness::runtime::Runtime;
use harness::{Bundle, Code, Shim, Test, differs, proc, refused, vm_differs, wait};
use protos::task_types::Status as State;
use serde_json::json;
use std::fs;

/// X4, X5: an init that shares its pid namespace takes its processes with it, execs before.
async fn init_takes_everyone_along(test: &Test, shim: &Shim, bundle: &Bundle) {
    let id = bundle.id.as_str();
    let mut pids = Vec::new();
    for n in 0..5 {
        pids.push(
            shim.run(bundle.exec_sh(&format!("e{n}"), "exec sleep 100000"))
                .await as i32,
        );
    }
    let script = "sleep 100000 & echo $! >/mnt/child.new; mv /mnt/child.new /mnt/child";
    shim.run(bundle.exec_sh("parent", script)).await;
    test.events().exit(id, "parent").await;
    let is_seen = !vm_differs("one-process");
    if is_seen {
        // Until it executes its program, runc's process has several threads.
        let asleep = |pid: &i32| proc::stat(*pid).is_some_and(|stat| stat.comm == "sleep");
        wait::until("the execs' programs", || {
            let awake: Vec<_> = pids.iter().filter(|pid| !asleep(pid)).collect();
            awake.is_empty().then_some(()).ok_or(format!("{awake:?}"))
        })
        .await;
    }
    let there = shim.figures(id).await.pids;
    assert_eq!(there, 7, "init, five execs and an orphan");
    let members = if is_seen {
        let cgroup = format!("/sys/fs/cgroup/pids/{}-{id}/cgroup.procs", test.namespace());
        let members = fs::read_to_string(&cgroup).unwrap();
        let members: Vec<i32> = members.lines().map(|pid| pid.parse().unwrap()).collect();
        assert!(pids.iter().all(|pid| members.contains(pid)));
        members
    } else {
        Vec::new()
    };
    shim.kill(id, "", libc::SIGKILL, false).await.unwrap();
    assert_eq!(test.events().exit(id, id).await.exit_status, 137);
    let ended: Vec<String> = (0..5).map(|n| format!("e{n}")).collect();
    if differs("init-exit-last") {
        for exec in &ended {
            test.events().exit(id, exec).await;
        }
    } else {
        let exit = |e: &Event| match &e.kind {
            Kind::Exit(exit) if exit.container_id == id => Some(exit.id.clone()),
            _ => None,
        };
        let order: Vec<String> = test.events().all().iter().filter_map(exit).collect();
        assert_eq!(
            order.last().map(String::as_str),
            Some(id),
            "init's exit is last: {order:?}"
        );
        assert_eq!(order.len(), 7, "{order:?}");
    }
    for pid in members {
        wait::ended(pid).await;
    }
    for exec in &ended {
        assert_eq!(test.events().exits(id, exec), 1);
        assert_eq!(shim.wait(id, exec).await.unwrap().exit_status, 137);
    }
    assert_eq!(test.events().exits(id, id), 1);
}

/// X4: `--pid=host`.
#[test]
fn init_exit_kills_all_in_the_host_pid_namespace() {
    harness::run(async |test| {
        let bundle = test.bundle("c").share().host_pid().build();
        let shim = bundle.running().await;
        init_takes_everyone_along(test, &shim, &bundle).await;
    });
}

/// X4: a pod with a shared pid namespace.
#[test]
fn init_exit_kills_all_in_a_shared_pid_namespace() {
    harness::run(async |test| {
        let pause = test.bundle("pause").build();
        let shim = pause.running().await;
        let pid = shim.state("pause", "").await.unwrap().pid;
        let namespaces = json!([{"type": "pid", "path": format!("/proc/{pid}/ns/pid")},
            {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]);
        let bundle = test
            .bundle("c")
            .share()
            .set("/linux/namespaces", namespaces)
            .build();
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        init_takes_everyone_along(test, &shim, &bundle).await;
        assert_eq!(
            shim.state("pause", "").await.unwrap().status(),
            State::Running
        );
    });
}

/// X5: an exec that is being started holds back init's exit.
#[test]
fn init_exit_waits_for_execs_that_are_starting() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let (runtime, mut gate) = Runtime::gated(test, "exec");
        let shim = bundle.start().shim().await;
        let request = runtime.create(&bundle);
        let pid = shim.create(request).await.unwrap().pid;
        shim.start("c", "").await.unwrap();
        shim.exec(bundle.exec("e", &["true"])).await.unwrap();
        let starting = {
            let shim = shim.clone();
            async move { shim.start("c", "e").await }
        };
        let starting = tokio::task::spawn_local(starting);
        gate.arrival().await;
        shim.kill("c", "", libc::SIGKILL, false).await.unwrap();
        wait::ended(pid as i32).await;
        // 1.6 handles no exit at all while an exec is being started.
        if !differs("init-exit-last") {
            wait::until("init is reaped", || match proc::stat(pid as i32) {
                None => Ok(()),
                Some(stat) => Err(format!("{stat:?}")),
            })
            .await;
            assert_eq!(
                shim.state("c", "").await.unwrap().status(),
                State::Running,
                "X5"
            );
            assert_eq!(test.events().exits("c", "c"), 0, "init's exit is held back");
        }
        gate.open().await;
        refused(starting.await.unwrap());
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        assert_eq!(
            test.events().exits("c", "e"),
            0,
            "no exit of what never started"
        );
        if !differs("failed-exec-restart") {
            let late = refused(shim.start("c", "e").await);
            assert_eq!(late.code, Code::FailedPrecondition, "T22: {late}");
        }
    });
}
