// SPDX-License-Identifier: Apache-2.0
//! Who mounts what, and how.

use super::part::{MKDIR, directory};
use super::*;
use std::fs;

fn image(dir: &Path, name: &str, kind: &str) -> String {
    let mut bytes = vec![0; 4096];
    match kind {
        "erofs" => bytes[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes()),
        "ext4" => bytes[1080..1082].copy_from_slice(&0xef53_u16.to_le_bytes()),
        _ => {}
    }
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The stack of a root that the guest mounts.
fn guests(mounts: &[Mount], writable: Writable) -> (Option<Vec<Mount>>, Stack) {
    match plan(mounts.to_vec(), writable, false) {
        Ok(Root::Guest { lower, stack }) => (lower, stack),
        other => panic!("{mounts:?}: {other:?}"),
    }
}

fn lines(layers: &[Layer]) -> Vec<String> {
    let line = |layer: &Layer| {
        let mount = &layer.mount;
        let (kind, target) = (&mount.r#type, &mount.target);
        format!(
            "{kind} {} {target} {}",
            mount.source,
            mount.options.join(",")
        )
    };
    layers.iter().map(line).collect()
}

/// As containerd's erofs snapshotter has it, with its writable layer in an image.
#[test]
fn images_with_a_writable_one_are_the_guests() {
    let dir = tempfile::tempdir().unwrap();
    let rw = image(dir.path(), "rw", "ext4");
    let [one, two] = ["one", "two"].map(|name| image(dir.path(), name, "erofs"));
    let mounts = [
        mount("ext4", &rw, &["rw", "loop"]),
        mount("erofs", &one, &["ro", "loop"]),
        mount("erofs", &two, &["ro", "loop"]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
                "workdir={{ mount 0 }}/work",
                "upperdir={{ mount 0 }}/upper",
                "lowerdir={{ overlay 1 2 }}",
            ],
        ),
    ];
    let (lower, stack) = guests(&mounts, Writable::Host);
    assert_eq!(lower, None);
    let files: Vec<PathBuf> = [&rw, &one, &two].map(PathBuf::from).into();
    let readonly = [false, true, true];
    assert_eq!(
        stack.files(),
        files.into_iter().zip(readonly).collect::<Vec<_>>()
    );
    let layers = stack
        .layers("/b", |file| format!("/s{file}"), None)
        .unwrap();
    assert_eq!(
        lines(&layers)[1..],
        [
            format!("ext4 /s{rw} 0 rw,loop"),
            format!("erofs /s{one} 1 ro,loop,direct-io"),
            format!("erofs /s{two} 2 ro,loop,direct-io"),
            "overlay overlay top workdir=/b/0/work,upperdir=/b/0/upper,lowerdir=/b/1:/b/2".into(),
        ]
    );
    let dirs: Vec<(PathBuf, u32)> = ["0/upper", "0/work", "top"]
        .map(|d| (d.into(), 0o755))
        .into();
    assert_eq!(layers[4].dirs, dirs);
}

#[test]
fn one_image_is_a_root_and_what_is_none_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let one = image(dir.path(), "one", "erofs");
    let mounts = [mount("erofs", &one, &["ro"])];
    let (_, stack) = guests(&mounts, Writable::Memory);
    let layers = stack.layers("/b", str::to_owned, None).unwrap();
    assert_eq!(
        lines(&layers)[1],
        format!("erofs {one} top ro,loop,direct-io")
    );
    for (kind, why) in [("ext4", "not ext4"), ("none", "not erofs")] {
        let wrong = image(dir.path(), "wrong", "none");
        let kind = if kind == "none" { "erofs" } else { kind };
        let (_, stack) = guests(&[mount(kind, &wrong, &["ro", "loop"])], Writable::Host);
        let found = stack.layers("/b", str::to_owned, None).unwrap_err();
        assert_eq!(found, format!("mount 0 ({wrong}): {why}"));
    }
    fs::write(dir.path().join("short"), "x").unwrap();
    for (name, why) in [
        ("short", "too short for erofs"),
        (".", "not a file"),
        ("none", "No such file"),
    ] {
        let file = dir.path().join(name);
        let (_, stack) = guests(
            &[mount("erofs", file.to_str().unwrap(), &[])],
            Writable::Host,
        );
        let found = stack.layers("/b", str::to_owned, None).unwrap_err();
        assert!(found.contains(why), "{found}");
    }
    // A block device is the host's.
    let mounts = vec![mount("ext4", "/dev/mapper/thin-1", &[])];
    assert_eq!(
        plan(mounts.clone(), Writable::Host, false),
        Ok(Root::Host(Mounts::Plain(mounts)))
    );
}

