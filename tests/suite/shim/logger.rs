// SPDX-License-Identifier: Apache-2.0
//! Loggers: a program that takes a container's output, `binary://` (I10, I11).

use harness::stdio::{Fifo, Stdio, Sum};
use harness::{Bundle, Code, Shim, Test, differs, proc, program, refused, wait};
use std::fs;
use std::path::{Path, PathBuf};

/// A logger: a shell script. It gets `$DIR`, where it may write.
fn logger(test: &Test, name: &str, script: &str) -> PathBuf {
    let path = test.dir().join(name);
    let dir = test.share();
    let text = format!(
        "#!/bin/sh\nDIR={}\necho $$ >$DIR/{name}.pid\n{script}\n",
        dir.display()
    );
    program::write(&path, &text);
    path
}

/// Says that it is ready, then copies both streams to files until they end.
const COPY: &str = "exec 5>&-\ncat <&3 >$DIR/out & cat <&4 >$DIR/err & wait";

fn uri(path: &Path) -> String {
    format!("binary://{}", path.display())
}

/// Runs the exec `e` with its output to this logger, until it has ended and is deleted.
async fn logged(shim: &Shim, bundle: &Bundle, uri: &str, script: &str) {
    shim.run(bundle.exec_sh("e", script).stdio("", uri, uri))
        .await;
    shim.wait("c", "e").await.unwrap();
    shim.delete("c", "e").await.unwrap();
}

async fn released(shim: &Shim) {
    if !differs("logger-fds") {
        shim.released().await;
    }
}

/// I10: stdout is fd 3, stderr fd 4; nothing is lost, and the logger ends when they do.
#[test]
fn logger_gets_both_streams_whole() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let path = logger(test, "logger", COPY);
        let script = "yes 0123456789abcdef | head -c 5000000; echo err >&2";
        logged(&shim, &bundle, &uri(&path), script).await;
        let pid = fs::read_to_string(test.share().join("logger.pid")).unwrap();
        assert!(
            !proc::alive(pid.trim().parse().unwrap()),
            "I11: Delete ends the logger"
        );
        let mut bytes = "0123456789abcdef\n".repeat(5_000_000 / 17 + 1).into_bytes();
        bytes.truncate(5_000_000);
        assert_eq!(
            Sum::of(&fs::read(test.share().join("out")).unwrap()),
            Sum::of(&bytes)
        );
        assert_eq!(
            fs::read_to_string(test.share().join("err")).unwrap(),
            "err\n"
        );
        released(&shim).await;
        assert_eq!(proc::zombies(shim.pid()), [] as [i32; 0]);
    });
}

/// I10: it takes output; input comes as ever, also without a terminal.
#[test]
fn a_process_beside_a_logger_has_input() {
    harness::run(async |test| {
        if differs("logger-stdin") {
            return;
        }
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let path = logger(test, "logger", COPY);
        let stdin = Fifo::new(test.dir().join("stdin"));
        let exec = bundle.exec_sh("e", "cat; echo end");
        shim.run(exec.stdio(&stdin.name(), &uri(&path), &uri(&path)))
            .await;
        let mut typed = stdin.writer().await;
        typed.write("one\n").await;
        drop(typed);
        shim.close_io("c", "e").await.unwrap();
        shim.wait("c", "e").await.unwrap();
        shim.delete("c", "e").await.unwrap();
        let said = fs::read_to_string(test.share().join("out")).unwrap();
        assert_eq!(said, "one\nend\n");
    });
}

/// What `start` inherits goes to no daemon and no logger: a pipe of a stranger's would stay open for
/// as long as they live.
#[test]
fn logger_has_no_files_of_whoever_started_the_shim() {
    if differs("inherited-fds") {
        return;
    }
    harness::run(async |test| {
        let strange = test.dir().join("strange");
        fs::write(&strange, "").unwrap();
        let wrapped = test.dir().join("wrapped");
        let shim = harness::peers::shim().display();
        let text = format!(
            "#!/bin/sh\nexec 7<{0} 9<{0}\nexec {shim} \"$@\"\n",
            strange.display()
        );
        program::write(&wrapped, &text);
        let bundle = test.bundle("c").build();
        let shim = bundle.start().binary(&wrapped).shim().await;
        let has = |fds: &str| fds.contains("/strange");
        let fds = proc::fds(shim.pid()).unwrap();
        assert!(!fds.values().any(|fd| has(fd)), "{fds:?}");
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        let path = logger(
            test,
            "logger",
            &format!("ls -l /proc/$$/fd >$DIR/fds\n{COPY}"),
        );
        logged(&shim, &bundle, &uri(&path), "echo out").await;
        let fds = fs::read_to_string(test.share().join("fds")).unwrap();
        assert!(!has(&fds) && fds.contains("3 -> pipe"), "{fds}");
    });
}

/// I10: init's output, too.
#[test]
fn logger_of_init_ends_with_the_container() {
    harness::run(async |test| {
        let bundle = test
            .bundle("c")
            .sh("echo out; echo err >&2; exit 3")
            .build();
        let shim = bundle.start().shim().await;
        let uri = uri(&logger(test, "logger", COPY));
        shim.create(bundle.create().stdio("", &uri, &uri))
            .await
            .unwrap();
        shim.start("c", "").await.unwrap();
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 3);
        shim.delete("c", "").await.unwrap();
        assert_eq!(
            fs::read_to_string(test.share().join("out")).unwrap(),
            "out\n"
        );
        assert_eq!(
            fs::read_to_string(test.share().join("err")).unwrap(),
            "err\n"
        );
        released(&shim).await;
    });
}

