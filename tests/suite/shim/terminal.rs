// SPDX-License-Identifier: Apache-2.0
//! Terminals: output, input, size, and what is left of them (I12 to I15).

use harness::stdio::{Fifos, Stdio, Sum};
use harness::{Shim, differs, refused, runtime_differs};
use serde_json::json;
use std::fs;

async fn released(shim: &Shim) {
    if !differs("tty-fds") {
        shim.released().await;
    }
}

/// I12, I13, T77: init's terminal has its size, echoes, and ends with init.
#[test]
fn init_talks_through_its_terminal() {
    harness::run(async |test| {
        let fifos = Fifos::new(test.dir().join("io"));
        let mut out = fifos.stdout.reader();
        let bundle = test
            .bundle("c")
            .terminal()
            .sh("read line; stty size; tty; exit 5")
            .build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create().terminal(&fifos)).await.unwrap();
        let state = shim.state("c", "").await.unwrap();
        assert_eq!(
            (state.terminal, state.stdout, state.stderr),
            (true, fifos.stdout.name(), String::new())
        );
        shim.resize("c", "", 100, 40).await.unwrap();
        shim.start("c", "").await.unwrap();
        let mut stdin = fifos.stdin.writer().await;
        stdin.write("go\n").await;
        assert_eq!(out.text().await, "go\r\n40 100\r\n/dev/pts/0\r\n");
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 5);
        shim.resize("c", "", 80, 24)
            .await
            .expect("T77: init's console may be resized still");
        drop(stdin);
        shim.delete("c", "").await.unwrap();
        released(&shim).await;
    });
}

/// I12: an exec's terminal; the request decides, whatever the spec says (T30).
#[test]
fn exec_gets_a_terminal_of_its_own() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let mut out = fifos.stdout.reader();
        let script = "read line; stty size; read line; stty size; exit 6";
        let mut process = harness::bundle::process(test, &["sh", "-c", script]);
        process["terminal"] = json!(false);
        shim.run(bundle.exec_spec("e", &process).terminal(&fifos))
            .await;
        shim.resize("c", "e", 81, 25).await.unwrap();
        let mut stdin = fifos.stdin.writer().await;
        stdin.write("one\n").await;
        assert_eq!(out.until("25 81\r\n").await, "one\r\n25 81\r\n");
        shim.resize("c", "e", 132, 50).await.unwrap();
        stdin.write("two\n").await;
        assert_eq!(out.text().await, "two\r\n50 132\r\n");
        assert_eq!(test.events().exit("c", "e").await.exit_status, 6);
        drop(stdin);
        shim.delete("c", "e").await.unwrap();
        released(&shim).await;
    });
}

/// I14: end of input on a terminal is a character; the process decides.
#[test]
fn end_of_input_is_control_d() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let mut out = fifos.stdout.reader();
        let script = "stty -echo; echo ready; cat; exit 7";
        shim.run(bundle.exec_sh("e", script).terminal(&fifos)).await;
        assert_eq!(out.line().await, "ready");
        let mut stdin = fifos.stdin.writer().await;
        stdin.write("text\n\x04").await;
        assert_eq!(out.text().await, "text\r\n");
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 7);
    });
}

/// I9: five mebibytes through a terminal, whole, though the process is gone before them.
#[test]
fn large_terminal_output_is_complete() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let mut out = fifos.stdout.reader();
        let script = "stty raw; yes 0123456789abcdef | head -c 5242880";
        shim.run(bundle.exec_sh("e", script).terminal(&fifos)).await;
        let mut bytes = "0123456789abcdef\n".repeat((5 << 20) / 17 + 1).into_bytes();
        bytes.truncate(5 << 20);
        assert_eq!(out.sum().await, Sum::of(&bytes));
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 0);
    });
}

/// I9: output that a slow client has not taken when the process ends is still his.
#[test]
fn terminal_output_survives_the_process() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let mut out = fifos.stdout.reader();
        // More than the FIFO takes.
        shim.run(
            bundle
                .exec_sh("e", "stty raw; yes | head -c 67000")
                .terminal(&fifos),
        )
        .await;
        assert_eq!(test.events().exit("c", "e").await.exit_status, 0);
        let deleting = tokio::task::spawn_local({
            let shim = shim.clone();
            async move { shim.delete("c", "e").await }
        });
        shim.state("c", "").await.unwrap();
        assert_eq!(out.sum().await, Sum::of("y\n".repeat(33_500).as_bytes()));
        deleting.await.unwrap().unwrap();
    });
}

/// I15, U6: a client that keeps stdin open keeps no terminal alive.
#[test]
fn deleted_terminals_are_closed_whoever_holds_stdin() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let mut writers = Vec::new();
        for n in 0..3 {
            let fifos = Fifos::new(test.dir().join(format!("io{n}")));
            let _out = fifos.stdout.reader();
            let id = format!("e{n}");
            shim.run(bundle.exec(&id, &["true"]).terminal(&fifos)).await;
            writers.push(fifos.stdin.writer().await);
            shim.wait("c", &id).await.unwrap();
            shim.delete("c", &id).await.unwrap();
        }
        released(&shim).await;
    });
}

/// I12: a terminal for a process that cannot start leaves neither socket nor fd.
#[test]
fn failed_terminal_leaves_nothing() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let _out = fifos.stdout.reader();
        let broken = test
            .bundle("broken")
            .terminal()
            .set("/process/cwd", json!("bin"))
            .build();
        let created = shim.create(broken.create().terminal(&fifos)).await;
        if runtime_differs("relative-cwd") {
            shim.delete("broken", "").await.unwrap();
        } else {
            refused(created);
        }
        shim.exec(bundle.exec("e", &["/nonexistent"]).terminal(&fifos))
            .await
            .unwrap();
        refused(shim.start("c", "e").await);
        shim.delete("c", "e").await.unwrap();
        let files: Vec<_> = fs::read_dir(test.dir().join("run")).unwrap().collect();
        assert!(files.is_empty(), "{files:?}");
        released(&shim).await;
    });
}

/// I13: a terminal may go without a stdin.
#[test]
fn terminal_without_stdin_works() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let mut out = fifos.stdout.reader();
        let request = bundle
            .exec_sh("e", "echo out; exit 2")
            .stdio("", &fifos.stdout.name(), "")
            .tty();
        shim.run(request).await;
        assert_eq!(out.text().await, "out\r\n");
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 2);
        shim.delete("c", "e").await.unwrap();
        released(&shim).await;
    });
}
