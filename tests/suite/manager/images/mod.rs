// SPDX-License-Identifier: Apache-2.0
//! Images: what comes out of files, and what containers of them are.

mod guarded;
mod hostile;
mod layers;
mod pulled;
mod removal;
mod users;

use harness::image::{Image, Layer, archive};
use harness::manager::{self, Manager};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// A directory of the test's own for an image's files.
fn place(manager: &Manager, name: &str) -> PathBuf {
    manager.dir().join(name)
}

/// Loads an image of busybox, and what is to be above it.
fn load(manager: &Manager, name: &str, layers: &[Layer], config: serde_json::Value) {
    let all = [&[Layer::of_rootfs()][..], layers].concat();
    let dir = place(manager, "layout");
    let _ = fs::remove_dir_all(&dir);
    Image::new(&all, config).layout(&dir, name);
    let dir = dir.display().to_string();
    manager.dunnage(&["image", "load", &dir]).ok();
}

/// What is below the manager's images: everything that a failed program may leave.
fn kept(manager: &Manager) -> Vec<String> {
    let root = manager.dir().join("r/images");
    let names = |dir: &str| {
        let entries = fs::read_dir(root.join(dir)).into_iter().flatten();
        let name = |entry: fs::DirEntry| format!("{dir}/{}", entry.file_name().display());
        entries
            .map(move |entry| name(entry.expect("an entry")))
            .collect::<Vec<_>>()
    };
    ["layers", "configs", "tmp"]
        .into_iter()
        .flat_map(names)
        .collect()
}

fn roots(manager: &Manager) -> usize {
    fs::read_dir(manager.dir().join("r/roots")).map_or(0, Iterator::count)
}

/// In each of the three forms, and by whichever of its names.
#[test]
fn an_image_runs_out_of_every_kind_of_file() {
    manager::on(|manager| {
        let image = Image::new(
            &[Layer::of_rootfs()],
            json!({"Cmd": ["sh", "-c", "echo ran; exit 4"]}),
        );
        let dir = place(manager, "oci");
        image.layout(&dir, "first:1");
        let saved = place(manager, "saved");
        image.saved(&saved, "example.com:5000/a/second:2");
        let (oci, tar) = (place(manager, "oci.tar"), place(manager, "saved.tar"));
        archive(&dir, &oci);
        archive(&saved, &tar);
        let load = |file: &Path, words: &[&str], name: &str| {
            let file = file.display().to_string();
            let words = [&["image", "load"], words, &[&file]].concat();
            manager.dunnage(&words).ok().prints(&format!("{name}\n"));
        };
        load(&dir, &[], "docker.io/library/first:1");
        manager
            .dunnage(&["run", "--rm", "first:1"])
            .exits(4)
            .prints("ran\n");
        load(
            &oci,
            &["--name", "third"],
            "docker.io/library/first:1, docker.io/library/third:latest",
        );
        load(
            &tar,
            &[],
            "docker.io/library/first:1, docker.io/library/third:latest, example.com:5000/a/second:2",
        );
        for name in [
            "third",
            "docker.io/library/first:1",
            "example.com:5000/a/second:2",
        ] {
            manager
                .dunnage(&["run", "--rm", name])
                .exits(4)
                .prints("ran\n");
        }
        let all = manager.json(&["image", "ls"]);
        assert_eq!(all.len(), 3, "{all:?}");
        let id = all[0]["id"].as_str().expect("an id");
        assert!(all.iter().all(|one| one["id"] == id), "{all:?}");
        assert!(all[0]["size_bytes"].as_u64() > Some(1 << 20), "{all:?}");
        for id in [id, &id["sha256:".len()..][..12]] {
            manager.dunnage(&["run", "--rm", id]).exits(4);
        }
        // The same layer, once.
        assert_eq!(kept(manager).len(), 2, "{:?}", kept(manager));
        // Compressed as a whole, and through a pipe.
        let packed = format!("gzip -c {} | {} image load -", oci.display(), "\"$@\"");
        let mut client = manager.client(&[]);
        let words: Vec<_> = client.get_args().map(|it| it.to_owned()).collect();
        let program = client.get_program().to_owned();
        client = manager.client(&[]);
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &packed, "sh"]).arg(program).args(words);
        shell
            .env_clear()
            .envs(client.get_envs().filter_map(|(k, v)| Some((k, v?))));
        let piped =
            harness::containerd::ctr::Ctr::spawn(shell, std::process::Stdio::null()).finish();
        assert!(piped.ok().stdout.contains("first:1"));
    });
}

