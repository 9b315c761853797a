// SPDX-License-Identifier: Apache-2.0
//! SIGKILL of a pod's shim: Kubernetes is told, nothing of the pod runs on (D8), and it can be removed
//! and run again.

use harness::containerd::DEADLINE;
use harness::containerd::ctr::ends_within;
use harness::cri::api::{ContainerStatus, PodSandboxState};
use harness::cri::{Cri, Pod};
use harness::{differs, proc, wait};

for_each_containerd!(
    containers_whose_shim_is_killed_are_reported_as_exited_and_have_ended,
    a_pod_whose_shim_is_killed_can_be_removed_and_run_again,
    a_pod_whose_shim_is_killed_while_containerd_is_down_can_be_removed,
);

fn kill_shim(cri: &Cri, pod: &Pod) {
    wait::signal(cri.shim_of(pod), libc::SIGKILL).expect("kill the shim");
}

/// 137 if the event of `delete` is first, 255 if the end of the connection is.
#[track_caller]
fn assert_told(status: &ContainerStatus) {
    assert!([137, 255].contains(&status.exit_code), "{status:?}");
    assert_eq!(status.reason, "Error");
}

/// The pods' containers have ended.
#[track_caller]
fn assert_ended(cri: &mut Cri, pause: i32, workload: &[i32]) {
    assert!(ends_within(pause, DEADLINE), "the pause container runs");
    if cri.containerd.release.name == "2.1" && differs("pod-shim-killed") {
        for &pid in workload {
            assert!(proc::alive(pid), "Go's containers have ended");
        }
        cri.containerd.tolerate_leavings();
        return;
    }
    for &pid in workload {
        let told = proc::describe(pid);
        assert!(ends_within(pid, DEADLINE), "still runs: {told}");
    }
}

fn containers_whose_shim_is_killed_are_reported_as_exited_and_have_ended(cri: &mut Cri) {
    let pod = cri.run("web");
    let ids = ["a", "b"].map(|name| cri.service(&pod, name));
    let pids = ids.each_ref().map(|id| cri.pid_of(id));
    let pause = cri.pause_of(&pod);
    kill_shim(cri, &pod);
    for id in &ids {
        assert_told(&cri.exited(id));
    }
    let state = || cri.pod_status(&pod).state();
    cri.until("the pod is not ready", || match state() {
        PodSandboxState::SandboxNotready => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_ended(cri, pause, &pids);
}

fn a_pod_whose_shim_is_killed_can_be_removed_and_run_again(cri: &mut Cri) {
    for _ in 0..2 {
        let pod = cri.run("web");
        let id = cri.service(&pod, "a");
        let (pause, pid) = (cri.pause_of(&pod), cri.pid_of(&id));
        kill_shim(cri, &pod);
        // containerd does not remove what it believes to be running.
        assert_told(&cri.exited(&id));
        cri.stop_pod(&pod.id).expect("StopPodSandbox");
        cri.remove_pod(&pod.id).expect("RemovePodSandbox");
        assert_ended(cri, pause, &[pid]);
    }
    assert_eq!((cri.pods(), cri.containers()), (vec![], vec![]));
}

fn a_pod_whose_shim_is_killed_while_containerd_is_down_can_be_removed(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let pids = [cri.shim_of(&pod), cri.pid_of(&id), cri.pause_of(&pod)];
    cri.restart(|_| {
        wait::signal(pids[0], libc::SIGKILL).expect("kill the shim");
        assert!(ends_within(pids[0], DEADLINE), "a killed shim runs");
    });
    cri.exited(&id);
    cri.stop_pod(&pod.id).expect("StopPodSandbox");
    cri.remove_pod(&pod.id).expect("RemovePodSandbox");
    for pid in pids {
        let told = proc::describe(pid);
        assert!(ends_within(pid, DEADLINE), "still runs: {told}");
    }
}