/// I10: its arguments come from the URI's query, its environment tells the container, it runs
/// in the bundle, and has no stdio but /dev/null.
#[test]
fn logger_knows_its_container() {
    harness::run(async |test| {
        let script = "for word in \"$@\"; do echo \"$word\"; done >$DIR/args\n\
                      tr '\\0' '\\n' </proc/$$/environ >$DIR/env\npwd >$DIR/cwd\n\
                      stdio=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2)\necho \"$stdio\" >$DIR/stdio\n";
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let path = logger(test, "logger", &format!("{script}{COPY}"));
        let uri = format!("{}?--level=debug%20it&--level=twice", uri(&path));
        logged(&shim, &bundle, &uri, "echo out").await;
        let read = |name: &str| fs::read_to_string(test.share().join(name)).unwrap();
        assert_eq!(read("args"), "--level\ndebug it\n");
        let env = read("env");
        let mut env: Vec<&str> = env.lines().collect();
        env.sort();
        // An exec's id, although the name says container.
        let expected = [
            "CONTAINER_ID=e".to_owned(),
            format!("CONTAINER_NAMESPACE={}", test.namespace()),
        ];
        assert_eq!(env, expected);
        assert_eq!(read("cwd").trim_end(), bundle.path.to_string_lossy());
        assert_eq!(read("stdio"), "/dev/null\n".repeat(3));
        assert_eq!(read("out"), "out\n");
    });
}

/// I10: the process starts when the logger says it is ready, not before.
#[test]
fn logger_that_is_not_ready_holds_up_start() {
    harness::run(async |test| {
        let gate = harness::stdio::Fifo::new(test.share().join("gate"));
        let (mut open, _hold) = gate.gate();
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let path = logger(test, "logger", &format!("read line <$DIR/gate\n{COPY}"));
        let uri = uri(&path);
        shim.exec(bundle.exec_sh("e", "echo out").stdio("", &uri, &uri))
            .await
            .unwrap();
        let starting = tokio::task::spawn_local({
            let shim = shim.clone();
            async move { shim.start("c", "e").await }
        });
        wait::exists(&test.share().join("logger.pid")).await;
        shim.state("c", "").await.unwrap();
        assert!(!starting.is_finished());
        tokio::io::AsyncWriteExt::write_all(&mut open, b"go\n")
            .await
            .unwrap();
        starting.await.unwrap().unwrap();
        shim.wait("c", "e").await.unwrap();
        shim.delete("c", "e").await.unwrap();
        assert_eq!(
            fs::read_to_string(test.share().join("out")).unwrap(),
            "out\n"
        );
    });
}

/// I11: a logger that stays when its streams have ended is told to go.
#[test]
fn stubborn_logger_is_terminated_by_delete() {
    harness::run(async |test| {
        let script = "trap 'echo terminated >$DIR/end; exit' TERM\nexec 5>&- 3<&- 4<&-\n\
                      sleep 100000 & child=$!\nwait; kill $child";
        let script = script.replace("exit' TERM", "kill $child; exit' TERM");
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let path = logger(test, "logger", &script);
        logged(&shim, &bundle, &uri(&path), "true").await;
        assert_eq!(
            fs::read_to_string(test.share().join("end")).unwrap(),
            "terminated\n"
        );
        released(&shim).await;
    });
}

/// I10: a logger that cannot be run fails the Start, and only that.
#[test]
fn missing_logger_fails_start() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let uri = "binary:///no/such/logger";
        shim.exec(bundle.exec("e", &["true"]).stdio("", uri, uri))
            .await
            .unwrap();
        let status = refused(shim.start("c", "e").await);
        assert!(
            status
                .message
                .to_lowercase()
                .contains("no such file or directory"),
            "{status}"
        );
        shim.delete("c", "e").await.unwrap();
        released(&shim).await;
        let broken = test.bundle("broken").build();
        refused(shim.create(broken.create().stdio("", uri, uri)).await);
        assert_eq!(broken.mounts(), [] as [String; 0]);
        assert_eq!(refused(shim.state("broken", "").await).code, Code::NotFound);
    });
}

/// I10: `binary-v2://` insists that the logger says it is ready.
#[test]
fn binary_v2_insists_on_ready() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let silent = logger(test, "silent", "exit 0");
        let ready = logger(test, "ready", &format!("printf x >&5\n{COPY}"));
        let v2 = |path: &Path| format!("binary-v2://{}", path.display());
        let request = bundle.exec_sh("e", "echo out");
        if differs("binary-v2") {
            shim.exec(request.stdio("", &v2(&ready), &v2(&ready)))
                .await
                .unwrap();
            let status = refused(shim.start("c", "e").await);
            assert!(
                status.message.contains("unknown STDIO scheme binary-v2"),
                "{status}"
            );
            return;
        }
        shim.exec(request.stdio("", &v2(&silent), &v2(&silent)))
            .await
            .unwrap();
        let status = refused(shim.start("c", "e").await);
        assert!(
            status.message.contains("logging binary did not call ready"),
            "{status}"
        );
        shim.delete("c", "e").await.unwrap();
        logged(&shim, &bundle, &v2(&ready), "echo out").await;
        assert_eq!(
            fs::read_to_string(test.share().join("out")).unwrap(),
            "out\n"
        );
        released(&shim).await;
    });
}
