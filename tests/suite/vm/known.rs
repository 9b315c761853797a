// SPDX-License-Identifier: Apache-2.0
//! The files that a guest knows of its host's: whose reading is cut short, that are like others, that are
//! many, and that are forgotten.

use crate::{child, jail, said};
use harness::bundle::Bundle;
use harness::disk::Disk;
use harness::meddler::Meddler;
use harness::{Shim, Test, peers, proc, wait};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const NONE: Option<&str> = None;
const GROUP: &str = "io.containerd.runc.v2.group";

fn volume(source: &Path, to: &str) -> Value {
    json!({"destination": to, "type": "bind", "source": source, "options": ["rbind", "rw"]})
}

/// A container beside others, which is there for as long as the VM.
async fn beside(test: &Test) -> (Bundle, Shim) {
    let bundle = test.bundle("a").annotation(GROUP, "g").build();
    let shim = bundle.running().await;
    (bundle, shim)
}

/// Waits until a call of the file server is held up: the first read of a program.
async fn is_read(server: i32) {
    let mut looks = 0;
    wait::until("a read that is held up", || {
        let held = proc::thread_states(server).contains(&'t');
        looks = if held { looks + 1 } else { 0 };
        if looks > 2 {
            Ok(())
        } else {
            Err(looks.to_string())
        }
    })
    .await;
}

/// SIGKILL while init's program is still being read, from a disk that takes its time. Linux unmounts what
/// is read without waiting for it ("VFS: Busy inodes after unmount of virtiofs", and a BUG); the agent waits.
/// Each of these ends, and goes, and the VM's other container lives on.
#[test]
fn a_program_may_be_killed_before_it_was_read() {
    const TIMES: usize = 20;
    crate::run(async |test| {
        // What is mounted further in a volume is nobody's but the container's.
        let volumes: Vec<_> = (0..TIMES)
            .map(|n| test.dir().join(format!("v{n}")))
            .collect();
        let bin = peers::rootfs().join("bin");
        for data in &volumes {
            let inner = data.join("inner");
            fs::create_dir_all(&inner).unwrap();
            mount(Some(&bin), &inner, NONE, MsFlags::MS_BIND, NONE).unwrap();
        }
        let (first, shim) = beside(test).await;
        let server = child(&shim, "fsd");
        let slow = "pread64,preadv,preadv2,close:delay_enter=200000";
        for (n, data) in volumes.iter().enumerate() {
            let id = format!("b{n}");
            let mut bundle = test.bundle(&id).annotation(GROUP, "g");
            if n % 2 == 1 {
                let program = ["/mnt/inner/busybox", "sleep", "100000"];
                bundle = bundle.mount(volume(data, "/mnt")).args(&program);
            }
            let bundle = bundle.build();
            bundle.start().answer().await;
            shim.create(bundle.create()).await.unwrap();
            let slow = Meddler::new(test, server, slow);
            shim.start(&id, "").await.unwrap();
            is_read(server).await;
            shim.kill(&id, "", libc::SIGKILL, false).await.unwrap();
            let exit = wait::soon("its exit", shim.wait(&id, "")).await.unwrap();
            assert_eq!(exit.exit_status, 137, "{id}");
            wait::soon("Delete", shim.delete(&id, "")).await.unwrap();
            drop(slow);
        }
        let alive = said(&shim, &first, first.exec_sh("e", "echo alive")).await;
        assert_eq!(alive, "alive\n", "{}", shim.log());
        shim.stop().await;
        for data in &volumes {
            umount2(&data.join("inner"), MntFlags::MNT_DETACH).unwrap();
        }
    });
}

/// Whose files have been looked at, and are of a container that is deleted, has them to himself again: the
/// file server has none of them open.
#[test]
fn the_files_of_a_deleted_container_are_let_go() {
    crate::run(async |test| {
        let (_first, shim) = beside(test).await;
        let server = child(&shim, "fsd");
        let open = || proc::fds(server).unwrap().len();
        let disk = Disk::new(test, test.dir().join("data"));
        for n in 0..300 {
            fs::write(disk.path().join(format!("f{n}")), "").unwrap();
        }
        let before = open();
        let look = "find / -xdev >/dev/null; ls -l /mnt >/dev/null; exec sleep 100000";
        let bundle = test.bundle("b").annotation(GROUP, "g").sh(look);
        let bundle = bundle.mount(volume(disk.path(), "/mnt")).build();
        bundle.start().answer().await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("b", "").await.unwrap();
        wait::until("that all files have been looked at", || match open() {
            many if many > before + 250 => Ok(()),
            few => Err(few.to_string()),
        })
        .await;
        shim.kill("b", "", 9, false).await.unwrap();
        shim.wait("b", "").await.unwrap();
        shim.delete("b", "").await.unwrap();
        wait::until("that they are let go", || match open() {
            few if few <= before + 3 => Ok(()),
            many => Err(format!("{many}, and {before} before")),
        })
        .await;
        shim.stop().await;
    });
}

