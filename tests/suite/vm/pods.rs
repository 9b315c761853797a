// SPDX-License-Identifier: Apache-2.0
//! Pods as Kubernetes runs them, each in one VM: what their containers share there.

use harness::containerd::DEADLINE;
use harness::containerd::ctr::ends_within;
use harness::cri::api::{
    LinuxContainerResources, NamespaceMode, PodSandboxConfig, PodSandboxState,
};
use harness::cri::stream::{DATA, ERROR};
use harness::cri::{self, Cri};
use harness::{peers, proc, program, wait};
use std::fs;

pub fn install(cri: &Cri) {
    program::copy(
        peers::shim(),
        &cri.containerd.dir().join("bin/containerd-shim-vm-v2"),
    );
    crate::install_image(cri.containerd.dir());
}

fn containers_of_a_pod_share_a_vm(cri: &mut Cri) {
    install(cri);
    share_a_vm(cri, "vm", ["a", "b"].len() + 1);
}

/// S4: the same without a pause container, and without its image in the way.
fn containers_of_a_sandbox_share_a_vm(cri: &mut Cri) {
    install(cri);
    share_a_vm(cri, "sandboxes", ["a", "b"].len());
}

/// The containers `a` and `b` of a pod: one network, one /dev/shm, one volume in which a FIFO
/// and a socket join them, and an end for each. The pod has so many `tasks`.
fn share_a_vm(cri: &Cri, handler: &str, tasks: usize) {
    let pod = cri.run_pod(cri.pod("web"), handler).expect("RunPodSandbox");
    assert_eq!(cri.pod_status(&pod).state(), PodSandboxState::SandboxReady);
    let vm = cri.pause_of(&pod);
    let shim = cri.shim_of(&pod);
    let answer = cri.ping(&cri.address_of(&pod));
    assert!(answer.status.success(), "{answer:?}");

    let ids = ["a", "b"].map(|name| {
        let script = format!(
            "trap 'exit 6' TERM; echo up >/share/{name}; while :; do sleep 1000 & wait $!; done"
        );
        let id = cri.launch(&pod, cri.container(name, &["sh", "-c", &script]));
        wait::until_within(DEADLINE, "a container that is up", || {
            let up = fs::read_to_string(cri.share().join(name));
            up.map_err(|e| e.to_string()).and_then(|text| match &*text {
                "up\n" => Ok(()),
                other => Err(format!("{other:?}")),
            })
        });
        assert_eq!(cri.pid_of(&id), vm, "all of a pod are in its VM");
        id
    });
    let told = |id: &str, script: &str| {
        let said = cri.exec_sync(id, &["sh", "-c", script]);
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        assert_eq!(said.exit_code, 0, "{script}: {text}");
        text
    };
    let bundles = cri
        .containerd
        .dir()
        .join("s/io.containerd.runtime.v2.task/k8s.io");
    let bundles = fs::read_dir(bundles).expect("bundles").count();
    assert_eq!(bundles, tasks, "tasks of the pod");
    assert_eq!(told(&ids[0], "hostname; cat /etc/hostname"), "web\nweb\n");
    // What listens on localhost is reached from the other container.
    let serve = "(echo local | nc -l -p 8080 127.0.0.1) >/dev/null 2>&1 &";
    told(&ids[0], serve);
    let ask = "until nc 127.0.0.1 8080 </dev/null; do usleep 10000; done";
    assert_eq!(told(&ids[1], ask), "local\n");
    let address = cri.address_of(&pod);
    for id in &ids {
        let shown = told(id, "ip -4 addr show eth0");
        assert!(shown.contains(&address), "{address} in {shown}");
    }
    // Memory for all of the pod.
    told(&ids[0], "echo shared >/dev/shm/word");
    assert_eq!(told(&ids[1], "cat /dev/shm/word"), "shared\n");
    assert_eq!(told(&ids[0], "echo $$ >/tmp/own; ls /tmp"), "own\n");
    assert_eq!(told(&ids[1], "ls /tmp"), "", "the rest is each one's own");
    // A FIFO in a volume joins processes of the pod: it is one pipe, whoever made it.
    let fifo = cri.share().join("made-here");
    harness::stdio::mkfifo(&fifo);
    told(&ids[0], "mkfifo /share/made-there");
    for name in ["made-here", "made-there"] {
        told(
            &ids[0],
            &format!("(echo through {name} >/share/{name}) >/dev/null 2>&1 &"),
        );
        let read = told(&ids[1], &format!("cat /share/{name}"));
        assert_eq!(read, format!("through {name}\n"));
    }
    // So does a socket.
    let log = "ln -s /share/log /dev/log";
    let send = format!(
        "(until test -S /share/log; do usleep 10000; done; {log}; logger by socket) >/dev/null 2>&1 &"
    );
    told(&ids[1], &send);
    let receive = format!(
        "{log}; syslogd -n -O /share/messages & \
         until grep -o 'by socket' /share/messages; do usleep 10000; done; kill $!"
    );
    assert!(told(&ids[0], &receive).ends_with("by socket\n"));

    // kubectl port-forward, to an application that listens on all addresses, and one that there is not.
    told(&ids[0], "nc -ll -p 8081 -e cat >/dev/null 2>&1 &");
    let listens = "until nc 127.0.0.1 8081 </dev/null; do usleep 10000; done";
    told(&ids[1], listens);
    let mut forwarded = cri.port_forward(&pod, 8081);
    forwarded.write("through the port");
    forwarded.expect(DATA, "through the port");
    drop(forwarded);
    let mut refused = cri.port_forward(&pod, 8082);
    refused.expect(ERROR, "reset by peer");

    cri.stop(&ids[0], 60);
    assert_eq!(cri.exited(&ids[0]).exit_code, 6);
    assert_eq!(told(&ids[1], "cat /dev/shm/word"), "shared\n", "b runs on");
    cri.stop_pod(&pod.id).expect("StopPodSandbox");
    assert_eq!(cri.exited(&ids[1]).exit_code, 137);
    let state = cri.pod_status(&pod).state();
    assert_eq!(state, PodSandboxState::SandboxNotready);
    assert!(ends_within(vm, DEADLINE), "{}", proc::describe(vm));
    cri.remove_pod(&pod.id).expect("RemovePodSandbox");
    assert!(ends_within(shim, DEADLINE), "{}", proc::describe(shim));
}

