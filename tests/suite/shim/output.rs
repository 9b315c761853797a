// SPDX-License-Identifier: Apache-2.0
//! Where output goes and how much of it: files, large streams, slow readers, failures (I2, I5,
//! I9, I16).

use harness::full_disk::FullDisk;
use harness::stdio::{Fifos, Stdio, Sum};
use harness::{Code, differs, refused, wait};
use protos::runc::Options;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// I5: an existing file that is no FIFO is appended to.
#[test]
fn plain_file_path_is_appended_to() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let file = test.dir().join("output");
        fs::write(&file, "before\n").unwrap();
        let name = file.to_string_lossy().into_owned();
        let request = bundle.exec_sh("e", "echo out; echo err >&2");
        shim.run(request.stdio("", &name, &name)).await;
        shim.wait("c", "e").await.unwrap();
        shim.delete("c", "e").await.unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines[1..].sort();
        if differs("shared-file") {
            assert_eq!(lines[0], "before");
        } else {
            assert_eq!(lines, ["before", "err", "out"]);
        }
        shim.released().await;
    });
}

/// I2: `file://` makes what is missing, and appends.
#[test]
fn file_scheme_makes_directories_and_appends() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let file = test.dir().join("logs/deep/out.log");
        let name = format!("file://{}", file.display());
        for id in ["e1", "e2"] {
            let request = bundle.exec_sh(id, "echo out; echo err >&2");
            shim.run(request.stdio("", &name, &name)).await;
            shim.wait("c", id).await.unwrap();
            shim.delete("c", id).await.unwrap();
        }
        let text = fs::read_to_string(&file).unwrap();
        let count = |word| text.lines().filter(|line| *line == word).count();
        if differs("shared-file") {
            assert!(!text.is_empty());
        } else {
            assert_eq!(
                (count("out"), count("err"), text.lines().count()),
                (2, 2, 4),
                "{text}"
            );
        }
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(file.as_path()), mode(file.parent().unwrap())),
            (0o644, 0o755)
        );
        shim.released().await;
    });
}

/// U12: a disk that is full for a while neither stops the process nor ends the log, and what was
/// cut off then spoils no other line (containerd's issue 12462).
#[test]
fn a_log_goes_on_when_a_full_disk_has_room_again() {
    const LINE: &str = "0123456789abcdef";
    harness::run(async |test| {
        if differs("full-disk") {
            return;
        }
        let disk = FullDisk::half_full(test.dir().join("disk"), 64 << 10);
        let bundle = test.bundle("c").share().build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let file = disk.path().join("log");
        let name = format!("file://{}", file.display());
        let script = format!("yes {LINE} | head -c 204000; touch /mnt/done; read go; echo $go");
        let stdin = fifos.stdin.name();
        shim.run(bundle.exec_sh("e", &script).stdio(&stdin, &name, &name))
            .await;
        wait::exists(&test.share().join("done")).await;
        let size = || fs::metadata(&file).map_or(0, |file| file.len());
        assert!(size() <= 32 << 10);
        disk.make_room();
        let mut writer = fifos.stdin.writer().await;
        writer.write(b"after\n").await;
        wait::until("the log's end", || {
            let text = fs::read_to_string(&file).unwrap();
            let ended = text.ends_with("\nafter\n");
            ended.then_some(()).ok_or(text)
        })
        .await;
        let text = fs::read_to_string(&file).unwrap();
        let torn = text.lines().filter(|line| *line != LINE).count();
        // What was cut off, and the end of a line whose begin was lost.
        assert!(torn <= 3, "{text}");
        drop(writer);
        shim.wait("c", "e").await.unwrap();
        shim.delete("c", "e").await.unwrap();
        shim.released().await;
    });
}

/// I2: and nothing else is a scheme.
#[test]
fn unknown_scheme_is_refused() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let name = "smoke:///signals";
        let status = refused(shim.create(bundle.create().stdio("", name, name)).await);
        assert_eq!(status.code, Code::Unknown);
        assert!(
            status.message.contains("unknown STDIO scheme smoke"),
            "{status}"
        );
        assert_eq!(bundle.mounts(), [] as [String; 0]);
        shim.released().await;
        shim.create(bundle.create()).await.unwrap();
    });
}

/// I7: a large input arrives whole, through a process that reads slowly.
#[test]
fn large_input_is_complete() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        shim.run(bundle.exec_sh("e", "sha256sum").fifos(&fifos))
            .await;
        let bytes: Vec<u8> = (0..5_000_000u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let mut writer = fifos.stdin.writer().await;
        for chunk in bytes.chunks(100_000) {
            writer.write(chunk).await;
        }
        drop(writer);
        shim.close_io("c", "e").await.unwrap();
        assert_eq!(out.line().await, format!("{}  -", Sum::of(&bytes).sha256));
    });
}

