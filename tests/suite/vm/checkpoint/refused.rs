// SPDX-License-Identifier: Apache-2.0
//! What is not saved is named: nothing of the image is left, the container runs on, and ends as it would have.

use super::{config, request, restored, run, running, saved, shim, writable};
use crate::network::{namespaces, pair};
use crate::sandbox::{self, Sandbox};
use crate::templates::qemu_can;
use crate::{said, sockets, swaps};
use harness::bundle::{Builder, Bundle};
use harness::full_disk::FullDisk;
use harness::{Code, Shim, Test, refused};
use protos::runc::CheckpointOptions;
use protos::task::CheckpointTaskRequest;
use protos::task_types::Status as State;
use serde_json::json;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Ends with 7 when it is told to.
const ENDS: &str = "trap 'exit 7' TERM; while :; do sleep 0.1; done";

/// No checkpoint, and `why`; the container runs on.
async fn refuses(shim: &Shim, bundle: &Bundle, request: CheckpointTaskRequest, why: &str) -> Code {
    let image = request.path.clone();
    let no = refused(shim.checkpoint(request).await);
    assert!(no.message.contains(why), "{no}");
    assert!(!Path::new(&image).exists(), "{why}");
    let id = &bundle.id;
    assert_eq!(shim.state(id, "").await.unwrap().status(), State::Running);
    shim.run(bundle.exec_sh("on", "exit 9")).await;
    assert_eq!(shim.wait(id, "on").await.unwrap().exit_status, 9, "{why}");
    shim.delete(id, "on").await.unwrap();
    no.code
}

/// It ends as it would have.
async fn ends(test: &Test, shim: &Shim, id: &str) {
    shim.kill(id, "", libc::SIGTERM, false).await.unwrap();
    assert_eq!(test.events().exit(id, id).await.exit_status, 7);
    assert_eq!(shim.delete(id, "").await.unwrap().exit_status, 7);
    assert_eq!(test.events().exits(id, id), 1);
}

/// The container of a VM that is never saved.
async fn is_refused(test: &Test, builder: Builder, config: &Path, image: &Path, why: &str) {
    let bundle = builder.build();
    let shim = running(&bundle, config).await;
    let id = &bundle.id;
    let code = refuses(&shim, &bundle, request(id, image, true), why).await;
    assert_eq!(code, Code::FailedPrecondition, "{why}");
    ends(test, &shim, id).await;
    shim.stopped().await;
}

/// An exec that runs, a checkpoint that builds on another, and a container that does not run; when all
/// that is over it is saved.
#[test]
fn what_it_is_at_is_in_the_way() {
    run(async |test, config, image| {
        let bundle = test.bundle("c").sh(ENDS).build();
        let shim = shim(&bundle, config).await;
        shim.create(bundle.create()).await.unwrap();
        refused(shim.checkpoint(request("c", image, true)).await);
        assert!(!image.exists(), "it is not started");
        shim.start("c", "").await.unwrap();
        let plain = || request("c", image, true);
        shim.run(bundle.exec_sh("e", "sleep 100000")).await;
        let why = "exec \"e\" runs";
        let code = refuses(&shim, &bundle, plain(), why).await;
        assert_eq!(code, Code::FailedPrecondition);
        shim.kill("c", "e", 9, false).await.unwrap();
        shim.wait("c", "e").await.unwrap();
        shim.delete("c", "e").await.unwrap();
        let options = CheckpointOptions {
            parent_path: "/before".into(),
            ..Default::default()
        };
        let child = CheckpointTaskRequest {
            options: Some(protos::any::pack(&options)),
            ..plain()
        };
        let code = refuses(&shim, &bundle, child, "parent_path \"/before\"").await;
        assert_eq!(code, Code::FailedPrecondition);
        // One that is not started yet is nobody's process.
        shim.exec(bundle.exec_sh("e", "exit 3")).await.unwrap();
        shim.checkpoint(request("c", image, false)).await.unwrap();
        fs::remove_dir_all(image).unwrap();
        shim.start("c", "e").await.unwrap();
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 3);
        shim.delete("c", "e").await.unwrap();
        shim.kill("c", "", libc::SIGTERM, false).await.unwrap();
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 7);
        refused(shim.checkpoint(plain()).await);
        assert!(!image.exists(), "it has ended");
        shim.delete("c", "").await.unwrap();
    });
}

