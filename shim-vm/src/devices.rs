// SPDX-License-Identifier: Apache-2.0
//! The devices that a container's config.json names: its guest has those that every kernel has, and none of
//! the host's.

use crate::spec::Refusal;
use serde_json::Value;

/// The devices that every kernel has, by their numbers: null, zero, full, random, urandom; tty, console and
/// ptmx; net/tun and fuse.
const DEVICES: [(u64, u64); 10] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
    (10, 200),
    (10, 229),
];

/// A container has the devices of its guest. Of one that may use all that there are, none in particular is
/// wanted; any other is told.
///
/// # Errors
/// A device of the host's.
pub fn check(spec: &mut Value) -> Result<(), Refusal> {
    let rules = spec["linux"]["resources"]["devices"].as_array();
    let any = |rule: &Value, part: &str| match &rule[part] {
        Value::Null => true,
        Value::String(kind) => kind.is_empty() || kind == "a",
        number => number.as_i64().is_some_and(|number| number < 0),
    };
    let all = |rule: &Value| {
        rule["allow"] == true
            && ["type", "major", "minor"]
                .into_iter()
                .all(|part| any(rule, part))
    };
    let may_all = rules.is_some_and(|rules| rules.iter().any(all));
    let list = spec.pointer_mut("/linux/devices");
    let Some(list) = list.and_then(Value::as_array_mut) else {
        return Ok(());
    };
    let is_there = |device: &Value| match device["type"].as_str() {
        Some("p") => true,
        Some("c" | "u") => {
            let number = |part: &str| device[part].as_u64().unwrap_or_default();
            DEVICES.contains(&(number("major"), number("minor")))
        }
        _ => false,
    };
    if may_all {
        list.retain(is_there);
    }
    match list.iter().find(|device| !is_there(device)) {
        Some(device) => {
            let path = device["path"].as_str().unwrap_or_default();
            let text = format!("linux.devices: {path}, a device of the host's");
            Err(Refusal::Unimplemented(text))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_device_of_the_hosts_is_refused_by_name() {
        let fuse = json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229});
        let disk = json!({"path": "/dev/sda", "type": "b", "major": 8, "minor": 0});
        let with = |rule: Value| {
            let resources = json!({"devices": [{"allow": false, "access": "rwm"}, rule]});
            json!({"linux": {"devices": [fuse, disk], "resources": resources}})
        };
        let that = json!({"allow": true, "type": "b", "major": 8, "minor": 0, "access": "rwm"});
        let why = check(&mut with(that)).unwrap_err().to_string();
        assert!(
            why.starts_with("linux.devices: /dev/sda, a device of the host's: not"),
            "{why}"
        );
        for all in [
            json!({"allow": true}),
            json!({"allow": true, "type": "a", "major": -1}),
        ] {
            let mut spec = with(all);
            assert_eq!(check(&mut spec), Ok(()));
            assert_eq!(
                spec["linux"]["devices"],
                json!([fuse]),
                "all that there are"
            );
        }
        assert_eq!(check(&mut json!({})), Ok(()));
    }
}
