// SPDX-License-Identifier: Apache-2.0
//! Pods: their network, their one shim, and how they end.

use harness::containerd::DEADLINE;
use harness::containerd::ctr::ends_within;
use harness::cri::Cri;
use harness::cri::api::{NamespaceMode, PodSandboxState};
use std::fs;
use std::thread;

for_each_containerd!(
    a_pod_has_an_address_that_answers_ping,
    containers_of_a_pod_share_its_network_and_its_shim,
    containers_of_a_pod_with_one_pid_namespace_see_each_other,
    the_shim_exits_when_the_pod_is_stopped_and_its_socket_goes,
    removing_a_running_pod_removes_its_containers_and_the_shim,
    a_pod_of_a_used_name_runs_after_the_first_is_removed,
    twenty_pods_at_once_run_and_end,
);

fn a_pod_has_an_address_that_answers_ping(cri: &mut Cri) {
    let pod = cri.run("web");
    assert_eq!(cri.pod_status(&pod).state(), PodSandboxState::SandboxReady);
    let answer = cri.ping(&cri.address_of(&pod));
    assert!(answer.status.success(), "{answer:?}");
}

fn containers_of_a_pod_share_its_network_and_its_shim(cri: &mut Cri) {
    let pod = cri.run("web");
    let other = cri.run("other");
    let ids = ["a", "b"].map(|name| cri.service(&pod, name));
    let pids = [cri.pause_of(&pod), cri.pid_of(&ids[0]), cri.pid_of(&ids[1])];
    let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).expect("namespace");
    assert_eq!(
        pids.map(network),
        [network(pids[0]).clone(), network(pids[0]), network(pids[0])]
    );
    assert_ne!(network(pids[0]), network(cri.pause_of(&other)));
    let address = cri.address_of(&pod);
    for id in &ids {
        let shown = cri.exec_sync(id, &["ip", "-4", "addr", "show", "eth0"]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains(&address), "{address} in {shown}");
    }
    let shim = cri.shim_of(&pod);
    let parents = pids.map(|pid| harness::proc::stat(pid).expect("a process").ppid);
    assert_eq!(parents, [shim; 3]);
    assert_ne!(cri.shim_of(&other), shim);
    assert_eq!(cri.containerd.shims().len(), 2, "one shim for each pod");
}

/// The pause container is process 1 of all.
fn containers_of_a_pod_with_one_pid_namespace_see_each_other(cri: &mut Cri) {
    let mut config = cri.pod("web");
    let security = config
        .linux
        .as_mut()
        .and_then(|it| it.security_context.as_mut());
    let options = security
        .and_then(|it| it.namespace_options.as_mut())
        .expect("options");
    options.set_pid(NamespaceMode::Pod);
    let pod = cri.run_pod(config, "").expect("RunPodSandbox");
    let ids = ["a", "b"].map(|name| {
        let up = cri.fifo(name);
        let script = format!("sleep 12345 & echo up > /share/{name}; wait");
        let mut config = cri.container(name, &["sh", "-c", &script]);
        let security = config
            .linux
            .as_mut()
            .and_then(|it| it.security_context.as_mut());
        let options = security
            .and_then(|it| it.namespace_options.as_mut())
            .expect("options");
        options.set_pid(NamespaceMode::Pod);
        let id = cri.launch(&pod, config);
        assert_eq!(up.line(), "up");
        id
    });
    let seen = cri.exec_sync(&ids[0], &["ps", "-o", "pid,args"]);
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    let first = seen
        .lines()
        .find(|line| line.trim_start().starts_with("1 "));
    assert!(first.is_some_and(|line| line.contains("/pause")), "{seen}");
    assert_eq!(
        seen.matches("sleep 12345").count(),
        4,
        "two shells and two sleeps: {seen}"
    );
    // Without a pid namespace of its own, a container's end is the end of its processes.
    cri.stop(&ids[0], 0);
    let status = cri.exited(&ids[0]);
    assert_eq!(status.exit_code, 137);
    let seen = cri.exec_sync(&ids[1], &["ps", "-o", "pid,args"]);
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert_eq!(seen.matches("sleep 12345").count(), 2, "{seen}");
}

fn the_shim_exits_when_the_pod_is_stopped_and_its_socket_goes(cri: &mut Cri) {
    let pod = cri.run("web");
    let ids = ["a", "b"].map(|name| cri.service(&pod, name));
    let shim = cri.shim_of(&pod);
    for id in &ids {
        cri.stop(id, 60);
        cri.remove(id);
    }
    assert_eq!(
        cri.containerd.shims(),
        [shim],
        "the pause container still runs"
    );
    cri.stop_pod(&pod.id).expect("StopPodSandbox");
    assert!(
        ends_within(shim, DEADLINE),
        "the shim of a stopped pod still runs"
    );
    assert_eq!(
        cri.pod_status(&pod).state(),
        PodSandboxState::SandboxNotready
    );
    // The rest is asserted at the end of every test: mounts, cgroups, sockets, addresses, files.
    cri.remove_pod(&pod.id).expect("RemovePodSandbox");
}

fn removing_a_running_pod_removes_its_containers_and_the_shim(cri: &mut Cri) {
    let pod = cri.run("web");
    let ids = ["a", "b"].map(|name| cri.service(&pod, name));
    let mut pids = ids.each_ref().map(|id| cri.pid_of(id)).to_vec();
    pids.extend([cri.pause_of(&pod), cri.shim_of(&pod)]);
    cri.remove_pod(&pod.id).expect("RemovePodSandbox");
    for pid in pids {
        assert!(
            ends_within(pid, DEADLINE),
            "{} still runs",
            harness::proc::describe(pid)
        );
    }
    assert_eq!(cri.containers(), []);
}

fn a_pod_of_a_used_name_runs_after_the_first_is_removed(cri: &mut Cri) {
    for _ in 0..3 {
        let pod = cri.run("web");
        let id = cri.service(&pod, "a");
        assert_eq!(cri.exec_sync(&id, &["hostname"]).stdout, b"web\n");
        cri.stop_pod(&pod.id).expect("StopPodSandbox");
        cri.remove_pod(&pod.id).expect("RemovePodSandbox");
    }
}

fn twenty_pods_at_once_run_and_end(cri: &mut Cri) {
    let begun = std::time::Instant::now();
    let cri = &*cri;
    thread::scope(|threads| {
        for n in 0..20 {
            threads.spawn(move || {
                let pod = cri.run(&format!("pod{n}"));
                let script = format!("echo {n}; exit {n}");
                let id = cri.launch(&pod, cri.container("job", &["sh", "-c", &script]));
                assert_eq!(cri.exited(&id).exit_code, n);
                let service = cri.service(&pod, "service");
                let said = cri.exec_sync(&service, &["echo", &n.to_string()]);
                assert_eq!(said.stdout, format!("{n}\n").as_bytes());
            });
        }
    });
    let pods = cri.pods();
    assert_eq!((pods.len(), cri.containerd.shims().len()), (20, 20));
    thread::scope(|threads| {
        for pod in &pods {
            threads.spawn(move || {
                cri.stop_pod(&pod.id).expect("StopPodSandbox");
                cri.remove_pod(&pod.id).expect("RemovePodSandbox");
            });
        }
    });
    harness::containerd::report(&format!("20 pods in {:.1?}", begun.elapsed()));
}
