// SPDX-License-Identifier: Apache-2.0
//! What others put in: names that are no text, JSON as Go takes it, times beyond the calendar,
//! control characters, and more clients than there is room for.

use harness::{manager, peers, proc, wait};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::net::UnixStream;

const KEEP: &str = "[shim]\non_death = \"keep\"\n";
/// The kernel keeps 15 bytes of a program's name, wherever that cuts it: here inside a character.
const RENAMED: &str =
    r"printf 'uberwachungsdi\303' > /proc/self/comm; echo up > /mnt/up; read x < /mnt/gate; exit 9";

/// Starts `c` under a name that is no UTF-8.
fn renamed(manager: &manager::Manager) {
    let up = manager.fifo("up");
    manager.run(&["-d"], "c", &["sh", "-c", RENAMED]).ok();
    assert_eq!(up.line(), "up");
    let pid = manager.pid_of("c");
    let stat = fs::read(format!("/proc/{pid}/stat")).expect("stat");
    assert!(
        std::str::from_utf8(&stat).is_err(),
        "{}",
        stat.escape_ascii()
    );
}

/// R4: the death of its shim does not touch a container that is to be kept, whatever its name.
#[test]
fn a_process_whose_name_is_no_text_is_kept_as_any_other() {
    manager::with(KEEP, |manager| {
        let gate = manager.fifo("gate");
        renamed(manager);
        wait::signal(manager.shim_of("c"), libc::SIGKILL).expect("kill");
        manager.until("the loss noticed", |it| {
            it.log().contains("goes on without a shim").then_some(())
        });
        assert_eq!(manager.status("c"), "running");
        let waiting = manager.spawn_dunnage(&["wait", "c"]);
        gate.send("go");
        waiting.finish().ok().prints("9\n");
        assert_eq!(manager.exits("c"), [(9, "reaped".to_owned())]);
    });
}

/// R1: when daemon and shim are killed together, its exit is told all the same, once.
#[test]
fn a_process_whose_name_is_no_text_has_its_exit_after_a_restart() {
    manager::on(|manager| {
        let _gate = manager.fifo("gate");
        renamed(manager);
        let pid = manager.pid_of("c");
        manager.kill();
        for shim in manager.shims() {
            wait::signal(shim, libc::SIGKILL).expect("kill");
        }
        manager.restart();
        manager.until("its exit", |it| (it.exits("c").len() == 1).then_some(()));
        assert_eq!(manager.exits("c")[0].0, 137);
        assert!(!proc::alive(pid));
    });
}

/// As runc takes it.
#[test]
fn a_bundle_with_gos_json_is_run() {
    manager::on(|manager| {
        let bundle = manager.dir().join("bundle");
        fs::create_dir(&bundle).expect("a bundle");
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["sh", "-c", "exit $S"], "env": ["S=1"], "cwd": "/",
                        "user": {"uid": 0, "gid": 0}, "rlimits": null},
            "root": {"path": peers::rootfs(), "readonly": true},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": null}],
            "linux": {"namespaces": [{"type": "pid", "path": null}, {"type": "mount"}],
                      "gidMappings": null},
            "annotations": {"a": null},
        });
        let text = spec.to_string();
        let text = text.strip_suffix('}').expect("an object");
        let more = r#","process":{"env":["PATH=/bin","S=6"]},"annotations":{"b":"c"}} trailing"#;
        fs::write(bundle.join("config.json"), format!("{text}{more}")).expect("config.json");
        let bundle = bundle.display().to_string();
        manager
            .dunnage(&["run", "--rm", "--bundle", &bundle, "b"])
            .exits(6);
        fs::write(format!("{bundle}/config.json"), "[]").expect("config.json");
        manager
            .dunnage(&["run", "--rm", "--bundle", &bundle, "b"])
            .exits(125);
        // Nobody was hurt.
        manager.dunnage(&["ls"]).ok();
    });
}

/// No time that can be written aborts a program.
#[test]
fn times_beyond_the_calendar_are_times() {
    manager::on(|manager| {
        manager.run(&["--rm"], "c", &["true"]).ok();
        for since in [
            "99999999999h",
            "18446744073709551615h",
            "0001-01-01T00:00:00Z",
        ] {
            let events = manager.json(&["events", "--no-follow", "--since", since]);
            assert!(!events.is_empty(), "{since}");
        }
        manager
            .dunnage(&["events", "--no-follow", "--since", "1x"])
            .exits(1);
    });
}

/// What a container is called, and what it calls itself, moves nobody's cursor.
#[test]
fn control_characters_of_others_do_not_reach_a_terminal() {
    manager::on(|manager| {
        let gate = manager.fifo("gate");
        let evil = "\u{1b}[2J\u{9b}1m\u{202e}\r\nline";
        let words = ["sh", "-c", "echo up > /mnt/up; read x < /mnt/gate", evil];
        let up = manager.fifo("up");
        manager.run(&["-d"], "c", &words).ok();
        assert_eq!(up.line(), "up");
        let safe = |text: &str| {
            text.chars()
                .all(|c| c == '\n' || !c.is_control() && c != '\u{202e}')
        };
        let told = manager.dunnage(&["ps", "c"]).ok().stdout;
        assert!(
            safe(&told) && told.contains("\\u001b[2J\\u009b1m\\u202e"),
            "{told:?}"
        );
        assert_eq!(told.lines().count(), 2, "{told:?}");
        // The same in JSON, where it means what it says.
        let told = manager.json(&["ps", "c"]);
        assert!(
            told[0]["command"]
                .as_str()
                .is_some_and(|it| it.contains("\u{9b}1m")),
            "{told:?}"
        );
        let inspected = manager.dunnage(&["inspect", "c"]).ok().stdout;
        assert!(safe(&inspected), "{inspected:?}");
        let object: Value = serde_json::from_str(&inspected).expect("JSON");
        assert_eq!(object["spec"]["process"]["args"][3], evil);
        let refused = manager.dunnage(&["inspect", evil]);
        assert!(safe(&refused.stderr), "{:?}", refused.stderr);
        gate.send("go");
    });
}

/// Clients beyond the limits wait; they take no fd of the daemon's.
#[test]
fn clients_that_say_nothing_take_a_bounded_number_of_files() {
    let socket = std::env::temp_dir().join(format!("dunnage-metrics-{}", std::process::id()));
    let config = format!("[metrics]\naddress = \"{}\"\n", socket.display());
    manager::with(&config, |manager| {
        let files = |it: &manager::Manager| proc::fds(it.pid()).map_or(0, |fds| fds.len());
        let before = files(manager);
        let silent: Vec<_> = (0..40).map(|_| UnixStream::connect(&socket)).collect();
        let sockets: Vec<_> = (0..600)
            .map(|_| UnixStream::connect(manager.socket()))
            .collect();
        manager.until("the connections", |it| {
            (files(it) >= before + 500).then_some(())
        });
        assert!(
            files(manager) <= before + 512 + 16 + 8,
            "{}",
            files(manager)
        );
        drop((silent, sockets));
        manager.dunnage(&["ls"]).ok();
        manager.until("them gone", |it| (files(it) <= before + 20).then_some(()));
    });
    fs::remove_file(socket).expect("the metrics' socket");
}
