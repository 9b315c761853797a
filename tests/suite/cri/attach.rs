// SPDX-License-Identifier: Apache-2.0
//! `kubectl attach`: the output and input of a container's first process.

use harness::cri::Cri;
use harness::cri::stream::{STDERR, STDOUT, With};

for_each_containerd!(
    attach_shows_output_and_takes_input,
    attach_to_a_terminal_shows_output_takes_input_and_follows_its_size,
    two_attached_clients_see_the_same_output,
    a_container_whose_client_hangs_up_goes_on_and_can_be_attached_to,
);

const INPUT: With = With {
    stdin: true,
    tty: false,
};

/// Attaching takes a moment after the connection is made: what ticks is seen when it is done.
const ECHO: &str = "while :; do read -t 0.1 x && echo got $x || echo tick; done";

fn attach_shows_output_and_takes_input(cri: &mut Cri) {
    let pod = cri.run("web");
    let script = "until read -t 0.1 x; do echo tick; echo tock >&2; done; \
        echo got $x; echo err >&2; read x; echo bye $x >&2; read x; exit 7";
    let mut config = cri.container("a", &["sh", "-c", script]);
    config.stdin = true;
    let id = cri.launch(&pod, config);
    let mut attach = cri.attach(&id, INPUT);
    attach.expect(STDOUT, "tick\n");
    attach.expect(STDERR, "tock\n");
    attach.write("input\n");
    attach.expect(STDOUT, "got input\n");
    attach.expect(STDERR, "err\n");
    attach.write("end\n");
    attach.expect(STDERR, "bye end\n");
    // Only now: containerd hangs up on who is attached when the container exits.
    attach.write("\n");
    drop(attach);
    assert_eq!(cri.exited(&id).exit_code, 7);
}

fn attach_to_a_terminal_shows_output_takes_input_and_follows_its_size(cri: &mut Cri) {
    let pod = cri.run("web");
    let script = "until read -t 0.1 x; do echo tick; done; exec sh";
    let mut config = cri.container("a", &["sh", "-c", script]);
    (config.stdin, config.tty) = (true, true);
    let id = cri.launch(&pod, config);
    let with = With {
        stdin: true,
        tty: true,
    };
    let mut attach = cri.attach(&id, with);
    attach.expect(STDOUT, "tick\r\n");
    attach.write("\n");
    attach.write("echo $((6 * 7)) is it\n");
    attach.expect(STDOUT, "42 is it");
    attach.write("trap 'echo size $(stty size)' WINCH; echo trap''ped; while :; do read -t 1 x && break; done\n");
    attach.expect(STDOUT, "trapped");
    attach.resize(43, 143);
    attach.expect(STDOUT, "size 43 143");
    attach.write("\n");
    attach.write("exit 5\n");
    assert_eq!(cri.exited(&id).exit_code, 5);
}

fn two_attached_clients_see_the_same_output(cri: &mut Cri) {
    let pod = cri.run("web");
    let mut config = cri.container("a", &["sh", "-c", ECHO]);
    config.stdin = true;
    let id = cri.launch(&pod, config);
    let mut first = cri.attach(&id, INPUT);
    first.expect(STDOUT, "tick\n");
    first.write("one\n");
    first.expect(STDOUT, "got one\n");
    let mut second = cri.attach(&id, INPUT);
    second.expect(STDOUT, "tick\n");
    second.write("two\n");
    second.expect(STDOUT, "got two\n");
    first.expect(STDOUT, "got two\n");
    first.write("three\n");
    second.expect(STDOUT, "got three\n");
}

fn a_container_whose_client_hangs_up_goes_on_and_can_be_attached_to(cri: &mut Cri) {
    let pod = cri.run("web");
    let mut config = cri.container("a", &["sh", "-c", ECHO]);
    config.stdin = true;
    let id = cri.launch(&pod, config);
    let mut attach = cri.attach(&id, INPUT);
    attach.expect(STDOUT, "tick\n");
    attach.write("one\n");
    attach.expect(STDOUT, "got one\n");
    drop(attach);
    let mut attach = cri.attach(&id, INPUT);
    attach.expect(STDOUT, "tick\n");
    attach.write("two\n");
    attach.expect(STDOUT, "got two\n");
}
