// SPDX-License-Identifier: Apache-2.0
//! Names of a layer's entries.

use super::*;

#[test]
fn a_name_is_one_in_the_root_or_none() {
    for (name, path) in [
        (&b"a/b"[..], Some("a/b")),
        (b"./a//b/.", Some("a/b")),
        (b"/etc/passwd", Some("etc/passwd")),
        (b"./", Some("")),
        (b"", Some("")),
        (b"..", None),
        (b"a/../b", None),
        (b"/..", None),
        (b"a/..b", Some("a/..b")),
    ] {
        assert_eq!(
            inside(name),
            path.map(PathBuf::from),
            "{}",
            name.escape_ascii()
        );
    }
}
