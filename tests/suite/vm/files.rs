// SPDX-License-Identifier: Apache-2.0
//! What a VM sees of the host's files: its root filesystem, volumes, and nothing else.

use crate::said;
use harness::bundle::{Bundle, process};
use harness::disk::Disk;
use harness::stdio::{Fifos, Stdio, Sum};
use harness::{Shim, Test, peers, proc, wait};
use protos::types::Mount;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const CAPABILITY: &str = "security.capability";
/// CAP_NET_RAW, effective and permitted (vfs_cap_data of linux/capability.h, revision 2).
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn copied_rootfs(to: &Path) {
    let script = format!("cp -a {} {}", peers::rootfs().display(), to.display());
    let done = std::process::Command::new("sh")
        .args(["-c", &script])
        .status();
    assert!(done.expect("cp").success());
}

/// An overlay as containerd makes it, with the directories `upper` and `work` in `dir`.
fn overlay(lower: &Path, dir: &Path) -> Mount {
    Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            format!("lowerdir={}", lower.display()),
            format!("upperdir={}", dir.join("upper").display()),
            format!("workdir={}", dir.join("work").display()),
        ],
        ..Default::default()
    }
}

/// A container in an overlay that is its own, which it may write to, with the directory `data` in /data; and the
/// overlay's upper directory.
fn in_an_overlay(test: &Test) -> (Bundle, PathBuf) {
    let dir = test.dir().join("files");
    for name in ["upper", "work", "data"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    let data = json!({"destination": "/data", "type": "bind", "source": dir.join("data"),
                      "options": ["rbind", "rw"]});
    let bundle = test.bundle("c").mount(data);
    let bundle = bundle.rootfs(vec![overlay(peers::rootfs(), &dir)]);
    let bundle = bundle.set("/root/readonly", json!(false)).build();
    (bundle, dir)
}

/// What `script` says, and how many bytes the file server read meanwhile.
async fn reading(shim: &Shim, bundle: &Bundle, exec: &str, script: &str) -> (String, u64) {
    let files = crate::child(shim, "fsd");
    let before = proc::bytes_read(files);
    let told = said(shim, bundle, bundle.exec_sh(exec, script)).await;
    shim.delete(&bundle.id, exec).await.unwrap();
    (told, proc::bytes_read(files) - before)
}

/// An overlay as containerd makes it, a directory and a file, live both ways, one of them
/// read-only; 64 MiB by checksum.
#[test]
fn rootfs_and_volumes_are_the_hosts_live_both_ways() {
    crate::run(async |test| {
        let dir = test.dir().join("files");
        for name in ["upper", "work", "data", "readonly", "parent"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        copied_rootfs(&dir.join("lower"));
        let big: Vec<u8> = (0..16_u32 << 20).flat_map(u32::to_le_bytes).collect();
        fs::write(dir.join("data/big"), &big).unwrap();
        fs::write(dir.join("parent/hosts"), "127.0.0.1 me\n").unwrap();
        fs::write(dir.join("parent/secret"), "").unwrap();
        let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let overlay = overlay(&dir.join("lower"), &dir);
        let bind = |source: String, destination: &str, mode: &str| {
            json!({"destination": destination, "type": "bind", "source": source,
                   "options": ["rbind", mode]})
        };
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let script = "\
            sha256sum /data/big | cut -d' ' -f1; \
            echo from the guest > /etc/written; \
            echo from the guest > /data/written; \
            cat /etc/hosts; ls /; \
            touch /readonly/x 2>/dev/null || echo read-only; \
            stat -f -c %T /dev/shm /tmp; \
            while ! grep -q host /data/answer 2>/dev/null; do sleep 0.05; done; cat /data/answer";
        let bundle = test
            .bundle("c")
            .rootfs(vec![overlay])
            .set("/root/readonly", json!(false))
            .mount(bind(at("data"), "/data", "rw"))
            .mount(bind(at("readonly"), "/readonly", "ro"))
            .mount(bind(at("parent/hosts"), "/etc/hosts", "rw"))
            .mount(bind("/run/nowhere".into(), "/dev/shm", "rw"))
            .mount(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}))
            .sh(script)
            .build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create().output(&fifos)).await.unwrap();
        assert_eq!(
            proc::mounts_under(&bundle.path),
            Vec::<String>::new(),
            "the host sees no mount of ours"
        );
        shim.start("c", "").await.unwrap();
        assert_eq!(out.line().await, Sum::of(&big).sha256);
        assert_eq!(out.line().await, "127.0.0.1 me");
        let root = out.until("read-only\n").await;
        assert!(!root.contains("secret"), "the file's neighbours: {root}");
        assert_eq!(
            (out.line().await, out.line().await),
            ("tmpfs".into(), "tmpfs".into())
        );
        let written = fs::read_to_string(dir.join("upper/etc/written")).unwrap();
        assert_eq!(written, "from the guest\n", "what a commit would find");
        assert_eq!(
            fs::read_to_string(dir.join("data/written")).unwrap(),
            written
        );
        fs::write(dir.join("data/answer"), "from the host\n").unwrap();
        assert_eq!(out.text().await, "from the host\n");
        wait::soon("its end", shim.wait("c", "")).await.unwrap();
        shim.delete("c", "").await.unwrap();
        assert!(!dir.join("readonly/x").exists());
        shim.released().await;
    });
}

