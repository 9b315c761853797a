//! The journal on disk: cut, damaged, read from a cursor.

use harness::manager;
use std::fs;
use std::path::PathBuf;

fn segments(manager: &manager::Manager) -> Vec<PathBuf> {
    let entries = fs::read_dir(manager.state().join("journal")).expect("the journal");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "log"));
    paths.sort();
    paths
}

/// Every byte would be every start of a daemon: the unit tests cut at every byte, this at some.
#[test]
fn a_torn_or_damaged_journal_stops_nothing() {
    manager::on(|manager| {
        manager
            .run(&["--rm"], "c", &["sh", "-c", "exit 7"])
            .exits(7);
        let path = segments(manager).pop().expect("a segment");
        let whole = fs::read(&path).expect("the segment");
        let step = whole.len() / 12;
        for cut in (0..whole.len()).step_by(step.max(1)) {
            manager.kill();
            for path in segments(manager) {
                fs::remove_file(path).expect("remove");
            }
            let mut bytes = whole.clone();
            if cut % 2 == 0 {
                bytes.truncate(cut);
            } else {
                bytes[cut] ^= 0x55;
            }
            fs::write(&path, bytes).expect("the segment");
            manager.restart();
            manager
                .run(&["--rm"], "d", &["sh", "-c", "exit 3"])
                .exits(3);
            assert_eq!(
                manager.exits("d").last().expect("an exit").0,
                3,
                "cut at {cut}"
            );
        }
    });
}

#[test]
fn events_are_read_from_any_point_on() {
    manager::on(|manager| {
        manager
            .run(&["--rm"], "c", &["sh", "-c", "exit 7"])
            .exits(7);
        let all = manager.json(&["events", "--no-follow"]);
        let topics: Vec<&str> = all
            .iter()
            .filter_map(|event| event["topic"].as_str())
            .collect();
        let expected = [
            "/containers/create",
            "/tasks/create",
            "/tasks/start",
            "/tasks/exit",
            "/tasks/delete",
            "/containers/delete",
        ];
        assert_eq!(topics, expected);
        let seq = all[3]["seq"].to_string();
        let since = manager.json(&["events", "--no-follow", "--since", &seq]);
        assert_eq!(since, all[3..]);
        let followed = manager.spawn_dunnage(&["--json", "events", "--since", &seq]);
        manager.run(&["--rm"], "d", &["true"]).ok();
        followed.stdout.wait_for("the end of d", |text| {
            (text.matches("/containers/delete").count() == 2).then_some(())
        });
        let numbers: Vec<u64> = followed
            .stdout
            .text()
            .lines()
            .filter_map(|line| {
                serde_json::from_str::<serde_json::Value>(line).ok()?["seq"].as_u64()
            })
            .collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    });
}
