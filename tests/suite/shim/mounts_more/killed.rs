// SPDX-License-Identifier: Apache-2.0
//! A shim that is killed in the middle of mounting: `delete` finds all there is (D1, N7).

use super::loopdev::{image, loop_device_is_free};
use super::{idmap, mount, text};
use harness::meddler::Meddler;
use harness::{peers, vm_differs};
use std::fs;

/// N4, N5: neither a mount nor a loop device nor a process stays, whichever call was the last.
#[test]
fn killed_while_mounting_leaves_nothing_that_delete_does_not_find() {
    if peers::is_go() || vm_differs("boot") {
        return;
    }
    harness::run(async |test| {
        let image = image(test);
        let looped = mount("ext4", text(&image), &["loop"]);
        let lower = test.dir().join("lower");
        fs::create_dir(&lower).unwrap();
        let lower = format!("lowerdir={}:{}", text(&lower), text(peers::rootfs()));
        let mapped = mount(
            "overlay",
            "overlay",
            &[&lower, idmap::UIDMAP, idmap::GIDMAP],
        );
        let busybox = text(peers::rootfs());
        let bound = mount("bind", busybox, &["rbind", idmap::UIDMAP, idmap::GIDMAP]);
        // strace counts the calls of each thread by themselves.
        let cases = [
            (&looped, "ioctl", 1),
            (&looped, "ioctl", 2),
            (&looped, "mount", 1),
            (&mapped, "clone3", 1),
            (&mapped, "unshare", 1),
            (&mapped, "mount", 1),
            (&mapped, "mount_setattr", 1),
            (&mapped, "move_mount", 2),
            (&mapped, "mount", 2),
            (&mapped, "open_tree", 3),
            (&bound, "move_mount", 1),
        ];
        for (n, (mount, call, when)) in cases.into_iter().enumerate() {
            let bundle = test
                .bundle(&format!("c{n}"))
                .rootfs(vec![mount.clone()])
                .build();
            let shim = bundle.start().shim().await;
            let inject = format!("{call}:signal=KILL:when={when}");
            let meddler = Meddler::new(test, shim.pid(), &inject);
            let created = shim.create(bundle.create()).await;
            assert!(created.is_err(), "{inject}: never called");
            shim.kill_process().await;
            drop(meddler);
            bundle.start().deleted().await;
            assert_eq!(bundle.mounts(), [] as [String; 0], "{inject}");
            loop_device_is_free(&image).await;
        }
    });
}
