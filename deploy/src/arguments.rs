// SPDX-License-Identifier: Apache-2.0
//! The command line.

use crate::failure::{Failure, Result};
use std::fmt;
use std::path::{Path, PathBuf};

pub const USAGE: &str = "\
usage: dunnage-node install|uninstall [flags]
  --root DIR     where this program sees the node's root directory (/)
  --from DIR     what is installed: bin, lib (the directory above this program's)
  --to DIR       where, on the node (/opt/dunnage)
  --config FILE  containerd's configuration, on the node (/etc/containerd/config.toml)
  --crio DIR     CRI-O's configuration, on the node, as /etc/crio: it is told of the runtimes, and
                 not containerd
  --features DIR where node-feature-discovery reads of the node's features, on the node: it makes
                 a label dunnage.io/vm=kvm or =tcg of what is written there
  --vm WORD      containers in VMs: kvm, tcg, no, or what is found on the node (auto)
  --restart      have a configuration read that was changed: end containerd, and wait until the
                 node has started it again; CRI-O reads it without an end
  --stay         do not end, until SIGTERM
  --version";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    Install,
    Uninstall,
    Version,
}

/// What VMs on the node have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Vm {
    Kvm,
    Tcg,
    No,
}

impl fmt::Display for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Vm::Kvm => "kvm",
            Vm::Tcg => "tcg",
            Vm::No => "no",
        })
    }
}

/// Paths are the node's, but `root` and `from`.
#[derive(Debug)]
pub struct Arguments {
    pub action: Action,
    pub root: PathBuf,
    pub from: PathBuf,
    pub to: PathBuf,
    pub config: PathBuf,
    /// Instead of containerd's configuration.
    pub crio: Option<PathBuf>,
    pub features: Option<PathBuf>,
    vm: Option<Vm>,
    pub restart: bool,
    pub stay: bool,
}

impl Arguments {
    /// # Errors
    /// [`Failure::Usage`] names the word that is wrong.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self> {
        let program = std::env::current_exe().unwrap_or_default();
        let above = program.parent().and_then(Path::parent);
        let mut it = Self {
            action: Action::Version,
            root: "/".into(),
            from: above.unwrap_or(Path::new("/")).to_owned(),
            to: "/opt/dunnage".into(),
            config: "/etc/containerd/config.toml".into(),
            crio: None,
            features: None,
            vm: None,
            restart: false,
            stay: false,
        };
        let usage = |text: String| Failure::Usage(text);
        let mut words = words.into_iter();
        it.action = match words.next().as_deref() {
            Some("install") => Action::Install,
            Some("uninstall") => Action::Uninstall,
            Some("--version") => Action::Version,
            Some(word) => return Err(usage(format!("{word:?} is no command"))),
            None => return Err(usage("install or uninstall?".into())),
        };
        while let Some(word) = words.next() {
            let (flag, said) = match word.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            let mut value = || {
                let value = said.clone().or_else(|| words.next());
                let value = value.filter(|value| !value.is_empty());
                value.ok_or_else(|| usage(format!("{flag} needs a value")))
            };
            match flag.as_str() {
                "--root" => it.root = value()?.into(),
                "--from" => it.from = value()?.into(),
                "--to" => it.to = absolute(&flag, value()?)?,
                "--config" => it.config = absolute(&flag, value()?)?,
                "--crio" => it.crio = Some(absolute(&flag, value()?)?),
                "--features" => it.features = Some(absolute(&flag, value()?)?),
                "--vm" => it.vm = vm(&value()?)?,
                "--restart" => it.restart = true,
                "--stay" => it.stay = true,
                _ => return Err(usage(format!("{flag:?} is no flag"))),
            }
        }
        Ok(it)
    }

    /// Where a path of the node is for this program.
    pub fn seen(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// What is told of the runtimes.
    pub fn configured(&self) -> &Path {
        self.crio.as_deref().unwrap_or(&self.config)
    }

    /// Where the programs go.
    pub fn place(&self) -> PathBuf {
        self.seen(&self.to)
    }

    /// What was said, or else what the node has.
    pub fn vm(&self) -> Vm {
        let has = |path: &str| self.seen(Path::new(path)).exists();
        let found = || match (has("/dev/kvm"), has("/usr/bin/qemu-system-x86_64")) {
            (true, true) => Vm::Kvm,
            (false, true) => Vm::Tcg,
            (_, false) => Vm::No,
        };
        self.vm.unwrap_or_else(found)
    }
}

/// They are written into containerd's configuration.
fn absolute(flag: &str, value: String) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if value.starts_with('/') && value.chars().all(plain) {
        return Ok(value.into());
    }
    let why = format!("{flag} {value:?}: an absolute path of letters, digits, and /._-");
    Err(Failure::Usage(why))
}

fn vm(word: &str) -> Result<Option<Vm>> {
    Ok(Some(match word {
        "auto" => return Ok(None),
        "kvm" => Vm::Kvm,
        "tcg" => Vm::Tcg,
        "no" => Vm::No,
        _ => {
            let why = format!("--vm {word:?}: auto, kvm, tcg or no");
            return Err(Failure::Usage(why));
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, word) in [
            ("", "install or uninstall"),
            ("remove", "\"remove\""),
            ("install --shell", "\"--shell\""),
            ("install --to", "--to needs a value"),
            ("install --to opt", "\"opt\""),
            ("install --to /opt/a\"b", "absolute path of"),
            ("install --crio etc", "\"etc\""),
            ("install --vm yes", "\"yes\""),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn vms_are_what_the_node_has_unless_it_is_said() {
        let root = tempfile::tempdir().unwrap();
        let line = |more: &str| format!("install --root {} {more}", root.path().display());
        assert_eq!(parse(&line("")).unwrap().vm(), Vm::No);
        for dir in ["usr/bin", "dev"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        std::fs::write(root.path().join("usr/bin/qemu-system-x86_64"), "").unwrap();
        assert_eq!(parse(&line("")).unwrap().vm(), Vm::Tcg);
        std::fs::write(root.path().join("dev/kvm"), "").unwrap();
        assert_eq!(parse(&line("--vm auto")).unwrap().vm(), Vm::Kvm);
        assert_eq!(parse(&line("--vm=no")).unwrap().vm(), Vm::No);
    }
}
