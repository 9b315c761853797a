// SPDX-License-Identifier: Apache-2.0
//! A task's life between run and delete: kill, pause, resume, metrics, ps, delete.

use harness::containerd::Containerd;
use harness::containerd::ctr::ends_within;
use harness::containerd::{DEADLINE, Task};

for_each_containerd!(
    kill_sends_sigterm_and_delete_tells_the_exit_code,
    kill_with_sigkill_stops_a_container_that_ignores_sigterm,
    kill_of_a_stopped_task_says_that_it_has_finished,
    a_paused_task_shows_paused_and_resumes,
    a_paused_task_can_be_killed,
    metrics_count_the_containers_memory_and_processes,
    ps_lists_the_processes_of_the_container,
    delete_of_a_running_task_is_refused,
    delete_force_kills_and_deletes_a_running_task,
    a_deleted_task_can_be_started_again,
    a_stopped_task_keeps_its_shim_until_it_is_deleted,
);

/// What ctr says when it deletes a task that failed.
fn exit_code_told(code: i32) -> String {
    format!("exit with non-zero exit code {code}")
}

fn delete_tells(containerd: &Containerd, id: &str, code: i32) {
    let output = containerd.ctr(&["task", "delete", id]).ok();
    assert!(
        output.stderr.contains(&exit_code_told(code)),
        "no exit code {code} from {output}"
    );
    assert_eq!(containerd.status(id), "-");
}

fn kill_sends_sigterm_and_delete_tells_the_exit_code(containerd: &mut Containerd) {
    let events = containerd.events();
    containerd.run_service(&[], "web");
    containerd.ctr(&["task", "kill", "web"]).ok();
    events.until_seen("exit web 6");
    assert_eq!(containerd.status("web"), "STOPPED");
    delete_tells(containerd, "web", 6);
}

fn kill_with_sigkill_stops_a_container_that_ignores_sigterm(containerd: &mut Containerd) {
    let events = containerd.events();
    let task = containerd.run_detached(&[], "web", &["sleep", "1000"]);
    containerd.kill_task("SIGTERM", "web"); // PID 1 without a handler: nothing happens
    containerd.kill_task("SIGKILL", "web");
    events.until_seen("exit web 137");
    assert!(ends_within(task.pid, DEADLINE), "init still runs");
    delete_tells(containerd, "web", 137);
}

fn kill_of_a_stopped_task_says_that_it_has_finished(containerd: &mut Containerd) {
    let events = containerd.events();
    containerd.run_service(&[], "web");
    containerd.kill_task("SIGTERM", "web");
    events.until_seen("exit web 6");
    let again = containerd.ctr(&["task", "kill", "--signal", "SIGKILL", "web"]);
    again.fails_with("process already finished");
    delete_tells(containerd, "web", 6);
}

fn a_paused_task_shows_paused_and_resumes(containerd: &mut Containerd) {
    let tick = containerd.fifo("tick");
    let go = containerd.fifo("go");
    let script = "while read x < /share/go; do echo $x > /share/tick; done";
    let task = containerd.run_detached(&[], "web", &["sh", "-c", script]);
    go.send("before");
    assert_eq!(tick.line(), "before");
    containerd.ctr(&["task", "pause", "web"]).ok();
    assert_eq!(containerd.status("web"), "PAUSED");
    go.send("while paused");
    let refused = containerd.ctr(&["task", "pause", "web"]);
    refused.fails_with("cannot pause a paused container");
    let refused = containerd.exec("web", "e", &["true"]);
    refused.fails_with("cannot exec in a paused state");
    assert!(!tick.has_line_now(), "a paused container went on");
    containerd.ctr(&["task", "resume", "web"]).ok();
    assert_eq!(tick.line(), "while paused");
    assert_eq!(
        containerd.task("web"),
        Some(Task {
            status: "RUNNING".to_owned(),
            ..task
        })
    );
}

fn a_paused_task_can_be_killed(containerd: &mut Containerd) {
    let events = containerd.events();
    containerd.run_service(&[], "web");
    containerd.ctr(&["task", "pause", "web"]).ok();
    containerd.kill_task("SIGKILL", "web");
    events.until_seen("exit web 137");
    assert_eq!(containerd.status("web"), "STOPPED");
    delete_tells(containerd, "web", 137);
}