/// Entrypoint, command, environment, user, directory, stop signal, ports and volumes.
#[test]
fn a_container_is_as_its_image_says() {
    manager::on(|manager| {
        let users = Layer::default()
            .dir("etc", 0o755)
            .file(
                "etc/passwd",
                "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n",
            )
            .file("etc/group", "root:x:0:\nlog:x:7:other,web\nweb:x:34:\n")
            .dir("srv", 0o755);
        let config = json!({
            "Entrypoint": ["sh", "-c", "id; echo $A $B; pwd; echo \"$0 $*\""], "Cmd": ["cmd", "a"],
            "Env": ["A=image", "B=kept", "PATH=/bin"], "User": "web", "WorkingDir": "/srv/made",
            "StopSignal": "SIGUSR1", "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}},
            "Labels": {"io.dunnage.rm": "true", "containerd.io/restart.status": "running"},
        });
        load(manager, "web", &[users], config);
        let said = "uid=33(web) gid=34(web) groups=7(log)\nimage kept\n/srv/made\ncmd a\n";
        manager.dunnage(&["run", "--rm", "web"]).ok().prints(said);
        let options = [
            "run", "--rm", "-e", "A=mine", "-w", "/tmp", "--user", "root:log", "web", "x",
        ];
        manager
            .dunnage(&options)
            .ok()
            .prints("uid=0(root) gid=7(log)\nmine kept\n/tmp\nx \n");
        let options = ["run", "--rm", "--entrypoint", "echo", "web", "only", "me"];
        manager.dunnage(&options).ok().prints("only me\n");
        manager
            .dunnage(&["run", "--rm", "--entrypoint", "", "web", "pwd"])
            .ok()
            .prints("/srv/made\n");
        // Nothing of the image is the command.
        let none = manager
            .dunnage(&["run", "--entrypoint", "", "web"])
            .exits(125);
        assert!(
            none.stderr.contains("web") && none.stderr.contains("command"),
            "{none}"
        );

        let script = "trap 'exit 9' USR1; trap 'exit 8' TERM; while :; do sleep 0.1; done";
        let run = [
            "run",
            "-d",
            "--name",
            "c",
            "--entrypoint",
            "sh",
            "web",
            "-c",
            script,
        ];
        manager.dunnage(&run).ok().prints("c\n");
        let inspected = manager.dunnage(&["inspect", "c"]).ok().stdout;
        let inspected: serde_json::Value = serde_json::from_str(&inspected).expect("JSON");
        assert_eq!(inspected["image"]["exposed_ports"], json!(["80/tcp"]));
        assert_eq!(inspected["image"]["volumes"], json!(["/data"]));
        assert_eq!(inspected["image"]["name"], "docker.io/library/web:latest");
        // What an image calls itself orders nothing.
        let labels = inspected["labels"].as_object().expect("labels");
        assert!(!labels.contains_key("io.dunnage.rm"), "{labels:?}");
        assert!(
            !labels.contains_key("containerd.io/restart.status"),
            "{labels:?}"
        );
        manager
            .dunnage(&["exec", "c", "id", "-u"])
            .ok()
            .prints("33\n");
        manager
            .dunnage(&["exec", "--user", "root", "c", "id", "-u"])
            .ok()
            .prints("0\n");
        manager.dunnage(&["stop", "c"]).ok();
        manager.dunnage(&["wait", "c"]).ok().prints("9\n");
    });
}

