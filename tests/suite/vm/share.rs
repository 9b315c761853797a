// SPDX-License-Identifier: Apache-2.0
//! A container with every right in its VM, against the host's files: it gets at the share by the
//! agent's root, and finds nothing there that it could change but what it was given to change.

use crate::said;
use harness::bundle::{Builder, Bundle};
use harness::upgrade::upgrade;
use harness::{Shim, Test, peers, proc, refused};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use protos::types::Mount;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const GROUP: &str = "io.containerd.runc.v2.group";

/// With all capabilities, beside the agent, and with a place for files of its own.
fn privileged(bundle: Builder) -> Builder {
    let all = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_DAC_READ_SEARCH",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_ADMIN",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SYS_ADMIN",
        "CAP_SYS_CHROOT",
        "CAP_SYS_PTRACE",
        "CAP_SYS_RESOURCE",
    ];
    let capabilities = json!({"bounding": all, "effective": all, "permitted": all});
    bundle
        .host_pid()
        .set("/process/capabilities", capabilities)
        .set("/process/noNewPrivileges", json!(false))
        .mount(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}))
        .annotation(GROUP, "g")
}

/// What `script` says, an exec with the rights of the container; /tmp/s is the VM's whole share.
async fn attack(shim: &Shim, bundle: &Bundle, exec: &str, script: &str) -> String {
    let mut process = bundle.spec["process"].clone();
    let script = format!("{{ ln -sfn /proc/1/root/run/share /tmp/s && {script}; }} 2>&1");
    process["args"] = json!(["sh", "-c", script]);
    said(shim, bundle, bundle.exec_spec(exec, &process)).await
}

fn volume(source: &Path, options: &[&str]) -> Value {
    json!({"destination": "/mnt", "type": "bind", "source": source, "options": options})
}

/// A new directory of the test's.
fn dir(test: &Test, name: &str) -> PathBuf {
    let dir = test.dir().join(name);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// An overlay of the usual root filesystem; its upper directory.
fn overlay(test: &Test, id: &str) -> (Mount, PathBuf) {
    let [upper, work] = ["upper", "work"].map(|name| dir(test, &format!("{id}-{name}")));
    (overlay_of(&upper, &work), upper)
}

fn overlay_of(upper: &Path, work: &Path) -> Mount {
    Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            format!("lowerdir={}", peers::rootfs().display()),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ],
        ..Default::default()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(name).collect();
    names.sort();
    names
}

/// Links where the next container's root filesystem and volumes will be would have made the host
/// mount, write and remove what they lead to (the class of CVE-2020-2026). None can be made, and the
/// next container is where it should be.
#[test]
fn nothing_can_be_planted_where_the_next_container_will_be() {
    crate::run(async |test| {
        let host = dir(test, "host");
        fs::write(host.join("canary"), "alive").unwrap();
        let given = dir(test, "given");
        let first = privileged(test.bundle("a").mount(volume(&given, &["rbind", "rw"]))).build();
        let shim = first.running().await;
        let canary = host.join("canary");
        let script = format!(
            "cd /tmp/s; ls -A; \
             for at in b .volumes/1 .volumes/0/evil evil; do \
                 ln -s {host} $at; mkdir $at; mknod $at c 1 3; echo >$at; \
             done; \
             ln -s {canary} .volumes/1/v; mv .volumes/0 .volumes/9; mv a z; \
             rm -rf .volumes/0/v; rmdir a/rootfs a; \
             chmod 777 .; chown 1 .; touch -d @1 .; \
             ls -A . .volumes; echo given >.volumes/0/v/mine",
            host = host.display(),
            canary = canary.display(),
        );
        let told = attack(&shim, &first, "plant", &script).await;
        assert!(told.starts_with(".answered\n.volumes\na\n"), "{told}");
        assert!(
            told.ends_with(".:\n.answered\n.volumes\na\n\n.volumes:\n0\n"),
            "{told}"
        );
        assert!(
            told.matches("Read-only file system").count() >= 16,
            "{told}"
        );
        let mine = fs::read_to_string(given.join("mine")).unwrap();
        assert_eq!(mine, "given\n", "what it was given stays writable");

        let (root, upper) = overlay(test, "b");
        let more = dir(test, "more");
        let second = privileged(test.bundle("b"))
            .rootfs(vec![root])
            .set("/root/readonly", json!(false))
            .mount(volume(&more, &["rbind", "rw"]))
            .build();
        second.start().answer().await;
        shim.create(second.create()).await.unwrap();
        shim.start("b", "").await.unwrap();
        let script = "echo root >/root-of-b; echo volume >/mnt/volume-of-b; ls -A /tmp/s";
        let told = attack(&shim, &second, "write", script).await;
        assert_eq!(told, ".answered\n.volumes\na\nb\n");
        assert!(upper.join("root-of-b").exists());
        assert_eq!(names(&more), ["volume-of-b"]);
        shim.kill("b", "", 9, false).await.unwrap();
        shim.wait("b", "").await.unwrap();
        shim.delete("b", "").await.unwrap();
        let told = attack(&shim, &first, "after", "ls -A /tmp/s /tmp/s/.volumes").await;
        assert_eq!(
            told,
            "/tmp/s:\n.answered\n.volumes\na\n\n/tmp/s/.volumes:\n0\n"
        );
        assert!(upper.join("root-of-b").exists(), "no snapshot is emptied");
        assert_eq!(names(&host), ["canary"]);
        assert_eq!(fs::read_to_string(&canary).unwrap(), "alive");
        assert!(!shim.log().contains(" stays: "), "{}", shim.log());
        shim.stop().await;
    });
}

