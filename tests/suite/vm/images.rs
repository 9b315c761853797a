// SPDX-License-Identifier: Apache-2.0
//! Root filesystems of images: erofs, ext4, layers of them, with hashes; and where what is written goes.

use harness::bundle::{Builder, Bundle};
use harness::upgrade::{copy_of_the_binary, upgrade};
use harness::{Shim, Test, peers, proc};
use protos::types::Mount;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

const GROUP: &str = "io.containerd.runc.v2.group";
const WRITABLE: &str = "io.dunnage.vm.writable";

fn command(program: &str, args: &[&str]) -> String {
    let run = Command::new(program).args(args).output();
    let run = run.unwrap_or_else(|e| panic!("{program}: {e}: run tests/setup.sh"));
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&run.stdout).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of UTF-8")
}

/// An erofs of the directory `from`.
fn erofs(from: &Path, image: &Path) {
    command("mkfs.erofs", &["-x-1", "-T", "0", text(image), text(from)]);
}

/// An erofs of a directory in which there is `name` alone.
fn layer(dir: &Path, name: &str) -> PathBuf {
    let (tree, image) = (
        dir.join(format!("tree-{name}")),
        dir.join(format!("{name}.erofs")),
    );
    fs::create_dir_all(tree.join("layers")).expect("a layer");
    fs::write(tree.join("layers").join(name), name).expect("a file");
    erofs(&tree, &image);
    image
}

/// An erofs of busybox's root filesystem.
fn busybox(dir: &Path) -> PathBuf {
    let image = dir.join("busybox.erofs");
    erofs(peers::rootfs(), &image);
    image
}

fn ext4(image: &Path) {
    let file = fs::File::create(image).expect("an image");
    file.set_len(64 << 20).expect("a size");
    command("mkfs.ext4", &["-q", "-F", text(image)]);
}

fn mount(kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.into(),
        source: text(source.as_ref()).into(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Default::default()
    }
}

fn readonly(image: &Path) -> Mount {
    mount("erofs", image, &["ro", "loop"])
}

/// Layers, the topmost first, below an ext4 that is written to, as containerd's erofs snapshotter has
/// them for a shim that mounts them itself.
fn below_an_ext4(image: &Path, layers: &[PathBuf]) -> Vec<Mount> {
    let mut mounts = vec![mount("ext4", image, &["rw", "loop"])];
    mounts.extend(layers.iter().map(|layer| readonly(layer)));
    let lower = format!("lowerdir={{{{ overlay 1 {} }}}}", layers.len());
    let options = [
        "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
        "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
        "workdir={{ mount 0 }}/work",
        "upperdir={{ mount 0 }}/upper",
        &lower,
    ];
    mounts.push(mount("format/mkdir/overlay", "overlay", &options));
    mounts
}

/// The host's loop devices that are of files in `dir`.
fn loops(dir: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").expect("/sys/block");
    let files = devices
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("loop/backing_file")).ok());
    files.filter(|file| file.starts_with(text(dir))).collect()
}

async fn said(shim: &Shim, bundle: &Bundle, script: &str) -> String {
    static EXECS: AtomicUsize = AtomicUsize::new(0);
    let exec = format!("e{}", EXECS.fetch_add(1, Ordering::Relaxed));
    let said = crate::said(shim, bundle, bundle.exec_sh(&exec, script)).await;
    shim.delete(&bundle.id, &exec).await.expect("the exec");
    said
}

/// A container that joins the VM of the others.
fn joining(test: &Test, id: &str, root: Vec<Mount>) -> Builder {
    test.bundle(id).annotation(GROUP, "g").rootfs(root)
}

async fn ends(shim: &Shim, bundle: &Bundle) {
    shim.kill(&bundle.id, "", 9, false).await.expect("kill");
    shim.wait(&bundle.id, "").await.expect("an exit");
    shim.delete(&bundle.id, "").await.expect("delete");
}

