// SPDX-License-Identifier: Apache-2.0
//! Networks whose makers are killed in the middle, and what belongs to nobody.

use super::*;

/// Plugins end with a program that waits until it is let go, and passes on what those before it made.
/// What the plugin is asked ends with its type, and has what was made before that.
fn gated(manager: &Manager, net: &Net) {
    let (bin, gate) = (net.dir.join("bin"), net.dir.join("gate"));
    fs::create_dir_all(&bin).expect("a directory");
    let script = format!(
        "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\necho $$ >{0}.up\nread x <{0}\n\
         sed 's/.*\"prevResult\"://; s/,\"type\":\"gate\".*//'\n",
        gate.display()
    );
    fs::write(bin.join("gate"), script).expect("a program");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(bin.join("gate"), mode).expect("its mode");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    net.write("gated", &[json!({"type": "gate"})]);
    assert!(net.leases().is_empty(), "{}", manager.log());
}

/// The plugin that waits, and the helper that waits for it.
fn waiting(manager: &Manager, net: &Net) -> (i32, i32) {
    manager.until("the plugin waits", |_| {
        let pid = fs::read_to_string(net.dir.join("gate.up")).ok()?;
        let pid = pid.trim().parse().ok()?;
        Some((pid, proc::stat(pid)?.ppid))
    })
}

#[test]
fn nothing_is_left_when_the_daemon_or_the_helper_is_killed_in_the_middle() {
    on(|manager, net| {
        gated(manager, net);
        // The helper: its plugin ends with it, and the client hears of it.
        let client = manager.spawn_run(&["-d", "--net", "gated"], "x", &["true"]);
        let (plugin, helper) = waiting(manager, net);
        assert_eq!(manager.status("x"), "-", "others are served meanwhile");
        assert_eq!(net.leases().len(), 1);
        wait::signal(helper, libc::SIGKILL).expect("kill");
        client.finish().exits(125);
        assert!(ends_within(plugin, Duration::from_secs(20)));
        assert_eq!(manager.status("x"), "none");
        net.is_clean(manager);
        // The daemon: the helper goes on, and whoever removes the container waits for it.
        fs::remove_file(net.dir.join("gate.up")).expect("a file");
        let client = manager.spawn_run(&["-d", "--net", "gated"], "x", &["true"]);
        let (_, helper) = waiting(manager, net);
        manager.kill();
        client.finish().exits(125);
        manager.restart();
        assert_eq!(manager.status("x"), "-");
        let removing = manager.spawn_dunnage(&["rm", "x"]);
        fs::write(net.dir.join("gate"), "go\n").expect("the gate");
        removing.finish().ok();
        assert!(ends_within(helper, Duration::from_secs(20)));
        net.is_clean(manager);
    });
}

#[test]
fn the_doctor_takes_away_what_is_no_containers_and_nothing_else() {
    on(|manager, net| {
        let name = net.name();
        // One without a task, and one that runs.
        manager.run(&["--net", &name], "x", &["true"]).ok();
        let shim = manager.shims()[0];
        wait::signal(shim, libc::SIGKILL).expect("its shim");
        manager.until("it has no task", |it| (it.status("x") == "-").then_some(()));
        serve(manager, net, &[], "y").ok();
        let own = address(manager, "y");
        manager.kill();
        let records = manager.dir().join("r/containers").join(manager.namespace());
        fs::remove_dir_all(records).expect("the records");
        manager.restart();
        let found = manager.dunnage(&["--json", "doctor"]).exits(1).stdout;
        let kinds = |kind: &str| found.matches(kind).count();
        let both = (kinds("orphan network"), kinds("task without a record"));
        assert_eq!(both, (1, 1), "{found}");
        assert!(found.contains(&name), "{found}");
        manager.dunnage(&["doctor", "--fix"]).ok();
        assert_eq!(net.leases(), [own]);
        manager
            .dunnage(&["doctor"])
            .ok()
            .prints("nothing is wrong\n");
    });
}
