//! Pods as Kubernetes runs them, each in one VM: what their containers share there.

use harness::containerd::DEADLINE;
use harness::containerd::ctr::ends_within;
use harness::cri::{self, Cri};
use harness::{peers, proc, program, wait};
use std::fs;

/// The containers `a` and `b` of a pod: one network, one /dev/shm, one volume in which a FIFO
/// and a socket join them, and an end for each.
fn containers_of_a_pod_share_a_vm(cri: &mut Cri) {
    program::copy(
        peers::shim(),
        &cri.containerd.dir().join("bin/containerd-shim-vm-v2"),
    );
    crate::install_image(cri.containerd.dir());
    let pod = cri.run_pod(cri.pod("web"), "vm").expect("RunPodSandbox");
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
    assert_eq!(told(&ids[0], "hostname"), "web\n");
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

    cri.stop(&ids[0], 60);
    assert_eq!(cri.exited(&ids[0]).exit_code, 6);
    assert_eq!(told(&ids[1], "cat /dev/shm/word"), "shared\n", "b runs on");
    cri.stop_pod(&pod.id).expect("StopPodSandbox");
    assert_eq!(cri.exited(&ids[1]).exit_code, 137);
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
