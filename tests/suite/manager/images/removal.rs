// SPDX-License-Identifier: Apache-2.0
//! `image rm` and `prune`: what somebody uses stays. Loads that meet each other, or are killed.
#![allow(
    clippy::disallowed_methods,
    reason = "a test may wait for its own processes"
)]

use super::{kept, load, place};
use harness::containerd::ctr::Ctr;
use harness::image::{Image, Layer, archive};
use harness::manager::{self, Manager};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};

#[test]
fn what_a_container_uses_stays() {
    manager::on(|manager| {
        let sleeps = || json!({"Cmd": ["sleep", "1000"]});
        load(
            manager,
            "used",
            &[Layer::default().file("used", "x")],
            sleeps(),
        );
        load(
            manager,
            "idle",
            &[Layer::default().file("idle", "x")],
            sleeps(),
        );
        manager.dunnage(&["create", "--name", "c", "used"]).ok();
        let refused = manager.dunnage(&["image", "rm", "idle", "used"]).exits(125);
        assert!(
            refused.stderr.contains("used") && refused.stderr.contains("container c"),
            "{refused}"
        );
        // All or nothing.
        assert_eq!(manager.json(&["image", "ls"]).len(), 2);
        let pruned = manager.dunnage(&["image", "prune"]).ok().stdout;
        assert_eq!(pruned, "freed 0 B\n");
        let pruned = manager.dunnage(&["image", "prune", "--all"]).ok().stdout;
        assert!(
            pruned.contains("idle") && !pruned.contains("used"),
            "{pruned}"
        );
        assert_eq!(kept(manager).len(), 3, "{:?}", kept(manager));
        // Its name goes to another image; what it is made of stays for the container.
        load(manager, "used", &[], sleeps());
        let names: Vec<_> = manager
            .json(&["image", "ls"])
            .iter()
            .map(|it| it["name"].clone())
            .collect();
        assert_eq!(names, [json!("docker.io/library/used:latest"), json!(null)]);
        manager.dunnage(&["image", "prune", "--all"]).ok();
        manager.dunnage(&["start", "c"]).ok();
        manager.dunnage(&["exec", "c", "ls", "/used"]).ok();
        manager.dunnage(&["rm", "-f", "c"]).ok();
        manager.dunnage(&["image", "prune"]).ok();
        assert!(kept(manager).is_empty(), "{:?}", kept(manager));
    });
}

/// Each name, the whole image by its id, and the layers that no other has.
#[test]
fn names_go_one_by_one_and_layers_with_the_last_that_has_them() {
    manager::on(|manager| {
        let dir = place(manager, "layout").display().to_string();
        load(manager, "one", &[], json!({}));
        manager
            .dunnage(&["image", "load", "--name", "two", &dir])
            .ok();
        load(
            manager,
            "three",
            &[Layer::default().file("x", "x")],
            json!({}),
        );
        let rm = |name: &str| manager.dunnage(&["image", "rm", name]).ok().stdout;
        assert_eq!(rm("one"), "untagged docker.io/library/one:latest\n");
        manager.dunnage(&["run", "--rm", "two", "true"]).ok();
        let id = manager.json(&["image", "ls"])[1]["id"]
            .as_str()
            .expect("an id")
            .to_owned();
        assert_eq!(
            rm(&id),
            format!("untagged docker.io/library/two:latest\nremoved {id}\n")
        );
        manager.dunnage(&["run", "--rm", "three", "true"]).ok();
        manager.dunnage(&["image", "rm", "one"]).exits(125);
        rm("three");
        assert!(kept(manager).is_empty(), "{:?}", kept(manager));
    });
}

/// The record says what a container uses: without it nobody knows.
#[test]
fn nothing_is_removed_beside_a_record_that_cannot_be_read() {
    manager::on(|manager| {
        load(manager, "box", &[], json!({}));
        let record = manager
            .dir()
            .join("r/containers")
            .join(manager.namespace())
            .join("x.pb");
        fs::create_dir_all(record.parent().expect("one")).expect("a directory");
        fs::write(&record, "no record").expect("a file");
        for words in [&["image", "rm", "box"][..], &["image", "prune", "--all"]] {
            let refused = manager.dunnage(words).exits(125);
            assert!(refused.stderr.contains("x.pb"), "{refused}");
        }
        fs::remove_file(record).expect("a file");
        manager.dunnage(&["run", "--rm", "box", "true"]).ok();
    });
}

/// A load that reads its archive from us, and so goes no further than we want.
struct Slow {
    child: Child,
    rest: Vec<u8>,
}

