// SPDX-License-Identifier: Apache-2.0
//! ttrpc as a shim speaks it: many requests at once, broken ones, oversized ones, and callers
//! that go away (B54).

use harness::raw::Raw;
use harness::runtime::Runtime;
use harness::{Code, Shim, Status, differs, proc, refused, vm_differs, wait};
use protos::service;
use protos::task::{ConnectRequest, StateRequest, WaitRequest};
use protos::ttrpc::CallError;
use std::time::Duration;

const STATE: (&str, &str) = (service::TASK_V2, "State");
const CONNECT: (&str, &str) = (service::TASK_V2, "Connect");

/// B54: a service the shim does not have.
#[test]
fn unknown_service_is_unimplemented() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().start().shim().await;
        let other = shim.named("containerd.task.v1.Shim");
        let status = refused(other.state("c", "").await);
        assert_eq!(
            status,
            Status::new(Code::Unimplemented, "service containerd.task.v1.Shim")
        );
        let sandbox = shim.named("containerd.runtime.sandbox.v1.Sandbox");
        let status = refused(sandbox.call_named("Platform").await);
        let code = match vm_differs("sandboxes") {
            true => Code::NotFound,
            false => Code::Unimplemented,
        };
        assert_eq!(status.code, code, "S2");
    });
}

/// B54: a frame over 4 MiB is refused on its stream, and the connection lives on.
#[test]
fn oversized_frame_is_resource_exhausted() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().running().await;
        let mut raw = Raw::to(&shim).await;
        let id = "c".repeat((4 << 20) + 1);
        raw.request(
            1,
            STATE,
            &StateRequest {
                id,
                ..Default::default()
            },
            None,
        )
        .await;
        assert_eq!(raw.refusal(1).await.code, Code::ResourceExhausted);
        let request = StateRequest {
            id: "c".into(),
            ..Default::default()
        };
        raw.request(3, STATE, &request, None).await;
        let (stream, answer) = raw.answer().await.expect("the connection lives on");
        assert_eq!((stream, answer.is_ok()), (3, true));
    });
}

/// B54: a client's streams are odd and grow.
#[test]
fn stream_numbers_are_checked() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().running().await;
        let request = StateRequest {
            id: "c".into(),
            ..Default::default()
        };
        let mut raw = Raw::to(&shim).await;
        raw.request(2, STATE, &request, None).await;
        assert_eq!(raw.refusal(2).await.code, Code::InvalidArgument);
        raw.request(5, STATE, &request, None).await;
        assert!(raw.answer().await.expect("an answer").1.is_ok());
        raw.request(3, STATE, &request, None).await;
        if differs("stream-order") {
            assert!(raw.answer().await.expect("an answer").1.is_ok());
        } else {
            assert_eq!(raw.refusal(3).await.code, Code::InvalidArgument);
        }
    });
}

fn sockets(shim: &Shim) -> usize {
    let fds = proc::fds(shim.pid()).unwrap();
    fds.values()
        .filter(|target| target.starts_with("socket:"))
        .count()
}

/// B54: whatever arrives, other connections are served, and nothing stays behind.
#[test]
fn garbage_harms_nobody() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().running().await;
        let before = sockets(&shim);
        let garbage: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\nHost: shim\r\n\r\n",
            b"\0",
            &[0xff; 4096],
            &[0, 0, 0, 4, 0, 0, 0, 1, 1, 0, 0xff, 0xff, 0xff, 0xff],
            &[0, 0, 0, 0, 0, 0, 0, 1, 1, 0],
            &[0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 2, 3],
        ];
        for bytes in garbage {
            let mut raw = Raw::to(&shim).await;
            let _ = raw.bytes(bytes).await;
            shim.state("c", "")
                .await
                .expect("an answer on another connection");
        }
        if differs("garbage-sockets") {
            return;
        }
        wait::until("garbage's connections are closed", || {
            match sockets(&shim) {
                now if now <= before => Ok(()),
                now => Err(format!("{now} sockets, {before} before")),
            }
        })
        .await;
    });
}

/// B54: a payload that is no message is the caller's error, and only that.
#[test]
fn undecodable_payload_is_refused() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().running().await;
        let call = shim
            .client()
            .call_raw(STATE.0, STATE.1, vec![0xff; 3], &[], None);
        let refusal = refused(wait::soon("an answer", call).await);
        assert_ne!(refusal.code, Code::NotFound, "{refusal}");
        shim.state("c", "").await.unwrap();
    });
}

/// B54: requests do not wait for each other.
#[test]
fn waits_do_not_hold_up_other_calls() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().running().await;
        let waiters: Vec<_> = (0..20)
            .map(|_| {
                let shim = shim.clone();
                tokio::task::spawn_local(async move { shim.wait("c", "").await.unwrap() })
            })
            .collect();
        shim.state("c", "").await.unwrap();
        shim.kill("c", "", libc::SIGKILL, false).await.unwrap();
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap().exit_status, 137);
        }
    });
}

/// B54: a caller that goes away takes its requests with it.
#[test]
fn closed_connections_are_forgotten() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().running().await;
        let before = sockets(&shim);
        let request = WaitRequest {
            id: "c".into(),
            ..Default::default()
        };
        for _ in 0..50 {
            let mut raw = Raw::to(&shim).await;
            raw.request(1, (service::TASK_V2, "Wait"), &request, None)
                .await;
            raw.request(3, CONNECT, &ConnectRequest::default(), None)
                .await;
            assert_eq!(
                raw.answer().await.expect("an answer").0,
                3,
                "Wait is being served"
            );
        }
        wait::until("the connections are closed", || match sockets(&shim) {
            now if now <= before => Ok(()),
            now => Err(format!("{now} sockets, {before} before")),
        })
        .await;
    });
}

/// B54: a Create whose caller gives up is undone: its runtime is killed, nothing stays.
#[test]
fn create_ends_with_its_callers_deadline() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let (runtime, mut gate) = Runtime::gated(test, "create");
        let request = runtime.create(&bundle);
        let is_vm = vm_differs("boot");
        let mut raw = Raw::to(&shim).await;
        let limit = Duration::from_millis(300);
        raw.request(1, (service::TASK_V2, "Create"), &request, Some(limit))
            .await;
        // A VM does not boot within that, without KVM.
        let pid = if is_vm {
            None
        } else {
            Some(gate.arrival().await)
        };
        let refusal = raw.refusal(1).await;
        if differs("create-deadline") {
            assert_eq!(refusal.code, Code::Unknown, "{refusal}");
        } else {
            assert_eq!(refusal.code, Code::DeadlineExceeded, "{refusal}");
        }
        if let Some(pid) = pid {
            wait::ended(pid).await;
        }
        assert_eq!(refused(shim.state("c", "").await).code, Code::NotFound);
        // The id is taken until everything is undone.
        let again = async {
            loop {
                match shim.create(bundle.create()).await {
                    Err(CallError::Status(s)) if s.message.contains("already exists") => {}
                    other => return other,
                }
            }
        };
        let again = wait::soon("the same container, once more", again).await;
        again.unwrap();
        assert_eq!(bundle.mounts(), [bundle.file("rootfs").to_string_lossy()]);
    });
}
