// SPDX-License-Identifier: Apache-2.0
//! SIGKILL and restart of containerd while pods run.

use crate::pause::assert_ends;
use harness::containerd::DEADLINE;
use harness::containerd::ctr::ends_within;
use harness::cri::api::{ContainerState, PodSandboxState};
use harness::cri::{Cri, stream::STDOUT, stream::With};
use harness::{differs, proc, wait};

for_each_containerd!(
    pods_and_containers_run_on_and_are_known_after_a_restart,
    a_container_that_exits_after_a_restart_tells_its_code,
    a_container_that_exits_while_containerd_is_down_is_known_to_have_exited_and_how,
    a_pod_whose_pause_container_dies_while_containerd_is_down_is_not_ready,
    a_pod_from_before_a_restart_takes_new_containers_in_its_shim,
    twenty_pods_survive_a_restart,
);

fn pods_and_containers_run_on_and_are_known_after_a_restart(cri: &mut Cri) {
    let pod = cri.run("web");
    let ids = ["a", "b"].map(|name| cri.service(&pod, name));
    let pids = ids.each_ref().map(|id| cri.pid_of(id));
    let shim = cri.shim_of(&pod);
    cri.restart(|_| {});
    assert_eq!(cri.pod_status(&pod).state(), PodSandboxState::SandboxReady);
    assert_eq!(cri.containerd.shims(), [shim]);
    for (id, pid) in ids.iter().zip(pids) {
        assert_eq!(
            cri.container_status(id).state(),
            ContainerState::ContainerRunning
        );
        assert_eq!(cri.pid_of(id), pid);
        assert_eq!(cri.exec_sync(id, &["echo", "still"]).stdout, b"still\n");
        let mut exec = cri.exec(id, With::default(), &["echo", "here"]);
        exec.expect(STDOUT, "here\n");
        assert_eq!(exec.finish().code, 0);
    }
    let answer = cri.ping(&cri.address_of(&pod));
    assert!(answer.status.success(), "{answer:?}");
}

fn a_container_that_exits_after_a_restart_tells_its_code(cri: &mut Cri) {
    let pod = cri.run("web");
    let ids = ["a", "b"].map(|name| cri.service(&pod, name));
    cri.restart(|_| {});
    cri.stop(&ids[0], 60);
    assert_eq!(cri.container_status(&ids[0]).exit_code, 6);
    cri.stop(&ids[1], 0);
    assert_eq!(cri.container_status(&ids[1]).exit_code, 137);
}

fn a_container_that_exits_while_containerd_is_down_is_known_to_have_exited_and_how(cri: &mut Cri) {
    let pod = cri.run("web");
    let ids = ["a", "b"].map(|name| cri.service(&pod, name));
    let pid = cri.pid_of(&ids[0]);
    cri.restart(|_| {
        wait::signal(pid, libc::SIGTERM).expect("SIGTERM to the container");
        assert!(ends_within(pid, DEADLINE), "{} runs", proc::describe(pid));
    });
    let status = cri.exited(&ids[0]);
    let expected = if differs("exit-while-down") {
        (255, "Unknown")
    } else {
        (6, "Error")
    };
    assert_eq!((status.exit_code, &status.reason[..]), expected);
    let other = cri.container_status(&ids[1]).state();
    assert_eq!(other, ContainerState::ContainerRunning);
}

fn a_pod_whose_pause_container_dies_while_containerd_is_down_is_not_ready(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let (pause, shim) = (cri.pause_of(&pod), cri.shim_of(&pod));
    cri.restart(|_| {
        wait::signal(pause, libc::SIGKILL).expect("SIGKILL to the pause container");
        assert!(
            ends_within(pause, DEADLINE),
            "{} runs",
            proc::describe(pause)
        );
    });
    let state = || cri.pod_status(&pod).state();
    cri.until("the pod is not ready", || match state() {
        PodSandboxState::SandboxNotready => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let other = cri.container_status(&id).state();
    assert_eq!(other, ContainerState::ContainerRunning);
    cri.remove_pod(&pod.id).expect("RemovePodSandbox");
    assert_ends(cri, shim);
}

fn a_pod_from_before_a_restart_takes_new_containers_in_its_shim(cri: &mut Cri) {
    let pod = cri.run("web");
    cri.service(&pod, "old");
    let shim = cri.shim_of(&pod);
    cri.restart(|_| {});
    let new = cri.service(&pod, "new");
    let parent = harness::proc::stat(cri.pid_of(&new))
        .expect("a process")
        .ppid;
    assert_eq!(parent, shim);
    assert_eq!(cri.containerd.shims(), [shim]);
}

fn twenty_pods_survive_a_restart(cri: &mut Cri) {
    let pods: Vec<_> = (0..20).map(|n| cri.run(&format!("pod{n}"))).collect();
    let shims = cri.containerd.shims().len();
    assert_eq!(shims, 20);
    cri.restart(|_| {});
    for pod in &pods {
        assert_eq!(cri.pod_status(pod).state(), PodSandboxState::SandboxReady);
    }
    assert_eq!(cri.containerd.shims().len(), 20);
    let id = cri.service(&pods[19], "a");
    assert_eq!(cri.exec_sync(&id, &["hostname"]).stdout, b"pod19\n");
}
