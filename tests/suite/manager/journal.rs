// SPDX-License-Identifier: Apache-2.0
//! The journal on disk: cut, damaged, read from a cursor.

use harness::manager::{self, api::Api};
use protos::events::TaskOom;
use protos::services::events::v1::PublishRequest;
use protos::types::Envelope;
use protos::{Any, Message};
use std::fs;
use std::path::PathBuf;

fn segments(manager: &manager::Manager) -> Vec<PathBuf> {
    let entries = fs::read_dir(manager.state().join("journal")).expect("the journal");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "journal"));
    paths.sort();
    paths
}

/// Every byte of the last record, which is what a crash can cut; all bytes in `make soak`.
#[test]
fn a_journal_cut_at_any_byte_of_its_last_record_keeps_the_others() {
    manager::on(|it| manager::cut::at_every_byte(it, false));
}

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

/// A record of the journal, as it is written now and as it was before records had marks.
fn forged() -> Vec<u8> {
    let topic = "/forged".into();
    let envelope = Envelope {
        topic,
        ..Default::default()
    };
    let envelope = envelope.encode_to_vec();
    let seq = (1u64 << 40).to_le_bytes();
    let body = [&seq[..], &[0x0a, envelope.len() as u8], &envelope].concat();
    let next = |crc: u32, bit: u32| (crc >> 1) ^ (0x82f6_3b78 * ((crc ^ bit) & 1));
    let byte = |crc, &byte: &u8| (0..8).fold(crc, |crc, n| next(crc, u32::from(byte >> n) & 1));
    let crc = (!body.iter().fold(!0, byte)).to_le_bytes();
    let length = |more: usize| (body.len() as u32 + more as u32).to_le_bytes();
    let now = [b"\xf5dnjrnl\xfa", &length(4)[..], &crc, &body].concat();
    [&now[..], &length(0), &crc, &body].concat()
}

/// A client may publish anything: also what would be a record, if a crash tore the one that it is in.
#[test]
fn what_a_client_says_is_never_read_as_a_record() {
    manager::on(|manager| {
        let said = PublishRequest {
            topic: "/tests/x".into(),
            event: Some(Any {
                type_url: "test".into(),
                value: forged(),
            }),
        };
        let api = Api::new(manager);
        api.call::<()>("events.v1.Events/Publish", said)
            .expect("published");
        manager.kill();
        let path = segments(manager).pop().expect("a segment");
        let whole = fs::read(&path).expect("the segment");
        fs::write(&path, &whole[..whole.len() - 1]).expect("the segment");
        manager.restart();
        assert_eq!(manager.json(&["events", "--no-follow"]).len(), 0);
        manager
            .run(&["--rm"], "c", &["sh", "-c", "exit 7"])
            .exits(7);
        assert_eq!(manager.exits("c"), [(7, "shim".to_owned())]);
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

#[test]
fn a_journal_on_disk_is_synced_before_a_start_is_answered_and_outlives_a_reboot() {
    manager::with("[journal]\nwhere = \"disk\"\n", |manager| {
        let syncs = manager.journal_syncs(|it| {
            it.run(&["-d"], "gone", &["sh", "-c", "exit 7"]).ok();
            it.until("its exit", |it| (it.exits("gone").len() == 1).then_some(()));
        });
        assert!(syncs >= 2, "one for the start, one for the exit: {syncs}");
        manager.run(&["-d"], "runs", &["sleep", "1000"]).ok();
        let pid = manager.pid_of("runs");
        manager.reboot(&[pid]);
        assert_eq!(manager.exits("gone"), [(7, "shim".to_owned())]);
        assert_eq!(manager.exits("runs"), [(255, "unknown".to_owned())]);
        manager.dunnage(&["wait", "gone"]).ok().prints("7\n");
        manager.dunnage(&["start", "runs"]).ok();
        assert_eq!(manager.status("runs"), "running");
    });
}

/// Fills the journal's file system to the last byte.
fn fill(dir: &std::path::Path) {
    use std::io::Write;
    let mut file = fs::File::create(dir.join("ballast")).expect("ballast");
    for size in [4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

/// A page that the journal has already is written to its end.
fn use_up_the_page(manager: &manager::Manager) {
    let api = Api::new(manager);
    let publish = || {
        let event = protos::any::pack(&TaskOom::default());
        let request = PublishRequest {
            topic: "/x".into(),
            event: Some(event),
        };
        api.call::<()>("events.v1.Events/Publish", request)
    };
    let refused = (0..4096).find_map(|_| publish().err());
    assert_eq!(refused.expect("a refusal").code(), tonic::Code::Unavailable);
    manager.until("it in the log", |it| {
        it.log().contains("No space left").then_some(())
    });
}

#[test]
fn r1_a_full_disk_loses_no_exit() {
    manager::on(|manager| {
        let dir = manager.state().join("journal");
        manager.kill();
        let size = Some("size=64k");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &dir, Some("tmpfs"), flags, size).expect("a small tmpfs");
        manager.restart();
        let gate = manager.fifo("gate");
        let words = ["sh", "-c", "read x < /mnt/gate; exit 7"];
        manager.run(&["-d"], "told", &words).ok();
        manager.run(&["-d"], "reaped", &["sleep", "1000"]).ok();
        manager.run(&["-d"], "stays", &["sleep", "1000"]).ok();
        let (told, reaped) = (manager.pid_of("told"), manager.pid_of("reaped"));
        fill(&dir);
        use_up_the_page(manager);
        // One exit that its shim tells, one that only the daemon knows.
        gate.send("go");
        harness::wait::signal(manager.shim_of("reaped"), libc::SIGKILL).expect("kill");
        for pid in [told, reaped] {
            assert!(harness::containerd::ctr::ends_within(
                pid,
                harness::containerd::DEADLINE
            ));
        }
        assert!(manager.exits("told").is_empty() && manager.exits("reaped").is_empty());
        // Whoever asks is answered all the same.
        assert_eq!(manager.status("stays"), "running");
        fs::remove_file(dir.join("ballast")).expect("room again");
        for (id, status) in [("told", 7), ("reaped", 137)] {
            manager.until("its exit", |it| (it.exits(id).len() == 1).then_some(()));
            assert_eq!(manager.exits(id)[0].0, status, "{id}");
        }
        manager.until("the dead one buried", |it| {
            (it.status("reaped") == "-").then_some(())
        });
        assert_eq!(manager.exits("reaped"), [(137, "reaped".to_owned())]);
        // The next daemon reads the same.
        manager.kill();
        manager.restart();
        assert_eq!(manager.exits("told").len(), 1);
        manager.dunnage(&["wait", "told"]).ok().prints("7\n");
        manager.kill();
        nix::mount::umount(&dir).expect("unmount");
        manager.restart();
    });
}
