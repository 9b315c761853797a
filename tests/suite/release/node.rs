// SPDX-License-Identifier: Apache-2.0
//! `dunnage-node` on a node of Kubernetes: it installs, is installed again, and goes, with pods that
//! run from before to after, under each containerd.

use crate::{dist, guest, installer, script};
use harness::containerd::{Containerd, ctr};
use harness::cri::api::PodSandboxState;
use harness::cri::{Cri, Pod};
use harness::{containerd, cri, peers, program, wait};
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[test]
fn runtimes_come_and_go_under_pods_of_containerd_1_7() {
    cri::on("1.7", runtimes_come_and_go);
}

#[test]
fn runtimes_come_and_go_under_pods_of_containerd_2_1() {
    cri::on("2.1", runtimes_come_and_go);
}

/// What the image of the installer has in it.
fn release(dir: &Path) -> PathBuf {
    let from = dir.join("from");
    for name in ["bin", "lib/dunnage"] {
        fs::create_dir_all(from.join(name)).expect("a directory");
    }
    for path in [peers::shim(), &peers::vm_shim()] {
        let name = path.file_name().expect("a program's file");
        program::copy(path, &from.join("bin").join(name));
    }
    let mut copy = Command::new("cp");
    script(
        copy.arg("-r")
            .arg(guest())
            .arg(from.join("lib/dunnage/guest")),
    );
    from
}

/// The node that a containerd is: its files are in the directory of that.
struct Node {
    dir: PathBuf,
    from: PathBuf,
}

impl Node {
    fn place(&self) -> PathBuf {
        self.dir.join("opt")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    fn run(&self, action: &str) -> Output {
        let mut command = Command::new(installer());
        command
            .arg(action)
            .args(["--vm", "tcg", "--from"])
            .arg(&self.from);
        command.arg("--to").arg(self.place());
        command.arg("--config").arg(self.config());
        command.output().expect("dunnage-node")
    }

    #[track_caller]
    fn says(&self, action: &str, word: &str) {
        let output = self.run(action);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains(word), "{action}: {said}");
        assert!(output.status.success(), "{action}: {said}");
    }
}

fn runtimes_come_and_go(cri: &mut Cri) {
    let dir = tempfile::tempdir().expect("a directory");
    let node = Node {
        dir: cri.containerd.dir().to_owned(),
        from: release(dir.path()),
    };
    let (config, place) = (node.config(), node.place());
    let first = fs::read(&config).expect("config.toml");
    let before = cri.run("before");
    let old = cri.service(&before, "a");
    node.says("install", "is changed: restart containerd");
    node.says("install", "is as it was");
    cri.restart(|_| {});
    let pod = cri.run_pod(cri.pod("small"), "dunnage").expect("a pod");
    let small = cri.service(&pod, "a");
    let shim = cri.shim_of(&pod);
    let runs = fs::read_link(format!("/proc/{shim}/exe")).expect("a program");
    assert_eq!(runs, place.join("bin").join(containerd::SHIM));
    // The other handlers are the node's own, as before.
    assert_ne!(cri.shim_of(&before), shim);
    let mine = cri.run("mine");
    let runs = format!("/proc/{}/exe", cri.shim_of(&mine));
    assert!(!fs::read_link(runs).expect("a program").starts_with(&place));

    let walled = in_a_vm(cri);
    // As long as a pod is there, so is all that it needs: an exec is refused without its handler.
    let told = fs::read(&config).expect("config.toml");
    let output = node.run("uninstall");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let stays = !output.status.success() && said.contains("processes run from");
    assert!(stays, "{said}");
    assert_eq!(fs::read(&config).expect("config.toml"), told);
    cri.restart(|_| {});
    for (pod, id) in [(&before, &old), (&pod, &small)] {
        assert_eq!(cri.pod_status(pod).state(), PodSandboxState::SandboxReady);
        assert_eq!(cri.exec_sync(id, &["echo", "here"]).stdout, b"here\n");
    }
    for pod in [&pod, &walled] {
        cri.stop_pod(&pod.id).expect("StopPodSandbox");
        cri.remove_pod(&pod.id).expect("RemovePodSandbox");
    }
    cri.until("nobody to use it", || {
        let output = node.run("uninstall");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let gone = output.status.success() && said.contains("removed");
        if gone { Ok(()) } else { Err(said) }
    });
    assert!(!place.exists());
    assert_eq!(fs::read(&config).expect("config.toml"), first);
    node.says("uninstall", "is as it was");
    cri.restart(|_| {});
    assert_eq!(cri.exec_sync(&old, &["echo", "here"]).stdout, b"here\n");
    let refused = cri.run_pod(cri.pod("late"), "dunnage");
    let refused = refused.expect_err("there is no such handler any more");
    assert!(refused.message().contains("dunnage"), "{refused}");
}

/// A pod with another kernel than this machine's.
fn in_a_vm(cri: &Cri) -> Pod {
    let pod = cri.run_pod(cri.pod("walled"), "dunnage-vm");
    let pod = pod.expect("a pod in a VM");
    let id = cri.launch(&pod, cri.container("a", &["sleep", "1000"]));
    let kernel = cri.exec_sync(&id, &["uname", "-r"]).stdout;
    let kernel = String::from_utf8_lossy(&kernel).into_owned();
    let image = fs::read_to_string(guest().join("distro/guest.toml")).expect("guest.toml");
    let booted = format!("kernel = \"{}\"", kernel.trim());
    assert!(image.contains(&booted), "{booted} in {image}");
    pod
}

