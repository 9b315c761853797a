// SPDX-License-Identifier: Apache-2.0
//! Rules of a VM shim that other shims of VMs learnt the hard way: streams that are pipes, pids
//! that are the host's, calls that wait for nobody, and the right time.

use crate::said;
use harness::events::Kind;
use harness::stdio::{Fifos, Stdio};
use harness::wait;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970, as this machine has it.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// V3: images open /dev/stdout anew, which a socket refuses. V4: events tell the host's pids.
/// V5: an exec that hangs holds up neither State nor Kill nor another exec. V9: the guest has the
/// host's time.
#[test]
fn streams_pids_calls_and_time_in_a_vm_are_those_of_a_container() {
    crate::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let reopen = "for n in 1 2; do readlink /proc/self/fd/$n; done | cut -d: -f1 | uniq; \
                      echo again >/dev/stdout; echo and >/dev/stderr";
        let told = said(&shim, &bundle, bundle.exec_sh("reopen", reopen)).await;
        assert_eq!(told, "pipe\nagain\n", "V3");

        // Nobody reads its output: its Start waits for a reader.
        let fifos = Fifos::new(test.dir().join("hangs"));
        let request = bundle.exec_sh("hangs", "echo late").output(&fifos);
        shim.exec(request).await.unwrap();
        let hanging = {
            let shim = shim.clone();
            tokio::task::spawn_local(async move { shim.start("c", "hangs").await })
        };
        shim.state("c", "").await.unwrap();
        shim.run(bundle.exec("other", &["sleep", "100000"])).await;
        shim.kill("c", "other", 9, false).await.unwrap();
        assert_eq!(shim.wait("c", "other").await.unwrap().exit_status, 137);
        assert!(!hanging.is_finished(), "V5");
        let (mut out, _err) = fifos.readers();
        wait::soon("the late Start", hanging)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(out.text().await, "late\n");
        shim.wait("c", "hangs").await.unwrap();

        let before = now();
        let told = said(&shim, &bundle, bundle.exec_sh("date", "date +%s")).await;
        let told: u64 = told.trim().parse().expect("seconds");
        // It may be off by 10 ms, at the turn of a second.
        assert!(
            (before - 1..=now() + 1).contains(&told),
            "V9: {told}, not {before}"
        );

        let vm = shim.state("c", "").await.unwrap().pid;
        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        test.events().delete("c").await;
        for event in test.events().about("c") {
            let pid = match &event.kind {
                Kind::Create(e) => e.pid,
                Kind::Start(e) => e.pid,
                Kind::ExecStarted(e) => e.pid,
                Kind::Exit(e) => e.pid,
                Kind::Delete(e) => e.pid,
                _ => vm,
            };
            assert_eq!(pid, vm, "V4: {event:?}");
        }
    });
}
