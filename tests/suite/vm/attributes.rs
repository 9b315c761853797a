// SPDX-License-Identifier: Apache-2.0
//! What files of the host's can have in a VM beside content and mode: lists of who may what, attributes,
//! and no name.

use crate::said;
use harness::bundle::{Bundle, process};
use harness::{Shim, Test};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

/// A container with the probe, which needs the host's libraries, and the directory `files` in /mnt.
fn bundle(test: &Test, files: &Path) -> Bundle {
    let bind = |source: &Path, to: &str, mode: &str| json!({"destination": to, "type": "bind", "source": source, "options": ["rbind", mode]});
    let tmp = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"});
    let bundle = test.bundle("c").mount(bind(files, "/mnt", "rw")).mount(tmp);
    let bundle = bundle.mount(bind(Path::new("/lib/x86_64-linux-gnu"), "/tmp/lib", "ro"));
    bundle
        .mount(bind(Path::new(PROBE), "/tmp/probe", "ro"))
        .build()
}

/// What `script` says when the user `uid` runs it, with every right over files if that is root.
async fn by(shim: &Shim, bundle: &Bundle, uid: u32, script: &str) -> String {
    let words = format!(
        "probe() {{ /tmp/lib/ld-linux-x86-64.so.2 --library-path /tmp/lib /tmp/probe $*; }}; {{ {script}; }} 2>&1"
    );
    let mut words = process(&bundle.test, &["sh", "-c", &words]);
    words["user"] = json!({"uid": uid, "gid": uid});
    let may = if uid == 0 {
        json!(["CAP_SYS_ADMIN", "CAP_FOWNER", "CAP_DAC_OVERRIDE"])
    } else {
        json!([])
    };
    for set in ["bounding", "effective", "permitted"] {
        words["capabilities"][set] = may.clone();
    }
    let exec = format!("as-{uid}-{}", script.len());
    said(shim, bundle, bundle.exec_spec(&exec, &words)).await
}

/// Lists of who may what (ACLs) do not count in a VM, whose kernel keeps none for the mounts of a share: one of the
/// host's lets nobody read that the mode keeps out, and a container is told that it can't set one.
#[test]
fn lists_of_who_may_read_are_not_there() {
    crate::run(async |test| {
        let files = test.dir().join("files");
        fs::create_dir(&files).unwrap();
        for name in ["hosts", "guests"] {
            fs::write(files.join(name), name).unwrap();
            let private = fs::Permissions::from_mode(0o600);
            fs::set_permissions(files.join(name), private).unwrap();
        }
        let hosts = files.join("hosts");
        let set = Command::new(PROBE)
            .arg("allow")
            .arg(&hosts)
            .arg("1234")
            .output();
        assert_eq!(
            String::from_utf8_lossy(&set.unwrap().stderr),
            "allow=done\n"
        );
        let bundle = bundle(test, &files);
        let shim = bundle.running().await;
        let set = by(&shim, &bundle, 0, "probe allow /mnt/guests 1234").await;
        assert_eq!(set, format!("allow={}\n", libc::EOPNOTSUPP));
        let mode = fs::metadata(files.join("guests")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600, "it is as it was");
        let told = by(&shim, &bundle, 1234, "cat /mnt/hosts").await;
        assert!(told.contains("Permission denied"), "{told}");
        let told = by(&shim, &bundle, 0, "cat /mnt/hosts /mnt/guests").await;
        assert_eq!(told, "hostsguests");
        shim.stop().await;
    });
}

/// A user's attributes are the host's; those of its administrators no container gets at, whatever it may in
/// its VM, and a file without a name there is not: programs then make one with a name.
#[test]
fn attributes_of_the_hosts_administrators_are_not_the_guests() {
    crate::run(async |test| {
        let files = test.dir().join("files");
        fs::create_dir(&files).unwrap();
        let bundle = bundle(test, &files);
        let shim = bundle.running().await;
        let told = by(&shim, &bundle, 0, "probe files /mnt").await;
        let (unsupported, not_permitted) = (libc::EOPNOTSUPP, libc::EPERM);
        let expected =
            format!("tmpfile={unsupported} user.mine=done trusted.mine={not_permitted}\n");
        assert_eq!(told, expected);
        // In memory of its own it has both, as on a host.
        let told = by(&shim, &bundle, 0, "mkdir /tmp/own; probe files /tmp/own").await;
        assert!(
            told.contains("tmpfile=done") && told.contains("trusted.mine=done"),
            "{told}"
        );
        shim.stop().await;
    });
}
