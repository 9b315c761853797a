// SPDX-License-Identifier: Apache-2.0
//! What confines a container beside its capabilities: system calls, devices, the kernel's files, and
//! whether its processes may gain rights.

use super::process::{list, object};
use super::seccomp::{Profile, Whom};
use clap::Args;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};
use serde_json::{Map, Value, json};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// What tells of the machine more than a container should know, or lets it be changed; containerd's.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const CPUS: &str = "/sys/devices/system/cpu";
/// containerd's, too.
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];
/// Below /dev, what has its own mount in a container, or is made by the OCI runtime.
const NO_DEVICES: &[&str] = &["pts", "shm", "fd", "mqueue", "console", "ptmx", ".udev"];

/// Every capability, in the order of their numbers (linux/capability.h).
#[rustfmt::skip]
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
    "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
];

/// One `--security-opt`.
#[derive(Clone, Debug)]
enum Choice {
    Seccomp(Box<Profile>),
    Unconfined,
    NoNewPrivileges(bool),
}

#[derive(Clone, Debug, Default, Args)]
pub struct Security {
    /// seccomp=FILE (a profile in Docker's form), seccomp=unconfined, seccomp=builtin (Docker's own, the
    /// default without a bundle), no-new-privileges[=true|false] (true without a bundle) (repeatable)
    #[arg(long = "security-opt", value_name = "OPTION", value_parser = choice)]
    choices: Vec<Choice>,
    /// All capabilities and devices, no seccomp, nothing of /proc and /sys masked or read-only
    #[arg(long, conflicts_with_all = ["cap_add", "cap_drop"])]
    privileged: bool,
}

fn choice(text: &str) -> Result<Choice, String> {
    // Docker takes both.
    match text.split_once(['=', ':']).unwrap_or((text, "")) {
        ("seccomp", "unconfined") => Ok(Choice::Unconfined),
        ("seccomp", "builtin") => Ok(Choice::Seccomp(Box::new(Profile::builtin()?))),
        ("seccomp", file) if !file.is_empty() => {
            Ok(Choice::Seccomp(Box::new(Profile::read(Path::new(file))?)))
        }
        ("no-new-privileges", "true") => Ok(Choice::NoNewPrivileges(true)),
        ("no-new-privileges", "false") => Ok(Choice::NoNewPrivileges(false)),
        ("no-new-privileges", "") if !text.contains(['=', ':']) => {
            Ok(Choice::NoNewPrivileges(true))
        }
        _ => Err(
            "none of seccomp=FILE, seccomp=unconfined, seccomp=builtin, \
                  no-new-privileges[=true|false]"
                .into(),
        ),
    }
}

/// What a container may not look at.
pub fn masked() -> Vec<String> {
    let cpus = std::fs::read_dir(CPUS).into_iter().flatten().flatten();
    let throttles = cpus.map(|cpu| cpu.path().join("thermal_throttle"));
    let throttles = throttles.filter(|path| path.is_dir());
    let mut throttles: Vec<String> = throttles.map(|path| path.display().to_string()).collect();
    throttles.sort_unstable();
    let all = MASKED.iter().map(|&path| path.to_owned());
    all.chain(throttles).collect()
}

/// What a container may not write to.
pub fn read_only() -> &'static [&'static str] {
    READ_ONLY
}

impl Security {
    /// Changes a spec as wished, whose capabilities are those that the container shall have.
    ///
    /// # Errors
    /// A text that names what in it is not as the OCI runtime spec has it.
    pub fn change(&self, spec: &mut Map<String, Value>) -> Result<(), String> {
        if self.privileged {
            free(spec)?;
        }
        for choice in &self.choices {
            match choice {
                Choice::NoNewPrivileges(is) => {
                    object(spec, "process")?.insert("noNewPrivileges".into(), (*is).into());
                }
                Choice::Unconfined => {
                    object(spec, "linux")?.remove("seccomp");
                }
                Choice::Seccomp(profile) => confine(spec, profile)?,
            }
        }
        Ok(())
    }

    /// Confines a container of ours by the default profile, if nothing else was chosen.
    ///
    /// # Errors
    /// As those of [`Self::change`].
    pub fn confine(&self, spec: &mut Map<String, Value>) -> Result<(), String> {
        let is_chosen = |it: &Choice| !matches!(it, Choice::NoNewPrivileges(_));
        if self.privileged || self.choices.iter().any(is_chosen) {
            return Ok(());
        }
        confine(spec, &Profile::builtin()?)
    }
}

fn confine(spec: &mut Map<String, Value>, profile: &Profile) -> Result<(), String> {
    let bounding = object(object(spec, "process")?, "capabilities")?.get("bounding");
    let bounding = bounding.and_then(Value::as_array).into_iter().flatten();
    let bounding: Vec<String> = bounding
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    let bounding: Vec<&str> = bounding.iter().map(String::as_str).collect();
    let seccomp = profile.resolve(&Whom::here(&bounding)?)?;
    let seccomp = serde_json::to_value(seccomp).map_err(|e| e.to_string())?;
    object(spec, "linux")?.insert("seccomp".into(), seccomp);
    Ok(())
}