/// Two containers in one VM: the second comes and goes, and sees nothing of the first's volumes.
/// Its mount of two of the guest's own directories makes the guest load a driver.
#[test]
fn a_second_container_of_the_group_joins_the_vm() {
    crate::run(async |test| {
        let group = "io.containerd.runc.v2.group";
        let first = test.bundle("a").annotation(group, "g").share().build();
        let shim = first.running().await;
        let second = test
            .bundle("b")
            .annotation(group, "g")
            .mount(
                json!({"destination": "/home", "type": "overlay", "source": "overlay",
                          "options": ["lowerdir=/usr/bin:/etc/dunnage"]}),
            )
            .sh("ls /mnt; cd /home; ls guest.toml runc; exit 4")
            .build();
        let answer = second.start().answer().await;
        assert_eq!(answer.socket(), shim.socket());
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        fs::write(test.share().join("of-a"), "").unwrap();
        let created = shim.create(second.create().output(&fifos)).await.unwrap();
        assert_eq!(created.pid as i32, shim.init("a").await, "the same VM");
        shim.start("b", "").await.unwrap();
        assert_eq!(shim.wait("b", "").await.unwrap().exit_status, 4);
        assert_eq!(
            out.text().await,
            "guest.toml\nrunc\n",
            "/mnt of b is b's own, and empty"
        );
        shim.delete("b", "").await.unwrap();
        assert_eq!(
            shim.run(first.exec_sh("e", "exit 3")).await as i32,
            shim.init("a").await
        );
        assert_eq!(shim.wait("a", "e").await.unwrap().exit_status, 3);
        shim.kill("a", "", 9, false).await.unwrap();
        shim.wait("a", "").await.unwrap();
        shim.delete("a", "").await.unwrap();
    });
}

/// The guest keeps a program that it has read, once that has not changed for a while; and notices
/// a change though size and modification time stay.
#[test]
fn a_program_is_read_anew_only_when_it_has_changed() {
    crate::run(async |test| {
        const KEPT: u64 = 64 << 10;
        let program = test.share().join("busybox");
        fs::copy(peers::rootfs().join("bin/busybox"), &program).unwrap();
        let bundle = test.bundle("c").share().build();
        let shim = bundle.running().await;
        let files = crate::child(&shim, "fsd");
        let run = async |exec: &str| {
            let before = proc::bytes_read(files);
            shim.run(bundle.exec(exec, &["/mnt/busybox", "true"])).await;
            let status = shim.wait("c", exec).await.unwrap().exit_status;
            shim.delete("c", exec).await.unwrap();
            (status, proc::bytes_read(files) - before)
        };
        let (status, read) = run("first").await;
        assert_eq!(status, 0);
        assert!(read > KEPT, "{read} bytes");
        while run("again").await.1 > KEPT {}

        let times = fs::metadata(&program).unwrap();
        let mut other = b"#!/bin/sh\nexit 4\n".to_vec();
        other.resize(times.len() as usize, b'\n');
        fs::write(&program, other).unwrap();
        let changed = fs::File::options().write(true).open(&program).unwrap();
        changed.set_modified(times.modified().unwrap()).unwrap();
        assert_eq!(run("changed").await.0, 4);
        shim.stopped().await;
    });
}

/// A root filesystem that changes only through the guest is read once, and so are the names in it, those
/// that are not there among them; what the guest does to it, it sees.
#[test]
fn the_guest_keeps_what_changes_only_through_it() {
    crate::run(async |test| {
        const MIB: u64 = 1 << 20;
        let (bundle, dir) = in_an_overlay(test);
        fs::write(dir.join("upper/large"), vec![7; 8 << 20]).unwrap();
        let shim = bundle.running().await;
        let script =
            "exec 2>&1; sha256sum </large; ls /etc >/dev/null; ! test -e /etc/new || echo new";
        let (first, read) = reading(&shim, &bundle, "first", script).await;
        assert!(read > 8 * MIB, "{read} bytes");
        let (again, read) = reading(&shim, &bundle, "again", script).await;
        assert_eq!(again, first);
        assert!(read < 2 * MIB, "{read} bytes");

        let script = "exec 2>&1; echo new >/etc/new; ls /etc | grep -x new; cat /etc/new; \
                      mv /etc/new /etc/newer; test -e /etc/new || cat /etc/newer; \
                      echo more >>/etc/newer; stat -c %s /etc/newer; rm /etc/newer; ls /etc | grep new; \
                      printf 8 | dd of=/large bs=1 seek=5 conv=notrunc 2>/dev/null; od -An -c -N 6 /large | tr -d ' '";
        let (told, _) = reading(&shim, &bundle, "changes", script).await;
        assert_eq!(told, "new\nnew\nnew\n9\n\\a\\a\\a\\a\\a8\n");
        assert_eq!(fs::read(dir.join("upper/large")).unwrap()[5], b'8');
        shim.stopped().await;
    });
}

