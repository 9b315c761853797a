// SPDX-License-Identifier: Apache-2.0
//! `ctr task attach`: the output, input and exit code of a container that someone else started.

use harness::containerd::Containerd;

for_each_containerd!(
    attach_shows_output_takes_input_and_returns_the_exit_code,
    a_container_whose_client_is_killed_goes_on_and_can_be_attached_to,
);

fn attach_shows_output_takes_input_and_returns_the_exit_code(containerd: &mut Containerd) {
    let go = containerd.fifo("go");
    let script = "read x < /share/go; echo now $x; echo err >&2; \
        read y; echo got $y; echo bye >&2; exit 7";
    containerd.run_detached(&[], "web", &["sh", "-c", script]);
    let mut attach = containerd.spawn(&["task", "attach", "web"]);
    go.send("speak");
    attach
        .stdout
        .wait_for("output", |out| (out == "now speak\n").then_some(()));
    attach
        .stderr
        .wait_for("errors", |err| (err == "err\n").then_some(()));
    attach.write("input\n");
    let output = attach.finish().exits(7).prints("now speak\ngot input\n");
    assert_eq!(output.stderr, "err\nbye\n", "stderr of {output}");
    // attach deletes the task it saw the end of.
    assert_eq!(containerd.status("web"), "-");
}

fn a_container_whose_client_is_killed_goes_on_and_can_be_attached_to(containerd: &mut Containerd) {
    let go = containerd.fifo("go");
    let script = "echo up; read x < /share/go; echo now $x; read x < /share/go; exit 3";
    let run = containerd.spawn_run(&[], "web", &["sh", "-c", script]);
    run.stdout
        .wait_for("output", |out| (out == "up\n").then_some(()));
    drop(run); // SIGKILL
    assert_eq!(containerd.status("web"), "RUNNING");
    let attach = containerd.spawn(&["task", "attach", "web"]);
    go.send("speak");
    // What nobody has read yet when a container exits is lost with its FIFO.
    attach
        .stdout
        .wait_for("output", |out| (out == "now speak\n").then_some(()));
    go.send("end");
    attach.finish().exits(3).prints("now speak\n");
}
