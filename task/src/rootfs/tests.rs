// SPDX-License-Identifier: Apache-2.0
//! Mounts for real, in a temporary directory; needs root, and is skipped without it.

use super::*;
use std::fs;
use tempfile::TempDir;

/// A temporary directory that is unmounted before it is removed.
pub(super) struct Scratch(TempDir);

impl Scratch {
    /// `None`, with a word about it, for a user that may not mount.
    pub fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: mounting needs root");
            return None;
        }
        Some(Self(TempDir::new().unwrap()))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        fs::create_dir_all(self.path(name)).unwrap();
        self.path(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = unmount::below(self.0.path()).and_then(|(_, points)| unmount::each(points));
    }
}

fn mount_of(kind: &str, source: impl AsRef<Path>, target: &str, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.into(),
        source: source.as_ref().to_str().unwrap().into(),
        target: target.into(),
        options: options.iter().map(|o| o.to_string()).collect(),
    }
}

fn tmpfs(target: &str) -> Mount {
    mount_of("tmpfs", "tmpfs", target, &["size=64k"])
}

/// Runs one of the two asynchronous entrances on a loop of its own. Nobody reaps: the test binary
/// has children of other tests.
fn wait<T>(work: impl AsyncFnOnce(&Reaper) -> T) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { work(&*Reaper::new().unwrap()).await })
}

fn mount_all(rootfs: &Path, mounts: Vec<Mount>) -> Result<(), MountError> {
    let rootfs = rootfs.to_owned();
    wait(async |reaper| super::mount_all(reaper, &Context::background(), rootfs, mounts).await)
}

fn unmount_recursive(path: &Path) -> Result<(), MountError> {
    wait(async |reaper| super::unmount_recursive(reaper, path.to_owned()).await)
}

fn mounted_below(path: &Path) -> Vec<PathBuf> {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let points = mountinfo::parse(&table).map(|mount| mountinfo::path(mount.point));
    points.filter(|point| point.starts_with(path)).collect()
}

#[test]
fn n4_a_readonly_bind_is_readonly_but_its_source_is_not() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let (source, rootfs) = (scratch.dir("source"), scratch.dir("rootfs"));
    fs::write(source.join("file"), "content").unwrap();
    mount_all(
        &rootfs,
        vec![mount_of("bind", &source, "", &["rbind", "ro"])],
    )
    .unwrap();
    assert_eq!(fs::read(rootfs.join("file")).unwrap(), b"content");
    let refused = fs::write(rootfs.join("new"), "").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    fs::write(source.join("new"), "").unwrap();
    unmount_recursive(&rootfs).unwrap();
    assert_eq!(mounted_below(&rootfs), Vec::<PathBuf>::new());
    assert!(!rootfs.join("file").exists());
}

#[test]
fn n1_parents_come_before_children_and_all_go_again() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let (upper, rootfs) = (scratch.dir("upper"), scratch.dir("root fs"));
    fs::create_dir_all(upper.join("a/b")).unwrap();
    let parent = mount_of("bind", &upper, "", &["bind"]);
    mount_all(&rootfs, vec![parent, tmpfs("/a/b"), tmpfs("a")]).unwrap();
    let expected = [rootfs.clone(), rootfs.join("a/b"), rootfs.join("a")];
    assert_eq!(mounted_below(&rootfs), expected);
    // Hidden by the mount above it, and stacked: both are found.
    mount_all(&rootfs, vec![tmpfs(""), tmpfs("")]).unwrap();
    unmount_recursive(&rootfs).unwrap();
    assert_eq!(mounted_below(&rootfs), Vec::<PathBuf>::new());
    unmount_recursive(&rootfs).unwrap();
    unmount_recursive(&scratch.path("missing")).unwrap();
}

#[test]
fn a_failed_mount_undoes_only_what_came_before_it() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let rootfs = scratch.dir("rootfs");
    mount_all(&rootfs, vec![tmpfs("")]).unwrap();
    fs::write(rootfs.join("mine"), "").unwrap();
    let missing = mount_of("bind", "/no/such/source", "", &["bind", "ro"]);
    let error = mount_all(&rootfs, vec![tmpfs(""), tmpfs(""), missing]).unwrap_err();
    assert!(
        matches!(
            &error,
            MountError::Mount { error, .. } if error.raw_os_error() == Some(libc::ENOENT)
        ),
        "{error}"
    );
    let text = error.to_string();
    for part in [
        "\"/no/such/source\"",
        "bind,ro",
        "no such file or directory",
        rootfs.to_str().unwrap(),
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(mounted_below(&rootfs), std::slice::from_ref(&rootfs));
    assert!(rootfs.join("mine").exists());
}

