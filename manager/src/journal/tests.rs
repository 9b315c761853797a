// SPDX-License-Identifier: Apache-2.0
//! What the journal promises, on real files.

use super::*;
use protos::types::Envelope;
use std::time::Duration;

const LIMITS: Limits = Limits {
    records: 100_000,
    bytes: u64::MAX,
    age: Duration::from_secs(3600),
    durable: false,
};

/// Numbers of the records from `since` on.
fn numbers(dir: &Path, since: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut reader = Reader::open(dir, since).unwrap();
    while reader.next(|seq, _| numbers.push(seq)) {}
    numbers
}

fn record(topic: &str) -> Record {
    let envelope = Envelope {
        topic: topic.into(),
        ..Default::default()
    };
    Record {
        envelope: Some(envelope),
        ..Default::default()
    }
}

fn open(dir: &Path) -> (Journal, Vec<(u64, String)>) {
    let mut found = Vec::new();
    let journal = Journal::open(dir, LIMITS, |seq, record| {
        found.push((seq, record.envelope.unwrap().topic));
    });
    (journal.unwrap(), found)
}

#[test]
fn what_was_appended_is_there_after_a_restart_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, found) = open(dir.path());
    assert!(found.is_empty());
    assert_eq!(journal.append(&record("/a")).unwrap(), 1);
    assert_eq!(journal.append(&record("/b")).unwrap(), 2);
    let (mut journal, found) = open(dir.path());
    assert_eq!(found, [(1, "/a".into()), (2, "/b".into())]);
    assert_eq!(journal.append(&record("/c")).unwrap(), 3);
    assert_eq!(numbers(dir.path(), 2), [2, 3]);
}

#[test]
fn a_journal_cut_at_any_byte_opens_and_takes_records() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    for topic in ["/a", "/b", "/c"] {
        journal.append(&record(topic)).unwrap();
    }
    let (_, path) = segments(dir.path()).unwrap().remove(0);
    let bytes = fs::read(&path).unwrap();
    for cut in 0..bytes.len() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(path.file_name().unwrap()), &bytes[..cut]).unwrap();
        let (mut journal, found) = open(dir.path());
        let next = journal.append(&record("/new")).unwrap();
        assert_eq!(next, found.len() as u64 + 1);
        let (_, again) = open(dir.path());
        assert_eq!(again.len(), found.len() + 1, "cut at {cut}");
    }
}

/// An event may say anything, and so may a container's name: also what would be a record of the
/// journal's. No crash, at whatever byte, makes it one.
#[test]
fn what_is_recorded_is_never_read_as_a_record() {
    let forged = record("/forged").encode_to_vec();
    for seq in [3, u64::MAX] {
        let both = [
            segment::encode(seq, &forged),
            old::tests::encode(seq, &forged),
        ]
        .concat();
        let mut outer = record("/b");
        let envelope = outer.envelope.as_mut().unwrap();
        envelope.event = Some(protos::Any {
            type_url: "x".into(),
            value: both,
        });
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        journal.append(&record("/a")).unwrap();
        journal.append(&outer).unwrap();
        let (_, path) = segments(dir.path()).unwrap().remove(0);
        let bytes = fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(path.file_name().unwrap()), &bytes[..cut]).unwrap();
            let before = numbers(dir.path(), 0);
            let (mut journal, found) = open(dir.path());
            assert!(found.iter().all(|(_, topic)| topic == "/a"), "cut at {cut}");
            assert_eq!(before.len(), found.len(), "cut at {cut}");
            let next = journal.append(&record("/new")).unwrap();
            assert_eq!(next, found.len() as u64 + 1, "cut at {cut}");
        }
    }
}

#[test]
fn a_journal_of_the_version_before_is_read_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let old = |seq: u64, topic| old::tests::encode(seq, &record(topic).encode_to_vec());
    let file = |name: &str| dir.path().join(name);
    let first = [old(1, "/a"), old(2, "/b")].concat();
    fs::write(file("00000000000000000001.log"), first).unwrap();
    let mut second = [old(3, "/c"), old(4, "/torn")].concat();
    second.pop();
    fs::write(file("00000000000000000003.log"), second).unwrap();
    for _ in 0..2 {
        let (_, found) = open(dir.path());
        assert_eq!(
            found,
            [(1, "/a".into()), (2, "/b".into()), (3, "/c".into())]
        );
        assert!(!file("00000000000000000001.log").exists());
        assert!(file("00000000000000000003.bad").exists());
    }
    let (mut journal, _) = open(dir.path());
    assert_eq!(journal.append(&record("/d")).unwrap(), 4);
    assert_eq!(numbers(dir.path(), 0), [1, 2, 3, 4]);
}

#[test]
fn a_damaged_segment_is_set_aside_and_its_good_records_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    for topic in ["/a", "/b", "/c"] {
        journal.append(&record(topic)).unwrap();
    }
    let (_, path) = segments(dir.path()).unwrap().remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (_, found) = open(dir.path());
    assert_eq!(found, [(1, "/a".into()), (3, "/c".into())]);
    assert!(path.with_extension("bad").exists());
    assert_eq!(open(dir.path()).1, found);
}

