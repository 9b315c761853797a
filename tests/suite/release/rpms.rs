// SPDX-License-Identifier: Apache-2.0
//! RPM packages of the suite, installed, upgraded, rolled back and removed with rpm, beside
//! containerd's own shim and under containers that run.

use crate::fleet::{self, Fleet, ROUNDS, digest, program_of};
use crate::machine::{Layer, with_layer};
use crate::{dist, guest, script};
use harness::containerd::{self, Containerd};
use harness::peers;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGES: [&str; 3] = ["dunnage", "containerd-shim-dunnage", "containerd-shim-vm"];
const OWN: &str = "/usr/lib/dunnage/bin/containerd-shim-runc-v2";
/// Where the link is, and where containerd's package has its own.
const PLACE: &str = "/usr/local/bin/containerd-shim-runc-v2";
const THEIRS: &str = "/usr/bin/containerd-shim-runc-v2";

/// False, and said so, where there is no rpm; in CI there must be.
fn there_is_rpm() -> bool {
    let there = peers::program("rpmbuild").is_some() && peers::program("rpm").is_some();
    if !there {
        let needed = env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!needed, "CI needs rpm, and it is missing");
        containerd::report("rpm is MISSING (run tests/setup.sh): test not run");
    }
    there
}

/// The packages, called version `version`, in `dir`/`out`.
fn make(dir: &Path, dist: &Path, version: &str, out: &str, umask: &str) -> PathBuf {
    let out = dir.join(out);
    let mut command = Command::new("bash");
    command
        .args(["-c", "umask $0 && exec release/rpm.sh", umask])
        .env("DIST", dist)
        .env("GUEST", guest())
        .env("OUT", &out)
        .env("RPM_VERSION", version)
        // It takes seconds, and what is in them is the same.
        .env("RPM_PAYLOAD", "w1.gzdio");
    script(&mut command);
    out
}

fn package(of: &Path, name: &str) -> PathBuf {
    let starts = format!("{name}-0");
    let mut files = fs::read_dir(of).expect("packages").flatten();
    let found = files.find(|it| it.file_name().to_string_lossy().starts_with(&starts));
    found.unwrap_or_else(|| panic!("no {name}")).path()
}

/// rpm on this machine, whose own packages it does not know.
fn rpm(args: &[&str], packages: &[PathBuf]) -> String {
    script(&mut command(args, packages))
}

fn command(args: &[&str], packages: &[PathBuf]) -> Command {
    let mut command = Command::new("rpm");
    command
        .env("LC_ALL", "C")
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .args(["--dbpath", "/var/lib/rpm"]);
    command.args(args).args(packages);
    command
}

/// Nothing of others is asked for. Debian 12's has to be told that this is meant, and Debian 13's does
/// not know the word.
fn change(what: &[&str], packages: &[PathBuf]) -> Command {
    let words = ["--force-debian", "--version"];
    let asked = Command::new("rpm").args(words).output().expect("rpm");
    let meant: &[&str] = if asked.status.success() {
        &words[..1]
    } else {
        &[]
    };
    command(&[what, &["--nodeps"], meant].concat(), packages)
}

fn install(packages: &[PathBuf]) -> String {
    script(&mut change(&["--upgrade", "--oldpackage"], packages))
}

fn erase(names: &[&str]) -> String {
    let names: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    script(&mut change(&["--erase"], &names))
}

#[test]
fn the_same_programs_make_the_same_packages() {
    if !there_is_rpm() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let dist = dist(dir.path());
    let version = crate::version::cargo();
    let one = make(dir.path(), &dist, &version, "one", "022");
    let two = make(dir.path(), &dist, &version, "two", "077");
    for name in PACKAGES {
        let [first, second] =
            [&one, &two].map(|it| fs::read(package(it, name)).expect("a package"));
        assert!(first == second, "{name} differs");
        holds_what_is_ours(&package(&one, name));
    }
}

/// Nothing of it is where another package may have a file of that name.
fn holds_what_is_ours(package: &Path) {
    let query = |words: &[&str]| {
        rpm(
            &[&["--query", "--package"], words].concat(),
            &[package.into()],
        )
    };
    let files = query(&["--list"]);
    assert!(
        !files.lines().any(|it| it == THEIRS || it == PLACE),
        "{files}"
    );
    let foreign = |path: &&str| {
        let words = ["dunnage", "containerd-shim-"];
        !words.iter().any(|word| path.contains(word))
    };
    assert_eq!(files.lines().find(foreign), None);
    let owners = query(&["--queryformat", "[%{FILEUSERNAME}:%{FILEGROUPNAME}\n]"]);
    assert!(owners.lines().all(|it| it == "root:root"), "{owners}");
    let settings = query(&["--configfiles"]);
    let in_etc: Vec<&str> = files
        .lines()
        .filter(|it| it.starts_with("/etc/dunnage/") && !it.ends_with(".d"))
        .collect();
    assert_eq!(settings.lines().collect::<Vec<_>>(), in_etc);
    // A script that fails half way would leave a machine between two versions.
    let scripts = query(&["--scripts"]);
    for line in scripts.lines().filter(|it| it.contains("scriptlet")) {
        assert!(line.ends_with("(using /bin/sh):"), "{line}");
    }
}

