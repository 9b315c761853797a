// SPDX-License-Identifier: Apache-2.0
//! Where the programs and files are that the tests need: the shim, its peers, a root filesystem.

use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, OnceLock};
use std::{env, fs};

/// The root of the checkout.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ has a parent")
}

/// The shim under test, once somebody has asked for it.
static SHIM: OnceLock<PathBuf> = OnceLock::new();

/// The shim under test: `SHIM`, else what `make build` made.
pub fn shim() -> &'static Path {
    SHIM.get_or_init(|| binary("SHIM", "containerd-shim-runc-v2"))
}

/// From now on the shim under test is that of VMs: `SHIM_VM`, else what `make build` made.
pub fn choose_vm_shim() {
    let chosen = SHIM.get_or_init(vm_shim);
    assert!(
        chosen.ends_with("containerd-shim-vm-v2"),
        "SHIM_VM: {}",
        chosen.display()
    );
}

/// The shim of VMs, beside the one under test.
pub fn vm_shim() -> PathBuf {
    binary("SHIM_VM", "containerd-shim-vm-v2")
}

fn binary(variable: &str, name: &str) -> PathBuf {
    let default = || workspace().join("target/dist").join(name);
    let path = env::var_os(variable).map_or_else(default, PathBuf::from);
    let path = workspace().join(path);
    assert!(
        path.exists(),
        "no shim at {}: `make build`, or set {variable}",
        path.display()
    );
    path
}

/// `-v` of a shim, e.g. `containerd-shim-runc-v2:\n  Version:  1.6.20 …`.
pub fn version_text(shim: &Path) -> String {
    let output = Command::new(shim).arg("-v").output();
    let output = output.unwrap_or_else(|e| panic!("{} -v: {e}", shim.display()));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// True if the shim under test is containerd's own.
pub fn is_go() -> bool {
    static GO: LazyLock<bool> = LazyLock::new(|| version_text(shim()).contains("Go version: go"));
    *GO
}

/// True if the shim under test is that of VMs.
pub fn is_vm() -> bool {
    shim().ends_with("containerd-shim-vm-v2")
}

/// What the shim under test calls itself in what it says.
pub fn shim_type() -> &'static str {
    if is_vm() {
        "io.containerd.vm.v2"
    } else {
        "io.containerd.runc.v2"
    }
}

/// containerd's own shim, where this machine has it.
pub fn go_shim() -> Option<&'static Path> {
    static GO_SHIM: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let (_, bin) = version("go-shim")?;
        let path = bin.join("containerd-shim-runc-v2");
        path.exists().then_some(path)
    });
    GO_SHIM.as_deref()
}

/// The directory that tests/setup.sh fills: `PEERS`, else target/peers.
pub fn peers() -> PathBuf {
    env::var_os("PEERS").map_or_else(|| workspace().join("target/peers"), PathBuf::from)
}

/// The line of `versions` that tests/setup.sh wrote for `name`: the version, and the directory of
/// the programs.
pub fn version(name: &str) -> Option<(String, PathBuf)> {
    let versions = fs::read_to_string(peers().join("versions")).unwrap_or_default();
    versions.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then_some(())?;
        Some((words.next()?.to_owned(), PathBuf::from(words.next()?)))
    })
}

/// Where programs are looked for: what tests/setup.sh had to unpack for this machine, then PATH.
pub fn path() -> OsString {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let dirs = [peers().join("bin")].into_iter();
    env::join_paths(dirs.chain(env::split_paths(&inherited))).expect("PATH")
}

/// The program `name` of this machine.
pub fn program(name: &str) -> Option<PathBuf> {
    env::split_paths(&path())
        .map(|dir| dir.join(name))
        .find(|p| p.exists())
}

/// The directory of the CNI plugins.
pub fn cni() -> PathBuf {
    let unpacked = peers().join("own-containernetworking-plugins/bin");
    let dirs = ["/usr/lib/cni".into(), "/opt/cni/bin".into(), unpacked];
    let found = dirs
        .into_iter()
        .find(|dir: &PathBuf| dir.join("bridge").exists());
    found.expect("CNI plugins: tests/setup.sh installs them")
}

/// The real OCI runtime, which shims know as `runc`: `RUNTIME`, else the one in PATH.
pub fn runc() -> &'static Path {
    static RUNC: LazyLock<PathBuf> = LazyLock::new(|| {
        if let Some(chosen) = env::var_os("RUNTIME") {
            let chosen = workspace().join(chosen);
            assert!(chosen.exists(), "no runtime at {}", chosen.display());
            return chosen;
        }
        program("runc").expect("runc in PATH")
    });
    &RUNC
}

/// What the runtime calls itself in the first line of `--version`: `runc` or `crun`. A VM has its
/// own, whatever the host's is.
pub fn runtime_name() -> &'static str {
    if is_vm() {
        return "crun";
    }
    static NAME: LazyLock<String> = LazyLock::new(|| {
        let output = Command::new(runc()).arg("--version").output();
        let output = output.unwrap_or_else(|e| panic!("{}: {e}", runc().display()));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    });
    &NAME
}

/// CRIU, as tests/setup.sh unpacked it. Without it a test of checkpoints does nothing; in CI it
/// must be there.
pub fn criu() -> Option<PathBuf> {
    let path = peers().join("criu/bin/criu");
    if path.exists() {
        return Some(path);
    }
    let needed = env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!needed, "CI needs CRIU, and {} is missing", path.display());
    println!("no {}: test not run", path.display());
    None
}

/// A busybox root filesystem that nobody writes to.
pub fn rootfs() -> &'static Path {
    static ROOTFS: LazyLock<PathBuf> = LazyLock::new(|| {
        let made = peers().join("rootfs");
        if made.join("bin/busybox").exists() {
            return fs::canonicalize(made).expect("rootfs");
        }
        make_rootfs()
    });
    &ROOTFS
}

/// Without setup.sh: the same, from the system's static busybox.
fn make_rootfs() -> PathBuf {
    let dir = workspace().join("target/rootfs");
    if dir.join("bin/busybox").exists() {
        return dir;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|p| Path::new(p).exists());
    let busybox = busybox.expect("target/peers/rootfs (tests/setup.sh) or a static busybox");
    let new = workspace().join(format!("target/rootfs.{}", std::process::id()));
    for name in [
        "bin", "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "usr", "var",
    ] {
        fs::create_dir_all(new.join(name)).expect("rootfs");
    }
    fs::set_permissions(new.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("rootfs");
    fs::copy(busybox, new.join("bin/busybox")).expect("rootfs");
    symlink("bin", new.join("sbin")).expect("rootfs");
    let list = Command::new(busybox)
        .arg("--list")
        .output()
        .expect("busybox --list");
    for applet in String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|a| *a != "busybox")
    {
        symlink("busybox", new.join("bin").join(applet)).expect("rootfs");
    }
    fs::write(new.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("rootfs");
    fs::write(new.join("etc/group"), "root:x:0:\ntty:x:5:\n").expect("rootfs");
    for name in ["hostname", "hosts", "resolv.conf"] {
        fs::write(new.join("etc").join(name), "").expect("rootfs");
    }
    // Whoever comes second keeps the first one's.
    if fs::rename(&new, &dir).is_err() {
        let _ = fs::remove_dir_all(&new);
    }
    dir
}
