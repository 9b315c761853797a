// SPDX-License-Identifier: Apache-2.0
//! The daemon is asked what no client would: mutated messages to every method that it serves, and
//! bytes that are no HTTP/2. It answers or refuses, stays small, and serves on.

#[path = "../../../fuzz/mutate.rs"]
mod mutate;

use harness::manager::{self, Manager, api::Api};
use harness::proc;
use harness::schema::Schema;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use tonic::Code;

/// The beginnings of what each method is asked, and how many others are made of them.
const EXAMPLES: usize = 8;
const OTHERS: u64 = 40;
/// How long whoever may wait for ever is waited for.
const MOMENT: Duration = Duration::from_millis(20);
/// And others, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);
/// KiB that the daemon may ever have had.
const MEMORY: u64 = 48 << 10;

/// Something to ask about: container `c`, which runs.
fn ready(manager: &Manager, api: &Api) {
    if manager.status("c") != "running" {
        adopt(manager, api);
        // The first time there is none.
        let _ = manager.dunnage(&["delete", "--force", "c"]);
        manager.run(&["-d"], "c", &["sleep", "100000"]).ok();
    }
}

/// As containerd's, the record of a container can be deleted while its task is there: it gets one
/// again, so that both can be removed.
fn adopt(manager: &Manager, api: &Api) {
    for shim in manager.shims() {
        let words = proc::words(shim, "cmdline");
        let id = words.iter().skip_while(|word| *word != "-id").nth(1);
        let id = id.expect("a shim's id");
        // Most have theirs.
        let _ = api.create_container(api.plain_container(id, &["true"]));
    }
}

fn stays_small(pid: i32) {
    let most = proc::status(pid, "VmHWM").expect("its memory");
    assert!(most <= MEMORY, "{most} KiB");
}

/// Inputs are the same in each run: those of fuzz/mutate.rs.
#[test]
fn no_message_upsets_the_daemon() {
    manager::on(|manager| {
        let pid = manager.pid();
        let schema = Schema::read();
        assert!(schema.methods.len() >= 39, "{}", schema.methods.len());
        let api = Api::new(manager);
        let mut answered = 0;
        for method in &schema.methods {
            ready(manager, &api);
            let path = &method.path;
            let waits = method.streams || path.ends_with("Tasks/Wait");
            let patience = if waits { MOMENT } else { DEADLINE };
            let examples = (0..EXAMPLES).map(|n| schema.example(method, n));
            mutate::some_inputs(&Vec::from_iter(examples), OTHERS, |input| {
                let of = || format!("{path} of {input:02x?}\n{}", manager.log());
                match api.send(path, input, patience) {
                    Some(Err(e)) if std::error::Error::source(&e).is_some() => {
                        panic!("{e}: {}", of())
                    }
                    // Not one of those that are served, or not there: then this tests nothing.
                    Some(Err(e)) if e.message().contains("unknown method") => {
                        panic!("{e}: {}", of())
                    }
                    Some(Ok(())) => answered += 1,
                    Some(Err(_)) => {}
                    None => assert!(waits, "no answer to {}", of()),
                }
            });
            assert!(proc::alive(pid), "{path}: {}", manager.log());
        }
        assert!(answered > 100, "{answered} answers that are no refusals");
        stays_small(pid);
        assert_eq!(manager.pid(), pid);
        adopt(manager, &api);
        manager
            .run(&["--rm"], "after", &["sh", "-c", "exit 7"])
            .exits(7);
    });
}

/// The first bytes of a connection, and what comes after them.
#[test]
fn no_bytes_upset_the_daemon() {
    manager::on(|manager| {
        let pid = manager.pid();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        // A HEADERS frame with a path that is in no table, and DATA of a message that is 4 GiB long.
        let headers = b"\0\0\x05\x01\x04\0\0\0\x01\x83\x86\x44\x01/";
        let data = b"\0\0\x05\0\x01\0\0\0\x01\0\xff\xff\xff\xff";
        let rapid = [&headers[..], &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8]].concat();
        let seeds = [
            preface.to_vec(),
            [&preface[..], &settings].concat(),
            [&preface[..], &settings, headers, data].concat(),
            [&preface[..], &settings, &rapid.repeat(50)].concat(),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        ];
        let deadline = Instant::now() + DEADLINE;
        mutate::some_inputs(&seeds, 500, |input| {
            let mut connection = UnixStream::connect(manager.socket()).expect("the daemon");
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1));
            connection.set_read_timeout(Some(left)).expect("a timeout");
            // It may hang up at any moment.
            let _ = connection.write_all(input);
            let _ = connection.shutdown(Shutdown::Write);
            match connection.read_to_end(&mut Vec::new()) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("a connection stays: {input:02x?}")
                }
                _ => {}
            }
        });
        stays_small(pid);
        let api = Api::new(manager);
        let version = api.send(
            "containerd.services.version.v1.Version/Version",
            b"",
            DEADLINE,
        );
        version.expect("an answer").expect("the version");
        let none = api.send("containerd.services.images.v1.Images/Get", b"", DEADLINE);
        let none = none.expect("an answer").expect_err("a refusal");
        assert_eq!(none.code(), Code::Unimplemented);
    });
}
