// SPDX-License-Identifier: Apache-2.0
//! Tests that want another kernel's ways than this machine has: they run in a VM that shows this
//! machine's files, with the guest's kernel.
//!
//! The first of a test binary boots the VM, which runs them all; each then looks for its result.

use crate::limit::Limit;
use crate::test::Test;
use crate::{manager, peers, wait};
use std::any::type_name;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

/// All tests of a test binary, one at a time on an emulated processor.
const LIMIT: Duration = Duration::from_secs(600);
/// Set for a test binary that runs in the VM.
const INSIDE: &str = "IN_THE_VM";

/// Runs a test where all of cgroup version 2 is: here, if it is here, else in the VM.
///
/// The test's name is that of the function which wrote `body`.
pub fn with_cgroup2<F: AsyncFnOnce(&Test)>(body: F) {
    if controllers().contains("memory") {
        return crate::run(body);
    }
    has_passed::<F>();
}

/// Runs a test where it may do what it likes to the whole machine, such as to set its clock.
///
/// The test's name is that of the function which wrote `body`.
pub fn on_its_own_machine<F: FnOnce()>(body: F) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    has_passed::<F>();
}

/// In the VM, where the function that wrote `F` is a test.
fn has_passed<F>() {
    let name = type_name::<F>().trim_end_matches("::{{closure}}");
    let (_, name) = name.split_once("::").expect("a test has a name");
    assert!(
        OUTPUT.contains(&format!("test {name} ... ok")),
        "{name} has not passed in the VM:\n{}",
        *OUTPUT
    );
}

fn controllers() -> String {
    fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default()
}

/// What this test binary says when it runs in the VM.
static OUTPUT: LazyLock<String> = LazyLock::new(|| {
    let _limit = Limit::of_this_test();
    let dir = tempfile::tempdir().expect("directory of the VM");
    let initrd = initrd(dir.path());
    let socket = dir.path().join("fs.sock");
    // Whoever is in QEMU's place at the other end of the socket ends it, too.
    let mut virtiofsd = Command::new(peers::peers().join("virtiofsd/bin/virtiofsd"))
        .arg(format!("--socket-path={}", socket.display()))
        .args([
            "--shared-dir=/",
            "--sandbox=chroot",
            "--no-announce-submounts",
        ])
        .args(["--cache=always", "--log-level=error"])
        // It complains of how QEMU ends.
        .stderr(Stdio::null())
        .spawn()
        .expect("virtiofsd");
    wait::until_within(wait::DEADLINE, "virtiofsd's socket", || {
        let there = socket.exists().then_some(());
        there.ok_or_else(|| socket.display().to_string())
    });
    // It ends with this process, whose own end may be sudden.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "TERM", "timeout", "--signal=KILL"])
        .arg(LIMIT.as_secs().to_string())
        .arg(peers::program("qemu-system-x86_64").expect("QEMU in PATH"))
        .args(["-M", "microvm,acpi=on,pic=off,memory-backend=memory"])
        // The other two keep QEMU 7.2's emulation from a panic of the guest, and from a hang.
        .args(["-accel", "tcg", "-cpu", "qemu64,-cx16", "-m", "1024"])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
        .args([
            "-object",
            "memory-backend-memfd,id=memory,size=1024M,share=on",
        ])
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .arg("-chardev")
        .arg(format!("socket,id=fs,path={}", socket.display()))
        .args(["-device", "vhost-user-fs-device,chardev=fs,tag=host"])
        .args(["-serial", "stdio", "-kernel"])
        .arg(image().join("vmlinux"))
        .arg("-initrd")
        .arg(initrd)
        .args([
            "-append",
            "console=ttyS0 loglevel=1 reboot=t panic=-1 noreplace-smp cryptomgr.notests \
             tsc_early_khz=2500000 cgroup_no_v1=all",
        ]);
    let output = qemu.stdin(Stdio::null()).output().expect("qemu");
    let _ = virtiofsd.kill();
    virtiofsd.wait().expect("virtiofsd");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).replace('\r', "")
});

/// Where `make guest` puts the kernel: `GUEST`, else target/dist/guest/distro.
pub fn image() -> PathBuf {
    let default = || peers::workspace().join("target/dist/guest/distro");
    let image = std::env::var_os("GUEST").map_or_else(default, PathBuf::from);
    let kernel = image.join("vmlinux");
    assert!(kernel.exists(), "no {}: `make guest`", kernel.display());
    image
}

/// The guest's modules with a shell and a first process of our own.
fn initrd(dir: &Path) -> PathBuf {
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("bin")).expect("initrd");
    for name in ["dev", "proc", "sys"] {
        fs::create_dir(tree.join(name)).expect("initrd");
    }
    let busybox = peers::rootfs().join("bin/busybox");
    fs::copy(busybox, tree.join("bin/busybox")).expect("busybox");
    fs::write(tree.join("init"), include_str!("vm/init.sh")).expect("init");
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755)).expect("init");
    fs::write(tree.join("job"), job()).expect("job");

    // The kernel takes several archives in a row, if they aren't compressed.
    let path = dir.join("initrd");
    let mut file = fs::File::create(&path).expect("initrd");
    let unpacked = Command::new("lz4")
        .arg("-dcq")
        .arg(image().join("initrd"))
        .output();
    let unpacked = unpacked.expect("lz4").stdout;
    assert!(!unpacked.is_empty(), "the guest's initrd is not lz4");
    file.write_all(&unpacked).expect("initrd");
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | cpio --quiet -o -H newc"])
        .current_dir(&tree)
        .stdout(file);
    assert!(pack.status().expect("cpio").success());
    path
}

/// This test binary, with what it needs to know of its environment.
fn job() -> String {
    let quoted = |text: &Path| format!("'{}'", text.display());
    let exe = std::env::current_exe().expect("the test binary");
    format!(
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         export {INSIDE}=1 SHIM={} SHIM_VM={} MANAGER={} PEERS={}\ncd {}\n\
         {} --test-threads=1 --color=never\n",
        quoted(peers::shim()),
        quoted(&peers::vm_shim()),
        quoted(manager::binary()),
        quoted(&peers::peers()),
        quoted(peers::workspace()),
        quoted(&exe),
    )
}