/// I9: twenty mebibytes, not a byte less, while stderr flows too.
#[test]
fn large_output_is_complete() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, mut err) = fifos.readers();
        let script =
            "yes 0123456789abcdef | head -c 20971520 & yes error | head -c 1048576 >&2; wait";
        shim.run(bundle.exec_sh("e", script).output(&fifos)).await;
        let (out, err) = tokio::join!(out.sum(), err.sum());
        let repeated = |text: &str, size: usize| {
            let mut bytes = text.repeat(size / text.len() + 1).into_bytes();
            bytes.truncate(size);
            Sum::of(&bytes)
        };
        assert_eq!(out, repeated("0123456789abcdef\n", 20 << 20));
        assert_eq!(err, repeated("error\n", 1 << 20));
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 0);
    });
}

/// I9, T60, T62: exits are told at once; Delete waits until the output has been taken.
#[test]
fn delete_waits_for_the_reader() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        // More than the FIFO takes, less than FIFO and pipe take together.
        shim.run(bundle.exec_sh("e", "yes | head -c 100000").output(&fifos))
            .await;
        assert_eq!(test.events().exit("c", "e").await.exit_status, 0);
        let deleting = tokio::task::spawn_local({
            let shim = shim.clone();
            async move { shim.delete("c", "e").await }
        });
        shim.state("c", "").await.unwrap();
        assert!(!deleting.is_finished());
        assert_eq!(out.sum().await, Sum::of("y\n".repeat(50_000).as_bytes()));
        deleting.await.unwrap().unwrap();
        shim.released().await;
    });
}

/// T62: but not for ever: a child that keeps stdout open, and says nothing more or more and more,
/// delays Delete by two seconds, once all that the process itself had said is through.
#[test]
fn delete_gives_up_on_a_held_stdout() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        for (id, script) in [
            ("silent", "sleep 100000 & echo done"),
            ("floods", "echo done; yes &"),
        ] {
            let fifos = Fifos::new(test.dir().join(id));
            let (mut out, _err) = fifos.readers();
            shim.run(bundle.exec_sh(id, script).output(&fifos)).await;
            assert_eq!(out.line().await, "done");
            let reading = tokio::task::spawn_local(async move { out.sum().await });
            assert_eq!(test.events().exit("c", id).await.exit_status, 0);
            let limit = Duration::from_secs(6);
            let deleted = wait::within(limit, "Delete", shim.delete("c", id));
            assert_eq!(deleted.await.unwrap().exit_status, 0);
            assert_eq!(refused(shim.state("c", id).await).code, Code::NotFound);
            reading.await.unwrap();
        }
    });
}

/// I16: a Create or Start that failed leaves no pipe.
#[test]
fn failures_leave_no_fds() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        for n in 0..5 {
            let fifos = Fifos::new(test.dir().join(format!("io{n}")));
            let _readers = fifos.readers();
            // What a VM's runtime, which is always there, refuses.
            let limits = json!([{ "type": "RLIMIT_NO_SUCH", "soft": 1, "hard": 1 }]);
            let broken = test.bundle(&format!("broken{n}"));
            let broken = broken.set("/process/rlimits", limits).build();
            let options = Options {
                binary_name: "no-runc".into(),
                ..Default::default()
            };
            let request = broken.create_with(&options).fifos(&fifos);
            refused(shim.create(request).await);
            let id = format!("e{n}");
            let request = bundle.exec(&id, &["/nonexistent"]).fifos(&fifos);
            shim.exec(request).await.unwrap();
            refused(shim.start("c", &id).await);
            shim.delete("c", &id).await.unwrap();
        }
        if differs("failed-start-fds") {
            return;
        }
        shim.released().await;
    });
}

/// I16: what the OCI runtime says of its own failure is the caller's to hear, and no output of the
/// container's: `docker exec` would show it twice, and a container that never ran would have a log.
#[test]
fn a_runtimes_complaint_is_no_output_of_the_container() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let file = test.dir().join("never-ran.log");
        let log = format!("file://{}", file.display());
        let broken = test.bundle("broken").args(&["/nonexistent"]).build();
        let refusal = refused(shim.create(broken.create().stdio("", &log, &log)).await);
        assert!(refusal.message.contains("/nonexistent"), "{refusal:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "");

        let fifos = Fifos::new(test.dir().join("io"));
        let (out, err) = fifos.readers();
        let request = bundle.exec("e", &["/nonexistent"]).output(&fifos);
        shim.exec(request).await.unwrap();
        let refusal = refused(shim.start("c", "e").await);
        assert!(refusal.message.contains("/nonexistent"), "{refusal:?}");
        shim.delete("c", "e").await.unwrap();
        // A fence: the loop has looked at all that there was to read.
        shim.run(bundle.exec("fence", &["true"])).await;
        for stream in [out, err] {
            let said = stream.now().unwrap_or_default();
            assert_eq!(String::from_utf8_lossy(&said), "");
        }
    });
}
