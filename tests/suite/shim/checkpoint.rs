// SPDX-License-Identifier: Apache-2.0
//! Checkpoint and restore with CRIU (T21, T73): a container goes on where it was, in another shim.

use harness::runtime::Runtime;
use harness::stdio::{Fifos, Stdio, Writer};
use harness::{Bundle, Code, Shim, Test, peers, refused, wait};
use protos::runc::{CheckpointOptions, Options};
use protos::task::{CheckpointTaskRequest, CreateTaskRequest};
use protos::task_types::Status as State;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use tokio::net::UnixDatagram;

/// Counts the lines on its stdin: what it has counted is in its memory alone.
const COUNTER: &str = "i=0; while read line; do i=$((i+1)); echo $i $line; done; exit 7";

fn request(id: &str, image: &Path, options: &CheckpointOptions) -> CheckpointTaskRequest {
    CheckpointTaskRequest {
        id: id.into(),
        path: image.to_string_lossy().into_owned(),
        options: Some(protos::any::pack(options)),
    }
}

/// A Create that restores what is in `image`.
fn restored(request: CreateTaskRequest, image: &Path) -> CreateTaskRequest {
    CreateTaskRequest {
        checkpoint: image.to_string_lossy().into_owned(),
        ..request
    }
}

/// A shim in whose PATH there is a CRIU, and a container that counts.
async fn counting(test: &Test, id: &str, fifos: &Fifos) -> (Bundle, Shim, Writer) {
    let bundle = test.bundle(id).sh(COUNTER).build();
    let shim = bundle.start().shim().await;
    shim.create(bundle.create().fifos(fifos)).await.unwrap();
    shim.start(id, "").await.unwrap();
    let lines = fifos.stdin.writer().await;
    (bundle, shim, lines)
}

/// T73, T21: written down with `exit`, the container ends; its image goes on in another container,
/// under another shim, with other pipes.
#[test]
fn checkpointed_container_goes_on_where_it_was() {
    let Some(criu) = peers::criu() else { return };
    harness::run_unless_vm_differs("checkpoint", async |test| {
        test.provide(criu);
        let image = test.dir().join("image");
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let (bundle, shim, mut lines) = counting(test, "c", &fifos).await;
        lines.write("before\n").await;
        assert_eq!(out.line().await, "1 before");
        let options = CheckpointOptions {
            exit: true,
            ..Default::default()
        };
        shim.checkpoint(request("c", &image, &options))
            .await
            .unwrap();
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        shim.delete("c", "").await.unwrap();
        assert!(!bundle.file("criu-dump.log").exists());
        assert!(!bundle.file("work/criu-work").exists());

        let bundle = test.bundle("again").sh(COUNTER).build();
        let fifos = Fifos::new(test.dir().join("io-again"));
        let (mut out, _err) = fifos.readers();
        let shim = bundle.start().shim().await;
        let create = restored(bundle.create().fifos(&fifos), &image);
        let created = shim.create(create).await.unwrap();
        assert_eq!(created.pid, 0, "T10: nothing runs before Start");
        let state = shim.state("again", "").await.unwrap();
        assert_eq!((state.status(), state.pid), (State::Created, 0));
        let pid = shim.start("again", "").await.unwrap().pid;
        let state = shim.state("again", "").await.unwrap();
        assert_eq!((state.status(), state.pid), (State::Running, pid));
        let mut lines = fifos.stdin.writer().await;
        lines.write("after\n").await;
        assert_eq!(out.line().await, "2 after", "it has counted on");

        // It is a container like any other.
        shim.run(bundle.exec_sh("e", "exit 3")).await;
        assert_eq!(shim.wait("again", "e").await.unwrap().exit_status, 3);
        shim.pause("again").await.unwrap();
        shim.resume("again").await.unwrap();
        shim.stats("again").await.unwrap();
        drop(lines);
        shim.close_io("again", "").await.unwrap();
        assert_eq!(test.events().exit("again", "again").await.exit_status, 7);
        assert_eq!(shim.delete("again", "").await.unwrap().exit_status, 7);
    });
}

/// T73: without `exit` the container runs on, and may be written down again; a paused one, too.
#[test]
fn container_runs_on_after_a_checkpoint() {
    let Some(criu) = peers::criu() else { return };
    harness::run_unless_vm_differs("checkpoint", async |test| {
        test.provide(criu);
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let (bundle, shim, mut lines) = counting(test, "c", &fifos).await;
        let options = CheckpointOptions::default();
        for round in 1..=2 {
            let image = test.dir().join(format!("image{round}"));
            shim.checkpoint(request("c", &image, &options))
                .await
                .unwrap();
            assert!(image.join("inventory.img").exists());
            let state = shim.state("c", "").await.unwrap();
            assert_eq!(state.status(), State::Running);
            lines.write("line\n").await;
            assert_eq!(out.line().await, format!("{round} line"));
        }
        shim.pause("c").await.unwrap();
        let image = test.dir().join("image-of-paused");
        shim.checkpoint(request("c", &image, &options))
            .await
            .unwrap();
        let state = shim.state("c", "").await.unwrap();
        assert_eq!(state.status(), State::Paused, "{:?}", bundle.id);
        shim.resume("c").await.unwrap();
        lines.write("line\n").await;
        assert_eq!(out.line().await, "3 line");
        // No event tells of a checkpoint (B73).
        let told = |e: &harness::events::Event| e.topic.contains("checkpoint");
        assert_eq!(test.events().count(told), 0);
    });
}

