//! Bad names, labels and filters, and clients without permission.

use harness::containerd::release::Release;
use harness::manager;
use harness::peers;
use std::os::unix::fs::PermissionsExt;

#[test]
fn bad_names_are_refused_by_name() {
    let Some(ctr) = Release::find("1.6") else {
        return;
    };
    manager::on(|manager| {
        let rootfs = peers::rootfs().display().to_string();
        for id in ["a b", "a/b", "..", "-", "a..b"] {
            let create = ["containers", "create", "--rootfs", &rootfs, "--", id];
            let output = manager.ctr(&ctr, &create);
            output.fails_with("");
        }
        for id in ["a b", "a/../b", "a..b"] {
            manager.dunnage(&["inspect", id]).fails_with(id);
        }
        let socket = manager.socket().display().to_string();
        manager
            .plain(&["-a", &socket, "-n", "a/b", "ls"])
            .fails_with("a/b");
        manager
            .dunnage(&["ls", "--filter", "id=x"])
            .fails_with("id=x");
        manager
            .dunnage(&["events", "--filter", "topic~=("])
            .fails_with("topic~=(");
        let label = format!("k={}", "v".repeat(5000));
        let create = ["create", "--rootfs", &rootfs, "-l", &label, "c", "true"];
        manager.dunnage(&create).fails_with("label");
        manager
            .dunnage(&["ns", "rm", "absent"])
            .fails_with("absent");
        assert!(manager.json(&["ls"]).is_empty());
    });
}

#[test]
fn the_socket_is_for_its_owner_and_group() {
    manager::on(|manager| {
        let mode = |path: &std::path::Path| {
            std::fs::metadata(path)
                .expect("the socket")
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(mode(&manager.socket()), 0o660);
        assert_eq!(mode(&manager.state().join("dunnage.sock.ttrpc")), 0o600);
        let socket = manager.socket();
        let output = std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(manager::binary())
            .arg("-a")
            .arg(&socket)
            .arg("ls")
            .output()
            .expect("setpriv");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains("ermission denied"),
            "{text}"
        );
    });
}
