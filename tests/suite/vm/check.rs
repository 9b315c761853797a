// SPDX-License-Identifier: Apache-2.0
//! `containerd-shim-vm-v2 check`: what it says, and what it leaves.

use harness::peers;
use std::fs;
use std::process::{Command, Output};

fn check(config: &str) -> (Output, u32) {
    let mut check = Command::new(peers::shim());
    check.arg("check").env("DUNNAGE_VM_CONFIG", config);
    let piped = std::process::Stdio::piped;
    let child = check.stdout(piped()).stderr(piped()).spawn();
    let child = child.expect("the shim");
    let pid = child.id();
    (child.wait_with_output().expect("check"), pid)
}

/// The steps of a container's life in a VM, each with its time, which make up the whole.
#[test]
fn check_runs_a_container_and_tells_how_long_each_step_took() {
    crate::prepare();
    let config = std::env::var("DUNNAGE_VM_CONFIG").expect("set");
    let (output, pid) = check(&config);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    let number = |line: &str, name: &str| -> Option<u64> {
        let (number, _) = line.strip_prefix(name)?.split_once(" ms ")?;
        number.trim().parse().ok()
    };
    let step = |name: &str| -> u64 {
        let number = text.lines().find_map(|line| number(line, name));
        number.unwrap_or_else(|| panic!("no step {name}: {text}"))
    };
    // With `templates` it need not boot.
    let restored = text.contains("\nrestore ");
    let steps = match restored {
        true => vec!["restore", "create", "first output"],
        false => vec!["qemu", "kernel", "agent", "create", "first output"],
    };
    let sum: u64 = steps.into_iter().map(step).sum();
    let all = step("all");
    // Each is rounded down.
    assert!((sum..=sum + 5).contains(&all), "{sum}: {text}");
    assert!(restored || step("kernel") > 50, "{text}");
    assert!(step("exec") > 0 && step("end") > 0, "{text}");
    let accelerator = "accelerator   tcg, which is slow: as it is set\n";
    assert!(text.contains(accelerator), "{text}");
    assert!(!fs::exists(format!("/run/dunnage/check-{pid}")).unwrap());
}

/// An image that was made for another build of the shim is refused by name, and nothing boots.
#[test]
fn an_image_of_another_build_is_refused() {
    crate::prepare();
    let dir = tempfile::tempdir().unwrap();
    crate::install_image(dir.path());
    let made = fs::canonicalize(dir.path().join("lib/dunnage/guest/distro")).unwrap();
    let stale = dir.path().join("stale/distro");
    fs::create_dir_all(&stale).unwrap();
    for name in ["vmlinux", "initrd"] {
        std::os::unix::fs::symlink(made.join(name), stale.join(name)).unwrap();
    }
    let facts = fs::read_to_string(made.join("guest.toml")).unwrap();
    let build = facts
        .lines()
        .find_map(|line| line.strip_prefix("agent_build = "));
    let facts = facts.replace(build.expect("a build"), "\"0123456789ab\"");
    fs::write(stale.join("guest.toml"), facts).unwrap();
    let config = dir.path().join("shim-vm.toml");
    fs::write(&config, "image = \"stale\"\naccel = \"tcg\"\n").unwrap();
    let (output, _) = check(&config.to_string_lossy());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        said.contains("guest.toml: agent_build = \"0123456789ab\", but this shim goes with"),
        "{said}"
    );
}

/// Without KVM it says why: here because there is no device, or what came of it.
#[test]
fn check_says_why_there_is_no_kvm() {
    crate::prepare();
    let dir = tempfile::tempdir().unwrap();
    crate::install_image(dir.path());
    let config = dir.path().join("shim-vm.toml");
    fs::write(&config, "image = \"lib/dunnage/guest\"\n").unwrap();
    let (output, _) = check(&config.to_string_lossy());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    let says = |line: &str| text.lines().any(|said| said.starts_with(line));
    let why = ["no KVM: /dev/kvm: ", "KVM does not work: "];
    let why = why.map(|why| says(&format!("accelerator   tcg, which is slow: {why}")));
    assert!(
        why.contains(&true) || says("accelerator   kvm, it was tried"),
        "{text}"
    );
}

/// `--help` has it.
#[test]
fn help_lists_what_an_operator_may_type() {
    let mut help = Command::new(peers::shim());
    let output = help.arg("--help").output().expect("the shim");
    let text = String::from_utf8_lossy(&output.stderr);
    for command in ["\n  check\n", "\n  upgrade\n"] {
        assert!(text.contains(command), "{text}");
    }
}

/// Two at a time do not take each other's VM for their own.
#[test]
fn checks_may_run_side_by_side() {
    crate::prepare();
    let config = std::env::var("DUNNAGE_VM_CONFIG").expect("set");
    let other = {
        let config = config.clone();
        std::thread::spawn(move || check(&config).0)
    };
    for output in [check(&config).0, other.join().expect("check")] {
        assert!(output.status.success(), "{output:?}");
    }
}
