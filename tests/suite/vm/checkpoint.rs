// SPDX-License-Identifier: Apache-2.0
//! A VM that is saved with its container, and goes on in another shim (`checkpoints = true`; T21, T73): what
//! the container had in its memory it has, what does not fit is named, and nothing stays of what failed.

use crate::network::{Namespace, namespaces, pair};
use crate::templates::qemu_can;
use crate::{jail, said};
use harness::bundle::Bundle;
use harness::containerd::{Containerd, on};
use harness::full_disk::FullDisk;
use harness::stdio::{Fifos, Stdio};
use harness::{Code, Shim, Test, peers, program, refused};
use protos::runc::CheckpointOptions;
use protos::task::{CheckpointTaskRequest, CreateTaskRequest};
use protos::task_types::Status as State;
use protos::types::Mount;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Counts the lines on its stdin: what it has counted is in its memory alone.
const COUNTER: &str = "i=0; while read line; do i=$((i+1)); echo $i >/count; \
                       echo $i $line $$; done; exit 7";

fn config(test: &Test) -> PathBuf {
    let lines = [
        ("checkpoints", "true".to_owned()),
        ("memory", "160".to_owned()),
    ];
    jail::config(test, "checkpoints.toml", &lines)
}

async fn shim(bundle: &Bundle, config: &Path) -> Shim {
    let start = bundle.start();
    let start = start.env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
    start.shim().await
}

async fn running(bundle: &Bundle, config: &Path) -> Shim {
    let shim = shim(bundle, config).await;
    shim.create(bundle.create()).await.unwrap();
    shim.start(&bundle.id, "").await.unwrap();
    shim
}

fn request(id: &str, image: &Path, exit: bool) -> CheckpointTaskRequest {
    let options = CheckpointOptions {
        exit,
        ..Default::default()
    };
    CheckpointTaskRequest {
        id: id.into(),
        path: image.to_string_lossy().into_owned(),
        options: Some(protos::any::pack(&options)),
    }
}

/// A Create that restores what is in `image`.
fn restored(request: CreateTaskRequest, image: &Path) -> CreateTaskRequest {
    CreateTaskRequest {
        checkpoint: image.to_string_lossy().into_owned(),
        ..request
    }
}

/// The tests' root filesystem, with a layer of its own that is written to.
fn overlay(test: &Test) -> Mount {
    for name in ["upper", "work"] {
        fs::create_dir_all(test.dir().join(name)).unwrap();
    }
    let at = |name: &str| test.dir().join(name).to_string_lossy().into_owned();
    Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            format!("lowerdir={}", peers::rootfs().display()),
            format!("upperdir={}", at("upper")),
            format!("workdir={}", at("work")),
        ],
        ..Default::default()
    }
}