/// The host mounts none of it, makes no loop device, and finds afterwards what the container has written in
/// the image that is its own.
#[test]
fn layers_of_erofs_below_an_ext4_are_mounted_by_the_guest() {
    crate::run(async |test| {
        let dir = test.dir();
        let own = dir.join("rw.img");
        ext4(&own);
        let layers = [layer(dir, "two"), layer(dir, "one"), busybox(dir)];
        let sums = layers.each_ref().map(|image| fs::read(image).unwrap());
        let bundle = test
            .bundle("c")
            .rootfs(below_an_ext4(&own, &layers))
            .set("/root/readonly", json!(false))
            .build();
        let shim = bundle.running().await;
        assert_eq!(proc::mounts_under(&bundle.path), Vec::<String>::new());
        assert_eq!(loops(dir), Vec::<String>::new(), "the host's loop devices");
        let script = "cat /layers/one /layers/two; rm /layers/two; echo written > /layers/new; \
            ls /layers | tr '\\n' ' '; grep -c ' / .*overlay' /proc/mounts; sync";
        assert_eq!(said(&shim, &bundle, script).await, "onetwonew one 1\n");
        ends(&shim, &bundle).await;
        let written = command("debugfs", &["-R", "cat /upper/layers/new", text(&own)]);
        assert_eq!(written, "written\n");
        assert_eq!(
            layers.each_ref().map(|image| fs::read(image).unwrap()),
            sums
        );
    });
}

/// In one VM with the last of them alone, as a root filesystem that is only read; both go, and the VM
/// lets go of what they were.
#[test]
fn an_image_of_a_hundred_layers_is_a_root() {
    const MANY: usize = 100;
    crate::run(async |test| {
        let dir = test.dir();
        let base = busybox(dir);
        let left = "for at in /sys/block/loop*/loop; do test ! -e $at || echo $at; done | wc -l";
        let sysfs = json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"});
        let view = joining(test, "a", vec![readonly(&base)])
            .mount(sysfs)
            .build();
        let shim = view.running().await;
        let made = "ls -d /sys/block/loop* | wc -l; cat /sys/block/loop0/queue/read_ahead_kb";
        assert_eq!(said(&shim, &view, made).await, "1\n512\n", "not eight");
        let mut layers: Vec<PathBuf> = (1..MANY).map(|n| layer(dir, &n.to_string())).collect();
        layers.push(base);
        let mut mounts: Vec<Mount> = layers.iter().map(|layer| readonly(layer)).collect();
        let lower = format!("lowerdir={{{{ overlay 0 {} }}}}", MANY - 1);
        mounts.push(mount("format/overlay", "overlay", &[&lower]));
        let all = joining(test, "b", mounts).build();
        shim.create(all.create()).await.unwrap();
        shim.start("b", "").await.unwrap();
        assert_eq!(said(&shim, &all, "ls /layers | wc -l").await, "99\n");
        assert_eq!(said(&shim, &view, left).await, "101\n");
        let refused = "touch /x 2>&1 | grep -o Read-only";
        assert_eq!(said(&shim, &view, refused).await, "Read-only\n");
        ends(&shim, &all).await;
        assert_eq!(said(&shim, &view, left).await, "1\n");
        ends(&shim, &view).await;
    });
}

/// An erofs with the hashes of its blocks behind it, and the file that says so beside it.
fn hashed(dir: &Path) -> (PathBuf, Mount) {
    let image = busybox(dir);
    let size = fs::metadata(&image).unwrap().len().next_multiple_of(4096);
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.set_len(size).unwrap();
    let offset = format!("--hash-offset={size}");
    let said = command(
        "veritysetup",
        &["format", &offset, text(&image), text(&image)],
    );
    let root = said
        .lines()
        .find_map(|line| line.strip_prefix("Root hash:"));
    let facts = dir.join("busybox.erofs.dmverity");
    let about = json!({"roothash": root.expect("a root hash").trim(), "hashoffset": size});
    fs::write(&facts, about.to_string()).unwrap();
    let option = format!("X-containerd.dmverity={}", text(&facts));
    let mount = mount("erofs", &image, &["ro", "loop", &option]);
    (image, mount)
}

