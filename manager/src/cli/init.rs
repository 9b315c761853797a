// SPDX-License-Identifier: Apache-2.0
//! `--init`: a small first process for a container, which reaps what others leave and passes signals on.

use super::process::{list, object};
use clap::Args;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Programs that are one, in the order in which they are looked for.
const NAMES: [&str; 4] = ["docker-init", "tini-static", "catatonit", "tini"];
/// Where they are looked for beside the directories of PATH.
const PLACES: [&str; 5] = [
    "/usr/bin",
    "/usr/local/bin",
    "/usr/libexec/docker",
    "/usr/libexec/podman",
    "/usr/lib/podman",
];
/// Where it is in the container: not on its root filesystem, which may be others' too.
const PLACE: &str = "/dev/init";
/// Of an ELF file (elf(5)): what names the loader of one that is not static.
const PT_INTERP: u32 = 3;

#[derive(Clone, Debug, Default, Args)]
pub struct Init {
    /// Start the command by a small init: docker-init, tini-static or catatonit of the host
    #[arg(long, conflicts_with = "pid")]
    init: bool,
    /// Which program that is: one without libraries
    #[arg(long, value_name = "FILE", requires = "init", value_parser = program)]
    init_path: Option<PathBuf>,
}

impl Init {
    /// # Errors
    /// A text, if there is no such program, or that names what in the spec is not as the OCI runtime spec
    /// has it.
    pub fn change(&self, spec: &mut Map<String, Value>) -> Result<(), String> {
        if !self.init {
            return Ok(());
        }
        let program = self.init_path.clone().map_or_else(found, Ok)?;
        let args = list(object(spec, "process")?, "args")?;
        args.splice(..0, [PLACE.into(), "--".into()]);
        let mount = json!({"destination": PLACE, "type": "bind", "source": program,
                           "options": ["bind", "ro", "nosuid", "nodev"]});
        list(spec, "mounts")?.push(mount);
        Ok(())
    }
}

fn found() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path)
        .chain(PLACES.map(PathBuf::from))
        .collect();
    let mut files = NAMES
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    let found = files.find(|file| is_static(file).is_ok_and(|it| it));
    found.ok_or_else(|| {
        let names = NAMES.join(", ");
        format!("--init: no program without libraries is called {names}: install tini or catatonit")
    })
}

fn program(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    match is_static(path) {
        _ if path.is_relative() => Err("not an absolute path".into()),
        Err(e) => Err(e.to_string()),
        Ok(false) => Err("not a program without libraries".into()),
        Ok(true) => Ok(path.to_owned()),
    }
}

/// Whether that is a program that needs nothing of what is around it.
fn is_static(path: &Path) -> std::io::Result<bool> {
    let file = fs::read(path)?;
    Ok(heads(&file).is_some_and(|kinds| !kinds.is_empty() && !kinds.contains(&PT_INTERP)))
}

/// The types of the program headers of a 64-bit ELF file.
fn heads(file: &[u8]) -> Option<Vec<u32>> {
    let number = |at: usize, size: usize| {
        let bytes = file.get(at..at.checked_add(size)?)?.iter().rev();
        Some(bytes.fold(0_u64, |number, &byte| number << 8 | u64::from(byte)))
    };
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (begin, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let head = |n: u64| number(usize::try_from(begin.checked_add(n * size)?).ok()?, 4);
    (0..count).map(|n| u32::try_from(head(n)?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_without_libraries() {
        assert!(!is_static(Path::new("/bin/sh")).unwrap());
        assert!(!is_static(Path::new("/etc/passwd")).unwrap());
        assert!(heads(b"\x7fELF\x02\x01").is_none());
        for text in ["", "init", "/no/such", "/etc/passwd", "/bin/sh"] {
            assert!(program(text).is_err(), "{text}");
        }
    }
}