/// T73: a terminal is written down if the options allow it (`--shell-job`).
#[test]
fn container_with_a_terminal_is_restored_with_another() {
    let Some(criu) = peers::criu() else { return };
    harness::run_unless_vm_differs("checkpoint", async |test| {
        test.provide(criu);
        let image = test.dir().join("image");
        let fifos = Fifos::new(test.dir().join("io"));
        let mut screen = fifos.stdout.reader();
        let bundle = test.bundle("c").terminal().sh(COUNTER).build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create().terminal(&fifos)).await.unwrap();
        shim.start("c", "").await.unwrap();
        let mut keys = fifos.stdin.writer().await;
        keys.write("before\n").await;
        screen.until("1 before\r\n").await;
        let options = CheckpointOptions {
            exit: true,
            terminal: true,
            ..Default::default()
        };
        shim.checkpoint(request("c", &image, &options))
            .await
            .unwrap();
        test.events().exit("c", "c").await;
        shim.delete("c", "").await.unwrap();

        let fifos = Fifos::new(test.dir().join("io-again"));
        let mut screen = fifos.stdout.reader();
        let bundle = test.bundle("again").terminal().sh(COUNTER).build();
        let shim = bundle.start().shim().await;
        let create = bundle.create().terminal(&fifos);
        shim.create(restored(create, &image)).await.unwrap();
        shim.start("again", "").await.unwrap();
        let mut keys = fifos.stdin.writer().await;
        keys.write("after\n").await;
        screen.until("2 after\r\n").await;
        shim.resize("again", "", 100, 40).await.unwrap();
    });
}

/// T73: what CRIU does not write down is refused in its words, its log lies in the bundle, and the
/// container goes on. Here a socket that leads out of the container, which the options must allow.
#[test]
fn what_criu_refuses_is_told_with_its_log() {
    let Some(criu) = peers::criu() else { return };
    harness::run_unless_vm_differs("checkpoint", async |test| {
        test.provide(criu);
        let fifos = Fifos::new(test.dir().join("io"));
        let _readers = fifos.readers();
        let syslog = UnixDatagram::bind(test.share().join("log")).unwrap();
        let script = "ln -s /mnt/log /dev/log; exec logger";
        let bundle = test.bundle("c").share().sh(script).build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create().fifos(&fifos)).await.unwrap();
        shim.start("c", "").await.unwrap();
        let mut lines = fifos.stdin.writer().await;
        lines.write("hello\n").await;
        let mut line = [0; 512];
        let logged = syslog.recv(&mut line);
        wait::soon("a line in the log", logged).await.unwrap();
        let image = test.dir().join("image");
        let options = CheckpointOptions::default();
        let status = refused(shim.checkpoint(request("c", &image, &options)).await);
        let log = bundle.file("criu-dump.log");
        assert_eq!(status.code, Code::Unknown);
        // `criu failed` with runc, `CRIU checkpointing failed` with crun.
        assert!(status.message.to_lowercase().contains("criu"), "{status}");
        assert!(
            status
                .message
                .ends_with(&format!(" path= {}", log.display())),
            "{status}"
        );
        let said = fs::read_to_string(&log).unwrap();
        assert!(said.contains("Error (criu/"), "{said}");
        assert!(!bundle.file("work/criu-work").exists());
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Running);
        shim.run(bundle.exec_sh("e", "exit 3")).await;
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 3);

        let options = CheckpointOptions {
            external_unix_sockets: true,
            ..Default::default()
        };
        let image = test.dir().join("image-with-sockets");
        shim.checkpoint(request("c", &image, &options))
            .await
            .unwrap();
    });
}

/// T21: what cannot be restored is a Start that fails, with the runtime's reason; the container
/// can be deleted, and nothing is left.
#[test]
fn failed_restore_leaves_nothing() {
    let Some(criu) = peers::criu() else { return };
    harness::run_unless_vm_differs("checkpoint", async |test| {
        test.provide(criu);
        let image = test.dir().join("image");
        fs::create_dir(&image).unwrap();
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        shim.create(restored(bundle.create(), &image))
            .await
            .unwrap();
        let status = refused(shim.start("c", "").await);
        assert_eq!(status.code, Code::Unknown);
        assert!(
            status.message.starts_with("OCI runtime restore failed: "),
            "{status}"
        );
        assert!(!test.runc_root().join("c").exists());
        let deleted = shim.delete("c", "").await.unwrap();
        assert_eq!((deleted.pid, deleted.exit_status), (0, 0));
        assert_eq!(bundle.mounts(), [] as [String; 0]);
        assert_eq!(test.events().exits("c", "c"), 0);
    });
}