/// A container's `root.readonly`, and a read-only volume, are read-only for the whole VM; with `rro` what is
/// mounted in it is, too, and with `ro` it is as it was. What its runtime would have made in its root is there.
#[test]
fn read_only_is_read_only_on_the_host() {
    crate::run(async |test| {
        let (root, upper) = overlay(test, "c");
        let data = dir(test, "data");
        fs::create_dir(data.join("inside")).unwrap();
        let (tmpfs, inside) = (Some("tmpfs"), data.join("inside"));
        mount(tmpfs, &inside, tmpfs, MsFlags::empty(), None::<&str>).unwrap();
        fs::write(inside.join("file"), "of the host").unwrap();
        let single = test.dir().join("single");
        fs::write(&single, "of the host").unwrap();
        let bind = |source: &Path, to: &str, mode: &str| json!({"destination": to, "type": "bind", "source": source, "options": ["rbind", mode]});
        let bundle = privileged(test.bundle("c"))
            .rootfs(vec![root])
            .set("/root/readonly", json!(true))
            .set("/process/cwd", json!("/made/for/work"))
            .mount(bind(&data, "/not/in/the/image", "ro"))
            .mount(bind(&data, "/not/there/whole", "rro"))
            .mount(bind(&single, "/not/there/single", "ro"))
            .mount(bind(Path::new("/dev/null"), "/not/there/null", "rw"))
            .mount(json!({"destination": "/a/tmpfs", "type": "tmpfs", "source": "tmpfs"}))
            .build();
        let shim = bundle.running().await;
        let before = names(&upper);
        let script = "pwd; cat /not/there/single; echo; cat /not/in/the/image/inside/file; echo; \
                      echo x >/not/there/null; echo x >/a/tmpfs/x; echo x >/not/there/whole/inside/file; \
                      echo x >/not/in/the/image/inside/new; \
                      cd /tmp/s; ls -A .volumes; \
                      for at in c/rootfs .volumes/0/v .volumes/1/v .volumes/1/v/inside; do \
                          echo evil >$at/evil; mkdir $at/evil; ln -s / $at/evil; chmod 700 $at; \
                      done; echo evil >.volumes/1/v/inside/file; rm .volumes/1/v/inside/file; \
                      echo evil >.volumes/2/v; truncate -s 0 .volumes/2/v; chmod 777 .volumes/2/v";
        let told = attack(&shim, &bundle, "write", script).await;
        let begin = "/made/for/work\nof the host\nof the host\n";
        assert!(
            told.starts_with(begin) && told.contains("\n0\n1\n2\n"),
            "{told}"
        );
        let refusals = told.matches("Read-only file system").count();
        assert_eq!(refusals, 1 + 4 * 4 + 5, "{told}");
        assert_eq!(names(&upper), before);
        assert_eq!(names(&data), ["inside"]);
        assert_eq!(names(&inside), ["file", "new"]);
        for file in [inside.join("file"), single] {
            assert_eq!(fs::read_to_string(file).unwrap(), "of the host");
        }
        shim.stop().await;
        umount2(&inside, MntFlags::MNT_DETACH).unwrap();
    });
}

