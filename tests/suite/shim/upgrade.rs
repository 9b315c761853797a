// SPDX-License-Identifier: Apache-2.0
//! Replacing the binary of a running shim, which no other shim can: the same process goes on.

use harness::stdio::{Fifos, Stdio};
use harness::upgrade::{copy_of_the_binary, image_of, upgrade};
use harness::{Code, Shim, differs, program, refused, wait};
use protos::operator::{UpgradeRequest, UpgradeResponse};
use protos::topic;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use tokio::io::AsyncWriteExt;

const ROUNDS: usize = 50;

/// A counter on stdout, an echo on a terminal, an exec under way and a pending Wait: across 50
/// upgrades nothing is lost, nothing comes twice, and the process stays the same.
#[test]
fn fifty_upgrades_in_a_row_lose_and_repeat_nothing() {
    if differs("upgrade") {
        return;
    }
    harness::run(async |test| {
        let binaries = [copy_of_the_binary(test, "a"), copy_of_the_binary(test, "b")];
        let counter = Fifos::new(test.dir().join("counter"));
        let echo = Fifos::new(test.dir().join("echo"));
        let script = "i=0; while read line; do i=$((i+1)); echo $i $line; done; exit 7";
        let bundle = test.bundle("c").sh(script).build();
        let shim = bundle.start().shim().await;
        let (mut numbers, _errors) = counter.readers();
        let request = bundle.create();
        let request = protos::task::CreateTaskRequest {
            stdin: counter.stdin.name(),
            ..request.output(&counter)
        };
        shim.create(request).await.unwrap();
        let init = shim.start("c", "").await.unwrap().pid;
        let mut lines = counter.stdin.writer().await;

        let mut screen = echo.stdout.reader();
        shim.run(bundle.exec("tty", &["cat"]).terminal(&echo)).await;
        let mut keys = echo.stdin.writer().await;
        let waiting = tokio::task::spawn_local({
            let shim = shim.clone();
            async move { shim.wait("c", "").await }
        });
        let pid = shim.pid();

        for round in 1..=ROUNDS {
            // Under way while the image changes: a line each way, and an exec that comes and goes.
            lines.write(format!("line{round}\n")).await;
            keys.write(format!("key{round}\n")).await;
            let exec = format!("e{round}");
            shim.run(bundle.exec_sh(&exec, &format!("exit {}", round % 100)))
                .await;

            let binary = &binaries[round % 2];
            let output = upgrade(test, binary).await;
            assert_eq!(output.code(), Some(0), "round {round}: {output:?}");
            assert!(
                output.out().contains(&format!("pid {pid}: runs ")),
                "{output:?}"
            );
            assert_eq!(&image_of(&shim), binary, "round {round}");

            assert_eq!(numbers.line().await, format!("{round} line{round}"));
            // What the terminal echoes, and what cat says.
            screen.until(&format!("key{round}\r\nkey{round}\r\n")).await;
            let exit = test.events().exit("c", &exec).await;
            assert_eq!(exit.exit_status, round as u32 % 100);
            assert_eq!(
                shim.delete("c", &exec).await.unwrap().exit_status,
                exit.exit_status
            );
        }
        shim.one_thread().await;
        assert!(!waiting.is_finished());
        assert_eq!(shim.state("c", "").await.unwrap().pid, init);

        shim.kill("c", "tty", 9, false).await.unwrap();
        assert_eq!(shim.wait("c", "tty").await.unwrap().exit_status, 137);
        drop(lines);
        shim.close_io("c", "").await.unwrap();
        // The call that was made before the first upgrade is answered by the last image.
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 7);
        shim.delete("c", "tty").await.unwrap();
        assert_eq!(shim.delete("c", "").await.unwrap().exit_status, 7);
        test.events().delete("c").await;

        let count = |topic| test.events().count(|event| event.topic == topic);
        assert_eq!(count(topic::TASK_EXIT), ROUNDS + 2);
        assert_eq!(count(topic::TASK_EXEC_STARTED), ROUNDS + 1);
        assert_eq!(count(topic::TASK_START), 1);
        assert_eq!(count(topic::TASK_DELETE), 1);
    });
}

/// T78: CloseIO of an exec that is not started yet is not forgotten: its stdin ends with its writer.
#[test]
fn close_io_before_start_survives_an_upgrade() {
    if differs("upgrade") {
        return;
    }
    harness::run(async |test| {
        let binary = copy_of_the_binary(test, "a");
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        shim.exec(bundle.exec("e", &["cat"]).fifos(&fifos))
            .await
            .unwrap();
        shim.close_io("c", "e").await.unwrap();
        let output = upgrade(test, &binary).await;
        assert_eq!(output.code(), Some(0), "{output:?}");
        // Without a writer it would end at once.
        let mut client = fifos.stdin.gate();
        client.0.write_all(b"all there is\n").await.unwrap();
        shim.start("c", "e").await.unwrap();
        drop(client);
        assert_eq!(out.text().await, "all there is\n");
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 0);
    });
}

/// A binary that does not understand the state is refused, and the old image goes on.
#[test]
fn binary_that_cannot_take_over_is_refused() {
    if differs("upgrade") {
        return;
    }
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let before = image_of(&shim);
        let junk = test.dir().join("junk");
        program::write(&junk, "#!/bin/sh\ncat >/dev/null; echo hello\n");
        for (binary, why) in [
            (junk.to_str().unwrap(), "it is no shim that can take over"),
            ("/bin/false", "exit status 1"),
            ("/no/such/file", "no such file or directory"),
        ] {
            let status = ask(&shim, binary).await.unwrap_err();
            assert_eq!(status.code, Code::FailedPrecondition, "{status}");
            assert!(status.message.contains(why), "{binary}: {status}");
        }
        let status = ask(&shim, "relative").await.unwrap_err();
        assert_eq!(status.code, Code::InvalidArgument, "{status}");
        assert_eq!(image_of(&shim), before);
        shim.run(bundle.exec("e", &["true"])).await;
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 0);
    });
}

