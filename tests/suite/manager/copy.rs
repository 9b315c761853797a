// SPDX-License-Identifier: Apache-2.0
//! `cp`: where files land is as docker has it, and no link leads out of a container.

use harness::manager::{self, Manager};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A container of its own root filesystem, which it may change.
fn up(manager: &Manager, id: &str) {
    let tmpfs = ["-d", "--tmpfs", "/root", "--tmpfs", "/tmp:mode=1777"];
    manager.run(&tmpfs, id, &["sleep", "1000"]).ok();
}

fn inside(manager: &Manager, script: &str) -> String {
    manager
        .dunnage(&["exec", "x", "sh", "-c", script])
        .ok()
        .stdout
}

/// A directory of the test's.
fn place(manager: &Manager, name: &str) -> PathBuf {
    let dir = manager.dir().join(name);
    fs::create_dir(&dir).expect("a directory");
    dir
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

#[test]
fn files_land_where_docker_has_them_land() {
    manager::on(|manager| {
        up(manager, "x");
        let host = place(manager, "host");
        let at = |name: &str| host.join(name).display().to_string();
        inside(
            manager,
            "mkdir -p /root/d/sub; echo one >/root/f; echo two >/root/d/sub/g; chmod 750 /root/d/sub; ln -s f /root/l; ln -s /root/d /root/dl",
        );
        let cp = |from: &str, to: &str| manager.dunnage(&["cp", from, to]);
        // To a name that is not there, over one that is, into a directory.
        for _ in 0..2 {
            cp("x:/root/f", &at("new")).ok();
            assert_eq!(text(&host.join("new")), "one\n");
        }
        cp("x:/root/f", &at("")).ok();
        assert_eq!(text(&host.join("f")), "one\n");
        cp("x:/root/f", &at("none/")).fails_with("no such directory");
        cp("x:/root/f", &at("none/f")).fails_with("no such directory");
        cp("x:/root/none", &at("y")).fails_with("/root/none");
        // A directory: as another, into one, and only what is in it.
        cp("x:/root/d", &at("e")).ok();
        assert_eq!(text(&host.join("e/sub/g")), "two\n");
        assert_eq!(
            host.join("e/sub")
                .metadata()
                .expect("sub")
                .permissions()
                .mode()
                & 0o777,
            0o750
        );
        cp("x:/root/d", &at("e")).ok();
        assert_eq!(text(&host.join("e/d/sub/g")), "two\n");
        cp("x:/root/d/.", &at("e")).ok();
        cp("x:/root/d", &at("f")).fails_with("no directory");
        // A link is one, unless it is followed.
        cp("x:/root/l", &at("")).ok();
        assert_eq!(
            fs::read_link(host.join("l")).expect("a link"),
            Path::new("f")
        );
        manager
            .dunnage(&["cp", "-L", "x:/root/l", &at("followed")])
            .ok();
        assert_eq!(text(&host.join("followed")), "one\n");

        // And the other way.
        fs::write(host.join("in"), "three\n").expect("a file");
        fs::set_permissions(host.join("in"), fs::Permissions::from_mode(0o4640)).expect("a mode");
        cp(&at("in"), "x:/root/new").ok();
        cp(&at("in"), "x:/root/d").ok();
        cp(&at("in"), "x:/root/l").ok();
        cp(&at("e"), "x:/root/e").ok();
        cp(&at("e"), "x:/root/dl").ok();
        cp(&at("in"), "x:/none/in").fails_with("no such directory");
        let said = inside(
            manager,
            "cat /root/new /root/d/in /root/f; stat -c '%a %u' /root/new; cat /root/e/sub/g /root/d/e/sub/g; readlink /root/l",
        );
        assert_eq!(said, "three\nthree\nthree\n640 0\ntwo\ntwo\nf\n");
        manager
            .dunnage(&["cp", "--archive", &at("in"), "x:/root/kept"])
            .ok();
        assert_eq!(inside(manager, "stat -c %a /root/kept"), "4640\n");
        for (from, to) in [
            (at("in"), at("y")),
            ("x:/a".into(), "x:/b".into()),
            ("-".into(), "-".into()),
        ] {
            cp(&from, &to).exits(1);
        }
        cp("nobody:/f", &at("y")).fails_with("nobody");
    });
}

#[test]
fn streams_are_tar() {
    manager::on(|manager| {
        up(manager, "x");
        inside(
            manager,
            "mkdir -p /root/d; echo one >/root/d/f; ln /root/d/f /root/d/same; ln -s f /root/d/l; mkfifo /root/d/p",
        );
        let tar = manager
            .client(&["cp", "x:/root/d", "-"])
            .output()
            .expect("cp");
        assert!(tar.status.success());
        let list = manager.dir().join("list.tar");
        fs::write(&list, &tar.stdout).expect("a file");
        let listed = std::process::Command::new("tar")
            .arg("-tf")
            .arg(&list)
            .output()
            .expect("tar");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert_eq!(listed, "d/\nd/f\nd/l\nd/p\nd/same\n");
        // Extracted where a name of the container is a link, and with hard links.
        inside(manager, "mkdir /root/real; ln -s real /root/link");
        let made = place(manager, "made");
        fs::create_dir_all(made.join("link")).expect("a directory");
        fs::write(made.join("link/a"), "two\n").expect("a file");
        fs::hard_link(made.join("link/a"), made.join("link/b")).expect("a link");
        let packed = std::process::Command::new("tar")
            .arg("-cf")
            .arg(&list)
            .arg("-C")
            .arg(&made)
            .arg(".")
            .status();
        assert!(packed.expect("tar").success());
        let mut command = manager.client(&["cp", "-", "x:/root"]);
        command.stdin(Stdio::from(fs::File::open(&list).expect("the tar")));
        assert!(command.status().expect("cp").success());
        let said = inside(
            manager,
            "cat /root/real/a; stat -c %h /root/real/b; readlink /root/link",
        );
        assert_eq!(said, "two\n2\nreal\n");
        let mut command = manager.client(&["cp", "-", "x:/root/d/f"]);
        command.stdin(Stdio::null());
        assert_eq!(command.status().expect("cp").code(), Some(1));
    });
}

/// Whoever makes links in a container must not read or write the host's files by them.
#[test]
fn no_link_leads_out_of_a_container() {
    manager::on(|manager| {
        up(manager, "x");
        let host = place(manager, "host");
        let secret = manager.dir().join("secret");
        fs::write(&secret, "host's\n").expect("a file");
        let outside = secret.display().to_string();
        let dir = manager.dir().display().to_string();
        inside(
            manager,
            &format!(
                "ln -s {outside} /root/l; ln -s /proc/1/root{outside} /root/m; ln -s {dir} /root/d; ln -s ../../../../../..{dir} /root/e"
            ),
        );
        let to = host.join("got").display().to_string();
        for path in [
            "x:/root/d/secret",
            "x:/root/e/secret",
            "x:/../../../../../secret",
            "x:/root/l/",
        ] {
            manager.dunnage(&["cp", path, &to]).exits(1);
            manager.dunnage(&["cp", "-L", path, &to]).exits(1);
        }
        for path in ["x:/root/l", "x:/root/m", "x:/proc/1/root/root/l"] {
            manager.dunnage(&["cp", "-L", path, &to]).exits(1);
        }
        assert!(!host.join("got").exists());
        // Written through a link it would be the host's; so it lands in the container, or nowhere.
        let own = host.join("own").display().to_string();
        fs::write(&own, "changed\n").expect("a file");
        for path in ["x:/root/l", "x:/root/m", "x:/root/d/secret", "x:/root/e/"] {
            manager.dunnage(&["cp", &own, path]).exits(1);
        }
        assert_eq!(text(&secret), "host's\n");
        // A stream of a container's that has a link and then goes through it.
        let evil = place(manager, "evil");
        symlink(&dir, evil.join("a")).expect("a link");
        let tar = manager.dir().join("evil.tar");
        let pack = |args: &[&str]| {
            let packed = std::process::Command::new("tar")
                .args(args)
                .current_dir(&evil)
                .status();
            assert!(packed.expect("tar").success());
        };
        let tar = tar.display().to_string();
        pack(&["-cf", &tar, "a"]);
        fs::remove_file(evil.join("a")).expect("the link");
        fs::create_dir(evil.join("a")).expect("a directory");
        fs::write(evil.join("a/secret"), "evil\n").expect("a file");
        pack(&["-rf", &tar, "a/secret"]);
        let mut command = manager.client(&["cp", "-", "x:/root"]);
        command.stdin(Stdio::from(fs::File::open(&tar).expect("the tar")));
        assert_eq!(command.status().expect("cp").code(), Some(1));
        assert_eq!(text(&secret), "host's\n");
        // Devices are nobody's files, and a setuid program is none on the host.
        inside(
            manager,
            "cp /bin/true /root/s 2>/dev/null || cp /bin/busybox /root/s; chmod 4755 /root/s",
        );
        manager.dunnage(&["cp", "x:/root/s", &to]).ok();
        let mode = host.join("got").metadata().expect("it").mode();
        assert_eq!(mode & 0o7777, 0o755);
        manager
            .dunnage(&["cp", "x:/dev/null", &format!("{to}2")])
            .exits(1)
            .fails_with("device");
    });
}

/// Of one that does not run: its root filesystem is there, but nothing that is mounted.
#[test]
fn a_container_at_rest_has_its_files() {
    manager::on(|manager| {
        up(manager, "x");
        manager.dunnage(&["stop", "-t", "0s", "x"]).ok();
        let to = manager.dir().join("passwd").display().to_string();
        manager.dunnage(&["cp", "x:/etc/passwd", &to]).ok();
        assert!(text(Path::new(&to)).contains("root:"));
        for path in ["x:/root/f", "x:/etc/../root"] {
            manager
                .dunnage(&["cp", path, &to])
                .exits(1)
                .fails_with("/root is a mount");
        }
    });
}
