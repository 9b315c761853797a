// SPDX-License-Identifier: Apache-2.0
//! A shim that is killed is brought back, and finds its VM as it was (V14, V15).

use harness::bundle::Bundle;
use harness::events::{Event, Kind};
use harness::stdio::{Fifos, Stdio};
use harness::sweep::{Point, Strace, parse};
use harness::upgrade::{copy_of_the_binary, upgrade};
use harness::{Code, Shim, Test, proc, refused, wait};
use protos::task_types::Status as State;
use protos::ttrpc::CallError;
use std::fs;

/// A shim that can be brought back, of a container that runs.
async fn kept(bundle: &Bundle) -> Shim {
    let start = bundle.start().env("DUNNAGE_ON_SHIM_DEATH", "adopt");
    let shim = start.shim().await;
    shim.create(bundle.create()).await.unwrap();
    shim.start(&bundle.id, "").await.unwrap();
    shim
}

/// The shim that answers where `dead` did.
async fn successor(bundle: &Bundle, dead: &Shim) -> Shim {
    wait::ended(dead.pid()).await;
    let next = Shim::connect(bundle, dead.answer().clone()).await;
    assert_ne!(next.pid(), dead.pid());
    next
}

pub async fn kill(bundle: &Bundle, shim: &Shim) -> Shim {
    wait::signal(shim.pid(), libc::SIGKILL).unwrap();
    successor(bundle, shim).await
}

/// Ends the container and its shim; nothing is left.
pub async fn end(test: &Test, bundle: &Bundle, shim: &Shim, vm: u32) {
    let id = &bundle.id;
    let keeper = proc::stat(shim.pid()).unwrap().ppid;
    shim.kill(id, "", 9, false).await.unwrap();
    assert_eq!(shim.wait(id, "").await.unwrap().exit_status, 137);
    assert_eq!(shim.delete(id, "").await.unwrap().exit_status, 137);
    wait::ended(vm as i32).await;
    assert!(!test.vm_dir(id).exists());
    shim.shutdown(id).await.unwrap();
    for pid in [shim.pid(), keeper] {
        wait::ended(pid).await;
    }
    assert_eq!(test.events().exits(id, id), 1);
}

/// Processes run on, their output comes on, without an end between, and each exit is told once with its
/// true status, also one that came while there was no shim; and all that a VM's shim does is done by the
/// next.
#[test]
fn a_killed_shim_is_brought_back_to_its_vm() {
    crate::run(async |test| {
        let bundle = test.bundle("c").share().build();
        let shim = kept(&bundle).await;
        let vm = shim.state("c", "").await.unwrap().pid;
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let input = fifos.stdin.writer();
        let script = "read x; echo first $x; read x; echo second $x; exit 7";
        shim.run(bundle.exec_sh("talk", script).fifos(&fifos)).await;
        let mut input = input.await;
        input.write("a\n").await;
        assert_eq!(out.line().await, "first a");
        let [go, done] = ["go", "done"].map(|name| test.share().join(name));
        let waits = "until test -e /mnt/go; do usleep 20000; done; echo >/mnt/done; exit 9";
        shim.run(bundle.exec_sh("meanwhile", waits)).await;

        // It ends while nobody is there to be told.
        let keeper = proc::stat(shim.pid()).unwrap().ppid;
        wait::signal(keeper, libc::SIGSTOP).unwrap();
        wait::signal(shim.pid(), libc::SIGKILL).unwrap();
        fs::write(&go, "").unwrap();
        wait::until("the end of it", || match done.exists() {
            true => Ok(()),
            false => Err("it runs".into()),
        })
        .await;
        wait::signal(keeper, libc::SIGCONT).unwrap();
        let shim = successor(&bundle, &shim).await;

        let state = shim.state("c", "").await.unwrap();
        assert_eq!((state.status(), state.pid), (State::Running, vm));
        assert_eq!(test.events().exit("c", "meanwhile").await.exit_status, 9);
        assert_eq!(shim.wait("c", "meanwhile").await.unwrap().exit_status, 9);
        input.write("b\n").await;
        assert_eq!(out.line().await, "second b");
        assert_eq!(shim.wait("c", "talk").await.unwrap().exit_status, 7);
        assert_eq!(out.text().await, "", "its end");
        let said = crate::said(&shim, &bundle, bundle.exec_sh("new", "echo here"));
        assert_eq!(said.await, "here\n");
        assert!(shim.stats("c").await.unwrap().stats.is_some());

        // One that had not booted the VM is upgraded, and killed then; a frozen container stays so.
        shim.pause("c").await.unwrap();
        let output = upgrade(test, &copy_of_the_binary(test, "a")).await;
        assert_eq!(output.code(), Some(0), "{output:?}");
        let shim = kill(&bundle, &shim).await;
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Paused);
        shim.resume("c").await.unwrap();
        for exec in ["meanwhile", "talk", "new"] {
            shim.delete("c", exec).await.unwrap();
            assert_eq!(test.events().exits("c", exec), 1, "{exec}");
        }
        end(test, &bundle, &shim, vm).await;
    });
}

