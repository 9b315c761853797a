// SPDX-License-Identifier: Apache-2.0
//! A VM that is saved with its container, and goes on in another shim (`checkpoints = true`; T21, T73): what
//! the container had in its memory it has, what does not fit is named, and nothing stays of what failed.

mod life;
mod refused;
mod unfit;

use crate::network::{Namespace, namespaces, pair};
use crate::templates::qemu_can;
use crate::{jail, said};
use harness::bundle::{Builder, Bundle};
use harness::containerd::{Containerd, on};
use harness::stdio::{Fifos, Reader, Stdio};
use harness::{Shim, Test, peers, program, refused};
use protos::runc::CheckpointOptions;
use protos::task::{CheckpointTaskRequest, CreateTaskRequest};
use protos::task_types::Status as State;
use protos::types::Mount;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Counts the lines on its stdin: what it has counted is in its memory alone.
const COUNTER: &str = "i=0; while read line; do i=$((i+1)); echo $i >/count; \
                       echo $i $line $$; done; exit 7";

/// [`crate::run`], where QEMU saves machines that have files of the host's; with a configuration, and where
/// the image is to be.
fn run(body: impl AsyncFnOnce(&Test, &Path, &Path)) {
    crate::prepare();
    if qemu_can() {
        crate::run(async |test| body(test, &config(test, &[]), &test.dir().join("image")).await);
    }
}

fn config(test: &Test, more: &[(&str, String)]) -> PathBuf {
    let own = [
        ("checkpoints", "true".to_owned()),
        ("memory", "160".to_owned()),
    ];
    jail::config(test, "checkpoints.toml", &[&own, more].concat())
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

/// One with pipes of its own, with stdin or without, that is to run, or to go on from `image`: they are held.
async fn with_pipes(
    (shim, bundle): (&Shim, &Bundle),
    stdin: bool,
    image: Option<&Path>,
) -> (Fifos, Reader, Reader) {
    let fifos = Fifos::new(bundle.test.dir().join(format!("io-{}", bundle.id)));
    let (out, err) = fifos.readers();
    let create = match stdin {
        true => bundle.create().fifos(&fifos),
        false => bundle.create().output(&fifos),
    };
    let create = match image {
        Some(image) => restored(create, image),
        None => create,
    };
    shim.create(create).await.unwrap();
    (fifos, out, err)
}

/// It is saved into `image`, and ends.
async fn saved(shim: &Shim, id: &str, image: &Path) {
    shim.checkpoint(request(id, image, true)).await.unwrap();
    assert_eq!(shim.wait(id, "").await.unwrap().exit_status, 137);
    assert_eq!(shim.delete(id, "").await.unwrap().exit_status, 137);
}

/// The shim of a container that goes on as what is in `image`.
async fn goes_on(bundle: &Bundle, config: &Path, image: &Path) -> Shim {
    let shim = shim(bundle, config).await;
    let create = restored(bundle.create(), image);
    shim.create(create).await.unwrap();
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

/// A container of this script, whose root filesystem can be written to.
fn writable(test: &Test, id: &str, script: &str) -> Builder {
    let bundle = test.bundle(id).sh(script).rootfs(vec![overlay(test)]);
    bundle.set("/root/readonly", json!(false))
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
    run(async |test, config, image| {
        let build = |id: &str| writable(test, id, COUNTER).build();
        let bundle = build("c");
        let first = shim(&bundle, config).await;
        let (fifos, mut out, _err) = with_pipes((&first, &bundle), true, None).await;
        first.start("c", "").await.unwrap();
        let mut lines = fifos.stdin.writer().await;
        lines.write("before\n").await;
        let line = out.line().await;
        let pid = line.strip_prefix("1 before ").expect("so it says");
        saved(&first, "c", image).await;
        assert_eq!(test.events().exits("c", "c"), 1);
        assert!(first.log().is_empty(), "{}", first.log());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(image), mode(&image.join("state"))), (0o700, 0o600));

        let bundle = build("again");
        let second = shim(&bundle, config).await;
        let (fifos, mut out, _err) = with_pipes((&second, &bundle), true, Some(image)).await;
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
    run(async |test, config, image| {
        let bundle = test.bundle("c").build();
        let first = running(&bundle, config).await;
        first.checkpoint(request("c", image, false)).await.unwrap();
        let no = refused(first.checkpoint(request("c", image, false)).await);
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
        for (id, image) in [("one", image), ("two", image), ("three", &paused)] {
            let bundle = test.bundle(id).build();
            let shim = shim(&bundle, config).await;
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

/// The network is that of where it goes on, and nothing of the one before.
#[test]
fn its_network_is_the_one_where_it_goes_on() {
    run(async |test, config, image| {
        let build = |id: &str, network: &Namespace| {
            let sysfs = json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"});
            let bundle = test.bundle(id).mount(sysfs);
            bundle.set("/linux/namespaces", namespaces(network)).build()
        };
        let (container, world) = pair(test);
        let bundle = build("c", &container);
        let first = running(&bundle, config).await;
        world.ping("10.9.0.2");
        saved(&first, "c", image).await;

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
        let shim = goes_on(&bundle, config, image).await;
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
    let script = "i=0; while :; do \
                  if [ -e /go ]; then i=$((i+1)); echo $i >/count; rm /go; fi; sleep 0.1; done";
    let runtime = ["--runtime", "io.containerd.vm.v2"];
    containerd.run_detached(&runtime, "web", &["sh", "-c", script]);
    // What it has counted is in its memory alone.
    let counts = |id: &str, exec: &str| {
        let script = "echo >/go; while [ -e /go ]; do usleep 20000; done; cat /count";
        containerd.exec(id, exec, &["sh", "-c", script]).ok().stdout
    };
    assert_eq!(counts("web", "a"), "1\n");
    assert_eq!(counts("web", "b"), "2\n");
    containerd.save_and_restore("web", "again");
    assert_eq!(counts("again", "a"), "3\n", "it has counted on");
}

#[test]
fn containerd_2_1_saves_and_restores() {
    crate::prepare();
    if qemu_can() {
        on("2.1", ctr_saves_and_restores);
    }
}
