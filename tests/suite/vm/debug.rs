// SPDX-License-Identifier: Apache-2.0
//! An operator's look into a VM: its console, and programs of the host's in its guest.

use harness::bundle::Bundle;
use harness::{Shim, Test, peers, wait};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// A configuration of the test's own, with these settings beside those of all.
pub fn configuration(test: &Test, settings: &str) -> PathBuf {
    let common = std::env::var_os("DUNNAGE_VM_CONFIG").expect("set");
    let dir = std::path::Path::new(&common).parent().expect("a file");
    let text = fs::read_to_string(&common).expect("the configuration");
    let path = test.dir().join("shim-vm.toml");
    // Its paths may be relative to it.
    let text = text.replace(
        "image = \"dist",
        &format!("image = \"{}/dist", dir.display()),
    );
    fs::write(&path, format!("{settings}\n{text}")).expect("a configuration");
    path
}

/// A container in a VM with these settings.
async fn run(test: &Test, settings: &str) -> (Bundle, Shim) {
    let config = configuration(test, settings);
    let bundle = test.bundle("c").build();
    let start = bundle.start();
    let start = start.env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
    let shim = start.shim().await;
    shim.create(bundle.create()).await.expect("Create");
    shim.start("c", "").await.expect("Start");
    (bundle, shim)
}

/// The shim's program, about the VM of this test.
fn command(test: &Test, verb: &str) -> Command {
    let mut command = Command::new(peers::shim());
    let namespace = test.namespace();
    command.args([verb, "-namespace", namespace, "-id", "c"]);
    command
}

/// A shell in the guest.
fn shell(test: &Test, script: &str) -> Command {
    let mut command = command(test, "exec");
    command.arg(peers::rootfs().join("bin/busybox"));
    command.args(["sh", "-c", script]);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("the shim's program")
}

/// V7, V17: nobody runs anything in a guest unless the configuration says so; what it says now counts.
#[test]
fn a_program_in_the_guest_must_be_allowed() {
    crate::run(async |test| {
        let (bundle, _shim) = run(test, "").await;
        let refused = |output: &Output| {
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            text(&output.stderr)
        };
        let output = shell(test, "true").output().unwrap();
        let why = refused(&output);
        assert!(
            why.contains("exec into a VM: not allowed by debug_exec of "),
            "{why}"
        );
        configuration(test, "debug_exec = true");
        assert_eq!(
            shell(test, "exit 7").output().unwrap().status.code(),
            Some(7)
        );
        for (program, named) in [
            ("/nonexistent", "run /nonexistent in the VM: No such file"),
            ("/dev/null", "run /dev/null in the VM: not a file"),
            // It is no program.
            ("/etc/passwd", "run \"/etc/passwd\" in the guest: "),
        ] {
            let output = command(test, "exec").arg(program).output().unwrap();
            let why = refused(&output);
            assert!(why.contains(named), "{why}");
        }
        let mut nobody = Command::new(peers::shim());
        nobody.args(["exec", "-id", "nobody", "x"]);
        let why = refused(&nobody.output().unwrap());
        assert!(why.contains("no shim of \"nobody\" runs"), "{why}");
        drop(bundle);
    });
}

/// V17: a program has its standard streams, sees the guest and not a container, and ends with whoever
/// started it. What it says on the console is told to who follows that, to the VM's end.
#[test]
fn a_program_in_the_guest_speaks_and_the_console_is_told() {
    crate::run(async |test| {
        let (_bundle, shim) = run(test, "debug_exec = true").await;
        let script = "cat /proc/1/comm; ls /run/share/c; read word; echo got $word >&2";
        let mut child = spawn(shell(test, &format!("exec 2>&1; {script}")));
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"a word\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output.stdout), "init\nrootfs\ngot a word\n");
        assert_eq!(output.status.code(), Some(0));
        drop(stdin);
        // More than the link has room for, both ways.
        let data: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut child = spawn(shell(test, "cat"));
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let sent = data.clone();
        let sender = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
        let mut back = Vec::new();
        stdout.read_to_end(&mut back).unwrap();
        sender.join().unwrap();
        assert!(back == data);
        assert!(child.wait().unwrap().success());

        // Who has started it goes, and so does it.
        let mut child = spawn(shell(test, "echo up; sleep 98765"));
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        wait::until("the end of a program in the guest", || {
            let found = shell(test, "ps | grep -c 's[l]eep 98765'")
                .output()
                .unwrap();
            match &*text(&found.stdout) {
                "0\n" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;

        let say = |word: &str| {
            let said = shell(test, &format!("echo {word} >/dev/console")).output();
            assert!(said.unwrap().status.success());
        };
        say("the-first-line");
        wait::until("a line of the console", || {
            let output = command(test, "console").output().unwrap();
            let said = text(&output.stdout);
            let there = said.lines().any(|line| line == "the-first-line");
            there.then_some(()).ok_or(said)
        })
        .await;
        let mut follows = command(test, "console");
        follows.arg("-follow");
        let mut follows = spawn(follows);
        let mut lines = BufReader::new(follows.stdout.take().unwrap()).lines();
        let mut next = |wanted: &str| {
            let found = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(wanted)));
            assert!(found.is_some(), "no {wanted}");
        };
        next("the-first-line");
        say("another-line");
        next("another-line");
        wait::signal(crate::child(&shim, "-no-user-config"), libc::SIGKILL).unwrap();
        next("the VM is gone: QEMU ended: signal: killed");
        assert!(follows.wait().unwrap().success());
    });
}