/// What is mounted in a volume is in it if that is an `rbind`, and not if it is a `bind`.
#[test]
fn a_bind_is_of_one_mount_and_an_rbind_of_all() {
    crate::run(async |test| {
        let data = dir(test, "data");
        let inside = data.join("inside");
        fs::create_dir(&inside).unwrap();
        let tmpfs = Some("tmpfs");
        mount(tmpfs, &inside, tmpfs, MsFlags::empty(), None::<&str>).unwrap();
        fs::write(inside.join("file"), "").unwrap();
        let mut bundle = test.bundle("c");
        for kind in ["bind", "rbind"] {
            let to = format!("/dev/{kind}");
            let volume =
                json!({"destination": to, "type": "bind", "source": data, "options": [kind]});
            bundle = bundle.mount(volume);
        }
        let bundle = bundle.build();
        let shim = bundle.running().await;
        let look = bundle.exec_sh(
            "look",
            "cd /dev; ls -A bind rbind; ls -A bind/inside rbind/inside",
        );
        let told = said(&shim, &bundle, look).await;
        let expected = "bind:\ninside\n\nrbind:\ninside\n\
                        bind/inside:\n\nrbind/inside:\nfile\n";
        assert_eq!(told, expected);
        shim.stop().await;
        umount2(&inside, MntFlags::MNT_DETACH).unwrap();
    });
}

/// What the host mounts when the VM is there already, a later container has: in a volume, below one,
/// and in its root filesystem, also where `/` is a private mount of the host's, as it is here. So has one
/// after the shim has replaced its binary. And what the host unmounts, the shim does not keep in use.
#[test]
fn what_the_host_mounts_later_a_later_container_has() {
    crate::run(async |test| {
        let root = proc::mounts(std::process::id() as i32, Path::new("/"));
        let propagates =
            |(_, line): &(String, String)| line.contains("shared:") && line.contains(" / / ");
        assert!(
            !root.iter().any(propagates),
            "the test's own root is private"
        );
        let first = privileged(test.bundle("a")).build();
        let shim = first.running().await;
        let later = async |id: &str| {
            let at = dir(test, &format!("late-{id}"));
            let tmpfs = |at: &Path| {
                let kind = Some("tmpfs");
                mount(kind, at, kind, MsFlags::empty(), None::<&str>).unwrap();
            };
            tmpfs(&at);
            fs::write(at.join("file"), format!("of {id}")).unwrap();
            fs::create_dir_all(at.join("below")).unwrap();
            tmpfs(&at.join("below"));
            fs::write(at.join("below/file"), format!("below {id}")).unwrap();
            let [upper, work] = ["upper", "work"].map(|name| at.join(name));
            for dir in [&upper, &work] {
                fs::create_dir(dir).unwrap();
            }
            fs::write(upper.join("layer"), "of a disk").unwrap();
            let bundle = privileged(test.bundle(id))
                .rootfs(vec![overlay_of(&upper, &work)])
                .mount(volume(&at, &["rbind", "rw"]))
                .build();
            bundle.start().answer().await;
            shim.create(bundle.create()).await.unwrap();
            shim.start(id, "").await.unwrap();
            let script =
                "cat /mnt/file; echo; cat /mnt/below/file; echo; cat /layer; echo >/mnt/new";
            let told = said(&shim, &bundle, bundle.exec_sh("look", script)).await;
            assert_eq!(told, format!("of {id}\nbelow {id}\nof a disk"));
            assert!(at.join("new").exists());
            shim.kill(id, "", 9, false).await.unwrap();
            shim.wait(id, "").await.unwrap();
            shim.delete(id, "").await.unwrap();
            for at in [at.join("below"), at] {
                umount2(&at, MntFlags::empty()).unwrap();
            }
        };
        later("b").await;
        let upgraded = upgrade(test, peers::shim()).await;
        assert_eq!(upgraded.code(), Some(0), "{upgraded:?}");
        later("c").await;
        shim.stop().await;
    });
}

