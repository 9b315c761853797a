// SPDX-License-Identifier: Apache-2.0
//! Twenty containers come and go, and all is as it was.

use crate::network::{namespaces, pair};
use harness::{Shim, Test, proc, wait};
use std::path::Path;

/// VMs one after another in one shim, and containers in each: twenty in all.
const VMS: usize = 2;
const CONTAINERS: usize = 10;
/// KiB that the shim's memory may differ by.
const NOISE: u64 = 256;

/// Mounts of this test's in the shim's own namespaces.
fn mounts(test: &Test, shim: &Shim) -> Vec<String> {
    let root = Path::new("/");
    let mounts = [
        proc::mounts(shim.pid(), root),
        proc::mounts_held(shim.pid(), root),
    ];
    let points = mounts.into_iter().flatten().map(|(point, _)| point);
    let own = |point: &String| {
        point.contains(test.namespace())
            || (0..VMS * CONTAINERS).any(|n| {
                let vm = test.vm_dir(&format!("c{n}"));
                Path::new(point).starts_with(vm)
            })
    };
    points.filter(own).collect()
}

/// Memory, open files, processes, taps, mounts and files are the same after each VM.
#[test]
fn twenty_containers_leave_nothing_behind() {
    crate::run(async |test| {
        let (container, _world) = pair(test);
        let devices = container.devices();
        let bundle = |id: String| {
            let builder = test.bundle(&id).args(&["true"]);
            let builder = builder.annotation("io.containerd.runc.v2.group", "g");
            builder
                .set("/linux/namespaces", namespaces(&container))
                .build()
        };
        let bundles: Vec<_> = (0..VMS * CONTAINERS)
            .map(|n| bundle(format!("c{n}")))
            .collect();
        let shim = bundles[0].start().shim().await;
        let before = shim.footprint();
        let mounted = mounts(test, &shim);
        let mut memory = Vec::new();
        for vm in bundles.chunks(CONTAINERS) {
            for bundle in vm {
                shim.create(bundle.create()).await.unwrap();
            }
            assert_eq!(container.devices().matches("dunnage").count(), 1);
            assert!(test.vm_dir(&vm[0].id).exists());
            assert!(mounts(test, &shim).len() > mounted.len());
            for bundle in vm {
                let id = &bundle.id;
                shim.start(id, "").await.unwrap();
                assert_eq!(shim.wait(id, "").await.unwrap().exit_status, 0);
                shim.delete(id, "").await.unwrap();
            }
            // A thread that has done its work takes a moment to end.
            wait::until("the shim is as it was", || match shim.footprint() {
                now if now == before => Ok(()),
                now => Err(format!("{now:?}, before {before:?}")),
            })
            .await;
            assert_eq!(mounts(test, &shim), mounted);
            assert_eq!(container.devices(), devices);
            for bundle in vm {
                assert!(!test.vm_dir(&bundle.id).exists());
            }
            assert_eq!(proc::mounts_under(test.dir()), Vec::<String>::new());
            memory.push(proc::private_dirty(shim.pid()));
        }
        // The first needs what the others find.
        let last = memory[VMS - 1];
        assert!(last <= memory[0] + NOISE, "KiB after each VM: {memory:?}");
    });
}
