// SPDX-License-Identifier: Apache-2.0
//! A slow runtime, a long life, and a sudden death.

use harness::events::Event;
use harness::runtime::{HangingExec, Runtime};
use harness::stdio::{Fifos, Stdio};
use harness::{Bundle, Shim, Stdin, Test, differs, proc, vm_differs, wait};
use protos::task_types::Status as State;
use std::time::{Duration, Instant};

/// How long the runtime hangs.
const HANGS: Duration = Duration::from_secs(3);

/// Issue 13483, T4: State answers within 20 ms while a runtime's exec of the same container hangs
/// for three seconds, and nothing else waits for it.
#[test]
fn state_answers_at_once_while_an_exec_hangs() {
    if vm_differs("guests-runtime") {
        return;
    }
    harness::run_alone(async |test| {
        let exec = HangingExec::new(test).await;
        let shim = exec.shim.clone();
        let hangs = Instant::now();
        let (mut times, mut others) = (Vec::new(), Vec::new());
        while hangs.elapsed() < HANGS || times.len() < 200 {
            let begin = Instant::now();
            assert_eq!(shim.state("c", "").await.unwrap().status(), State::Running);
            times.push(begin.elapsed());
            // A call that touches no container: what the machine takes for itself.
            let begin = Instant::now();
            shim.connect_call("").await.unwrap();
            others.push(begin.elapsed());
        }
        // Each was answered before the exec went on.
        assert!(!exec.starting.is_finished());
        times.sort();
        others.sort();
        let limit = Duration::from_millis(20);
        for (part, name) in [(50, "half"), (95, "95 %")] {
            let at = times.len() * part / 100;
            let (took, other) = (times[at], others[at]);
            println!(
                "{name} of {} within {took:?}; Connect {other:?}",
                times.len()
            );
            assert!(took < limit + other, "{name}: {took:?}; Connect: {other:?}");
        }
        if !differs("hanging-exec") {
            shim.pids("c").await.unwrap();
            shim.stats("c").await.unwrap();
            // Another container lives its whole life meanwhile.
            let other = test.bundle("other").sh("exit 4").build();
            shim.create(other.create()).await.unwrap();
            shim.start("other", "").await.unwrap();
            assert_eq!(test.events().exit("other", "other").await.exit_status, 4);
            shim.delete("other", "").await.unwrap();
        }
        exec.go_on().await;
    });
}

/// Issue 13483: nor does a Create that hangs, for the other containers of the group.
#[test]
fn other_containers_are_served_while_a_create_hangs() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let (runtime, mut gate) = Runtime::gated(test, "create");
        let shim = bundle.running().await;
        let slow = test.bundle("slow").build();
        let request = runtime.create(&slow);
        let creating = tokio::task::spawn_local({
            let shim = shim.clone();
            async move { shim.create(request).await }
        });
        gate.arrival().await;
        if !differs("create-lock") {
            assert_eq!(shim.state("c", "").await.unwrap().status(), State::Running);
            shim.run(bundle.exec_sh("e", "exit 5")).await;
            assert_eq!(test.events().exit("c", "e").await.exit_status, 5);
            assert!(!creating.is_finished());
        }
        gate.open().await;
        creating.await.unwrap().unwrap();
    });
}

/// One life: two execs of which one has a terminal or FIFOs, killed, deleted.
async fn cycle(test: &Test, shim: &Shim, n: usize) {
    let id = format!("c{n}");
    let bundle = test.bundle(&id).build();
    shim.create(bundle.create()).await.unwrap();
    shim.start(&id, "").await.unwrap();
    let fifos = Fifos::new(test.dir().join(format!("io{n}")));
    let (mut out, _err) = fifos.readers();
    let request = bundle.exec("e", &["echo", "out"]);
    let end = if n.is_multiple_of(2) { "\n" } else { "\r\n" };
    let request = if n.is_multiple_of(2) {
        request.fifos(&fifos)
    } else {
        request.terminal(&fifos)
    };
    shim.run(request).await;
    assert_eq!(out.text().await, format!("out{end}"));
    assert_eq!(shim.wait(&id, "e").await.unwrap().exit_status, 0);
    shim.delete(&id, "e").await.unwrap();
    shim.kill(&id, "", libc::SIGKILL, false).await.unwrap();
    assert_eq!(shim.wait(&id, "").await.unwrap().exit_status, 137);
    shim.delete(&id, "").await.unwrap();
}

