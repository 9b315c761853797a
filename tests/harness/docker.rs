// SPDX-License-Identifier: Apache-2.0
//! dockerd on top of a manager, with a directory of its own.
#![allow(
    clippy::disallowed_methods,
    reason = "a test may wait for its own processes"
)]

use crate::containerd::ctr::{Ctr, Output};
use crate::containerd::{capture::Capture, report};
use crate::manager::Manager;
use crate::peers;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Where the programs of one Docker Engine are.
#[derive(Clone)]
pub struct Programs {
    dockerd: PathBuf,
    docker: PathBuf,
}

impl Programs {
    /// This machine's: Debian 12's is 20.10.
    pub fn of_the_system() -> Option<Self> {
        let program = |name| peers::program(name).unwrap_or_else(|| PathBuf::from(name));
        Self::at(program("dockerd"), program("docker"))
    }

    /// The newest that tests/setup.sh found.
    pub fn newest() -> Option<Self> {
        let program = |peer: &str, name: &str| peers::peers().join(peer).join("bin").join(name);
        Self::at(
            program("docker", "dockerd"),
            program("docker-cli", "docker"),
        )
    }

    fn at(dockerd: PathBuf, docker: PathBuf) -> Option<Self> {
        if dockerd.exists() && docker.exists() {
            return Some(Self { dockerd, docker });
        }
        let name = dockerd.display();
        report(&format!(
            "{name} is MISSING (run tests/setup.sh): test not run"
        ));
        None
    }
}

/// The bridge that Docker's containers are on if nothing else is said.
pub enum Bridge {
    None,
    /// With this address, e.g. "10.9.9.1/24", in a network namespace of the daemon's own.
    Address(&'static str),
}

pub struct Dockerd {
    programs: Programs,
    dir: PathBuf,
    process: Child,
    log: Capture,
}

impl Dockerd {
    /// Starts it, and gives it the tests' root filesystem as the image `busybox:test`.
    pub fn start(programs: &Programs, manager: &Manager, bridge: Bridge) -> Self {
        let dir = manager.dir().join("docker");
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join("daemon.json"), "{}").expect("daemon.json");
        let path = |name: &str| dir.join(name).display().to_string();
        let mut command = match bridge {
            Bridge::None => {
                let mut command = Command::new(&programs.dockerd);
                command.arg("--bridge=none");
                command
            }
            Bridge::Address(address) => {
                let mut command = Command::new("unshare");
                let dockerd = programs.dockerd.as_os_str();
                command.args(["--net".as_ref(), "--".as_ref(), dockerd]);
                command.arg("--bip").arg(address);
                command
            }
        };
        command
            .args([
                "--config-file",
                &path("daemon.json"),
                "--storage-driver=vfs",
            ])
            .args(["--containerd", &manager.socket().display().to_string()])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args([
                "--pidfile",
                &path("pid"),
                "-H",
                &format!("unix://{}", path("sock")),
            ])
            .args(["--iptables=false", "--ip6tables=false"])
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = command.spawn().expect("dockerd");
        let log = Capture::of(process.stderr.take().expect("piped"));
        log.wait_for("dockerd to serve", |log| {
            log.contains("API listen").then_some(())
        });
        let this = Self {
            programs: programs.clone(),
            dir,
            process,
            log,
        };
        this.import(manager);
        this
    }

    fn import(&self, manager: &Manager) {
        let tar = manager.dir().join("rootfs.tar");
        let tar = tar.display().to_string();
        let made = Command::new("tar")
            .arg("-C")
            .arg(peers::rootfs())
            .args(["-cf", &tar, "."])
            .status();
        assert!(made.expect("tar").success());
        self.docker(&["import", &tar, "busybox:test"]).ok();
    }

    pub fn docker(&self, args: &[&str]) -> Output {
        let mut command = Command::new(&self.programs.docker);
        command
            .arg("-H")
            .arg(format!("unix://{}/sock", self.dir.display()))
            .args(args);
        Ctr::spawn(command, Stdio::null()).finish()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let _ = crate::wait::signal(self.process.id() as i32, libc::SIGTERM);
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("---- log of dockerd\n{}----", self.log.text());
        }
    }
}
