// SPDX-License-Identifier: Apache-2.0
//! What pods have by Kubernetes's word, and have in VMs, too: see docs/kubernetes-vm.md.

use crate::pods::install;
use harness::containerd::IMAGE;
use harness::cri::api::{
    ContainerConfig, Device, ImageSpec, Int64Value, Mount, NamespaceMode, NamespaceOption,
};
use harness::cri::{self, Cri, Pod};
use harness::wait;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

const USER: i64 = 1000;
const GROUP: u32 = 2000;
/// Bytes of a volume in memory.
const SIZE: u64 = 2 << 20;
/// Devices of the host's, one of which every machine has, and no VM gets.
const DEVICES: [&str; 4] = ["/dev/kvm", "/dev/mem", "/dev/kmsg", "/dev/port"];

fn volume(host: &Path, to: &str) -> Mount {
    Mount {
        container_path: to.to_owned(),
        host_path: host.to_string_lossy().into_owned(),
        ..Default::default()
    }
}

fn told(cri: &Cri, id: &str, script: &str) -> String {
    let said = cri.exec_sync(id, &["sh", "-c", script]);
    let all = [said.stdout, said.stderr].concat();
    String::from_utf8_lossy(&all).into_owned()
}

fn options(container: &mut ContainerConfig) -> &mut NamespaceOption {
    let linux = container.linux.as_mut().expect("linux");
    let context = linux.security_context.as_mut().expect("a context");
    context.namespace_options.as_mut().expect("options")
}

/// What the kubelet has made of the pod's volumes: a directory with a group, one in it that is mounted
/// elsewhere as a subPath is, and one in memory.
fn volumes(dir: &Path) -> [Mount; 3] {
    let [whole, sub, memory] = ["whole", "sub", "memory"].map(|name| dir.join(name));
    for dir in [&whole, &sub, &memory, &whole.join("inner")] {
        fs::create_dir_all(dir).expect("a directory");
    }
    fs::write(whole.join("inner/file"), "of the part").expect("a file");
    chown(&whole, None, Some(GROUP)).expect("its group");
    fs::set_permissions(&whole, fs::Permissions::from_mode(0o2775)).expect("its mode");
    let none = None::<&str>;
    let inner = whole.join("inner");
    mount(Some(&inner), &sub, none, MsFlags::MS_BIND, none).expect("a bind");
    let (tmpfs, size) = (Some("tmpfs"), format!("size={SIZE},mode=1777"));
    let flags = MsFlags::empty();
    mount(tmpfs, &memory, tmpfs, flags, Some(size.as_str())).expect("memory");
    [
        volume(&whole, "/whole"),
        volume(&sub, "/part"),
        volume(&memory, "/memory"),
    ]
}

/// A volume's group, the part of a volume, and the size of one in memory.
fn volumes_are_as_the_kubelet_has_made_them(cri: &Cri, pod: &Pod, dir: &Path) -> String {
    let mut container = cri.container("a", &["sleep", "4321"]);
    options(&mut container).pid = NamespaceMode::Pod.into();
    container.mounts.extend(volumes(dir));
    let linux = container.linux.as_mut().expect("linux");
    let context = linux.security_context.as_mut().expect("a context");
    context.run_as_user = Some(Int64Value { value: USER });
    context.supplemental_groups = vec![GROUP.into()];
    let id = cri.launch(pod, container);
    assert_eq!(
        told(cri, &id, "cat /part/file; ls /part"),
        "of the partfile\n"
    );
    assert_eq!(told(cri, &id, "touch /whole/made"), "");
    let made = fs::metadata(dir.join("whole/made")).expect("what it made");
    assert_eq!((made.uid(), made.gid()), (USER as u32, GROUP));
    let fill = "dd if=/dev/zero of=/memory/file bs=64k count=64 2>&1 | grep -o 'No space'; \
                df -k /memory | tail -n 1 | tr -s ' ' | cut -d' ' -f2";
    assert_eq!(told(cri, &id, fill), format!("No space\n{}\n", SIZE >> 10));
    let file = fs::metadata(dir.join("memory/file")).expect("it is the host's");
    assert_eq!(file.len(), SIZE);
    id
}

