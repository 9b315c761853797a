// SPDX-License-Identifier: Apache-2.0
//! CRI-O's configuration: the runtimes are told of in a file of their own among its drop-ins.
//!
//! Both are of the type `vm`, by which CRI-O means whoever speaks containerd's protocol to shims; the
//! other types are for OCI runtimes.

use crate::arguments::{Arguments, Vm};
use crate::config;
use crate::failure::{Failure, Result};
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Where drop-ins are, in CRI-O's directory.
const DROP_INS: &str = "crio.conf.d";
/// After the drop-ins of distributions, which begin with smaller numbers.
const OWN: &str = "50-dunnage.conf";
const BEGIN: &str = "# dunnage-node wrote this, and takes it away again.\n";
/// Below it CRI-O makes the FIFOs of containers.
const FIFOS: &str = "/run/crio-dunnage";
/// What both shims are told of, beside the programs: CRI-O gives them this path and nothing else.
const OPTIONS: &str = "etc/crio-options.toml";

/// Tells CRI-O of the runtimes, in `dir`; true if its configuration is another one now.
///
/// # Errors
/// If its configuration is not understood, somebody else's file is there, or it cannot be written.
pub fn register(arguments: &Arguments, dir: &Path) -> Result<bool> {
    let systemd = systemd_cgroup(arguments, dir)?;
    let options = format!("SystemdCgroup = {systemd}\n");
    let told = config::write_own(&arguments.place().join(OPTIONS), BEGIN, &options)?;
    let changed = config::write_own(&own(arguments, dir), BEGIN, &runtimes(arguments))?;
    Ok(changed || told)
}

/// Takes that back; true if there was something.
///
/// # Errors
/// If a file could not be removed.
pub fn forget(arguments: &Arguments, dir: &Path) -> Result<bool> {
    let changed = config::remove_own(&own(arguments, dir), BEGIN)?;
    config::remove_own(&arguments.place().join(OPTIONS), BEGIN)?;
    Ok(changed)
}

fn own(arguments: &Arguments, dir: &Path) -> PathBuf {
    arguments.seen(&dir.join(DROP_INS).join(OWN))
}

/// How cgroups are made on this node, which must be the same for all its pods: the last file that says
/// it counts, and none means systemd's.
fn systemd_cgroup(arguments: &Arguments, dir: &Path) -> Result<bool> {
    let mut files = vec![arguments.seen(&dir.join("crio.conf"))];
    let drop_ins = arguments.seen(&dir.join(DROP_INS));
    if let Ok(entries) = fs::read_dir(&drop_ins) {
        files.extend(entries.flatten().map(|entry| entry.path()));
        files[1..].sort();
    }
    let mut manager = "systemd".to_owned();
    for path in files {
        let parsed = config::read(&path)?.parse::<Table>();
        let table = parsed.map_err(|e| Failure::Config {
            path: path.display().to_string(),
            why: e.message().to_owned(),
        })?;
        let runtime = table.get("crio").and_then(|it| it.get("runtime"));
        let said = runtime.and_then(|it| it.get("cgroup_manager"));
        if let Some(said) = said.and_then(Value::as_str) {
            said.clone_into(&mut manager);
        }
    }
    Ok(manager == "systemd")
}

