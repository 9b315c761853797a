// SPDX-License-Identifier: Apache-2.0
//! The machine: its devices, and its end.

use protos::Timestamp;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// If this has QEMU's arguments, the mode, and the shim's end of the port; the shim has connected.
pub fn in_qemus_place() -> Option<(String, File)> {
    let arguments: Vec<String> = std::env::args().collect();
    let said = |before: &str| {
        let mut found = arguments.iter().filter_map(|word| word.split_once(before));
        let (_, value) = found.next()?;
        value.split(',').next()
    };
    let listener = said("id=agent,fd=")?.parse().expect("a number");
    let (_, mode) = said("guest=")?.rsplit_once('/').expect("a name");
    // SAFETY: whoever made this process left the socket open at that number, for it alone.
    let listener = unsafe { UnixListener::from_raw_fd(listener) };
    let (port, _) = listener.accept().expect("the shim");
    Some((mode.to_owned(), File::from(OwnedFd::from(port))))
}

pub fn mount() {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let done = nix::mount::mount(
            Some(kind),
            at,
            Some(kind),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        );
        done.expect("mount");
    }
}

/// Those that the link needs, of the image's list.
pub fn load_modules() {
    let list = fs::read_to_string("/usr/lib/modules/load").unwrap_or_default();
    let none = CString::default();
    for line in list.lines() {
        let (driver, path) = line.split_once(' ').expect("a driver and a path");
        if !matches!(driver, "virtio_mmio" | "virtio_console") {
            continue;
        }
        let file = File::open(path).expect("module");
        // SAFETY: takes an open fd, a string that lives until the call returns, and a number. One that
        // is loaded already is refused.
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), none.as_ptr(), 0) };
    }
}

/// The serial port that the host listens at, once its name is known.
pub fn port() -> File {
    let ports = Path::new("/sys/class/virtio-ports");
    loop {
        for port in fs::read_dir(ports).into_iter().flatten().flatten() {
            let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
            if name.trim() == "agent" {
                let device = Path::new("/dev").join(port.file_name());
                let port = File::options().read(true).write(true).open(device);
                return port.expect("the port");
            }
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

pub fn now() -> Timestamp {
    SystemTime::now().into()
}

pub fn sleep_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

pub fn reboot() -> ! {
    // SAFETY: takes a number; it does not come back, unless this is no machine.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    std::process::exit(0)
}
