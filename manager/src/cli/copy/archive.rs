// SPDX-License-Identifier: Apache-2.0
//! Files as a tar stream.

use super::place::{Kind, Place, kind_of, open_in, target_of};
use nix::dir::Dir;
use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::stat::{FileStat, SFlag, fstat, major, minor};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// Writes what is at `path`, under this name.
///
/// # Errors
/// From the filesystem, or of who reads the stream.
pub fn write(
    place: &Place,
    path: &Path,
    follow: bool,
    name: &Path,
    out: impl Write,
) -> io::Result<()> {
    let mut flags = OFlag::O_PATH;
    flags.set(OFlag::O_NOFOLLOW, !follow);
    let file = place.open(path, flags)?;
    let mut tar = Builder::new(out);
    append(&mut tar, &file, name)?;
    tar.into_inner()?.flush()
}

fn append(tar: &mut Builder<impl Write>, file: &OwnedFd, name: &Path) -> io::Result<()> {
    let stat = fstat(file)?;
    let mut header = header(&stat);
    match kind_of(&stat) {
        Kind::Directory => {
            // With a slash at its end, as tar(1) has it.
            tar.append_data(&mut header, name.join(""), io::empty())?;
            let dir = again(file, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            append_content(tar, dir, name)
        }
        Kind::File => {
            let size = stat.st_size.cast_unsigned();
            header.set_size(size);
            let file = File::from(again(file, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?);
            // One that is cut off meanwhile is filled up: its size was said before.
            tar.append_data(&mut header, name, file.chain(io::repeat(0)).take(size))
        }
        Kind::Link => tar.append_link(&mut header, name, target_of(file)?),
        Kind::Other => {
            header.set_entry_type(
                match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
                    SFlag::S_IFCHR => EntryType::Char,
                    SFlag::S_IFBLK => EntryType::Block,
                    SFlag::S_IFIFO => EntryType::Fifo,
                    // A socket is nothing without who listens.
                    _ => return Ok(()),
                },
            );
            header.set_device_major(u32::try_from(major(stat.st_rdev)).unwrap_or(0))?;
            header.set_device_minor(u32::try_from(minor(stat.st_rdev)).unwrap_or(0))?;
            tar.append_data(&mut header, name, io::empty())
        }
    }
}

fn append_content(tar: &mut Builder<impl Write>, dir: OwnedFd, name: &Path) -> io::Result<()> {
    let mut names = Vec::new();
    let mut dir = Dir::from_fd(dir)?;
    for entry in dir.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    for child in names {
        match child_of(dir.as_fd(), Path::new(&child)) {
            // Somebody has removed it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            file => append(tar, &file?, &name.join(&child))?,
        }
    }
    Ok(())
}

fn child_of(dir: BorrowedFd<'_>, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    open_in(dir, name, flags, ResolveFlag::RESOLVE_BENEATH)
}

/// The same file, opened to be read; it has been looked at what it is.
fn again(file: &OwnedFd, flags: OFlag) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mode = nix::sys::stat::Mode::empty();
    Ok(nix::fcntl::open(
        path.as_str(),
        flags | OFlag::O_CLOEXEC,
        mode,
    )?)
}

fn header(stat: &FileStat) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header.set_entry_type(match kind_of(stat) {
        Kind::Directory => EntryType::Directory,
        Kind::Link => EntryType::Symlink,
        _ => EntryType::Regular,
    });
    header
}
