//! From the kernel's initial root to a machine that can run containers, and its end.

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use std::fs::{self, File};
use std::path::Path;

/// The drivers that the image brings, in the order they load: one path a line.
const MODULES: &str = "/usr/lib/modules/load";
/// Where the host's files are, if it shares any.
pub const SHARE: &str = "/run/share";
/// Where bundles are.
pub const BUNDLES: &str = "/run/bundles";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Source, target, type, flags, options.
#[rustfmt::skip]
const MOUNTS: [(&str, &str, MsFlags, &str); 9] = {
    const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
    [
        ("proc", "/proc", SAFE, ""),
        ("sysfs", "/sys", SAFE, ""),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
        ("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "mode=0620,gid=5,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
        ("mqueue", "/dev/mqueue", SAFE, ""),
        ("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=0755"),
        ("tmpfs", "/tmp", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
        ("cgroup2", CGROUPS, SAFE, "nsdelegate"),
    ]
};

/// Makes the machine ready for the agent.
///
/// # Errors
/// What could not be done; nothing works without it.
pub fn boot() -> Result<(), String> {
    leave_initial_root().map_err(|e| format!("leave the initial root: {e}"))?;
    for (kind, target, flags, options) in MOUNTS {
        fs::create_dir_all(target).map_err(|e| format!("mkdir {target}: {e}"))?;
        let options = Some(options).filter(|options| !options.is_empty());
        match mount(Some(kind), target, Some(kind), flags, options) {
            // A kernel need not have message queues.
            Err(Errno::ENODEV) if kind == "mqueue" => {}
            other => other.map_err(|e| format!("mount {kind} at {target}: {e}"))?,
        }
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(target, link);
    }
    for dir in [SHARE, BUNDLES] {
        fs::create_dir_all(dir).map_err(|e| format!("mkdir {dir}: {e}"))?;
    }
    load_modules()?;
    enable_controllers()
}

/// pivot_root(2), which OCI runtimes use, refuses the kernel's initial root; a bind mount of it,
/// moved over it, is a root like any other.
fn leave_initial_root() -> Result<(), Errno> {
    const ROOT: &str = "/root";
    let none = None::<&str>;
    let _ = fs::create_dir(ROOT);
    mount(Some("/"), ROOT, none, MsFlags::MS_BIND, none)?;
    nix::unistd::chdir(ROOT)?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")
}

fn load_modules() -> Result<(), String> {
    let Ok(list) = fs::read_to_string(MODULES) else {
        return Ok(()); // the kernel has all it needs
    };
    for path in list.lines().filter(|line| !line.is_empty()) {
        let file = File::open(path).map_err(|e| format!("module {path}: {e}"))?;
        match nix::kmod::finit_module(&file, c"", nix::kmod::ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(format!("module {path}: {e}")),
        }
    }
    Ok(())
}

/// Every controller there is, for the containers' cgroups.
fn enable_controllers() -> Result<(), String> {
    let root = Path::new(CGROUPS);
    let failed = |e: std::io::Error| format!("cgroup controllers: {e}");
    let there = fs::read_to_string(root.join("cgroup.controllers")).map_err(failed)?;
    let wanted: Vec<String> = there
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    fs::write(root.join("cgroup.subtree_control"), wanted.join(" ")).map_err(failed)
}

/// Mounts the host's share with this tag.
///
/// # Errors
/// From mount(2).
pub fn mount_share(tag: &str) -> Result<(), Errno> {
    mount(
        Some(tag),
        SHARE,
        Some("virtiofs"),
        MsFlags::empty(),
        None::<&str>,
    )
}

/// Writes back, and ends the VM. QEMU exits when its guest resets.
pub fn power_off() -> ! {
    nix::unistd::sync();
    let _ = umount2(SHARE, MntFlags::MNT_DETACH);
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    // Not allowed to: then the kernel panics, and does it.
    std::process::abort()
}