/// An image, of which nothing can be changed.
fn an_image_is_a_volume(cri: &Cri, pod: &Pod) {
    let mut container = cri.container("b", &["sleep", "1000"]);
    container.mounts.push(Mount {
        container_path: "/image".to_owned(),
        readonly: true,
        image: Some(ImageSpec {
            image: IMAGE.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    });
    let id = cri.launch(pod, container);
    let look =
        "test -x /image/bin/busybox && echo there; touch /image/new 2>&1 | grep -o 'Read-only'";
    assert_eq!(told(cri, &id, look), "there\nRead-only\n");
}

/// `kubectl debug --target`, in a pod that shares its processes: it sees them.
fn who_debugs_sees_the_target(cri: &Cri, pod: &Pod, target: &str) {
    let mut container = cri.container("debug", &["sleep", "1000"]);
    let options = options(&mut container);
    options.pid = NamespaceMode::Target.into();
    options.target_id = target.to_owned();
    let id = cri.launch(pod, container);
    let processes = told(cri, &id, "ps");
    for seen in ["sleep 4321", "/pause"] {
        assert!(processes.contains(seen), "{processes}");
    }
}

fn a_device_is_refused_by_name(cri: &Cri, pod: &Pod) {
    let device = DEVICES.into_iter().find(|path| Path::new(path).exists());
    let device = device.expect("a device of the host's");
    let mut container = cri.container("device", &["true"]);
    container.devices.push(Device {
        container_path: "/dev/mine".to_owned(),
        host_path: device.to_owned(),
        permissions: "rw".to_owned(),
    });
    let id = cri.create(pod, container);
    let why = cri
        .start_container(&id)
        .expect_err("a device of the host's");
    assert!(
        why.message()
            .contains("linux.devices: /dev/mine, a device of the host's"),
        "{why}"
    );
}

fn pods_have_what_kubernetes_has(cri: &mut Cri) {
    install(cri);
    for handler in ["vm", "sandboxes"] {
        let shared: i32 = NamespaceMode::Pod.into();
        let mut config = cri.pod(&format!("k8s-{handler}"));
        let linux = config.linux.as_mut().expect("linux");
        let context = linux.security_context.as_mut().expect("a context");
        context.namespace_options.as_mut().expect("options").pid = shared;
        let pod = cri.run_pod(config, handler).expect("RunPodSandbox");
        let dir = cri.containerd.dir().join(format!("volumes-{handler}"));
        let target = volumes_are_as_the_kubelet_has_made_them(cri, &pod, &dir);
        an_image_is_a_volume(cri, &pod);
        a_device_is_refused_by_name(cri, &pod);
        if handler == "vm" {
            who_debugs_sees_the_target(cri, &pod, &target);
        }
        cri.stop_pod(&pod.id).expect("StopPodSandbox");
        cri.remove_pod(&pod.id).expect("RemovePodSandbox");
        for name in ["sub", "memory"] {
            umount2(&dir.join(name), MntFlags::empty()).expect("nobody uses it");
        }
    }
}

#[test]
fn containerd_2_1_gives_pods_what_kubernetes_has() {
    crate::prepare();
    cri::on("2.1", pods_have_what_kubernetes_has);
}

/// An image's STOPSIGNAL reaches the container as any signal does, and with a writable cgroup a container
/// makes its own below.
#[test]
fn a_container_has_its_stop_signal_and_its_cgroup() {
    crate::run(async |test| {
        let kinds = ["pid", "ipc", "uts", "mount", "cgroup"];
        let namespaces: Vec<_> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
        let cgroups = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["rw", "nosuid", "nodev", "noexec"]});
        let sysfs = json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"});
        let script = "trap 'exit 7' USR1; echo >/mnt/ready; while :; do sleep 1000 & wait $!; done";
        let bundle = test
            .bundle("c")
            .share()
            .set("/linux/namespaces", json!(namespaces))
            .mount(sysfs)
            .mount(cgroups)
            .sh(script)
            .build();
        let shim = bundle.running().await;
        let ready = test.share().join("ready");
        wait::until("a container that waits", || match ready.exists() {
            true => Ok(()),
            false => Err("it does not yet".into()),
        })
        .await;
        let make = "cd /sys/fs/cgroup && mkdir mine && echo $$ >mine/cgroup.procs && cat /proc/self/cgroup";
        let made = crate::said(&shim, &bundle, bundle.exec_sh("make", make)).await;
        assert_eq!(made, "0::/mine\n");
        shim.kill("c", "", libc::SIGUSR1, false).await.unwrap();
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 7);
        shim.delete("c", "").await.unwrap();
    });
}