/// `HEALTHCHECK` of a Dockerfile; the command line's is stronger.
#[test]
fn a_containers_health_is_checked_as_its_image_says() {
    manager::on(|manager| {
        let check =
            json!({"Test": ["CMD-SHELL", "test -e /well"], "Interval": 50_000_000, "Retries": 1});
        let config = json!({"Cmd": ["sleep", "1000"], "Healthcheck": check});
        load(manager, "box", &[], config);
        let becomes = |manager: &Manager, id: &str, health: &str| {
            manager.until(health, |it| {
                let rows = it.json(&["ls"]);
                rows.iter()
                    .any(|row| row["id"] == id && row["health"] == health)
                    .then_some(())
            });
        };
        manager.dunnage(&["run", "-d", "--name", "a", "box"]).ok();
        becomes(manager, "a", "unhealthy");
        manager.dunnage(&["exec", "a", "touch", "/well"]).ok();
        becomes(manager, "a", "healthy");
        let options = ["--health-cmd", "true", "--health-interval", "50ms"];
        let run = [&["run", "-d", "--name", "b"], &options[..], &["box"]].concat();
        manager.dunnage(&run).ok();
        becomes(manager, "b", "healthy");
        manager
            .dunnage(&["run", "-d", "--name", "c", "--no-healthcheck", "box"])
            .ok();
        let of = manager.json(&["inspect", "c"]);
        assert_eq!(of[0]["health"], serde_json::Value::Null);
    });
}

/// With what it has written, and its root goes with it at last.
#[test]
fn a_container_of_an_image_can_have_another_name() {
    manager::on(|manager| {
        load(manager, "box", &[], json!({"Cmd": ["sleep", "1000"]}));
        manager.dunnage(&["run", "-d", "--name", "old", "box"]).ok();
        manager
            .dunnage(&["exec", "old", "sh", "-c", "echo mine >/who"])
            .ok();
        manager.dunnage(&["stop", "-t", "0s", "old"]).ok();
        manager.dunnage(&["rename", "old", "new"]).ok();
        manager.renew();
        manager.dunnage(&["start", "new"]).ok();
        manager
            .dunnage(&["exec", "new", "cat", "/who"])
            .ok()
            .prints("mine\n");
        // The name is free, and has nothing of the other.
        manager.dunnage(&["run", "-d", "--name", "old", "box"]).ok();
        manager
            .dunnage(&["exec", "old", "test", "!", "-e", "/who"])
            .ok();
        assert_eq!(roots(manager), 2);
        manager.dunnage(&["rm", "-f", "new"]).ok();
        assert_eq!(roots(manager), 1);
    });
}

/// Two containers never share what they write. It outlives every restart, and goes with the container.
#[test]
fn what_a_container_writes_is_its_own_as_long_as_it_is_there() {
    manager::on(|manager| {
        load(manager, "box", &[], json!({"Cmd": ["sleep", "1000"]}));
        for id in ["a", "b"] {
            manager
                .dunnage(&["run", "-d", "--restart", "always", "--name", id, "box"])
                .ok();
            manager
                .dunnage(&[
                    "exec",
                    id,
                    "sh",
                    "-c",
                    &format!("echo {id} >/who; rm /etc/group"),
                ])
                .ok();
        }
        let of_both = || {
            for id in ["a", "b"] {
                let words = ["exec", id, "sh", "-c", "cat /who; test ! -e /etc/group"];
                manager.dunnage(&words).ok().prints(&format!("{id}\n"));
            }
        };
        of_both();
        manager.dunnage(&["stop", "-t", "0s", "a"]).ok();
        manager.dunnage(&["start", "a"]).ok();
        of_both();
        // By its policy: a new task of the same container.
        let pid = manager.pid_of("b");
        harness::wait::signal(pid, libc::SIGKILL).expect("SIGKILL");
        manager.until("restarted", |it| {
            (it.status("b") == "running" && it.pid_of("b") != pid).then_some(())
        });
        of_both();
        manager
            .dunnage(&[
                "run",
                "--rm",
                "box",
                "sh",
                "-c",
                "test ! -e /who && test -e /etc/group",
            ])
            .ok();
        assert_eq!(roots(manager), 2);
        manager.dunnage(&["rm", "-f", "a"]).ok();
        assert_eq!(roots(manager), 1);
    });
}

