// SPDX-License-Identifier: Apache-2.0
//! The kernel's table of mounts as text: /proc/<pid>/mountinfo.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// What is asked of one line (proc_pid_mountinfo(5)); the fields are still escaped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount<'a> {
    /// The directory within the filesystem that is the root of this mount (field 4).
    pub root: &'a [u8],
    /// Where it is mounted (field 5).
    pub point: &'a [u8],
    /// For example `cgroup2` (the first field after the `-`).
    pub kind: &'a [u8],
    /// The superblock's options (the last field).
    pub options: &'a [u8],
}

/// The mounts in `text`, in its order; what is not a line of mountinfo is left out.
pub(crate) fn parse(text: &[u8]) -> impl Iterator<Item = Mount<'_>> {
    text.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let root = fields.nth(3)?;
        let point = fields.next()?;
        // The mount's own options, then any number of tags up to a lone dash.
        fields.find(|&field| field == b"-")?;
        let kind = fields.next()?;
        let options = fields.nth(1)?;
        Some(Mount {
            root,
            point,
            kind,
            options,
        })
    })
}

/// The path that `field` stands for: the kernel writes space, tab, newline and backslash as a
/// backslash and three octal digits.
pub(crate) fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        if let [
            b'\\',
            a @ b'0'..=b'3',
            b @ b'0'..=b'7',
            c @ b'0'..=b'7',
            after @ ..,
        ] = rest
        {
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_and_without_tags_are_read() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
            22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            what is this\n\
            40 22 0:41 / /a\\040b rw - cgroup  rw,memory\n";
        let mounts: Vec<_> = parse(text).collect();
        assert_eq!(
            mounts[0],
            Mount {
                root: b"/mnt1",
                point: b"/mnt2",
                kind: b"ext3",
                options: b"rw,errors=continue"
            }
        );
        assert_eq!(
            mounts[1],
            Mount {
                root: b"/",
                point: b"/proc",
                kind: b"proc",
                options: b"rw"
            }
        );
        // An empty source, as mount(2) allows it.
        assert_eq!(mounts[2].options, b"rw,memory");
        assert_eq!(mounts.len(), 3);
    }

    #[test]
    fn escaped_paths_come_back() {
        for (field, expected) in [
            (r"/plain", "/plain"),
            (r"/a\040b", "/a b"),
            (
                r"/tab\011newline\012backslash\134",
                "/tab\tnewline\nbackslash\\",
            ),
            (r"/not\04octal\", r"/not\04octal\"),
            (r"/twice\134040", r"/twice\040"),
        ] {
            assert_eq!(path(field.as_bytes()), PathBuf::from(expected), "{field}");
        }
    }
}