#[test]
fn an_image_with_hashes_is_what_was_meant_or_is_not_read() {
    crate::run(async |test| {
        let (image, whole) = hashed(test.dir());
        let bundle = joining(test, "a", vec![whole.clone()]).build();
        let shim = bundle.running().await;
        assert_eq!(said(&shim, &bundle, "echo fine").await, "fine\n");
        // The guest has no block of it in memory twice: another image is read anew.
        let changed = test.dir().join("changed.erofs");
        let mut bytes = fs::read(&image).unwrap();
        bytes[1024 + 64] ^= 1;
        fs::write(&changed, bytes).unwrap();
        let mut other = whole.clone();
        other.source = text(&changed).into();
        let other = joining(test, "b", vec![other]).build();
        let why = shim.create(other.create()).await.unwrap_err().to_string();
        assert!(why.contains("failed to mount rootfs component"), "{why}");
        for (n, (facts, named)) in [
            (json!({"roothash": "", "hashoffset": 0}), "root hash \"\""),
            (
                json!({"roothash": "00", "hashoffset": 0}),
                "no description of hashes at byte 0",
            ),
            (json!({"roothash": "00"}), "hashoffset"),
        ]
        .into_iter()
        .enumerate()
        {
            fs::write(test.dir().join("busybox.erofs.dmverity"), facts.to_string()).unwrap();
            let wrong = joining(test, &format!("c{n}"), vec![whole.clone()]).build();
            let why = shim.create(wrong.create()).await.unwrap_err().to_string();
            assert!(why.contains(named), "{facts}: {why}");
        }
        ends(&shim, &bundle).await;
    });
}

