// SPDX-License-Identifier: Apache-2.0
//! What a fuzzer, and a test with random inputs, do to all that clients send: options, exec specs,
//! config.json, mount options.

use crate::bundle::Spec;
use crate::cgroup::Remains;
use crate::json;
use crate::oci::Options;
use crate::process::exec::Exec;
use crate::rootfs::fuzz_options;
use crate::stdio::Paths;
use protos::{Any, Message};
use serde_json::{Map, Value};
use std::path::{Component, Path};

/// An Any as it comes in Create: options that are taken are written to options.json and come
/// back.
pub fn options(input: &[u8]) {
    let Ok(any) = Any::decode(input) else { return };
    if let Ok(options) = Options::from_any(Some(&any)) {
        let json = serde_json::to_vec(&options).unwrap_or_default();
        let back = json::read::<Options>(&json);
        assert_eq!(back.ok(), Some(options));
    }
}

/// The JSON of an exec: what reaches the OCI runtime is what came, but for the terminal.
pub fn exec_spec(input: &[u8]) {
    let Ok(exec) = Exec::new("e", input, Paths::default(), None) else {
        return;
    };
    let sent = exec.spec();
    assert!(serde_json::from_slice::<Map<String, Value>>(&sent).is_ok());
    let mut came = json::object(input).unwrap_or_default();
    came.retain(|key, _| !key.eq_ignore_ascii_case("terminal"));
    came.insert("terminal".into(), false.into());
    assert_eq!(json::object(&sent), Ok(came));
}

/// A config.json: it is read or refused.
pub fn config(input: &[u8]) {
    let strict = serde_json::from_slice::<Value>(input);
    let value = json::read::<Value>(input);
    assert!(value.is_ok() || strict.is_err(), "{value:?} {strict:?}");
    if let Ok(spec) = json::read_first::<Spec>(input) {
        let _ = spec.has_own_pid_namespace();
        let path = crate::cgroup::path_of(spec.cgroups_path(), "c", false);
        let systemd = crate::cgroup::path_of(spec.cgroups_path(), "c", true);
        // Never a root: what is there would be killed.
        let mount = b"32 31 0:29 / /cg rw - cgroup cgroup rw,memory\n";
        for path in [path, systemd] {
            let remains = Remains::locate(&path, &[], mount, b"2:memory:/own\n");
            for dir in remains.dirs() {
                let below = dir.strip_prefix("/cg").unwrap_or(Path::new(""));
                let normal = |part| matches!(part, Component::Normal(_));
                assert!(below.components().count() > 0, "{}", dir.display());
                assert!(below.components().all(normal), "{}", dir.display());
            }
        }
    }
}

/// Mount options, one a line: the filesystem gets what is no flag, and not more than a page.
pub fn mount_options(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let options: Vec<String> = text.lines().map(str::to_owned).collect();
    for kind in ["overlay", "bind", "fuse.x"] {
        if let Ok((data, chdir)) = fuzz_options(kind, &options, 4096) {
            assert!(data.len() < 4096);
            assert!(chdir.is_none_or(|dir| dir.starts_with('/') && kind == "overlay"));
        }
    }
}

#[cfg(test)]
#[path = "../../fuzz/mutate.rs"]
mod mutate;

#[cfg(test)]
mod tests {
    use super::*;
    use protos::{any, runc};

    fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    #[test]
    fn no_bytes_upset_options() {
        let ours = runc::Options {
            binary_name: "crun".into(),
            root: "/r".into(),
            io_uid: 7,
            systemd_cgroup: true,
            ..Default::default()
        };
        let cri = protos::runtimeoptions::Options {
            type_url: "containerd.runc.v1.Options".into(),
            config_body: b"BinaryName = \"crun\"\nSystemdCgroup = true\nIoUid = 3\n".to_vec(),
            ..Default::default()
        };
        let seeds = [any::pack(&ours), any::pack(&cri)].map(|any| any.encode_to_vec());
        mutate::inputs(&seeds, options);
    }

    #[test]
    fn no_bytes_upset_exec_specs() {
        let seeds = texts(&[
            r#"{"terminal":true,"args":["sh","-c","true"],"env":["A=\u00e9"],"cwd":"/",
               "rlimits":[{"type":"RLIMIT_NOFILE","hard":18446744073709551615,"soft":-1}]}"#,
            r#"{"user":{"uid":0,"additionalGids":[1,2]},"x":1.5e300}"#,
            "null",
            "[]",
        ]);
        mutate::inputs(&seeds, exec_spec);
    }

    #[test]
    fn no_bytes_upset_config_json() {
        let seeds = texts(&[
            r#"{"annotations":{"a":"b"},"linux":{"namespaces":[{"type":"pid"},
               {"type":"net","path":"/x"}],"cgroupsPath":"/none-such/c"}}"#,
            r#"{"linux":{"cgroupsPath":"none-a-b.slice:cri:c"}}"#,
            r#"{"linux":null,"annotations":null}"#,
        ]);
        mutate::inputs(&seeds, config);
    }

    #[test]
    fn no_options_upset_mounts() {
        let lower: Vec<String> = (0..300)
            .map(|n| format!("/var/lib/snapshots/{n}/fs"))
            .collect();
        let overlay = format!("lowerdir={}\nupperdir=/u\nworkdir=/w", lower.join(":"));
        let seeds = texts(&[
            "rbind\nro",
            &overlay,
            "lowerdir=/a/b:/a/c\nindex=off",
            "loop",
        ]);
        mutate::inputs(&seeds, mount_options);
    }
}
