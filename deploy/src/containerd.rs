// SPDX-License-Identifier: Apache-2.0
//! containerd's configuration: the runtimes are told of in a block at the end of config.toml, or in a
//! file of their own where config.toml imports a directory, and everything else is left as it is.
//!
//! A file of its own is for version 3 alone, which is containerd 2's: an older containerd takes the
//! whole section of its CRI plugin from the last file that has one, and would forget the node's.

use crate::arguments::{Arguments, Vm};
use crate::config::{read, remove_own, write, write_own};
use crate::failure::{Failure, Result, io};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

const BEGIN: &str = "\n# BEGIN dunnage. dunnage-node wrote this, and takes it away again.\n";
const END: &str = "# END dunnage.\n";
/// The file beside others that are imported.
const OWN: &str = "dunnage.toml";
/// What runtimes are called in runtime classes, as `handler`.
const RUNC: &str = "dunnage";
const IN_VM: &str = "dunnage-vm";

/// Tells containerd of the runtimes; true if its configuration is another one now.
///
/// # Errors
/// If it is not understood, or has such runtimes of somebody else's: then nothing was changed.
pub fn register(arguments: &Arguments) -> Result<bool> {
    let main = arguments.seen(&arguments.config);
    let text = read(&main)?;
    let bare = without_block(&text);
    let refused = |why: String| Failure::Config {
        path: main.display().to_string(),
        why,
    };
    let config = Config::parse(&bare).map_err(refused)?;
    let runtimes = config.runtimes(arguments);
    let Some(dir) = config.imported(arguments) else {
        // A configuration that is not there is one of version 2.
        let version = if bare.is_empty() { "version = 2\n" } else { "" };
        let text = format!("{bare}{BEGIN}{version}{runtimes}{END}");
        // Such as a table that another line has closed.
        let parsed = text.parse::<Table>();
        parsed.map_err(|e| refused(e.message().to_owned()))?;
        return write(&main, &text);
    };
    let own = arguments.seen(&dir.join(OWN));
    let text = format!("version = 3\n{runtimes}{END}");
    let told = write_own(&own, BEGIN.trim_start(), &text)?;
    Ok(write(&main, &bare)? || told)
}

/// Takes that back; true if there was something.
///
/// # Errors
/// If a file could not be read, written or removed.
pub fn forget(arguments: &Arguments) -> Result<bool> {
    let main = arguments.seen(&arguments.config);
    let text = read(&main)?;
    let bare = without_block(&text);
    let mut changed = bare != text;
    match bare.as_str() {
        // It was made for the block.
        "" if changed => fs::remove_file(&main).map_err(io(&main))?,
        bare => changed = write(&main, bare)?,
    }
    let config = bare.parse::<Table>().unwrap_or_default();
    for dir in imported_directories(&config, arguments) {
        let own = arguments.seen(&dir.join(OWN));
        changed |= remove_own(&own, BEGIN.trim_start())?;
    }
    Ok(changed)
}

/// What of a configuration matters here.
struct Config {
    table: Table,
    section: &'static str,
}

impl Config {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
        let version = table.get("version").and_then(Value::as_integer);
        let section = match version {
            Some(3) => "io.containerd.cri.v1.runtime",
            Some(2) => "io.containerd.grpc.v1.cri",
            None if text.is_empty() => "io.containerd.grpc.v1.cri",
            _ => return Err("neither of version 2 nor 3".into()),
        };
        let config = Self { table, section };
        for name in [RUNC, IN_VM] {
            if config.runtime(name).is_some() {
                return Err(format!("it has a runtime {name} already"));
            }
        }
        Ok(config)
    }

    fn containerd(&self) -> Option<&Value> {
        let plugins = self.table.get("plugins")?;
        plugins.get(self.section)?.get("containerd")
    }

    fn runtime(&self, name: &str) -> Option<&Value> {
        self.containerd()?.get("runtimes")?.get(name)
    }

    /// How cgroups are made on this node, which must be the same for all its pods.
    fn systemd_cgroup(&self) -> Option<bool> {
        let default = self
            .containerd()
            .and_then(|it| it.get("default_runtime_name"));
        let name = default.and_then(Value::as_str).unwrap_or("runc");
        let options = self.runtime(name)?.get("options")?;
        options.get("SystemdCgroup")?.as_bool()
    }

    /// The tables of the runtimes.
    fn runtimes(&self, arguments: &Arguments) -> String {
        let mut text = String::new();
        let mut table = |name: &str, of: &str, program: &str, more: &str| {
            let prefix = format!("plugins.\"{}\".containerd.runtimes.{name}", self.section);
            let path = arguments.to.join("bin").join(program);
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "[{prefix}]\nruntime_type = \"{of}\"\nruntime_path = \"{}\"\n{more}",
                path.display()
            );
            if let Some(systemd) = self.systemd_cgroup() {
                let _ = writeln!(text, "[{prefix}.options]\nSystemdCgroup = {systemd}\n");
            }
        };
        table(RUNC, "io.containerd.runc.v2", "containerd-shim-runc-v2", "");
        if arguments.vm() != Vm::No {
            let more =
                "pod_annotations = [\"io.dunnage.vm.*\"]\nprivileged_without_host_devices = true\n";
            table(IN_VM, "io.containerd.vm.v2", "containerd-shim-vm-v2", more);
        }
        text
    }

    /// The directory whose files are a part of this configuration, if a file of our own can be.
    fn imported(&self, arguments: &Arguments) -> Option<PathBuf> {
        let is_new = self.section == "io.containerd.cri.v1.runtime";
        let dirs = is_new.then(|| imported_directories(&self.table, arguments))?;
        let there = |dir: &PathBuf| arguments.seen(dir).is_dir();
        dirs.into_iter().find(there)
    }
}

