// SPDX-License-Identifier: Apache-2.0
//! What of specs the helper may be asked for.

use super::*;
use serde_json::json;

fn config() -> Value {
    json!({
        "process": {"args": ["x"], "cwd": "/", "oomScoreAdj": 7, "terminal": true},
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network", "path": "/x"}],
            "seccomp": null, "resources": {"devices": []}, "uidMappings": [],
        },
    })
}

fn process() -> Value {
    json!({
        "args": ["sh", "-c", "x"], "cwd": "/tmp", "env": ["PATH=/bin", "A=b=c"], "terminal": false,
        "user": {"uid": 7, "gid": 8, "additionalGids": [9]}, "oomScoreAdj": 7,
        "noNewPrivileges": true,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}],
        "capabilities": {"bounding": ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"], "effective": null},
    })
}

#[test]
fn what_is_known_to_the_last_detail_is_asked_for() {
    let request = Terms::of(&config()).unwrap().request(&process()).unwrap();
    let expected = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    assert_eq!(request.namespaces, expected.bits());
    assert_eq!(request.capabilities.bounding, 1 << 40 | 1);
    assert_eq!(
        request.limits,
        [Limit {
            resource: 7,
            soft: 5,
            hard: 6
        }]
    );
    assert_eq!(
        (request.uid, request.gid, &*request.groups),
        (7, 8, &[9][..])
    );
    let json = serde_json::to_vec(&request).unwrap();
    assert_eq!(serde_json::from_slice::<Request>(&json).unwrap(), request);
}

#[test]
fn all_else_is_the_runtimes() {
    for (pointer, value, why) in [
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW"}),
            "linux.seccomp",
        ),
        (
            "/linux/personality",
            json!({"domain": "LINUX32"}),
            "linux.personality",
        ),
        ("/linux/new", json!(null), "linux.new"),
        (
            "/linux/namespaces/2/type",
            json!("user"),
            "linux.namespaces: Some(\"user\")",
        ),
        ("/linux/namespaces/0/type", json!("ipc"), "linux.namespaces"),
        (
            "/process/apparmorProfile",
            json!("p"),
            "process.apparmorProfile",
        ),
        ("/process/scheduler", json!({}), "process.scheduler"),
    ] {
        let mut config = config();
        set(&mut config, pointer, value);
        assert_eq!(Terms::of(&config).unwrap_err(), why, "{pointer}");
    }
    let terms = Terms::of(&config()).unwrap();
    for (pointer, value, why) in [
        ("/terminal", json!(true), "process.terminal"),
        ("/args", json!([]), "args"),
        ("/args", json!(["a\0"]), "args"),
        ("/cwd", json!("tmp"), "cwd"),
        ("/env", json!(["A=1", "A=2"]), "env"),
        ("/env", json!(["A"]), "env"),
        ("/env", json!(["HOME="]), "env"),
        ("/user/umask", json!(18), "user.umask"),
        ("/user/uid", json!(-1), "user.uid"),
        ("/user/uid", json!(1_u64 << 32), "user.uid"),
        ("/oomScoreAdj", json!(null), "oomScoreAdj"),
        ("/capabilities", json!(null), "capabilities"),
        ("/capabilities/effective", json!(["CAP_NEW"]), "CAP_NEW"),
        ("/rlimits/0/type", json!("RLIMIT_NEW"), "RLIMIT_NEW"),
        ("/rlimits/0/soft", json!(-1), "RLIMIT_NOFILE"),
        ("/ioPriority", json!({"class": "x"}), "process.ioPriority"),
    ] {
        let mut process = process();
        set(&mut process, pointer, value);
        assert_eq!(terms.request(&process).unwrap_err(), why, "{pointer}");
    }
}

fn set(value: &mut Value, pointer: &str, to: Value) {
    let (above, key) = pointer.rsplit_once('/').unwrap();
    let above = value.pointer_mut(above).unwrap();
    match key.parse::<usize>() {
        Ok(n) => above[n] = to,
        Err(_) => above[key] = to,
    }
}
