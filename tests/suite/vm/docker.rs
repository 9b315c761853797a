// SPDX-License-Identifier: Apache-2.0
//! dockerd, and `docker run` with the runtime's name.

use harness::docker::{Bridge, Dockerd, Programs};
use harness::{manager, peers, program};

/// On Docker's own bridge, whose end Docker puts into the task's namespace after Create.
#[test]
fn docker_runs_a_container_in_a_vm_with_its_network() {
    crate::prepare();
    // Docker 20.10 knows no shims by name.
    let Some(programs) = Programs::newest() else {
        return;
    };
    manager::on(|manager| {
        let shim = manager.dir().join("bin/containerd-shim-vm-v2");
        program::copy(peers::shim(), &shim);
        crate::install_image(manager.dir());
        let dockerd = Dockerd::start(&programs, manager, Bridge::Address("10.9.9.1/24"));
        let run = [
            "run",
            "--rm",
            "--runtime=io.containerd.vm.v2",
            "busybox:test",
            "sh",
            "-c",
            "ip -o addr show eth0 | grep -c 10.9.9.2/24; ping -c 1 -W 20 10.9.9.1 | grep -c ' 0% '; exit 3",
        ];
        dockerd.docker(&run).exits(3).prints("1\n1\n");
    });
}
