//! Two managers on one machine, which must not touch each other's containers.

use harness::containerd::ctr::ends_within;
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
