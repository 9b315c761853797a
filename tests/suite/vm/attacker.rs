// SPDX-License-Identifier: Apache-2.0
//! The attacker's guest: `tests/hostile` in place of the image's agent, told its mode by a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The image's modules, and in place of its agent the attacker with the libraries that it links.
static INITRD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    for at in ["usr/lib", "usr/lib64"] {
        fs::create_dir_all(dir.path().join(at)).expect("a directory");
    }
    let attacker = env!("CARGO_BIN_EXE_hostile");
    let init = dir.path().join("init");
    let stripped = Command::new("strip")
        .args(["-s", "-o"])
        .arg(&init)
        .arg(attacker)
        .status();
    assert!(stripped.expect("strip").success());
    let linked = Command::new("ldd")
        .arg(attacker)
        .output()
        .expect("ldd")
        .stdout;
    let linked = String::from_utf8(linked).expect("text");
    for library in linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let name = Path::new(library).file_name().expect("a file");
        let at = if library.starts_with("/lib64") {
            "usr/lib64"
        } else {
            "usr/lib"
        };
        fs::copy(library, dir.path().join(at).join(name)).expect("a library");
    }
    // Archives that are not compressed may follow one another.
    let mut initrd = Command::new("lz4")
        .arg("-dcq")
        .arg(image().join("initrd"))
        .output();
    let initrd = &mut initrd.as_mut().expect("lz4").stdout;
    assert!(!initrd.is_empty(), "the guest's initrd is not lz4");
    initrd.extend(packed(dir.path()));
    std::mem::take(initrd)
});

fn packed(dir: &Path) -> Vec<u8> {
    let pack = ["-c", "find . | cpio --quiet -o -H newc"];
    let packed = Command::new("sh").args(pack).current_dir(dir).output();
    packed.expect("cpio").stdout
}

fn image() -> PathBuf {
    harness::peers::workspace().join("target/dist/guest/distro")
}

/// The configuration of a shim whose VMs are the attacker's in this mode: its path, in `dir`.
pub fn configuration(dir: &Path, mode: &str, settings: &str) -> PathBuf {
    let tree = dir.join("tree");
    fs::create_dir_all(&tree).expect("a directory");
    fs::write(tree.join("mode"), mode).expect("the mode");
    let initrd = dir.join("initrd");
    let mut bytes = [&INITRD[..], &packed(&tree)].concat();
    // Whole pages, as image.sh says.
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    fs::write(&initrd, bytes).expect("an initrd");
    let kernel = image().join("vmlinux");
    let text = format!(
        "accel = \"tcg\"\nkernel = {kernel:?}\ninitrd = {initrd:?}\nmemory = 256\n{settings}\n"
    );
    let config = dir.join("shim-vm.toml");
    fs::write(&config, text).expect("a configuration");
    config
}
