// SPDX-License-Identifier: Apache-2.0
//! What is mounted in a container beside the usual and its volumes, and which of the host's devices it
//! has.

use super::process::{list, object};
use clap::Args;
use serde_json::{Map, Value, json};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// As docker mounts a tmpfs.
const TMPFS: &[&str] = &["nosuid", "nodev", "noexec"];
/// What may be said of a tmpfs (mount(8), tmpfs(5)).
const TMPFS_WORDS: &[&str] = &[
    "rw",
    "ro",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "sync",
    "async",
    "dirsync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
];
const TMPFS_KEYS: &[&str] = &[
    "size",
    "mode",
    "uid",
    "gid",
    "nr_inodes",
    "nr_blocks",
    "mpol",
];
/// What may be said of how mounts get into a bind mount and out of it.
const PROPAGATIONS: &[&str] = &[
    "private", "rprivate", "shared", "rshared", "slave", "rslave",
];

#[derive(Clone, Debug, Default, Args)]
pub struct Mounts {
    /// A mount: type=bind,source=PATH,target=PATH[,readonly] or type=tmpfs,target=PATH[,tmpfs-size=BYTES]
    /// (repeatable)
    #[arg(long = "mount", value_name = "KEY=VALUE,…", value_parser = mount)]
    mounts: Vec<Value>,
    /// A filesystem in memory, TARGET[:OPTIONS] (repeatable)
    #[arg(long, value_name = "TARGET[:OPTIONS]", value_parser = tmpfs)]
    tmpfs: Vec<Value>,
    /// A device of the host, or all in a directory, SOURCE[:TARGET][:rwm] (repeatable)
    #[arg(long = "device", value_name = "SOURCE[:TARGET][:rwm]", value_parser = devices)]
    devices: Vec<Devices>,
}

/// Devices as a spec has them, with what may be done to each.
#[derive(Clone, Debug)]
struct Devices(Vec<(Value, Value)>);

impl Mounts {
    /// # Errors
    /// A text that names what in the spec is not as the OCI runtime spec has it.
    pub fn change(&self, spec: &mut Map<String, Value>) -> Result<(), String> {
        let mounts = self.mounts.iter().chain(&self.tmpfs);
        if mounts.clone().next().is_some() {
            let all = list(spec, "mounts")?;
            for mount in mounts {
                all.retain(|old| old["destination"] != mount["destination"]);
                all.push(mount.clone());
            }
        }
        for (device, rule) in self.devices.iter().flat_map(|some| &some.0) {
            let linux = object(spec, "linux")?;
            let devices = list(linux, "devices")?;
            devices.retain(|old| old["path"] != device["path"]);
            devices.push(device.clone());
            list(object(linux, "resources")?, "devices")?.push(rule.clone());
        }
        Ok(())
    }
}

fn absolute(text: &str) -> Result<&str, String> {
    let path = text.starts_with('/').then_some(text);
    path.ok_or_else(|| format!("{text:?} is not an absolute path"))
}

/// Where something may be mounted: the root is there already.
fn target(text: &str) -> Result<&str, String> {
    let is_root = Path::new(text).components().count() == 1;
    match absolute(text)? {
        _ if is_root => Err("the root can't be mounted over".into()),
        text => Ok(text),
    }
}

fn tmpfs(text: &str) -> Result<Value, String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let options: Vec<&str> = options.split(',').filter(|it| !it.is_empty()).collect();
    for option in &options {
        let is_known = match option.split_once('=') {
            Some((key, value)) => TMPFS_KEYS.contains(&key) && !value.is_empty(),
            None => TMPFS_WORDS.contains(option),
        };
        if !is_known {
            return Err(format!("{option:?} is no option of a tmpfs"));
        }
    }
    Ok(tmpfs_at(target(path)?, &options))
}

/// What is said later holds: so the usual comes first.
fn tmpfs_at(target: &str, options: &[&str]) -> Value {
    let options = [TMPFS, options].concat();
    json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options})
}

/// Reads what docker takes as `--mount`.
fn mount(text: &str) -> Result<Value, String> {
    let mut said = Map::new();
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, "true"));
        let key = match key {
            "src" => "source",
            "dst" | "destination" => "target",
            "ro" => "readonly",
            key => key,
        };
        if said.insert(key.into(), value.into()).is_some() {
            return Err(format!("{key} is there twice"));
        }
    }
    let mut take = |key: &str| {
        let value = said.remove(key);
        value.and_then(|it| it.as_str().map(str::to_owned))
    };
    let kind = take("type").unwrap_or_else(|| "volume".into());
    let place = take("target").ok_or("target is missing")?;
    let place = target(&place)?;
    let mode = match take("readonly").as_deref() {
        None | Some("false" | "0") => "rw",
        Some("true" | "1") => "ro",
        Some(other) => return Err(format!("readonly={other:?}: neither true nor false")),
    };
    let mount = match kind.as_str() {
        "bind" => {
            let source = take("source").ok_or("source is missing")?;
            absolute(&source)?;
            fs::metadata(&source).map_err(|e| format!("source {source}: {e}"))?;
            let propagation = take("bind-propagation").unwrap_or_else(|| "rprivate".into());
            if !PROPAGATIONS.contains(&propagation.as_str()) {
                return Err(format!("bind-propagation={propagation:?} is none"));
            }
            json!({"destination": place, "type": "bind", "source": source,
                   "options": ["rbind", mode, propagation]})
        }
        "tmpfs" => {
            let size = take("tmpfs-size").map(|size| format!("size={size}"));
            let access = take("tmpfs-mode").map(|mode| format!("mode={mode}"));
            let mut options = vec![mode];
            options.extend([&size, &access].into_iter().flatten().map(String::as_str));
            tmpfs_at(place, &options)
        }
        other => return Err(format!("type={other:?}: only bind and tmpfs are known")),
    };
    match said.keys().next() {
        Some(key) => Err(format!("{key:?} is no key of type {kind}")),
        None => Ok(mount),
    }
}

