//! The OCI spec of `dunnage run --rootfs`: what a container gets unless told otherwise.

use clap::Args;
use serde_json::{Value, json};
use std::path::Path;

/// Where programs are looked for.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The capabilities of a container that is not privileged; Docker's and containerd's choice.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// How the container differs from the usual.
#[derive(Clone, Debug, Default, Args)]
pub struct Wishes {
    /// An environment variable, KEY=VALUE (repeatable)
    #[arg(short, long = "env", value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// The working directory
    #[arg(short, long, default_value = "/")]
    workdir: String,
    /// The user: UID[:GID]
    #[arg(short, long, default_value = "0:0")]
    user: String,
    /// The network: none (only a loopback) or host
    #[arg(long, default_value = "none", value_parser = ["none", "host"])]
    net: String,
    /// The host name; default is the id
    #[arg(long)]
    hostname: Option<String>,
    /// A bind mount, SOURCE:TARGET[:ro] (repeatable)
    #[arg(short = 'v', long = "volume", value_name = "SOURCE:TARGET[:ro]")]
    volumes: Vec<String>,
    /// Mount the root filesystem read-only
    #[arg(long)]
    read_only: bool,
    /// The most memory, in bytes or with k, m, g
    #[arg(long, value_name = "BYTES")]
    memory: Option<String>,
    /// How many CPUs at most, such as 1.5
    #[arg(long)]
    cpus: Option<f64>,
    /// How many processes at most
    #[arg(long)]
    pids_limit: Option<i64>,
    /// A capability to add, such as CAP_NET_ADMIN (repeatable)
    #[arg(long)]
    cap_add: Vec<String>,
    /// A capability to take away (repeatable)
    #[arg(long)]
    cap_drop: Vec<String>,
}

/// Makes the spec of container `id`.
///
/// # Errors
/// A text that names the wish that cannot be read.
pub fn make(
    wishes: &Wishes,
    namespace: &str,
    id: &str,
    rootfs: &Path,
    terminal: bool,
    command: &[String],
) -> Result<Value, String> {
    let rootfs = rootfs
        .canonicalize()
        .map_err(|e| format!("rootfs {}: {e}", rootfs.display()))?;
    let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
    if wishes.net == "none" {
        namespaces.push("network");
    }
    let namespaces: Vec<Value> = namespaces
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": wishes.hostname.as_deref().unwrap_or(id),
        "root": {"path": rootfs, "readonly": wishes.read_only},
        "process": process(wishes, terminal, command)?,
        "mounts": mounts(wishes)?,
        "linux": {
            "cgroupsPath": format!("/{namespace}/{id}"),
            "namespaces": namespaces,
            "resources": resources(wishes)?,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    }))
}

/// The OCI process of a command; also of an exec.
///
/// # Errors
/// A text that names the wish that cannot be read.
pub fn process(wishes: &Wishes, terminal: bool, command: &[String]) -> Result<Value, String> {
    if command.is_empty() {
        return Err("no command was given".into());
    }
    let (uid, gid) = user(&wishes.user)?;
    let mut env = vec![PATH.to_owned()];
    if terminal {
        env.push("TERM=xterm".to_owned());
    }
    for variable in &wishes.env {
        let Some((key, _)) = variable.split_once('=') else {
            return Err(format!("--env {variable:?}: not KEY=VALUE"));
        };
        let begin = format!("{key}=");
        env.retain(|old| !old.starts_with(&begin));
        env.push(variable.clone());
    }
    let capabilities = capabilities(wishes);
    Ok(json!({
        "terminal": terminal,
        "user": {"uid": uid, "gid": gid},
        "args": command,
        "env": env,
        "cwd": wishes.workdir,
        "noNewPrivileges": true,
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
    }))
}

