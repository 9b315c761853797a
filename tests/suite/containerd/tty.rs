// SPDX-License-Identifier: Apache-2.0
//! Terminals: ctr on a real pty, as if a person typed.

use harness::containerd::Containerd;
use harness::pty::Pty;
use std::time::Duration;

for_each_containerd!(
    run_on_a_terminal_shows_a_prompt_takes_commands_and_exits_with_the_shells_code,
    run_on_a_terminal_follows_the_size_of_the_window,
    exec_on_a_terminal_shows_a_prompt_takes_commands_and_exits_with_the_shells_code,
    exec_on_a_terminal_follows_the_size_of_the_window,
    ctrl_c_on_a_terminal_interrupts_the_command_in_the_container,
    a_terminal_shows_all_of_a_long_output,
    attach_to_a_terminal_shows_output_takes_input_and_returns_the_exit_code,
);

/// A shell that tells its size now and whenever it is told of a new one.
const SIZES: &str = "trap 'echo size $(stty size)' WINCH; echo size $(stty size); echo up; \
    while :; do sleep 1000 & wait $!; done";

fn converse(mut terminal: Pty) {
    terminal.expect("in>");
    terminal.type_in("tty; echo $((6 * 7)) is it\n");
    terminal.expect("/dev/pts/0");
    terminal.expect("42 is it");
    terminal.expect("in>");
    terminal.type_in("exit 5\n");
    terminal.finish().exits(5);
}

/// ctr sets the container's size after it has started it, so the first `stty size` may be early:
/// then the trap tells. Only after that ctr begins to listen to SIGWINCH, and tells nobody: the
/// window is pulled until it follows. From then on each pull must arrive.
fn resize(mut terminal: Pty) -> Pty {
    terminal.expect("size 31 97");
    let mut columns = 101..140;
    let follows = columns.any(|columns| {
        terminal.resize(31, columns);
        terminal.shows(&format!("size 31 {columns}"), Duration::from_millis(500))
    });
    assert!(follows, "ctr does not listen to SIGWINCH");
    terminal.resize(43, 143);
    terminal.expect("size 43 143");
    terminal.resize(7, 40);
    terminal.expect("size 7 40");
    terminal
}

fn run_on_a_terminal_shows_a_prompt_takes_commands_and_exits_with_the_shells_code(
    containerd: &mut Containerd,
) {
    let options = ["--rm", "-t", "--env", "PS1=in>"];
    converse(Pty::spawn(
        containerd.run_command(&options, "box", &["sh"]),
        24,
        80,
    ));
    assert_eq!(containerd.tasks(), []);
}

fn run_on_a_terminal_follows_the_size_of_the_window(containerd: &mut Containerd) {
    let command = containerd.run_command(&["--rm", "-t"], "box", &["sh", "-c", SIZES]);
    let terminal = resize(Pty::spawn(command, 31, 97));
    containerd.kill_task("SIGKILL", "box");
    terminal.finish().exits(137);
}

fn exec_on_a_terminal_shows_a_prompt_takes_commands_and_exits_with_the_shells_code(
    containerd: &mut Containerd,
) {
    containerd.run_service(&["--env", "PS1=in>"], "box");
    let args = ["task", "exec", "-t", "--exec-id", "e", "box", "sh"];
    converse(Pty::spawn(containerd.ctr_command(&args), 24, 80));
    assert_eq!(containerd.status("box"), "RUNNING");
}

fn exec_on_a_terminal_follows_the_size_of_the_window(containerd: &mut Containerd) {
    containerd.run_service(&[], "box");
    let args = [
        "task",
        "exec",
        "-t",
        "--exec-id",
        "e",
        "box",
        "sh",
        "-c",
        SIZES,
    ];
    let terminal = resize(Pty::spawn(containerd.ctr_command(&args), 31, 97));
    containerd
        .ctr(&[
            "task",
            "kill",
            "--signal",
            "SIGKILL",
            "--exec-id",
            "e",
            "box",
        ])
        .ok();
    terminal.finish().exits(137);
}

fn ctrl_c_on_a_terminal_interrupts_the_command_in_the_container(containerd: &mut Containerd) {
    let options = ["--rm", "-t", "--env", "PS1=in>"];
    let mut terminal = Pty::spawn(containerd.run_command(&options, "box", &["sh"]), 24, 80);
    terminal.expect("in>");
    // What says so is in the foreground by then: the shell alone would be interrupted before it.
    terminal.type_in("sh -c \"echo go''ing; exec sleep 1000\"\n");
    terminal.expect("going");
    terminal.type_in("\x03");
    terminal.expect("in>");
    terminal.type_in("echo code $?\n");
    terminal.expect("code 130");
    terminal.type_in("exit 0\n");
    terminal.finish().ok();
}

fn a_terminal_shows_all_of_a_long_output(containerd: &mut Containerd) {
    // 200,000 numbered lines, 1.4 MB; a terminal makes \r\n of \n. The container ends when the last
    // was seen: on a busy machine ctr may leave before it has shown all, whatever the shim.
    let script = ["sh", "-c", "seq 1 200000; read line"];
    let command = containerd.run_command(&["--rm", "-t"], "box", &script);
    let mut terminal = Pty::spawn(command, 24, 80);
    terminal.expect("\n200000\r");
    terminal.type_in("\n");
    let output = terminal.finish();
    assert_eq!(output.code, 0);
    // Two \r while ctr has not yet made its own terminal raw.
    let mut lines = output
        .stdout
        .lines()
        .map(|line| line.trim_end_matches('\r'));
    let wrong = (1..=200_000).find(|n| lines.next() != Some(&n.to_string()));
    assert_eq!(wrong, None, "first wrong line");
}

fn attach_to_a_terminal_shows_output_takes_input_and_returns_the_exit_code(
    containerd: &mut Containerd,
) {
    let up = containerd.fifo("up");
    let script = "echo up > /share/up; read a; echo got $a; read b; echo bye $b; exit 9";
    // `run -d -t` wants a terminal too.
    let command = containerd.run_command(&["-d", "-t"], "box", &["sh", "-c", script]);
    Pty::spawn(command, 24, 80).finish().ok();
    assert_eq!(up.line(), "up");
    let mut terminal = Pty::spawn(containerd.ctr_command(&["task", "attach", "box"]), 24, 80);
    // ctr opens both FIFOs at once: output only counts on it once some has come.
    terminal.type_in("hello\n");
    terminal.expect("got hello");
    terminal.type_in("world\n");
    terminal.expect("bye world");
    terminal.finish().exits(9);
}
