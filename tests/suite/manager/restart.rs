// SPDX-License-Identifier: Apache-2.0
//! Restart policies, for containers that somebody else than our client made.

use harness::full_disk::FullDisk;
use harness::manager::{self, api::Api};
use harness::{peers, wait};
use protos::services::tasks::v1::*;
use protos::types::Mount;
use protos::{Any, Code};
use std::fs;
use std::io::Write;
use std::time::Duration;

#[test]
fn a_container_whose_rootfs_came_as_mounts_is_restarted_on_them() {
    manager::on(|manager| {
        let api = Api::new(manager);
        let mut container = api.container("c", None, &["sleep", "1000"]);
        let label = |key: &str| format!("containerd.io/restart.{key}");
        container.labels.insert(label("status"), "running".into());
        container.labels.insert(label("policy"), "always".into());
        api.create_container(container).expect("a container");
        let bind = Mount {
            r#type: "bind".into(),
            source: peers::rootfs().display().to_string(),
            options: vec!["rbind".into(), "ro".into()],
            ..Default::default()
        };
        let create = CreateTaskRequest {
            container_id: "c".into(),
            rootfs: vec![bind],
            ..Default::default()
        };
        let created: CreateTaskResponse =
            api.call("tasks.v1.Tasks/Create", create).expect("Create");
        let start = StartRequest {
            container_id: "c".into(),
            ..Default::default()
        };
        let _: StartResponse = api.call("tasks.v1.Tasks/Start", start).expect("Start");
        let mut before = created.pid as i32;
        let restarted = |manager: &manager::Manager, before| {
            manager.until("another process", |it| {
                (it.status("c") == "running")
                    .then(|| it.pid_of("c"))
                    .filter(|&pid| pid != before)
            })
        };
        wait::signal(before, libc::SIGKILL).expect("kill");
        before = restarted(manager, before);
        // After a reboot too, from the record on disk.
        manager.reboot(&[before]);
        before = restarted(manager, before);
        manager
            .dunnage(&["exec", "c", "test", "-x", "/bin/sleep"])
            .ok();
        manager.dunnage(&["stop", "-t", "0s", "c"]).ok();
        assert!(!harness::proc::alive(before));
    });
}

#[test]
fn a_terminal_is_a_terminal_again_after_a_restart() {
    let config = "[restart]\nbackoff_min = \"10ms\"\n";
    manager::with(config, |manager| {
        let up = manager.fifo("up");
        let script = "test -t 1 && echo yes > /mnt/up; sleep 1000";
        let options = [
            "-d",
            "-t",
            "--restart",
            "always",
            "--log-uri",
            "file:///dev/null",
        ];
        manager.run(&options, "c", &["sh", "-c", script]).ok();
        assert_eq!(up.line(), "yes");
        wait::signal(manager.pid_of("c"), libc::SIGKILL).expect("kill");
        assert_eq!(up.line(), "yes");
        manager.dunnage(&["stop", "-t", "0s", "c"]).ok();
        manager.dunnage(&["start", "c"]).ok();
        assert_eq!(up.line(), "yes");
        manager.dunnage(&["stop", "-t", "0s", "c"]).ok();
    });
}

/// An event has one id for init and for execs, and init's is the container's: no exec may have it,
/// whatever shim there is. One called `init` is an exec like any other.
#[test]
fn an_execs_end_is_never_taken_for_inits() {
    let config = "[restart]\nbackoff_min = \"10ms\"\n";
    manager::with(config, |manager| {
        let options = ["-d", "--restart", "always"];
        manager.run(&options, "x", &["sleep", "1000"]).ok();
        let pid = manager.pid_of("x");
        let api = Api::new(manager);
        let process = serde_json::json!({
            "args": ["sh", "-c", "exit 5"], "cwd": "/", "user": {"uid": 0, "gid": 0},
            "env": ["PATH=/bin"],
        });
        let add = |exec: &str| {
            let spec = Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process.to_string().into_bytes(),
            };
            let request = ExecProcessRequest {
                container_id: "x".into(),
                exec_id: exec.into(),
                spec: Some(spec),
                ..Default::default()
            };
            api.call::<()>("tasks.v1.Tasks/Exec", request)
        };
        let refusal = add("x").expect_err("an exec with the container's id");
        assert_eq!(
            refusal.code() as i32,
            Code::AlreadyExists as i32,
            "{refusal:?}"
        );
        add("init").expect("Exec");
        let start = StartRequest {
            container_id: "x".into(),
            exec_id: "init".into(),
        };
        let _: StartResponse = api.call("tasks.v1.Tasks/Start", start).expect("Start");
        let wait = WaitRequest {
            container_id: "x".into(),
            exec_id: "init".into(),
        };
        let ended: WaitResponse = api.call("tasks.v1.Tasks/Wait", wait).expect("Wait");
        assert_eq!(ended.exit_status, 5);
        let told = manager.json(&["exits", "x"]);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0]["exec"], "init");
        // Long enough for a restart, had there been a reason.
        assert!(manager.alive_for(Duration::from_millis(200)));
        assert_eq!(
            (manager.status("x"), manager.pid_of("x")),
            ("running".into(), pid)
        );
        manager.dunnage(&["delete", "--force", "x"]).ok();
    });
}

/// Whatever a restart is about when the container is removed: it is the last.
#[test]
fn a_container_that_is_being_restarted_can_be_removed() {
    let config = "[restart]\nbackoff_min = \"1ms\"\nbackoff_max = \"1ms\"\n";
    manager::with(config, |manager| {
        let up = manager.fifo("up");
        let script = "echo up > /mnt/up; exit 1";
        for id in (0..12).map(|round| format!("c{round}")) {
            let options = ["-d", "--restart", "always"];
            manager.run(&options, &id, &["sh", "-c", script]).ok();
            for _ in 0..2 {
                assert_eq!(up.line(), "up");
            }
            manager.dunnage(&["rm", "--force", &id]).ok();
            assert_eq!(manager.status(&id), "none");
        }
    });
}

/// What cannot be stored is refused, and changes nothing.
#[test]
fn a_stop_that_would_be_forgotten_is_refused() {
    manager::on(|manager| {
        manager.kill();
        let root = manager.dir().join("r");
        fs::remove_dir_all(&root).expect("the root");
        let disk = FullDisk::half_full(root.clone(), 256 << 10);
        manager.restart();
        let options = ["-d", "--restart", "always"];
        manager.run(&options, "web", &["sleep", "1000"]).ok();
        let filled = root.join("filled");
        let mut file = fs::File::create(&filled).expect("a file");
        while file.write_all(&[0; 4096]).is_ok() {}
        drop(file);
        let refused = manager.dunnage(&["stop", "-t", "0s", "web"]).exits(1);
        let names = ["web", "explicitly-stopped", "No space left"];
        assert!(
            names.iter().all(|it| refused.stderr.contains(it)),
            "{refused}"
        );
        assert_eq!(manager.status("web"), "running");
        fs::remove_file(&filled).expect("room");
        manager.dunnage(&["stop", "-t", "0s", "web"]).ok();
        // Long enough for a restart.
        assert!(manager.alive_for(Duration::from_millis(500)));
        assert_eq!(manager.status("web"), "stopped");
        manager.dunnage(&["rm", "web"]).ok();
        manager.kill();
        drop(disk);
        manager.restart();
    });
}