/// Each is refused with the host's name of the file, and the VM's other container lives on.
#[test]
fn what_is_no_image_is_refused_by_name() {
    crate::run(async |test| {
        let dir = test.dir();
        let bundle = test.bundle("a").annotation(GROUP, "g").build();
        let shim = bundle.running().await;
        let good = busybox(dir);
        let mut bytes = vec![0; 64 << 10];
        bytes[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
        fs::write(dir.join("corrupt"), &bytes).unwrap();
        fs::write(dir.join("text"), "x".repeat(9999)).unwrap();
        let dir_of = |name: &str| dir.join(name);
        for (n, (mounts, named)) in [
            (vec![readonly(&dir_of("corrupt"))], "corrupt"),
            (vec![readonly(&dir_of("text"))], "text): not erofs"),
            (vec![readonly(&dir_of("missing"))], "missing"),
            (vec![readonly(dir)], "a directory, and no image"),
            (
                vec![
                    readonly(&good),
                    mount("format/overlay", "overlay", &["lowerdir={{ mount 7 }}"]),
                ],
                "{{ mount 7 }}: there are 1 mounts before it",
            ),
            (
                vec![mount("mkfs/ext4", dir_of("new"), &["loop"])],
                "mount type \"mkfs/ext4\"",
            ),
            (
                vec![mount(
                    "mkdir/overlay",
                    "overlay",
                    &["X-containerd.mkdir.path=/new", "lowerdir=/a:/b"],
                )],
                "X-containerd.mkdir.path=/new: not in a mount before it",
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let wrong = joining(test, &format!("b{n}"), mounts).build();
            let why = shim.create(wrong.create()).await.unwrap_err().to_string();
            assert!(
                why.contains("failed to mount rootfs component"),
                "{named}: {why}"
            );
            assert!(why.contains(named), "{named}: {why}");
        }
        // What had failed has left nothing in the way of what is right.
        let right = joining(test, "b", vec![readonly(&good)]).build();
        shim.create(right.create()).await.unwrap();
        shim.start("b", "").await.unwrap();
        assert_eq!(said(&shim, &right, "echo fine").await, "fine\n");
        ends(&shim, &right).await;
        ends(&shim, &bundle).await;
    });
}

fn overlay(dir: &Path, lower: &str) -> Mount {
    for name in ["fs", "work"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    let options = [
        format!("upperdir={}", text(&dir.join("fs"))),
        format!("workdir={}", text(&dir.join("work"))),
        format!("lowerdir={lower}"),
    ];
    mount(
        "overlay",
        "overlay",
        &options.each_ref().map(String::as_str),
    )
}

/// A snapshot's directory that is written to, the guest's memory, and a file beside the snapshot, which is
/// there again when the container is.
#[test]
fn what_is_written_goes_where_the_container_wants_it() {
    crate::run(async |test| {
        let first = test.bundle("a").annotation(GROUP, "g").build();
        let shim = first.running().await;
        let script = "test ! -e /mine || cat /mine; echo written > /mine";
        let rootfs = peers::rootfs();
        let image = busybox(test.dir());
        for (place, times) in [
            ("host", ["", "written\n"]),
            ("memory", [""; 2]),
            ("file", ["", "written\n"]),
        ] {
            for of_images in [false, true] {
                let dir = test.dir().join(format!("of-{place}-{of_images}"));
                let mounts = if of_images {
                    let mut top = overlay(&dir, "{{ mount 0 }}");
                    top.r#type = "format/mkdir/overlay".into();
                    vec![readonly(&image), top]
                } else {
                    vec![overlay(&dir, text(rootfs))]
                };
                for (n, before) in times.into_iter().enumerate() {
                    let id = format!("{place}-{of_images}-{n}");
                    let bundle = joining(test, &id, mounts.clone()).annotation(WRITABLE, place);
                    let bundle = bundle.set("/root/readonly", json!(false)).build();
                    shim.create(bundle.create()).await.unwrap();
                    shim.start(&id, "").await.unwrap();
                    assert_eq!(
                        said(&shim, &bundle, script).await,
                        before,
                        "{place} {of_images}"
                    );
                    ends(&shim, &bundle).await;
                }
                assert_eq!(dir.join("fs/mine").exists(), place == "host", "{place}");
                let file = dir.join("work/writable.ext4");
                assert_eq!(file.exists(), place == "file", "{place}");
            }
        }
        let wrong = test
            .bundle("b")
            .annotation(GROUP, "g")
            .annotation(WRITABLE, "disk")
            .build();
        let why = shim.create(wrong.create()).await.unwrap_err().to_string();
        assert!(
            why.contains("io.dunnage.vm.writable=\"disk\": not host, memory or file"),
            "{why}"
        );
        ends(&shim, &first).await;
    });
}

/// What the operator changes later is for VMs that boot then, also where the shim is another by then.
#[test]
fn a_vm_goes_by_the_settings_that_it_was_booted_with() {
    crate::run(async |test| {
        let in_memory = [("writable", "\"memory\"".to_owned())];
        let config = crate::jail::config(test, "shim-vm.toml", &in_memory);
        let first = test.bundle("a").annotation(GROUP, "g").build();
        let start = first.start();
        let start = start.env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
        let shim = start.shim().await;
        shim.create(first.create()).await.unwrap();
        fs::write(&config, "writable = 7").unwrap();
        for id in ["b", "c"] {
            let dir = test.dir().join(format!("of-{id}"));
            let mounts = vec![overlay(&dir, text(peers::rootfs()))];
            let bundle = joining(test, id, mounts).set("/root/readonly", json!(false));
            let bundle = bundle.build();
            shim.create(bundle.create()).await.unwrap();
            shim.start(id, "").await.unwrap();
            let script = "echo written > /mine; cat /mine";
            assert_eq!(said(&shim, &bundle, script).await, "written\n");
            let upper = fs::read_dir(dir.join("fs")).unwrap();
            assert_eq!(upper.count(), 0, "it is in the guest's memory");
            ends(&shim, &bundle).await;
            let output = upgrade(test, &copy_of_the_binary(test, id)).await;
            assert_eq!(output.code(), Some(0), "{output:?}");
        }
        shim.stop().await;
    });
}
