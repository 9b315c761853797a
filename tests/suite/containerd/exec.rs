// SPDX-License-Identifier: Apache-2.0
//! `ctr task exec`: more processes in a running container.

use harness::containerd::Containerd;
use std::thread;

for_each_containerd!(
    exec_prints_output_and_exits_with_its_code,
    exec_of_a_missing_program_names_it_and_the_container_goes_on,
    exec_passes_stdin_and_its_end,
    parallel_execs_each_get_their_own_output_and_code,
    an_exec_that_outlives_its_client_is_listed_and_can_be_killed_and_deleted,
    exec_in_a_stopped_container_is_refused,
);

fn exec_prints_output_and_exits_with_its_code(containerd: &mut Containerd) {
    containerd.run_service(&[], "web");
    let script = "echo to stdout; echo to stderr >&2; exit 6";
    let output = containerd
        .exec("web", "e", &["sh", "-c", script])
        .exits(6)
        .prints("to stdout\n");
    assert_eq!(output.stderr, "to stderr\n", "stderr of {output}");
    // ctr has deleted the exec: its id is free.
    containerd.exec("web", "e", &["true"]).ok();
}

fn exec_of_a_missing_program_names_it_and_the_container_goes_on(containerd: &mut Containerd) {
    containerd.run_service(&[], "web");
    let output = containerd.exec("web", "e", &["/no/such/program"]);
    let output = output
        .fails_with("OCI runtime exec failed")
        .fails_with("/no/such/program");
    assert_eq!(output.code, 1, "{output}");
    containerd
        .exec("web", "e", &["echo", "goes on"])
        .ok()
        .prints("goes on\n");
    assert_eq!(containerd.status("web"), "RUNNING");
}

fn exec_passes_stdin_and_its_end(containerd: &mut Containerd) {
    containerd.run_service(&[], "web");
    let mut exec = containerd.spawn(&["task", "exec", "--exec-id", "e", "web", "cat"]);
    exec.write("one\n");
    exec.stdout
        .wait_for("the line back", |out| (out == "one\n").then_some(()));
    exec.close_stdin();
    exec.finish().ok().prints("one\n");
}

fn parallel_execs_each_get_their_own_output_and_code(containerd: &mut Containerd) {
    containerd.run_service(&[], "web");
    let containerd = &*containerd;
    thread::scope(|threads| {
        for n in 1..=24 {
            threads.spawn(move || {
                let script = format!("echo {n}; exit {n}");
                let output = containerd.exec("web", &format!("e{n}"), &["sh", "-c", &script]);
                output.exits(n).prints(&format!("{n}\n"));
            });
        }
    });
    assert_eq!(containerd.status("web"), "RUNNING");
}

fn an_exec_that_outlives_its_client_is_listed_and_can_be_killed_and_deleted(
    containerd: &mut Containerd,
) {
    let events = containerd.events();
    containerd.run_service(&[], "web");
    containerd.exec_detached("web", "worker", &["sleep", "1000"]);
    let seen = events.until_seen("exec-started web/worker");
    let pid = seen.last().expect("an event").pid;
    let listed = containerd.ctr(&["task", "ps", "web"]).ok();
    let of_worker = |line: &&str| line.starts_with(&format!("{pid} ")) && line.contains("worker");
    assert_eq!(
        listed.stdout.lines().filter(of_worker).count(),
        1,
        "worker {pid} in {listed}"
    );
    let refused = containerd.ctr(&["task", "delete", "--exec-id", "worker", "web"]);
    refused.fails_with("process must be stopped before deletion");
    containerd
        .ctr(&[
            "task",
            "kill",
            "--signal",
            "SIGKILL",
            "--exec-id",
            "worker",
            "web",
        ])
        .ok();
    events.until_seen("exit web/worker 137");
    containerd
        .ctr(&["task", "delete", "--exec-id", "worker", "web"])
        .exits(137);
    containerd.exec("web", "worker", &["true"]).ok();
    assert_eq!(containerd.status("web"), "RUNNING");
}

fn exec_in_a_stopped_container_is_refused(containerd: &mut Containerd) {
    let events = containerd.events();
    containerd.run_service(&[], "web");
    containerd.kill_task("SIGTERM", "web");
    events.until_seen("exit web 6");
    let refused = containerd.exec("web", "e", &["true"]);
    assert!(refused.code != 0 && !refused.stderr.is_empty(), "{refused}");
    assert_eq!(containerd.status("web"), "STOPPED");
}
