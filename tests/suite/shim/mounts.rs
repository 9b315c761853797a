// SPDX-License-Identifier: Apache-2.0
//! The rootfs that Create mounts, and Delete unmounts (N1, N2, N4, N7, N9).

use harness::bundle::bind;
use harness::{Bundle, Shim, Test, differs, peers, refused, runtime_differs, vm_differs, wait};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use protos::types::Mount;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn mount_of(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|o| (*o).to_owned()).collect();
    Mount {
        r#type: kind.into(),
        source: source.into(),
        options,
        ..Default::default()
    }
}

/// A directory of the test.
fn dir(test: &Test, name: &str) -> PathBuf {
    let dir = test.dir().join(name);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// An overlay of these lower directories, busybox last, and its upper directory.
fn overlay(test: &Test, lower: &[&Path]) -> (Mount, PathBuf) {
    let (upper, work) = (dir(test, "upper"), dir(test, "overlay-work"));
    let mut layers: Vec<String> = lower.iter().map(|d| d.display().to_string()).collect();
    layers.push(peers::rootfs().display().to_string());
    let lower = format!("lowerdir={}", layers.join(":"));
    let options = [
        lower,
        format!("upperdir={}", upper.display()),
        format!("workdir={}", work.display()),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    (mount_of("overlay", "overlay", &options), upper)
}

/// Runs a script as the container's init, on these mounts and a writable root; its exit code.
async fn exit_of(test: &Test, mounts: Vec<Mount>, script: &str) -> u32 {
    let bundle = test
        .bundle("c")
        .set("/root/readonly", json!(false))
        .rootfs(mounts)
        .sh(script)
        .build();
    let shim = bundle.running().await;
    let code = shim.wait("c", "").await.unwrap().exit_status;
    shim.delete("c", "").await.unwrap();
    assert_eq!(bundle.mounts(), [] as [String; 0], "N7");
    code
}

/// Options and super options of the bundle's mount at `point`.
fn options_at(bundle: &Bundle, point: &Path) -> String {
    let mountinfo = bundle.mountinfo();
    let mounted = mountinfo.iter().rfind(|(at, _)| Path::new(at) == point);
    let (_, line) = mounted.unwrap_or_else(|| panic!("nothing is mounted at {}", point.display()));
    let (mount, fs) = line.split_once(" - ").unwrap();
    format!(
        "{},{}",
        mount.split(' ').nth(5).unwrap(),
        fs.split(' ').nth(2).unwrap()
    )
}

/// N1: what a container writes to its overlay is in the upper directory.
#[test]
fn overlay_is_mounted() {
    harness::run(async |test| {
        let (mount, upper) = overlay(test, &[]);
        assert_eq!(
            exit_of(test, vec![mount], "echo written >/file; exit 4").await,
            4
        );
        assert_eq!(fs::read_to_string(upper.join("file")).unwrap(), "written\n");
    });
}

/// N3: more layers than one page of options holds.
#[test]
fn overlay_of_many_layers_is_mounted() {
    harness::run(async |test| {
        let base = dir(test, &format!("layers-{}", "x".repeat(60)));
        let layers: Vec<PathBuf> = (0..60)
            .map(|n| {
                let layer = base.join(format!("{n}/fs"));
                fs::create_dir_all(&layer).unwrap();
                fs::write(layer.join(format!("file{n}")), "").unwrap();
                layer
            })
            .collect();
        // busybox must be below the layers' common parent to be shortened like them.
        let last = base.join("busybox");
        fs::create_dir(&last).unwrap();
        let copied = Command::new("cp")
            .arg("-a")
            .arg(peers::rootfs())
            .arg(&last)
            .status()
            .unwrap();
        assert!(copied.success());
        let mut lower: Vec<String> = layers.iter().map(|l| l.display().to_string()).collect();
        lower.push(
            last.join(peers::rootfs().file_name().unwrap())
                .display()
                .to_string(),
        );
        let (upper, work) = (dir(test, "upper"), dir(test, "overlay-work"));
        let lower = format!("lowerdir={}", lower.join(":"));
        assert!(lower.len() > 4096);
        let upper = format!("upperdir={}", upper.display());
        let work = format!("workdir={}", work.display());
        let mount = mount_of("overlay", "overlay", &[&lower, &upper, &work]);
        assert_eq!(
            exit_of(test, vec![mount], "ls /file0 /file59 && exit 4").await,
            4
        );
    });
}

/// N4: the kernel forgets `ro` on a bind mount, so it is mounted twice.
#[test]
fn bind_mount_is_read_only_when_asked() {
    harness::run(async |test| {
        let source = dir(test, "source");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(peers::rootfs().join("."))
            .arg(&source)
            .status();
        assert!(copied.unwrap().success());
        let code = exit_of(test, vec![bind(&source)], "touch /file || exit 4").await;
        if runtime_differs("writable-rootfs") {
            return;
        }
        assert_eq!(code, 4);
        assert!(!source.join("file").exists());
    });
}

/// N2, N4: and writable when not.
#[test]
fn bind_mount_is_writable_by_default() {
    harness::run(async |test| {
        let source = dir(test, "source");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(peers::rootfs().join("."))
            .arg(&source)
            .status();
        assert!(copied.unwrap().success());
        let mount = mount_of("bind", &source.to_string_lossy(), &["rbind"]);
        assert_eq!(exit_of(test, vec![mount], "touch /file && exit 4").await, 4);
        assert!(source.join("file").exists());
    });
}

/// Creates the container on these mounts, and keeps it.
async fn created(test: &Test, mounts: Vec<Mount>) -> (Bundle, Shim) {
    let bundle = test.bundle("c").rootfs(mounts).build();
    let shim = bundle.start().shim().await;
    shim.create(bundle.create()).await.unwrap();
    (bundle, shim)
}

/// N2: flags become flags, the rest goes to the filesystem.
#[test]
fn mount_options_are_flags_or_data() {
    harness::run(async |test| {
        let (mut mount, _) = overlay(test, &[]);
        for option in ["nosuid", "nodev", "noatime", "exec"] {
            mount.options.insert(0, option.to_owned());
        }
        let (bundle, _) = created(test, vec![mount]).await;
        let options = options_at(&bundle, &bundle.file("rootfs"));
        let options: Vec<&str> = options.split(',').collect();
        for option in ["nosuid", "nodev", "noatime", "rw"] {
            assert!(options.contains(&option), "{option} is not in {options:?}");
        }
        assert_eq!(options.contains(&"noexec"), vm_differs("share-flags"));
        assert!(
            options.iter().any(|o| o.starts_with("upperdir=")),
            "{options:?}"
        );
    });
}

/// N1: mounts with targets, parents first.
#[test]
fn mount_targets_are_below_the_rootfs() {
    harness::run(async |test| {
        let (root, _) = overlay(test, &[]);
        let tmpfs = mount_of("tmpfs", "tmpfs", &["size=1m", "mode=711"]);
        let tmpfs = Mount {
            target: "/mnt".into(),
            ..tmpfs
        };
        let bundle = test.bundle("c").rootfs(vec![root, tmpfs]).build();
        let shim = bundle.start().shim().await;
        let created = shim.create(bundle.create()).await;
        if differs("mount-target") {
            refused(created);
            return;
        }
        created.unwrap();
        let root = bundle.file("rootfs");
        assert_eq!(
            bundle.mounts(),
            [root.to_string_lossy(), root.join("mnt").to_string_lossy()]
        );
        assert!(options_at(&bundle, &root.join("mnt")).contains("size=1024k"));
        shim.delete("c", "").await.unwrap();
        assert_eq!(bundle.mounts(), [] as [String; 0]);
    });
}

/// N4: a filesystem image on a loop device, which goes with the mount.
#[test]
fn loop_option_mounts_an_image() {
    harness::run(async |test| {
        let mkfs = ["/sbin/mkfs.ext4", "/usr/sbin/mkfs.ext4"]
            .into_iter()
            .find(|p| Path::new(p).exists());
        let (Some(mkfs), true) = (mkfs, Path::new("/dev/loop-control").exists()) else {
            println!("no mkfs.ext4 or no loop devices on this machine");
            return;
        };
        let image = test.dir().join("image");
        let made = Command::new(mkfs)
            .args(["-q", "-d"])
            .arg(peers::rootfs())
            .arg(&image)
            .arg("24M")
            .output();
        assert!(made.unwrap().status.success());
        let mount = mount_of("ext4", &image.to_string_lossy(), &["loop", "ro"]);
        assert_eq!(exit_of(test, vec![mount], "touch /file || exit 4").await, 4);
        let name = image.to_string_lossy().into_owned();
        wait::until("the loop device is free", || {
            for device in fs::read_dir("/sys/block").unwrap() {
                let backing = device.unwrap().path().join("loop/backing_file");
                if fs::read_to_string(&backing).unwrap_or_default().trim() == name {
                    return Err(backing.display().to_string());
                }
            }
            Ok(())
        })
        .await;
    });
}

/// T10: a missing rootfs directory is made.
#[test]
fn missing_rootfs_directory_is_made() {
    harness::run_unless_vm_differs("private-mounts", async |test| {
        let bundle = test.bundle("c").build();
        fs::remove_dir(bundle.file("rootfs")).unwrap();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create()).await.unwrap();
        shim.delete("c", "").await.unwrap();
        let mode = fs::metadata(bundle.file("rootfs"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777;
        assert_eq!(mode, 0o711);
    });
}

/// T11, N7: mounts made before the one that failed are undone.
#[test]
fn failed_mount_undoes_the_others() {
    harness::run(async |test| {
        let good = bind(peers::rootfs());
        let bad = mount_of("no-such-filesystem", "none", &[]);
        let bundle = test
            .bundle("c")
            .rootfs(vec![good.clone(), good, bad])
            .build();
        let shim = bundle.start().shim().await;
        let status = refused(shim.create(bundle.create()).await);
        assert!(status.message.contains("mount"), "{status}");
        assert_eq!(bundle.mounts(), [] as [String; 0]);
        assert_eq!(test.events().all(), []);
        let missing = mount_of("bind", "/no/such/directory", &["bind"]);
        let bundle = test.bundle("d").rootfs(vec![missing]).build();
        let status = refused(shim.create(bundle.create()).await);
        assert!(
            status.message.contains("no such file or directory"),
            "{status}"
        );
    });
}

/// N2: options for containerd's own use are not the kernel's; too many are refused.
#[test]
fn strange_mount_options_are_refused() {
    harness::run(async |test| {
        let long = format!("lowerdir=/{}", "x/".repeat(2500));
        for (n, options) in [["X-containerd.mkfs.fs=ext4"], [long.as_str()]]
            .iter()
            .enumerate()
        {
            let mount = mount_of("tmpfs", "tmpfs", options);
            let bundle = test.bundle(&format!("c{n}")).rootfs(vec![mount]).build();
            let shim = bundle.start().shim().await;
            refused(shim.create(bundle.create()).await);
            assert_eq!(bundle.mounts(), [] as [String; 0]);
        }
    });
}

/// N7: Delete unmounts what others mounted below the rootfs, and mounts on mounts.
#[test]
fn delete_unmounts_all_that_is_below() {
    harness::run_unless_vm_differs("private-mounts", async |test| {
        let (root, _) = overlay(test, &[]);
        let (bundle, shim) = created(test, vec![root]).await;
        let tmp = bundle.file("rootfs/tmp");
        for point in [&tmp, &tmp] {
            mount(
                Some("tmpfs"),
                point,
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .unwrap();
        }
        fs::create_dir(tmp.join("deep")).unwrap();
        let deep = tmp.join("deep");
        mount(
            Some("tmpfs"),
            &deep,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        assert_eq!(bundle.mounts().len(), 4);
        if differs("unmount-recursive") {
            refused(shim.delete("c", "").await);
            for point in bundle.mounts().iter().rev() {
                umount2(Path::new(point), MntFlags::MNT_DETACH).unwrap();
            }
        }
        shim.delete("c", "").await.unwrap();
        assert_eq!(bundle.mounts(), [] as [String; 0]);
    });
}

/// N9: without mounts, root.path of the spec is used as it is.
#[test]
fn no_mounts_leave_the_spec_alone() {
    harness::run(async |test| {
        let bundle = test
            .bundle("c")
            .set("/root/path", json!(peers::rootfs()))
            .rootfs(Vec::new());
        let bundle = bundle.sh("exit 8").build();
        let shim = bundle.running().await;
        assert_eq!(!bundle.mounts().is_empty(), vm_differs("private-mounts"));
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 8);
    });
}