/// `DIR` of each `imports = ["DIR/*.toml"]`.
fn imported_directories(table: &Table, arguments: &Arguments) -> Vec<PathBuf> {
    let imports = table.get("imports").and_then(Value::as_array);
    let patterns = imports.into_iter().flatten().filter_map(Value::as_str);
    let beside = arguments.config.parent().unwrap_or(Path::new("/"));
    let dirs = patterns.filter_map(|it| it.strip_suffix("/*.toml"));
    dirs.filter(|dir| !dir.contains('*'))
        .map(|dir| beside.join(dir))
        .collect()
}

/// The text before a block was put behind it.
fn without_block(text: &str) -> String {
    let found = text.split_once(BEGIN);
    let parts = found.and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    match parts {
        Some((before, after)) => format!("{before}{after}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn node(config: Option<&str>) -> (tempfile::TempDir, Arguments) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/containerd/conf.d")).unwrap();
        if let Some(text) = config {
            fs::write(root.path().join("etc/containerd/config.toml"), text).unwrap();
        }
        let words = format!("install --vm tcg --root {}", root.path().display());
        let words = words.split_whitespace().map(str::to_owned);
        let arguments = Arguments::parse(words).unwrap();
        (root, arguments)
    }

    fn main(root: &tempfile::TempDir) -> PathBuf {
        root.path().join("etc/containerd/config.toml")
    }

    fn value<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Value> {
        let mut value = table.get(path[0])?;
        for name in &path[1..] {
            value = value.get(name)?;
        }
        Some(value)
    }

    /// With or without a newline at its end, a configuration is what it was, to the byte.
    #[test]
    fn what_was_told_is_taken_back() {
        for text in [
            "version = 2",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"p\"\n\n",
            "# mine\nversion = 3\nimports = []\n",
        ] {
            let (root, arguments) = node(Some(text));
            fs::set_permissions(main(&root), fs::Permissions::from_mode(0o600)).unwrap();
            assert!(register(&arguments).unwrap());
            assert!(!register(&arguments).unwrap(), "the second time");
            let told = fs::read_to_string(main(&root)).unwrap();
            assert!(
                told.starts_with(text) && told.parse::<Table>().is_ok(),
                "{told}"
            );
            let mode = fs::metadata(main(&root)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert!(forget(&arguments).unwrap());
            assert_eq!(fs::read_to_string(main(&root)).unwrap(), text);
            assert!(!forget(&arguments).unwrap(), "the second time");
        }
    }

    #[test]
    fn a_configuration_that_was_not_there_is_not_there_again() {
        let (root, arguments) = node(None);
        assert!(register(&arguments).unwrap());
        assert!(main(&root).exists());
        assert!(forget(&arguments).unwrap());
        assert!(!main(&root).exists());
    }

    #[test]
    fn runtimes_have_the_cgroups_of_the_nodes_own() {
        let text = "version = 2\n\
            [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n\
            SystemdCgroup = true\n";
        let (root, arguments) = node(Some(text));
        register(&arguments).unwrap();
        let told: Table = fs::read_to_string(main(&root)).unwrap().parse().unwrap();
        for name in [RUNC, IN_VM] {
            let path = [
                "plugins",
                "io.containerd.grpc.v1.cri",
                "containerd",
                "runtimes",
                name,
            ];
            let runtime = value(&told, &path).unwrap();
            let systemd = runtime.get("options").unwrap().get("SystemdCgroup");
            assert_eq!(systemd, Some(&Value::Boolean(true)), "{name}");
            let program = runtime.get("runtime_path").unwrap().as_str().unwrap();
            assert!(program.starts_with("/opt/dunnage/bin/containerd-shim-"));
        }
    }

    #[test]
    fn a_directory_that_is_imported_gets_a_file() {
        let text = "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";
        let (root, arguments) = node(Some(text));
        let own = root.path().join("etc/containerd/conf.d/dunnage.toml");
        assert!(register(&arguments).unwrap());
        assert!(!register(&arguments).unwrap(), "the second time");
        assert_eq!(fs::read_to_string(main(&root)).unwrap(), text);
        let told: Table = fs::read_to_string(&own).unwrap().parse().unwrap();
        let path = [
            "plugins",
            "io.containerd.cri.v1.runtime",
            "containerd",
            "runtimes",
            RUNC,
        ];
        assert!(value(&told, &path).is_some());
        assert!(forget(&arguments).unwrap());
        assert!(!own.exists());
        // Of version 2 such a file would be all that there is of the plugin's section.
        let (root, arguments) = node(Some(&text.replace("= 3", "= 2")));
        register(&arguments).unwrap();
        assert!(
            !root
                .path()
                .join("etc/containerd/conf.d/dunnage.toml")
                .exists()
        );
    }

    #[test]
    fn what_is_not_understood_is_left_as_it_is() {
        let runtimes = "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes";
        for (text, why) in [
            ("disabled_plugins = []".to_owned(), "neither of version"),
            ("version = [".to_owned(), "TOML"),
            (
                format!("version = 2\n[{runtimes}.dunnage]\n"),
                "a runtime dunnage already",
            ),
            (
                "version = 2\n[plugins]\n\"io.containerd.grpc.v1.cri\" = {}\n".to_owned(),
                "",
            ),
        ] {
            let (root, arguments) = node(Some(&text));
            let error = register(&arguments).unwrap_err().to_string();
            assert!(
                error.contains(why) && error.ends_with("nothing was changed"),
                "{error}"
            );
            assert_eq!(fs::read_to_string(main(&root)).unwrap(), text);
        }
    }
}
