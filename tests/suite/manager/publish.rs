// SPDX-License-Identifier: Apache-2.0
//! `dunnage publish`, which old shims run to publish an event: the program's path is theirs by
//! `-publish-binary`, the words are containerd's (cmd/containerd/command/publish.go).

use harness::manager::{self, Manager};
use protos::events::TaskOom;
use protos::{Message, any};
use std::io::Write;
use std::process::{Command, Stdio};

/// What a shim of containerd 1.2 does: its words, in their order, and the event on stdin.
fn publish(manager: &Manager, topic: &str, event: &[u8]) -> (bool, String) {
    let mut command = Command::new(manager::binary());
    command
        .arg("--address")
        .arg(manager.socket())
        .args(["publish", "--topic", topic])
        .args(["--namespace", &manager.namespace()])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("dunnage publish");
    let mut stdin = child.stdin.take().expect("piped");
    // It may have refused already.
    let _ = stdin.write_all(event);
    drop(stdin);
    let output = child.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

#[test]
fn an_event_on_stdin_reaches_subscribers() {
    manager::on(|manager| {
        let followed = manager.spawn_dunnage(&["--json", "events", "--since", "0"]);
        let oom = TaskOom {
            container_id: "old".into(),
        };
        let event = any::pack(&oom).encode_to_vec();
        let (published, said) = publish(manager, "/tasks/oom", &event);
        assert!(published, "{said}");
        let line = followed.stdout.wait_for("the event", |text| {
            text.lines()
                .next()
                .filter(|_| text.ends_with('\n'))
                .map(str::to_owned)
        });
        let told: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(told["topic"], "/tasks/oom");
        assert_eq!(told["namespace"], manager.namespace());
        assert_eq!(told["event"]["container_id"], "old");
    });
}

#[test]
fn what_is_no_event_or_no_topic_is_refused() {
    manager::on(|manager| {
        let event = any::pack(&TaskOom::default()).encode_to_vec();
        let (published, said) = publish(manager, "no/topic", &event);
        assert!(!published && said.contains("no/topic"), "{said}");
        let (published, said) = publish(manager, "/tasks/oom", b"\xff\xff");
        assert!(!published && said.contains("stdin"), "{said}");
        assert!(manager.json(&["events", "--no-follow"]).is_empty());
    });
}
