// SPDX-License-Identifier: Apache-2.0
//! N5: mounts that show their files with other owners.

use super::{ended, mount, sh, started, text, tool};
use harness::bundle::Builder;
use harness::{Bundle, Code, differs, peers, refused};
use protos::types::Mount;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

pub(super) const UIDMAP: &str = "uidmap=0:100000:65536";
pub(super) const GIDMAP: &str = "gidmap=0:200000:65536";

/// A container with a user namespace, as containerd makes its bundle: our root is its 100000.
fn in_user_namespace(builder: Builder) -> Bundle {
    let map = |host| json!([{ "containerID": 0, "hostID": host, "size": 65536 }]);
    let namespaces = ["pid", "ipc", "uts", "mount", "user"].map(|kind| json!({ "type": kind }));
    let bundle = builder
        .set("/linux/namespaces", json!(namespaces))
        .set("/linux/uidMappings", map(100_000))
        .set("/linux/gidMappings", map(200_000))
        .set("/root/readonly", json!(false))
        .build();
    chown(&bundle.path, Some(0), Some(200_000)).unwrap();
    fs::set_permissions(&bundle.path, fs::Permissions::from_mode(0o710)).unwrap();
    bundle
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (meta.uid(), meta.gid())
}

/// N5: an overlay's lower layers are mapped; on disk they stay root's, and the container's root,
/// who is nobody to us, owns all that it sees.
#[test]
fn idmapped_overlay_belongs_to_the_containers_root() {
    harness::run(async |test| {
        let (lower, upper) = (test.dir().join("lower"), test.dir().join("upper"));
        let work = test.dir().join("work");
        for dir in [&lower, &upper, &work] {
            fs::create_dir(dir).unwrap();
        }
        for dir in [&upper, &work] {
            chown(dir, Some(100_000), Some(200_000)).unwrap();
        }
        fs::write(lower.join("mine"), "root's").unwrap();
        let options = [
            format!("lowerdir={}:{}", text(&lower), text(peers::rootfs())),
            format!("upperdir={}", text(&upper)),
            format!("workdir={}", text(&work)),
        ];
        let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
        options.extend([UIDMAP, GIDMAP]);
        let builder = test
            .bundle("c")
            .rootfs(vec![mount("overlay", "overlay", &options)]);
        let bundle = in_user_namespace(builder);
        if differs("idmapped-mounts") {
            let shim = bundle.start().shim().await;
            assert_eq!(
                refused(shim.create(bundle.create()).await).code,
                Code::Unknown
            );
            return;
        }
        let shim = started(&bundle).await;
        assert_eq!(bundle.mounts(), [text(&bundle.file("rootfs"))]);
        let rootfs = bundle.rootfs_of(&shim);
        assert_eq!(owner(&rootfs.join("mine")), (100_000, 200_000));
        assert_eq!(owner(&rootfs.join("bin/busybox")), (100_000, 200_000));
        let script = "test $(stat -c %u:%g /mine) = 0:0 && echo more >>/mine && \
                      touch /new && chown 7:8 /new && test $(stat -c %u:%g /new) = 7:8";
        sh(&shim, &bundle, "e", script).await;
        assert_eq!(owner(&lower.join("mine")), (0, 0));
        assert_eq!(fs::read_to_string(lower.join("mine")).unwrap(), "root's");
        assert_eq!(owner(&upper.join("mine")), (100_000, 200_000));
        assert_eq!(owner(&upper.join("new")), (100_007, 200_008));
        ended(&shim, "c").await;
        shim.delete("c", "").await.unwrap();
        assert_eq!(bundle.mounts(), [] as [String; 0]);
        assert_eq!(
            shim.footprint().children,
            0,
            "the user namespace's process is reaped"
        );
    });
}

