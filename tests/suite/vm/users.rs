// SPDX-License-Identifier: Apache-2.0
//! Containers in a user namespace, whose root is somebody else: in a VM, and for the host's files.

use crate::pods::install;
use crate::said;
use harness::cri::api::{ContainerConfig, IdMapping, NamespaceMode, UserNamespace};
use harness::cri::{self, Cri};
use harness::{Bundle, Test, peers, refused};
use protos::types::Mount;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

const FIRST: u32 = 100_000;
const COUNT: u32 = 65536;

fn map() -> Value {
    json!([{"containerID": 0, "hostID": FIRST, "size": COUNT}])
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (meta.uid(), meta.gid())
}

/// A container whose root is 100000 of the host's, as containerd would have it made, with these mounts.
fn bundle(test: &Test, id: &str, mounts: &[Value]) -> Bundle {
    let [upper, work] = ["upper", "work"].map(|name| test.dir().join(format!("{id}-{name}")));
    for dir in [&upper, &work] {
        fs::create_dir(dir).unwrap();
        chown(dir, Some(FIRST), Some(FIRST)).unwrap();
    }
    let options = [
        format!("lowerdir={}", peers::rootfs().display()),
        format!("upperdir={}", upper.display()),
        format!("workdir={}", work.display()),
        format!("uidmap=0:{FIRST}:{COUNT}"),
        format!("gidmap=0:{FIRST}:{COUNT}"),
    ];
    let root = Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        options: options.into(),
        ..Default::default()
    };
    let namespaces = ["pid", "ipc", "uts", "mount", "user"].map(|kind| json!({ "type": kind }));
    let mut builder = test
        .bundle(id)
        .annotation("io.containerd.runc.v2.group", "g")
        .rootfs(vec![root])
        .set("/linux/namespaces", json!(namespaces))
        .set("/linux/uidMappings", map())
        .set("/linux/gidMappings", map())
        .set("/root/readonly", json!(false));
    for mount in mounts {
        builder = builder.mount(mount.clone());
    }
    builder.build()
}

