// SPDX-License-Identifier: Apache-2.0
//! JSON that others write is read as Go's encoding/json reads it: what Go's shim and runc take, ours
//! takes, and no value that nobody asks for stops a container.

use harness::{Bundle, Code, Test, refused, runtime_differs};
use serde_json::{Value, json};
use std::fs;

/// A bundle whose config.json `change` has rewritten, as bytes: its init ends with 7.
fn bundle(test: &Test, id: &str, change: impl FnOnce(String) -> Vec<u8>) -> Bundle {
    let bundle = test.bundle(id).sh("exit $STATUS").build();
    let path = bundle.file("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let env = spec["process"]["env"].as_array_mut().unwrap();
    env.push(json!("STATUS=7"));
    fs::write(&path, change(spec.to_string())).unwrap();
    bundle
}

async fn ends_with_7(bundle: &Bundle, id: &str, what: &str) {
    let shim = bundle.start().shim().await;
    let created = shim.create(bundle.create()).await;
    created.unwrap_or_else(|e| panic!("{what}: {e}"));
    shim.start(id, "").await.unwrap();
    assert_eq!(shim.wait(id, "").await.unwrap().exit_status, 7, "{what}");
    shim.delete(id, "").await.unwrap();
    shim.shutdown(id).await.unwrap();
    shim.stopped().await;
}

/// `text` with `more` members.
fn with(text: &str, more: &str) -> Vec<u8> {
    format!("{},{more}}}", text.strip_suffix('}').unwrap()).into_bytes()
}

/// B30, T10: all at once, so that a VM boots but once.
#[test]
fn a_config_that_go_takes_is_taken() {
    if runtime_differs("gos-json") {
        return;
    }
    harness::run(async |test| {
        let nulls = |text: String| {
            let mut spec: Value = serde_json::from_str(&text).unwrap();
            spec["linux"]["namespaces"][0]["path"] = Value::Null;
            spec["linux"]["seccomp"] = Value::Null;
            spec["linux"]["sysctl"] = Value::Null;
            spec["linux"]["resources"]["memory"] = Value::Null;
            spec["mounts"][0]["options"] = Value::Null;
            spec["process"]["rlimits"] = Value::Null;
            spec["process"]["terminal"] = Value::Null;
            spec["process"]["capabilities"] = Value::Null;
            spec["hooks"] = json!({"prestart": null, "poststop": null});
            spec["annotations"] = json!({"a": null});
            // Of what is said twice the last counts, and two objects are one.
            let text = spec.to_string().replace("STATUS=7", "STATUS=6");
            let env = r#""process":{"env":["PATH=/bin","STATUS=7"],"cwd":"/"}"#;
            let deep = "[".repeat(100) + &"]".repeat(100);
            let more = format!(
                r#""annotations":{{"b":"\ud800"}},"annotations":{{"b":"RAW"}},{env},
                "x":{{"y":1e999,"z":{deep},"n":123456789012345678901234567890}}"#
            );
            let text = String::from_utf8(with(&text, &more)).unwrap();
            // The name of a field in any case, bytes that are no text, and more behind the end.
            let text = text.replace("\"cgroupsPath\"", "\"cgroupspath\"") + "\n}trailing";
            let (before, after) = text.split_once("RAW").unwrap();
            [before.as_bytes(), b"\xff\xe2\x82", after.as_bytes()].concat()
        };
        ends_with_7(&bundle(test, "c", nulls), "c", "all of it").await;
    });
}

/// B30: what decides on the group is read by the same rules.
#[test]
fn the_group_is_found_as_go_finds_it() {
    harness::run(async |test| {
        let group = "io.containerd.runc.v2.group";
        for (id, more, expected) in [
            (
                "a",
                format!(r#""annotations":{{"{group}":"x"}},"annotations":{{"{group}":"g1"}}"#),
                "g1",
            ),
            ("b", format!(r#""ANNOTATIONS":{{"{group}":"g2"}}"#), "g2"),
            (
                "c",
                r#""annotations":{"x":null},"linux":null"#.to_owned(),
                "c",
            ),
            (
                "d",
                r#""annotations":null,"annotations":{"x":"y"},"linux":[5]"#.to_owned(),
                "d",
            ),
        ] {
            let bundle = bundle(test, id, |text| with(&text, &more));
            let shim = bundle.start().shim().await;
            assert_eq!(shim.socket(), test.socket_of(expected), "{more}");
            shim.shutdown(id).await.unwrap();
            shim.stopped().await;
        }
    });
}

/// B4: and what Go does not take is refused, and no panic.
#[test]
fn a_config_that_go_refuses_is_refused_by_start() {
    harness::run(async |test| {
        let deep = "[".repeat(200_000);
        for (id, config) in [
            ("a", "[]"),
            ("b", r#"{"annotations":[]}"#),
            ("c", r#"{"annotations":{"a":5}}"#),
            ("d", "{"),
            ("e", deep.as_str()),
            ("f", ""),
            ("g", "\"text\""),
        ] {
            let bundle = bundle(test, id, |_| config.as_bytes().to_vec());
            let output = bundle.start().run().await;
            assert_eq!(output.code(), Some(1), "{id}: {}", output.err());
            assert_eq!(test.daemons(), [] as [i32; 0]);
        }
    });
}

/// T30, T74: execs and resources.
#[test]
fn execs_and_updates_that_go_takes_are_taken() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let spec = harness::bundle::process(test, &["sh", "-c", "exit $STATUS"]);
        let more = r#""rlimits":null,"apparmorProfile":null,"terminal":null,
            "env":["STATUS=5"],"env":["PATH=/bin","STATUS=9","RAW"],"x":"\udc00""#;
        let text = String::from_utf8(with(&spec.to_string(), more)).unwrap();
        let (before, after) = text.split_once("RAW").unwrap();
        let mut request = bundle.exec_spec("e", &spec);
        request.spec.as_mut().unwrap().value =
            [before.as_bytes(), b"B=\xff", after.as_bytes()].concat();
        shim.run(request).await;
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 9);
        shim.delete("c", "e").await.unwrap();
        // `[]` was passed on to the runtime once; and one of Go's panics on `null`.
        for (id, wrong) in [("f", "[]"), ("g", "5"), ("h", "{}x"), ("i", "")] {
            let mut request = bundle.exec_spec(id, &spec);
            request.spec.as_mut().unwrap().value = wrong.into();
            assert_eq!(
                refused(shim.exec(request).await).code,
                Code::Unknown,
                "{wrong}"
            );
        }
        for json in [
            r#"{"pids":{"limit":1},"pids":{"limit":50},"cpu":null,"memory":null}"#,
            "null",
        ] {
            shim.update("c", json).await.unwrap();
        }
        for wrong in ["[]", "{", "5"] {
            assert_eq!(refused(shim.update("c", wrong).await).code, Code::Unknown);
        }
    });
}
