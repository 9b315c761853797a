// SPDX-License-Identifier: Apache-2.0
//! What a VM sees of the host's files: its root filesystem, volumes, and nothing else.

use harness::stdio::{Fifos, Stdio, Sum};
use harness::{peers, proc, wait};
use protos::types::Mount;
use serde_json::json;
use std::fs;
use std::path::Path;

fn copied_rootfs(to: &Path) {
    let script = format!("cp -a {} {}", peers::rootfs().display(), to.display());
    let done = std::process::Command::new("sh")
        .args(["-c", &script])
        .status();
    assert!(done.expect("cp").success());
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
        let overlay = Mount {
            r#type: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("lowerdir={}", at("lower")),
                format!("upperdir={}", at("upper")),
                format!("workdir={}", at("work")),
            ],
            ..Default::default()
        };
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
