// SPDX-License-Identifier: Apache-2.0
//! The OCI spec of `dunnage run`: what a container gets unless told otherwise, and what the command
//! line changes in that or in a bundle's.

use super::chosen::Chosen;
use super::init::Init;
use super::kernel::Kernel;
use super::mounts::Mounts;
use super::process::{ProcessWishes, USUAL, list, object};
use super::security::{self, Security};
use super::users::Users;
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Where programs are looked for.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// In how many microseconds a container has its share of the processors.
const PERIOD: f64 = 100_000.0;

/// How the container differs from the usual, or from its bundle.
#[derive(Clone, Debug, Default, Args)]
pub struct Wishes {
    #[command(flatten)]
    process: ProcessWishes,
    /// The host name; without a bundle the default is the id
    #[arg(long, value_parser = hostname)]
    hostname: Option<String>,
    /// A bind mount, SOURCE:TARGET[:ro] (repeatable)
    #[arg(short = 'v', long = "volume", value_name = "SOURCE:TARGET[:ro]", value_parser = volume)]
    volumes: Vec<Value>,
    /// Mount the root filesystem read-only
    #[arg(long)]
    read_only: bool,
    /// An annotation of its spec, KEY=VALUE (repeatable)
    #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = annotation)]
    annotations: Vec<(String, String)>,
    #[command(flatten)]
    mounts: Mounts,
    #[command(flatten)]
    pub kernel: Kernel,
    #[command(flatten)]
    init: Init,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    security: Security,
}

/// What a container may use at most.
#[derive(Clone, Debug, Default, Args)]
pub struct Limits {
    /// The most memory, in bytes or with k, m, g; -1 for no limit
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    memory: Option<i64>,
    /// How many CPUs at most, such as 1.5
    #[arg(long, value_parser = cpus, allow_negative_numbers = true)]
    cpus: Option<f64>,
    /// How many processes at most; -1 for no limit
    #[arg(long, value_parser = pids, allow_negative_numbers = true)]
    pids_limit: Option<i64>,
}

/// What the root filesystem of a container is.
pub enum Root<'a> {
    Directory(&'a Path),
    /// An overlay that is mounted in the bundle.
    Image(&'a Chosen),
}

/// Where a container's cgroup is, unless its bundle says so.
fn cgroup(namespace: &str, id: &str) -> String {
    format!("/{namespace}/{id}")
}

/// Gives a bundle's spec a cgroup if it names none: without, containers of one id would have the same,
/// whatever their namespaces are.
pub fn place(spec: &mut Value, namespace: &str, id: &str) {
    if let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut) {
        let path = linux.entry("cgroupsPath").or_insert(Value::Null);
        if path.is_null() || *path == "" {
            *path = cgroup(namespace, id).into();
        }
    }
}

/// Makes the spec of container `id`.
///
/// # Errors
/// A text that names what cannot be.
pub fn make(
    wishes: &Wishes,
    namespace: &str,
    id: &str,
    root: &Root,
    tty: bool,
    command: &[String],
) -> Result<Value, String> {
    if command.is_empty() {
        return Err("no command was given".into());
    }
    let (rootfs, users) = match root {
        Root::Directory(dir) => {
            let found = dir.canonicalize();
            let found = found.map_err(|e| format!("rootfs {}: {e}", dir.display()))?;
            let users = Users::below(&found);
            (found, users)
        }
        Root::Image(image) => (PathBuf::from("rootfs"), image.users.clone()),
    };
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({"type": kind}));
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "hostname": id,
        "root": {"path": rootfs},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "env": [PATH],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {"bounding": USUAL, "effective": USUAL, "permitted": USUAL},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        },
        "mounts": mounts(),
        "linux": {
            "cgroupsPath": cgroup(namespace, id),
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": security::masked(),
            "readonlyPaths": security::read_only(),
        },
    });
    if let (Root::Image(image), Value::Object(spec)) = (root, &mut spec) {
        image.configure(spec)?;
    }
    change(&mut spec, wishes, tty, command, &users)?;
    if let Value::Object(spec) = &mut spec {
        wishes.security.confine(spec)?;
    }
    Ok(spec)
}

