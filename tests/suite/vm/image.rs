// SPDX-License-Identifier: Apache-2.0
//! The guest image: the same of the same, and what it says of itself is so.

use harness::peers;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn made() -> PathBuf {
    let made = peers::workspace().join("target/dist/guest/distro");
    assert!(made.join("initrd").exists(), "`make guest` first");
    made
}

fn make(agent: &Path, to: &Path) -> Output {
    make_with("", agent, to)
}

fn make_with(runtime: &str, agent: &Path, to: &Path) -> Output {
    let script = peers::workspace().join("shim-vm/guest/image.sh");
    let mut command = Command::new(script);
    command.arg("distro").env("AGENT", agent).env("OUT", to);
    command.env("GUEST_RUNTIME", runtime);
    command.output().expect("image.sh")
}

/// The files of an initrd, in a directory.
fn unpack(initrd: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    // lz4 does not know the zeros that fill the last page.
    let script = "lz4 -dcq '{}' 2>/dev/null | cpio -id --quiet";
    let script = script.replace("{}", &initrd.display().to_string());
    let done = Command::new("sh")
        .args(["-c", &script])
        .current_dir(to)
        .status();
    assert!(done.expect("cpio").success());
}

/// Made again of the agent that is in it, the image is the same to the byte; every module it
/// loads is there, after what it needs; and guest.toml is in it as it is beside it.
#[test]
fn the_image_can_be_made_again_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    unpack(&made().join("initrd"), &tree);
    let again = dir.path().join("again");
    let output = make(&tree.join("init"), &again);
    assert!(output.status.success(), "{output:?}");
    for name in ["vmlinux", "initrd", "guest.toml"] {
        let same = fs::read(made().join(name)).unwrap() == fs::read(again.join(name)).unwrap();
        assert!(same, "{name} differs");
    }
    let size = fs::metadata(made().join("initrd")).unwrap().len();
    assert_eq!(size % 4096, 0, "its end is over the ACPI tables of QEMU 10");
    let beside = fs::read_to_string(made().join("guest.toml")).unwrap();
    let inside = fs::read_to_string(tree.join("etc/dunnage/guest.toml")).unwrap();
    assert_eq!(beside, inside);
    let load = fs::read_to_string(tree.join("usr/lib/modules/load")).unwrap();
    let place = |driver: &str, name: &str| {
        let of_driver = format!("{driver} /usr/lib/modules/{name}.ko");
        let found = load.lines().position(|line| line == of_driver);
        found.unwrap_or_else(|| panic!("{name} is not loaded for {driver}"))
    };
    for driver in ["virtio_mmio", "virtio_console", "virtio_net", "virtiofs"] {
        for needed in ["virtio", "virtio_ring"] {
            assert!(place(driver, needed) < place(driver, driver), "{load}");
        }
    }
    assert!(place("virtiofs", "fuse") < place("virtiofs", "virtiofs"));
    for line in load.lines() {
        let (_, path) = line.split_once(' ').expect("a driver and a path");
        assert!(tree.join(path.trim_start_matches('/')).exists(), "{path}");
    }
}

/// What would not run in a guest is refused, and nothing is made of it.
#[test]
fn a_wrong_agent_makes_no_image() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let refusal = |agent: &Path| {
        let output = make(agent, &out);
        assert!(!output.status.success());
        assert!(!out.join("initrd").exists());
        String::from_utf8(output.stderr).unwrap()
    };
    let dynamic = Path::new("/usr/bin/ls");
    assert_eq!(
        refusal(dynamic),
        "guest: error: /usr/bin/ls: the agent must be static\n"
    );
    let missing = dir.path().join("none");
    let said = refusal(&missing);
    assert!(
        said.contains("none: no agent to put into the image"),
        "{said}"
    );
    // It is static, and says no version.
    let dumb = dir.path().join("dumb");
    fs::copy(peers::rootfs().join("bin/busybox"), &dumb).unwrap();
    fs::set_permissions(&dumb, fs::Permissions::from_mode(0o755)).unwrap();
    let said = refusal(&dumb);
    assert!(said.contains("--version failed"), "{said}");
}

/// An image with the distribution's runc runs a container; one with a runtime that nobody knows is
/// not made.
#[test]
fn the_runtime_of_an_image_can_be_chosen() {
    crate::prepare();
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    unpack(&made().join("initrd"), &tree);
    let agent = tree.join("init");
    let out = dir.path().join("distro");
    let output = make_with("podman", &agent, &out);
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "guest: error: GUEST_RUNTIME=podman: must be crun, runc, or not set\n"
    );
    assert!(!out.exists());
    let output = make_with("runc", &agent, &out);
    assert!(output.status.success(), "{output:?}");
    let facts = fs::read_to_string(out.join("guest.toml")).unwrap();
    assert!(facts.contains("runtime = \"runc 1."), "{facts}");
    let config = dir.path().join("shim-vm.toml");
    fs::write(
        &config,
        "accel = \"tcg\"\nimage = \".\"\nstart_timeout = 120\n",
    )
    .unwrap();
    let mut check = Command::new(peers::vm_shim());
    check.arg("check").env("DUNNAGE_VM_CONFIG", &config);
    let output = check.output().expect("check");
    assert!(output.status.success(), "{output:?}");
}