/// T73, T21: saved with `exit`, the container ends; it goes on under another name in another shim, with
/// other pipes, its pid, its memory and its files as they were.
#[test]
fn a_container_goes_on_in_another_vm_where_it_was() {
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        let (config, image) = (config(test), test.dir().join("image"));
        let build = |id: &str| {
            let bundle = test.bundle(id).sh(COUNTER).rootfs(vec![overlay(test)]);
            bundle.set("/root/readonly", json!(false)).build()
        };
        let bundle = build("c");
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let first = shim(&bundle, &config).await;
        first.create(bundle.create().fifos(&fifos)).await.unwrap();
        first.start("c", "").await.unwrap();
        let mut lines = fifos.stdin.writer().await;
        lines.write("before\n").await;
        let line = out.line().await;
        let pid = line
            .strip_prefix("1 before ")
            .expect("so it says")
            .to_owned();
        first.checkpoint(request("c", &image, true)).await.unwrap();
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        first.delete("c", "").await.unwrap();
        assert!(first.log().is_empty(), "{}", first.log());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&image), mode(&image.join("state"))), (0o700, 0o600));

        let bundle = build("again");
        let fifos = Fifos::new(test.dir().join("io-again"));
        let (mut out, _err) = fifos.readers();
        let second = shim(&bundle, &config).await;
        let create = restored(bundle.create().fifos(&fifos), &image);
        second.create(create).await.unwrap();
        let state = second.state("again", "").await.unwrap();
        assert_eq!(state.status(), State::Created);
        refused(second.exec(bundle.exec_sh("early", "true")).await);
        second.start("again", "").await.unwrap();
        let state = second.state("again", "").await.unwrap();
        assert_eq!(state.status(), State::Running);
        let mut lines = fifos.stdin.writer().await;
        lines.write("after\n").await;
        assert_eq!(
            out.line().await,
            format!("2 after {pid}"),
            "it has counted on"
        );
        assert_eq!(fs::read(test.dir().join("upper/count")).unwrap(), b"2\n");

        // It is a container like any other.
        second.run(bundle.exec_sh("e", "exit 3")).await;
        assert_eq!(second.wait("again", "e").await.unwrap().exit_status, 3);
        second.delete("again", "e").await.unwrap();
        second.pause("again").await.unwrap();
        second.resume("again").await.unwrap();
        second.stats("again").await.unwrap();
        assert!(second.log().is_empty(), "{}", second.log());
        drop(lines);
        second.close_io("again", "").await.unwrap();
        assert_eq!(test.events().exit("again", "again").await.exit_status, 7);
        assert_eq!(second.delete("again", "").await.unwrap().exit_status, 7);
    });
}

/// T73: without `exit` it runs on, and may be saved again; two that go on as one have nothing at random in
/// common, and one that was not started can be deleted.
#[test]
fn it_runs_on_and_what_goes_on_has_randomness_of_its_own() {
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        let config = config(test);
        let bundle = test.bundle("c").build();
        let first = running(&bundle, &config).await;
        first.run(bundle.exec_sh("e", "sleep 100000")).await;
        let image = test.dir().join("image");
        let no = refused(first.checkpoint(request("c", &image, false)).await);
        assert!(no.message.contains("exec \"e\" runs"), "{no}");
        first.kill("c", "e", 9, false).await.unwrap();
        first.wait("c", "e").await.unwrap();
        first.delete("c", "e").await.unwrap();
        first.checkpoint(request("c", &image, false)).await.unwrap();
        let no = refused(first.checkpoint(request("c", &image, false)).await);
        assert!(no.message.contains("state: File exists"), "{no}");
        first.pause("c").await.unwrap();
        let paused = test.dir().join("paused");
        first
            .checkpoint(request("c", &paused, false))
            .await
            .unwrap();
        assert_eq!(first.state("c", "").await.unwrap().status(), State::Paused);
        first.resume("c").await.unwrap();
        let random = "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1";
        let mut seen = vec![said(&first, &bundle, bundle.exec_sh("r", random)).await];
        first.stopped().await;
        for (id, image) in [("one", &image), ("two", &image), ("three", &paused)] {
            let bundle = test.bundle(id).build();
            let shim = shim(&bundle, &config).await;
            shim.create(restored(bundle.create(), image)).await.unwrap();
            if id == "two" {
                shim.delete(id, "").await.unwrap();
                continue;
            }
            shim.start(id, "").await.unwrap();
            seen.push(said(&shim, &bundle, bundle.exec_sh("r", random)).await);
            shim.stopped().await;
        }
        let all: Vec<&str> = seen.iter().flat_map(|text| text.lines()).collect();
        assert_eq!(all.len(), 6, "{all:?}");
        for (n, line) in all.iter().enumerate() {
            assert!(!all[..n].contains(line), "{all:?}");
        }
    });
}

