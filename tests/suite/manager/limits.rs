// SPDX-License-Identifier: Apache-2.0
//! What one container, shim, namespace or client may cost the daemon: docs/limits.md.

use harness::manager::{self, Manager, api::Api};
use harness::proc;
use protos::events::TaskExit;
use protos::services::events::v1::{PublishRequest, SubscribeRequest};
use protos::{Any, any};
use std::fs::{self, OpenOptions};
use std::io::Write;
use tonic::Code;

/// An event that is so long, of no kind that anybody knows.
fn event(length: usize) -> PublishRequest {
    PublishRequest {
        topic: "/tests/long".into(),
        event: Some(Any {
            type_url: "test".into(),
            value: vec![b'x'; length],
        }),
    }
}

fn publish(api: &Api, length: usize) -> Result<(), tonic::Status> {
    api.call::<()>("events.v1.Events/Publish", event(length))
}

/// A torn record whose payload is full of heads of records that would all reach to its end: looking
/// for the next good one took 15 minutes for 8 MiB, and would have taken days for these.
#[test]
fn a_crafted_journal_does_not_keep_the_daemon_from_starting() {
    manager::on(|manager| {
        manager
            .run(&["--rm"], "c", &["sh", "-c", "exit 7"])
            .exits(7);
        manager.kill();
        let dir = manager.state().join("journal");
        let segment = fs::read_dir(dir).expect("the journal").next();
        let segment = segment.expect("a segment").expect("an entry").path();
        const LENGTH: usize = 64 << 20;
        const LONGEST: usize = 4 << 20;
        let mut crafted = vec![0; LENGTH];
        for at in (0..LENGTH - 16).step_by(16) {
            let reach = (LENGTH - at - 12).min(LONGEST) as u32;
            crafted[at..at + 8].copy_from_slice(b"\xf5dnjrnl\xfa");
            crafted[at + 8..at + 12].copy_from_slice(&reach.to_le_bytes());
        }
        let mut file = OpenOptions::new().append(true).open(segment);
        let file = file.as_mut().expect("the segment");
        file.write_all(&crafted).expect("the crafted record");
        // It has a minute, on a busy machine.
        manager.restart();
        assert_eq!(manager.exits("c"), [(7, "shim".to_owned())]);
    });
}

/// What is acknowledged is there after a restart; what is not is named.
#[test]
fn an_event_is_stored_or_refused_by_name() {
    manager::on(|manager| {
        let api = Api::new(manager);
        for length in [9 << 20, 4 << 20] {
            let e = publish(&api, length).expect_err("a refusal");
            assert_eq!(e.code(), Code::ResourceExhausted, "{e}");
            assert!(e.message().contains("longer than 4194304"), "{e}");
        }
        publish(&api, (4 << 20) - 4096).expect("as long as may be");
        manager.kill();
        manager.restart();
        let kept = manager.json(&["events", "--no-follow"]);
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0]["topic"], "/tests/long");
    });
}

/// The FIFO that its shim was to log to.
#[test]
fn a_container_that_cannot_be_created_leaves_no_file_open() {
    manager::on(|manager| {
        let options = ["-d", "--runtime", "/bin/false"];
        manager.run(&options, "c", &["true"]).exits(125);
        manager.until("closed files", |it| {
            let files = proc::fds(it.pid())?;
            let is_left = files.values().any(|path| path.contains("c/log"));
            (!is_left).then_some(())
        });
    });
}

/// Neither the journal's limits nor those who flood it make a namespace lose its own.
#[test]
fn a_namespace_does_not_push_out_the_exits_of_another() {
    let config = "[journal]\nmax_records = 3000\nmax_size = 4194304\n";
    manager::with(config, |manager| {
        manager
            .run(&["--rm"], "c", &["sh", "-c", "exit 7"])
            .exits(7);
        let loud = Api::at(&manager.socket(), "loud");
        for _ in 0..4000 {
            publish(&loud, 4096).expect("published");
        }
        assert_eq!(manager.exits("c"), [(7, "shim".to_owned())]);
        let files = fs::read_dir(manager.state().join("journal")).expect("the journal");
        let bytes: u64 = files
            .map(|file| file.expect("an entry").metadata().expect("its size").len())
            .sum();
        assert!(bytes < 6 << 20, "{bytes} bytes for a limit of 4 MiB");
    });
}

fn exit_of(id: &str) -> PublishRequest {
    let exit = TaskExit {
        container_id: id.into(),
        id: id.into(),
        pid: 4_000_000,
        exit_status: 7,
        exited_at: None,
    };
    PublishRequest {
        topic: "/tasks/exit".into(),
        event: Some(any::pack(&exit)),
    }
}

