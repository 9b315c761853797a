//! dockerd, with our socket for containerd's.

use harness::containerd::ctr::{Ctr, Output};
use harness::containerd::{capture::Capture, report};
use harness::manager::{self, Manager};
use harness::peers;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const DOCKERD: &str = "/usr/sbin/dockerd";
const DOCKER: &str = "/usr/bin/docker";

struct Dockerd {
    dir: PathBuf,
    process: Child,
    log: Capture,
}

impl Dockerd {
    fn start(manager: &Manager) -> Self {
        let dir = manager.dir().join("docker");
        fs::create_dir(&dir).expect("a directory");
        fs::write(dir.join("daemon.json"), "{}").expect("daemon.json");
        let path = |name: &str| dir.join(name).display().to_string();
        let mut command = Command::new(DOCKERD);
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
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = command.spawn().expect("dockerd");
        let log = Capture::of(process.stderr.take().expect("piped"));
        log.wait_for("dockerd to serve", |log| {
            log.contains("API listen").then_some(())
        });
        Self { dir, process, log }
    }

    fn docker(&self, args: &[&str]) -> Output {
        let mut command = Command::new(DOCKER);
        command
            .arg("-H")
            .arg(format!("unix://{}/sock", self.dir.display()))
            .args(args);
        Ctr::spawn(command, Stdio::null()).finish()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let _ = harness::wait::signal(self.process.id() as i32, libc::SIGTERM);
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("---- log of dockerd\n{}----", self.log.text());
        }
    }
}

#[test]
fn docker_runs_over_it_and_learns_of_what_it_missed() {
    if !Path::new(DOCKERD).exists() || !Path::new(DOCKER).exists() {
        return report("dockerd is MISSING (apt-get install docker.io): test not run");
    }
    manager::on(|manager| {
        let dockerd = Dockerd::start(manager);
        let ok = |args: &[&str]| dockerd.docker(args).ok();
        let tar = manager.dir().join("rootfs.tar");
        let tar = tar.display().to_string();
        let made = Command::new("tar")
            .arg("-C")
            .arg(peers::rootfs())
            .args(["-cf", &tar, "."])
            .status();
        assert!(made.expect("tar").success());
        ok(&["import", &tar, "busybox:test"]);
        let run = [
            "run",
            "--rm",
            "--network=none",
            "busybox:test",
            "sh",
            "-c",
            "echo hi; exit 3",
        ];
        dockerd.docker(&run).exits(3).prints("hi\n");

        let service = "while :; do sleep 0.1; done";
        let run = [
            "run",
            "-d",
            "--name=web",
            "--network=none",
            "busybox:test",
            "sh",
            "-c",
            service,
        ];
        ok(&run);
        dockerd
            .docker(&["exec", "web", "sh", "-c", "exit 4"])
            .exits(4);
        assert!(ok(&["top", "web"]).stdout.contains("sleep"));
        ok(&["pause", "web"]);
        assert!(ok(&["ps"]).stdout.contains("(Paused)"));
        ok(&["unpause", "web"]);
        assert!(ok(&["stats", "--no-stream", "web"]).stdout.contains("web"));
        ok(&["update", "--memory=100m", "--memory-swap=200m", "web"]);
        ok(&["kill", "web"]);
        ok(&["wait", "web"]).prints("137\n");
        ok(&["rm", "web"]);

        let up = "echo up; read x < /mnt/gate; exit 7";
        let share = format!("{}:/mnt", manager.dir().join("share").display());
        let gate = manager.fifo("gate");
        let run = [
            "run",
            "-d",
            "--name=brief",
            "--network=none",
            "-v",
            &share,
            "busybox:test",
            "sh",
            "-c",
            up,
        ];
        ok(&run);
        let run = [
            "run",
            "-d",
            "--name=stays",
            "--network=none",
            "busybox:test",
            "sleep",
            "1000",
        ];
        ok(&run);
        let pid = ok(&["inspect", "-f", "{{.State.Pid}}", "brief"])
            .stdout
            .trim()
            .parse();
        let pid: i32 = pid.expect("a pid");
        manager.kill();
        fs::write(manager.dir().join("share/gate"), "go\n").expect("the gate");
        assert!(harness::containerd::ctr::ends_within(
            pid,
            harness::containerd::DEADLINE
        ));
        manager.restart();
        ok(&["wait", "brief"]).prints("7\n");
        assert!(ok(&["ps", "-a"]).stdout.contains("Exited (7)"));
        dockerd
            .docker(&["exec", "stays", "sh", "-c", "exit 5"])
            .exits(5);
        ok(&["rm", "-f", "stays", "brief"]);
        drop(gate);
    });
}
