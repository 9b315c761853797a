// SPDX-License-Identifier: Apache-2.0
//! Events on their way to containerd (B70 to B73).

use harness::events::Kind;
use harness::{Bundle, Shim, Test, differs, vm_differs, wait};
use protos::topic;
use std::time::Duration;

async fn created(test: &Test) -> (Bundle, Shim) {
    let bundle = test.bundle("c").build();
    let shim = bundle.start().shim().await;
    shim.create(bundle.create()).await.unwrap();
    (bundle, shim)
}

fn topics(test: &Test) -> Vec<String> {
    test.events()
        .all()
        .into_iter()
        .map(|event| event.topic)
        .collect()
}

/// The container's whole life, as it is published.
async fn live(shim: &Shim) {
    shim.start("c", "").await.unwrap();
    shim.kill("c", "", libc::SIGKILL, false).await.unwrap();
    shim.wait("c", "").await.unwrap();
    shim.delete("c", "").await.unwrap();
}

const LIFE: [&str; 4] = [
    topic::TASK_CREATE,
    topic::TASK_START,
    topic::TASK_EXIT,
    topic::TASK_DELETE,
];

/// B71: containerd is restarted; events wait for it, in their order, none twice.
#[test]
fn events_survive_a_restart_of_the_receiver() {
    harness::run(async |test| {
        let (_, shim) = created(test).await;
        test.events()
            .wait_count("TaskCreate", 1, |e| e.topic == topic::TASK_CREATE)
            .await;
        test.events().hang_up().await;
        live(&shim).await;
        test.events().serve(test.ttrpc_address().as_ref());
        test.events().delete("c").await;
        if differs("events-order") {
            return;
        }
        assert_eq!(topics(test), LIFE);
    });
}

/// B71: a Forward that fails is repeated; what comes after it does not overtake it.
#[test]
fn refused_event_is_repeated_in_its_place() {
    harness::run(async |test| {
        let (_, shim) = created(test).await;
        test.events()
            .wait_count("TaskCreate", 1, |e| e.topic == topic::TASK_CREATE)
            .await;
        test.events().refuse_next();
        live(&shim).await;
        let start = |e: &harness::events::Event| matches!(e.kind, Kind::Start(_)).then_some(());
        test.events()
            .wait_for("TaskStart, refused once", start)
            .await;
        test.events().delete("c").await;
        if differs("events-order") {
            return;
        }
        assert_eq!(topics(test), LIFE);
    });
}

/// B71: containerd's socket may appear after the shim.
#[test]
fn receiver_may_come_late() {
    harness::run(async |test| {
        test.events().hang_up().await;
        let (_, shim) = created(test).await;
        test.events().serve(test.ttrpc_address().as_ref());
        live(&shim).await;
        test.events().delete("c").await;
        if differs("events-order") {
            return;
        }
        assert_eq!(topics(test), LIFE);
    });
}

/// A receiver that is gone for good holds up neither the tasks nor the shim's end.
#[test]
fn lost_receiver_does_not_hold_up_tasks() {
    harness::run(async |test| {
        let (bundle, shim) = created(test).await;
        test.events().hang_up().await;
        live(&shim).await;
        for n in 0..20 {
            let exec = format!("e{n}");
            if n == 0 {
                shim.create(bundle.create()).await.unwrap();
            }
            shim.exec(bundle.exec(&exec, &["true"])).await.unwrap();
        }
        shim.shutdown("c").await.unwrap();
        let state = wait::within(Duration::from_secs(2), "State", shim.state("c", "")).await;
        state.expect("answers while events wait");
    });
}

/// B72: all of it is out before the process ends, however short its life.
#[test]
fn shutdown_drains_the_queue() {
    harness::run(async |test| {
        let rounds = if vm_differs("fewer-cycles") { 3 } else { 20 };
        for n in 0..rounds {
            let id = format!("c{n}");
            let bundle = test.bundle(&id).args(&["true"]).build();
            let shim = bundle.start().shim().await;
            shim.create(bundle.create()).await.unwrap();
            shim.start(&id, "").await.unwrap();
            shim.wait(&id, "").await.unwrap();
            shim.delete(&id, "").await.unwrap();
            let _ = shim.shutdown(&id).await;
            wait::ended(shim.pid()).await;
            let seen: Vec<String> = test
                .events()
                .about(&id)
                .into_iter()
                .map(|event| event.topic)
                .collect();
            assert_eq!(seen, LIFE, "{id}: before its shim ended");
        }
    });
}
