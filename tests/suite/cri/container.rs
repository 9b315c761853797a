// SPDX-License-Identifier: Apache-2.0
//! A container's life, as a kubelet leads it: create, start, stop, exit, remove.

use harness::containerd::DEADLINE;
use harness::containerd::ctr::ends_within;
use harness::cri::Cri;
use harness::cri::api::ContainerState;
use std::time::{Duration, Instant};

for_each_containerd!(
    a_created_container_runs_when_it_is_started,
    exit_codes_and_reasons_are_told,
    a_program_that_does_not_exist_fails_the_start_by_name,
    stop_sends_sigterm_and_tells_the_exit_code,
    stop_kills_a_container_that_ignores_sigterm_when_its_time_is_over,
    a_container_over_its_memory_limit_is_reported_as_oomkilled,
    a_removed_container_is_forgotten_and_its_name_is_free,
    a_container_that_is_only_created_can_be_removed,
    a_container_restarts_in_its_pod_again_and_again,
);

fn a_created_container_runs_when_it_is_started(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.create(&pod, cri.container("a", &["sleep", "1000"]));
    assert_eq!(
        cri.container_status(&id).state(),
        ContainerState::ContainerCreated
    );
    cri.start_container(&id).expect("StartContainer");
    let status = cri.container_status(&id);
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert!(status.started_at >= status.created_at, "{status:?}");
    // The options of the default runtime arrive at runc.
    let state = cri.containerd.dir().join("runc/default/k8s.io").join(&id);
    assert!(state.exists(), "no {}", state.display());
    let again = cri.start_container(&id).expect_err("started twice");
    assert!(again.message().contains("RUNNING"), "{again}");
}

fn exit_codes_and_reasons_are_told(cri: &mut Cri) {
    let pod = cri.run("web");
    for (script, code, reason) in [
        ("exit 0", 0, "Completed"),
        ("exit 7", 7, "Error"),
        ("exit 255", 255, "Error"),
        ("kill -KILL $$ & sleep 1000", 137, "Error"),
    ] {
        // Process 1 of a pid namespace cannot kill itself: its shell does not run as that.
        let script = format!("sh -c '{script}'");
        let id = cri.launch(
            &pod,
            cri.container("job", &["sh", "-c", &format!("{script}; exit $?")]),
        );
        let status = cri.exited(&id);
        assert_eq!(
            (status.exit_code, &status.reason[..]),
            (code, reason),
            "of {script}"
        );
        assert!(status.finished_at >= status.created_at, "{status:?}");
        cri.remove(&id);
    }
}

fn a_program_that_does_not_exist_fails_the_start_by_name(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.create(&pod, cri.container("a", &["/no/such/program"]));
    let error = cri.start_container(&id).expect_err("no such program");
    assert!(
        error.message().contains("OCI runtime create failed")
            && error.message().contains("/no/such/program"),
        "{error}"
    );
    let status = cri.container_status(&id);
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!((status.exit_code, &status.reason[..]), (128, "StartError"));
    cri.remove(&id);
    // The shim and its pod go on.
    cri.service(&pod, "b");
}

fn stop_sends_sigterm_and_tells_the_exit_code(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let pid = cri.pid_of(&id);
    cri.stop(&id, 60);
    assert!(!harness::proc::alive(pid), "a stopped container runs");
    let status = cri.container_status(&id);
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 6);
    cri.stop(&id, 60); // Is no error.
}

fn stop_kills_a_container_that_ignores_sigterm_when_its_time_is_over(cri: &mut Cri) {
    let pod = cri.run("web");
    let up = cri.fifo("up");
    let script = "trap '' TERM; sleep 1000 & echo up > /share/up; wait";
    let id = cri.launch(&pod, cri.container("a", &["sh", "-c", script]));
    assert_eq!(up.line(), "up");
    let begun = Instant::now();
    cri.stop(&id, 1);
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "killed too early"
    );
    let status = cri.container_status(&id);
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 137);
}

fn a_container_over_its_memory_limit_is_reported_as_oomkilled(cri: &mut Cri) {
    let pod = cri.run("web");
    let bystander = cri.service(&pod, "bystander");
    // tail keeps the one endless line that it reads.
    let mut config = cri.container("eater", &["sh", "-c", "exec tail -n 1 /dev/zero"]);
    let resources = config.linux.as_mut().and_then(|it| it.resources.as_mut());
    resources.expect("resources").memory_limit_in_bytes = 32 << 20;
    let id = cri.launch(&pod, config);
    let status = cri.exited(&id);
    assert_eq!(status.exit_code, 137);
    cri.until("reason of the exit", || {
        match cri.container_status(&id).reason {
            reason if reason == "OOMKilled" => Ok(()),
            other => Err(other),
        }
    });
    let status = cri.container_status(&bystander);
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    cri.stop(&bystander, 60);
    assert_eq!(cri.container_status(&bystander).reason, "Error");
}

fn a_removed_container_is_forgotten_and_its_name_is_free(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let pid = cri.pid_of(&id);
    cri.remove(&id); // While it runs: killed.
    assert!(ends_within(pid, DEADLINE), "a removed container runs");
    assert_eq!(cri.containers(), []);
    let state = cri.containerd.dir().join("runc/default/k8s.io").join(&id);
    assert!(!state.exists(), "runc still knows it");
    cri.service(&pod, "a");
}

fn a_container_that_is_only_created_can_be_removed(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.create(&pod, cri.container("a", &["true"]));
    cri.remove(&id);
    assert_eq!(cri.containers(), []);
    cri.service(&pod, "a");
}

/// What a crash loop looks like; the pod keeps its shim, and nothing piles up in that.
fn a_container_restarts_in_its_pod_again_and_again(cri: &mut Cri) {
    let pod = cri.run("web");
    let shim = cri.shim_of(&pod);
    let round = |n: u32| {
        let mut config = cri.container("job", &["sh", "-c", "exit 3"]);
        config.metadata.as_mut().expect("metadata").attempt = n;
        let id = cri.launch(&pod, config);
        assert_eq!(cri.exited(&id).exit_code, 3);
        cri.remove(&id);
    };
    let open = || harness::proc::fds(shim).expect("the shim").len();
    round(0);
    let before = open();
    (1..10).for_each(round);
    assert_eq!(cri.shim_of(&pod), shim);
    cri.until(
        "as few open files as after the first round",
        || match open() {
            now if now <= before => Ok(()),
            now => Err(format!("{now}, not {before}")),
        },
    );
}
