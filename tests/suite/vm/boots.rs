// SPDX-License-Identifier: Apache-2.0
//! Boots, again and again: none hangs, and each leaves the machine as it was.

use crate::jail;
use harness::{Shim, proc};
use std::fs;

/// 137 or not: `true` in a VM ends with 0, ten times in a row.
#[test]
fn ten_boots_in_a_row_all_end_well() {
    crate::run(async |test| {
        let vms = || fs::read_dir("/run/dunnage/vm").map_or(0, Iterator::count);
        let mut shims: Vec<Shim> = Vec::new();
        for n in 0..10 {
            let id = format!("c{n}");
            let bundle = test.bundle(&id).args(&["true"]).build();
            let shim = bundle.start().shim().await;
            shim.create(bundle.create()).await.unwrap();
            shim.start(&id, "").await.unwrap();
            assert_eq!(shim.wait(&id, "").await.unwrap().exit_status, 0, "boot {n}");
            shim.delete(&id, "").await.unwrap();
            assert!(!test.vm_dir(&id).exists(), "of {} VMs", vms());
            assert_eq!(proc::children(shim.pid()), Vec::<i32>::new());
            assert_eq!(proc::zombies(shim.pid()), Vec::<i32>::new());
            shims.push(shim);
        }
    });
}

/// On a machine that is busy with them all, each needs longer than one alone may take.
#[test]
fn boots_side_by_side_wait_for_each_other() {
    const VMS: usize = 8;
    crate::run(async |test| {
        let config = jail::config(test, "shim-vm.toml", &[("start_timeout", "5".into())]);
        let mut creating = Vec::new();
        for n in 0..VMS {
            let bundle = test.bundle(&format!("c{n}")).build();
            let start = bundle.start();
            let start = start.env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
            let shim = start.shim().await;
            creating.push(tokio::task::spawn_local(async move {
                shim.create(bundle.create()).await.unwrap();
                shim
            }));
        }
        for created in creating {
            created.await.unwrap().stop().await;
        }
    });
}
