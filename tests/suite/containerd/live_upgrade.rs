// SPDX-License-Identifier: Apache-2.0
//! The shim's binary is replaced under running containers, with containerd up, and with containerd
//! started anew afterwards.

use harness::containerd::Containerd;
use harness::containerd::ctr::ends_within;
use harness::containerd::events::of;
use harness::containerd::{DEADLINE, SHIM};
use harness::peers;
use harness::pty::Pty;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

for_each_containerd!(
    fifty_upgrades_lose_and_repeat_nothing,
    an_upgraded_shim_is_found_again_by_a_restarted_containerd,
);

const ROUNDS: usize = 50;

/// Puts another file in the shim's place and has the running shims become it.
fn upgrade(containerd: &Containerd, shim: i32) {
    containerd.use_shim(peers::shim());
    let output = containerd.upgrade_shims().ok();
    let line = format!("pid {shim}: runs ");
    assert!(output.stdout.contains(&line), "{output}");
    let inode = |path: &Path| fs::metadata(path).expect("a binary").ino();
    let runs = inode(Path::new(&format!("/proc/{shim}/exe")));
    assert_eq!(runs, inode(&containerd.dir().join("bin").join(SHIM)));
}

/// A counter on stdout, a person at a terminal, an exec under way and `ctr`s that wait for each:
/// all of it goes on, 50 times.
fn fifty_upgrades_lose_and_repeat_nothing(containerd: &mut Containerd) {
    if peers::is_go() {
        return;
    }
    let events = containerd.events();
    let end = containerd.fifo("end");
    let script = "i=0; while read line; do i=$((i+1)); echo $i $line; done; exit 7";
    let mut counter = containerd.spawn_run(&[], "web", &["sh", "-c", script]);
    counter.write("first\n");
    let mut expected = "1 first\n".to_owned();
    counter
        .stdout
        .wait_for("the first line", |out| (out == expected).then_some(()));
    let task = containerd.task("web").expect("a task");
    let shim = containerd.shim_of(&task);
    let script = "echo in; read x < /share/end; exit 5";
    let exec = containerd.spawn_exec("web", "worker", &["sh", "-c", script]);
    exec.stdout
        .wait_for("the exec", |out| (out == "in\n").then_some(()));
    let script = "echo up; while read line; do echo \"got $line;\"; done; exit 4";
    let args = [
        "task",
        "exec",
        "-t",
        "--exec-id",
        "person",
        "web",
        "sh",
        "-c",
        script,
    ];
    let mut terminal = Pty::spawn(containerd.ctr_command(&args), 24, 80);
    terminal.expect("up");
    for round in 2..=ROUNDS + 1 {
        counter.write(&format!("line{round}\n"));
        terminal.type_in(&format!("key{round}\n"));
        upgrade(containerd, shim);
        expected.push_str(&format!("{round} line{round}\n"));
        counter
            .stdout
            .wait_for("a line", |out| (out == expected).then_some(()));
        terminal.expect(&format!("got key{round};"));
    }
    containerd
        .exec("web", "new", &["sh", "-c", "echo new; exit 3"])
        .exits(3)
        .prints("new\n");
    end.send("exit");
    exec.finish().exits(5).prints("in\n");
    terminal.type_in("\u{4}");
    terminal.finish().exits(4);
    assert_eq!(containerd.task("web"), Some(task));
    counter.close_stdin();
    counter.finish().exits(7).prints(&expected);
    let seen = of(&events.until_seen("delete web 7"), "web");
    let count = |line: &str| seen.iter().filter(|seen| *seen == line).count();
    for once in [
        "start web",
        "exit web/worker 5",
        "exit web/person 4",
        "exit web 7",
        "delete web 7",
    ] {
        assert_eq!(count(once), 1, "{once} in {seen:?}");
    }
    assert!(ends_within(shim, DEADLINE), "the shim still runs");
}

/// What a restarted containerd finds is the same shim; exec, attach, kill and delete work, and the
/// exit code is the container's.
fn an_upgraded_shim_is_found_again_by_a_restarted_containerd(containerd: &mut Containerd) {
    if peers::is_go() {
        return;
    }
    containerd.note("pod");
    let options = ["--annotation", "io.containerd.runc.v2.group=pod"];
    let tasks = ["a", "b"].map(|id| containerd.run_service(&options, id));
    let shim = containerd.shim_of(&tasks[0]);
    upgrade(containerd, shim);
    containerd.kill();
    // Nobody is connected now.
    upgrade(containerd, shim);
    containerd.restart();
    upgrade(containerd, shim);
    for task in &tasks {
        assert_eq!(containerd.task(&task.id).as_ref(), Some(task));
        assert_eq!(containerd.shim_of(task), shim);
        let words = ["sh", "-c", "echo after; exit 3"];
        containerd
            .exec(&task.id, "e", &words)
            .exits(3)
            .prints("after\n");
    }
    let events = containerd.events();
    let attach = containerd.spawn(&["task", "attach", "a"]);
    containerd.kill_task("SIGTERM", "a");
    attach.finish().exits(6);
    events.until_seen("exit a 6");
    // Others can still join.
    let late = containerd.run_service(&options, "late");
    assert_eq!(containerd.shim_of(&late), shim);
    containerd.kill_task("SIGTERM", "b");
    events.until_seen("exit b 6");
    let deleted = containerd.ctr(&["task", "delete", "b"]).ok();
    assert!(deleted.stderr.contains("non-zero exit code 6"), "{deleted}");
    containerd.ctr(&["task", "delete", "--force", "late"]).ok();
    assert!(ends_within(shim, DEADLINE), "the shim still runs");
}
