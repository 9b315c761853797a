// SPDX-License-Identifier: Apache-2.0
//! Reading the small files of a cgroup: what is missing counts as nothing.

use super::Error;
use crate::proc;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A name in a file of `name value` lines, and the field of `T` that its value belongs to.
pub(super) type Field<T> = (&'static str, fn(&mut T) -> &mut u64);

/// The text of `file` in `dir`; `None` if there is no such file, no such cgroup any more, or if
/// the kernel does not keep these numbers (pressure that is switched off).
pub(super) fn text(dir: &Path, file: &str) -> Result<Option<String>, Error> {
    let path = dir.join(file);
    match proc::text(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if absent(&error) => Ok(None),
        Err(source) => Err(Error::Io { path, source }),
    }
}

fn absent(error: &io::Error) -> bool {
    // ENODEV: the cgroup was removed between open(2) and read(2).
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)
    )
}

/// The number that is all of `file`, `max` if it says so; `None` if there is no such file.
pub(super) fn number(dir: &Path, file: &str, max: u64) -> Result<Option<u64>, Error> {
    let Some(text) = text(dir, file)? else {
        return Ok(None);
    };
    match text.trim() {
        "max" => Ok(Some(max)),
        number => value(dir, file, number).map(Some),
    }
}

/// Puts the values of `file`'s `name value` lines where `fields` says, and passes over names that
/// are not in it. False if there is no such file.
pub(super) fn fields<T>(
    dir: &Path,
    file: &str,
    fields: &[Field<T>],
    into: &mut T,
) -> Result<bool, Error> {
    let Some(text) = text(dir, file)? else {
        return Ok(false);
    };
    for line in text.lines() {
        let Some((name, number)) = line.split_once(' ') else {
            continue;
        };
        if let Some((_, field)) = fields.iter().find(|(known, _)| *known == name) {
            *field(into) = value(dir, file, number)?;
        }
    }
    Ok(true)
}

/// The number that `text`, a part of `file`, stands for. A negative one counts as 0, as in
/// containerd's cgroups library (parseUint).
pub(super) fn value(dir: &Path, file: &str, text: &str) -> Result<u64, Error> {
    let text = text.trim();
    let negative = || {
        text.strip_prefix('-')?
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then_some(0)
    };
    text.parse()
        .ok()
        .or_else(negative)
        .ok_or_else(|| unexpected(dir, file, text))
}

pub(super) fn unexpected(dir: &Path, file: &str, text: &str) -> Error {
    Error::Parse {
        path: dir.join(file),
        text: text.to_owned(),
    }
}

/// The lines `<device> hca_handle=<n> hca_object=<n>` of `file`, each made an `E` by `entry`
/// (device, handles, objects); `max` is the greatest number of them.
pub(super) fn rdma<E>(
    dir: &Path,
    file: &str,
    entry: fn(String, u32, u32) -> E,
) -> Result<Option<Vec<E>>, Error> {
    let Some(text) = text(dir, file)? else {
        return Ok(None);
    };
    let entries = text.lines().filter_map(|line| {
        let (device, counts) = line.split_once(' ')?;
        let count = |name| {
            let text = counts.split(' ').find_map(|one| one.strip_prefix(name))?;
            if text == "max" {
                Some(u32::MAX)
            } else {
                text.parse().ok()
            }
        };
        Some(entry(
            device.to_owned(),
            count("hca_handle=")?,
            count("hca_object=")?,
        ))
    });
    Ok(Some(entries.collect()))
}

/// The sizes of huge pages that the host has, as the names of cgroup files spell them: `2MB`.
/// `hugepages` is a directory of `hugepages-<n>kB` (kernel: hugetlb_cgroup.c, mem_fmt).
pub(super) fn huge_page_sizes(hugepages: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(hugepages) else {
        return Vec::new();
    };
    let mut kilobytes: Vec<u64> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()
        })
        .collect();
    kilobytes.sort_unstable();
    let name = |kb: u64| match kb {
        0..1024 => format!("{kb}KB"),
        1024..0x10_0000 => format!("{}MB", kb >> 10),
        _ => format!("{}GB", kb >> 20),
    };
    kilobytes.into_iter().map(name).collect()
}

/// `dir` and all directories below it, parents first; those that vanish meanwhile are left out.
pub(super) fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        todo.extend(dirs.map(|entry| entry.path()));
        all.push(dir);
    }
    all
}
