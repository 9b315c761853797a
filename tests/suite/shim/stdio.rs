// SPDX-License-Identifier: Apache-2.0
//! Stdio without a terminal: null, FIFOs, files (I1 to I9, I16).

use harness::stdio::{Fifo, Fifos, Stdio};
use harness::{Code, differs, refused, runtime_differs, wait};
use protos::runc::Options;
use protos::task_types::Status as State;
use std::fs;

/// I1: no stdio at all.
#[test]
fn null_stdio_harms_no_process() {
    harness::run(async |test| {
        let bundle = test
            .bundle("c")
            .sh("echo out; echo err >&2; read line; exit 3")
            .build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 3);
    });
}

/// I2, I6: stdout and stderr arrive apart and whole, then EOF; init's as an exec's.
#[test]
fn fifos_carry_stdout_and_stderr() {
    harness::run(async |test| {
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, mut err) = fifos.readers();
        let bundle = test
            .bundle("c")
            .sh("echo out; echo err >&2; exec sleep 100000")
            .build();
        let shim = bundle.start().shim().await;
        let request = bundle.create().output(&fifos);
        shim.create(request.clone()).await.unwrap();
        let state = shim.state("c", "").await.unwrap();
        assert_eq!(
            (state.stdout, state.stderr),
            (request.stdout, request.stderr),
            "T40"
        );
        shim.start("c", "").await.unwrap();
        assert_eq!(
            (out.line().await, err.line().await),
            ("out".into(), "err".into())
        );
        let of_exec = Fifos::new(test.dir().join("exec-io"));
        let (mut exec_out, mut exec_err) = of_exec.readers();
        shim.run(
            bundle
                .exec_sh("e", "echo one; echo two >&2; exit 3")
                .output(&of_exec),
        )
        .await;
        assert_eq!(exec_out.text().await, "one\n");
        assert_eq!(exec_err.text().await, "two\n");
        shim.kill("c", "", 9, false).await.unwrap();
        assert_eq!(
            (out.text().await, err.text().await),
            (String::new(), String::new())
        );
        shim.wait("c", "e").await.unwrap();
        shim.delete("c", "e").await.unwrap();
        // Its output ends a moment before it does.
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        shim.released().await;
    });
}

/// I4, U7: a client may want stdout alone.
#[test]
fn stdout_without_stderr_is_enough() {
    harness::run(async |test| {
        let out = Fifo::new(test.dir().join("out"));
        let mut reader = out.reader();
        let bundle = test.bundle("c").sh("echo out; echo err >&2").build();
        let shim = bundle.start().shim().await;
        let request = bundle.create().stdio("", &out.name(), "");
        let created = shim.create(request).await;
        if differs("stdout-only") {
            assert!(
                refused(created)
                    .message
                    .contains("no such file or directory")
            );
            bundle.start().deleted().await;
            return;
        }
        created.unwrap();
        shim.start("c", "").await.unwrap();
        assert_eq!(reader.text().await, "out\n");
    });
}

/// I5: one FIFO for both is written by both, and ends once.
#[test]
fn stdout_and_stderr_may_share_a_fifo() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifo = Fifo::new(test.dir().join("both"));
        let mut reader = fifo.reader();
        let name = fifo.name();
        let request = bundle.exec_sh("e", "echo out; echo err >&2; echo out");
        shim.run(request.stdio("", &name, &name)).await;
        let text = reader.text().await;
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort();
        assert_eq!(lines, ["err", "out", "out"]);
    });
}

/// I5: a client may hang up and another come: the container neither notices nor loses a line.
#[test]
fn reader_may_go_away_and_come_back() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let (first, _err) = fifos.readers();
        let mut first = first;
        let script = "echo one; read go; echo two; read go; echo three; exit 4";
        shim.run(bundle.exec_sh("e", script).fifos(&fifos)).await;
        let mut stdin = fifos.stdin.writer().await;
        assert_eq!(first.line().await, "one");
        drop(first);
        stdin.write("go\n").await;
        let mut second = fifos.stdout.reader();
        assert_eq!(second.line().await, "two");
        drop(second);
        stdin.write("go\n").await;
        assert_eq!(
            test.events().exit("c", "e").await.exit_status,
            4,
            "no SIGPIPE"
        );
    });
}