#[test]
fn a_directory_to_write_to_keeps_all_on_the_host_unless_another_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let one = image(dir.path(), "one", "erofs");
    let mounts = [
        mount("erofs", &one, &["ro", "loop"]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "workdir=/h/work",
                "upperdir=/h/fs",
                "lowerdir={{ mount 0 }}",
                "index=off",
            ],
        ),
    ];
    let Ok(Root::Host(Mounts::Stack(stack))) = plan(mounts.to_vec(), Writable::Host, false) else {
        panic!("the host's");
    };
    let layers = stack.layers("/b", str::to_owned, None).unwrap();
    let top = "overlay overlay top workdir=/h/work,upperdir=/h/fs,lowerdir=/b/0,index=off";
    assert_eq!(lines(&layers)[2], top);
    let (_, stack) = guests(&mounts, Writable::File);
    assert_eq!(stack.file(), Some(Path::new("/h/work/writable.ext4")));
    let layers = stack
        .layers("/b", |file| format!("/s{file}"), None)
        .unwrap();
    assert_eq!(
        lines(&layers)[2..],
        [
            "ext4 /s/h/work/writable.ext4 own loop",
            "overlay overlay top lowerdir=/b/0,upperdir=/b/own/upper,workdir=/b/own/work",
        ]
    );
    // Who can't write needs no place for it.
    let readonly = plan(mounts.to_vec(), Writable::Memory, true);
    assert!(
        matches!(readonly, Ok(Root::Host(Mounts::Stack(_)))),
        "{readonly:?}"
    );
}

#[test]
fn what_is_below_a_layer_of_the_guests_is_mounted_by_the_host() {
    let overlay = |lower: &str| {
        let lower = format!("lowerdir={lower}");
        mount(
            "overlay",
            "overlay",
            &["index=off", "workdir=/h/work", "upperdir=/h/fs", &lower],
        )
    };
    let bind = |dir: &str| mount("bind", dir, &["rbind", "ro"]);
    let two = mount("overlay", "overlay", &["index=off", "lowerdir=/l1:/l2"]);
    for (given, expected) in [
        (overlay("/l1:/l2"), two),
        (overlay("/l1"), bind("/l1")),
        (mount("bind", "/dir", &["rbind", "rw"]), bind("/dir")),
    ] {
        let (lower, stack) = guests(&[given], Writable::Memory);
        assert_eq!(lower, Some(vec![expected]));
        let layers = stack.layers("/b", str::to_owned, Some("/lower")).unwrap();
        assert_eq!(
            lines(&layers)[1..],
            [
                "tmpfs tmpfs own mode=0755",
                "overlay overlay top lowerdir=/lower,upperdir=/b/own/upper,workdir=/b/own/work",
            ]
        );
    }
    let why = plan(vec![mount("bind", "/dir", &["rw"])], Writable::File, false).unwrap_err();
    assert!(why.contains("no work directory"), "{why}");
}

/// What is to be done before is done by who mounts, whether or not a text names other mounts.
#[test]
fn a_transform_without_templates_is_not_the_kernels_type() {
    let stack = |mounts: Vec<Mount>| match plan(mounts, Writable::Host, false) {
        Ok(Root::Host(Mounts::Stack(stack))) => stack.layers("/b", str::to_owned, None),
        other => panic!("{other:?}"),
    };
    let layers = stack(vec![mount("mkdir/bind", "/dir", &["rbind"])]).unwrap();
    assert_eq!(lines(&layers)[1], "bind /dir top rbind");
    let path = format!("{MKDIR}/dir/work");
    let found = stack(vec![mount("mkdir/overlay", "overlay", &[&path])]).unwrap_err();
    let why = format!("mount 0 (overlay): {path}: not in a mount before it");
    assert_eq!(found, why);
}

#[test]
fn directories_that_are_wrong_are_named() {
    for (text, why) in [
        ("/b/0/x:abc", "no mode"),
        ("/b/0/x:7777", "no mode"),
        ("/b/0/x:0755:1:1", "an owner other"),
        ("/other/x", "not in a mount before it"),
        ("/b/0/../../x", "not in a mount before it"),
    ] {
        let found = directory(text, "/b").unwrap_err();
        assert!(found.starts_with(MKDIR) && found.contains(why), "{found}");
    }
    assert_eq!(
        directory("/b/0/x:0755:0:0", "/b"),
        Ok(("0/x".into(), 0o755))
    );
}

/// What is bound may be somebody else's too; an overlay is made for one container.
#[test]
fn an_overlay_changes_only_through_its_container() {
    let plain = |mounts: &[Mount]| Mounts::Plain(mounts.to_vec()).are_alone();
    let overlay = mount(
        "overlay",
        "overlay",
        &["lowerdir=/l", "upperdir=/u", "workdir=/w"],
    );
    let bind = mount("bind", "/dir", &["rbind"]);
    assert!(plain(std::slice::from_ref(&overlay)));
    assert!(!plain(std::slice::from_ref(&bind)) && !plain(&[]));
    let inside = Mount {
        target: "inside".into(),
        ..overlay.clone()
    };
    assert!(!plain(&[bind, inside]), "it is not what the root is");
}
