// SPDX-License-Identifier: Apache-2.0
//! Pids that the kernel gives away again (X10): no exit from, and no signal to, whoever has the
//! pid of a process that is gone.
//!
//! Each test runs itself again in a pid namespace of its own, where it chooses the next pid.

use harness::pid_namespace::run_inside;
use harness::runtime::Runtime;
use harness::stdio::Fifo;
use harness::{Bundle, Shim, Test, peers, proc, vm_differs, wait};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const GROUP: &str = "io.containerd.runc.v2.group";

/// Runs the test `name` of this file.
fn in_a_pid_namespace(name: &str, body: impl AsyncFnOnce(&Test)) {
    if vm_differs("one-process") {
        return;
    }
    // "Not handled" there, says its source.
    if !peers::is_go() {
        run_inside(&format!("reuse::{name}"), body);
    }
}

/// A process of the test's that has this pid, which is free.
async fn take(pid: i32) -> std::process::Child {
    wait::until(&format!("pid {pid} is given away again"), || {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let mut command = Command::new("sleep");
        command.arg("100000").stdin(Stdio::null());
        let mut child = command.spawn().unwrap();
        if child.id() as i32 == pid {
            return Ok(child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        Err(format!("got {}", child.id()))
    })
    .await
}

/// What an OCI runtime does that makes a process `pid`, which is free, for the exec `name`.
fn make_exec(name: &str, pid_file: &str) -> String {
    format!(
        "case \"$*\" in *{name}.pid*)\n  want=$(cat {pid_file})\n  \
         until echo $((want-1)) >/proc/sys/kernel/ns_last_pid; sleep 100000 </dev/null & \
         [ $! = $want ]; do kill -9 $!; done\n  printf %s $! >{name}.pid; exit 0;;\nesac\n"
    )
}

/// Starts the container `other`, whose exec `second` will have the pid in the file.
async fn other_with_a_chosen_pid(test: &Test, shim: &Shim, other: &Bundle) -> PathBuf {
    let pid_file = test.dir().join("pid");
    let body = format!(
        "[ \"$ACTION\" = exec ] || exec \"$RUNC\" \"$@\"\n{}exec \"$RUNC\" \"$@\"",
        make_exec("second", &pid_file.to_string_lossy()),
    );
    let runtime = Runtime::script(test, "chosen-pid", &body);
    shim.create(runtime.create(other)).await.unwrap();
    shim.start("other", "").await.unwrap();
    pid_file
}

/// T50: a signal to an exec that has ended does not reach the process that has its pid by now; nor
/// do Kill and Delete of a container whose init has ended.
#[test]
fn signals_do_not_reach_a_reused_pid() {
    in_a_pid_namespace("signals_do_not_reach_a_reused_pid", async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let exec = shim.run(bundle.exec_sh("e", "exit 3")).await as i32;
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 3);
        let mut stranger = take(exec).await;
        for signal in [0, libc::SIGTERM, libc::SIGKILL] {
            shim.kill("c", "e", signal, false).await.unwrap_err();
            shim.kill("c", "e", signal, true).await.unwrap_err();
        }
        shim.delete("c", "e").await.unwrap();
        ended_by_us(&mut stranger);

        let init = shim.init("c").await;
        shim.kill("c", "", libc::SIGKILL, false).await.unwrap();
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 137);
        let mut stranger = take(init).await;
        for all in [false, true] {
            shim.kill("c", "", libc::SIGKILL, all).await.unwrap_err();
        }
        shim.delete("c", "").await.unwrap();
        ended_by_us(&mut stranger);
    });
}

/// D3: `delete` kills the init that it finds in init.pid, unless that is another process by now.
#[test]
fn delete_does_not_kill_a_reused_pid() {
    in_a_pid_namespace("delete_does_not_kill_a_reused_pid", async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let init = shim.init("c").await;
        shim.kill_process().await;
        wait::signal(init, libc::SIGKILL).unwrap();
        wait::ended(init).await;
        // Nobody else reaps here: we are the namespace's init.
        wait::until("init is reaped", || reap(init)).await;
        let mut stranger = take(init).await;
        bundle.start().deleted().await;
        ended_by_us(&mut stranger);
    });
}

fn reap(pid: i32) -> Result<(), String> {
    let mut status = 0;
    // SAFETY: waits for one child and writes one integer.
    match unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } {
        ended if ended == pid => Ok(()),
        -1 => Err(std::io::Error::last_os_error().to_string()),
        _ => Err("it has not ended".into()),
    }
}

