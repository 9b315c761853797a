// SPDX-License-Identifier: Apache-2.0
//! `make install` and `make uninstall` on a machine whose containerd remembers what it found.

use crate::fleet::{self, digest, program_of};
use crate::machine::with_layer;
use crate::{dist, guest, script};
use harness::containerd::{self, Containerd, SHIM};
use harness::{peers, program};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

const PLACE: &str = "/usr/local/bin/containerd-shim-runc-v2";
const THEIRS: &str = "/usr/bin/containerd-shim-runc-v2";

fn make(target: &str, dist: &Path) -> Command {
    let mut command = Command::new("make");
    let variable = |name: &str, value: &Path| format!("{name}={}", value.display());
    command
        .current_dir(peers::workspace())
        .args(["--silent", "--no-print-directory", target, "DESTDIR="])
        .arg("PREFIX=/usr/local")
        .arg(variable("GUEST", &guest()))
        .arg(variable("DIST", &dist.join(SHIM)))
        .arg(variable("VM_DIST", &dist.join("containerd-shim-vm-v2")))
        .arg(variable("MANAGER", &dist.join("dunnage")))
        .arg(variable("IMAGE", &dist.join("dunnage-image")));
    command
}

#[test]
fn what_containerd_remembers_leads_to_its_own_shim() {
    let dir = tempfile::tempdir().expect("a directory");
    let dist = dist(dir.path());
    with_layer(|layer| {
        containerd::with("1.6", String::new(), |containerd| {
            come_and_go(containerd, &dist);
        });
        fs::remove_file(PLACE).expect("the link");
        let left = layer.named(&["dunnage", "containerd-shim-vm", SHIM]);
        let ours = |path: &&String| !path.starts_with("/etc/dunnage") && *path != THEIRS;
        // The place of what was there is a directory that make had to make.
        assert_eq!(
            left.iter().find(ours),
            Some(&"/usr/local/share/dunnage".to_owned())
        );
    });
}

fn come_and_go(containerd: &mut Containerd, dist: &Path) {
    if !Path::new(THEIRS).exists() {
        program::copy(&containerd.release.go_shim(), Path::new(THEIRS));
    }
    // containerd's own says so by its directory; here it has one.
    fs::create_dir_all("/run/containerd").expect("a directory");
    let theirs = digest(Path::new(THEIRS));
    let link = containerd.dir().join("bin").join(SHIM);
    fs::remove_file(&link).expect("the shim");
    symlink(PLACE, link).expect("a link");
    script(&mut make("install", dist));
    let task = containerd.run_service(&[], "c");
    let shim = containerd.shim_of(&task);
    assert_eq!(program_of(shim), digest(&dist.join(SHIM)));
    fleet::while_a_vm_runs(Path::new("/usr/local/bin/containerd-shim-vm-v2"), || {
        uninstall(dist)
    });
    let said = uninstall(dist);
    assert!(said.status.success(), "{said:?}");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("it can be removed when"), "{said}");
    assert_eq!(fs::read_link(PLACE).expect("a link"), Path::new(THEIRS));
    let after = containerd.run_service(&[], "after");
    assert_eq!(program_of(containerd.shim_of(&after)), theirs);
    containerd.kill();
    containerd.restart();
    assert_eq!(containerd.task("c").as_ref(), Some(&task));
    assert_eq!(containerd.shim_of(&task), shim);
    let events = containerd.events();
    for id in ["c", "after"] {
        containerd.kill_task("SIGTERM", id);
        events.until_seen(&format!("exit {id} 6"));
    }
}

fn uninstall(dist: &Path) -> Output {
    make("uninstall", dist).output().expect("make")
}
