// SPDX-License-Identifier: Apache-2.0
//! `inspect`: what a shim does and waits for, told by itself and by the kernel, also when something
//! hangs.

use harness::disk::{self, Disk};
use harness::inspect::{Stopped, asked, cause, inspected};
use harness::runtime::HangingExec;
use harness::stdio::{Fifos, Stdio};
use harness::{Shim, differs, proc, vm_differs, wait};
use serde_json::Value;
use std::process::Command;
use tokio::task::spawn_local;

#[test]
fn containers_processes_and_waits_are_told() {
    if differs("inspect") {
        return;
    }
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        shim.exec(bundle.exec_sh("later", "exit 1")).await.unwrap();
        shim.run(bundle.exec_sh("done", "exit 7")).await;
        test.events().exit("c", "done").await;
        let waiting = spawn_local({
            let shim = shim.clone();
            async move { shim.wait("c", "").await }
        });
        // Until the shim has read it.
        let mut told = inspected(test).await;
        while told["calls"][0]["method"] != "Wait" {
            told = inspected(test).await;
        }
        assert_eq!(told["id"], "c");
        assert_eq!(told["pid"], shim.pid());
        assert_eq!(told["calls"][0]["container"], "c");
        assert_eq!(told["causes"], serde_json::json!([]));
        assert!(told["process"]["memory_bytes"].as_u64() > Some(10_000));
        let processes = told["containers"][0]["processes"]
            .as_array()
            .expect("a list");
        let said: Vec<_> = processes
            .iter()
            .map(|it| {
                (
                    it["exec"].as_str(),
                    it["state"].as_str(),
                    &it["exit_status"],
                )
            })
            .collect();
        let none = &Value::Null;
        assert_eq!(
            said,
            [
                (Some(""), Some("running"), none),
                (Some("done"), Some("stopped"), &7.into()),
                (Some("later"), Some("created"), none),
            ]
        );
        let text = asked(test, &[]).await;
        let text = String::from_utf8(text.stdout).expect("text");
        for said in [
            "container c: running, pid ",
            "exec done: stopped",
            "call Wait of c, for ",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        assert!(asked(test, &["-id", "c"]).await.status.success());
        let nobody = asked(test, &["-id", "nobody"]).await;
        assert!(
            !nobody.status.success() && String::from_utf8_lossy(&nobody.stderr).contains("nobody")
        );
        shim.kill("c", "", libc::SIGKILL, false).await.unwrap();
        waiting.await.unwrap().unwrap();
    });
}

/// A runtime that hangs is named, and who waits behind it.
#[test]
fn a_runtime_that_hangs_is_the_cause() {
    if differs("inspect") || vm_differs("guests-runtime") {
        return;
    }
    harness::run(async |test| {
        let exec = HangingExec::new(test).await;
        let (cause, told) = cause(test).await;
        assert!(
            cause.starts_with("Start of c/e has gone on for "),
            "{cause}"
        );
        let runtime = format!(" {}, in state S", exec.pid);
        assert!(cause.contains(&runtime), "{cause}");
        let call = &told["calls"][0];
        assert_eq!(
            (&call["method"], &call["exec"]),
            (&"Start".into(), &"e".into())
        );
        exec.go_on().await;
    });
}

/// A disk that stands still keeps a thread of the shim.
#[test]
fn a_disk_that_stands_still_is_the_cause() {
    if differs("inspect") || vm_differs("private-mounts") {
        return;
    }
    harness::run(async |test| {
        let disk = Disk::new(test, test.dir().join("disk"));
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let log = format!("file://{}", disk.path().join("log").display());
        let request = bundle.create().stdio("", &log, &log);
        let frozen = disk.freeze();
        let creating = spawn_local({
            let (shim, request) = (shim.clone(), request);
            async move { shim.create(request).await }
        });
        disk::is_waited_for_by(shim.pid()).await;
        let (cause, told) = cause(test).await;
        assert!(
            cause.contains("Create of c") && cause.contains("a file system or a device"),
            "{cause}"
        );
        assert_eq!(told["creating"], serde_json::json!(["c"]));
        drop(frozen);
        creating.await.unwrap().unwrap();
        shim.delete("c", "").await.unwrap();
    });
}

