//! What a guest has freed of its memory is the host's again.

use crate::said;
use harness::wait;
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// How much of the guest's memory the host holds, in bytes: the blocks of the file in memory that it is.
fn held(qemu: i32) -> u64 {
    let fds = fs::read_dir(format!("/proc/{qemu}/fd")).expect("QEMU");
    let paths = fds.map(|entry| entry.expect("an entry").path());
    let is_memory = |path: &std::path::PathBuf| {
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:memory-backend"))
    };
    let memory = { paths }.find(is_memory).expect("the guest's memory");
    fs::metadata(memory).expect("a file").blocks() * 512
}

#[test]
fn what_a_container_has_freed_is_the_hosts_again() {
    const USED: u64 = 100 << 20;
    crate::run(async |test| {
        let memory = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"});
        let bundle = test.bundle("c").mount(memory).build();
        let shim = bundle.running().await;
        let qemu = crate::death::qemu(&shim);
        let before = held(qemu);
        let script = "dd if=/dev/zero of=/tmp/x bs=1M count=100 2>/dev/null; echo used";
        let exec = |id, script| bundle.exec_sh(id, script);
        assert_eq!(said(&shim, &bundle, exec("e", script)).await, "used\n");
        let most = held(qemu);
        assert!(most > before + USED / 2, "{before} {most}");
        shim.delete("c", "e").await.unwrap();
        said(&shim, &bundle, exec("f", "rm /tmp/x")).await;
        wait::until_within(Duration::from_secs(60), "the memory", || {
            let now = held(qemu);
            let is_back = most.saturating_sub(now) >= USED / 10 * 9;
            is_back
                .then_some(())
                .ok_or_else(|| format!("{now} of {most}"))
        });
    });
}
