// SPDX-License-Identifier: Apache-2.0
//! A container that uses more memory than it may.

use harness::containerd::Containerd;
use harness::containerd::events::of;
use harness::peers;

for_each_containerd!(
    a_container_over_its_memory_limit_is_reported_as_oom_and_exits_137,
    an_exec_over_the_memory_limit_is_reported_as_oom_and_the_container_goes_on,
);

const LIMIT: [&str; 2] = ["--memory-limit", "20000000"];
/// busybox's tail keeps what has no end of line.
const HUNGRY: [&str; 2] = ["tail", "/dev/zero"];

fn a_container_over_its_memory_limit_is_reported_as_oom_and_exits_137(containerd: &mut Containerd) {
    let events = containerd.events();
    let go = containerd.fifo("go");
    let script = "read x < /share/go; exec tail /dev/zero";
    containerd.run_detached(&LIMIT, "hungry", &["sh", "-c", script]);
    go.send("eat");
    events.until_seen("exit hungry 137");
    let seen = of(&events.until_seen("oom hungry"), "hungry");
    let place = |event: &str| seen.iter().position(|e| e == event);
    let in_order = place("oom hungry") < place("exit hungry 137");
    // Go's shim promises this order from 2.3 on only.
    assert!(
        in_order || peers::is_go(),
        "no oom before the exit: {seen:?}"
    );
    let output = containerd.ctr(&["task", "delete", "hungry"]).ok();
    assert!(output.stderr.contains("exit code 137"), "{output}");
}

fn an_exec_over_the_memory_limit_is_reported_as_oom_and_the_container_goes_on(
    containerd: &mut Containerd,
) {
    let events = containerd.events();
    let task = containerd.run_service(&LIMIT, "web");
    containerd.exec("web", "hungry", &HUNGRY).exits(137);
    events.until_seen("oom web");
    assert_eq!(containerd.task("web"), Some(task));
    containerd
        .exec("web", "e", &["echo", "goes on"])
        .ok()
        .prints("goes on\n");
}
