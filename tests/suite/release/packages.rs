// SPDX-License-Identifier: Apache-2.0
//! Debian's packages of the suite, installed, upgraded, rolled back and removed with dpkg, beside
//! containerd's own and under containers that run.

use crate::fleet::{self, Fleet, ROUNDS, digest, program_of};
use crate::machine::{Layer, with_layer};
use crate::{dist, guest, script};
use harness::containerd::{self, Containerd};
use harness::peers;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const PACKAGES: [&str; 3] = ["dunnage", "containerd-shim-dunnage", "containerd-shim-vm"];
/// Where the package has the shim, and where containerd's package has its own.
const OWN: &str = "/usr/lib/dunnage/bin/containerd-shim-runc-v2";
const PLACE: &str = "/usr/bin/containerd-shim-runc-v2";

/// The packages, called version `version`.
fn make(dir: &Path, dist: &Path, version: &str) -> PathBuf {
    let out = dir.join(version);
    let mut command = Command::new("release/deb.sh");
    command
        .env("DIST", dist)
        .env("GUEST", guest())
        .env("OUT", &out)
        .env("DEB_VERSION", version)
        // It takes seconds, and what is in them is the same.
        .env("DPKG_DEB_COMPRESSOR_TYPE", "gzip")
        .env("DPKG_DEB_COMPRESSOR_LEVEL", "1");
    script(&mut command);
    out
}

fn package(of: &Path, name: &str) -> PathBuf {
    let version = of.file_name().unwrap().to_str().unwrap();
    of.join(format!("{name}_{version}_amd64.deb"))
}

/// What runc is, and whether apt knows it, is not asked here: the tests have one.
fn dpkg(args: &[&str], packages: &[PathBuf]) -> String {
    script(&mut dpkg_command(args, packages))
}

fn dpkg_command(args: &[&str], packages: &[PathBuf]) -> Command {
    let sbin = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut command = Command::new("dpkg");
    command.env("PATH", sbin).env("LC_ALL", "C");
    // What others do after an installation, such as to index manual pages, takes longer than that.
    command.args(["--force-depends", "--force-confnew", "--no-triggers"]);
    command.args(args).args(packages);
    command
}

#[test]
fn lintian_is_content() {
    let Some(lintian) = peers::program("lintian") else {
        let needed = env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!needed, "CI needs lintian, and it is missing");
        return containerd::report("lintian is MISSING (run tests/setup.sh): test not run");
    };
    let dir = tempfile::tempdir().expect("a directory");
    let made = make(dir.path(), &dist(dir.path()), &crate::version::cargo());
    for name in PACKAGES {
        let mut command = Command::new(&lintian);
        command.args(["--allow-root", "--no-cfg", "--fail-on", "error,warning"]);
        let said = script(command.arg(package(&made, name)));
        assert_eq!(said, "", "{name}");
    }
}

#[test]
fn packages_come_and_go_under_containers() {
    let dir = tempfile::tempdir().expect("a directory");
    let dist = dist(dir.path());
    let version = crate::version::cargo();
    let old = make(dir.path(), &dist, &version);
    let new = make(dir.path(), &dist, &format!("{version}+1"));
    with_layer(|layer| {
        containerd::with("1.6", String::new(), |containerd| {
            come_and_go(containerd, &old, &new);
        });
        all_come_and_go(layer, &old);
    });
}

fn leads_to() -> PathBuf {
    fs::canonicalize(PLACE).expect("a shim")
}

fn come_and_go(containerd: &mut Containerd, old: &Path, new: &Path) {
    // Its shim is where it is on this machine; containerd remembers that path.
    fleet::find_shim_at(containerd, PLACE, PLACE);
    let theirs = digest(Path::new(PLACE));
    let before = containerd.run_service(&[], "before");
    let shim = |of: &Path| [package(of, "containerd-shim-dunnage")];
    dpkg(&["--install"], &shim(old));
    assert_eq!(leads_to(), Path::new(OWN));
    let fleet = Fleet::start(containerd);
    for _ in 0..ROUNDS {
        for version in [new, old] {
            fleet.is_named_in(&dpkg(&["--install"], &shim(version)));
            fleet.runs(containerd, Path::new(OWN));
        }
    }
    switched(&theirs, &shim(old));
    dpkg(&["--purge"], &["containerd-shim-dunnage".into()]);
    assert!(!Path::new(OWN).exists());
    assert_eq!(digest(Path::new(PLACE)), theirs);
    // Without the program, its containers are as they were, and others have containerd's shim.
    let after = containerd.run_service(&[], "after");
    assert_eq!(program_of(containerd.shim_of(&after)), theirs);
    // It looks for a shim where that was when the container was made.
    containerd.kill();
    containerd.restart();
    fleet.is_there(containerd);
    containerd
        .exec("c0", "e", &["sh", "-c", "echo here; exit 3"])
        .exits(3)
        .prints("here\n");
    fleet.ends(containerd, &[&before, &after]);
}

/// An administrator can have containerd's own shim without removing anything, and an upgrade leaves
/// it at that.
fn switched(theirs: &[u8], again: &[PathBuf]) {
    let select = |words: &[&str]| script(Command::new("/usr/sbin/dunnage-select").args(words));
    assert_eq!(select(&[]), "dunnage\n");
    select(&["containerd"]);
    assert_eq!(digest(Path::new(PLACE)), theirs);
    dpkg(&["--install"], again);
    assert_eq!(select(&[]), "containerd\n");
    for _ in 0..2 {
        select(&["dunnage"]);
        assert_eq!(leads_to(), Path::new(OWN));
    }
}

/// All three packages work when they are there, and leave nothing when they have gone.
fn all_come_and_go(layer: &Layer, old: &Path) {
    dpkg(&["--install"], &PACKAGES.map(|name| package(old, name)));
    let version = crate::version::cargo();
    for program in ["dunnage", "dunnage-image", "containerd-shim-vm-v2"] {
        let said = script(Command::new(Path::new("/usr/bin").join(program)).arg("--version"));
        assert!(said.contains(&version), "{program}: {said}");
    }
    // The configuration that came with it is one.
    script(Command::new("/usr/bin/dunnage").arg("check"));
    assert!(Path::new("/usr/lib/dunnage/guest/distro/initrd").exists());
    let verified = dpkg(&["--verify"], &PACKAGES.map(PathBuf::from));
    assert_eq!(verified, "", "files are not those of the packages");
    fleet::while_a_vm_runs(Path::new("/usr/bin/containerd-shim-vm-v2"), || {
        let mut command = dpkg_command(&["--remove"], &["containerd-shim-vm".into()]);
        command.output().expect("dpkg")
    });
    dpkg(&["--purge"], &PACKAGES.map(PathBuf::from));
    let left = layer.named(&["dunnage", "containerd-shim-vm", ".containerd"]);
    assert_eq!(left, Vec::<String>::new());
    let diverted = script(Command::new("dpkg-divert").args(["--list", PLACE]));
    assert_eq!(diverted, "");
}
