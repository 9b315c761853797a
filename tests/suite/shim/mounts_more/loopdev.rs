// SPDX-License-Identifier: Apache-2.0
//! N4: a file that a loop device makes a disk of.

use super::{ended, mount, sh, started, text, tool};
use harness::{Test, differs, peers, wait};
use serde_json::json;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The directory in /sys/block of the loop device that uses `file`.
fn loop_device(file: &Path) -> Option<PathBuf> {
    fs::read_dir("/sys/block").unwrap().find_map(|device| {
        let dir = device.unwrap().path();
        let used = fs::read_to_string(dir.join("loop/backing_file")).ok()?;
        (used.trim_end() == text(file)).then_some(dir)
    })
}

fn attribute(device: &Path, name: &str) -> String {
    let value = fs::read_to_string(device.join(name)).unwrap();
    value.trim_end().to_owned()
}

pub(super) async fn loop_device_is_free(file: &Path) {
    let look = || loop_device(file).map_or(Ok(()), |d| Err(format!("{} uses it", d.display())));
    wait::until("end of the loop device", look).await;
}

/// True if the filesystem that `file` is in can read past the page cache; some can't.
fn takes_direct_io(file: &Path) -> bool {
    let mut options = fs::File::options();
    let opened = options.read(true).custom_flags(libc::O_DIRECT).open(file);
    opened.is_ok()
}

/// A file with a filesystem of busybox in it.
pub(super) fn image(test: &Test) -> PathBuf {
    let image = test.dir().join("image");
    let file = fs::File::create(&image).unwrap();
    file.set_len(32 << 20).unwrap();
    let rootfs = text(peers::rootfs());
    tool("mkfs.ext4", &["-q", "-d", rootfs, text(&image)]);
    image
}

/// N4: an image file as root filesystem; what is written stays in it, and the device goes.
#[test]
fn loop_mounts_a_file_and_frees_its_device() {
    harness::run_unless_vm_differs("guests-images", async |test| {
        let image = image(test);
        let direct = if differs("loop-direct-io") {
            "suid"
        } else {
            "direct-io"
        };
        for (id, options, script) in [
            ("rw", ["loop", direct, "rw"], "echo kept >/tmp/file"),
            (
                "ro",
                ["loop", "nodev", "ro"],
                "grep -q kept /tmp/file && ! touch /tmp/new",
            ),
        ] {
            let bundle = test
                .bundle(id)
                .rootfs(vec![mount("ext4", text(&image), &options)])
                .set("/root/readonly", json!(false))
                .build();
            let shim = started(&bundle).await;
            let device = loop_device(&image).expect("a loop device");
            assert_eq!(attribute(&device, "loop/autoclear"), "1");
            assert_eq!(attribute(&device, "ro") == "1", options.contains(&"ro"));
            let direct = options.contains(&"direct-io") && takes_direct_io(&image);
            assert_eq!(attribute(&device, "loop/dio") == "1", direct);
            sh(&shim, &bundle, "e", script).await;
            ended(&shim, id).await;
            shim.delete(id, "").await.unwrap();
            loop_device_is_free(&image).await;
        }
    });
}

/// N4: ten at once, whose shims are all offered the same free device.
#[test]
fn loop_devices_are_raced_for_and_all_win() {
    harness::run_unless_vm_differs("guests-images", async |test| {
        let template = image(test);
        let all: Vec<_> = (0..10)
            .map(|n| {
                let image = test.dir().join(format!("image-{n}"));
                tool("cp", &["--sparse=always", text(&template), text(&image)]);
                let bundle = test
                    .bundle(&format!("c{n}"))
                    .rootfs(vec![mount("ext4", text(&image), &["loop"])])
                    .build();
                tokio::task::spawn_local(async move {
                    let shim = bundle.start().shim().await;
                    shim.create(bundle.create()).await.unwrap();
                    (shim, bundle, image)
                })
            })
            .collect();
        for task in all {
            let (shim, bundle, image) = task.await.unwrap();
            assert!(loop_device(&image).is_some());
            shim.delete(&bundle.id, "").await.unwrap();
            loop_device_is_free(&image).await;
        }
    });
}
