// SPDX-License-Identifier: Apache-2.0
//! What the units of systemd rely on: readiness, inherited sockets, a renewal under the same pid.

use harness::containerd::capture::Capture;
use harness::manager::{self, api::Api};
use harness::{program, wait};
use protos::services::version::v1::VersionResponse;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What systemd makes before it starts the daemon: both sockets, and where to tell.
struct Systemd {
    dir: tempfile::TempDir,
    notify: UnixDatagram,
    sockets: [UnixListener; 2],
}

struct Daemon(Child, Capture);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.1.text());
        }
    }
}

impl Systemd {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let place = dir.path().display();
        let text = format!("root = \"{place}/r\"\nstate = \"{place}/s\"\n");
        std::fs::write(dir.path().join("config.toml"), text).expect("config.toml");
        std::fs::create_dir(dir.path().join("s")).expect("state");
        let notify = UnixDatagram::bind(dir.path().join("notify")).expect("NOTIFY_SOCKET");
        let limit = Some(Duration::from_secs(60));
        notify.set_read_timeout(limit).expect("a deadline");
        let socket = |name: &str| {
            let path = dir.path().join("s").join(name);
            let listener = UnixListener::bind(&path).expect("a socket");
            // SocketMode= of a unit that somebody has changed.
            let mode = std::fs::Permissions::from_mode(0o666);
            std::fs::set_permissions(&path, mode).expect("its mode");
            std::os::unix::fs::chown(&path, None, Some(65534)).expect("its group");
            listener
        };
        let sockets = [socket("dunnage.sock"), socket("dunnage.sock.ttrpc")];
        Self {
            dir,
            notify,
            sockets,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s/dunnage.sock")
    }

    fn start(&self, program: &Path) -> Daemon {
        let mut command = Command::new("sh");
        // The pid is known only to the process itself, and stays when it executes the daemon.
        command
            .args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"])
            .arg(program)
            .arg("--config")
            .arg(self.dir.path().join("config.toml"))
            .arg("daemon")
            .env("LISTEN_FDS", "2")
            .env("NOTIFY_SOCKET", self.dir.path().join("notify"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // Out of the way of the numbers they are to have.
        let high = self.sockets.each_ref().map(|socket| {
            // SAFETY: duplicates a fd that is open to a new number, which we then own.
            unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100) }
        });
        // SAFETY: dup2 is async-signal-safe; both fds are open until the child has executed.
        unsafe {
            command.pre_exec(move || {
                for (fd, number) in high.into_iter().zip(3..) {
                    if libc::dup2(fd, number) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let mut child = command.spawn().expect("the daemon");
        for fd in high {
            // SAFETY: ours, from above.
            unsafe { libc::close(fd) };
        }
        let log = Capture::of(child.stderr.take().expect("piped"));
        Daemon(child, log)
    }

    #[track_caller]
    fn told(&self, expected: &str) {
        let mut text = [0; 256];
        let n = self.notify.recv(&mut text).expect("a word to systemd");
        assert_eq!(std::str::from_utf8(&text[..n]), Ok(expected));
    }
}

fn version(api: &Api) -> String {
    let answer: VersionResponse = api.call("version.v1.Version/Version", ()).expect("Version");
    answer.version
}

#[test]
fn a_client_that_comes_before_the_daemon_waits_and_is_answered() {
    let systemd = Systemd::new();
    let socket = systemd.socket();
    let early = std::thread::spawn(move || version(&Api::at(&socket, "")));
    // It is in the queue, or will be: either way nobody refuses it.
    let daemon = systemd.start(manager::binary());
    systemd.told("READY=1");
    assert!(!early.join().expect("the early client").is_empty());
    let inode = |path: &Path| std::fs::metadata(path).expect("the socket").ino();
    let before = inode(&systemd.socket());
    wait::signal(daemon.0.id() as i32, libc::SIGTERM).expect("SIGTERM");
    systemd.told("STOPPING=1");
    let pid = daemon.0.id() as i32;
    assert!(harness::containerd::ctr::ends_within(
        pid,
        Duration::from_secs(60)
    ));
    // The sockets are systemd's: the same, with the mode and the group of their unit.
    let metadata = std::fs::metadata(systemd.socket()).expect("the socket");
    assert_eq!(metadata.ino(), before);
    assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o666, 65534));
    let socket = systemd.socket();
    let between = std::thread::spawn(move || version(&Api::at(&socket, "")));
    let _next = systemd.start(manager::binary());
    systemd.told("READY=1");
    assert!(!between.join().expect("the client in between").is_empty());
}

#[test]
fn a_renewal_is_the_same_process_with_the_same_sockets_and_the_new_program() {
    let systemd = Systemd::new();
    let program = systemd.dir.path().join("dunnage");
    program::copy(manager::binary(), &program);
    let daemon = systemd.start(&program);
    systemd.told("READY=1");
    let pid = daemon.0.id() as i32;
    let executed = || std::fs::read_link(format!("/proc/{pid}/exe")).expect("exe");
    // As an upgrade does: the old file is gone, a new one has its name.
    let new = systemd.dir.path().join("new");
    program::copy(manager::binary(), &new);
    std::fs::rename(&new, &program).expect("in its place");
    assert!(executed().to_string_lossy().ends_with(" (deleted)"));
    for _ in 0..2 {
        wait::signal(pid, libc::SIGHUP).expect("SIGHUP");
        systemd.told("RELOADING=1");
        systemd.told("READY=1");
        assert_eq!(executed(), program);
        assert!(!version(&Api::at(&systemd.socket(), "")).is_empty());
    }
}

#[test]
fn a_new_program_or_configuration_that_is_no_good_changes_nothing() {
    let systemd = Systemd::new();
    let program = systemd.dir.path().join("dunnage");
    program::copy(manager::binary(), &program);
    let daemon = systemd.start(&program);
    systemd.told("READY=1");
    let pid = daemon.0.id() as i32;
    let refused = |times: usize| {
        daemon.1.wait_for("a refusal", |log| {
            (log.matches("does not start anew").count() == times).then_some(())
        });
        assert!(!version(&Api::at(&systemd.socket(), "")).is_empty());
    };
    let config = systemd.dir.path().join("config.toml");
    let good = std::fs::read_to_string(&config).expect("config.toml");
    std::fs::write(&config, "[shim]\nsockets = 1\n").expect("config.toml");
    wait::signal(pid, libc::SIGHUP).expect("SIGHUP");
    refused(1);
    daemon
        .1
        .wait_for("the key", |log| log.contains("sockets").then_some(()));
    std::fs::write(&config, good).expect("config.toml");
    let broken = systemd.dir.path().join("broken");
    std::fs::write(&broken, "no program").expect("a file");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&broken, mode).expect("its mode");
    std::fs::rename(&broken, &program).expect("in its place");
    wait::signal(pid, libc::SIGHUP).expect("SIGHUP");
    refused(2);
    std::fs::remove_file(&program).expect("the broken program");
    program::copy(manager::binary(), &program);
    wait::signal(pid, libc::SIGHUP).expect("SIGHUP");
    systemd.told("RELOADING=1");
    systemd.told("READY=1");
}