/// A container's setuid programs and devices work in its VM as ever; on the host nothing of the
/// share can be executed with its marks, or opened as a device.
#[test]
fn marks_and_devices_have_no_force_on_the_host() {
    crate::run(async |test| {
        let (root, upper) = overlay(test, "c");
        let given = dir(test, "given");
        let bundle = privileged(test.bundle("c"))
            .rootfs(vec![root])
            .set("/root/readonly", json!(false))
            .mount(volume(&given, &["rbind", "rw"]))
            .build();
        let shim = bundle.running().await;
        let script = "for at in / /mnt/; do \
                          mknod ${at}null c 1 3 && echo x >${at}null && \
                          cp /bin/busybox ${at}marked && chmod 4755 ${at}marked && \
                          stat -c '%F %a' ${at}null ${at}marked; \
                      done";
        let told = attack(&shim, &bundle, "mark", script).await;
        let each = "character special file 644\nregular file 4755\n";
        assert_eq!(told, each.repeat(2));
        assert!(upper.join("marked").exists() && given.join("null").exists());
        let own = proc::mounts(shim.pid(), &test.vm_dir("c"));
        assert_eq!(own, [], "the shim is where the host is");
        for mounts in [
            proc::mounts_held(shim.pid(), &test.vm_dir("c")),
            proc::mounts(crate::child(&shim, "fsd"), Path::new("/")),
        ] {
            assert!(mounts.len() >= 3, "{mounts:?}");
            for (point, line) in mounts {
                let options = line.split(' ').nth(5).unwrap();
                let forbids = ["nosuid", "nodev", "noexec"]
                    .iter()
                    .all(|o| options.contains(o));
                assert!(forbids, "{point}: {line}");
            }
        }
        shim.stop().await;
    });
}

/// What a container does to names in its volume leads no other container's volume out of it:
/// neither a link that is there, nor one that comes and goes while the host looks.
#[test]
fn a_link_in_a_volume_leads_no_other_volume_out_of_it() {
    crate::run(async |test| {
        let host = dir(test, "host");
        fs::write(host.join("canary"), "alive").unwrap();
        let given = dir(test, "given");
        fs::create_dir_all(given.join("real")).unwrap();
        fs::write(given.join("real/mine"), "").unwrap();
        symlink("given", test.dir().join("alias")).unwrap();
        let first = privileged(test.bundle("a").mount(volume(&given, &["rbind", "rw"]))).build();
        let shim = first.running().await;
        let script = format!(
            "cd /mnt; ln -s {host} out; ln -s ../host up; ln -s real in; mkdir swapped; echo made",
            host = host.display()
        );
        assert_eq!(attack(&shim, &first, "links", &script).await, "made\n");
        let create = async |id: &str, source: &str| {
            let source = test.dir().join(source);
            let bundle = privileged(test.bundle(id).mount(volume(&source, &["rbind", "rw"])));
            let bundle = bundle.build();
            bundle.start().answer().await;
            (shim.create(bundle.create()).await, bundle)
        };
        for (n, source) in ["given/out", "given/up", "alias/out"].iter().enumerate() {
            let (created, _) = create(&format!("out{n}"), source).await;
            let status = refused(created);
            assert!(status.message.contains("leads out of it"), "{status}");
        }
        let (created, inside) = create("in", "given/in").await;
        created.unwrap();
        shim.start("in", "").await.unwrap();
        assert_eq!(attack(&shim, &inside, "ls", "ls /mnt").await, "mine\n");

        let swaps = format!(
            "cd /mnt; while :; do rmdir swapped; ln -s {host} swapped; rm swapped; mkdir swapped; done",
            host = host.display()
        );
        shim.run(first.exec_sh("swaps", &swaps)).await;
        for n in 0..6 {
            let id = format!("race{n}");
            let (created, bundle) = create(&id, "given/swapped").await;
            if created.is_err() {
                continue;
            }
            shim.start(&id, "").await.unwrap();
            let told = attack(
                &shim,
                &bundle,
                "ls",
                "ls -A /mnt; cat /tmp/s/.volumes/*/v/canary",
            )
            .await;
            assert!(
                !told.contains("alive") && !told.starts_with("canary"),
                "{told}"
            );
        }
        assert_eq!(names(&host), ["canary"]);
        shim.stop().await;
    });
}