/// N5, N3: so many layers that their paths are made relative, all of them mapped.
#[test]
fn idmapped_overlay_may_have_many_layers() {
    if differs("idmapped-mounts") {
        return;
    }
    harness::run(async |test| {
        let store = test.dir().join("a-long-name/".repeat(8));
        let layers: Vec<PathBuf> = (0..120).map(|n| store.join(n.to_string())).collect();
        for (n, dir) in layers.iter().enumerate() {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join(format!("from-{n}")), "").unwrap();
        }
        let lower: Vec<&str> = layers.iter().map(|dir| text(dir)).collect();
        let lower = format!("lowerdir={}", lower.join(":"));
        let busybox = mount("bind", text(peers::rootfs()), &["rbind", UIDMAP, GIDMAP]);
        let overlay = Mount {
            target: "/mnt".to_owned(),
            ..mount("overlay", "overlay", &[&lower, GIDMAP, UIDMAP])
        };
        let bundle = in_user_namespace(test.bundle("c").rootfs(vec![busybox, overlay]));
        let shim = started(&bundle).await;
        let mounted = ["rootfs", "rootfs/mnt"].map(|at| bundle.file(at));
        assert_eq!(bundle.mounts(), mounted.each_ref().map(|at| text(at)));
        let mnt = bundle.rootfs_of(&shim).join("mnt");
        for n in 0..layers.len() {
            assert_eq!(owner(&mnt.join(format!("from-{n}"))), (100_000, 200_000));
        }
        ended(&shim, "c").await;
    });
}

/// N5: a bind mount is mapped itself, read-only or not, and its source is not.
#[test]
fn idmapped_bind_belongs_to_the_containers_root() {
    if differs("idmapped-mounts") {
        return;
    }
    harness::run(async |test| {
        let source = test.dir().join("source");
        tool("cp", &["-a", text(peers::rootfs()), text(&source)]);
        for (id, options, script) in [
            ("rw", &["rbind", UIDMAP, GIDMAP] as &[&str], "touch /new"),
            ("ro", &["rbind", "ro", UIDMAP, GIDMAP], "! touch /newer"),
        ] {
            let rootfs = vec![mount("bind", text(&source), options)];
            let bundle = in_user_namespace(test.bundle(id).rootfs(rootfs));
            let shim = started(&bundle).await;
            assert_eq!(bundle.mounts(), [text(&bundle.file("rootfs"))]);
            assert_eq!(
                owner(&bundle.rootfs_of(&shim).join("bin")),
                (100_000, 200_000)
            );
            sh(&shim, &bundle, "e", script).await;
            assert_eq!(
                owner(&source.join("new")),
                (0, 0),
                "as it was written, on disk"
            );
            ended(&shim, id).await;
        }
    });
}

/// N5: maps that the kernel or we refuse leave nothing, and name the option or the file.
#[test]
fn idmapped_mounts_that_cannot_be_are_refused() {
    if differs("idmapped-mounts") {
        return;
    }
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let busybox = text(peers::rootfs());
        for (mount, said) in [
            (mount("bind", busybox, &["bind", UIDMAP]), UIDMAP),
            (
                mount("bind", busybox, &["bind", "uidmap=0:1", GIDMAP]),
                "uidmap=0:1",
            ),
            (
                mount("bind", busybox, &["bind", "uidmap=0:1:2,1:5:1", GIDMAP]),
                "user namespace",
            ),
            (mount("proc", "proc", &[UIDMAP, GIDMAP]), "map the owners"),
            (
                mount("overlay", "overlay", &["lowerdir=/no:/dir", UIDMAP, GIDMAP]),
                "/dir",
            ),
        ] {
            let mut request = bundle.create();
            request.rootfs = vec![mount];
            let status = refused(shim.create(request).await);
            assert_eq!(status.code, Code::Unknown);
            assert!(status.message.contains(said), "{said}: {}", status.message);
            assert_eq!(bundle.mounts(), [] as [String; 0]);
        }
        assert_eq!(shim.footprint().children, 0);
        shim.create(bundle.create()).await.unwrap();
    });
}
