//! Restart policies, for containers that somebody else than our client made.

use harness::manager::{self, api::Api};
use harness::{peers, wait};
use protos::services::tasks::v1::*;
use protos::types::Mount;

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
