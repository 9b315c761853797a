// SPDX-License-Identifier: Apache-2.0
//! Stories of containers, told in events.

use super::*;
use crate::journal::ExecDeleted;
use std::sync::atomic::{AtomicI64, Ordering};

/// No two happen at the same time.
fn envelope<M: protos::Name>(topic: &str, event: &M) -> Envelope {
    static CLOCK: AtomicI64 = AtomicI64::new(1);
    Envelope {
        timestamp: Some(Timestamp {
            seconds: CLOCK.fetch_add(1, Ordering::Relaxed),
            nanos: 0,
        }),
        namespace: "n".into(),
        topic: topic.into(),
        event: Some(any::pack(event)),
    }
}

fn create(pid: u32) -> Envelope {
    let event = TaskCreate {
        container_id: "c".into(),
        pid,
        ..Default::default()
    };
    envelope(topic::TASK_CREATE, &event)
}

fn start(pid: u32) -> Envelope {
    let event = TaskStart {
        container_id: "c".into(),
        pid,
    };
    envelope(topic::TASK_START, &event)
}

fn exec_started(exec: &str, pid: u32) -> Envelope {
    let event = TaskExecStarted {
        container_id: "c".into(),
        exec_id: exec.into(),
        pid,
    };
    envelope(topic::TASK_EXEC_STARTED, &event)
}

fn exit(id: &str, pid: u32, status: u32) -> Envelope {
    let event = TaskExit {
        container_id: "c".into(),
        id: id.into(),
        pid,
        exit_status: status,
        exited_at: None,
    };
    envelope(topic::TASK_EXIT, &event)
}

fn delete(pid: u32, status: u32) -> Envelope {
    let event = TaskDelete {
        container_id: "c".into(),
        pid,
        exit_status: status,
        ..Default::default()
    };
    envelope(topic::TASK_DELETE, &event)
}

struct Story(Ledger, u64);

impl Story {
    fn new() -> Self {
        Self(Ledger::default(), 0)
    }

    fn tell(&mut self, envelope: Envelope) -> Verdict {
        let verdict = self.0.judge(&envelope);
        if matches!(verdict, Verdict::Take | Verdict::Amend(_)) {
            self.1 += 1;
            let record = Record {
                envelope: Some(envelope),
                ..Default::default()
            };
            self.0.apply(self.1, &record);
        }
        verdict
    }

    fn delete_exec(&mut self, exec: &str) {
        let exec = ProcessId::Exec(exec.into());
        let gone = ExecDeleted::new(&Key::new("n", "c"), &exec);
        self.1 += 1;
        let record = Record {
            exec_deleted: Some(gone),
            ..Default::default()
        };
        self.0.apply(self.1, &record);
    }

    fn facts(&self) -> &Facts {
        self.0.facts(&Key::new("n", "c")).unwrap()
    }
}

#[test]
fn an_exit_is_taken_once_and_never_contradicted() {
    let mut story = Story::new();
    story.tell(create(5));
    story.tell(start(5));
    assert_eq!(story.facts().running().count(), 1);
    assert_eq!(story.tell(exit("c", 5, 7)), Verdict::Take);
    assert_eq!(story.tell(exit("c", 5, 7)), Verdict::Duplicate);
    let conflict = Verdict::Conflict {
        known: 7,
        said: 137,
    };
    assert_eq!(story.tell(exit("c", 5, 137)), conflict);
    assert_eq!(story.facts().exit(&ProcessId::Init).unwrap().status, 7);
    assert_eq!(story.facts().running().count(), 0);
}

#[test]
fn a_delete_tells_the_status_that_the_exit_told() {
    let mut story = Story::new();
    story.tell(create(5));
    story.tell(start(5));
    story.tell(exit("c", 5, 7));
    let Verdict::Amend(event) = story.tell(delete(5, 137)) else {
        panic!()
    };
    assert_eq!(decode::<TaskDelete>(&event).unwrap().exit_status, 7);
    assert_eq!(story.tell(delete(5, 7)), Verdict::Duplicate);
    assert_eq!(story.tell(exit("c", 5, 7)), Verdict::Duplicate);
}

#[test]
fn what_a_shim_sends_again_is_known() {
    let mut story = Story::new();
    for event in [create(5), start(5), exec_started("e", 8), exit("e", 8, 1)] {
        assert_eq!(story.tell(event.clone()), Verdict::Take);
        assert_eq!(story.tell(event), Verdict::Duplicate);
    }
    // The same, at another time, is another.
    for _ in 0..100 {
        assert_eq!(story.tell(start(5)), Verdict::Take);
    }
    assert_eq!(story.facts().recent.len(), SENT_AGAIN);
}

