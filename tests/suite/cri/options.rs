// SPDX-License-Identifier: Apache-2.0
//! A runtime that is not called `io.containerd.runc.v2`: CRI sends its options as TOML, in a
//! `runtimeoptions.v1.Options` (contract B13).

use harness::cri::Cri;
use harness::differs;
use std::fs;

for_each_containerd!(a_runtime_of_another_name_is_given_its_root_and_binary_name);

fn a_runtime_of_another_name_is_given_its_root_and_binary_name(cri: &mut Cri) {
    let pod = cri.run_pod(cri.pod("web"), "other");
    if differs("runtimeoptions") {
        let error = pod.expect_err("TOML options");
        let text = "runtimeoptions.v1.Options: not found";
        assert!(error.message().contains(text), "{error}");
        return;
    }
    let pod = pod.expect("RunPodSandbox with another runtime");
    let id = cri.service(&pod, "a");
    let dir = cri.containerd.dir();
    let state = dir.join("runc/other/k8s.io");
    for id in [&pod.id, &id] {
        assert!(
            state.join(id).exists(),
            "Root is not honoured: no {} in it",
            id
        );
    }
    let called = fs::read_to_string(dir.join("other-runc.record")).expect("BinaryName is not used");
    for id in [&pod.id, &id] {
        let create = |line: &&str| line.contains(" create ") && line.contains(id.as_str());
        assert_eq!(called.lines().filter(create).count(), 1, "{called}");
    }
    assert_eq!(cri.exec_sync(&id, &["echo", "exec"]).stdout, b"exec\n");
}
