// SPDX-License-Identifier: Apache-2.0
//! A journal that is cut, byte by byte, under a daemon.

use super::Manager;
use crate::containerd::report;
use serde_json::Value;
use std::fs;

/// Cuts the journal of two short lives, at every byte or at those of its last record, and looks
/// what the daemon makes of it.
pub fn at_every_byte(manager: &mut Manager, all: bool) {
    for (id, code) in [("a", 7), ("b", 3)] {
        let words = ["sh", "-c", &format!("exit {code}")];
        manager.run(&["--rm"], id, &words).exits(code);
    }
    let told = events(manager);
    let dir = manager.state().join("journal");
    let mut segments = fs::read_dir(&dir).expect("the journal");
    let path = segments.next().expect("a segment").expect("it").path();
    let whole = fs::read(&path).expect("the segment");
    let last = whole.windows(8).rposition(|text| text == b"/contain");
    // In front of its topic a record has its head, a time and the namespace.
    let first = last.expect("a topic").saturating_sub(56);
    let first = if all { 0 } else { first };
    for cut in first..whole.len() {
        manager.kill();
        fs::remove_dir_all(&dir).expect("remove the journal");
        fs::create_dir(&dir).expect("the journal");
        fs::write(&path, &whole[..cut]).expect("the cut segment");
        manager.restart();
        check(
            &told,
            &events(manager),
            &format!("cut at {cut} of {}", whole.len()),
        );
    }
    report(&format!("{} cuts", whole.len() - first));
}

/// Topic and body of what the journal has.
fn events(manager: &Manager) -> Vec<(String, Value)> {
    let all = manager.json(&["events", "--no-follow"]);
    let pair = |event: &Value| {
        let topic = event["topic"].as_str().expect("a topic");
        (topic.to_owned(), event["event"].clone())
    };
    all.iter().map(pair).collect()
}

/// What was told is a beginning of `told`; then the books may have been closed of a container
/// whose end was cut off: one exit at most, unknown, and one deletion.
fn check(told: &[(String, Value)], left: &[(String, Value)], place: &str) {
    let same = told.iter().zip(left).take_while(|(a, b)| a == b).count();
    let closing: Vec<&str> = left[same..]
        .iter()
        .map(|(topic, _)| topic.as_str())
        .collect();
    let expected: [&[&str]; 3] = [&[], &["/tasks/delete"], &["/tasks/exit", "/tasks/delete"]];
    assert!(expected.contains(&&closing[..]), "{place}: {left:?}");
    for (topic, event) in &left[same..] {
        let known = told[..same].iter().find(|(topic, of)| {
            topic == "/tasks/exit" && of["container_id"] == event["container_id"]
        });
        let status = known.map_or(255.into(), |(_, exit)| exit["exit_status"].clone());
        assert_eq!(event["exit_status"], status, "{place}: {topic}");
    }
}