/// The host's files in a mount with mappings belong to the container's root, and what it makes to the host's;
/// in one without they are nobody's. `idmap` alone goes by the container's own, and not below; `ridmap` does.
#[test]
fn volumes_have_the_owners_that_their_mappings_say() {
    crate::run(async |test| {
        let data = test.dir().join("data");
        let below = data.join("below");
        fs::create_dir_all(&below).unwrap();
        let (tmpfs, none) = (Some("tmpfs"), None::<&str>);
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(tmpfs, &below, tmpfs, flags, none).unwrap();
        for dir in [&data, &below] {
            fs::write(dir.join("mine"), "root's").unwrap();
            let private = fs::Permissions::from_mode(0o600);
            fs::set_permissions(dir.join("mine"), private).unwrap();
        }
        let mount = |to: &str, option: &str| json!({"destination": to, "type": "bind", "source": data, "options": ["rbind", "rw", option]});
        let mapped = |to: &str, option: &str| {
            let mut mount = mount(to, option);
            mount["uidMappings"] = map();
            mount["gidMappings"] = map();
            mount
        };
        let mounts = [
            mapped("/mapped", "rprivate"),
            mount("/own", "idmap"),
            mount("/all", "ridmap"),
            mount("/plain", "rprivate"),
        ];
        let bundle = bundle(test, "c", &mounts);
        let shim = bundle.running().await;
        let script = "cat /proc/self/uid_map | tr -s ' '; cat /mapped/mine; echo; \
             stat -c '%n %u:%g' /bin/busybox /mapped/mine /own/mine /all/mine /all/below/mine /own/below/mine /plain/mine; \
             echo new >/mapped/new && chown 7:8 /mapped/new && cat /own/new; \
             cat /plain/mine 2>&1 | grep -o denied; touch /made; id -u";
        let told = said(&shim, &bundle, bundle.exec_sh("look", script)).await;
        let expected = format!(
            " 0 {FIRST} {COUNT}\nroot's\n/bin/busybox 0:0\n/mapped/mine 0:0\n/own/mine 0:0\n/all/mine 0:0\n\
             /all/below/mine 0:0\n/own/below/mine 65534:65534\n/plain/mine 65534:65534\nnew\ndenied\n0\n"
        );
        assert_eq!(told, expected);
        assert_eq!(owner(&data.join("new")), (7, 8), "on disk");
        assert_eq!(owner(&data.join("mine")), (0, 0));
        assert_eq!(owner(&test.dir().join("c-upper/made")), (FIRST, FIRST));

        for (id, field, wrong, why) in [
            ("a", "uidMappings", json!([]), "one without the other"),
            (
                "b",
                "gidMappings",
                json!([{"hostID": 1}]),
                "gidMappings: [{\"hostID\":1}]",
            ),
        ] {
            let mut mount = mapped("/mapped", "rprivate");
            mount[field] = wrong;
            let bundle = self::bundle(test, id, &[mount]);
            let status = refused(shim.create(bundle.create()).await);
            assert!(status.message.contains(why), "{status}");
        }
        shim.stop().await;
        nix::mount::umount2(&below, nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
}

/// `hostUsers: false`, as the kubelet says it: all of the pod's containers are in one user namespace, and have
/// the volumes as theirs; on the host these belong to whom they did.
fn pods_have_users_of_their_own(cri: &mut Cri) {
    install(cri);
    let ids = vec![IdMapping {
        host_id: FIRST,
        container_id: 0,
        length: COUNT,
    }];
    let users = UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: ids.clone(),
        gids: ids.clone(),
    };
    let mine = cri.share().join("mine");
    fs::write(&mine, "root's").expect("a file");
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(&mine, private).expect("its mode");
    for handler in ["vm", "sandboxes"] {
        let mut config = cri.pod(&format!("users-{handler}"));
        let linux = config.linux.as_mut().expect("linux");
        let context = linux.security_context.as_mut().expect("a context");
        let options = context.namespace_options.as_mut().expect("options");
        options.userns_options = Some(users.clone());
        let pod = cri.run_pod(config, handler).expect("RunPodSandbox");
        let container = |name: &str| {
            let mut container: ContainerConfig = cri.container(name, &["sleep", "1000"]);
            let linux = container.linux.as_mut().expect("linux");
            let context = linux.security_context.as_mut().expect("a context");
            let options = context.namespace_options.as_mut().expect("options");
            options.userns_options = Some(users.clone());
            for mount in &mut container.mounts {
                mount.uid_mappings.clone_from(&ids);
                mount.gid_mappings.clone_from(&ids);
            }
            cri.launch(&pod, container)
        };
        let all = ["a", "b"].map(container);
        let told = |id: &str, script: &str| {
            let said = cri.exec_sync(id, &["sh", "-c", script]);
            String::from_utf8_lossy(&said.stdout).into_owned()
        };
        let look = "tr -s ' ' </proc/self/uid_map; cat /share/mine; stat -c ' %u:%g' /share/mine /bin; \
                    grep -c . /etc/hosts >/dev/null && echo hosts";
        let expected = format!(" 0 {FIRST} {COUNT}\nroot's 0:0\n 0:0\nhosts\n");
        for (n, id) in all.iter().enumerate() {
            assert_eq!(told(id, look), expected, "{handler}");
            let made = format!("made-{handler}-{n}");
            assert_eq!(told(id, &format!("echo >/share/{made}")), "");
            assert_eq!(owner(&cri.share().join(&made)), (0, 0));
        }
        let space = all
            .each_ref()
            .map(|id| told(id, "readlink /proc/self/ns/user"));
        if handler == "vm" {
            assert_eq!(space[0], space[1], "one of the pod's");
        }
        cri.stop_pod(&pod.id).expect("StopPodSandbox");
        cri.remove_pod(&pod.id).expect("RemovePodSandbox");
    }
}

#[test]
fn containerd_2_1_runs_pods_with_users_of_their_own() {
    crate::prepare();
    cri::on("2.1", pods_have_users_of_their_own);
}
