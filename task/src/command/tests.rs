// SPDX-License-Identifier: Apache-2.0
//! What a program finds when it is executed, and what is told of one that is not.

use super::*;
use crate::sys::wait::{ExitStatus, reap};
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Runs it to its end; what it printed, and how it ended.
fn output(command: &mut Command) -> (String, ExitStatus) {
    let mut out = tempfile::tempfile().unwrap();
    command.stdout(out.try_clone().unwrap());
    let (pid, not_executed) = command.spawn().unwrap();
    let status = end(pid);
    assert!(not_executed.error().is_none());
    out.rewind().unwrap();
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    (text, status)
}

fn end(pid: u32) -> ExitStatus {
    let end = crate::sys::pidfd(pid).unwrap();
    let mut ready = [nix::poll::PollFd::new(
        end.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    nix::poll::poll(&mut ready, nix::poll::PollTimeout::NONE).unwrap();
    reap(Some(pid)).unwrap().unwrap().1.status
}

fn error(command: &Command) -> i32 {
    let (pid, not_executed) = command.spawn().unwrap();
    assert_eq!(end(pid), ExitStatus::Code(127));
    not_executed.error().unwrap().raw_os_error().unwrap()
}

fn sh(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

#[test]
fn it_has_its_words_environment_and_directory() {
    let mut command = sh(r#"echo "$0,$1,$A,$B,$HOME"; pwd; exit 7"#);
    command
        .args(["zero", "one two"])
        .env("A", "a=b")
        .env("B", "b")
        .env_remove("B")
        .env_remove("HOME")
        .current_dir("/proc");
    let ended = ExitStatus::Code(7);
    assert_eq!(
        output(&mut command),
        ("zero,one two,a=b,,\n/proc\n".into(), ended)
    );

    let mut command = Command::new("/usr/bin/env");
    command.env("A", "a").env_clear().env("C", "c");
    assert_eq!(output(&mut command).0, "C=c\n");

    let mut command = Command::new("/bin/sh");
    command.arg0("other").args(["-c", "echo $0"]);
    assert_eq!(output(&mut command).0, "other\n");
}

/// Also those of which one has the number that another is to have, or its own.
#[test]
fn it_has_each_file_under_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        fs::write(dir.path().join(name), name).unwrap();
        File::open(dir.path().join(name)).unwrap()
    };
    let files = ["a", "b", "c"].map(file);
    let [a, b, c] = files.each_ref().map(AsRawFd::as_raw_fd);
    // Each has the number of another.
    let mut command = sh(&format!("cd /proc/self/fd; cat {b} {c} {a}"));
    let [first, second, third] = files;
    command.file(b, first).file(c, second).file(a, third);
    assert_eq!(output(&mut command).0, "abc");

    let same = file("d");
    let number = same.as_raw_fd();
    let mut command = sh(&format!("cat; cat /proc/self/fd/{number}"));
    command.file(number, same).null([0]);
    assert_eq!(output(&mut command).0, "d");
}

#[test]
fn no_signal_is_blocked_or_handled() {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn handler(_: i32) {}
    let action = |handler| SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    #[allow(unsafe_code, reason = "sigaction(2) has no safe form")]
    let set = |signal, handler| unsafe { sigaction(signal, &action(handler)).unwrap() };
    set(Signal::SIGUSR2, SigHandler::Handler(handler));
    set(Signal::SIGURG, SigHandler::SigIgn);
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGUSR1);
    blocked.thread_block().unwrap();

    let mut command = Command::new("/bin/cat");
    command.arg("/proc/self/status");
    let text = output(&mut command).0;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    };
    let bit = |signal: Signal| 1 << (signal as i32 - 1);
    assert_eq!(field("SigBlk:"), 0);
    assert_eq!(field("SigCgt:"), 0);
    assert_eq!(field("SigIgn:") & bit(Signal::SIGURG), bit(Signal::SIGURG));
    assert_eq!(field("SigIgn:") & bit(Signal::SIGPIPE), 0);
    // This process has what it had.
    assert!(SigSet::thread_get_mask().unwrap().contains(Signal::SIGUSR1));
    let had = set(Signal::SIGUSR2, SigHandler::SigDfl).handler();
    assert!(matches!(had, SigHandler::Handler(_)), "{had:?}");
    set(Signal::SIGURG, SigHandler::SigDfl);
}

#[test]
fn a_program_is_looked_for_in_its_own_path() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let dir = dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        dir
    };
    let put = |dir: &Path, mode: u32| {
        let program = dir.join("prog");
        fs::write(&program, format!("#!/bin/sh\necho {}", dir.display())).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
    };
    let [none, locked, first, second] = ["none", "locked", "first", "second"].map(place);
    put(&locked, 0o600);
    put(&first, 0o700);
    put(&second, 0o700);
    let path = |dirs: &[&Path]| std::env::join_paths(dirs).unwrap();
    let prog = |dirs: &[&Path]| {
        let mut command = Command::new("prog");
        command.env("PATH", path(dirs)).current_dir(&second);
        command
    };
    let file = Path::new("/dev/null");
    let found = output(&mut prog(&[&none, file, &locked, &first, &second])).0;
    assert_eq!(found, format!("{}\n", first.display()));
    // An empty part is the working directory.
    let found = output(&mut prog(&[Path::new("")])).0;
    assert_eq!(found, format!("{}\n", second.display()));
    assert_eq!(error(&prog(&[&none, &locked])), libc::EACCES);
    assert_eq!(error(&prog(&[&none, file])), libc::ENOENT);

    let mut command = Command::new("no-such-program");
    assert_eq!(error(&command), libc::ENOENT);
    assert_eq!(error(Command::new("").env_clear()), libc::ENOENT);
    command = sh("true");
    command.current_dir("/no/such/directory");
    assert_eq!(error(&command), libc::ENOENT);
}

#[test]
fn what_no_program_can_be_given_is_refused_by_name() {
    let mut command = sh("true");
    command.env("A", "b\0c");
    let refused = command.spawn().map(drop).unwrap_err().to_string();
    assert_eq!(refused, r#""A=b\0c" has a NUL byte in it"#);
}

#[test]
fn it_leads_a_group_and_dies_with_the_thread_that_started_it() {
    let (mut out, write) = io::pipe().unwrap();
    let pid = std::thread::spawn(move || {
        let mut command = sh("echo $(cut -d' ' -f5 /proc/self/stat); exec sleep 1000");
        command.stdout(write).lead_group().die_with_parent();
        let (pid, _) = command.spawn().unwrap();
        drop(command);
        let mut group = [0; 16];
        let length = out.read(&mut group).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&group[..length]),
            format!("{pid}\n")
        );
        pid
    });
    assert_eq!(end(pid.join().unwrap()), ExitStatus::Signal(9));
}
