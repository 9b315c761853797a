// SPDX-License-Identifier: Apache-2.0
//! What dies, dies whole: QEMU, the file server or the shim, killed without warning (V6, V8, V11).

use crate::child;
use harness::bundle::bind;
use harness::meddler::Meddler;
use harness::{Code, Shim, peers, proc, refused, wait};
use protos::task_types::Status as State;
use std::fs;

/// What reads a file takes its time, in microseconds.
const SLOW_READS: &str = "preadv,preadv2,pread64:delay_exit=20000";

pub fn qemu(shim: &Shim) -> i32 {
    child(shim, "-no-user-config")
}

/// QEMU killed: TaskExit 137 for every process, init last; every call has an answer; the
/// container can be deleted. The file server killed: the same.
#[test]
fn a_vm_that_dies_ends_its_containers_and_can_be_deleted() {
    crate::run(async |test| {
        for (id, of) in [
            ("q", qemu as fn(&Shim) -> i32),
            ("f", |shim| child(shim, "fsd")),
        ] {
            let bundle = test.bundle(id).build();
            let shim = bundle.running().await;
            shim.run(bundle.exec("e", &["sleep", "100000"])).await;
            shim.exec(bundle.exec("never", &["true"])).await.unwrap();
            let vm = (qemu(&shim), child(&shim, "fsd"));
            wait::signal(of(&shim), libc::SIGKILL).unwrap();
            assert_eq!(test.events().exit(id, "e").await.exit_status, 137);
            assert_eq!(test.events().exit(id, id).await.exit_status, 137);
            let exits: Vec<String> = test
                .events()
                .about(id)
                .iter()
                .filter_map(|e| match &e.kind {
                    harness::events::Kind::Exit(exit) => Some(exit.id.clone()),
                    _ => None,
                })
                .collect();
            assert_eq!(exits, ["e", id], "init's is the last, each once");
            assert_eq!(shim.wait(id, "").await.unwrap().exit_status, 137);
            assert_eq!(shim.wait(id, "e").await.unwrap().exit_status, 137);
            let state = shim.state(id, "").await.unwrap();
            assert_eq!((state.status(), state.exit_status), (State::Stopped, 137));
            assert_eq!(
                refused(shim.kill(id, "", 9, false).await).code,
                Code::NotFound
            );
            let late = refused(shim.exec(bundle.exec("late", &["true"])).await);
            assert_eq!(late.message, "cannot exec in a stopped state");
            for pid in [vm.0, vm.1] {
                wait::ended(pid).await;
            }
            let deleted = shim.delete(id, "").await.unwrap();
            assert_eq!(deleted.exit_status, 137);
            assert!(!test.vm_dir(id).exists());
            shim.shutdown(id).await.unwrap();
            shim.stopped().await;
        }
    });
}

/// What becomes of QEMU is in the log, whatever else is heard of first.
#[test]
fn how_qemu_ended_is_told() {
    crate::run(async |test| {
        for n in 0..3 {
            let id = format!("c{n}");
            let bundle = test.bundle(&id).build();
            let shim = bundle.running().await;
            wait::signal(qemu(&shim), libc::SIGKILL).unwrap();
            assert_eq!(test.events().exit(&id, &id).await.exit_status, 137);
            shim.delete(&id, "").await.unwrap();
            shim.shutdown(&id).await.unwrap();
            shim.stopped().await;
            let log = shim.log();
            assert!(log.contains(": QEMU ended: signal: killed"), "{log}");
        }
    });
}

/// The shim killed: its VM dies with it, and `delete` leaves nothing and tells 137.
#[test]
fn a_shim_that_dies_takes_its_vm_along_and_delete_clears_up() {
    crate::run(async |test| {
        let bundle = test.bundle("c").share().build();
        let shim = bundle.running().await;
        let vm = [qemu(&shim), child(&shim, "fsd")];
        // V12: QEMU listens there, not the shim.
        assert!(test.vm_dir("c").join("agent.sock").exists());
        shim.kill_process().await;
        for pid in vm {
            wait::ended(pid).await;
        }
        let deleted = bundle.start().deleted().await;
        assert_eq!(deleted.exit_status, 137);
        assert!(!test.vm_dir("c").exists());
        let again = bundle.start().deleted().await;
        assert_eq!(again.exit_status, 137, "delete may be called again");
    });
}

/// A shim that is stopped, not dead, does not answer: `delete` ends its VM all the same.
#[test]
fn delete_ends_the_vm_of_a_shim_that_does_not_answer() {
    crate::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let vm = qemu(&shim);
        wait::signal(shim.pid(), libc::SIGSTOP).unwrap();
        bundle.start().deleted().await;
        // Its parent can't reap it, but it is dead.
        let gone = || match fs::read_to_string(format!("/proc/{vm}/stat")) {
            Ok(stat) if !stat.contains(") Z ") => Err(stat),
            _ => Ok(()),
        };
        wait::until("the end of QEMU", gone).await;
        shim.kill_process().await;
    });
}

/// A container that ends while the host still reads its program ahead ends as it says, and what else is
/// in the VM does not notice. Linux has a bug there: see `guest/src/roots.rs`.
#[test]
fn an_end_while_the_program_is_read_ends_one_container_alone() {
    crate::run(async |test| {
        let group = |id: &str| {
            let builder = test.bundle(id);
            builder.annotation("io.containerd.runc.v2.group", "g")
        };
        let keeper = group("keeper").build();
        let shim = keeper.running().await;
        let vm = qemu(&shim);
        let slow = Meddler::new(test, child(&shim, "fsd"), SLOW_READS);
        for round in 0..5 {
            let id = format!("c{round}");
            // Another program each time: what the guest has read it need not read again.
            let root = test.dir().join(&id);
            for dir in ["dev", "proc", "sys"] {
                fs::create_dir_all(root.join(dir)).unwrap();
            }
            fs::copy(peers::shim(), root.join("shim")).unwrap();
            let builder = group(&id).rootfs(vec![bind(&root)]);
            let bundle = builder.args(&["/shim", "-v"]).build();
            bundle.start().shim().await;
            shim.create(bundle.create()).await.unwrap();
            shim.start(&id, "").await.unwrap();
            assert_eq!(test.events().exit(&id, &id).await.exit_status, 0, "{id}");
            shim.delete(&id, "").await.unwrap();
        }
        drop(slow);
        assert!(proc::alive(vm));
        let state = shim.state("keeper", "").await.unwrap();
        assert_eq!(state.status(), State::Running);
        shim.kill("keeper", "", libc::SIGKILL, false).await.unwrap();
        test.events().exit("keeper", "keeper").await;
        shim.delete("keeper", "").await.unwrap();
        shim.stopped().await;
    });
}