#[test]
fn n2_a_refused_option_leaves_nothing_mounted() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let rootfs = scratch.dir("rootfs");
    let mapped = mount_of("bind", "/", "/data", &["rbind", "uidmap=0:1000:1"]);
    let error = mount_all(&rootfs, vec![tmpfs(""), mapped]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "mount source: \"/\", target: \"/data\", fstype: bind: \
         mount option \"uidmap=0:1000:1\": needs a gidmap= beside it"
    );
    assert_eq!(mounted_below(&rootfs), Vec::<PathBuf>::new());
}

#[test]
fn n4_a_loop_device_that_was_not_mounted_is_free_again() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let (image, rootfs) = (scratch.path("image"), scratch.dir("rootfs"));
    let looped = || mount_of("ext4", &image, "", &["loop", "direct-io"]);
    let error = mount_all(&rootfs, vec![looped()]).unwrap_err().to_string();
    let expected = format!("open {}: no such file or directory", image.display());
    assert!(error.ends_with(&expected), "{error}");
    fs::write(&image, [0; 1 << 16]).unwrap();
    let error = mount_all(&rootfs, vec![looped()]).unwrap_err();
    assert!(
        matches!(
            &error,
            MountError::Mount { error, .. } if error.raw_os_error() == Some(libc::EINVAL)
        ),
        "no filesystem is in there: {error}"
    );
    let file = |device: io::Result<fs::DirEntry>| {
        fs::read_to_string(device.unwrap().path().join("loop/backing_file")).ok()
    };
    let files: Vec<_> = fs::read_dir("/sys/block")
        .unwrap()
        .filter_map(file)
        .collect();
    let image = image.to_str().unwrap();
    assert!(
        !files.iter().any(|file| file.starts_with(image)),
        "{files:?}"
    );
}

#[test]
fn n3_two_hundred_layers_with_long_paths_make_one_overlay() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let (store, rootfs) = (
        format!("{}/snapshots", "long/".repeat(40)),
        scratch.dir("rootfs"),
    );
    let layer = |i: u32| scratch.dir(&format!("{store}/{i}/fs"));
    let layers: Vec<PathBuf> = (1..=200).map(layer).collect();
    for (i, dir) in layers.iter().enumerate() {
        fs::write(dir.join(format!("from-{i}")), "").unwrap();
        fs::write(dir.join("topmost"), i.to_string()).unwrap();
    }
    let (upper, work) = (scratch.dir(&format!("{store}/201/fs")), scratch.dir("work"));
    let lower: Vec<&str> = layers.iter().map(|dir| dir.to_str().unwrap()).collect();
    let options = [
        format!("workdir={}", work.display()),
        format!("upperdir={}", upper.display()),
        format!("lowerdir={}", lower.join(":")),
    ];
    assert!(options[2].len() > 40_000);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let before = std::env::current_dir().unwrap();
    let overlay = mount_of("overlay", "overlay", "", &options);
    mount_all(&rootfs, vec![overlay, tmpfs("mnt")]).unwrap_err(); // no such target
    assert_eq!(mounted_below(&rootfs), Vec::<PathBuf>::new());
    let overlay = mount_of("overlay", "overlay", "", &options);
    mount_all(&rootfs, vec![overlay]).unwrap();
    assert_eq!(std::env::current_dir().unwrap(), before);
    assert_eq!(fs::read_to_string(rootfs.join("topmost")).unwrap(), "0");
    assert!((0..200).all(|i| rootfs.join(format!("from-{i}")).exists()));
    fs::write(rootfs.join("written"), "").unwrap();
    assert!(upper.join("written").exists());
    unmount_recursive(&rootfs).unwrap();
    assert_eq!(mounted_below(&rootfs), Vec::<PathBuf>::new());
}

#[test]
fn n7_a_busy_mount_is_tried_until_it_is_free() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let rootfs = scratch.dir("rootfs");
    mount_all(&rootfs, vec![tmpfs("")]).unwrap();
    let open = fs::File::create(rootfs.join("open")).unwrap();
    wait(async |reaper| {
        let unmounted = super::unmount_recursive(reaper, rootfs.clone());
        tokio::pin!(unmounted);
        // The loop is free while the thread is busy with it.
        let early = tokio::time::timeout(4 * unmount::BUSY_PAUSE, &mut unmounted).await;
        assert!(early.is_err(), "unmounted while in use");
        drop(open);
        unmounted.await.unwrap();
    });
    assert_eq!(mounted_below(&rootfs), Vec::<PathBuf>::new());
}

#[test]
fn n7_a_mount_that_stays_busy_is_an_error() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let rootfs = scratch.dir("rootfs");
    mount_all(&rootfs, vec![tmpfs("")]).unwrap();
    let _open = fs::File::create(rootfs.join("open")).unwrap();
    let error = unmount_recursive(&rootfs).unwrap_err();
    assert!(
        matches!(
            &error,
            MountError::Unmount { error, .. } if error.raw_os_error() == Some(libc::EBUSY)
        ),
        "{error}"
    );
}