/// Nobody else has ended it.
fn ended_by_us(stranger: &mut std::process::Child) {
    assert_eq!(stranger.try_wait().unwrap(), None, "somebody has killed it");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

/// Waits until the shim has reaped `pid`.
async fn reaped(pid: i32) {
    wait::until(&format!("{pid} is reaped"), || match proc::stat(pid) {
        None => Ok(()),
        Some(stat) => Err(format!("it is there, {}", stat.state)),
    })
    .await;
}

/// X3, X10: an exec ends while its runtime is not done yet, and its pid goes to another exec. Each
/// has its own exit.
#[test]
fn exit_of_a_starting_exec_is_not_taken_for_that_of_its_pids_next_owner() {
    let name = "exit_of_a_starting_exec_is_not_taken_for_that_of_its_pids_next_owner";
    in_a_pid_namespace(name, async |test| {
        let gate = Fifo::new(test.dir().join("gate"));
        let (mut open, _hold) = gate.gate();
        let pid_file = test.dir().join("pid");
        let body = format!(
            "[ \"$ACTION\" = exec ] || exec \"$RUNC\" \"$@\"\n{}\
             \"$RUNC\" \"$@\" || exit 1\ncp first.pid {pid}.new; mv {pid}.new {pid}\n\
             read -r line <{gate}\nexit 0",
            make_exec("second", &pid_file.to_string_lossy()),
            pid = pid_file.display(),
            gate = gate.name(),
        );
        let runtime = Runtime::script(test, "slow-exec", &body);
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        shim.create(runtime.create(&bundle)).await.unwrap();
        shim.start("c", "").await.unwrap();
        shim.exec(bundle.exec_sh("first", "exit 3")).await.unwrap();
        let starting = tokio::task::spawn_local({
            let shim = shim.clone();
            async move { shim.start("c", "first").await }
        });
        wait::exists(&pid_file).await;
        let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
        reaped(pid).await;
        shim.exec(bundle.exec("second", &["sleep"])).await.unwrap();
        let second = shim.start("c", "second").await.unwrap().pid as i32;
        assert_eq!(second, pid, "the pid was used again");
        assert!(!starting.is_finished());
        open.write_all(b"go\n").await.unwrap();
        assert_eq!(starting.await.unwrap().unwrap().pid as i32, pid);
        assert_eq!(wait_of(&shim, "first").await, 3);
        // The other lives on, and is the one that signals reach.
        assert!(proc::alive(pid));
        shim.kill("c", "second", libc::SIGTERM, false)
            .await
            .unwrap();
        assert_eq!(wait_of(&shim, "second").await, 143);
        for (exec, status) in [("first", 3), ("second", 143)] {
            assert_eq!(test.events().exit("c", exec).await.exit_status, status);
            assert_eq!(test.events().exits("c", exec), 1);
        }
    });
}

/// X3, X10: the same for an init that ends while `start` is not done yet.
#[test]
fn exit_of_a_starting_init_is_not_taken_for_that_of_its_pids_next_owner() {
    let name = "exit_of_a_starting_init_is_not_taken_for_that_of_its_pids_next_owner";
    in_a_pid_namespace(name, async |test| {
        let group = |id| test.bundle(id).annotation(GROUP, "g");
        let bundle = group("first").sh("exit 4").build();
        let other = group("other").build();
        let (lingering, mut gate) = Runtime::lingering(test, "start");
        let shim = bundle.start().shim().await;
        let pid_file = other_with_a_chosen_pid(test, &shim, &other).await;
        let pid = shim.create(lingering.create(&bundle)).await.unwrap().pid as i32;
        let starting = tokio::task::spawn_local({
            let shim = shim.clone();
            async move { shim.start("first", "").await }
        });
        gate.arrival().await;
        reaped(pid).await;
        fs::write(&pid_file, pid.to_string()).unwrap();
        shim.exec(other.exec("second", &["sleep"])).await.unwrap();
        let second = shim.start("other", "second").await.unwrap().pid as i32;
        assert_eq!(second, pid, "the pid was used again");
        assert!(!starting.is_finished());
        gate.open().await;
        starting.await.unwrap().unwrap();
        assert_eq!(shim.wait("first", "").await.unwrap().exit_status, 4);
        assert_eq!(test.events().exit("first", "first").await.exit_status, 4);
        shim.kill("other", "second", libc::SIGTERM, false)
            .await
            .unwrap();
        assert_eq!(shim.wait("other", "second").await.unwrap().exit_status, 143);
        let exit = test.events().exit("other", "second").await;
        assert_eq!(exit.exit_status, 143);
        assert_eq!(test.events().exits("first", "first"), 1);
        assert_eq!(test.events().exits("other", "second"), 1);
    });
}

/// T50, X10: init has ended, and its exit is held back by an exec that is being started; its pid
/// goes to another child of the shim. A signal to init is not for that one.
#[test]
fn signal_to_an_init_whose_exit_is_held_back_reaches_nobody_else() {
    let name = "signal_to_an_init_whose_exit_is_held_back_reaches_nobody_else";
    in_a_pid_namespace(name, async |test| {
        let group = |id| test.bundle(id).annotation(GROUP, "g");
        let (bundle, other) = (group("first").build(), group("other").build());
        let (gated, mut gate) = Runtime::gated(test, "exec");
        let shim = bundle.start().shim().await;
        let pid_file = other_with_a_chosen_pid(test, &shim, &other).await;
        shim.create(gated.create(&bundle)).await.unwrap();
        let init = shim.start("first", "").await.unwrap().pid as i32;
        shim.exec(bundle.exec("e", &["true"])).await.unwrap();
        let starting = tokio::task::spawn_local({
            let shim = shim.clone();
            async move { shim.start("first", "e").await }
        });
        gate.arrival().await;
        wait::signal(init, libc::SIGKILL).unwrap();
        reaped(init).await;
        fs::write(&pid_file, init.to_string()).unwrap();
        shim.exec(other.exec("second", &["sleep"])).await.unwrap();
        let second = shim.start("other", "second").await.unwrap().pid as i32;
        assert_eq!(second, init, "the pid was used again");
        shim.kill("first", "", libc::SIGTERM, false)
            .await
            .unwrap_err();
        assert!(proc::alive(second));
        gate.open().await;
        starting.await.unwrap().unwrap_err();
        assert_eq!(shim.wait("first", "").await.unwrap().exit_status, 137);
        shim.kill("other", "second", libc::SIGKILL, false)
            .await
            .unwrap();
        let exit = shim.wait("other", "second").await.unwrap();
        assert_eq!(exit.exit_status, 137, "SIGTERM was not for it");
    });
}

async fn wait_of(shim: &Shim, exec: &str) -> u32 {
    let wait = shim.wait("c", exec);
    let answer = wait::within(Duration::from_secs(10), "the exit", wait).await;
    answer.unwrap().exit_status
}