/// What `--privileged` is: nothing keeps the container from the machine but its namespaces.
fn free(spec: &mut Map<String, Value>) -> Result<(), String> {
    let process = object(spec, "process")?;
    process.insert("noNewPrivileges".into(), false.into());
    process.remove("apparmorProfile");
    let every = capabilities()?;
    let sets = object(process, "capabilities")?;
    for set in ["bounding", "effective", "permitted"] {
        sets.insert(set.into(), json!(every));
    }
    let devices = devices(Path::new("/dev"))?;
    let all = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .access("rwm")
        .build();
    let all = all.map_err(|e| e.to_string())?;
    let linux = object(spec, "linux")?;
    for confinement in ["seccomp", "maskedPaths", "readonlyPaths"] {
        linux.remove(confinement);
    }
    linux.insert("devices".into(), json!(devices));
    object(linux, "resources")?.insert("devices".into(), json!([all]));
    let mounts = list(spec, "mounts")?;
    for mount in mounts.iter_mut() {
        let is_kernels = mount["type"] == "sysfs" || mount["type"] == "cgroup";
        let Some(options) = mount["options"].as_array_mut().filter(|_| is_kernels) else {
            continue;
        };
        for option in options.iter_mut().filter(|option| *option == "ro") {
            *option = "rw".into();
        }
    }
    if !mounts
        .iter()
        .any(|it| it["destination"] == "/sys/fs/cgroup")
    {
        mounts.push(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "rw"],
        }));
    }
    Ok(())
}

/// All capabilities that can be given here: a kernel may know fewer, and a machine that is itself a
/// container's may lack some.
fn capabilities() -> Result<Vec<&'static str>, String> {
    const STATUS: &str = "/proc/self/status";
    let text = task::proc::text(STATUS).map_err(|e| format!("{STATUS}: {e}"))?;
    let bounding = text.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bounding = bounding.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    let bounding = bounding.ok_or_else(|| format!("{STATUS}: no CapBnd"))?;
    let all = CAPABILITIES.into_iter().enumerate();
    Ok(all
        .filter(|(number, _)| bounding >> number & 1 == 1)
        .map(|(_, name)| name)
        .collect())
}

/// Every device of the machine's below `dir`.
fn devices(dir: &Path) -> Result<Vec<LinuxDevice>, String> {
    let failed = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let mut found = Vec::new();
    let entries = std::fs::read_dir(dir).map_err(|e| failed(dir, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| failed(dir, &e))?;
        if NO_DEVICES.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let path = entry.path();
        // Of the name itself: a link is no device. Some vanish while we look.
        let Ok(about) = entry.metadata() else {
            continue;
        };
        let kind = about.file_type();
        if kind.is_dir() {
            found.extend(devices(&path)?);
            continue;
        }
        let kind = match (kind.is_block_device(), kind.is_char_device()) {
            (true, _) => LinuxDeviceType::B,
            (_, true) => LinuxDeviceType::C,
            _ => continue,
        };
        let number = about.rdev();
        let device = LinuxDeviceBuilder::default()
            .path(path.clone())
            .typ(kind)
            .major(i64::from(libc::major(number)))
            .minor(i64::from(libc::minor(number)))
            .file_mode(about.permissions().mode() & 0o7777)
            .uid(about.uid())
            .gid(about.gid())
            .build();
        found.push(device.map_err(|e| failed(&path, &e))?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_docker_does_and_others_are_refused() {
        for good in [
            "seccomp=unconfined",
            "seccomp:unconfined",
            "seccomp=builtin",
            "no-new-privileges",
            "no-new-privileges:false",
        ] {
            assert!(choice(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "seccomp",
            "seccomp=",
            "seccomp=/none",
            "no-new-privileges=",
            "no-new-privileges=maybe",
            "apparmor=x",
        ] {
            assert!(choice(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_privileged_container_is_free() {
        let spec = json!({
            "process": {"capabilities": {"bounding": []}, "noNewPrivileges": true, "apparmorProfile": "x"},
            "linux": {"seccomp": {}, "maskedPaths": ["/x"], "readonlyPaths": ["/y"], "resources": {"pids": 1}},
            "mounts": [{"destination": "/sys", "type": "sysfs", "options": ["nosuid", "ro"]}],
        });
        let mut spec = spec.as_object().unwrap().clone();
        let privileged = Security {
            privileged: true,
            choices: Vec::new(),
        };
        privileged.change(&mut spec).unwrap();
        privileged.confine(&mut spec).unwrap();
        let spec = Value::Object(spec);
        let process = &spec["process"];
        assert_eq!(process["noNewPrivileges"], false);
        assert!(process["apparmorProfile"].is_null());
        let all = json!(capabilities().unwrap());
        assert_eq!(process["capabilities"]["effective"], all);
        assert!(
            all.as_array().unwrap().contains(&json!("CAP_SYS_ADMIN")),
            "{all}"
        );
        let linux = &spec["linux"];
        for gone in ["seccomp", "maskedPaths", "readonlyPaths"] {
            assert!(linux[gone].is_null(), "{gone}");
        }
        let allowed = json!([{"allow": true, "access": "rwm"}]);
        assert_eq!(linux["resources"], json!({"pids": 1, "devices": allowed}));
        let devices = linux["devices"].as_array().unwrap();
        let null = devices.iter().find(|it| it["path"] == "/dev/null").unwrap();
        assert_eq!(
            (&null["type"], &null["major"], &null["minor"]),
            (&json!("c"), &json!(1), &json!(3))
        );
        assert_eq!(spec["mounts"][0]["options"], json!(["nosuid", "rw"]));
        assert_eq!(spec["mounts"][1]["destination"], "/sys/fs/cgroup");
    }
}