/// Also of the daemon.
#[test]
fn a_restart_of_the_daemon_leaves_roots_that_have_a_container_and_no_others() {
    manager::on(|manager| {
        load(manager, "box", &[], json!({"Cmd": ["sleep", "1000"]}));
        manager.dunnage(&["run", "-d", "--name", "a", "box"]).ok();
        manager.dunnage(&["exec", "a", "touch", "/kept"]).ok();
        manager.dunnage(&["create", "--name", "b", "box"]).ok();
        manager.kill();
        // As of a daemon that was killed between the record and what its container wrote.
        fs::create_dir_all(manager.dir().join("r/roots/0123/fs/x")).expect("a directory");
        manager.restart();
        assert_eq!(roots(manager), 2);
        manager.dunnage(&["exec", "a", "ls", "/kept"]).ok();
        manager.dunnage(&["stop", "-t", "0s", "a"]).ok();
        manager.renew();
        manager.dunnage(&["start", "a"]).ok();
        manager.dunnage(&["exec", "a", "ls", "/kept"]).ok();
    });
}

/// Each by a line that names it; nothing is made, and nothing is left.
#[test]
fn bad_input_is_named_and_leaves_nothing() {
    manager::on(|manager| {
        let dir = manager.dir().display().to_string();
        let empty = format!("{dir}/empty");
        fs::create_dir(&empty).expect("a directory");
        fs::write(format!("{dir}/text"), "no archive").expect("a file");
        load(manager, "box", &[], json!({}));
        let before = (kept(manager), manager.json(&["image", "ls"]));
        let rootfs = harness::peers::rootfs().display().to_string();
        for (words, named) in [
            (&["image", "load", "/no/such"][..], "/no/such"),
            (&["image", "load", &empty], &empty[..]),
            (&["image", "load", &format!("{dir}/text")], "text"),
            (&["image", "load", "--name", "A B", &empty], "A B"),
            (&["image", "rm", "nobody"], "nobody"),
            (&["image", "pull", "Not/A:Name:"], "Not/A:Name:"),
            (&["run", "--pull", "never", "nobody"], "nobody"),
            (&["run", "--pull", "sometimes", "box"], "sometimes"),
            (&["run", "--name", "a/b", "box", "true"], "a/b"),
            (&["run", "--user", "stranger", "box", "true"], "stranger"),
            (
                &["run", "--user", "root:strangers", "box", "true"],
                "strangers",
            ),
            (&["run", "box"], "box"),
            (
                &["run", "--rootfs", &rootfs, "--name", "x", "y", "true"],
                "--name",
            ),
            (
                &["run", "--rootfs", &rootfs, "--entrypoint", "x", "y", "true"],
                "--entrypoint",
            ),
        ] {
            let refused = manager.dunnage(words).exits(125);
            assert!(refused.stderr.contains(named), "{refused}");
            assert!(
                refused.stderr.lines().count() == 1 || refused.stderr.contains("--help"),
                "{refused}"
            );
        }
        assert_eq!((kept(manager), manager.json(&["image", "ls"])), before);
        assert!(manager.json(&["ls"]).is_empty());
        assert_eq!(roots(manager), 0);
        manager
            .dunnage(&["run", "--name", "no", "box", "/no/such"])
            .exits(127);
        assert_eq!(roots(manager), 0);
    });
}
