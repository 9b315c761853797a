// SPDX-License-Identifier: Apache-2.0
//! One process and one socket per group of containers (B30 to B34).

use harness::{Bundle, Shim, Stdin, Test, differs};
use protos::Message;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The bundle `id` of a group, and the shim that `start` answered with for it.
async fn started(test: &Test, id: &str, annotations: &[(&str, &str)]) -> (Bundle, Shim) {
    let mut builder = test.bundle(id);
    for (key, value) in annotations {
        builder = builder.annotation(key, value);
    }
    let bundle = builder.build();
    let shim = bundle.start().shim().await;
    (bundle, shim)
}

/// B30, B33, B35: one process serves all containers of a group.
#[test]
fn containers_of_a_group_share_one_process() {
    harness::run(async |test| {
        let group = "io.containerd.runc.v2.group";
        let pod = "io.kubernetes.cri.sandbox-id";
        for (key, name) in [(group, "g"), (pod, "p")] {
            let (_, first) = started(test, &format!("{name}1"), &[(key, name)]).await;
            let (second_bundle, second) = started(test, &format!("{name}2"), &[(key, name)]).await;
            assert_eq!(first.pid(), second.pid());
            assert_eq!(second.answer().address, test.address_of(name));
            let file = fs::read_to_string(second_bundle.file("address")).unwrap();
            assert_eq!(
                file,
                second.answer().address,
                "B35: also when the shim was there"
            );
        }
        assert_eq!(test.daemons().len(), 2, "one process per group");
        // The group's annotation comes first.
        let (_, both) = started(test, "b", &[(pod, "q"), (group, "g")]).await;
        assert_eq!(both.answer().address, test.address_of("g"));
        let (bundle, shim) = started(test, "g3", &[(group, "g")]).await;
        let pid = shim.create(bundle.create()).await.unwrap().pid;
        assert_eq!(
            both.start("g3", "").await.unwrap().pid,
            pid,
            "seen through any connection"
        );
    });
}

/// B33: a socket nobody answers at is replaced.
#[test]
fn stale_socket_is_rebound() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let first = bundle.start().shim().await;
        first.kill_process().await;
        assert!(first.socket().exists(), "SIGKILL leaves the socket");
        let second = bundle.start().shim().await;
        assert_eq!(first.answer().address, second.answer().address);
        assert_ne!(first.pid(), second.pid());
    });
}

/// B32: nobody else may talk to a shim.
#[test]
fn socket_is_the_owners_alone() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().start().shim().await;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&shim.socket()), 0o600);
        assert_eq!(mode(shim.socket().parent().unwrap()) & 0o077, 0);
    });
}

/// B34: sockets go where BootstrapParams say, and the bundle has a link to find them.
#[test]
fn socket_dir_is_obeyed_and_linked_from_the_bundle() {
    harness::run(async |test| {
        if differs("bootstrap-params") {
            return;
        }
        let dir = test.dir().join("sockets");
        let bundle = test.bundle("c").build();
        let mut params = bundle.start().bootstrap_params();
        params.socket_dir = Some(dir.to_string_lossy().into_owned());
        let stdin = Stdin::Raw(params.encode_to_vec());
        let shim = bundle.start().stdin(stdin).shim().await;
        let name = test.socket_of("c").file_name().unwrap().to_owned();
        assert_eq!(shim.socket(), dir.join(name));
        assert_eq!(fs::read_link(bundle.file("s")).unwrap(), dir);
        assert_eq!(
            fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
            0o700
        );
        shim.stopped().await;
    });
}
