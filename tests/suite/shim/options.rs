// SPDX-License-Identifier: Apache-2.0
//! Options of runc's that need a container of another kind: user namespaces, systemd's cgroups.

use harness::runtime::Runtime;
use harness::stdio::{Fifos, Stdio};
use harness::{peers, refused, vm_differs};
use protos::runc::Options;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// I3, T10: a container whose root is another user outside: its pipes are that user's, so that it
/// may open them anew; exec, stats and delete work as ever.
#[test]
fn container_in_a_user_namespace_owns_its_pipes() {
    const OUTSIDE: u32 = 100_000;
    harness::run(async |test| {
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, mut err) = fifos.readers();
        let map = json!([{ "containerID": 0, "hostID": OUTSIDE, "size": 65536 }]);
        let script = "cat /proc/self/uid_map /proc/self/gid_map; stat -L -c %u:%g /proc/self/fd/1; \
                      echo anew >/proc/self/fd/2; read line; exit 4";
        let namespaces = ["user", "pid", "ipc", "uts", "mount"];
        let namespaces = namespaces.map(|name| json!({ "type": name }));
        let bundle = test
            .bundle("c")
            .sh(script)
            .set("/linux/namespaces", json!(namespaces))
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map)
            .build();
        // As containerd does it for the group of the container's root.
        fs::set_permissions(&bundle.path, fs::Permissions::from_mode(0o711)).unwrap();
        let shim = bundle.start().shim().await;
        let options = Options {
            io_uid: OUTSIDE,
            io_gid: OUTSIDE,
            ..Default::default()
        };
        let request = bundle.create_with(&options).fifos(&fifos);
        shim.create(request).await.unwrap();
        let pid = shim.start("c", "").await.unwrap().pid;
        let line = format!("0 {OUTSIDE} 65536");
        for _ in 0..2 {
            let seen = out.line().await;
            let words: Vec<&str> = seen.split_whitespace().collect();
            assert_eq!(words.join(" "), line);
        }
        assert_eq!(out.line().await, "0:0");
        assert_eq!(err.line().await, "anew");
        if !vm_differs("one-process") {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            assert!(status.contains(&format!("Uid:\t{OUTSIDE}\t")), "{status}");
        }
        shim.run(bundle.exec_sh("e", "exit $(id -u)")).await;
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 0);
        shim.stats("c").await.unwrap();
        fifos.stdin.writer().await.write("end\n").await;
        assert_eq!(test.events().exit("c", "c").await.exit_status, 4);
    });
}

/// T9: `SystemdCgroup` is every command's flag. (Without systemd this one takes the flag
/// away before it calls the real runtime.)
#[test]
fn systemd_cgroup_is_a_flag_of_every_command() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let record = test.dir().join("record");
        let body = format!(
            "case \" $* \" in *' --systemd-cgroup '*) flag=yes;; *) flag=no;; esac\n\
             echo \"$ACTION $flag\" >>{}\n\
             for word in \"$@\"; do shift; [ \"$word\" = --systemd-cgroup ] || set -- \"$@\" \"$word\"; done\n\
             exec \"$RUNC\" \"$@\"",
            record.display()
        );
        let options = Options {
            systemd_cgroup: true,
            ..Runtime::script(test, "without-systemd", &body).options()
        };
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create_with(&options)).await.unwrap();
        shim.start("c", "").await.unwrap();
        shim.run(bundle.exec("e", &["true"])).await;
        shim.wait("c", "e").await.unwrap();
        shim.pause("c").await.unwrap();
        shim.resume("c").await.unwrap();
        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        let text = fs::read_to_string(record).unwrap();
        for action in [
            "create", "start", "exec", "pause", "resume", "kill", "delete",
        ] {
            assert!(
                text.contains(&format!("{action} yes\n")),
                "{action}: {text}"
            );
        }
        assert!(!text.contains(" no\n"), "{text}");
    });
}

/// T11: without systemd the runtime says so, and nothing is left.
#[test]
fn systemd_cgroup_without_systemd_is_refused_in_the_runtimes_words() {
    if std::path::Path::new("/run/systemd/system").exists() {
        return;
    }
    harness::run_unless_vm_differs("guests-cgroups", async |test| {
        let path = format!("system.slice:dunnage:{}-c", test.namespace());
        let bundle = test
            .bundle("c")
            .set("/linux/cgroupsPath", json!(path))
            .build();
        let shim = bundle.start().shim().await;
        let options = Options {
            systemd_cgroup: true,
            ..Default::default()
        };
        let status = refused(shim.create(bundle.create_with(&options)).await);
        assert!(
            status.message.starts_with("OCI runtime create failed: "),
            "{status}"
        );
        let reason = status.message.to_lowercase();
        // crun speaks of the bus that leads to it.
        let named = ["systemd", "sd-bus"]
            .iter()
            .any(|name| reason.contains(name));
        assert!(named, "{status}");
        assert_eq!(bundle.mounts(), [] as [String; 0]);
        assert!(!test.runc_root().join("c").exists());
        if peers::is_go() {
            return;
        }
        shim.create(test.bundle("other").build().create())
            .await
            .expect("another container");
    });
}