/// A volume, and a root filesystem that is a directory of the host's, which others may change, are looked at
/// again after a second at most: for content, for names that have become another file's, and for new ones.
#[test]
fn what_others_change_is_seen_soon() {
    crate::run(async |test| {
        let root = test.dir().join("root");
        copied_rootfs(&root);
        let volume = test.share();
        let bundle = test.bundle("c").share();
        let bundle = bundle.rootfs(vec![Mount {
            r#type: "bind".into(),
            source: root.to_string_lossy().into_owned(),
            options: vec!["rbind".into()],
            ..Default::default()
        }]);
        let bundle = bundle.build();
        for dir in [&volume, &root] {
            fs::write(dir.join("grows"), "1").unwrap();
            fs::write(dir.join("replaced"), "1").unwrap();
        }
        let shim = bundle.running().await;
        let look = "cat /mnt/grows /mnt/replaced /grows /replaced; ls /mnt/new /new 2>/dev/null";
        assert_eq!(reading(&shim, &bundle, "first", look).await.0, "1111");
        for dir in [&volume, &root] {
            fs::write(dir.join("grows"), "22").unwrap();
            fs::write(dir.join("other"), "333").unwrap();
            fs::rename(dir.join("other"), dir.join("replaced")).unwrap();
            fs::write(dir.join("new"), "").unwrap();
        }
        let wait = "until test -e /new && test -e /mnt/new && \
                    test \"$(cat /mnt/grows /mnt/replaced /grows /replaced)\" = 2233322333; do :; done; \
                    cut -d' ' -f1 /proc/uptime";
        let since = reading(&shim, &bundle, "since", "cut -d' ' -f1 /proc/uptime").await;
        let seen = wait::soon("the changes", reading(&shim, &bundle, "wait", wait)).await;
        let seconds = |told: &str| told.trim().parse::<f64>().expect("seconds");
        let took = seconds(&seen.0) - seconds(&since.0);
        // One, and what a busy machine takes for an exec.
        assert!(took < 10.0, "{took} s");
        shim.stopped().await;
    });
}

/// When fsync(2) has come back in the guest, what was written is on the host's disk, whose own filesystem
/// would keep it for seconds.
#[test]
fn what_is_synced_is_on_the_hosts_disk() {
    crate::run(async |test| {
        let disk = Disk::new(test, test.dir().join("disk"));
        let image = test.dir().join("disk.ext4");
        let on_disk = |word: &str| {
            let bytes = fs::read(&image).unwrap();
            bytes.windows(word.len()).any(|at| at == word.as_bytes())
        };
        let volume = json!({"destination": "/mnt", "type": "bind", "source": disk.path(),
                            "options": ["rbind", "rw"]});
        let bundle = test.bundle("c").mount(volume).build();
        let shim = bundle.running().await;
        let word = format!("word-{}", std::process::id());
        let script = format!("echo {word} | dd of=/mnt/f conv=fsync 2>/dev/null; echo $?");
        let told = said(&shim, &bundle, bundle.exec_sh("sync", &script)).await;
        assert_eq!(told, "0\n");
        assert!(on_disk(&word));
        shim.stopped().await;
    });
}

/// A program that runs as somebody else, or with capabilities, is an ordinary one as soon as anybody without a right to
/// has written to it: on the host, in the guest that has known it, and when it is executed at once.
#[test]
fn who_writes_to_a_file_takes_its_powers() {
    crate::run(async |test| {
        let (bundle, dir) = in_an_overlay(test);
        let files = [dir.join("upper/busybox"), dir.join("data/busybox")];
        for file in &files {
            fs::copy(peers::rootfs().join("bin/busybox"), file).unwrap();
            let powers = fs::Permissions::from_mode(0o6777);
            fs::set_permissions(file, powers).unwrap();
            xattr::set(file, CAPABILITY, &NET_RAW).unwrap();
        }
        let shim = bundle.running().await;
        let words = "exec 2>&1; for f in /busybox /data/busybox; do stat -c %a $f; echo >>$f; $f id -u; stat -c %a $f; done";
        let mut words = process(&bundle.test, &["sh", "-c", words]);
        words["user"] = json!({"uid": 1000, "gid": 1000});
        for set in ["bounding", "effective", "permitted"] {
            words["capabilities"][set] = json!([]);
        }
        let told = said(&shim, &bundle, bundle.exec_spec("writes", &words)).await;
        assert_eq!(told, "6777\n1000\n777\n".repeat(2));
        for file in &files {
            assert_eq!(fs::metadata(file).unwrap().mode() & 0o7777, 0o777);
            assert_eq!(xattr::get(file, CAPABILITY).unwrap(), None);
        }
        shim.stopped().await;
    });
}
