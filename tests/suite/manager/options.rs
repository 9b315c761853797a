// SPDX-License-Identifier: Apache-2.0
//! Options of `run` and `create` that say more of a container than whose process it is: what they change
//! in it, and what is refused.

use harness::manager::{self, Manager};

/// Runs it in the foreground; what it says.
fn run(manager: &Manager, options: &[&str], script: &str) -> String {
    let options = [&["--rm"], options].concat();
    manager
        .run(&options, "once", &["sh", "-c", script])
        .ok()
        .stdout
}

#[test]
fn annotations_and_limits_are_in_the_spec() {
    manager::on(|manager| {
        let options = [
            "-d",
            "--annotation",
            "a=b",
            "--annotation",
            "c=d=e",
            "--ulimit",
            "core=5:7",
        ];
        manager.run(&options, "x", &["sleep", "1000"]).ok();
        let spec = manager.json(&["inspect", "x"])[0]["spec"].clone();
        assert_eq!(
            spec["annotations"],
            serde_json::json!({"a": "b", "c": "d=e"})
        );
        let options = ["--ulimit", "nofile=77:99", "--ulimit", "stack=-1"];
        let said = run(manager, &options, "ulimit -n; ulimit -H -n; ulimit -s");
        assert_eq!(said, "77\n99\nunlimited\n");
    });
}

#[test]
fn devices_and_mounts_are_there() {
    manager::on(|manager| {
        // Not one of those that every container has.
        let fuse = "/dev/fuse:/dev/mine:r";
        let script = "ls -l /dev/mine | cut -c1-4; (: </dev/mine) && (: >/dev/mine) || echo no";
        let said = run(manager, &["--device", fuse], script);
        assert_eq!(said, "crw-\nno\n");
        // Without it the device is not there, and could not be used.
        let none = run(
            manager,
            &[],
            "test -e /dev/fuse; echo $?; mknod /dev/f c 10 229; (: </dev/f); echo $?",
        );
        assert!(none.starts_with("1\n") && none.ends_with("\n1\n"), "{none}");
        let script = "for d in root home tmp; do mount | grep \" /$d \"; done; touch /tmp/x 2>&1; cat /tmp/passwd | head -n 1";
        let source = manager.dir().join("source");
        std::fs::create_dir(&source).expect("a directory");
        std::fs::write(source.join("passwd"), "here\n").expect("a file");
        let bind = format!("type=bind,src={},dst=/tmp,ro", source.display());
        let options = [
            "--tmpfs",
            "/root:size=64k,exec",
            "--mount",
            "type=tmpfs,dst=/home,tmpfs-size=4m",
            "--mount",
            &bind,
        ];
        let said = run(manager, &options, script);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 5, "{said}");
        assert!(
            lines[0].contains("tmpfs on /root") && lines[0].contains("size=64k"),
            "{said}"
        );
        assert!(
            !lines[0].contains("noexec") && lines[1].contains("noexec"),
            "{said}"
        );
        assert!(lines[1].contains("size=4096k"), "{said}");
        assert!(
            lines[2].contains(" on /tmp ") && lines[3].contains("Read-only"),
            "{said}"
        );
        assert_eq!(lines[4], "here");
    });
}

#[test]
fn variables_of_a_file() {
    manager::on(|manager| {
        let file = manager.dir().join("env");
        std::fs::write(&file, "# mine\nA=1\nB=2\nTMPDIR\nNOBODY_HAS_IT\n").expect("a file");
        let file = file.display().to_string();
        let script = "echo $A $B ${TMPDIR##*/} ${NOBODY_HAS_IT-none}";
        let said = run(manager, &["-e", "B=3", "--env-file", &file], script);
        assert_eq!(said, "1 3 tmp none\n");
        manager.run(&["-d"], "x", &["sleep", "1000"]).ok();
        let exec = ["exec", "--env-file", &file, "x", "sh", "-c", script];
        manager.dunnage(&exec).ok().prints("1 2 tmp none\n");
    });
}

