// SPDX-License-Identifier: Apache-2.0
//! `doctor` and `inspect` tell what hangs, by the word of the shims.

use crate::exec::bundle;
use harness::manager;
use serde_json::json;

/// A hook that does not come back keeps the runtime, and that keeps Create.
#[test]
fn a_runtime_that_hangs_is_named() {
    manager::on(|manager| {
        let gate = manager.fifo("gate");
        let hook = format!("read x <{}", manager.dir().join("share/gate").display());
        let bundle = bundle(manager, |spec| {
            spec["process"]["args"] = json!(["true"]);
            let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", hook]});
            spec["hooks"] = json!({"createRuntime": [hook]});
        });
        let run = manager.spawn_dunnage(&["run", "-b", &bundle, "x"]);
        let found = manager.until("the cause", |manager| {
            let found = manager.dunnage(&["doctor"]).stdout;
            found
                .contains("Create of x has gone on for")
                .then_some(found)
        });
        let line = found.lines().find(|line| line.contains("Create of x"));
        let line = line.expect("the line");
        assert!(line.starts_with("wait"), "{line}");
        for said in ["/x: Create of x", "it waits for runc ", ", in state S"] {
            assert!(line.contains(said), "{said}: {line}");
        }
        manager.dunnage(&["doctor"]).exits(1);
        let told = &manager.json(&["inspect", "x"])[0]["shim"];
        assert_eq!(told["creating"], json!(["x"]), "{told}");
        let cause = told["causes"][0].as_str().expect("a cause");
        assert!(cause.starts_with("Create of x has gone on for "), "{cause}");
        gate.send("go");
        run.finish().ok();
    });
}
