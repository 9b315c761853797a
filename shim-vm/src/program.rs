// SPDX-License-Identifier: Apache-2.0
//! What the program that runs a VM needs of the host's files: its dynamic loader, its libraries,
//! its modules and its firmware, wherever it is installed.

use crate::remembered;
use protos::ttrpc::Context;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use task::Command;
use task::aside;
use task::oci::command::{self, Streams};
use task::reaper::Reaper;

/// Where the dynamic loader's answer is remembered.
const CACHE: &str = "libraries";
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Directories of firmware below `<prefix>/share`, where QEMU is `<prefix>/bin/...`.
const DATA: [&str; 2] = ["qemu", "seabios"];

/// A program, and what of the host's it reads before there is a guest.
#[derive(Clone, Debug)]
pub struct Program {
    /// Without symlinks.
    pub path: PathBuf,
    /// The dynamic loader, as the program names it.
    pub loader: Option<PathBuf>,
    /// The directories of its libraries, as the loader names them.
    pub libraries: Vec<PathBuf>,
    /// The directory of its modules.
    pub modules: Option<PathBuf>,
    /// Directories of firmware.
    pub data: Vec<PathBuf>,
}

/// Finds the program `name`, a path or the name of a file in PATH.
///
/// # Errors
/// If there is none, or none that can be executed here.
pub async fn find(name: &Path, reaper: &Reaper) -> Result<Program, String> {
    let name = name.to_owned();
    let look = move || {
        let path = in_path(&name).ok_or_else(|| format!("start {}: not found", name.display()))?;
        let loader = File::open(&path).and_then(|file| loader(&file));
        let loader = loader.map_err(|e| format!("start {}: {e}", path.display()))?;
        Ok::<_, String>((path, loader))
    };
    let (path, loader) = aside::run(look).await?;
    let libraries = match &loader {
        Some(loader) => libraries(loader, &path, reaper).await?,
        None => Vec::new(),
    };
    let look = move || {
        let prefix = path.parent().and_then(Path::parent);
        let prefix = prefix.unwrap_or(Path::new("/"));
        let modules = modules(prefix, &libraries);
        let data = DATA.map(|name| prefix.join("share").join(name));
        let data = data.into_iter().filter(|dir| dir.is_dir()).collect();
        Program {
            path,
            loader,
            libraries,
            modules,
            data,
        }
    };
    Ok(aside::run(look).await)
}

fn in_path(name: &Path) -> Option<PathBuf> {
    let found = if name.components().count() > 1 {
        Some(name.to_owned())
    } else {
        let dirs = std::env::var_os("PATH")?;
        let mut files = std::env::split_paths(&dirs).map(|dir| dir.join(name));
        files.find(|file| file.is_file())
    };
    fs::canonicalize(found?).ok()
}

/// The path in an ELF file's PT_INTERP (elf(5)); `None` if the file needs no loader.
fn loader(file: &File) -> io::Result<Option<PathBuf>> {
    const PT_INTERP: u64 = 3;
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    let mut header = [0; 64];
    let read = file.read_exact_at(&mut header, 0);
    // 64 bits, the least significant byte first.
    if read.is_err() || !header.starts_with(b"\x7fELF\x02\x01") {
        return Err(bad("not an ELF program of this machine"));
    }
    let (start, size, count) = (&header[32..40], &header[54..56], &header[56..58]);
    for n in 0..number(count) {
        let mut entry = [0; 56];
        file.read_exact_at(&mut entry, number(start).saturating_add(n * number(size)))?;
        if number(&entry[..4]) != PT_INTERP {
            continue;
        }
        let length = usize::try_from(number(&entry[32..40])).unwrap_or(usize::MAX);
        if length > libc::PATH_MAX as usize {
            return Err(bad("its loader's name is too long"));
        }
        let mut name = vec![0; length];
        file.read_exact_at(&mut name, number(&entry[8..16]))?;
        let name = String::from_utf8(name).map_err(|_| bad("its loader's name is no text"))?;
        return Ok(Some(name.trim_end_matches('\0').into()));
    }
    Ok(None)
}

/// The directories in which the loader finds the program's libraries.
async fn libraries(loader: &Path, path: &Path, reaper: &Reaper) -> Result<Vec<PathBuf>, String> {
    let state = |path: &Path| {
        let file = fs::metadata(path).ok()?;
        Some((
            file.dev(),
            file.ino(),
            file.size(),
            file.mtime(),
            file.mtime_nsec(),
        ))
    };
    // What the loader looks into beside the program itself.
    let looked_at = path.to_owned();
    let look = move || {
        let states = [&*looked_at, Path::new("/etc/ld.so.cache")].map(state);
        format!("{} {states:?}", looked_at.display())
    };
    let about = aside::run(look).await;
    let list = match remembered::recall(CACHE, &about) {
        Some(list) => list,
        None => {
            let mut command = Command::new(loader);
            command.arg("--list").arg(path).env_clear();
            let context = Context::within(ANSWER);
            let list = command::run(reaper, command, Streams::Captured, &context).await;
            let list =
                list.map_err(|e| format!("libraries of {}: {}", path.display(), e.oci("loader")))?;
            let list = String::from_utf8_lossy(&list).into_owned();
            remembered::keep(CACHE, &about, &list);
            list
        }
    };
    directories(&list)
        .map_err(|name| format!("{}: its library {name} is not found", path.display()))
}

/// Reads lines `name => /path (address)` and `name => not found`; the vDSO and the loader itself
/// have others.
fn directories(list: &str) -> Result<Vec<PathBuf>, String> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    for (name, found) in list.lines().filter_map(|line| line.split_once(" => ")) {
        if found.trim() == "not found" {
            return Err(name.trim().to_owned());
        }
        let file = found.split(" (").next().unwrap_or_default();
        if let Some(dir) = Path::new(file).parent().filter(|dir| dir.is_absolute())
            && !dirs.iter().any(|known| known == dir)
        {
            dirs.push(dir.to_owned());
        }
    }
    Ok(dirs)
}

/// QEMU's are in `qemu` below a directory of libraries: of its prefix's, or else of those it uses.
fn modules(prefix: &Path, libraries: &[PathBuf]) -> Option<PathBuf> {
    let below = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
    let own = ["lib", "lib64"].map(|name| prefix.join(name));
    let multiarch = below(prefix.join("lib")).map(|entry| entry.path());
    let all = multiarch.chain(own).chain(libraries.iter().cloned());
    let is_module = |entry: fs::DirEntry| entry.path().extension().is_some_and(|so| so == "so");
    all.map(|dir| dir.join("qemu"))
        .find(|dir| below(dir.clone()).any(is_module))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list_names_each_directory_once() {
        let list = "\tlinux-vdso.so.1 (0x00007fcc)\n\
            \tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n\
            \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
            \tlibq.so.1 => /opt/q/lib/libq.so.1 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007fcc)\n";
        let expected = ["/lib/x86_64-linux-gnu", "/opt/q/lib"];
        assert_eq!(directories(list).unwrap(), expected.map(PathBuf::from));
        let missing = directories("\tlibgone.so.3 => not found\n");
        assert_eq!(missing.unwrap_err(), "libgone.so.3");
    }

    #[test]
    fn a_program_names_its_loader_and_a_script_has_none() {
        let sh = loader(&File::open("/bin/sh").unwrap()).unwrap().unwrap();
        assert!(sh.exists(), "{}", sh.display());
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        let why = loader(&File::open(&script).unwrap()).unwrap_err();
        assert_eq!(why.to_string(), "not an ELF program of this machine");
    }
}