/// CRI-O is not here: a program of its name has what is for it, and ends by SIGHUP instead of reading.
#[test]
fn crio_is_told_in_a_file_and_by_a_signal() {
    let dir = tempfile::tempdir().expect("a directory");
    let (from, root) = (release(dir.path()), dir.path().join("root"));
    let stand_in = dir.path().join("crio");
    program::copy(&peers::program("sleep").expect("sleep"), &stand_in);
    let mut crio = Command::new(stand_in);
    // Whoever runs the tests may ignore it (nohup).
    // SAFETY: signal(2) is async-signal-safe, and SIG_DFL runs nothing.
    unsafe {
        crio.arg("1000").pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            Ok(())
        });
    }
    let mut crio = crio.spawn().expect("sleep");
    let run = |words: &[&str]| {
        let mut command = Command::new(installer());
        command.args(words).arg("--root").arg(&root);
        command.arg("--from").arg(&from);
        script(command.args(["--crio", "/etc/crio", "--vm", "kvm"]))
    };
    let said = run(&["install", "--restart"]);
    assert!(
        said.contains("/etc/crio: is changed: CRI-O reads it"),
        "{said}"
    );
    let is_told = ctr::ends_within(crio.id() as i32, wait::DEADLINE);
    let _ = crio.kill();
    let ended = crio.wait().expect("an end");
    assert!(is_told, "it was told nothing: {said}");
    assert_eq!(ended.signal(), Some(1), "{ended}");
    let own = root.join("etc/crio/crio.conf.d/50-dunnage.conf");
    let told = fs::read_to_string(&own).expect("a drop-in");
    for name in [containerd::SHIM, "containerd-shim-vm-v2"] {
        assert!(told.contains(&format!("runtime_path = \"/opt/dunnage/bin/{name}\"\n")));
        assert!(root.join("opt/dunnage/bin").join(name).exists());
    }
    // Nothing has changed, so nobody is asked.
    assert!(run(&["install", "--restart"]).contains("is as it was"));
    run(&["uninstall"]);
    assert!(!own.exists() && !root.join("opt/dunnage").exists());
}

/// The image, as the DaemonSet runs it: with two directories of the node, and nothing to write to
/// of its own.
#[test]
fn the_image_installs_and_uninstalls() {
    let dir = tempfile::tempdir().expect("a directory");
    let programs = dist(dir.path());
    let make = |out: &str, umask: &str| {
        let out = dir.path().join(out);
        let mut command = Command::new("bash");
        command
            .args(["-c", "umask $0 && exec release/image.sh", umask])
            .env("DIST", &programs)
            .env("GUEST", guest())
            .env("OUT", &out);
        script(&mut command);
        let name = format!("dunnage-node-{}-linux-amd64.tar", crate::version::cargo());
        out.join(name)
    };
    let [one, two] = [make("one", "022"), make("two", "077")];
    let [first, second] = [&one, &two].map(|path| fs::read(path).expect("an image"));
    assert!(first == second, "the same programs make another image");
    for release in ["1.7", "2.1"] {
        containerd::with(release, String::new(), |containerd| {
            let node = dir.path().join(release);
            as_a_container(containerd, &one, &node);
        });
    }
}

fn as_a_container(containerd: &Containerd, image: &Path, node: &Path) {
    for name in ["opt/dunnage", "etc/containerd"] {
        fs::create_dir_all(node.join(name)).expect("a directory");
    }
    let text = "version = 2\n";
    let config = node.join("etc/containerd/config.toml");
    fs::write(&config, text).expect("config.toml");
    let image = image.to_string_lossy();
    containerd.ctr(&["images", "import", &image]).ok();
    let name = format!("dunnage.io/dunnage-node:{}", crate::version::cargo());
    let mount = |path: &str| {
        let from = node.join(path);
        let from = from.display();
        format!("type=bind,src={from},dst=/host/{path},options=rbind:rw")
    };
    let [programs, configuration] = ["opt/dunnage", "etc/containerd"].map(mount);
    let run = |id: &str, words: &[&str]| {
        containerd.note(id);
        let options = [
            "run",
            "--rm",
            "--read-only",
            "--mount",
            &programs,
            "--mount",
        ];
        let program = [&configuration, &name[..], id, "/bin/dunnage-node"];
        containerd.ctr(&[&options[..], &program[..], words].concat())
    };
    let said = run("version", &["--version"]).ok();
    assert!(said.stdout.contains(&crate::version::cargo()), "{said}");
    let features = "--features=/etc/containerd/features.d";
    let said = run(
        "install",
        &["install", "--root=/host", "--vm=tcg", features],
    )
    .ok();
    assert!(said.stdout.contains("is changed"), "{said}");
    let shim = node.join("opt/dunnage/bin").join(containerd::SHIM);
    assert!(peers::version_text(&shim).contains(&crate::version::cargo()));
    assert!(
        node.join("opt/dunnage/lib/dunnage/guest/distro/initrd")
            .exists()
    );
    let told = fs::read_to_string(&config).expect("config.toml");
    assert!(
        told.contains("/opt/dunnage/bin/containerd-shim-vm-v2"),
        "{told}"
    );
    let told = fs::read_to_string(node.join("etc/containerd/features.d/dunnage"));
    assert!(told.expect("features").contains("\ndunnage.io/vm=tcg\n"));
    let features = "--features=/etc/containerd/features.d";
    run("uninstall", &["uninstall", "--root=/host", features]).ok();
    assert_eq!(fs::read_to_string(&config).expect("config.toml"), text);
    assert!(!node.join("etc/containerd/features.d/dunnage").exists());
    let left = fs::read_dir(node.join("opt/dunnage")).expect("a directory");
    assert_eq!(left.count(), 0);
}