#[test]
fn compaction_drops_the_old_and_keeps_the_needed() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        records: 10,
        ..LIMITS
    };
    let mut journal = Journal::open(dir.path(), limits, |_, _| {}).unwrap();
    for _ in 0..3 {
        for _ in 0..10 {
            journal.append(&record("/x")).unwrap();
        }
        // As if it were full.
        journal.open = None;
    }
    journal.compact(|seq, _| seq == 5).unwrap();
    let left = numbers(dir.path(), 0);
    assert_eq!(left, std::iter::once(5).chain(21..=30).collect::<Vec<_>>());
    assert_eq!(numbers(dir.path(), 25), (25..=30).collect::<Vec<_>>());
}

fn of(namespace: &str, topic: &str) -> Record {
    let mut record = record(topic);
    record.envelope.as_mut().unwrap().namespace = namespace.into();
    record
}

/// How many records there are of each namespace, and how many bytes all have.
fn holdings(dir: &Path) -> (std::collections::BTreeMap<String, usize>, u64) {
    let mut of = std::collections::BTreeMap::new();
    let mut reader = Reader::open(dir, 0).unwrap();
    while reader.next(|_, record| *of.entry(record.envelope.unwrap().namespace).or_default() += 1) {
    }
    let files = fs::read_dir(dir).unwrap();
    let bytes = files.map(|file| file.unwrap().metadata().unwrap().len());
    (of, bytes.sum())
}

/// Neither by many records nor by long ones.
#[test]
fn a_namespace_cannot_push_out_the_records_of_others() {
    let long = format!("/{}", "x".repeat(64 << 10));
    for (topic, count) in [("/tasks/oom", 100_000), (long.as_str(), 1000)] {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits {
            records: 20_000,
            bytes: 4 << 20,
            ..LIMITS
        };
        let mut journal = Journal::open(dir.path(), limits, |_, _| {}).unwrap();
        for n in 0..count {
            if n < 200 {
                journal.append(&of("quiet", "/tasks/exit")).unwrap();
            }
            journal.append(&of("loud", topic)).unwrap();
            if journal.is_full() {
                journal.compact(|seq, _| seq == 2).unwrap();
            }
        }
        let (kept, bytes) = holdings(dir.path());
        assert_eq!(kept["quiet"], 200, "{kept:?}");
        assert!(kept["loud"] > 40, "{kept:?}");
        assert!(bytes <= (4 << 20) + 2 * SEGMENT, "{bytes} bytes");
        assert_eq!(numbers(dir.path(), 0)[1], 2, "what is needed stays");
        // A restart knows the same.
        let mut journal = Journal::open(dir.path(), limits, |_, _| {}).unwrap();
        journal.compact(|_, _| false).unwrap();
        assert_eq!(holdings(dir.path()).0["quiet"], 200);
    }
}

#[test]
fn a_record_is_stored_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    let longest = "x".repeat(MAX_RECORD - 10);
    journal.append(&record(&longest)).unwrap();
    let e = journal
        .append(&record(&"x".repeat(MAX_RECORD)))
        .unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
    assert_eq!(journal.append(&record("/b")).unwrap(), 2);
    let (_, found) = open(dir.path());
    assert_eq!(found, [(1, longest), (2, "/b".into())]);
}

/// Somebody who reads on at his own pace, with a small piece in memory.
#[test]
fn a_journal_is_read_past_damage_and_records_longer_than_a_piece() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    let topics = [
        "/a".to_owned(),
        "/".repeat(100_000),
        "/c".into(),
        "/d".into(),
    ];
    for topic in &topics {
        journal.append(&record(topic)).unwrap();
    }
    assert_eq!(numbers(dir.path(), 0), [1, 2, 3, 4]);
    let (_, path) = segments(dir.path()).unwrap().remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[50_000] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(numbers(dir.path(), 0), [1, 3, 4]);
}

#[test]
fn appending_is_quick() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (mut journal, _) = open(dir.path());
    let begin = std::time::Instant::now();
    for _ in 0..1000 {
        journal.append(&record("/tasks/exit")).unwrap();
    }
    let each = begin.elapsed() / 1000;
    assert!(each < Duration::from_micros(100), "{each:?}");
}

#[test]
fn what_has_to_be_synced_is_every_file_that_was_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        durable: true,
        ..LIMITS
    };
    let mut journal = Journal::open(dir.path(), limits, |_, _| {}).unwrap();
    journal.append(&record("/a")).unwrap();
    // The segment, and the directory that has got it.
    assert_eq!(journal.take_unsynced().unwrap().len(), 2);
    journal.append(&record("/b")).unwrap();
    assert_eq!(journal.take_unsynced().unwrap().len(), 1);
    while !journal.is_full() {
        journal.append(&record(&"/x".repeat(4096))).unwrap();
    }
    journal.append(&record("/c")).unwrap();
    // The full segment, the new one, the directory.
    assert_eq!(journal.take_unsynced().unwrap().len(), 3);
}
