//! CRI-O's configuration: the runtimes are told of in a file of their own among its drop-ins.
//!
//! Both are of the type `vm`, by which CRI-O means whoever speaks containerd's protocol to shims; the
//! other types are for OCI runtimes.

use crate::arguments::{Arguments, Vm};
use crate::config;
use crate::failure::Result;
use std::path::{Path, PathBuf};

/// After the drop-ins of distributions, which begin with smaller numbers.
const OWN: &str = "50-dunnage.conf";
const BEGIN: &str = "# dunnage-node wrote this, and takes it away again.\n";
/// Below it CRI-O makes the FIFOs of containers.
const FIFOS: &str = "/run/crio-dunnage";

/// Tells CRI-O of the runtimes, in `dir`; true if its configuration is another one now.
///
/// # Errors
/// If somebody else's file is there, or it cannot be written.
pub fn register(arguments: &Arguments, dir: &Path) -> Result<bool> {
    config::write_own(&own(arguments, dir), BEGIN, &runtimes(arguments))
}

/// Takes that back; true if there was something.
///
/// # Errors
/// If the file could not be removed.
pub fn forget(arguments: &Arguments, dir: &Path) -> Result<bool> {
    config::remove_own(&own(arguments, dir), BEGIN)
}

fn own(arguments: &Arguments, dir: &Path) -> PathBuf {
    arguments.seen(&dir.join(OWN))
}

fn runtimes(arguments: &Arguments) -> String {
    let table = |name: &str, program: &str, more: &str| {
        let path = arguments.to.join("bin").join(program);
        format!(
            "\n[crio.runtime.runtimes.{name}]\nruntime_type = \"vm\"\nruntime_path = \"{}\"\n\
            runtime_root = \"{FIFOS}\"\n{more}",
            path.display()
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
    use toml::{Table, Value};

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
            "install --vm {vm} --crio /etc/crio/crio.conf.d --root {}",
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
            let told: Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
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
                assert!(program.starts_with("/opt/dunnage/bin/containerd-shim-"));
                assert!(program.ends_with("-v2"));
            }
            assert!(forget(&arguments, &dir).unwrap());
            assert!(!path.exists());
            assert!(!forget(&arguments, &dir).unwrap(), "the second time");
        }
    }

    #[test]
    fn a_file_of_somebody_elses_stays() {
        let (root, arguments) = node("no");
        let dir = arguments.crio.clone().unwrap();
        let path = root.path().join("etc/crio/crio.conf.d").join(OWN);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "[crio.runtime]\n").unwrap();
        let error = register(&arguments, &dir).unwrap_err().to_string();
        assert!(error.contains("not of dunnage-node"), "{error}");
        assert!(!forget(&arguments, &dir).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[crio.runtime]\n");
    }
}
