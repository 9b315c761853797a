// SPDX-License-Identifier: Apache-2.0
//! A file system that stands still holds up nobody who does not need it (docs/architecture.md, "Who
//! may block"): that of the journal and the bundles, and that of the records.

use crate::exec::bundle;
use harness::containerd::capture::Capture;
use harness::disk::{Disk, Served};
use harness::manager::{self, Manager, api::Api};
use harness::proc;
use protos::events::TaskExit;
use protos::services::containers::v1::{ListContainersRequest, ListContainersResponse};
use protos::services::events::v1::{PublishRequest, SubscribeRequest};
use protos::services::version::v1::VersionResponse;
use protos::{Any, any};
use serde_json::json;
use std::time::{Duration, Instant};
use tonic::Code;

/// How long an answer may take that waits for nothing, on a busy machine; the disk stands still for
/// longer.
const AT_ONCE: Duration = Duration::from_secs(10);

/// What `call` answers, which must not wait for a disk.
#[track_caller]
fn at_once<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let answer = call();
    let took = begin.elapsed();
    assert!(took < AT_ONCE, "{what} took {took:?}");
    answer
}

fn publish(api: &Api) -> Result<(), tonic::Status> {
    let request = PublishRequest {
        topic: "/tests/event".into(),
        event: Some(Any::default()),
    };
    api.call("events.v1.Events/Publish", request)
}

fn version(api: &Api) {
    at_once("Version", || {
        api.call::<VersionResponse>("version.v1.Version/Version", ())
            .expect("a version")
    });
}

/// Makes the directory of that name a disk, which the daemon then finds.
fn disk(manager: &mut Manager, name: &str) -> Disk {
    manager.kill();
    let disk = Disk::within(manager.dir(), manager.dir().join(name));
    manager.restart();
    disk
}

/// The disk of the daemon's goes away, as at the machine's end.
fn gone(manager: &mut Manager, disk: Disk) {
    manager.until("all shims gone", |it| it.shims().is_empty().then_some(()));
    manager.kill();
    drop(disk);
    manager.restart();
}

/// The next exit of a container that a subscriber is told.
fn exit_of(api: &Api, stream: &mut tonic::Streaming<protos::types::Envelope>, id: &str) -> u32 {
    loop {
        let envelope = api.next(stream).expect("an event").expect("an event");
        let exit = envelope.event.as_ref().and_then(any::unpack::<TaskExit>);
        if let Some(Ok(exit)) = exit
            && exit.container_id == id
        {
            return exit.exit_status;
        }
    }
}

/// The rule itself: in a container's life the loop asks the kernel for no file but those that the
/// kernel makes up.
#[test]
fn loop_names_no_file_that_may_lie_on_a_disk() {
    manager::on(|manager| {
        let mut names = manager.names_of(|manager| {
            manager
                .run(&["-d", "--restart", "no"], "c", &["sleep", "1000"])
                .ok();
            manager.dunnage(&["exec", "c", "true"]).ok();
            manager.dunnage(&["events", "--no-follow"]).ok();
            manager.dunnage(&["ns", "ls"]).ok();
            manager.dunnage(&["info"]).ok();
            manager.dunnage(&["kill", "--signal", "KILL", "c"]).ok();
            manager.dunnage(&["wait", "c"]).ok();
            manager.dunnage(&["delete", "--force", "c"]).ok();
        });
        assert!(!names.is_empty(), "nothing was traced");
        names.retain(|name| !name.starts_with("/proc/") && name != "/dev/null");
        assert_eq!(names, [] as [String; 0]);
    });
}

