// SPDX-License-Identifier: Apache-2.0
//! QEMU with a guest image's kernel and a first process that does nothing: the limit of any boot.

use harness::peers;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The QEMU of all that is measured, whatever the tests have otherwise: the first in the PATH.
pub fn qemu() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut programs = env::split_paths(&path).map(|dir| dir.join("qemu-system-x86_64"));
    programs
        .find(|program| program.exists())
        .expect("QEMU in the PATH")
}

/// An initrd with nothing but the trivial first process, made in `dir`.
pub fn initrd(dir: &Path) -> PathBuf {
    let tree = dir.join("bare");
    fs::create_dir_all(tree.join("dev")).expect("initrd");
    let source = peers::workspace().join("tests/benches/vm/init.c");
    let mut cc = Command::new("cc");
    cc.args(["-static", "-Os", "-s", "-o"]);
    cc.arg(tree.join("init")).arg(source);
    assert!(cc.status().expect("cc").success(), "{cc:?}");
    // The kernel's output goes there before there is a filesystem with devices.
    let pack = "mknod dev/console c 5 1; find . | cpio --quiet -o -H newc | lz4 -lq -9";
    let path = dir.join("bare.initrd");
    let file = fs::File::create(&path).expect("initrd");
    let mut pack = {
        let mut sh = Command::new("sh");
        sh.args(["-c", pack]);
        sh
    };
    let packed = pack.current_dir(tree).stdout(file).status();
    assert!(packed.expect("cpio").success());
    path
}

/// From the start of QEMU to the first process's word. The command line is the shim's, but for
/// the devices.
pub fn boot(image: &Path, initrd: &Path) -> Duration {
    let facts = fs::read_to_string(image.join("guest.toml")).expect("guest.toml");
    let without_acpi = facts.contains("command_line_devices = true");
    let acpi = if without_acpi { "off" } else { "on,pic=off" };
    let begin = Instant::now();
    let program = qemu();
    let mut qemu = Command::new(&program);
    qemu.arg("-M")
        .arg(format!(
            "microvm,acpi={acpi},isa-serial=on,memory-backend=memory"
        ))
        .args(["-accel", "tcg", "-cpu", "qemu64,-cx16", "-m", "512M"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-smp", "1", "-object"])
        .arg("memory-backend-memfd,id=memory,size=512M,share=on")
        .args(["-serial", "stdio", "-kernel"])
        .arg(image.join("vmlinux"))
        .arg("-initrd")
        .arg(initrd)
        .args([
            "-append",
            "console=ttyS0 quiet reboot=t panic=-1 noreplace-smp cryptomgr.notests \
             rootfstype=ramfs tsc=reliable tsc_early_khz=2500000",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    // Of one that was unpacked somewhere.
    for name in ["qemu", "seabios"] {
        qemu.arg("-L")
            .arg(program.with_file_name("../share").join(name));
    }
    let mut child = qemu.spawn().expect("qemu");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut lines = lines.map_while(Result::ok);
    let said = lines.any(|line| line.contains("INIT"));
    let took = begin.elapsed();
    let _ = child.kill();
    child.wait().expect("qemu");
    assert!(said, "the bare boot of {} said nothing", image.display());
    took
}