#[test]
fn containerd_1_7_runs_pods_in_vms() {
    crate::prepare();
    cri::on("1.7", containers_of_a_pod_share_a_vm);
}

#[test]
fn containerd_2_1_runs_pods_in_vms() {
    crate::prepare();
    cri::on("2.1", containers_of_a_pod_share_a_vm);
}

#[test]
fn containerd_2_1_runs_pods_without_a_pause_container() {
    crate::prepare();
    cri::on("2.1", containers_of_a_sandbox_share_a_vm);
}

/// What a shim that has died leaves of a sandbox, and a VM: the pod is not ready, its container has
/// exited, and both can be removed.
fn a_sandbox_that_dies_is_not_ready(cri: &mut Cri) {
    install(cri);
    for (name, of) in [
        ("vm", Cri::pause_of as fn(&Cri, &cri::Pod) -> i32),
        ("shim", Cri::shim_of),
    ] {
        let pod = cri
            .run_pod(cri.pod(name), "sandboxes")
            .expect("RunPodSandbox");
        let id = cri.launch(&pod, cri.container("a", &["sleep", "100000"]));
        let (vm, shim) = (cri.pause_of(&pod), cri.shim_of(&pod));
        wait::signal(of(cri, &pod), libc::SIGKILL).expect("it is there");
        assert_ne!(cri.exited(&id).exit_code, 0);
        wait::until_within(DEADLINE, "a pod that is not ready", || {
            let pods = cri.pods();
            let pod = pods.iter().find(|it| it.id == pod.id).expect("the pod");
            match pod.state() {
                PodSandboxState::SandboxNotready => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        assert!(ends_within(vm, DEADLINE), "{}", proc::describe(vm));
        cri.remove(&id);
        cri.stop_pod(&pod.id).expect("StopPodSandbox");
        cri.remove_pod(&pod.id).expect("RemovePodSandbox");
        assert!(ends_within(shim, DEADLINE), "{}", proc::describe(shim));
    }
}

#[test]
fn containerd_2_1_sees_sandboxes_that_die() {
    crate::prepare();
    cri::on("2.1", a_sandbox_that_dies_is_not_ready);
}

/// V7: a VM has room for what its pod may use, in both kinds of pods; a container that does not fit is
/// refused, and so is an annotation that comes too late, or a pod that wants the host's namespaces.
fn a_vm_has_room_for_its_pod(cri: &mut Cri) {
    install(cri);
    for handler in ["vm", "sandboxes"] {
        let mut config = cri.pod(handler);
        let linux = config.linux.as_mut().expect("linux");
        linux.resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 700 << 20,
            ..Default::default()
        });
        let pod = cri.run_pod(config, handler).expect("RunPodSandbox");
        let id = cri.launch(&pod, cri.container("a", &["sleep", "100000"]));
        let total = cri.exec_sync(
            &id,
            &["awk", "/MemTotal/ {print int($2 / 1024)}", "/proc/meminfo"],
        );
        let total = String::from_utf8_lossy(&total.stdout).trim().parse::<u64>();
        assert!((700..=828).contains(&total.expect("MiB")), "{handler}");

        let mut large = cri.container("large", &["true"]);
        let linux = large.linux.as_mut().expect("linux");
        linux.resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 900 << 20,
            ..Default::default()
        });
        let id = cri.create(&pod, large);
        let why = cri.start_container(&id).expect_err("it does not fit");
        assert!(
            why.message()
                .contains("memory limit of 900 MiB: the VM was booted with 828 MiB"),
            "{why}"
        );
        if handler == "vm" {
            let mut late = cri.container("late", &["true"]);
            late.annotations = [("io.dunnage.vm.memory".to_owned(), "2000".to_owned())].into();
            let id = cri.create(&pod, late);
            let why = cri.start_container(&id).expect_err("it is too late");
            assert!(
                why.message()
                    .contains("annotation io.dunnage.vm.memory=\"2000\""),
                "{why}"
            );
        }
    }
    let node: i32 = NamespaceMode::Node.into();
    for handler in ["vm", "sandboxes"] {
        for name in ["hostNetwork", "hostPID", "hostIPC"] {
            // containerd 2.1 fails itself (bundle.go: a nil spec), before it asks the shim.
            if (handler, name) == ("sandboxes", "hostNetwork") {
                continue;
            }
            let mut config: PodSandboxConfig = cri.pod(&name.to_lowercase());
            let linux = config.linux.as_mut().expect("linux");
            let context = linux.security_context.as_mut().expect("a context");
            let options = context.namespace_options.as_mut().expect("options");
            match name {
                "hostNetwork" => options.network = node,
                "hostPID" => options.pid = node,
                _ => options.ipc = node,
            }
            let why = cri.run_pod(config, handler).expect_err(name);
            assert!(
                why.message().contains(&format!("{name}: not implemented")),
                "{why}"
            );
        }
    }
}

#[test]
fn containerd_2_1_gives_vms_the_size_of_their_pods() {
    crate::prepare();
    cri::on("2.1", a_vm_has_room_for_its_pod);
}
