// SPDX-License-Identifier: Apache-2.0
//! Two managers on one machine, which must not touch each other's containers.

use harness::containerd::ctr::{Output, ends_within};
use harness::manager::{self, Manager};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A daemon with this configuration, which is to end by itself; what it says.
fn refused(manager: &Manager, config: &str) -> String {
    let path = manager.dir().join("second.toml");
    std::fs::write(&path, config).expect("a configuration");
    let mut daemon = Command::new(manager::binary());
    daemon.arg("--config").arg(path).arg("daemon");
    let mut daemon = daemon.stderr(Stdio::piped()).spawn().expect("a daemon");
    let ended = ends_within(daemon.id() as i32, Duration::from_secs(20));
    let _ = daemon.kill();
    let output = daemon.wait_with_output().expect("its end");
    assert!(ended && !output.status.success(), "it serves: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Also after a new image has taken over.
#[test]
fn a_second_daemon_on_root_or_state_says_who_has_it() {
    manager::on(|manager| {
        let place = manager.dir().display().to_string();
        for _ in 0..2 {
            for (root, state, key) in [("r", "s2", "root"), ("r2", "s", "state")] {
                let config = format!(
                    "root = \"{place}/{root}\"\nstate = \"{place}/{state}\"\n\
                     [grpc]\naddress = \"{place}/second.sock\"\n"
                );
                let said = refused(manager, &config);
                let pid = manager.pid().to_string();
                assert!(said.contains(&pid) && said.contains(key), "{said}");
            }
            manager.renew();
        }
        manager.kill();
        manager.restart();
    });
}

/// A command of the second manager's, in the namespace of the first.
fn other(first: &Manager, second: &Manager, args: &[&str]) -> Output {
    let config = second.dir().join("config.toml").display().to_string();
    let namespace = first.namespace();
    let begin = ["--config", &config, "-n", &namespace];
    second.plain(&[&begin, args].concat())
}

/// Nor in another namespace: a bundle that names no cgroup has one of its namespace.
#[test]
fn bundles_of_one_id_do_not_meet() {
    manager::on(|first| {
        let bundle = first.dir().join("bundle");
        std::fs::create_dir(&bundle).expect("a bundle");
        let mut spec = Command::new("runc");
        spec.arg("spec").current_dir(&bundle);
        assert!(spec.status().expect("runc").success());
        let path = bundle.join("config.json");
        let text = std::fs::read_to_string(&path).expect("config.json");
        let mut spec: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        spec["root"]["path"] = harness::peers::rootfs().display().to_string().into();
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = serde_json::json!(["sleep", "1000"]);
        std::fs::write(&path, spec.to_string()).expect("config.json");
        let bundle = bundle.display().to_string();
        let run = ["run", "-d", "--bundle", &bundle, "same"];
        first.dunnage(&run).ok();
        manager::on(|second| {
            second.dunnage(&run).ok();
            let cgroup = |pid: i32| {
                let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
                text.expect("its cgroups")
            };
            for manager in [&*first, &*second] {
                let namespace = manager.namespace();
                let text = cgroup(manager.pid_of("same"));
                assert!(text.contains(&format!("/{namespace}/same")), "{text}");
            }
            second.dunnage(&["rm", "-f", "same"]).ok();
        });
        first.dunnage(&["rm", "-f", "same"]).ok();
    });
}

/// Neither by runc's records nor by its cgroup.
#[test]
fn a_container_of_the_same_name_is_untouched() {
    manager::on(|first| {
        manager::on(|second| {
            first.run(&["-d"], "c", &["sleep", "1000"]).ok();
            let rootfs = harness::peers::rootfs().display().to_string();
            let run = ["run", "-d", "--rootfs", &rootfs, "c", "sleep", "1000"];
            let refused = other(first, second, &run).exits(125);
            assert!(refused.stderr.contains("cgroup"), "{refused}");
            first.dunnage(&["exec", "c", "true"]).ok();
            // With a cgroup of its own it is another container, with a life of its own.
            let bundle = crate::exec::bundle(second, |spec| {
                spec["process"]["args"] = serde_json::json!(["sleep", "1000"]);
                spec["linux"]["cgroupsPath"] = format!("/{}/c", second.namespace()).into();
            });
            other(first, second, &["run", "-d", "-b", &bundle, "c"]).ok();
            other(first, second, &["exec", "c", "true"]).ok();
            other(first, second, &["rm", "-f", "c"]).ok();
            first.dunnage(&["exec", "c", "true"]).ok();
            assert_eq!(first.status("c"), "running");
        });
    });
}

/// Whose shim fails before it has said where the container's state is.
#[test]
fn a_create_that_failed_undoes_nothing_of_anothers() {
    manager::on(|first| {
        manager::on(|second| {
            first.run(&["-d"], "c", &["sleep", "1000"]).ok();
            let bundle = crate::exec::bundle(second, |spec| {
                spec["process"]["args"] = serde_json::json!(["/no/such/program"]);
                spec["linux"]["cgroupsPath"] = format!("/{}/c", second.namespace()).into();
            });
            other(first, second, &["run", "-d", "-b", &bundle, "c"]).exits(127);
            first.dunnage(&["exec", "c", "true"]).ok();
            assert_eq!(first.status("c"), "running");
        });
    });
}