/// What is no checkpoint, or not of this machine, is named in the error and in one line of the log, and
/// there is no VM: neither one that boots instead, nor a wrong one.
#[test]
fn what_does_not_fit_is_named_and_leaves_nothing() {
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        let (config, image) = (config(test), test.dir().join("image"));
        let bundle = test.bundle("c").build();
        let first = running(&bundle, &config).await;
        first.checkpoint(request("c", &image, true)).await.unwrap();
        first.wait("c", "").await.unwrap();
        first.delete("c", "").await.unwrap();
        let file = |name: &str| image.join(name);
        let was = fs::read(file("manifest.json")).unwrap();
        let manifest = |change: &dyn Fn(&mut Value)| {
            let mut json = serde_json::from_slice(&was).unwrap();
            change(&mut json);
            fs::write(file("manifest.json"), json.to_string()).unwrap();
        };
        let machine = |field: &'static str, value: Value| {
            manifest(&|json| json["machine"][field] = value.clone());
        };
        let state = || File::options().write(true).open(file("state")).unwrap();
        let bad: [(&str, &dyn Fn(), &str); 11] = [
            (
                "format",
                &|| manifest(&|json| json["format"] = json!(99)),
                "format 99, and here is 1",
            ),
            (
                "qemu",
                &|| machine("qemu", json!("9.9.9")),
                "QEMU: it is of \"9.9.9\"",
            ),
            (
                "kernel",
                &|| machine("kernel", json!("0")),
                "kernel: it is of \"0\"",
            ),
            (
                "processor",
                &|| machine("processor", json!("x")),
                "processor: it is of \"x\"",
            ),
            (
                "vcpus",
                &|| machine("vcpus", json!(7)),
                "vcpus: it is of \"7\"",
            ),
            (
                "networks",
                &|| machine("networks", json!(1)),
                "network devices: it is of 1",
            ),
            (
                "mounts",
                &|| manifest(&|json| json["container"]["shown"] = json!([8])),
                "mounts: ",
            ),
            (
                "noise",
                &|| fs::write(file("manifest.json"), "{").unwrap(),
                "manifest.json: EOF",
            ),
            (
                "half",
                &|| fs::remove_file(file("manifest.json")).unwrap(),
                "No such file",
            ),
            (
                "changed",
                &|| state().write_all_at(b"x", 4096).unwrap(),
                "not what was written",
            ),
            (
                "cut",
                &|| state().set_len(1 << 20).unwrap(),
                "it is cut: 1048576 bytes of ",
            ),
        ];
        for (id, spoil, why) in bad {
            fs::write(file("manifest.json"), &was).unwrap();
            spoil();
            let bundle = test.bundle(id).build();
            let shim = shim(&bundle, &config).await;
            let no = refused(shim.create(restored(bundle.create(), &image)).await);
            assert!(no.message.contains(why), "{id}: {no}");
            let log = shim.log();
            let told = log.matches("not restored from ").count();
            // As the log quotes it.
            let why = why.replace('"', "\\\"");
            assert!(told == 1 && log.contains(&why), "{id}: {log}");
            shim.stopped().await;
        }
    });
}

