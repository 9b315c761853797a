// SPDX-License-Identifier: Apache-2.0
//! `kubectl logs`: the file that containerd writes of what a container says.

use harness::cri::{Cri, Pod};
use std::fs;
use std::path::Path;

for_each_containerd!(
    ten_thousand_lines_are_all_in_the_log_and_in_order,
    output_and_errors_are_told_apart_in_the_log,
    the_last_words_of_a_killed_container_are_in_the_log,
    a_container_on_a_terminal_has_a_log,
);

/// Whole lines `<time> <stream> F <text>` as (stream, text), once there are `count`.
#[track_caller]
fn lines(cri: &Cri, pod: &Pod, name: &str, count: usize) -> Vec<(String, String)> {
    let path = Path::new(&pod.config.log_directory).join(format!("{name}.log"));
    cri.until("lines of the log", || {
        let text = fs::read_to_string(&path).map_err(|e| e.to_string())?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines: Vec<_> = whole.lines().map(line).collect();
        match lines.len() {
            n if n >= count => Ok(lines),
            n => Err(format!("{n} of {count}")),
        }
    })
}

fn line(line: &str) -> (String, String) {
    let mut words = line.splitn(4, ' ');
    let (Some(_), Some(stream), Some("F"), Some(text)) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        panic!("not a line of a log: {line}");
    };
    (stream.to_owned(), text.to_owned())
}

fn ten_thousand_lines_are_all_in_the_log_and_in_order(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.launch(&pod, cri.container("a", &["seq", "10000"]));
    assert_eq!(cri.exited(&id).exit_code, 0);
    let lines = lines(cri, &pod, "a", 10_000);
    let expected: Vec<_> = (1..=10_000)
        .map(|n| ("stdout".to_owned(), n.to_string()))
        .collect();
    assert!(
        lines == expected,
        "{} lines, of {}",
        lines.len(),
        expected.len()
    );
}

fn output_and_errors_are_told_apart_in_the_log(cri: &mut Cri) {
    let pod = cri.run("web");
    let script = "for n in 1 2 3; do echo out $n; echo err $n >&2; done";
    let id = cri.launch(&pod, cri.container("a", &["sh", "-c", script]));
    cri.exited(&id);
    let lines = lines(cri, &pod, "a", 6);
    let of = |wanted: &str| -> Vec<&str> {
        let lines = lines.iter().filter(|(stream, _)| stream == wanted);
        lines.map(|(_, text)| &text[..]).collect()
    };
    assert_eq!(of("stdout"), ["out 1", "out 2", "out 3"]);
    assert_eq!(of("stderr"), ["err 1", "err 2", "err 3"]);
}

fn the_last_words_of_a_killed_container_are_in_the_log(cri: &mut Cri) {
    let pod = cri.run("web");
    let up = cri.fifo("up");
    let script = "seq 1000; echo up > /share/up; sleep 1000";
    let id = cri.launch(&pod, cri.container("a", &["sh", "-c", script]));
    assert_eq!(up.line(), "up");
    cri.stop(&id, 0);
    assert_eq!(cri.exited(&id).exit_code, 137);
    let lines = lines(cri, &pod, "a", 1000);
    assert_eq!(lines.last().expect("a line").1, "1000");
}

fn a_container_on_a_terminal_has_a_log(cri: &mut Cri) {
    let pod = cri.run("web");
    let mut config = cri.container("a", &["seq", "1000"]);
    config.tty = true;
    let id = cri.launch(&pod, config);
    assert_eq!(cri.exited(&id).exit_code, 0);
    let lines = lines(cri, &pod, "a", 1000);
    let expected: Vec<_> = (1..=1000)
        .map(|n| ("stdout".to_owned(), n.to_string()))
        .collect();
    assert_eq!(lines, expected);
}