/// R2, too: what a subscriber that is too slow was not given, it is given when it comes again. Fifty
/// of them had cost 121 MB.
#[test]
fn subscribers_that_do_not_read_cost_little_and_lose_no_exit() {
    manager::on(|manager| {
        let api = Api::new(manager);
        let subscribe = || SubscribeRequest {
            filters: vec![format!("namespace=={}", manager.namespace())],
        };
        let before = proc::private_dirty(manager.pid());
        let slow: Vec<Api> = (0..50).map(|_| Api::new(manager)).collect();
        let mut streams: Vec<_> = slow.iter().map(|api| api.subscribe(subscribe())).collect();
        for _ in 0..1000 {
            publish(&api, 16 << 10).expect("published");
        }
        api.call::<()>("events.v1.Events/Publish", exit_of("gone"))
            .expect("published");
        for _ in 0..1000 {
            publish(&api, 16 << 10).expect("published");
        }
        let more = proc::private_dirty(manager.pid()) - before;
        assert!(more < 32 << 10, "{more} KiB for 50 that do not read");
        // What one gets is in order, and ends with the reason.
        let stream = &mut streams[0];
        let (mut got, mut exits) = (0, 0);
        let end = loop {
            match slow[0].next(stream) {
                Ok(Some(envelope)) => {
                    got += 1;
                    exits += usize::from(envelope.topic == "/tasks/exit");
                }
                Ok(None) => panic!("it ended without a word after {got} events"),
                Err(e) => break e,
            }
        };
        assert_eq!(end.code(), Code::ResourceExhausted, "{end}");
        assert!(end.message().contains("subscribe again"), "{end}");
        assert_eq!(exits, 0, "it was turned away before");
        let mut again = api.subscribe(subscribe());
        let first = api.next(&mut again).expect("an event").expect("an event");
        assert_eq!(first.topic, "/tasks/exit");
        // One that reads misses nothing.
        publish(&api, 10).expect("published");
        let next = api.next(&mut again).expect("an event").expect("an event");
        assert_eq!(next.topic, "/tests/long");
    });
}

fn log_of(manager: &Manager, id: &str) -> fs::File {
    let bundle = manager.state().join("task").join(manager.namespace());
    let mut options = OpenOptions::new();
    let log = options.write(true).open(bundle.join(id).join("log"));
    log.expect("the shim's log")
}

/// A shim's log had filled ours with 68 MB in 30 s.
#[test]
fn a_shim_cannot_flood_the_log() {
    manager::on(|manager| {
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        let mut log = log_of(manager, "c");
        let line = format!("level=error msg={:?}\n", "the guest says so ".repeat(50));
        for _ in 0..(20 << 20) / line.len() {
            log.write_all(line.as_bytes()).expect("never held up");
        }
        // A line of any length, too.
        log.write_all(&[b'x'; 1 << 20]).expect("never held up");
        log.write_all(b"\n").expect("never held up");
        let logged = manager.log().len();
        assert!(logged < 2 << 20, "{logged} bytes");
        // Others are still heard.
        manager.run(&["-d"], "d", &["sleep", "1000"]).ok();
        log_of(manager, "d")
            .write_all(b"level=error msg=\"and this one\"\n")
            .expect("the log");
        manager.until("the other's line in the log", |it| {
            it.log().contains("and this one").then_some(())
        });
    });
}

/// A namespace can have many processes, but not so many that the daemon becomes large.
#[test]
fn exits_of_containers_that_nobody_has_do_not_make_the_daemon_large() {
    manager::on(|manager| {
        let loud = Api::at(&manager.socket(), "loud");
        let before = proc::private_dirty(manager.pid());
        for n in 0..25_000 {
            loud.call::<()>("events.v1.Events/Publish", exit_of(&format!("c{n}")))
                .expect("published");
        }
        let more = proc::private_dirty(manager.pid()) - before;
        assert!(more < 24 << 10, "{more} KiB for 25,000 exits");
        // Another namespace has its own room.
        manager
            .run(&["--rm"], "c", &["sh", "-c", "exit 7"])
            .exits(7);
        assert_eq!(manager.exits("c"), [(7, "shim".to_owned())]);
    });
}

/// Records, too.
#[test]
fn a_record_that_is_too_long_is_refused() {
    manager::on(|manager| {
        let api = Api::new(manager);
        let mut container = api.plain_container("c", &["true"]);
        let labels = (0..1000).map(|n| (format!("k{n}"), "v".repeat(4000)));
        container.labels = labels.collect();
        let e = api.create_container(container).expect_err("a refusal");
        assert_eq!(e.code(), Code::ResourceExhausted, "{e}");
    });
}
