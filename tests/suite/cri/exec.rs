// SPDX-License-Identifier: Apache-2.0
//! More processes in a running container: `kubectl exec`, and the probes of a kubelet.

use harness::cri::Cri;
use harness::cri::stream::{STDERR, STDOUT, With};
use std::thread;

for_each_containerd!(
    exec_sync_returns_output_errors_and_exit_code,
    exec_sync_over_its_time_is_killed_and_refused,
    exec_sync_of_a_program_that_does_not_exist_is_refused_by_name,
    exec_sync_returns_all_of_a_long_output,
    probes_of_many_containers_at_once_each_get_their_answer,
    exec_streams_output_and_errors_apart_and_tells_the_exit_code,
    exec_takes_input,
    exec_on_a_terminal_takes_commands_follows_its_size_and_tells_the_exit_code,
    an_exec_whose_client_hangs_up_does_no_harm_to_the_next,
);

const INPUT: With = With {
    stdin: true,
    tty: false,
};
const TERMINAL: With = With {
    stdin: true,
    tty: true,
};

fn exec_sync_returns_output_errors_and_exit_code(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    for code in [0, 1, 6, 255] {
        let script = format!("echo out {code}; echo err {code} >&2; exit {code}");
        let answer = cri.exec_sync(&id, &["sh", "-c", &script]);
        assert_eq!(answer.stdout, format!("out {code}\n").as_bytes());
        assert_eq!(answer.stderr, format!("err {code}\n").as_bytes());
        assert_eq!(answer.exit_code, code);
    }
}

fn exec_sync_over_its_time_is_killed_and_refused(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let up = cri.fifo("exec.up");
    let script = "echo $$ > /share/exec.up; exec sleep 12345";
    let error = cri
        .try_exec_sync(&id, &["sh", "-c", script], 1)
        .expect_err("an exec that does not end");
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    let pid = up.line();
    let seen = cri.exec_sync(&id, &["ps", "-o", "pid,args"]);
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(
        !seen.contains("sleep 12345"),
        "process {pid} still runs: {seen}"
    );
}

fn exec_sync_of_a_program_that_does_not_exist_is_refused_by_name(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let error = cri
        .try_exec_sync(&id, &["/no/such/program"], 0)
        .expect_err("no such program");
    assert!(
        error.message().contains("OCI runtime exec failed")
            && error.message().contains("/no/such/program"),
        "{error}"
    );
    assert_eq!(
        cri.exec_sync(&id, &["echo", "goes on"]).stdout,
        b"goes on\n"
    );
}

fn exec_sync_returns_all_of_a_long_output(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let answer = cri.exec_sync(&id, &["seq", "100000"]);
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(
        answer.stdout == expected.as_bytes(),
        "{} bytes",
        answer.stdout.len()
    );
}

fn probes_of_many_containers_at_once_each_get_their_answer(cri: &mut Cri) {
    let pod = cri.run("web");
    let ids = ["a", "b", "c"].map(|name| cri.service(&pod, name));
    let (cri, ids) = (&*cri, &ids);
    thread::scope(|threads| {
        for n in 0..24_i32 {
            threads.spawn(move || {
                let script = format!("echo {n}; exit {n}");
                let id = &ids[n as usize % ids.len()];
                let answer = cri.exec_sync(id, &["sh", "-c", &script]);
                assert_eq!(answer.stdout, format!("{n}\n").as_bytes());
                assert_eq!(answer.exit_code, n);
            });
        }
    });
}

fn exec_streams_output_and_errors_apart_and_tells_the_exit_code(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let go = cri.fifo("go");
    let script = "echo one; echo wrong >&2; read x < /share/go; echo $x; exit 9";
    let mut exec = cri.exec(&id, With::default(), &["sh", "-c", script]);
    exec.expect(STDOUT, "one\n");
    exec.expect(STDERR, "wrong\n");
    go.send("two");
    let ended = exec.finish();
    assert_eq!(
        (&ended.stdout[..], &ended.stderr[..]),
        ("one\ntwo\n", "wrong\n")
    );
    assert_eq!(ended.code, 9);
    let ended = cri.exec(&id, With::default(), &["true"]).finish();
    assert_eq!(ended.code, 0, "{ended:?}");
}

fn exec_takes_input(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let mut exec = cri.exec(
        &id,
        INPUT,
        &["sh", "-c", "read x; echo got $x; head -n 2; exit 4"],
    );
    exec.write("first\n");
    exec.expect(STDOUT, "got first\n");
    exec.write("second\nthi");
    exec.write("rd\n");
    let ended = exec.finish();
    assert_eq!(ended.stdout, "got first\nsecond\nthird\n");
    assert_eq!((&ended.stderr[..], ended.code), ("", 4));
}

fn exec_on_a_terminal_takes_commands_follows_its_size_and_tells_the_exit_code(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let mut exec = cri.exec(&id, TERMINAL, &["env", "PS1=in>", "sh"]);
    exec.expect(STDOUT, "in>");
    exec.write("tty; echo $((6 * 7)) is it\n");
    exec.expect(STDOUT, "/dev/pts/0");
    exec.expect(STDOUT, "42 is it");
    // The shell says its size whenever it is told of a new one.
    exec.write("trap 'echo size $(stty size)' WINCH; echo trap''ped; while :; do read -t 1 x && break; done\n");
    exec.expect(STDOUT, "trapped");
    exec.resize(31, 97);
    exec.expect(STDOUT, "size 31 97");
    exec.resize(7, 40);
    exec.expect(STDOUT, "size 7 40");
    exec.write("\n");
    exec.write("exit 5\n");
    let ended = exec.finish();
    assert_eq!((ended.code, &ended.stderr[..]), (5, ""));
}

/// containerd 1.7 lets it end, 2.x kills it; it is gone either way.
fn an_exec_whose_client_hangs_up_does_no_harm_to_the_next(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let go = cri.fifo("go");
    let script = "echo up; read x < /share/go; echo said $x";
    let mut exec = cri.exec(&id, With::default(), &["sh", "-c", script]);
    exec.expect(STDOUT, "up\n");
    drop(exec);
    go.send("on");
    cri.until("end of the exec", || {
        let seen = cri.exec_sync(&id, &["ps", "-o", "args"]);
        let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
        (!seen.contains("/share/go")).then_some(()).ok_or(seen)
    });
    let ended = cri.exec(&id, With::default(), &["echo", "next"]).finish();
    assert_eq!((&ended.stdout[..], ended.code), ("next\n", 0));
}