/// An idle shim wakes when somebody looks, and then sleeps on.
#[test]
fn who_does_not_look_wakes_no_shim() {
    if differs("inspect") {
        return;
    }
    harness::run_alone(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        inspected(test).await;
        shim.one_thread().await;
        let before = proc::wakeups(shim.pid());
        let mut while_it_idles = Command::new("sleep");
        while_it_idles.arg("3");
        wait::output(while_it_idles, None).await;
        assert_eq!(proc::wakeups(shim.pid()) - before, 0, "wakeups in 3 s");
        inspected(test).await;
        let woken = proc::wakeups(shim.pid()) - before;
        assert!((1..=10).contains(&woken), "{woken} wakeups for a look");
    });
}

/// A client that has not opened its end of a FIFO is named by it, while a Start waits for that.
#[test]
fn a_fifo_that_nobody_opens_is_the_cause() {
    if differs("inspect") {
        return;
    }
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let request = bundle.exec_sh("e", "exit 3").output(&fifos);
        shim.exec(request).await.unwrap();
        let starting = spawn_local({
            let shim = shim.clone();
            async move { shim.start("c", "e").await }
        });
        let (cause, _) = cause(test).await;
        let fifo = fifos.stdout.name();
        let expected = format!("it waits for somebody who opens the FIFO {fifo} to read");
        assert!(
            cause.starts_with("Start of c/e has gone on for ") && cause.ends_with(&expected),
            "{cause}"
        );
        let _readers = fifos.readers();
        starting.await.unwrap().unwrap();
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 3);
    });
}

/// And one that has opened it, and does not read.
#[test]
fn a_fifo_that_nobody_reads_is_the_cause() {
    if differs("inspect") {
        return;
    }
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let request = bundle.exec_sh("e", "dd if=/dev/zero bs=1024 count=1024");
        shim.run(request.output(&fifos)).await;
        let (cause, told) = cause(test).await;
        let expected = format!(
            "nobody reads the output of c/e: FIFO {} has been full for ",
            fifos.stdout.name()
        );
        assert!(cause.starts_with(&expected), "{cause}");
        let stream = &told["containers"][0]["processes"][1]["streams"][0];
        assert_eq!(stream["path"], fifos.stdout.name());
        assert!(stream["unread_bytes"].as_u64() > Some(4096), "{told}");
        assert_eq!(out.sum().await.bytes, 1 << 20);
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 0);
        assert_eq!(inspected(test).await["causes"], serde_json::json!([]));
    });
}

/// A shim that does not answer is told of all the same, and holds up nobody.
#[test]
fn a_shim_that_is_stopped_is_told() {
    if differs("inspect") {
        return;
    }
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let stopped = Stopped::new(shim.pid());
        let told = inspected(test).await;
        let error = told["error"].as_str().expect("an error");
        assert!(error.contains("not answered"), "{error}");
        assert!(told["causes"][0].as_str().expect("a cause").contains(error));
        drop(stopped);
        assert_eq!(inspected(test).await["error"], Value::Null);
    });
}

/// The same, in the log, for who cannot reach the socket.
#[test]
fn sigquit_has_it_logged() {
    if differs("inspect") {
        return;
    }
    harness::run(async |test| {
        let shim: Shim = test.bundle("c").build().running().await;
        wait::signal(shim.pid(), libc::SIGQUIT).expect("SIGQUIT");
        wait::until("the log", || {
            let log = shim.log();
            let line = log.lines().find(|line| line.contains("SIGQUIT: "));
            line.map(str::to_owned).ok_or(log)
        })
        .await;
    });
}