/// A call that does not end in time keeps the old image; it answers as if nothing had been asked.
#[test]
fn upgrade_waits_for_calls_and_gives_up_after_ten_seconds() {
    if differs("upgrade") {
        return;
    }
    harness::run(async |test| {
        let fifos = Fifos::new(test.dir().join("io"));
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let before = image_of(&shim);
        let binary = copy_of_the_binary(test, "a");
        // Start waits for somebody to read the FIFO.
        shim.exec(bundle.exec("e", &["true"]).output(&fifos))
            .await
            .unwrap();
        let starting = tokio::task::spawn_local({
            let shim = shim.clone();
            async move { shim.start("c", "e").await }
        });
        // Answered after Start was sent.
        shim.state("c", "e").await.unwrap();
        let status = ask(&shim, binary.to_str().unwrap()).await.unwrap_err();
        assert!(
            status.message.contains("did not end within 10 s"),
            "{status}"
        );
        assert_eq!(image_of(&shim), before);
        let _readers = fifos.readers();
        starting.await.unwrap().unwrap();
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 0);
    });
}

/// SIGUSR2 asks for the binary at the shim's own path, which an operator has replaced.
#[test]
fn sigusr2_upgrades_to_the_file_at_the_same_path() {
    if differs("upgrade") {
        return;
    }
    harness::run(async |test| {
        let binary = copy_of_the_binary(test, "a");
        let bundle = test.bundle("c").build();
        let shim = bundle.start().binary(&binary).shim().await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        let other = copy_of_the_binary(test, "b");
        fs::rename(other, &binary).unwrap();
        assert!(image_of(&shim).to_string_lossy().ends_with(" (deleted)"));
        wait::signal(shim.pid(), 12).unwrap();
        wait::until("the new image runs", || {
            let image = image_of(&shim);
            if image == binary {
                Ok(())
            } else {
                Err(format!("{}", image.display()))
            }
        })
        .await;
        assert_eq!(
            shim.state("c", "").await.unwrap().status(),
            protos::task_types::Status::Running
        );
    });
}

/// A word too much, or a flag behind the word, once had every shim of the machine upgraded.
#[test]
fn upgrade_takes_flags_behind_it_and_nothing_else() {
    if differs("upgrade") {
        return;
    }
    harness::run(async |test| {
        let (old, new) = (copy_of_the_binary(test, "a"), copy_of_the_binary(test, "b"));
        let bundle = test.bundle("c").build();
        let shim = bundle.start().binary(&old).shim().await;
        let run = async |args: &[&str]| {
            let mut command = Command::new(&new);
            command.args(args);
            wait::output(command, None).await
        };
        let ns = test.namespace();
        for (code, args) in [
            (0, &["-namespace", ns, "upgrade", "--help"][..]),
            (2, &["-namespace", ns, "upgrade", "c"]),
            (2, &["-namespace", ns, "upgrade", "--", "-id", "x"]),
            (2, &["-namespace", ns, "upgrade", "-all"]),
            (2, &["-namespace", ns, "upgrade", "-id", ""]),
            (2, &["-namespace", ns, "upgrade", "-id"]),
            (0, &["upgrade", "-namespace", ns, "-id", "another"]),
            (0, &["-namespace", ns, "upgrade", "-namespace=none"]),
        ] {
            let output = run(args).await;
            assert_eq!(
                (output.code(), output.out()),
                (Some(code), String::new()),
                "{args:?}"
            );
            assert_eq!(image_of(&shim), old, "{args:?}");
        }
        let output = run(&["upgrade", "-namespace", ns, "-id=c"]).await;
        assert_eq!(output.code(), Some(0), "{}", output.err());
        assert_eq!(image_of(&shim), new);
        shim.shutdown("c").await.unwrap();
    });
}

/// A process is a shim by the file that it runs, not by what it calls itself.
#[test]
fn who_only_calls_itself_a_shim_is_not_asked() {
    if differs("upgrade") {
        return;
    }
    harness::run(async |test| {
        // A daemon that waits for the word of its `start`, and answers nobody until then.
        let other = test.dir().join("other");
        program::copy(harness::peers::shim(), &other);
        let socket = test.dir().join("other.sock");
        let (start, stdin) = UnixStream::pair().unwrap();
        let mut command = Command::new(&other);
        let name = harness::peers::shim().file_name().unwrap();
        command.arg0(Path::new("/bin").join(name));
        command.args([
            "-namespace",
            test.namespace(),
            "-id",
            "\u{1b}[2Jevil",
            "-socket",
        ]);
        command.arg(&socket).stdin(OwnedFd::from(stdin));
        let mut child = command.spawn().unwrap();
        wait::exists(&socket).await;
        let output = upgrade(test, &copy_of_the_binary(test, "a")).await;
        drop(start);
        child.wait().unwrap();
        assert_eq!(
            (output.code(), output.out()),
            (Some(0), String::new()),
            "{}",
            output.err()
        );
    });
}

async fn ask(shim: &Shim, binary: &str) -> Result<UpgradeResponse, harness::Status> {
    let request = UpgradeRequest {
        binary: binary.into(),
    };
    let call = shim.client().call(&request, None);
    let answer = call.await;
    match answer {
        Ok(answer) => Ok(answer),
        Err(_) => Err(refused(answer)),
    }
}
