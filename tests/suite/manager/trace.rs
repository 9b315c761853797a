// SPDX-License-Identifier: Apache-2.0
//! A whole `dunnage run` as one tree of spans: the command, the daemon, the shim, the runtime.

use harness::otlp::{self, Span};
use harness::{manager, wait};
use std::collections::HashMap;
use std::fs;

#[test]
fn a_run_is_one_tree() {
    manager::on(|manager| {
        let file = manager.dir().join("spans");
        let place = format!("file://{}", file.display());
        manager.kill();
        manager.env.push(("DUNNAGE_TRACE", place));
        manager.restart();
        manager.run(&["--rm"], "c", &["true"]).ok();
        let of_run = |spans: &[Span]| {
            let root = spans
                .iter()
                .find(|span| span.name == "dunnage run")?
                .clone();
            let of = spans.iter().filter(|span| span.trace == root.trace);
            let of: Vec<Span> = of.cloned().collect();
            Some((root, of))
        };
        let (root, spans) = wait::until_within(wait::DEADLINE, "the spans", || {
            let text = fs::read_to_string(&file).map_err(|e| e.to_string())?;
            of_run(&otlp::read(&text)).ok_or(text)
        });
        assert_eq!((&*root.parent, &*root.service), ("", "dunnage"));
        let all: HashMap<&str, &Span> = spans.iter().map(|span| (&*span.id, span)).collect();
        let way = |name: &str| {
            let mut at = *all
                .values()
                .find(|span| span.name == name)
                .unwrap_or_else(|| panic!("no {name}: {spans:#?}"));
            let mut way = vec![at.name.as_str()];
            while !at.parent.is_empty() {
                at = all[&*at.parent];
                way.push(&at.name);
            }
            way
        };
        for (command, call) in [("create", "Create"), ("start", "Start")] {
            let method = format!("containerd.services.tasks.v1.Tasks/{call}");
            let runtime = format!("runtime {command}");
            assert_eq!(way(&runtime), [&runtime, call, &method, "dunnage run"]);
        }
    });
}