/// I5: Create waits for a reader.
#[test]
fn create_waits_for_a_reader() {
    harness::run(async |test| {
        let fifos = Fifos::new(test.dir().join("io"));
        let bundle = test.bundle("c").sh("echo out").build();
        let shim = bundle.start().shim().await;
        let request = bundle.create().output(&fifos);
        let creating = tokio::task::spawn_local({
            let shim = shim.clone();
            async move { shim.create(request).await }
        });
        if differs("fifos-first") {
            wait::exists(&bundle.file("init.pid")).await;
        } else {
            assert_eq!(refused(shim.state("c", "").await).code, Code::NotFound);
        }
        // A method of none takes no lock: Go's 1.6 holds one during Create.
        refused(shim.call_named("NoSuchMethod").await);
        assert!(!creating.is_finished());
        let (mut out, mut err) = fifos.readers();
        creating.await.unwrap().unwrap();
        shim.start("c", "").await.unwrap();
        assert_eq!(
            (out.text().await, err.text().await),
            ("out\n".into(), String::new())
        );
    });
}

/// I8: names may go once the FIFOs are open.
#[test]
fn unlinked_fifos_go_on() {
    harness::run(async |test| {
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let bundle = test.bundle("c").sh("echo out").build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create().output(&fifos)).await.unwrap();
        fs::remove_dir_all(test.dir().join("io")).unwrap();
        shim.start("c", "").await.unwrap();
        assert_eq!(out.text().await, "out\n");
    });
}

/// I3: pipes belong to the user that Options name, so that a process of his may reopen them.
#[test]
fn pipes_belong_to_io_uid_and_gid() {
    harness::run(async |test| {
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        // runc gives them to the process's own user then, and leaves the group.
        let script = "stat -L -c %g /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2";
        let bundle = test.bundle("c").sh(script).build();
        let shim = bundle.start().shim().await;
        let options = Options {
            io_uid: 1234,
            io_gid: 5678,
            ..Default::default()
        };
        let request = bundle.create_with(&options).fifos(&fifos);
        shim.create(request).await.unwrap();
        shim.start("c", "").await.unwrap();
        let group = if runtime_differs("stdio-owner") {
            "0\n"
        } else {
            "5678\n"
        };
        assert_eq!(out.text().await, group.repeat(3));
    });
}

/// I7: EOF on stdin comes when every writer is gone and CloseIO was called: not before, not
/// later; and what was written arrives.
#[test]
fn stdin_ends_with_the_last_writer_and_close_io() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        for order in ["close-io-last", "writer-last"] {
            let fifos = Fifos::new(test.dir().join(order));
            let (mut out, _err) = fifos.readers();
            shim.run(bundle.exec_sh(order, "cat").fifos(&fifos)).await;
            let mut first = fifos.stdin.writer().await;
            first.write("one\n").await;
            assert_eq!(out.line().await, "one");
            drop(first);
            let mut second = fifos.stdin.writer().await;
            second.write("two\n").await;
            assert_eq!(out.line().await, "two", "no EOF after the first writer");
            if order == "writer-last" {
                shim.close_io("c", order).await.unwrap();
                second.write("three\n").await;
                assert_eq!(out.line().await, "three", "no EOF before the last writer");
                second.write("four\n").await;
                drop(second);
                assert_eq!(out.text().await, "four\n");
            } else {
                second.write("three\n").await;
                drop(second);
                assert_eq!(out.line().await, "three");
                assert_eq!(
                    shim.state("c", order).await.unwrap().status(),
                    State::Running
                );
                shim.close_io("c", order).await.unwrap();
                assert_eq!(out.text().await, "");
            }
            assert_eq!(shim.wait("c", order).await.unwrap().exit_status, 0);
            shim.close_io("c", order)
                .await
                .expect("T78: once more is no error");
            shim.delete("c", order).await.unwrap();
        }
        shim.released().await;
    });
}