/// Of several containers none is saved, and none goes on beside others; the last that is left is saved, and
/// goes on.
#[test]
fn a_vm_of_several_containers_is_not_saved() {
    run(async |test, config, image| {
        let group = |id: &str| {
            let bundle = test.bundle(id).sh(ENDS);
            bundle.annotation("io.containerd.runc.v2.group", "g")
        };
        let bundle = group("c").build();
        let first = running(&bundle, config).await;
        let second = group("second").build();
        second.start().answer().await;
        first.create(second.create()).await.unwrap();
        first.start("second", "").await.unwrap();
        let why = "several containers";
        for of in [&bundle, &second] {
            let code = refuses(&first, of, request(&of.id, image, true), why).await;
            assert_eq!(code, Code::FailedPrecondition);
        }
        ends(test, &first, "c").await;
        first
            .checkpoint(request("second", image, false))
            .await
            .unwrap();
        let third = group("third").build();
        third.start().answer().await;
        let no = refused(first.create(restored(third.create(), image)).await);
        assert!(no.message.contains("a VM of its own"), "{no}");
        let exec = second.exec_sh("still", "echo on");
        let told = said(&first, &second, exec).await;
        assert_eq!(told, "on\n");
        ends(test, &first, "second").await;
        first.stopped().await;

        let bundle = test.bundle("again").build();
        let shim = super::goes_on(&bundle, config, image).await;
        ends(test, &shim, "again").await;
    });
}

/// A pod of the Sandbox API's is not saved, and no container goes on in one.
#[test]
fn a_pod_is_not_saved() {
    run(async |test, config, image| {
        let alone = test.bundle("alone").sh(ENDS).build();
        let shim = running(&alone, config).await;
        saved(&shim, "alone", image).await;
        let config = config.to_string_lossy();
        let start = |start: harness::start::Start| start.env("DUNNAGE_VM_CONFIG", &config);
        let pod = Sandbox::with(test, "s", start).await;
        pod.create(&sandbox::pod()).await.unwrap();
        let pid = pod.start().await.unwrap();
        let again = pod.container("again", pid).build();
        let no = refused(pod.shim.create(restored(again.create(), image)).await);
        assert!(no.message.contains("in no pod"), "{no}");
        let bundle = pod.run(pod.container("c", pid).sh(ENDS)).await;
        let of_pod = request("c", &test.dir().join("of-pod"), true);
        let code = refuses(&pod.shim, &bundle, of_pod, "of a pod").await;
        assert_eq!(code, Code::FailedPrecondition);
        ends(test, &pod.shim, "c").await;
        pod.stop().await;
        pod.shut_down().await;
    });
}

#[test]
fn a_vm_of_two_network_devices_is_not_saved() {
    run(async |test, config, image| {
        let (container, world) = pair(test);
        let words = format!("ip link add eth1 type veth peer name w1 netns {}", world.0);
        container.run(&words);
        container.run("ip address add 10.8.0.2/24 dev eth1");
        container.run("ip link set eth1 up");
        let bundle = test.bundle("c").sh(ENDS);
        let bundle = bundle.set("/linux/namespaces", namespaces(&container));
        is_refused(test, bundle, config, image, "a VM with 2 network devices").await;
    });
}