fn capabilities(wishes: &Wishes) -> Vec<String> {
    let full = |name: &String| {
        let name = name.to_uppercase();
        if name.starts_with("CAP_") {
            name
        } else {
            format!("CAP_{name}")
        }
    };
    let mut all: Vec<String> = CAPABILITIES.iter().map(|&name| name.to_owned()).collect();
    let dropped: Vec<String> = wishes.cap_drop.iter().map(full).collect();
    all.retain(|name| !dropped.contains(name) && !dropped.contains(&"CAP_ALL".to_owned()));
    for name in wishes.cap_add.iter().map(full) {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

fn user(text: &str) -> Result<(u32, u32), String> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    match (uid.parse(), gid.parse()) {
        (Ok(uid), Ok(gid)) => Ok((uid, gid)),
        _ => Err(format!("--user {text:?}: not UID[:GID]")),
    }
}

fn mounts(wishes: &Wishes) -> Result<Vec<Value>, String> {
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": source, "options": options});
    #[rustfmt::skip]
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts",
              &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ];
    for volume in &wishes.volumes {
        let bad = || format!("--volume {volume:?}: not SOURCE:TARGET[:ro]");
        let mut parts = volume.split(':');
        let (source, target) = parts.next().zip(parts.next()).ok_or_else(bad)?;
        let mode = match parts.next() {
            None | Some("rw") => "rw",
            Some("ro") => "ro",
            Some(_) => return Err(bad()),
        };
        if !source.starts_with('/') || !target.starts_with('/') {
            return Err(bad());
        }
        mounts.push(mount(target, "bind", source, &["rbind", mode]));
    }
    Ok(mounts)
}

/// The resources of `run` and `update`.
///
/// # Errors
/// A text that names the wish that cannot be read.
pub fn limits(
    memory: Option<&str>,
    cpus: Option<f64>,
    pids: Option<i64>,
) -> Result<serde_json::Map<String, Value>, String> {
    const PERIOD: f64 = 100_000.0;
    let mut limits = serde_json::Map::new();
    if let Some(text) = memory {
        limits.insert("memory".into(), json!({"limit": bytes(text)?}));
    }
    if let Some(cpus) = cpus {
        let cpu = json!({"quota": (cpus * PERIOD) as i64, "period": PERIOD as u64});
        limits.insert("cpu".into(), cpu);
    }
    if let Some(pids) = pids {
        limits.insert("pids".into(), json!({"limit": pids}));
    }
    Ok(limits)
}

fn resources(wishes: &Wishes) -> Result<Value, String> {
    let mut limits = limits(wishes.memory.as_deref(), wishes.cpus, wishes.pids_limit)?;
    limits.insert("devices".into(), json!([{"allow": false, "access": "rwm"}]));
    Ok(Value::Object(limits))
}

/// Reads a number with an optional k, m or g.
///
/// # Errors
/// A text that names it.
pub fn bytes(text: &str) -> Result<i64, String> {
    let number = text.trim_end_matches(|c: char| c.is_alphabetic());
    let shift = match text[number.len()..].to_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(format!("{text:?} is no number of bytes")),
    };
    let number = number.parse::<i64>().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| format!("{text:?} is no number of bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes() {
        assert_eq!(bytes("12"), Ok(12));
        assert_eq!(bytes("2k"), Ok(2048));
        assert_eq!(bytes("3MiB"), Ok(3 << 20));
        assert!(bytes("x").is_err() && bytes("1q").is_err());
        assert!(bytes("9999999999g").is_err());
    }

    #[test]
    fn wishes_become_the_spec() {
        let wishes = Wishes {
            env: vec!["PATH=/x".into(), "A=b".into()],
            user: "5".into(),
            workdir: "/tmp".into(),
            net: "none".into(),
            volumes: vec!["/a:/b:ro".into()],
            memory: Some("1m".into()),
            cap_drop: vec!["all".into()],
            cap_add: vec!["kill".into()],
            ..Default::default()
        };
        let spec = make(&wishes, "n", "c", Path::new("/"), false, &["sh".into()]).unwrap();
        assert_eq!(spec["process"]["env"], json!(["PATH=/x", "A=b"]));
        assert_eq!(spec["process"]["user"], json!({"uid": 5, "gid": 5}));
        assert_eq!(
            spec["process"]["capabilities"]["bounding"],
            json!(["CAP_KILL"])
        );
        assert_eq!(
            spec["linux"]["resources"]["memory"]["limit"],
            json!(1 << 20)
        );
        assert_eq!(spec["mounts"][7]["options"], json!(["rbind", "ro"]));
        let bad = Wishes {
            volumes: vec!["a:b".into()],
            ..wishes
        };
        assert!(make(&bad, "n", "c", Path::new("/"), false, &["sh".into()]).is_err());
    }
}
