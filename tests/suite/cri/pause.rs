// SPDX-License-Identifier: Apache-2.0
//! The pause container dies before the workload (contract 12344, 10421): the shim still goes when
//! the pod does.

use harness::containerd::DEADLINE;
use harness::containerd::ctr::ends_within;
use harness::cri::api::{ContainerState, PodSandboxState};
use harness::cri::{Cri, Pod};
use harness::{differs, proc, wait};

for_each_containerd!(
    the_shim_exits_after_the_last_container_also_when_the_pause_container_was_killed,
    a_pod_whose_pause_container_was_killed_is_not_ready_and_its_workload_runs_on,
    a_pod_whose_pause_container_was_killed_can_be_removed_at_once,
);

/// Waits for the end of a shim that has no containers.
#[track_caller]
pub fn assert_ends(cri: &Cri, shim: i32) {
    if cri.containerd.release.name == "2.1" && differs("pause-first") {
        // It would stay for good.
        assert!(proc::alive(shim), "Go's shim has ended");
        wait::signal(shim, libc::SIGKILL).expect("kill the shim");
    }
    let told = proc::describe(shim);
    assert!(
        ends_within(shim, DEADLINE),
        "no container is left, but the shim is: {told}"
    );
}

/// SIGKILLs the pause container and waits until the pod is known to be not ready.
fn kill_pause(cri: &Cri, pod: &Pod) {
    let pause = cri.pause_of(pod);
    wait::signal(pause, libc::SIGKILL).expect("kill the pause container");
    cri.until("the pod is not ready", || {
        match cri.pod_status(pod).state() {
            PodSandboxState::SandboxNotready => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn the_shim_exits_after_the_last_container_also_when_the_pause_container_was_killed(cri: &mut Cri) {
    let pod = cri.run("web");
    let ids = ["a", "b"].map(|name| cri.service(&pod, name));
    let shim = cri.shim_of(&pod);
    kill_pause(cri, &pod);
    for id in &ids {
        assert_eq!(cri.containerd.shims(), [shim]);
        cri.stop(id, 60);
        assert_eq!(cri.container_status(id).exit_code, 6);
        cri.remove(id);
    }
    assert_ends(cri, shim);
}

fn a_pod_whose_pause_container_was_killed_is_not_ready_and_its_workload_runs_on(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let shim = cri.shim_of(&pod);
    kill_pause(cri, &pod);
    let state = cri.container_status(&id).state();
    assert_eq!(state, ContainerState::ContainerRunning);
    assert_eq!(
        cri.exec_sync(&id, &["echo", "goes on"]).stdout,
        b"goes on\n"
    );
    cri.stop(&id, 60);
    assert_eq!(cri.container_status(&id).exit_code, 6);
    cri.remove_pod(&pod.id).expect("RemovePodSandbox");
    assert_ends(cri, shim);
}

fn a_pod_whose_pause_container_was_killed_can_be_removed_at_once(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let (shim, pid) = (cri.shim_of(&pod), cri.pid_of(&id));
    kill_pause(cri, &pod);
    cri.remove_pod(&pod.id).expect("RemovePodSandbox");
    assert!(
        ends_within(pid, DEADLINE),
        "{} still runs",
        proc::describe(pid)
    );
    assert_ends(cri, shim);
}