/// Changes a spec as wished; what is not wished stays.
///
/// # Errors
/// A text that names what in it is not as the OCI runtime spec has it.
pub fn change(
    spec: &mut Value,
    wishes: &Wishes,
    tty: bool,
    command: &[String],
    users: &Users,
) -> Result<(), String> {
    let Value::Object(spec) = spec else {
        return Err("its spec is no object".into());
    };
    let mut none = Value::Null;
    let process = spec.get_mut("process").unwrap_or(&mut none);
    wishes.process.change(process, tty, command, users)?;
    if let Some(hostname) = &wishes.hostname {
        spec.insert("hostname".into(), hostname.as_str().into());
    }
    if wishes.read_only {
        object(spec, "root")?.insert("readonly".into(), true.into());
    }
    if !wishes.volumes.is_empty() {
        list(spec, "mounts")?.extend_from_slice(&wishes.volumes);
    }
    for (key, value) in &wishes.annotations {
        object(spec, "annotations")?.insert(key.clone(), value.as_str().into());
    }
    wishes.mounts.change(spec)?;
    wishes.kernel.change(spec)?;
    wishes.init.change(spec)?;
    wishes.limits.change(spec)?;
    wishes.security.change(spec)
}

fn annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("not KEY=VALUE".into()),
    }
}

impl Limits {
    /// Sets these in a spec; what else is limited there stays so.
    ///
    /// # Errors
    /// A text that names what in it is not as the OCI runtime spec has it.
    pub fn change(&self, spec: &mut Map<String, Value>) -> Result<(), String> {
        for (kind, limit) in self.resources() {
            let resources = object(object(spec, "linux")?, "resources")?;
            if let Value::Object(limit) = limit {
                object(resources, &kind)?.extend(limit);
            }
        }
        Ok(())
    }

    /// As a spec's resources, by their kind.
    pub fn resources(&self) -> Map<String, Value> {
        let mut resources = Map::new();
        if let Some(memory) = self.memory {
            resources.insert("memory".into(), json!({"limit": memory}));
        }
        if let Some(cpus) = self.cpus {
            let cpu = json!({"quota": (cpus * PERIOD) as i64, "period": PERIOD as u64});
            resources.insert("cpu".into(), cpu);
        }
        if let Some(pids) = self.pids_limit {
            resources.insert("pids".into(), json!({"limit": pids}));
        }
        resources
    }
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": target, "type": kind, "source": source, "options": options})
}

fn mounts() -> [Value; 7] {
    #[rustfmt::skip]
    let mounts = [
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts",
              &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ];
    mounts
}

fn volume(text: &str) -> Result<Value, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts[..] {
        [source, target] => (source, target, "rw"),
        [source, target, mode @ ("ro" | "rw")] => (source, target, mode),
        _ => return Err("not SOURCE:TARGET[:ro]".into()),
    };
    if !source.starts_with('/') || !target.starts_with('/') {
        return Err("not absolute paths".into());
    }
    Ok(mount(target, "bind", source, &["rbind", mode]))
}

fn hostname(text: &str) -> Result<String, String> {
    // The kernel's most (uname(2)).
    let is_one = (1..=64).contains(&text.len());
    let name = is_one.then(|| text.to_owned());
    name.ok_or_else(|| "not a name of 1 to 64 bytes".into())
}

/// The kernel gives out a hundredth of one at least.
fn cpus(text: &str) -> Result<f64, String> {
    let cpus = text
        .parse()
        .ok()
        .filter(|cpus| (0.01..=8192.0).contains(cpus));
    cpus.ok_or_else(|| "not a number of CPUs from 0.01 to 8192".into())
}