#[test]
fn packages_come_and_go_under_containers() {
    if !there_is_rpm() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let dist = dist(dir.path());
    let version = crate::version::cargo();
    let old = make(dir.path(), &dist, &version, "old", "022");
    let new = make(dir.path(), &dist, &format!("{version}+1"), "new", "022");
    with_layer(|layer| {
        containerd::with("1.6", String::new(), |containerd| {
            come_and_go(containerd, &old, &new);
        });
        all_come_and_go(layer, &old);
    });
}

fn come_and_go(containerd: &mut Containerd, old: &Path, new: &Path) {
    // Its PATH is that of a service: the link is before containerd's own.
    fleet::find_shim_at(containerd, PLACE, THEIRS);
    let theirs = digest(Path::new(THEIRS));
    let before = containerd.run_service(&[], "before");
    assert_eq!(program_of(containerd.shim_of(&before)), theirs);
    let shim = |of: &Path| [package(of, "containerd-shim-dunnage")];
    let said = install(&shim(old));
    assert!(said.contains("restart containerd"), "{said}");
    containerd.kill();
    containerd.restart();
    let fleet = Fleet::start(containerd);
    for _ in 0..ROUNDS {
        for version in [new, old] {
            fleet.is_named_in(&install(&shim(version)));
            fleet.runs(containerd, Path::new(OWN));
        }
    }
    switched(&shim(old));
    erase(&["containerd-shim-dunnage"]);
    assert!(!Path::new(OWN).exists());
    // containerd remembers the link, which leads to its own.
    assert_eq!(digest(Path::new(PLACE)), theirs);
    assert_eq!(digest(Path::new(THEIRS)), theirs);
    let after = containerd.run_service(&[], "after");
    assert_eq!(program_of(containerd.shim_of(&after)), theirs);
    containerd.kill();
    containerd.restart();
    fleet.is_there(containerd);
    containerd
        .exec("c0", "e", &["sh", "-c", "echo here; exit 3"])
        .exits(3)
        .prints("here\n");
    fleet.ends(containerd, &[&before, &after]);
    fs::remove_file(PLACE).expect("the link");
}

/// An administrator can have containerd's own shim without removing anything, an upgrade leaves it at
/// that, and nobody's own file is replaced.
fn switched(again: &[PathBuf]) {
    let select = |words: &[&str]| script(Command::new("/usr/sbin/dunnage-select").args(words));
    assert_eq!(select(&[]), "dunnage\n");
    let said = select(&["containerd"]);
    assert!(said.contains("it can go when"), "{said}");
    assert_eq!(fs::read_link(PLACE).expect("a link"), Path::new(THEIRS));
    install_again(again);
    assert_eq!(select(&[]), "containerd\n");
    for _ in 0..2 {
        assert_eq!(select(&["dunnage"]), "");
        assert_eq!(fs::read_link(PLACE).expect("a link"), Path::new(OWN));
    }
    fs::rename(PLACE, format!("{PLACE}.kept")).expect("the link");
    fs::write(PLACE, "somebody's own").expect("a file");
    let refused = Command::new("/usr/sbin/dunnage-select")
        .arg("dunnage")
        .output();
    assert!(!refused.expect("dunnage-select").status.success());
    assert_eq!(fs::read(PLACE).expect("a file"), b"somebody's own");
    fs::rename(format!("{PLACE}.kept"), PLACE).expect("the link");
}

fn install_again(packages: &[PathBuf]) {
    script(&mut change(&["--upgrade", "--replacepkgs"], packages));
}

/// All three packages work when they are there, and leave nothing when they have gone.
fn all_come_and_go(layer: &Layer, old: &Path) {
    install(&PACKAGES.map(|name| package(old, name)));
    let version = crate::version::cargo();
    for program in ["dunnage", "dunnage-image", "containerd-shim-vm-v2"] {
        let said = script(Command::new(Path::new("/usr/bin").join(program)).arg("--version"));
        assert!(said.contains(&version), "{program}: {said}");
    }
    // The configuration that came with it is one.
    script(Command::new("/usr/bin/dunnage").arg("check"));
    assert!(Path::new("/usr/lib/dunnage/guest/distro/initrd").exists());
    let verified = rpm(&["--verify", "--nodeps"], &PACKAGES.map(PathBuf::from));
    assert_eq!(verified, "", "files are not those of the packages");
    fleet::while_a_vm_runs(Path::new("/usr/bin/containerd-shim-vm-v2"), || {
        let mut command = change(&["--erase"], &["containerd-shim-vm".into()]);
        command.output().expect("rpm")
    });
    erase(&PACKAGES);
    let _ = fs::remove_file(PLACE);
    let left = layer.named(&["dunnage", "containerd-shim-vm"]);
    assert_eq!(left, Vec::<String>::new());
}