/// What cannot be gone on with ends: a VM that is gone, and one whose keeper and shim both die.
#[test]
fn a_vm_without_a_shim_and_a_keeper_is_deletes_to_end() {
    crate::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = kept(&bundle).await;
        let vm = shim.state("c", "").await.unwrap().pid as i32;
        let keeper = proc::stat(shim.pid()).unwrap().ppid;
        wait::signal(keeper, libc::SIGKILL).unwrap();
        wait::ended(shim.pid()).await;
        let deleted = bundle.start().deleted().await;
        assert_eq!(deleted.exit_status, 137);
        wait::ended(vm).await;
        assert!(!test.vm_dir("c").exists());

        // `delete` of a shim that would be brought back ends that, too.
        let bundle = test.bundle("d").build();
        let shim = kept(&bundle).await;
        let vm = shim.state("d", "").await.unwrap().pid as i32;
        let keeper = proc::stat(shim.pid()).unwrap().ppid;
        bundle.start().deleted().await;
        for pid in [vm, shim.pid(), keeper] {
            wait::ended(pid).await;
        }
        assert!(!test.vm_dir("d").exists());
    });
}

/// The life of an exec, told from outside: what its client knows of it.
struct Life {
    started: bool,
    deleted: bool,
}

/// Adds an exec, starts it, waits for its exit and deletes it, as far as the shim answers.
async fn live(bundle: &Bundle, shim: &Shim, exec: &str) -> (Life, Result<(), CallError>) {
    let mut life = Life {
        started: false,
        deleted: false,
    };
    let done = async {
        shim.exec(bundle.exec_sh(exec, "exit 3")).await?;
        shim.start("c", exec).await?;
        life.started = true;
        assert_eq!(shim.wait("c", exec).await?.exit_status, 3);
        shim.delete("c", exec).await?;
        life.deleted = true;
        Ok(())
    };
    let done = done.await;
    (life, done)
}

/// The next shim goes on from what the client knows; the exit is told once.
async fn after(test: &Test, shim: &Shim, exec: &str, life: Life) {
    if life.started {
        match shim.wait("c", exec).await {
            Ok(exit) => assert_eq!(exit.exit_status, 3),
            // Its Delete was under way.
            Err(CallError::Status(status)) => assert_eq!(status.code, Code::NotFound),
            Err(e) => panic!("{e}"),
        }
        assert_eq!(test.events().exit("c", exec).await.exit_status, 3);
    }
    if !life.deleted {
        match shim.delete("c", exec).await {
            Ok(deleted) if life.started => assert_eq!(deleted.exit_status, 3),
            Ok(_) => {}
            Err(CallError::Status(status)) if status.code == Code::NotFound => {}
            // It runs, although nobody heard so.
            Err(CallError::Status(_)) => {
                assert_eq!(shim.wait("c", exec).await.unwrap().exit_status, 3);
                assert_eq!(shim.delete("c", exec).await.unwrap().exit_status, 3);
            }
            Err(e) => panic!("{e}"),
        }
    }
    // Whatever comes late has come: events come in their order.
    let marker = format!("{exec}-over");
    live_marker(shim, &marker).await;
    let started = |e: &Event| matches!(&e.kind, Kind::ExecStarted(s) if s.exec_id == exec);
    let exits = exits(test, "c", exec).len();
    let starts = test.events().count(started);
    assert!(exits <= 1, "{exits} exits");
    assert_eq!(usize::from(starts > 0), exits, "{starts} starts");
    assert!(!life.started || exits == 1);
}

/// The exits of a process that differ. What had arrived when the shim died, but that it had is not written
/// down, comes once more as it was: `dunnage` knows it.
fn exits(test: &Test, container: &str, process: &str) -> Vec<Event> {
    let mut exits = test.events().all();
    exits.retain(|e| e.exit_of(container, process).is_some());
    exits.dedup_by(|a, b| a.kind == b.kind && a.timestamp == b.timestamp);
    exits
}

/// Something whose events come after all that were on their way.
async fn live_marker(shim: &Shim, name: &str) {
    let bundle = shim.bundle();
    shim.run(bundle.exec(name, &["true"])).await;
    bundle.test.events().exit("c", name).await;
    shim.delete("c", name).await.unwrap();
}

/// One life of what is swept through, and what is looked at afterwards.
trait Swept {
    async fn live(&self, shim: &Shim, name: &str) -> (Life, Result<(), CallError>);
    async fn after(&self, shim: &Shim, name: &str, life: Life);
}

struct Execs<'a>(&'a Test, &'a Bundle);

impl Swept for Execs<'_> {
    async fn live(&self, shim: &Shim, name: &str) -> (Life, Result<(), CallError>) {
        live(self.1, shim, name).await
    }

    async fn after(&self, shim: &Shim, name: &str, life: Life) {
        after(self.0, shim, name, life).await;
    }
}

