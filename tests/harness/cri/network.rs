// SPDX-License-Identifier: Apache-2.0
//! The "host" that pods are on: a network namespace of the test's own.
//!
//! What CNI plugins make there, a bridge and veth pairs, is seen by nobody else, and the kernel
//! takes it away with the last process and file that refers to the namespace.

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;
use std::fs::File;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::{io, thread};

/// Of the networks that are for documentation: nobody has it.
const SUBNET: &str = "198.51.100.0/24";

pub struct Network {
    file: File,
}

impl Network {
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
            File::open("/proc/thread-self/ns/net").expect("a network namespace")
        });
        let it = Self {
            file: file.join().expect("a network namespace"),
        };
        let up = it
            .command(Path::new("ip"))
            .args(["link", "set", "lo", "up"])
            .status()
            .expect("ip");
        assert!(up.success(), "ip link set lo up: {up}");
        it
    }

    pub fn file(&self) -> OwnedFd {
        self.file.try_clone().expect("dup").into()
    }

    /// A program, in this network.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let fd = self.file.as_raw_fd();
        // SAFETY: setns only changes the new process; the fd is open while `self` is.
        unsafe {
            command.pre_exec(move || match libc::setns(fd, libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        command
    }

    /// A connection made in this network.
    pub fn connect(&self, address: &str) -> TcpStream {
        let (file, address) = (self.file(), address.to_owned());
        let stream = thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
            TcpStream::connect(&address).unwrap_or_else(|e| panic!("connect to {address}: {e}"))
        });
        stream.join().expect("a connection")
    }
}

/// A bridge that is the pods' gateway; addresses are remembered in `dir`.
pub fn conflist(dir: &Path) -> String {
    json!({
        "cniVersion": "0.4.0",
        "name": dir.file_name().expect("a name").to_string_lossy(),
        "plugins": [{
            "type": "bridge",
            "bridge": "pods0",
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": dir.join("addresses"),
                "ranges": [[{ "subnet": SUBNET }]],
            },
        }],
    })
    .to_string()
}