fn pids(text: &str) -> Result<i64, String> {
    let pids = text.parse().ok().filter(|&pids| pids == -1 || pids > 0);
    pids.ok_or_else(|| "not a number of processes, nor -1".into())
}

/// Reads a number with an optional k, m or g.
fn bytes(text: &str) -> Result<i64, String> {
    let number = text.trim_end_matches(|c: char| c.is_alphabetic());
    let shift = match text[number.len()..].to_lowercase().as_str() {
        _ if text == "-1" => 0,
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err("not a number of bytes".into()),
    };
    let number = number.parse::<i64>().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    let bytes = bytes.filter(|&bytes| bytes > 0 || text == "-1");
    bytes.ok_or_else(|| "not a number of bytes".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        wishes: Wishes,
    }

    fn wishes(words: &str) -> Wishes {
        let words = std::iter::once("x").chain(words.split(' '));
        Line::try_parse_from(words).unwrap().wishes
    }

    #[test]
    fn numbers() {
        assert_eq!(bytes("12"), Ok(12));
        assert_eq!(bytes("2k"), Ok(2048));
        assert_eq!(bytes("3MiB"), Ok(3 << 20));
        assert_eq!((bytes("-1"), pids("-1")), (Ok(-1), Ok(-1)));
        for text in ["", "x", "1q", "0", "-5", "-1k", "9999999999g", "k"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        for text in ["nan", "inf", "0", "-1", "0.001", "1e9", "", "x"] {
            assert!(cpus(text).is_err(), "{text}");
        }
        for text in ["0", "-2", "x", "1.5"] {
            assert!(pids(text).is_err(), "{text}");
        }
        assert_eq!(cpus("1.5"), Ok(1.5));
    }

    #[test]
    fn wishes_become_the_spec() {
        let wishes = wishes(
            "-e PATH=/x -e A=b -u 5 -w /tmp -v /a:/b:ro --memory 1m \
             --cap-drop all --cap-add kill --read-only",
        );
        let root = Root::Directory(Path::new("/"));
        let spec = make(&wishes, "n", "c", &root, false, &["sh".into()]).unwrap();
        assert_eq!(spec["process"]["env"], json!(["PATH=/x", "A=b"]));
        assert_eq!(spec["process"]["user"], json!({"uid": 5, "gid": 5}));
        assert_eq!(spec["process"]["cwd"], "/tmp");
        let bounding = &spec["process"]["capabilities"]["bounding"];
        assert_eq!(bounding, &json!(["CAP_KILL"]));
        assert_eq!(spec["linux"]["resources"]["memory"]["limit"], 1 << 20);
        assert_eq!(spec["linux"]["namespaces"].as_array().unwrap().len(), 5);
        assert_eq!(spec["mounts"][7]["options"], json!(["rbind", "ro"]));
        assert_eq!(
            (&spec["root"]["readonly"], &spec["hostname"]),
            (&json!(true), &json!("c"))
        );
        for bad in ["a:b", "/a", "/a:/b:rx", "/a:/b:ro:ro"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bundle_changes_as_wished_and_no_further() {
        let old = json!({
            "process": {"args": ["a"], "cwd": "/"}, "newer": 1,
            "linux": {"resources": {"memory": {"swap": 9}, "unified": {"x": "y"}}},
        });
        let mut spec = old.clone();
        let none = Users::default();
        change(&mut spec, &Wishes::default(), false, &[], &none).unwrap();
        assert_eq!(spec, old);
        change(
            &mut spec,
            &wishes("--memory 8"),
            false,
            &["b".into()],
            &none,
        )
        .unwrap();
        let linux = json!({
            "resources": {"memory": {"swap": 9, "limit": 8}, "unified": {"x": "y"}},
        });
        let process = json!({"args": ["b"], "cwd": "/"});
        assert_eq!(
            spec,
            json!({"process": process, "newer": 1, "linux": linux})
        );
    }
}