#[test]
fn a_container_of_the_same_name_starts_anew() {
    let mut story = Story::new();
    for pid in [5, 6] {
        assert_eq!(story.tell(create(pid)), Verdict::Take);
        story.tell(start(pid));
        assert_eq!(story.tell(exit("c", pid, 1)), Verdict::Take);
        assert_eq!(story.tell(delete(pid, 1)), Verdict::Take);
    }
    assert!(story.facts().deleted);
}

#[test]
fn an_exec_of_the_same_name_starts_anew() {
    let mut story = Story::new();
    story.tell(create(5));
    assert_eq!(story.tell(exit("e", 8, 1)), Verdict::Take);
    assert_eq!(story.tell(exit("e", 8, 1)), Verdict::Duplicate);
    assert_eq!(story.tell(exit("e", 9, 1)), Verdict::Take);
}

/// All processes in a VM have one pid.
#[test]
fn an_exec_of_the_same_name_and_pid_starts_anew_once_the_first_is_deleted() {
    let mut story = Story::new();
    story.tell(create(5));
    story.tell(start(5));
    for status in [1, 0, 2] {
        story.tell(exec_started("e", 5));
        assert_eq!(story.tell(exit("e", 5, status)), Verdict::Take);
        let exec = ProcessId::Exec("e".into());
        assert_eq!(story.facts().exit(&exec).unwrap().status, status);
        story.delete_exec("e");
    }
}

#[test]
fn only_undeleted_containers_are_needed() {
    let mut story = Story::new();
    story.tell(create(5));
    story.tell(exit("c", 5, 7));
    let record = Record {
        envelope: Some(exit("c", 5, 7)),
        ..Default::default()
    };
    assert!(story.0.needs(2, &record));
    assert!(!story.0.needs(1, &record));
    story.tell(delete(5, 7));
    assert!(!story.0.needs(2, &record));
}

#[test]
fn an_exit_after_the_deletion_of_its_exec_is_told_once_and_not_needed() {
    let mut story = Story::new();
    story.tell(create(5));
    story.tell(exec_started("e", 8));
    assert_eq!(story.facts().running().count(), 1);
    story.delete_exec("e");
    assert_eq!(story.facts().running().count(), 0);
    assert_eq!(story.tell(exit("e", 8, 1)), Verdict::Take);
    assert_eq!(story.tell(exit("e", 8, 1)), Verdict::Duplicate);
    let record = |envelope| Record {
        envelope: Some(envelope),
        ..Default::default()
    };
    assert!(!story.0.needs(4, &record(exit("e", 8, 1))));
    assert!(!story.0.needs(2, &record(exec_started("e", 8))));
    // Another of its name is another process.
    story.tell(exec_started("e", 9));
    assert_eq!(story.facts().running().count(), 1);
    assert!(story.0.needs(5, &record(exec_started("e", 9))));
}

#[test]
fn deleted_execs_are_forgotten_in_the_end() {
    let mut story = Story::new();
    story.tell(create(5));
    for n in 0..1000 {
        let exec = format!("e{n}");
        story.tell(exec_started(&exec, 100 + n));
        story.tell(exit(&exec, 100 + n, 0));
        story.delete_exec(&exec);
    }
    assert_eq!(story.facts().processes.len(), 1 + REMEMBERED);
}

/// What can't be remembered is told all the same, and what is needed of the journal stays bounded.
#[test]
fn a_namespace_has_a_bound_and_leaves_others_their_room() {
    let mut ledger = Ledger::default();
    let exit_of = |namespace: &str, id: String| Envelope {
        namespace: namespace.into(),
        ..envelope(
            topic::TASK_EXIT,
            &TaskExit {
                container_id: id.clone(),
                id,
                pid: 7,
                ..Default::default()
            },
        )
    };
    let mut tell = |seq, envelope| {
        let record = Record {
            envelope: Some(envelope),
            ..Default::default()
        };
        ledger.apply(seq, &record);
        ledger.needs(seq, &record)
    };
    let needed = (0..20_000).filter(|&n| tell(n, exit_of("loud", format!("c{n}"))));
    assert_eq!(needed.count(), 10_000);
    assert!(!tell(30_000, exit_of("quiet", "x".repeat(77))), "no id");
    assert!(tell(30_001, exit_of("quiet", "c".into())));
    // Whatever goes makes room.
    let gone = TaskDelete {
        container_id: "c0".into(),
        pid: 7,
        ..Default::default()
    };
    for n in 0..300 {
        let gone = TaskDelete {
            container_id: format!("c{n}"),
            ..gone.clone()
        };
        let deleted = Envelope {
            namespace: "loud".into(),
            ..envelope(topic::TASK_DELETE, &gone)
        };
        tell(30_002 + n, deleted);
    }
    assert!(tell(40_000, exit_of("loud", "new".into())));
}