/// A file that the guest knew is another, or gone: that is no guest to go on.
#[test]
fn a_file_that_is_not_what_it_was_is_named() {
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        let (config, image) = (config(test), test.dir().join("image"));
        let build = |id: &str| {
            let script = "echo 1 >/held; exec 5</held; echo held; \
                          trap 'exec 5</held; echo held again' USR2; while :; do sleep 0.1; done";
            let bundle = test.bundle(id).sh(script).rootfs(vec![overlay(test)]);
            bundle.set("/root/readonly", json!(false)).build()
        };
        let bundle = build("c");
        let first = shim(&bundle, &config).await;
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let create = bundle.create().output(&fifos);
        first.create(create).await.unwrap();
        first.start("c", "").await.unwrap();
        assert_eq!(out.line().await, "held");
        // A file without a name can't be found again.
        first
            .run(bundle.exec_sh("rm", "mv /held /away && rm /away && echo 1 >/held"))
            .await;
        first.wait("c", "rm").await.unwrap();
        let no = refused(first.checkpoint(request("c", &image, true)).await);
        assert!(
            no.message.contains("removed, and open in the guest"),
            "{no}"
        );
        assert!(!image.exists());
        first.kill("c", "", 12, false).await.unwrap();
        assert_eq!(out.line().await, "held again");
        first.checkpoint(request("c", &image, true)).await.unwrap();
        first.wait("c", "").await.unwrap();
        first.delete("c", "").await.unwrap();
        fs::write(test.dir().join("upper/held"), "another\n").unwrap();
        let bundle = build("other");
        let shim = shim(&bundle, &config).await;
        let fifos = Fifos::new(test.dir().join("io-other"));
        let _readers = fifos.readers();
        let create = restored(bundle.create().output(&fifos), &image);
        let no = refused(shim.create(create).await);
        assert!(no.message.contains("held\" is not what it was"), "{no}");
        fs::remove_file(test.dir().join("upper/held")).unwrap();
        let bundle = build("none");
        let fifos = Fifos::new(test.dir().join("io-none"));
        let _readers = fifos.readers();
        let create = restored(bundle.create().output(&fifos), &image);
        let no = refused(shim.create(create).await);
        assert!(no.message.contains("No such file"), "{no}");
        shim.stopped().await;
    });
}

/// No room: the reason is the disk's, nothing stays on it, and the container runs on.
#[test]
fn a_full_disk_is_named_and_the_container_runs_on() {
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        let config = config(test);
        let disk = FullDisk::half_full(test.dir().join("small"), 16 << 20);
        let bundle = test.bundle("c").build();
        let shim = running(&bundle, &config).await;
        let image = disk.path().join("image");
        let no = refused(shim.checkpoint(request("c", &image, true)).await);
        assert!(no.message.contains("No space left on device"), "{no}");
        assert!(shim.log().contains("c: no checkpoint: "), "{}", shim.log());
        assert!(!image.exists());
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Running);
        assert_eq!(
            said(&shim, &bundle, bundle.exec_sh("e", "echo on")).await,
            "on\n"
        );
        shim.stopped().await;
    });
}

/// The network is that of where it goes on, and nothing of the one before.
#[test]
fn its_network_is_the_one_where_it_goes_on() {
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        let (config, image) = (config(test), test.dir().join("image"));
        let build = |id: &str, network: &Namespace| {
            let sysfs = json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"});
            let bundle = test.bundle(id).mount(sysfs);
            bundle.set("/linux/namespaces", namespaces(network)).build()
        };
        let (container, world) = pair(test);
        let bundle = build("c", &container);
        let first = running(&bundle, &config).await;
        world.ping("10.9.0.2");
        first.checkpoint(request("c", &image, true)).await.unwrap();
        first.wait("c", "").await.unwrap();
        first.delete("c", "").await.unwrap();

        let (container, world) = (Namespace::new(test, "d"), Namespace::new(test, "v"));
        container.run(&format!(
            "ip link add eth0 address 02:00:00:00:00:77 type veth peer name w0 netns {}",
            world.0
        ));
        container.run("ip address add 10.7.0.2/24 dev eth0");
        container.run("ip link set eth0 up");
        world.run("ip address add 10.7.0.1/24 dev w0");
        world.run("ip link set w0 up");
        let bundle = build("again", &container);
        let shim = shim(&bundle, &config).await;
        shim.create(restored(bundle.create(), &image))
            .await
            .unwrap();
        shim.start("again", "").await.unwrap();
        world.ping("10.7.0.2");
        let script = "cat /sys/class/net/eth0/address; ip -4 address | grep -c 10.9; \
                      ip -4 route | sed 's/ *$//'";
        assert_eq!(
            said(&shim, &bundle, bundle.exec_sh("look", script)).await,
            "02:00:00:00:00:77\n0\n10.7.0.0/24 dev eth0 scope link  src 10.7.0.2\n"
        );
        shim.stopped().await;
    });
}