/// Containers beside the first in the VM.
struct Seconds<'a>(&'a Test, Bundle);

impl Swept for Seconds<'_> {
    async fn live(&self, shim: &Shim, _: &str) -> (Life, Result<(), CallError>) {
        let (bundle, id) = (&self.1, &self.1.id);
        let mut life = Life {
            started: false,
            deleted: false,
        };
        let done = async {
            shim.create(bundle.create()).await?;
            shim.start(id, "").await?;
            life.started = true;
            assert_eq!(shim.wait(id, "").await?.exit_status, 3);
            shim.delete(id, "").await?;
            life.deleted = true;
            Ok(())
        };
        let done = done.await;
        (life, done)
    }

    async fn after(&self, shim: &Shim, name: &str, life: Life) {
        let id = &self.1.id;
        if !life.deleted {
            // Whatever has come of it, it can be ended.
            if !life.started {
                let _ = shim.kill(id, "", 9, true).await;
            }
            match shim.wait(id, "").await {
                Ok(exit) if life.started => assert_eq!(exit.exit_status, 3),
                _ => {}
            }
            if let Err(e) = shim.delete(id, "").await {
                assert_eq!(refused::<()>(Err(e)).code, Code::NotFound);
            }
        }
        live_marker(shim, name).await;
        let exits = exits(self.0, id, id);
        assert!(exits.len() <= 1, "{exits:?}");
        if let (true, [exit]) = (life.started, exits.as_slice()) {
            assert_eq!(exit.exit_of(id, id).unwrap().exit_status, 3);
        }
        assert!(!life.started || exits.len() == 1, "{exits:?}");
        // And made again.
        let (again, done) = self.live(shim, name).await;
        done.unwrap();
        assert!(again.deleted);
        live_marker(shim, &format!("{name}-again")).await;
        self.0.events().forget();
    }
}

/// A shim is killed before each `step`th system call of its loop in a life of what `swept` says, from the
/// `first` on.
async fn sweep(
    bundle: &Bundle,
    mut shim: Shim,
    swept: &impl Swept,
    first: usize,
    step: usize,
) -> Shim {
    let test = &bundle.test;
    let log = test.dir().join("strace");
    let words = ["-o".to_owned(), log.to_string_lossy().into_owned()];
    let mut strace = Strace::attach(shim.pid(), &words).await;
    let (life, done) = swept.live(&shim, "undisturbed").await;
    done.unwrap();
    strace.detach().await;
    swept.after(&shim, "undisturbed", life).await;
    let points = parse(&fs::read_to_string(&log).unwrap());
    let chosen: Vec<_> = points.iter().skip(first).step_by(step).collect();
    let mut killed = 0;
    for (n, point) in chosen.iter().enumerate() {
        let Point::Call { name, nth } = point else {
            continue;
        };
        let inject = format!("inject={name}:signal=SIGKILL:when={nth}");
        let options = ["-o", "/dev/null", "-e", &inject].map(str::to_owned);
        let mut strace = Strace::attach(shim.pid(), &options).await;
        let of = format!("e{n}");
        let (life, done) = swept.live(&shim, &of).await;
        strace.detach().await;
        if let Err(e) = done {
            assert!(matches!(e, CallError::Closed), "{point}: {e}");
        }
        if !proc::alive(shim.pid()) || shim.connect_call("c").await.is_err() {
            killed += 1;
            shim = successor(bundle, &shim).await;
        }
        let begin = std::time::Instant::now();
        swept.after(&shim, &of, life).await;
        println!("{point}: {:.1} s", begin.elapsed().as_secs_f32());
    }
    let (tried, all) = (chosen.len(), points.len());
    println!("{killed} kills at {tried} of {all} points");
    assert!(killed * 2 > tried, "{killed} of {tried}");
    shim
}

/// No exit is lost, and none comes twice, wherever the shim is killed (V14).
#[test]
fn a_shim_may_be_killed_anywhere_in_the_life_of_an_exec() {
    crate::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = kept(&bundle).await;
        let vm = shim.state("c", "").await.unwrap().pid;
        let shim = sweep(&bundle, shim, &Execs(test, &bundle), 1, 2).await;
        end(test, &bundle, &shim, vm).await;
    });
}

/// Nor is anything left of a container whose Create was under way, and what is in the VM beside it goes
/// on (V14).
#[test]
fn a_shim_may_be_killed_anywhere_in_the_life_of_a_second_container() {
    crate::run(async |test| {
        let group = |id: &str| {
            let builder = test.bundle(id);
            builder.annotation("io.containerd.runc.v2.group", "g")
        };
        let bundle = group("c").build();
        let shim = kept(&bundle).await;
        let vm = shim.state("c", "").await.unwrap().pid;
        let second = group("second").sh("exit 3").build();
        second.start().answer().await;
        let shim = sweep(&bundle, shim, &Seconds(test, second), 4, 9).await;
        end(test, &bundle, &shim, vm).await;
    });
}
