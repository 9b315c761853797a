// SPDX-License-Identifier: Apache-2.0
//! A whole `ctr run` as trees of spans: from containerd's API to the runtime.

use harness::containerd::{self, Containerd};
use harness::otlp::{self, Receiver, Span};
use std::collections::HashMap;
use std::fs;

/// What containerd sends to a collector and what the shim writes into a file are one tree for each
/// call of its API, and nothing is a part of what is not there.
#[test]
fn a_run_is_traced_from_containerd_to_the_runtime() {
    if harness::differs("traces") {
        return;
    }
    let receiver = Receiver::default();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("spans");
    let env = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint.clone()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".into()),
        ("OTEL_SERVICE_NAME", "containerd".into()),
        // In milliseconds: how long it keeps them.
        ("OTEL_BSP_SCHEDULE_DELAY", "100".into()),
        ("DUNNAGE_TRACE", format!("file://{}", file.display())),
    ];
    containerd::traced("2.1", env, |containerd: &mut Containerd| {
        containerd.run(&["--rm"], "c", &["true"]).ok();
        let whole = |theirs: &[Span]| {
            // A line is a whole span.
            let text = fs::read_to_string(&file).ok()?;
            let ours = otlp::read(&text[..text.rfind('\n')?]);
            let all: HashMap<&str, &Span> = theirs
                .iter()
                .chain(&ours)
                .map(|span| (&*span.id, span))
                .collect();
            let way = |span: &Span| {
                let (mut way, mut at) = (vec![span.name.clone()], span);
                while !at.parent.is_empty() {
                    at = all.get(&*at.parent)?;
                    assert_eq!(at.trace, span.trace);
                    way.push(format!("{}: {}", at.service, at.name));
                }
                Some(way)
            };
            ours.iter().map(way).collect::<Option<Vec<_>>>()
        };
        let ways = receiver.wait_for("whole trees", whole);
        for (runtime, call) in [
            ("create", "Create"),
            ("start", "Start"),
            ("delete", "Delete"),
        ] {
            let name = format!("runtime {runtime}");
            let way = ways.iter().find(|way| way[0] == name);
            let way = way.unwrap_or_else(|| panic!("{name}: {ways:#?}"));
            assert_eq!(way[1], format!("io.containerd.runc.v2: {call}"), "{way:?}");
            let root = way.last().expect("a first one");
            let method = format!("containerd.services.tasks.v1.Tasks/{call}");
            assert!(
                root.starts_with("containerd: ") && root.ends_with(&method),
                "{way:?}"
            );
        }
        assert!(ways.iter().any(|way| way[0] == "mount rootfs"), "{ways:#?}");
    });
}