/// QEMU 7.2 saves no machine that has files of the host's.
#[test]
fn a_qemu_that_is_too_old_is_named() {
    crate::run(async |test| {
        if qemu_can() {
            return;
        }
        let config = config(test);
        let bundle = test.bundle("c").build();
        let shim = running(&bundle, &config).await;
        let image = test.dir().join("image");
        let no = refused(shim.checkpoint(request("c", &image, true)).await);
        assert!(no.message.contains(": QEMU 7.2"), "{no}");
        assert!(!image.exists());
        assert_eq!(
            said(&shim, &bundle, bundle.exec_sh("e", "echo on")).await,
            "on\n"
        );
        shim.stopped().await;
    });
}

/// Without the setting there is no monitor to ask.
#[test]
fn without_the_setting_it_is_named() {
    crate::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let no = refused(
            shim.checkpoint(request("c", &test.dir().join("i"), true))
                .await,
        );
        assert_eq!(no.code, Code::Unimplemented, "{no}");
        assert!(
            no.message.contains("without checkpoints = true in "),
            "{no}"
        );
        shim.stopped().await;
    });
}

/// `ctr containers checkpoint` and `restore`: the image of the task goes through containerd's store.
fn ctr_saves_and_restores(containerd: &mut Containerd) {
    let config = std::env::var("DUNNAGE_VM_CONFIG").expect("set");
    let ours = Path::new(&config).parent().expect("a file");
    let text = fs::read_to_string(&config).expect("the tests' configuration");
    let text = text.replace("\"../", &format!("\"{}/../", ours.display()));
    let own = containerd.dir().join("vm.toml");
    fs::write(&own, format!("{text}\ncheckpoints = true\nmemory = 128\n")).unwrap();
    let real = containerd.dir().join("real/containerd-shim-vm-v2");
    fs::create_dir_all(containerd.dir().join("real")).unwrap();
    program::copy(peers::shim(), &real);
    let shim = containerd.dir().join("bin/containerd-shim-vm-v2");
    let script = format!(
        "#!/bin/sh\nDUNNAGE_VM_CONFIG={} exec {} \"$@\"\n",
        own.display(),
        real.display()
    );
    fs::write(&shim, script).unwrap();
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    let script = "i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.1; done";
    let runtime = ["--runtime", "io.containerd.vm.v2"];
    containerd.run_detached(&runtime, "web", &["sh", "-c", script]);
    let image = "dunnage.test/checkpoint:1";
    let words = [
        "containers",
        "checkpoint",
        "--rw",
        "--image",
        "--task",
        "web",
        image,
    ];
    containerd.ctr(&words).ok();
    let counted = containerd.exec("web", "e", &["cat", "/count"]).ok().stdout;
    containerd.ctr(&["task", "delete", "--force", "web"]).ok();
    containerd.ctr(&["containers", "rm", "web"]).ok();
    containerd.note("again");
    let words = ["containers", "restore", "--rw", "--live", "again", image];
    containerd.spawn(&words).finish().ok();
    assert_eq!(containerd.status("again"), "RUNNING");
    let again = containerd
        .exec("again", "e", &["cat", "/count"])
        .ok()
        .stdout;
    let number = |text: &str| text.trim().parse::<u64>().expect("a number");
    assert!(number(&again) > 0 && number(&counted) > 0);
    let unpacked = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("ctrd-checkpoint")
    };
    let tmp = fs::read_dir(containerd.dir().join("tmp")).expect("tmp");
    for entry in tmp.map(|entry| entry.expect("tmp")).filter(unpacked) {
        fs::remove_dir_all(entry.path()).expect("containerd's leavings");
    }
}

#[test]
fn containerd_2_1_saves_and_restores() {
    crate::prepare();
    if qemu_can() {
        on("2.1", ctr_saves_and_restores);
    }
}
