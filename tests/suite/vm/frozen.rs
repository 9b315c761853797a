// SPDX-License-Identifier: Apache-2.0
//! A file system that stands still while a VM is to boot holds up its Create, until the deadline of
//! that, and nobody else (docs/architecture.md, "Who may block"): the configuration's, the image's,
//! QEMU's.

use crate::jail;
use harness::disk::Served;
use harness::{Code, Test, program, refused, wait};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an answer may take that waits for nothing, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(10);
/// How long who asks for the container waits: until QEMU is reached, at least.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program of this machine that is no more than the name of its loader, for QEMU: what it does and
/// needs is as if it were one.
fn elf(loader: &Path) -> Vec<u8> {
    const HEADER: usize = 64;
    const ENTRY: usize = 56;
    let name = [loader.as_os_str().as_encoded_bytes(), b"\0"].concat();
    let mut bytes = vec![0; HEADER + ENTRY];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    // A program of x86-64, in version 1 of the format (elf(5)).
    put(16, &[2, 0, 62, 0, 1]);
    put(32, &[HEADER as u8]);
    put(54, &[ENTRY as u8, 0, 1]);
    // PT_INTERP: where it is, and how long.
    put(HEADER, &[3, 0, 0, 0, 4]);
    put(HEADER + 8, &[(HEADER + ENTRY) as u8]);
    put(HEADER + 32, &name.len().to_le_bytes());
    [bytes, name].concat()
}

/// Makes such a program in `dir`, whose loader has `served` stand still once the shim has found the
/// program, and asks the loader for its libraries.
fn qemu_that_stops(test: &Test, served: &Served, dir: &Path) -> PathBuf {
    let loader = test.dir().join("loader");
    program::write(&loader, &format!("#!/bin/sh\n{}\n", served.stop_command()));
    let qemu = dir.join("qemu");
    program::write_bytes(&qemu, &elf(&loader));
    qemu
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

/// Asks for a container of this configuration, for which `served` comes to stand still, or does at
/// once: see the head of this file. When it goes on nothing is left.
async fn is_held_up_alone(test: &Test, served: &Served, config: &Path, at_once: bool) {
    let bundle = test.bundle("c").build();
    let config = config.to_string_lossy();
    let start = bundle.start().env("DUNNAGE_VM_CONFIG", &config);
    let shim = start.shim().await;
    let others = async || {
        let calls = async {
            let state = refused(shim.state("c", "").await);
            assert_eq!(state.code, Code::NotFound);
            let kill = refused(shim.kill("c", "", libc::SIGKILL, false).await);
            assert_eq!(kill.code, Code::NotFound);
            let answer = shim.connect_call("c").await.unwrap();
            assert_eq!(answer.shim_pid, shim.pid() as u32);
        };
        wait::within(AT_ONCE, "State, Kill, Connect", calls).await;
    };
    let stopped = at_once.then(|| served.stop());
    let request = bundle.create();
    let create = shim.call_for(&request, PATIENCE);
    let create = wait::within(PATIENCE + AT_ONCE, "answer of Create", create);
    let (created, stopped) = tokio::join!(create, async {
        let stopped = match stopped {
            Some(stopped) => stopped,
            None => served.stopped().await,
        };
        others().await;
        stopped
    });
    assert_eq!(refused(created).code, Code::DeadlineExceeded);
    others().await;
    let shutdown = wait::within(AT_ONCE, "Shutdown", shim.shutdown("c"));
    shutdown.await.unwrap();
    drop(stopped);
    wait::ended(shim.pid()).await;
    assert!(!test.vm_dir("c").exists());
    let log = bundle.log.text();
    assert!(!log.contains("stays"), "{log}");
}

#[test]
fn create_waits_alone_for_the_configurations_disk() {
    crate::run(async |test| {
        let served = Served::new(test, test.dir().join("disk")).await;
        let at = jail::config(test, "shim-vm.toml", &[]);
        let config = test.dir().join("disk/shim-vm.toml");
        fs::copy(at, &config).unwrap();
        is_held_up_alone(test, &served, &config, true).await;
    });
}

/// The image's disk, when the image has been found.
#[test]
fn create_waits_alone_for_the_images_disk() {
    crate::run(async |test| {
        let disk = test.dir().join("disk");
        let served = Served::without_memory(test, &disk).await;
        let files = ["vmlinux", "initrd"].map(|name| disk.join(name));
        for file in &files {
            fs::write(file, "not needed").unwrap();
        }
        let [kernel, initrd] = files.map(|file| quoted(&file));
        let qemu = quoted(&qemu_that_stops(test, &served, test.dir()));
        let lines = [("kernel", kernel), ("initrd", initrd), ("qemu", qemu)];
        let config = jail::config(test, "shim-vm.toml", &lines);
        is_held_up_alone(test, &served, &config, false).await;
    });
}

/// QEMU's disk, when all that is needed of it has been found: it is the new process that waits.
#[test]
fn create_waits_alone_for_qemus_disk() {
    crate::run(async |test| {
        let disk = test.dir().join("disk");
        let served = Served::new(test, &disk).await;
        let qemu = quoted(&qemu_that_stops(test, &served, &disk));
        let config = jail::config(test, "shim-vm.toml", &[("qemu", qemu)]);
        is_held_up_alone(test, &served, &config, false).await;
    });
}