fn metrics_count_the_containers_memory_and_processes(containerd: &mut Containerd) {
    let limit = 64 << 20;
    containerd.run_service(&["--memory-limit", &limit.to_string()], "web");
    let table = containerd.ctr(&["task", "metrics", "web"]).ok();
    assert!(
        table.stdout.contains("memory.usage"),
        "no memory in {table}"
    );
    let output = containerd
        .ctr(&["task", "metrics", "--format", "json", "web"])
        .ok();
    let metrics: serde_json::Value = serde_json::from_str(&output.stdout).expect("JSON");
    let number = |v1: &str, v2: &str| {
        let value = metrics.pointer(v1).or_else(|| metrics.pointer(v2));
        value
            .and_then(serde_json::Value::as_u64)
            .unwrap_or_else(|| panic!("no {v1} in {output}"))
    };
    assert_eq!(
        number("/pids/current", "/pids/current"),
        2,
        "the shell and its sleep: {output}"
    );
    assert_eq!(
        number("/memory/usage/limit", "/memory/usage_limit"),
        limit,
        "{output}"
    );
    let used = number("/memory/usage/usage", "/memory/usage");
    assert!(
        (1..limit).contains(&used),
        "{used} bytes of memory: {output}"
    );
    let cpu = number("/cpu/usage/total", "/cpu/usage_usec");
    assert!(cpu > 0, "{output}");
}

fn ps_lists_the_processes_of_the_container(containerd: &mut Containerd) {
    let task = containerd.run_service(&[], "web");
    let listed = containerd.ctr(&["task", "ps", "web"]).ok();
    let pids = |line: &str| line.split_whitespace().next()?.parse::<i32>().ok();
    let pids: Vec<i32> = listed.stdout.lines().skip(1).filter_map(pids).collect();
    let sleep = harness::proc::children(task.pid);
    assert_eq!(sleep.len(), 1);
    assert_eq!(pids.len(), 2, "{listed}");
    assert!(
        pids.contains(&task.pid) && pids.contains(&sleep[0]),
        "{listed}"
    );
}

fn delete_of_a_running_task_is_refused(containerd: &mut Containerd) {
    let task = containerd.run_service(&[], "web");
    let refused = containerd.ctr(&["task", "delete", "web"]);
    refused
        .exits(1)
        .fails_with("task must be stopped before deletion");
    assert_eq!(containerd.task("web"), Some(task));
}

fn delete_force_kills_and_deletes_a_running_task(containerd: &mut Containerd) {
    let task = containerd.run_service(&[], "web");
    let output = containerd.ctr(&["task", "delete", "--force", "web"]).ok();
    assert!(output.stderr.contains(&exit_code_told(137)), "{output}");
    assert!(ends_within(task.pid, DEADLINE), "init still runs");
    assert_eq!(containerd.tasks(), []);
    assert!(
        !containerd.runc_state("web").exists(),
        "runc still knows the container"
    );
}

fn a_deleted_task_can_be_started_again(containerd: &mut Containerd) {
    let events = containerd.events();
    let first = containerd.run_detached(&[], "web", &["sleep", "1000"]);
    containerd.ctr(&["task", "delete", "--force", "web"]).ok();
    containerd
        .spawn(&["task", "start", "-d", "web"])
        .finish()
        .ok();
    let second = containerd.task("web").expect("a task again");
    assert_ne!((first.pid, "RUNNING"), (second.pid, second.status.as_str()));
    containerd.kill_task("SIGKILL", "web");
    events.until("a second exit", |events| {
        events.iter().filter(|event| event.topic == "exit").count() == 2
    });
    delete_tells(containerd, "web", 137);
}

fn a_stopped_task_keeps_its_shim_until_it_is_deleted(containerd: &mut Containerd) {
    let events = containerd.events();
    let task = containerd.run_service(&[], "web");
    let shim = containerd.shim_of(&task);
    containerd.kill_task("SIGTERM", "web");
    events.until_seen("exit web 6");
    assert_eq!(containerd.shims(), [shim]);
    delete_tells(containerd, "web", 6);
    assert!(
        ends_within(shim, DEADLINE),
        "the shim of a deleted task still runs"
    );
}