/// The journal and the bundles: what is about neither is answered, and in the end every exit is
/// journalled and told once.
#[test]
fn state_on_a_disk_that_stands_still_holds_up_nobody() {
    manager::on(|manager| {
        let disk = disk(manager, "s");
        for id in ["told", "reaped", "stays"] {
            manager.run(&["-d"], id, &["sleep", "1000"]).ok();
        }
        let api = Api::new(manager);
        let mut events = api.subscribe(SubscribeRequest {
            filters: vec![format!("namespace=={}", manager.namespace())],
        });
        let shim = manager.shim_of("reaped");

        let frozen = disk.freeze();
        let refused = at_once("Publish", || publish(&api)).expect_err("a refusal");
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        version(&api);
        at_once("ls", || assert_eq!(manager.status("stays"), "running"));
        at_once("ps", || manager.dunnage(&["ps", "stays"]).ok());
        // One exit that its shim tells, one that only the daemon knows.
        at_once("kill", || {
            manager.dunnage(&["kill", "--signal", "KILL", "told"]).ok()
        });
        let pid = manager.pid_of("reaped");
        harness::wait::signal(shim, libc::SIGKILL).expect("kill");
        let ended = harness::containerd::ctr::ends_within(shim, AT_ONCE);
        assert!(ended, "the shim goes on");
        version(&api);
        at_once("ls", || assert_eq!(manager.status("stays"), "running"));
        assert!(proc::alive(pid), "it goes on until its bundle answers");
        drop(frozen);

        let statuses = ["told", "reaped"].map(|id| {
            manager.until("its exit", |it| (!it.exits(id).is_empty()).then_some(()));
            manager.exits(id)
        });
        assert_eq!(statuses[0], [(137, "shim".to_owned())]);
        assert_eq!(statuses[1].len(), 1, "{statuses:?}");
        assert_eq!(statuses[1][0].0, 137, "{statuses:?}");
        assert_eq!(exit_of(&api, &mut events, "told"), 137);
        manager.until("the dead one buried", |it| {
            (it.status("reaped") == "-").then_some(())
        });
        manager.until("one thread", |it| {
            (proc::status(it.pid(), "Threads") == Some(1)).then_some(())
        });
        for id in ["told", "reaped", "stays"] {
            manager.dunnage(&["delete", "--force", id]).ok();
        }
        gone(manager, disk);
    });
}

/// While the journal's disk stands still it is not known whose a child was that ends; and a container
/// that has lost its shim leaves the daemon as many orphans as it likes: they are reaped when there is
/// room to keep their ends. Who is known is reaped at once, and its end is not lost.
#[test]
fn orphans_stay_zombies_while_the_journals_disk_stands_still() {
    /// More than a daemon that reaps them all has at any time.
    const MANY: usize = 1000;
    manager::with("[shim]\non_death = \"keep\"\n", |manager| {
        let disk = disk(manager, "s");
        let bundle = bundle(manager, |spec| {
            // As many as it takes, and no more: the machine has only so many pids.
            let script =
                "n=0; while [ $n -lt 900 ]; do (: & : & : & : & : & : & : & :&); n=$((n + 1)); done
                          sleep 100000";
            spec["process"]["args"] = json!(["sh", "-c", script]);
            let namespaces = spec["linux"]["namespaces"].as_array_mut();
            let namespaces = namespaces.expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != "pid");
        });
        manager
            .dunnage(&["run", "-d", "--bundle", &bundle, "forker"])
            .ok();
        let pid = manager.pid_of("forker");
        harness::wait::signal(manager.shim_of("forker"), libc::SIGKILL).expect("kill");
        manager.until("the loss noticed", |it| {
            it.log().contains("goes on without a shim").then_some(())
        });
        let api = Api::new(manager);

        let frozen = disk.freeze();
        let refused = at_once("Publish", || publish(&api)).expect_err("a refusal");
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        manager.until("orphans that are not reaped", |it| {
            (proc::zombies(it.pid()).len() >= MANY).then_some(())
        });
        at_once("kill", || {
            manager
                .dunnage(&["kill", "--signal", "KILL", "forker"])
                .ok()
        });
        manager.until("the container reaped", |_| {
            proc::stat(pid).is_none().then_some(())
        });
        assert!(proc::zombies(manager.pid()).len() >= MANY, "there was room");
        assert!(manager.exits("forker").is_empty(), "told, and not written");
        drop(frozen);
        manager.until("its exit", |it| {
            (!it.exits("forker").is_empty()).then_some(())
        });
        assert_eq!(manager.exits("forker"), [(137, "reaped".to_owned())]);
        manager.until("all are reaped", |it| {
            proc::zombies(it.pid()).is_empty().then_some(())
        });
        manager.dunnage(&["delete", "--force", "forker"]).ok();
        gone(manager, disk);
    });
}