fn runtimes(arguments: &Arguments) -> String {
    let options = arguments.to.join(OPTIONS);
    let table = |name: &str, program: &str, more: &str| {
        let path = arguments.to.join("bin").join(program);
        format!(
            "\n[crio.runtime.runtimes.{name}]\nruntime_type = \"vm\"\nruntime_path = \"{}\"\n\
            runtime_root = \"{FIFOS}\"\nruntime_config_path = \"{}\"\n{more}",
            path.display(),
            options.display()
        )
    };
    let mut text = table("dunnage", "containerd-shim-runc-v2", "");
    if arguments.vm() != Vm::No {
        let more = "privileged_without_host_devices = true\n";
        text += &table("dunnage-vm", "containerd-shim-vm-v2", more);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What crio.conf(5) of 1.33 says that a table of `crio.runtime.runtimes` may have.
    const KEYS: [&str; 15] = [
        "runtime_path",
        "runtime_root",
        "runtime_type",
        "inherit_default_runtime",
        "runtime_config_path",
        "privileged_without_host_devices",
        "allowed_annotations",
        "container_min_memory",
        "platform_runtime_paths",
        "no_sync_log",
        "default_annotations",
        "stream_websockets",
        "seccomp_profile",
        "container_create_timeout",
        "monitor_path",
    ];

    fn node(vm: &str) -> (tempfile::TempDir, Arguments) {
        let root = tempfile::tempdir().unwrap();
        let words = format!(
            "install --vm {vm} --crio /etc/crio --root {}",
            root.path().display()
        );
        let words = words.split_whitespace().map(str::to_owned);
        (root, Arguments::parse(words).unwrap())
    }

    #[test]
    fn the_file_has_what_crio_knows() {
        for (vm, names) in [
            ("no", &["dunnage"][..]),
            ("kvm", &["dunnage", "dunnage-vm"]),
        ] {
            let (root, arguments) = node(vm);
            let dir = arguments.crio.clone().unwrap();
            assert!(register(&arguments, &dir).unwrap());
            assert!(!register(&arguments, &dir).unwrap(), "the second time");
            let path = root.path().join("etc/crio/crio.conf.d").join(OWN);
            let told: Table = fs::read_to_string(&path).unwrap().parse().unwrap();
            assert_eq!(told.keys().collect::<Vec<_>>(), ["crio"]);
            let runtime = told["crio"]["runtime"].as_table().unwrap();
            assert_eq!(runtime.keys().collect::<Vec<_>>(), ["runtimes"]);
            let runtimes = runtime["runtimes"].as_table().unwrap();
            assert_eq!(runtimes.keys().collect::<Vec<_>>(), names);
            for (name, table) in runtimes {
                let table = table.as_table().unwrap();
                assert!(table.keys().all(|key| KEYS.contains(&key.as_str())));
                assert_eq!(table["runtime_type"], Value::from("vm"), "{name}");
                // CRI-O refuses a runtime of this type whose program is called otherwise.
                let program = table["runtime_path"].as_str().unwrap();
                let options = table["runtime_config_path"].as_str().unwrap();
                assert!(root.path().join(options.trim_start_matches('/')).exists());
                assert!(program.starts_with("/opt/dunnage/bin/containerd-shim-"));
                assert!(program.ends_with("-v2"));
            }
            assert!(forget(&arguments, &dir).unwrap());
            assert!(!path.exists());
            assert!(!forget(&arguments, &dir).unwrap(), "the second time");
        }
    }

    #[test]
    fn cgroups_are_made_as_the_last_file_says() {
        let (root, arguments) = node("no");
        let dir = arguments.crio.clone().unwrap();
        let told = || {
            register(&arguments, &dir).unwrap();
            fs::read_to_string(arguments.place().join(OPTIONS)).unwrap()
        };
        assert!(told().ends_with("\nSystemdCgroup = true\n"));
        let etc = root.path().join("etc/crio");
        let manager = |name: &str| format!("[crio.runtime]\ncgroup_manager = \"{name}\"\n");
        fs::write(etc.join("crio.conf"), manager("cgroupfs")).unwrap();
        assert!(told().ends_with("\nSystemdCgroup = false\n"));
        for (file, name) in [("01-a.conf", "cgroupfs"), ("02-b.conf", "systemd")] {
            fs::write(etc.join(DROP_INS).join(file), manager(name)).unwrap();
        }
        assert!(told().ends_with("\nSystemdCgroup = true\n"));
        fs::write(etc.join("crio.conf"), "[crio").unwrap();
        let error = register(&arguments, &dir).unwrap_err().to_string();
        assert!(error.contains("crio.conf: "), "{error}");
    }

    #[test]
    fn a_file_of_somebody_elses_stays() {
        let (root, arguments) = node("no");
        let dir = arguments.crio.clone().unwrap();
        let path = root.path().join("etc/crio/crio.conf.d").join(OWN);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "[crio.runtime]\n").unwrap();
        let error = register(&arguments, &dir).unwrap_err().to_string();
        assert!(error.contains("not of dunnage-node"), "{error}");
        assert!(!forget(&arguments, &dir).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "[crio.runtime]\n");
    }
}