/// Sockets of the host's, those that it connects to, and volumes that it swaps.
#[test]
fn what_the_host_has_a_hand_in_is_not_saved() {
    run(async |test, _, image| {
        let dir = test.dir().join("volume");
        fs::create_dir(&dir).unwrap();
        let (own, its) = (dir.join("host.sock"), dir.join("guest.sock"));
        let _listener = UnixListener::bind(&own).unwrap();
        let volume = || json!({"destination": "/mnt", "type": "bind", "source": dir, "options": ["rbind", "rw"]});
        let of_host = config(test, &[("sockets", format!("[{own:?}]"))]);
        let bundle = test.bundle("a").sh(ENDS).mount(volume());
        is_refused(test, bundle, &of_host, image, "sockets of the host's").await;

        let of_guest = config(test, &[("container_sockets", format!("[{its:?}]"))]);
        let bundle = sockets::container(test, "b", &[(&dir, "/home")]).sh(ENDS);
        let bundle = bundle.build();
        let shim = running(&bundle, &of_guest).await;
        let script = "$| = 1; socket(S, 1, 1, 0); bind(S, pack('Sa108', 1, $ARGV[0])) or die $!; \
                      listen(S, 1); print \"ready\\n\"";
        let words = [&sockets::PERL[..], &["-e", script, "/home/guest.sock"]].concat();
        let told = said(&shim, &bundle, bundle.exec("listen", &words)).await;
        assert_eq!(told, "ready\n");
        shim.delete("b", "listen").await.unwrap();
        let why = "a socket that the host connects to";
        refuses(&shim, &bundle, request("b", image, true), why).await;
        ends(test, &shim, "b").await;
        shim.stopped().await;

        let plain = config(test, &[]);
        let map = swaps::ConfigMap::new(test.dir().join("map"));
        let bundle = test.bundle("c").sh(ENDS).mount(swaps::volume(&map, "/mnt"));
        is_refused(test, bundle, &plain, image, "volumes that the host swaps").await;
    });
}

/// A file that is open is found again by its name: one that is no UTF-8 is told apart from one that was removed.
#[test]
fn a_file_whose_name_is_no_utf_8_is_named() {
    run(async |test, config, image| {
        let script = format!("exec 5>/$(printf '\\377'); {ENDS}");
        let bundle = writable(test, "c", &script).build();
        let shim = running(&bundle, config).await;
        let told = said(
            &shim,
            &bundle,
            bundle.exec_sh("look", "until ls / | grep -qv '[a-z]'; do :; done"),
        );
        told.await;
        shim.delete("c", "look").await.unwrap();
        let why = "1 files have names that are no UTF-8";
        refuses(&shim, &bundle, request("c", image, true), why).await;
        ends(test, &shim, "c").await;
    });
}

/// No room: the reason is the disk's, nothing stays on it, and the container runs on.
#[test]
fn a_full_disk_is_named_and_the_container_runs_on() {
    run(async |test, config, _| {
        let disk = FullDisk::half_full(test.dir().join("small"), 16 << 20);
        let bundle = test.bundle("c").sh(ENDS).build();
        let shim = running(&bundle, config).await;
        let request = request("c", &disk.path().join("image"), true);
        refuses(&shim, &bundle, request, "No space left on device").await;
        assert!(shim.log().contains("c: no checkpoint: "), "{}", shim.log());
        ends(test, &shim, "c").await;
    });
}

/// QEMU 7.2 saves no machine that has files of the host's.
#[test]
fn a_qemu_that_is_too_old_is_named() {
    crate::run(async |test| {
        if qemu_can() {
            return;
        }
        let bundle = test.bundle("c").sh(ENDS).build();
        let shim = running(&bundle, &config(test, &[])).await;
        let request = request("c", &test.dir().join("image"), true);
        refuses(&shim, &bundle, request, ": QEMU 7.2").await;
        ends(test, &shim, "c").await;
    });
}

/// Without the setting there is no monitor to ask.
#[test]
fn without_the_setting_it_is_named() {
    crate::run(async |test| {
        let bundle = test.bundle("c").sh(ENDS).build();
        let shim = bundle.running().await;
        let request = request("c", &test.dir().join("image"), true);
        let why = "without checkpoints = true in ";
        let code = refuses(&shim, &bundle, request, why).await;
        assert_eq!(code, Code::Unimplemented);
        ends(test, &shim, "c").await;
    });
}