/// Records, and a journal that is to survive a power loss: tasks are killed and looked at all the
/// same; what changes a record waits.
#[test]
fn root_on_a_disk_that_stands_still_holds_up_no_task() {
    manager::with("[journal]\nwhere = \"disk\"\n", |manager| {
        let disk = disk(manager, "r");
        for id in ["ends", "stays"] {
            manager.run(&["-d"], id, &["sleep", "1000"]).ok();
        }
        let api = Api::new(manager);
        let mut events = api.subscribe(SubscribeRequest {
            filters: vec![format!("namespace=={}", manager.namespace())],
        });

        let frozen = disk.freeze();
        at_once("kill", || {
            manager.dunnage(&["kill", "--signal", "KILL", "ends"]).ok()
        });
        manager.until("its end", |it| {
            (it.status("ends") == "stopped").then_some(())
        });
        assert!(manager.exits("ends").is_empty(), "told, and not written");
        version(&api);
        std::thread::scope(|scope| {
            let maker = Api::new(manager);
            let container = maker.plain_container("late", &["true"]);
            let made = scope.spawn(move || maker.create_container(container));
            // By then the other is on its way.
            let refused = at_once("Publish", || publish(&api)).expect_err("a refusal");
            assert_eq!(refused.code(), Code::Unavailable, "{refused}");
            let was_made = made.is_finished();
            drop(frozen);
            assert!(!was_made, "on a disk that stands still");
            made.join().expect("no panic").expect("a record");
        });

        manager.until("its exit", |it| {
            (!it.exits("ends").is_empty()).then_some(())
        });
        assert_eq!(manager.exits("ends"), [(137, "shim".to_owned())]);
        assert_eq!(exit_of(&api, &mut events, "ends"), 137);
        for id in ["ends", "stays", "late"] {
            manager.dunnage(&["delete", "--force", id]).ok();
        }
        gone(manager, disk);
    });
}

/// A server that is gone: also reading waits, and a task can be killed nevertheless.
#[test]
fn root_whose_server_has_stopped_holds_up_no_task() {
    manager::on(|manager| {
        manager.kill();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        let (place, namespace) = (manager.dir().to_owned(), manager.namespace());
        let root = place.join("r");
        let served = runtime.block_on(Served::within(&place, &namespace, root));
        manager.restart();
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        let pid = manager.pid_of("c");
        let api = Api::new(manager);

        let stopped = served.stop();
        let kill = protos::services::tasks::v1::KillRequest {
            container_id: "c".into(),
            signal: 9,
            ..Default::default()
        };
        at_once("Kill", || {
            api.call::<()>("tasks.v1.Tasks/Kill", kill).expect("killed")
        });
        let ended = harness::containerd::ctr::ends_within(pid, AT_ONCE);
        assert!(ended, "it was killed");
        let list = ListContainersRequest::default();
        let refused = api.call::<ListContainersResponse>("containers.v1.Containers/List", list);
        let refused = refused.expect_err("a refusal");
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert!(refused.message().contains("does not answer"), "{refused}");
        version(&api);
        drop(stopped);

        manager.until("its exit", |it| (!it.exits("c").is_empty()).then_some(()));
        assert_eq!(manager.exits("c"), [(137, "shim".to_owned())]);
        manager.dunnage(&["delete", "--force", "c"]).ok();
        manager.until("all shims gone", |it| it.shims().is_empty().then_some(()));
        manager.kill();
        drop(served);
        manager.restart();
    });
}

/// Another image of the daemon does not come while a disk stands still, and harms nothing.
#[test]
fn renewal_waits_for_no_disk() {
    manager::on(|manager| {
        let disk = disk(manager, "s");
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        let api = Api::new(manager);
        let frozen = disk.freeze();
        publish(&api).expect_err("a refusal");
        harness::wait::signal(manager.pid(), libc::SIGHUP).expect("SIGHUP");
        manager.until("a refusal", |it| {
            it.log()
                .contains("does not start anew: a file system did not answer")
                .then_some(())
        });
        version(&api);
        at_once("ls", || assert_eq!(manager.status("c"), "running"));
        drop(frozen);
        publish(&api).expect("published");
        manager.renew();
        assert_eq!(manager.status("c"), "running");
        manager.dunnage(&["delete", "--force", "c"]).ok();
        gone(manager, disk);
    });
}

/// Who reads the daemon's stderr has stopped: it is answered all the same, and what was logged comes
/// when somebody reads.
#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    manager::with("[log]\nlevel = \"debug\"\n", |manager| {
        manager.kill();
        let log = manager.restart_unread();
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        at_once("ls", || assert_eq!(manager.status("c"), "running"));
        manager.dunnage(&["delete", "--force", "c"]).ok();
        let log = Capture::of(log);
        log.wait_for("what it said first", |log| {
            log.contains(" serves /").then_some(())
        });
        log.wait_for("what it said last", |log| {
            log.contains("Tasks/Delete").then_some(())
        });
        manager.until("one thread", |it| {
            (proc::status(it.pid(), "Threads") == Some(1)).then_some(())
        });
    });
}