#[test]
fn namespaces_of_the_host_and_of_another() {
    manager::on(|manager| {
        let link = |kind: &str| {
            let link = std::fs::read_link(format!("/proc/self/ns/{kind}"));
            format!("{}\n", link.expect("a namespace").display())
        };
        let script = "readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc";
        let host = run(manager, &["--pid", "host", "--ipc", "host"], script);
        assert_eq!(host, link("pid") + &link("ipc"));
        let own = run(manager, &["--ipc", "private"], script);
        assert!(
            !own.contains(&link("pid")) && !own.contains(&link("ipc")),
            "{own}"
        );
        let of_host = "mount | grep -c -e ' /dev/shm ' -e ' /dev/mqueue '";
        let of_host = run(manager, &["--ipc", "host"], of_host);
        let there = ["/dev/shm", "/dev/mqueue"]
            .iter()
            .filter(|it| std::path::Path::new(it).is_dir());
        assert_eq!(of_host, format!("{}\n", there.count()));

        manager.run(&["-d"], "a", &["sleep", "1000"]).ok();
        let shares = [
            "--pid",
            "container:a",
            "--ipc",
            "container:a",
            "--restart",
            "always",
            "-d",
        ];
        manager
            .run(&shares, "b", &["sh", "-c", "echo up; exec sleep 2000"])
            .ok();
        let of = |id: &str| {
            manager
                .dunnage(&["exec", id, "sh", "-c", script])
                .ok()
                .stdout
        };
        assert_eq!(of("a"), of("b"));
        let ps = manager
            .dunnage(&["exec", "b", "ps", "-o", "args"])
            .ok()
            .stdout;
        assert!(
            ps.contains("sleep 1000") && ps.contains("sleep 2000"),
            "{ps}"
        );
        // When the other has begun anew, its namespaces are elsewhere.
        let before = manager.pid_of("b");
        manager.dunnage(&["restart", "a"]).ok();
        manager.until("both together again", |it| {
            let there = it.dunnage(&["exec", "b", "sh", "-c", script]);
            let is_new = there.code == 0 && it.pid_of("b") != before;
            (is_new && there.stdout == of("a")).then_some(())
        });
        // Of what does not run, or has none of its own, nothing can be joined.
        manager.dunnage(&["stop", "b"]).ok();
        manager.dunnage(&["stop", "a"]).ok();
        let refused = manager
            .run(&["--pid", "container:a"], "c", &["true"])
            .exits(125);
        assert!(
            refused.stderr.contains("\"a\": it does not run"),
            "{refused}"
        );
        manager
            .run(&["--pid", "container:no"], "c", &["true"])
            .exits(125)
            .fails_with("\"no\"");
        manager
            .run(&["-d", "--pid", "host"], "h", &["sleep", "1000"])
            .ok();
        let refused = manager
            .run(&["--pid", "container:h"], "c", &["true"])
            .exits(125);
        assert!(refused.stderr.contains("none of its own"), "{refused}");
        assert_eq!(manager.status("c"), "none");
    });
}

#[test]
fn sysctls_are_set() {
    manager::on(|manager| {
        let options = [
            "--sysctl",
            "net.ipv4.ip_unprivileged_port_start=80",
            "--sysctl",
            "kernel.msgmax=9000",
        ];
        let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax";
        assert_eq!(run(manager, &options, script), "80\n9000\n");
        let host = [&["--net", "host"][..], &options[..2]].concat();
        let refused = manager.run(&host, "x", &["true"]).exits(125);
        assert!(
            refused
                .stderr
                .contains("--sysctl net.ipv4.ip_unprivileged_port_start=80"),
            "{refused}"
        );
        assert_eq!(manager.status("x"), "none");
    });
}

/// It reaps what others leave, passes signals on, and is not in the root filesystem.
#[test]
fn an_init_is_the_first_process() {
    manager::on(|manager| {
        let script = "(sleep 0.1 &); echo up; while :; do sleep 0.02; done";
        manager
            .run(&["-d", "--init"], "x", &["sh", "-c", script])
            .ok();
        let first = manager
            .dunnage(&["exec", "x", "cat", "/proc/1/cmdline"])
            .ok()
            .stdout;
        assert!(first.starts_with("/dev/init\0--\0sh\0"), "{first:?}");
        // A shell without a handler would not end of it as the first process.
        manager.dunnage(&["stop", "-t", "1m", "x"]).ok();
        manager.dunnage(&["wait", "x"]).ok().prints("143\n");
        assert!(!harness::peers::rootfs().join("dev/init").exists());
        manager
            .run(&["--init", "--rm"], "y", &["sh", "-c", "exit 9"])
            .exits(9);
        manager
            .run(&["--init", "--rm"], "y", &["no-such"])
            .exits(127);
    });
}

/// Docker's exit code for it; one line that names both; and nothing is made.
#[test]
fn what_means_nothing_is_refused_by_name() {
    manager::on(|manager| {
        let file = manager.dir().join("env");
        std::fs::write(&file, "A=1\n=2\n").expect("a file");
        let file = file.display().to_string();
        for (option, value) in [
            ("--annotation", "a"),
            ("--annotation", "=b"),
            ("--device", "/no/such"),
            ("--device", "/etc/passwd"),
            ("--device", "/dev/null:/x:rwx"),
            ("--tmpfs", "t"),
            ("--tmpfs", "/t:size"),
            ("--mount", "type=bind,src=/no/such,dst=/x"),
            ("--mount", "type=volume,src=x,dst=/x"),
            ("--mount", "type=tmpfs,dst=/x,colour=red"),
            ("--ulimit", "files=5"),
            ("--ulimit", "nofile=9:5"),
            ("--env-file", "/no/such"),
            ("--env-file", &file),
            ("--stop-signal", "TERMM"),
            ("--stop-timeout", "soon"),
            ("--pid", "private"),
            ("--pid", "container:"),
            ("--ipc", "container:../x"),
            ("--ipc", "none"),
            ("--sysctl", "kernel.panic=1"),
            ("--sysctl", "net.core.somaxconn"),
            ("--init-path", "/bin/no-init"),
        ] {
            let options = match option {
                "--init-path" => vec!["-d", "--init", option, value],
                _ => vec!["-d", option, value],
            };
            let refused = manager.run(&options, "x", &["true"]).exits(125);
            let first = refused.stderr.lines().next().unwrap_or_default();
            assert!(first.contains(option) && first.contains(value), "{refused}");
        }
        manager
            .run(&["-d", "--init", "--pid", "host"], "x", &["true"])
            .exits(125);
        let refused = manager
            .run(&["-d", "--sysctl", "net.no.such=1"], "x", &["true"])
            .exits(125);
        assert!(refused.stderr.contains("net"), "{refused}");
        assert!(manager.json(&["ls"]).is_empty());
    });
}