/// Files of two mounts in a volume that have the same number on the host are two to the container, and their
/// names are told with the same numbers as they themselves. A volume is a filesystem of its own.
#[test]
fn files_of_two_mounts_are_never_one() {
    crate::run(async |test| {
        let data = test.dir().join("data");
        let disks = ["one", "two"].map(|name| Disk::new(test, data.join(name)));
        let inodes = disks.each_ref().map(|disk| {
            let file = disk.path().join("file");
            fs::write(&file, "").unwrap();
            fs::metadata(file).unwrap().ino()
        });
        assert_eq!(inodes[0], inodes[1], "they must be alike");
        let bundle = test.bundle("c").mount(volume(&data, "/mnt")).build();
        let shim = bundle.running().await;
        let script = "cd /mnt; for at in one two; do \
                          stat -c '%d:%i' $at $at/file; \
                          [ $(stat -c %i $at/file) = $(ls -i $at | grep file | sed 's/ *\\([0-9]*\\).*/\\1/') ] && echo same; \
                      done; [ one/file -ef two/file ] && echo one; \
                      echo kept >one/file; mv one/file two/file && cat two/file; \
                      df /mnt | grep -c ' /mnt$'; [ $(stat -c %d /) = $(stat -c %d /mnt) ] || echo mount";
        let told = said(&shim, &bundle, bundle.exec_sh("e", script)).await;
        let lines: Vec<&str> = told.lines().collect();
        let [
            one,
            of_one,
            "same",
            two,
            of_two,
            "same",
            "kept",
            "1",
            "mount",
        ] = lines[..]
        else {
            panic!("{told}");
        };
        assert!(one != two && of_one != of_two, "{told}");
        shim.stop().await;
    });
}

/// A container makes and looks at more files than its file server may have open: the guest forgets what it
/// does not use. One that holds on to as many as there can be is refused more (ENFILE), and nobody else.
#[test]
fn many_files_are_not_everybodys_fault() {
    const FILES: usize = 10_000;
    const PART: usize = 2_500;
    crate::run(async |test| {
        let data = test.dir().join("data");
        fs::create_dir(&data).unwrap();
        let most = ("max_open_files", "16384".to_owned());
        let config = jail::config(test, "shim-vm.toml", &[most]);
        let first = test.bundle("a").annotation(GROUP, "g");
        let first = first.mount(volume(&data, "/mnt")).build();
        let other = test.bundle("b").annotation(GROUP, "g").build();
        let start = first
            .start()
            .env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
        let shim = start.shim().await;
        shim.create(first.create()).await.unwrap();
        shim.start("a", "").await.unwrap();
        other.start().answer().await;
        shim.create(other.create()).await.unwrap();
        shim.start("b", "").await.unwrap();
        for part in 0..FILES / PART {
            let (begin, end) = (part * PART, (part + 1) * PART);
            let make = format!(
                "cd /mnt; n={begin}; while [ $n -lt {end} ]; do : >f$n || exit 1; n=$((n+1)); done; \
                 ls -l | wc -l; ls / >/dev/null && echo well"
            );
            let process = first.exec_sh(&format!("make{part}"), &make);
            let told = said(&shim, &first, process).await;
            assert_eq!(told, format!("{}\nwell\n", end + 1));
        }
        assert_eq!(fs::read_dir(&data).unwrap().count(), FILES);
        let alive = said(
            &shim,
            &other,
            other.exec_sh("e", "ls /bin >/dev/null && echo alive"),
        );
        assert_eq!(alive.await, "alive\n");

        // Each `tail` says of each of a thousand files whether it has it open.
        let hold = "cd /mnt; for n in 1 2 3 4 5; do tail -s 1000 -f f$n??? >/dev/held$n 2>&1 & done; \
                    while [ $(cat /dev/held? | grep -c '==>\\|in system') -lt 5000 ]; do sleep 0.2; done; \
                    cat /dev/held? | grep -c 'Too many open files in system'; ls / >/dev/null && echo well";
        let told = said(&shim, &first, first.exec_sh("hold", hold)).await;
        let (refused, well) = told.split_once('\n').unwrap();
        assert!(refused.parse::<u32>().unwrap() > 1000, "{told}");
        assert_eq!(well, "well\n");
        let alive = said(
            &shim,
            &other,
            other.exec_sh("f", "ls /bin >/dev/null && echo alive"),
        );
        assert_eq!(alive.await, "alive\n");
        shim.stop().await;
    });
}
