// SPDX-License-Identifier: Apache-2.0
//! The manager over minutes: a long outage, a thousand execs, a journal cut at every byte.

use harness::containerd::ctr::ends_within;
use harness::containerd::release::Release;
use harness::manager::{self, Manager, cut};
use harness::proc;
use std::time::Duration;

/// Longer than Go's shim tries to tell an event (about 15 s), and than its publisher waits.
const OUTAGE: Duration = Duration::from_secs(40);

fn outage(manager: &mut Manager) {
    let gate = manager.fifo("gate");
    manager.run(&["-d"], "stays", &["sleep", "1000"]).ok();
    let words = ["sh", "-c", "read x < /mnt/gate; exit 7"];
    manager.run(&["-d"], "ends", &words).ok();
    let (stays, ends) = (manager.pid_of("stays"), manager.pid_of("ends"));
    manager.kill();
    gate.send("go");
    assert!(ends_within(ends, OUTAGE), "it ends");
    assert!(!ends_within(stays, OUTAGE), "the other is not touched");
    manager.restart();
    manager.until("its exit", |it| {
        (!it.exits("ends").is_empty()).then_some(())
    });
    manager.dunnage(&["wait", "ends"]).ok().prints("7\n");
    assert_eq!(
        (manager.status("stays").as_str(), manager.pid_of("stays")),
        ("running", stays)
    );
    manager.dunnage(&["delete", "ends"]).ok();
    let filter = "topic==/tasks/exit,event.container_id==ends";
    let exits = manager.json(&["events", "--no-follow", "--filter", filter]);
    assert_eq!(exits.len(), 1, "{exits:?}");
    assert_eq!(exits[0]["event"]["exit_status"], 7);
}

#[test]
fn an_outage_of_40_seconds_loses_nothing_and_doubles_nothing() {
    manager::on(outage);
    for name in ["1.6", "1.7", "2.1"] {
        match Release::find(name) {
            Some(release) => manager::under(&release.go_shim(), outage),
            None => println!("shim {name} is MISSING"),
        }
    }
}

#[test]
fn a_thousand_execs_leave_no_memory_behind() {
    manager::on(|manager| {
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        let private = || proc::status(manager.pid(), "RssAnon").expect("RssAnon");
        let cycles = |count: usize| {
            for _ in 0..count {
                manager.dunnage(&["exec", "c", "true"]).ok();
            }
        };
        // What is remembered of deleted execs has a bound.
        cycles(300);
        let before = private();
        cycles(1000);
        let grown = private().saturating_sub(before);
        println!("1,000 execs: {before} kB of private memory, and {grown} kB more");
        assert!(grown <= 64, "{grown} kB for 1,000 execs");
    });
}

#[test]
fn a_journal_cut_at_every_byte_stops_nothing() {
    manager::on(|manager| cut::at_every_byte(manager, true));
}