/// The real runtime, but instead of `action` it writes its command line to a file, then does `end`.
fn recording(test: &Test, action: &str, end: &str) -> (Runtime, PathBuf) {
    let record = test.dir().join("record");
    let body = format!(
        "[ \"$ACTION\" = {action} ] || exec \"$RUNC\" \"$@\"\necho \"$@\" >>{}; {end}",
        record.display()
    );
    (Runtime::script(test, "recording", &body), record)
}

/// T73: every option comes to the runtime's command line.
#[test]
fn checkpoint_options_reach_the_runtime() {
    harness::run_unless_vm_differs("checkpoint", async |test| {
        let (runtime, record) = recording(test, "checkpoint", "exit 0");
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        shim.create(runtime.create(&bundle)).await.unwrap();
        shim.start("c", "").await.unwrap();
        let work = test.dir().join("criu");
        let all = CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".into(), "ipc".into()],
            cgroups_mode: "soft".into(),
            image_path: String::new(),
            work_path: work.to_string_lossy().into_owned(),
            parent_path: "../before".into(),
        };
        let none = CheckpointOptions::default();
        let image = test.dir().join("image");
        shim.checkpoint(request("c", &image, &all)).await.unwrap();
        shim.checkpoint(request("c", &image, &none)).await.unwrap();
        let text = fs::read_to_string(record).unwrap();
        let calls: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split(" checkpoint ").nth(1).unwrap())
            .map(|call| call.split(' ').collect())
            .collect();
        let image = image.to_string_lossy();
        let work = work.to_string_lossy();
        // Of containerd 2.4: an image that this one builds on.
        let parent: &[&str] = match harness::differs("checkpoint-parent") {
            true => &[],
            false => &["--parent-path", "../before"],
        };
        let first = ["--image-path", &image, "--work-path", &work];
        let expected = [
            "--tcp-established",
            "--ext-unix-sk",
            "--shell-job",
            "--file-locks",
            "--empty-ns",
            "network",
            "--empty-ns",
            "ipc",
        ];
        let expected = [&first[..], parent, &expected].concat();
        assert_eq!(calls[0][..expected.len()], expected);
        let rest = &calls[0][expected.len()..];
        if harness::differs("cgroups-mode") {
            assert_eq!(rest, ["c"]);
        } else {
            assert_eq!(rest, ["--manage-cgroups-mode", "soft", "c"]);
        }
        let work = bundle.file("work/criu-work");
        let work = work.to_string_lossy();
        let expected = [
            "--image-path",
            &image,
            "--work-path",
            &work,
            "--leave-running",
            "c",
        ];
        assert_eq!(calls[1], expected);
    });
}

/// T21: how the runtime is called to restore.
#[test]
fn restore_options_reach_the_runtime() {
    harness::run_unless_vm_differs("checkpoint", async |test| {
        let (runtime, record) = recording(test, "restore", "exit 1");
        let work = test.dir().join("criu").to_string_lossy().into_owned();
        let image = test.dir().join("image");
        let parent = test.dir().join("parent").to_string_lossy().into_owned();
        let bundle = test
            .bundle("c")
            .set("/process/terminal", json!(true))
            .build();
        let shim = bundle.start().shim().await;
        let options = Options {
            criu_work_path: work.clone(),
            no_pivot_root: true,
            ..runtime.options()
        };
        let fifos = Fifos::new(test.dir().join("io"));
        let _screen = fifos.stdout.reader();
        let create = CreateTaskRequest {
            parent_checkpoint: parent.clone(),
            ..restored(bundle.create_with(&options).terminal(&fifos), &image)
        };
        shim.create(create).await.unwrap();
        refused(shim.start("c", "").await);
        let text = fs::read_to_string(record).unwrap();
        let call = text.trim_end().split(" restore ").nth(1).unwrap();
        let words: Vec<&str> = call.split(' ').collect();
        let pair = |flag: &str| {
            let at = words.iter().position(|word| *word == flag);
            words[at.unwrap_or_else(|| panic!("{flag} in {call}")) + 1]
        };
        assert_eq!(pair("--image-path"), image.to_string_lossy());
        assert_eq!(pair("--work-path"), work);
        assert_eq!(
            pair("--pid-file"),
            bundle.file("init.pid").to_string_lossy()
        );
        assert_eq!(pair("--bundle"), bundle.path.to_string_lossy());
        assert!(!pair("--console-socket").is_empty());
        for flag in ["--detach", "--no-pivot"] {
            assert!(words.contains(&flag), "{flag} in {call}");
        }
        let flag = call.contains("-no-subreaper");
        assert_eq!(flag, harness::differs("no-subreaper"), "{call}");
        if !harness::differs("parent-path") {
            assert_eq!(pair("--parent-path"), parent);
        }
        assert_eq!(words.last(), Some(&"c"));
        shim.delete("c", "").await.unwrap();
    });
}