impl Slow {
    /// It has begun to unpack: FILE is a FIFO, which is read to the end first, so what waits is a layer's
    /// blob, in a layout.
    fn begin(manager: &Manager, name: &str, image: &Image) -> Self {
        let dir = place(manager, name);
        image.layout(&dir, name);
        let tar = place(manager, &format!("{name}.tar"));
        archive(&dir, &tar);
        let mut rest = fs::read(&tar).expect("an archive");
        let mut command = manager.client(&["image", "load", "-"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("a load");
        let half = rest.split_off(rest.len() / 2);
        child
            .stdin
            .as_mut()
            .expect("piped")
            .write_all(&rest)
            .expect("half of it");
        Self { child, rest: half }
    }

    /// Its place has been made.
    fn place(&self, manager: &Manager) -> bool {
        kept(manager).contains(&format!("tmp/{}", self.child.id()))
    }

    fn go_on(mut self) -> harness::containerd::ctr::Output {
        let mut stdin = self.child.stdin.take().expect("piped");
        stdin.write_all(&self.rest).expect("the rest");
        drop(stdin);
        let output = self.child.wait_with_output().expect("its end");
        assert!(output.status.success(), "{output:?}");
        // As every other client's.
        Ctr::spawn(Command::new("true"), Stdio::null()).finish()
    }
}

#[test]
fn two_loads_at_once_do_not_disturb_each_other_nor_does_a_prune() {
    manager::on(|manager| {
        let layers = [Layer::of_rootfs(), Layer::default().file("shared", "x")];
        let image = |cmd: &str| Image::new(&layers, json!({"Cmd": [cmd]}));
        let first = Slow::begin(manager, "first", &image("true"));
        manager.until("its place", |it| first.place(it).then_some(()));
        let second = Slow::begin(manager, "second", &image("pwd"));
        manager.until("its place", |it| second.place(it).then_some(()));
        manager.dunnage(&["image", "prune", "--all"]).ok();
        second.go_on().ok();
        manager.dunnage(&["image", "prune"]).ok();
        first.go_on().ok();
        manager.dunnage(&["run", "--rm", "first"]).ok();
        manager
            .dunnage(&["run", "--rm", "second"])
            .ok()
            .prints("/\n");
        // Both layers once, and two configurations.
        assert_eq!(kept(manager).len(), 4, "{:?}", kept(manager));
        // Many at the same time, of the same.
        let dir = place(manager, "first").display().to_string();
        manager.dunnage(&["image", "rm", "first", "second"]).ok();
        let loads: Vec<Ctr> = (0..6)
            .map(|_| manager.spawn_dunnage(&["image", "load", &dir]))
            .collect();
        for load in loads {
            load.finish().ok();
        }
        assert_eq!(kept(manager).len(), 3, "{:?}", kept(manager));
        manager.dunnage(&["run", "--rm", "first"]).ok();
    });
}

#[test]
fn what_a_killed_load_left_goes_with_the_next() {
    manager::on(|manager| {
        let image = Image::new(&[Layer::of_rootfs()], json!({"Cmd": ["true"]}));
        let mut killed = Slow::begin(manager, "box", &image);
        manager.until("its place", |it| killed.place(it).then_some(()));
        killed.child.kill().expect("SIGKILL");
        killed.child.wait().expect("its end");
        assert!(killed.place(manager));
        manager.dunnage(&["image", "ls"]).ok();
        let dir = place(manager, "box").display().to_string();
        manager.dunnage(&["image", "load", &dir]).ok();
        assert!(!killed.place(manager));
        assert_eq!(kept(manager).len(), 2, "{:?}", kept(manager));
        manager.dunnage(&["run", "--rm", "box"]).ok();
    });
}

/// Killed at any of its renames: a layer is whole or not there, and the list names what is there.
#[test]
fn a_load_that_is_killed_at_any_step_is_resumed_or_undone() {
    manager::on(|manager| {
        let layers = [
            Layer::of_rootfs(),
            Layer::default().file("a", "x"),
            Layer::default().file("b", "x"),
        ];
        let image = Image::new(&layers, json!({"Cmd": ["ls", "a", "b"]}));
        let dir = place(manager, "box");
        image.layout(&dir, "box");
        let dir = dir.display().to_string();
        for at in 1.. {
            let mut strace = Command::new("strace");
            let when = format!("inject=rename,renameat,renameat2:signal=SIGKILL:when={at}");
            strace.args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=rename,renameat,renameat2",
                "-e",
                &when,
            ]);
            let client = manager.client(&["image", "load", &dir]);
            strace.arg(client.get_program()).args(client.get_args());
            strace
                .env_clear()
                .envs(client.get_envs().filter_map(|(k, v)| Some((k, v?))));
            let ended = Ctr::spawn(strace, Stdio::null()).finish();
            if ended.code == 0 {
                assert!(at > 6, "only {at} steps");
                break;
            }
            let list = manager.json(&["image", "ls"]);
            if !list.is_empty() {
                manager.dunnage(&["run", "--rm", "box"]).ok();
            }
            manager.dunnage(&["image", "prune", "--all"]).ok();
            assert!(kept(manager).is_empty(), "step {at}: {:?}", kept(manager));
        }
        manager
            .dunnage(&["run", "--rm", "box"])
            .ok()
            .prints("a\nb\n");
    });
}

/// On an overlay no other can be written.
#[test]
fn a_root_on_an_overlay_is_refused_with_what_to_do() {
    manager::on(|manager| {
        let dir = manager.dir().display().to_string();
        let script = format!(
            "cd {dir} && mkdir -p o/lower o/upper o/work o/root && \
             mount -t overlay overlay -o lowerdir={dir}/o/lower,upperdir={dir}/o/upper,workdir={dir}/o/work {dir}/o/root"
        );
        let mounted = Command::new("sh")
            .args(["-c", &script])
            .output()
            .expect("sh");
        assert!(mounted.status.success(), "{mounted:?}");
        let config = manager.dir().join("overlay.toml");
        fs::write(
            &config,
            format!("root = \"{dir}/o/root\"\nstate = \"{dir}/s\"\n"),
        )
        .expect("a file");
        let layout = place(manager, "layout");
        Image::new(&[Layer::of_rootfs()], json!({})).layout(&layout, "box");
        let config = config.display().to_string();
        let load = [
            "--config",
            &config,
            "image",
            "load",
            &layout.display().to_string(),
        ];
        let refused = manager.plain(&load).exits(125);
        assert!(
            refused.stderr.contains("overlay") && refused.stderr.contains("`root`"),
            "{refused}"
        );
        let unmounted = Command::new("umount").arg(format!("{dir}/o/root")).status();
        assert!(unmounted.expect("umount").success());
    });
}