fn devices(text: &str) -> Result<Devices, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let is_access = |text: &str| !text.is_empty() && text.bytes().all(|it| b"rwm".contains(&it));
    let (source, target, access) = match parts[..] {
        [source] => (source, source, "rwm"),
        [source, access] if is_access(access) => (source, source, access),
        [source, target] => (source, target, "rwm"),
        [source, target, access] if is_access(access) => (source, target, access),
        _ => return Err("not SOURCE[:TARGET][:rwm]".into()),
    };
    absolute(target)?;
    let mut found = Vec::new();
    find_devices(
        Path::new(absolute(source)?),
        Path::new(target),
        access,
        &mut found,
    )?;
    match found.is_empty() {
        true => Err(format!("{source} has no devices")),
        false => Ok(Devices(found)),
    }
}

fn find_devices(
    source: &Path,
    target: &Path,
    access: &str,
    found: &mut Vec<(Value, Value)>,
) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", source.display());
    let it = fs::metadata(source).map_err(failed)?;
    let kind = match it.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        kind if kind.is_dir() => {
            for entry in fs::read_dir(source).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name();
                // What else is there is none.
                let kind = entry.file_type().map_err(failed)?;
                if kind.is_dir() || kind.is_char_device() || kind.is_block_device() {
                    find_devices(&entry.path(), &target.join(name), access, found)?;
                }
            }
            return Ok(());
        }
        _ => return Err(format!("{} is no device", source.display())),
    };
    let (major, minor) = (
        nix::sys::stat::major(it.rdev()),
        nix::sys::stat::minor(it.rdev()),
    );
    found.push((
        json!({"path": target, "type": kind, "major": major, "minor": minor,
               "fileMode": it.mode() & 0o7777, "uid": it.uid(), "gid": it.gid()}),
        json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access}),
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_as_docker_has_them() {
        let bind = mount("type=bind,src=/etc,dst=/x,ro,bind-propagation=rslave").unwrap();
        let options = json!(["rbind", "ro", "rslave"]);
        assert_eq!(
            (&bind["source"], &bind["options"]),
            (&json!("/etc"), &options)
        );
        let memory = mount("type=tmpfs,target=/x,tmpfs-size=64k,tmpfs-mode=700").unwrap();
        let options = json!(["nosuid", "nodev", "noexec", "rw", "size=64k", "mode=700"]);
        assert_eq!(memory["options"], options);
        let options = json!(["nosuid", "nodev", "noexec", "exec", "size=1m"]);
        assert_eq!(tmpfs("/x:exec,size=1m").unwrap()["options"], options);
        for (text, word) in [
            ("type=bind,source=/etc", "target"),
            ("type=bind,target=/x", "source"),
            ("type=bind,source=/no/such,target=/x", "/no/such"),
            ("type=bind,source=etc,target=/x", "etc"),
            ("type=bind,source=/etc,target=/", "root"),
            ("type=bind,source=/etc,target=/x,readonly=maybe", "maybe"),
            (
                "type=bind,source=/etc,target=/x,bind-propagation=x",
                "bind-propagation",
            ),
            ("type=bind,source=/etc,target=/x,tmpfs-size=1", "tmpfs-size"),
            ("type=bind,source=/etc,src=/x,target=/x", "twice"),
            ("type=volume,source=v,target=/x", "volume"),
            ("source=v,target=/x", "volume"),
            ("", "target"),
        ] {
            let error = mount(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        for text in ["", "x", "/", "/x:exex", "/x:size=", "/x:foo=1"] {
            assert!(tmpfs(text).is_err(), "{text}");
        }
    }

    #[test]
    fn devices_of_the_host() {
        let Devices(found) = devices("/dev/null:/dev/nothing:rw").unwrap();
        let (device, rule) = &found[0];
        assert_eq!(
            (&device["path"], &device["major"]),
            (&json!("/dev/nothing"), &json!(1))
        );
        assert_eq!((&rule["access"], &rule["minor"]), (&json!("rw"), &json!(3)));
        for text in [
            "",
            "null",
            "/dev/null:rx",
            "/dev/null:/x:",
            "/etc/passwd",
            "/no/such",
            "/etc/apt",
        ] {
            assert!(devices(text).is_err(), "{text}");
        }
        let mut spec = Map::new();
        let mounts = Mounts {
            devices: vec![devices("/dev/zero").unwrap()],
            ..Default::default()
        };
        mounts.change(&mut spec).unwrap();
        assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/zero");
        assert_eq!(spec["linux"]["resources"]["devices"][0]["access"], "rwm");
    }
}
