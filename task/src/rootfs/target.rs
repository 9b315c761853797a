//! Where a mount goes: a path below a root directory that it can't leave.

use nix::errno::Errno;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

/// How many symlinks a path may lead through, as the kernel has it (MAXSYMLINKS).
const MAX_LINKS: u32 = 40;

/// Where `target` is below `root`: absolute symlinks and `..` on the way stop at `root`, as if it
/// were the root directory. What is missing stays as it is. No process runs in the container
/// yet, so nobody changes the path behind our back.
pub(super) fn below(root: &Path, target: &str) -> io::Result<PathBuf> {
    let root = std::path::absolute(root)?;
    let mut at = root.clone();
    let mut rest = PathBuf::from(target);
    let mut links = 0;
    loop {
        let mut parts = rest.components();
        let Some(part) = parts.next() else {
            return Ok(at);
        };
        let after = parts.as_path().to_owned();
        rest = match part {
            Component::Normal(name) => {
                at.push(name);
                match fs::read_link(&at) {
                    Ok(_) if links == MAX_LINKS => return Err(Errno::ELOOP.into()),
                    Ok(link) => {
                        links += 1;
                        at.pop();
                        link.join(after)
                    }
                    Err(_) => after, // no symlink; mount(2) finds out what else is wrong with it
                }
            }
            Component::RootDir => {
                at.clone_from(&root);
                after
            }
            Component::ParentDir if at != root => {
                at.pop();
                after
            }
            _ => after,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    #[test]
    fn n1_targets_stay_below_the_root() {
        let scratch = TempDir::new().unwrap();
        let root = scratch.path().join("root");
        fs::create_dir_all(root.join("dir/sub")).unwrap();
        symlink("/", root.join("slash")).unwrap();
        symlink("../../../..", root.join("up")).unwrap();
        symlink("/dir/sub", root.join("absolute")).unwrap();
        symlink("sub/../../slash/dir", root.join("dir/winding")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for (target, expected) in [
            ("", ""),
            ("/", ""),
            ("dir", "dir"),
            ("//dir/./sub/", "dir/sub"),
            ("..", ""),
            ("../../etc", "etc"),
            ("dir/../../etc", "etc"),
            ("slash/etc", "etc"),
            ("up/etc", "etc"),
            ("absolute/x", "dir/sub/x"),
            ("dir/winding/sub", "dir/sub"),
            ("missing/../dir", "dir"),
            ("missing/also", "missing/also"),
        ] {
            assert_eq!(
                below(&root, target).unwrap(),
                root.join(expected),
                "{target}"
            );
        }
        let endless = below(&root, "loop/x").unwrap_err();
        assert_eq!(endless.raw_os_error(), Some(Errno::ELOOP as i32));
    }
}
