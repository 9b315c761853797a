// SPDX-License-Identifier: Apache-2.0
//! Replacing the binary of a shim whose VM runs: the VM notices nothing.

use harness::stdio::{Fifos, Stdio, Sum};
use harness::upgrade::{copy_of_the_binary, image_of, upgrade};
use harness::{proc, wait};
use protos::task_types::Status as State;
use serde_json::json;
use std::fs;

const LINES: u64 = 1_000_000;

/// Output floods over the link while the shim is upgraded again and again, and not a byte is lost or
/// comes twice; then all that a VM's shim does is done by one that did not boot the VM: execs, figures,
/// limits, a second container with the same volume, and the end.
#[test]
fn a_vm_goes_on_under_its_shims_next_image() {
    crate::run(async |test| {
        let binaries = [copy_of_the_binary(test, "a"), copy_of_the_binary(test, "b")];
        let volume = test.dir().join("volume");
        fs::create_dir(&volume).unwrap();
        let mount = json!({"destination": "/mnt", "type": "bind", "source": volume,
            "options": ["rbind", "rw"]});
        let group = "io.containerd.runc.v2.group";
        let bundle = test
            .bundle("c")
            .annotation(group, "g")
            .mount(mount.clone())
            .build();
        let shim = bundle.running().await;
        let pid = shim.state("c", "").await.unwrap().pid;
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let flood = bundle.exec_sh("flood", &format!("seq 1 {LINES}"));
        shim.run(flood.output(&fifos)).await;
        let reading = tokio::task::spawn_local(async move { out.sum().await });
        let mut rounds = 0;
        while !reading.is_finished() {
            let binary = &binaries[rounds % 2];
            let output = upgrade(test, binary).await;
            assert_eq!(output.code(), Some(0), "round {rounds}: {output:?}");
            assert_eq!(&image_of(&shim), binary, "round {rounds}");
            rounds += 1;
        }
        let expected: String = (1..=LINES).map(|n| format!("{n}\n")).collect();
        assert_eq!(reading.await.unwrap(), Sum::of(expected.as_bytes()));
        assert!(rounds > 3, "{rounds} upgrades on the way");

        assert_eq!(shim.state("c", "").await.unwrap().pid, pid);
        let told = crate::said(
            &shim,
            &bundle,
            bundle.exec_sh("e", "echo here >/mnt/e; echo written"),
        );
        assert_eq!(told.await, "written\n");
        assert_eq!(fs::read_to_string(volume.join("e")).unwrap(), "here\n");
        assert!(shim.stats("c").await.unwrap().stats.is_some());
        shim.update("c", r#"{"pids":{"limit":50}}"#).await.unwrap();
        shim.pause("c").await.unwrap();
        let output = upgrade(test, &binaries[0]).await;
        assert_eq!(output.code(), Some(0), "{output:?}");
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Paused);
        shim.resume("c").await.unwrap();

        let second = test
            .bundle("second")
            .annotation(group, "g")
            .mount(mount)
            .sh("cat /mnt/e; exit 4")
            .build();
        let fifos = Fifos::new(test.dir().join("second-io"));
        let (mut out, _err) = fifos.readers();
        second.start().answer().await;
        shim.create(second.create().output(&fifos)).await.unwrap();
        shim.start("second", "").await.unwrap();
        assert_eq!(out.text().await, "here\n");
        assert_eq!(shim.wait("second", "").await.unwrap().exit_status, 4);
        let output = upgrade(test, &binaries[1]).await;
        assert_eq!(output.code(), Some(0), "{output:?}");
        // Its exit is what the image before was told.
        assert_eq!(shim.delete("second", "").await.unwrap().exit_status, 4);
        shim.one_thread().await;

        shim.kill("c", "", 9, false).await.unwrap();
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 137);
        assert_eq!(shim.delete("c", "").await.unwrap().exit_status, 137);
        wait::ended(pid as i32).await;
        shim.released().await;
        assert_eq!(test.events().count(|e| e.exit_of("c", "c").is_some()), 1);
    });
}

/// The next image reaps the VM's processes, and tells what that means.
#[test]
fn a_vm_that_dies_under_the_next_image_is_told_of() {
    crate::run(async |test| {
        let binary = copy_of_the_binary(test, "a");
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        shim.run(bundle.exec("e", &["sleep", "100000"])).await;
        let vm = shim.state("c", "").await.unwrap().pid;
        let output = upgrade(test, &binary).await;
        assert_eq!(output.code(), Some(0), "{output:?}");
        let files = crate::child(&shim, "fsd");
        wait::signal(vm as i32, 9).unwrap();
        for process in ["e", "c"] {
            assert_eq!(test.events().exit("c", process).await.exit_status, 137);
        }
        wait::ended(files).await;
        let refused = upgrade(test, &copy_of_the_binary(test, "b")).await;
        assert!(refused.out().contains("its VM has ended"), "{refused:?}");
        assert_eq!(shim.delete("c", "e").await.unwrap().exit_status, 137);
        assert_eq!(shim.delete("c", "").await.unwrap().exit_status, 137);
        assert!(proc::children(shim.pid()).is_empty(), "reaped");
        shim.released().await;
    });
}
