// SPDX-License-Identifier: Apache-2.0
//! `ctr run`: output, input, exit codes, and nothing left afterwards.

use harness::containerd::Containerd;

for_each_containerd!(
    run_exits_with_the_exit_code_of_the_container,
    run_of_a_container_killed_by_a_signal_exits_with_128_plus_the_signal,
    run_prints_stdout_and_stderr_apart,
    run_passes_stdin_and_its_end_to_the_container,
    run_prints_all_of_a_long_output,
    run_rm_leaves_no_task_and_no_container,
    run_detached_returns_while_the_container_runs,
    run_of_a_missing_program_names_it_and_leaves_nothing,
    a_container_starts_with_no_signal_ignored_or_blocked,
);

fn run_exits_with_the_exit_code_of_the_container(containerd: &mut Containerd) {
    for code in [0, 1, 7, 137, 255] {
        containerd
            .run(&["--rm"], "code", &["sh", "-c", &format!("exit {code}")])
            .exits(code);
    }
}

fn run_of_a_container_killed_by_a_signal_exits_with_128_plus_the_signal(
    containerd: &mut Containerd,
) {
    let up = containerd.fifo("up");
    for (signal, code) in [("KILL", 137), ("USR1", 138), ("TERM", 143)] {
        // PID 1 of a pid namespace is spared by signals it does not handle, except SIGKILL: the
        // shell ends as its child did.
        let script = match signal {
            "KILL" => "echo up > /share/up; sleep 1000".to_owned(),
            _ => format!("echo up > /share/up; sh -c 'kill -{signal} $$'; exit $?"),
        };
        let run = containerd.spawn_run(&["--rm"], "killed", &["sh", "-c", &script]);
        assert_eq!(up.line(), "up");
        if signal == "KILL" {
            containerd.kill_task("SIGKILL", "killed");
        }
        run.finish().exits(code);
    }
}

fn run_prints_stdout_and_stderr_apart(containerd: &mut Containerd) {
    let words = ["sh", "-c", "echo to stdout; echo to stderr >&2"];
    let output = containerd
        .run(&["--rm"], "talk", &words)
        .ok()
        .prints("to stdout\n");
    assert_eq!(output.stderr, "to stderr\n", "stderr of {output}");
}

fn run_passes_stdin_and_its_end_to_the_container(containerd: &mut Containerd) {
    let words = ["sh", "-c", "cat; echo end of input; exit 3"];
    let mut run = containerd.spawn_run(&["--rm"], "cat", &words);
    run.write("one\n");
    run.stdout
        .wait_for("the first line", |out| (out == "one\n").then_some(()));
    run.write("two\n");
    run.close_stdin();
    run.finish().exits(3).prints("one\ntwo\nend of input\n");
}

fn run_prints_all_of_a_long_output(containerd: &mut Containerd) {
    let script =
        "head -c 8000000 /dev/zero | tr '\\0' o; head -c 3000000 /dev/zero | tr '\\0' e >&2";
    let output = containerd.run(&["--rm"], "long", &["sh", "-c", script]);
    assert_eq!(output.code, 0);
    assert_eq!(
        (output.stdout.len(), output.stderr.len()),
        (8_000_000, 3_000_000)
    );
    assert!(output.stdout.bytes().all(|b| b == b'o') && output.stderr.bytes().all(|b| b == b'e'));
}

fn run_rm_leaves_no_task_and_no_container(containerd: &mut Containerd) {
    containerd.run(&["--rm"], "brief", &["true"]).ok();
    assert_eq!(containerd.tasks(), []);
    assert!(containerd.containers().is_empty());
    containerd
        .run(&["--rm"], "brief", &["sh", "-c", "exit 4"])
        .exits(4);
}

fn run_detached_returns_while_the_container_runs(containerd: &mut Containerd) {
    let task = containerd.run_detached(&[], "web", &["sleep", "1000"]);
    assert_eq!(task.status, "RUNNING");
    containerd.shim_of(&task);
}

fn run_of_a_missing_program_names_it_and_leaves_nothing(containerd: &mut Containerd) {
    let output = containerd.run(&["--rm"], "none", &["/no/such/program"]);
    let output = output
        .fails_with("OCI runtime create failed")
        .fails_with("/no/such/program");
    assert_eq!(output.code, 1, "{output}");
    assert_eq!(containerd.tasks(), []);
    assert!(
        !containerd.runc_state("none").exists(),
        "runc still knows the container"
    );
    containerd.run(&["--rm"], "none", &["true"]).ok();
}

/// A shim's own signal handling must not reach the container through runc.
fn a_container_starts_with_no_signal_ignored_or_blocked(containerd: &mut Containerd) {
    let words = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"];
    containerd.run_service(&[], "web");
    for output in [
        containerd.exec("web", "e", &words),
        containerd.run(&["--rm"], "once", &words),
    ] {
        let sets = output
            .stdout
            .split_whitespace()
            .filter_map(|w| u64::from_str_radix(w, 16).ok());
        // Signals 1 to 31; whoever started the test may ignore a real-time signal.
        let sets: Vec<u64> = sets.map(|set| set & 0x7fff_ffff).collect();
        assert_eq!(sets, [0, 0], "blocked and ignored signals of {output}");
    }
}
