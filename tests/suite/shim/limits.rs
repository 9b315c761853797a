// SPDX-License-Identifier: Apache-2.0
//! What a client, a runtime or a container may cost a shim: docs/limits.md.

use harness::raw::Raw;
use harness::runtime::Runtime;
use harness::{Code, Shim, differs, peers, proc, refused, vm_differs, wait};
use protos::service;
use protos::task::{ExecProcessRequest, StateRequest, WaitRequest};
use serde_json::json;
use std::cell::Cell;
use std::rc::Rc;

const WAIT: (&str, &str) = (service::TASK_V2, "Wait");
const STATE: (&str, &str) = (service::TASK_V2, "State");

/// The most that a shim may have grown by, in KiB, whatever it was sent.
const ROOM: u64 = 16 << 10;

fn memory(shim: &Shim) -> u64 {
    proc::private_dirty(shim.pid())
}

/// An id or a path of a megabyte was kept, and told to everybody: 515 MB in a shim.
#[test]
fn ids_and_paths_of_execs_have_a_length() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let long = "e".repeat(1 << 20);
        let by_id = bundle.exec(&long, &["true"]);
        let by_path = ExecProcessRequest {
            stdout: format!("/{long}"),
            ..bundle.exec("e", &["true"])
        };
        for request in [by_id, by_path] {
            if differs("exec-lengths") {
                shim.exec(request).await.unwrap();
                continue;
            }
            let refusal = refused(shim.exec(request).await);
            assert_eq!(refusal.code, Code::InvalidArgument, "{refusal}");
            assert!(refusal.message.len() < 200, "{refusal}");
        }
        // As long as containerd lets one be.
        let longest = "e".repeat(76);
        shim.run(bundle.exec(&longest, &["sleep", "1000"])).await;
    });
}

/// Execs that nobody starts or deletes.
#[test]
fn execs_of_a_container_have_a_bound_together() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let before = memory(&shim);
        let spec = json!({
            "args": ["true"], "cwd": "/", "env": ["PATH=/bin", format!("X={}", "x".repeat(1 << 20))],
        });
        let mut added = 0;
        let refusal = loop {
            match shim
                .exec(bundle.exec_spec(&format!("e{added}"), &spec))
                .await
            {
                Ok(()) => added += 1,
                Err(e) => break refused(Err::<(), _>(e)),
            }
            if added == 30 {
                assert!(differs("exec-bound"), "30 MiB of execs");
                return;
            }
        };
        assert_eq!(refusal.code, Code::ResourceExhausted, "{refusal}");
        assert!(added >= 5, "{added}");
        let more = memory(&shim) - before;
        assert!(more < ROOM, "{more} KiB");
        // One that goes makes room.
        shim.delete("c", "e0").await.unwrap();
        shim.exec(bundle.exec_spec("again", &spec)).await.unwrap();
    });
}

/// B54: what a connection is waiting for has a bound; other calls on it are still answered.
#[test]
fn waits_of_a_connection_have_a_bound() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().running().await;
        let wait = WaitRequest {
            id: "c".into(),
            ..Default::default()
        };
        let state = StateRequest {
            id: "c".into(),
            ..Default::default()
        };
        let mut raw = Raw::to(&shim).await;
        let before = memory(&shim);
        // No more than are refused without being read: who does not read is read no further.
        for n in 0..4200 {
            raw.request(2 * n + 1, WAIT, &wait, None).await;
        }
        raw.request(8401, STATE, &state, None).await;
        let mut refusals = 0;
        loop {
            match raw.answer().await.expect("the connection lives on") {
                (8401, answer) => {
                    answer.expect("State is answered");
                    break;
                }
                (_, Err(refusal)) => {
                    assert_eq!(refusal.code, Code::ResourceExhausted, "{refusal}");
                    refusals += 1;
                }
                (stream, Ok(_)) => panic!("an exit on {stream}"),
            }
        }
        if differs("call-bound") {
            return;
        }
        assert!((50..200).contains(&refusals), "{refusals}");
        let more = memory(&shim) - before;
        assert!(more < 2 * ROOM, "{more} KiB for the waits");
        // Another connection has its own.
        shim.state("c", "").await.unwrap();
    });
}

/// B54: who asks and never reads is read no further.
#[test]
fn answers_that_nobody_reads_have_a_bound() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().running().await;
        let before = memory(&shim);
        let sent = Rc::new(Cell::new(0));
        let mut raw = Raw::to(&shim).await;
        let asks = {
            let sent = Rc::clone(&sent);
            tokio::task::spawn_local(async move {
                for n in 0..400_000 {
                    let state = StateRequest {
                        id: "c".into(),
                        ..Default::default()
                    };
                    raw.request(2 * n + 1, STATE, &state, None).await;
                    sent.set(n + 1);
                }
            })
        };
        // Until it is held up, or has sent all.
        let mut last = 0;
        loop {
            for _ in 0..200 {
                shim.state("c", "").await.unwrap();
            }
            let now = sent.get();
            if now == last || asks.is_finished() {
                break;
            }
            last = now;
        }
        let more = memory(&shim).saturating_sub(before);
        if !differs("call-bound") {
            assert!(!asks.is_finished(), "400,000 calls were read");
            // Of a VM the calls are the guest's, too, and the link to it holds them.
            let room = if peers::is_vm() { 2 * ROOM } else { ROOM };
            assert!(more < room, "{more} KiB");
        }
        asks.abort();
        let _ = asks.await;
        shim.state("c", "").await.unwrap();
    });
}

/// T11: what a runtime says goes into the answer, but not all of it whatever it says.
#[test]
fn a_runtimes_words_are_cut_to_a_length() {
    if vm_differs("guests-runtime") || differs("cut-texts") {
        return;
    }
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let before = memory(&shim);
        let body = "[ \"$ACTION\" = create ] || exec \"$RUNC\" \"$@\"\n\
                    log=; for word in \"$@\"; do\n  \
                    if [ \"$log\" = next ]; then log=$word; break; fi\n  \
                    [ \"$word\" != --log ] || log=next\ndone\n\
                    head -c 300000000 /dev/zero | tr '\\0' x\n\
                    truncate -s 3G \"$log\"\n\
                    { printf '\\n{\"level\":\"error\",\"msg\":\"first words '; \
                    head -c 500000 /dev/zero | tr '\\0' x; echo '\"}'; } >>\"$log\"\n\
                    exit 1";
        let runtime = Runtime::script(test, "talkative", body);
        let refusal = refused(shim.create(runtime.create(&bundle)).await);
        assert!(
            refusal.message.contains("OCI runtime create failed"),
            "{:.200}",
            refusal.message
        );
        let said = &refusal.message;
        assert!(said.len() <= 4096, "{} bytes", said.len());
        assert!(said.contains("first words x"), "{said}");
        assert!(said.ends_with("bytes more)"), "{said}");
        let log = std::fs::metadata(bundle.file("log.json")).expect("the runtime's log");
        assert!(log.len() <= 1 << 20, "{} bytes of log", log.len());
        // What it took is given back once there is nothing to do.
        wait::until("the memory back", || {
            match memory(&shim).saturating_sub(before) {
                more if more < 4096 => Ok(()),
                more => Err(format!("{more} KiB more")),
            }
        })
        .await;
    });
}
