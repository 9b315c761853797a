// SPDX-License-Identifier: Apache-2.0
//! Hooks of config.json: those of the host's run there, and take the VM for the container's process.

use harness::{Bundle, Test, refused};
use serde_json::{Value, json};
use std::fs;

/// A hook that writes down its name and what it is told, and then does `more`.
fn hook(test: &Test, name: &str, more: &str) -> Value {
    let log = test.dir().join("hooked");
    let script = format!("(echo \"$0 $A\"; cat; echo) >>{}; {more}", log.display());
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script, name], "env": ["A=b"]}])
}

/// The names of the hooks that ran, with the statuses and pids that they were told.
fn hooked(test: &Test) -> Vec<(String, String, u64)> {
    let log = fs::read_to_string(test.dir().join("hooked")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let one = |pair: &[&str]| {
        let state: Value = serde_json::from_str(pair[1]).expect("a state");
        assert_eq!(state["id"], "c");
        let bundle = state["bundle"].as_str().expect("a bundle");
        assert!(bundle.ends_with("/c"), "{bundle}");
        let status = state["status"].as_str().expect("a status").to_owned();
        (pair[0].to_owned(), status, state["pid"].as_u64().unwrap())
    };
    lines.chunks(2).map(one).collect()
}

fn told(name: &str, status: &str, pid: u32) -> (String, String, u64) {
    (format!("{name} b"), status.into(), pid.into())
}

/// A bundle whose hooks are these; `end` is the last that `prestart` does.
fn bundle(test: &Test, end: &str) -> Bundle {
    let inside = json!([{"path": "/bin/busybox", "args": ["touch", "/dev/shm/here"]}]);
    let hooks = json!({
        "prestart": hook(test, "prestart", end),
        "createRuntime": hook(test, "createRuntime", "true"),
        "poststart": hook(test, "poststart", "false"),
        "poststop": hook(test, "poststop", "false"),
        "startContainer": inside,
    });
    let shm = json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm"});
    test.bundle("c").set("/hooks", hooks).mount(shm).build()
}

#[test]
fn hooks_run_in_their_order_and_take_the_vm_for_the_process() {
    crate::run(async |test| {
        let bundle = bundle(test, "true");
        let shim = bundle.start().shim().await;
        let pid = shim.create(bundle.create()).await.unwrap().pid;
        let made = [
            told("prestart", "creating", pid),
            told("createRuntime", "creating", pid),
        ];
        assert_eq!(hooked(test), made);
        // What fails from here on is not the container's fault.
        shim.start("c", "").await.unwrap();
        assert_eq!(hooked(test)[2..], [told("poststart", "running", pid)]);
        let look = bundle.exec("look", &["ls", "/dev/shm"]);
        assert_eq!(crate::said(&shim, &bundle, look).await, "here\n");
        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        assert_eq!(hooked(test).len(), 3);
        shim.delete("c", "").await.unwrap();
        assert_eq!(hooked(test)[3..], [told("poststop", "stopped", 0)]);
    });
}

/// The container is not made, its VM is gone, and what hooks did is undone by hooks.
#[test]
fn a_create_hook_that_fails_or_hangs_fails_the_create() {
    crate::run(async |test| {
        let failing = bundle(test, "echo no network >&2; exit 3");
        let shim = failing.start().shim().await;
        let status = refused(shim.create(failing.create()).await);
        let said = "sh did not terminate successfully: exit status 3: no network";
        assert!(status.message.contains(said), "{status}");
        let names: Vec<_> = hooked(test).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["prestart b", "poststop b"]);
        assert!(!test.vm_dir("c").exists());

        let mut hanging = hook(test, "prestart", "exec sleep 100000");
        hanging[0]["timeout"] = 1.into();
        let config = failing.file("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        spec["hooks"] = json!({ "prestart": hanging });
        fs::write(&config, spec.to_string()).unwrap();
        let status = refused(shim.create(failing.create()).await);
        assert!(status.message.contains("deadline exceeded"), "{status}");
        assert!(!test.vm_dir("c").exists());

        // A clock does not reach as far; nor does that end the shim.
        let mut patient = hook(test, "prestart", "exit 4");
        patient[0]["timeout"] = u64::MAX.into();
        spec["hooks"] = json!({ "prestart": patient, "poststop": null });
        fs::write(&config, spec.to_string()).unwrap();
        let status = refused(shim.create(failing.create()).await);
        assert!(status.message.contains("exit status 4"), "{status}");
    });
}

/// `delete` runs what the shim did not live to run.
#[test]
fn hooks_of_a_container_whose_shim_was_killed_are_run_by_delete() {
    crate::run(async |test| {
        let bundle = bundle(test, "true");
        let shim = bundle.running().await;
        shim.kill_process().await;
        assert_eq!(hooked(test).len(), 3);
        bundle.start().deleted().await;
        assert_eq!(hooked(test)[3..], [told("poststop", "stopped", 0)]);
    });
}