/// Runs the cycles `from..to`, two at a time.
async fn cycles(test: &Test, shim: &Shim, from: usize, to: usize) {
    let lane = async |first: usize| {
        for n in (first..to).step_by(2) {
            cycle(test, shim, n).await;
        }
    };
    tokio::join!(lane(from), lane(from + 1));
}

/// Anonymous memory of a process, in KiB.
fn memory(shim: &Shim) -> u64 {
    proc::status(shim.pid(), "RssAnon").unwrap()
}

/// A shim that serves three hundred containers is none the bigger for it.
#[test]
fn three_hundred_cycles_leave_the_shim_as_it_was() {
    harness::run(async |test| {
        let shim = test.bundle("pause").build().running().await;
        let (some, all) = if vm_differs("fewer-cycles") {
            (4, 12)
        } else {
            (50, 300)
        };
        cycles(test, &shim, 0, some).await;
        shim.one_thread().await;
        let (before, memory_before) = (shim.footprint(), memory(&shim));
        let mounts = || {
            let all = [test.dir().to_owned(), test.vm_dir("pause")];
            all.map(|dir| proc::mounts(shim.pid(), &dir).len())
        };
        let mounts_before = mounts();
        cycles(test, &shim, some, all).await;
        let deleted = |e: &Event| e.topic == protos::topic::TASK_DELETE;
        test.events().wait_count("TaskDelete", all, deleted).await;
        assert_eq!(test.events().count(deleted), all);
        shim.one_thread().await;
        let (after, memory_after) = (shim.footprint(), memory(&shim));
        println!("{memory_before} KiB after {some} cycles, {memory_after} KiB after {all}");
        println!("{} threads, then {}", before.threads, after.threads);
        assert_eq!(
            (after.zombies, after.children),
            (0, before.children),
            "only the first container's init, or its VM"
        );
        assert_eq!(mounts(), mounts_before);
        if differs("tty-fds") {
            assert!(
                after.threads <= before.threads + 8,
                "Go's threads come and go"
            );
            return;
        }
        assert_eq!(after.fds, before.fds);

        let growth = memory_after.saturating_sub(memory_before);
        assert!(growth <= 256, "{growth} KiB more after {all} cycles");
    });
}

/// Kills the shim, deletes its containers; the end of the test finds what is left.
async fn killed(shim: &Shim, bundles: &[&Bundle]) {
    shim.kill_process().await;
    for bundle in bundles {
        bundle.start().deleted().await;
    }
}

/// D1: SIGKILL in the midst of everything, then `delete`: nothing is left.
#[test]
fn killed_shim_and_delete_leave_nothing() {
    harness::run(async |test| {
        let busy = test
            .bundle("busy")
            .annotation("io.containerd.runc.v2.group", "g")
            .build();
        let group = |id| {
            test.bundle(id)
                .annotation("io.containerd.runc.v2.group", "g")
        };
        let (created, paused) = (group("created").build(), group("paused").build());
        let shim = busy.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let _readers = fifos.readers();
        shim.run(busy.exec("fifos", &["cat"]).fifos(&fifos)).await;
        let tty = Fifos::new(test.dir().join("tty"));
        let _out = tty.stdout.reader();
        shim.run(busy.exec("tty", &["cat"]).terminal(&tty)).await;
        shim.create(created.create()).await.unwrap();
        shim.create(paused.create()).await.unwrap();
        shim.start("paused", "").await.unwrap();
        shim.pause("paused").await.unwrap();
        killed(&shim, &[&busy, &created, &paused]).await;
    });
}

/// D1, T9: SIGKILL while the runtime runs: it dies with its shim (Pdeathsig).
#[test]
fn runtime_dies_with_its_shim() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let (runtime, mut gate) = Runtime::gated(test, "create");
        let shim = bundle.start().shim().await;
        let request = runtime.create(&bundle);
        let creating = tokio::task::spawn_local({
            let shim = shim.clone();
            async move { shim.create(request).await }
        });
        let pid = gate.arrival().await;
        shim.kill_process().await;
        wait::ended(pid).await;
        creating.await.unwrap().unwrap_err();
        bundle.start().deleted().await;
    });
}

/// D1, B33: after that, the container starts anew under the same name.
#[test]
fn container_starts_anew_after_its_shim_was_killed() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        for _ in 0..3 {
            let shim = bundle.running().await;
            killed(&shim, &[&bundle]).await;
        }
        let shim = bundle.start().stdin(Stdin::Empty).shim().await;
        shim.create(bundle.create()).await.unwrap();
    });
}
