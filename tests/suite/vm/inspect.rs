//! `inspect` of a shim whose guest does not answer.

use harness::inspect::{Stopped, cause, inspected};
use harness::proc;
use serde_json::Value;
use tokio::task::spawn_local;

#[test]
fn a_guest_that_hangs_is_the_cause() {
    crate::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let told = inspected(test).await;
        let vm = &told["runtime"]["vm"];
        let qemu = vm["qemu"].as_i64().expect("a pid") as i32;
        assert!(proc::alive(qemu) && vm["gone"] == Value::Null, "{told}");
        assert!(vm["booted_seconds"].as_f64() > Some(0.0), "{told}");
        shim.exec(bundle.exec_sh("e", "exit 3")).await.unwrap();
        let stopped = Stopped::new(qemu);
        let starting = spawn_local({
            let shim = shim.clone();
            async move { shim.start("c", "e").await }
        });
        let (cause, _) = cause(test).await;
        assert!(
            cause.starts_with("Start of c/e has gone on for "),
            "{cause}"
        );
        assert!(cause.ends_with("it waits for the guest"), "{cause}");
        drop(stopped);
        starting.await.unwrap().unwrap();
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 3);
    });
}
