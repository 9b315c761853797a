// SPDX-License-Identifier: Apache-2.0
//! From the kernel's initial root to a machine that can run containers, and its end.

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use protos::guest::Limit;
pub use protos::places::{MEMORY, SHARE};

/// The drivers that the image brings, in the order they load: a line `<driver> <path>` for each of
/// the modules that a driver needs.
const MODULES: &str = "/usr/lib/modules/load";
/// What the link to the host needs. Other drivers wait until somebody wants them: each costs a
/// boot some of its time.
const LINK: [&str; 2] = ["virtio_mmio", "virtio_console"];
/// How many devices the driver of loop devices makes of itself. Those that are wanted are made when they
/// are, and each costs some milliseconds.
const ONE_LOOP: &CStr = c"max_loop=1";
/// The OCI runtime, as the engine looks for it.
const RUNTIME: &str = "/usr/bin/runc";
/// Where bundles are.
pub const BUNDLES: &str = "/run/bundles";
const CGROUPS: &str = "/sys/fs/cgroup";

/// KiB that are read ahead of the host's files; the kernel's own is 128, and a request has at most 1024.
const READ_AHEAD: &str = "512";

/// The most files that the kernel lets a process have open (fs.nr_open).
const MOST_FILES: u64 = 1 << 20;

/// Source and type, target, flags, options.
type Mount = (&'static str, &'static str, MsFlags, &'static str);
const SAFE: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);
/// Those that the link to the host needs.
const MOUNTS: [Mount; 3] = [
    ("proc", "/proc", SAFE, ""),
    ("sysfs", "/sys", SAFE, ""),
    ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
];
/// And those that containers need.
#[rustfmt::skip]
const MORE_MOUNTS: [Mount; 6] = [
    ("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "mode=0620,gid=5,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    ("mqueue", "/dev/mqueue", SAFE, ""),
    ("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=0755"),
    ("tmpfs", "/tmp", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    ("cgroup2", CGROUPS, SAFE, "nsdelegate"),
];

/// Milliseconds since the kernel started.
pub fn uptime_ms() -> u64 {
    let uptime = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    let uptime = uptime.map_or(0, |at| at.tv_sec() * 1000 + at.tv_nsec() / 1_000_000);
    uptime.unsigned_abs()
}

/// Makes the machine ready for the agent's link to the host.
///
/// # Errors
/// What could not be done; nothing works without it.
pub fn boot() -> Result<(), String> {
    leave_initial_root().map_err(|e| format!("leave the initial root: {e}"))?;
    mount_all(&MOUNTS)?;
    LINK.into_iter().try_for_each(load)
}

/// Makes it ready for containers. The host knows of us by then: what it wants first is on its way
/// meanwhile.
///
/// # Errors
/// What could not be done; nothing works without it.
pub fn finish() -> Result<(), String> {
    mount_all(&MORE_MOUNTS)?;
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = symlink(target, link);
    }
    for dir in [SHARE, BUNDLES] {
        fs::create_dir_all(dir).map_err(|e| format!("mkdir {dir}: {e}"))?;
    }
    protect_runtime().map_err(|e| format!("{RUNTIME}: {e}"))?;
    enable_controllers()
}

/// What every process has from now on, unless somebody says otherwise.
///
/// # Errors
/// From setrlimit(2).
pub fn limit(open_files: Option<Limit>, locked_memory: Option<Limit>) -> nix::Result<()> {
    if let Some(Limit { soft, hard }) = open_files {
        let (soft, hard) = (soft.min(MOST_FILES), hard.min(MOST_FILES));
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        // But this one.
        task::sys::limits::raise_open_files();
    }
    if let Some(Limit { soft, hard }) = locked_memory {
        setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
    }
    Ok(())
}

fn mount_all(mounts: &[Mount]) -> Result<(), String> {
    for &(kind, target, flags, options) in mounts {
        fs::create_dir_all(target).map_err(|e| format!("mkdir {target}: {e}"))?;
        let options = Some(options).filter(|options| !options.is_empty());
        match mount(Some(kind), target, Some(kind), flags, options) {
            // A kernel need not have message queues.
            Err(Errno::ENODEV) if kind == "mqueue" => {}
            other => other.map_err(|e| format!("mount {kind} at {target}: {e}"))?,
        }
    }
    Ok(())
}

/// Mounts the OCI runtime's program so that nobody can write to it. Whenever crun is run from any
/// other, it copies itself into a file that nobody can write to, and executes itself again from there
/// (CVE-2019-5736). The initial root must be a ramfs for that, as the kernel's command line says: of a
/// file in a tmpfs crun looks at the seals only.
fn protect_runtime() -> Result<(), Errno> {
    let none = None::<&str>;
    mount(Some(RUNTIME), RUNTIME, none, MsFlags::MS_BIND, none)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, RUNTIME, none, flags, none)
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

/// Loads a driver, unless the kernel has it.
///
/// # Errors
/// If the image has it, and it can't be loaded.
pub fn load(driver: &str) -> Result<(), String> {
    let Ok(list) = task::proc::text(MODULES) else {
        return Ok(()); // the kernel has all it needs
    };
    let of_driver = |line: &str| {
        line.strip_prefix(driver)?
            .strip_prefix(' ')
            .map(str::to_owned)
    };
    for path in list.lines().filter_map(of_driver) {
        let name = Path::new(&path).file_stem().unwrap_or_default();
        let name = name.to_string_lossy().replace('-', "_");
        if Path::new("/sys/module").join(&name).exists() {
            continue;
        }
        let file = File::open(&path).map_err(|e| format!("module {path}: {e}"))?;
        let parameters = if name == "loop" { ONE_LOOP } else { c"" };
        match nix::kmod::finit_module(&file, parameters, nix::kmod::ModuleInitFlags::empty()) {
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
    let there = task::proc::text(root.join("cgroup.controllers")).map_err(failed)?;
    let wanted: Vec<String> = there
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    fs::write(root.join("cgroup.subtree_control"), wanted.join(" ")).map_err(failed)
}

/// Mounts the host's share with this tag.
///
/// # Errors
/// From its driver, or mount(2).
pub fn mount_share(tag: &str) -> Result<(), String> {
    load("virtiofs")?;
    let mounted = mount(
        Some(tag),
        SHARE,
        Some("virtiofs"),
        MsFlags::empty(),
        None::<&str>,
    );
    mounted.map_err(|e| e.to_string())?;
    read_ahead(Path::new(SHARE));
    Ok(())
}

/// Has the kernel ask the host for more at once of a file of the filesystem that is mounted at `place`, if
/// it is read from its beginning to its end. It is no faster, and nothing else, if that can't be.
pub fn read_ahead(place: &Path) {
    let Ok(metadata) = fs::metadata(place) else {
        return;
    };
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    let _ = fs::write(file, READ_AHEAD);
}

/// Makes memory for containers to share, of this many bytes, unless there is some of this name.
///
/// # Errors
/// From mount(2), or if it is no name.
pub fn share_memory(name: &str, size: u64) -> io::Result<()> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(io::Error::other("no name of a directory"));
    }
    let dir = Path::new(MEMORY).join(name);
    fs::create_dir_all(MEMORY)?;
    match fs::create_dir(&dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = format!("mode=1777,size={size}");
    let mounted = mount(Some("shm"), &dir, Some("tmpfs"), safe, Some(&*options));
    if mounted.is_err() {
        let _ = fs::remove_dir(&dir);
    }
    Ok(mounted?)
}

/// Writes back, and ends the VM. QEMU exits when its guest resets. The share stays mounted: what the
/// host was asked for may not be answered yet: see `roots.rs`.
pub fn power_off() -> ! {
    nix::unistd::sync();
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    // Not allowed to: then the kernel panics, and does it.
    std::process::abort()
}
