// SPDX-License-Identifier: Apache-2.0
//! The OCI runtime: which one, how it is called, and what happens when it fails (T10, T11, T20,
//! T9).

use harness::events::Kind;
use harness::runtime::Runtime;
use harness::stdio::Stdio;
use harness::{Bundle, Code, Shim, Status, Test, differs, peers, proc, refused, wait};
use protos::runc::Options;
use protos::task::CreateTaskRequest;
use protos::{Any, runtimeoptions};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// T10, 1.6: what `delete` will need is in the bundle: runtime and options.
#[test]
fn create_records_runtime_and_options_for_delete() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let (runtime, record) = Runtime::recording(test);
        let root = test.dir().join("runc-root").to_string_lossy().into_owned();
        let options = Options {
            root: root.clone(),
            ..runtime.options()
        };
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let request = bundle.create_with(&options);
        shim.create(request).await.unwrap();
        assert_eq!(
            fs::read_to_string(bundle.file("runtime")).unwrap(),
            options.binary_name
        );
        let text = fs::read_to_string(bundle.file("options.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            json,
            json!({ "binary_name": options.binary_name, "root": root })
        );
        for name in ["runtime", "options.json"] {
            let mode = fs::metadata(bundle.file(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o777;
            assert_eq!(mode, 0o600, "mode of {name}");
        }
        let lines = fs::read_to_string(record).unwrap();
        assert!(
            lines.starts_with(&format!("--root {root}/{} --log ", test.namespace())),
            "{lines}"
        );
    });
}

/// T9: how the runtime is called.
#[test]
fn runtime_is_called_as_go_runc_calls_it() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let (runtime, record) = Runtime::recording(test);
        let bundle = test.bundle("c").build();
        let shim = bundle.start().env("NOTIFY_SOCKET", "/x").shim().await;
        let options = Options {
            no_pivot_root: true,
            no_new_keyring: true,
            ..runtime.options()
        };
        let request = bundle.create_with(&options);
        shim.create(request).await.unwrap();
        shim.start("c", "").await.unwrap();
        shim.exec(bundle.exec("e", &["true"])).await.unwrap();
        shim.start("c", "e").await.unwrap();
        shim.wait("c", "e").await.unwrap();
        shim.pause("c").await.unwrap();
        shim.resume("c").await.unwrap();
        shim.update("c", r#"{"memory":{"limit":67108864}}"#)
            .await
            .unwrap();
        shim.kill("c", "", 15, true).await.unwrap();
        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        let path = bundle.path.display();
        let global = format!(
            "--root {} --log {path}/log.json --log-format json ",
            test.runc_root().display()
        );
        let lines = fs::read_to_string(record).unwrap();
        // An exec of ours logs by itself: execs start at once.
        let lines = lines.replace("/e.log.json ", "/log.json ");
        let calls: Vec<&str> = lines
            .lines()
            .map(|line| {
                line.strip_prefix(&global)
                    .unwrap_or_else(|| panic!("{line}"))
            })
            .collect();
        let exec = calls
            .iter()
            .find(|call| call.starts_with("exec "))
            .expect("exec");
        let spec = if differs("exec-spec") {
            format!("exec --process {}/run/runc-process", test.dir().display())
        } else {
            format!("exec --process {path}/e.process.json")
        };
        assert!(exec.starts_with(&spec), "{exec}");
        assert!(
            exec.ends_with(&format!(" --detach --pid-file {path}/e.pid c")),
            "{exec}"
        );
        let rest: Vec<&str> = calls.iter().filter(|call| *call != exec).copied().collect();
        let create = format!(
            "create --bundle {path} --pid-file {path}/init.pid --no-pivot --no-new-keyring c"
        );
        let expected = [
            create.as_str(),
            "start c",
            "pause c",
            "resume c",
            "update --resources=- c",
            "kill --all c 15",
            "kill c 9",
            "delete c",
        ];
        let sorted = |call: &str| {
            // A flag and its value may be two words or one.
            let mut words: Vec<String> = call.split([' ', '=']).map(str::to_owned).collect();
            words.sort();
            words
        };
        let words = |calls: &[&str]| calls.iter().map(|call| sorted(call)).collect::<Vec<_>>();
        assert_eq!(words(&rest), words(&expected), "{rest:#?}");
    });
}

/// T9: the runtime does not inherit NOTIFY_SOCKET: it would wait for systemd.
#[test]
fn runtime_does_not_see_notify_socket() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let seen = test.dir().join("seen");
        let body = format!(
            "echo \"${{NOTIFY_SOCKET-unset}}\" >>{}\nexec \"$RUNC\" \"$@\"",
            seen.display()
        );
        let runtime = Runtime::script(test, "environment", &body);
        let bundle = test.bundle("c").build();
        let shim = bundle.start().env("NOTIFY_SOCKET", "/x").shim().await;
        shim.create(runtime.create(&bundle)).await.unwrap();
        assert_eq!(fs::read_to_string(seen).unwrap(), "unset\n");
    });
}

/// What tunes the daemon's allocator is not the runtime's, also after an upgrade; what an operator
/// has set in containerd's environment is (B7).
#[test]
fn runtime_does_not_see_the_daemons_tunables() {
    if peers::is_go() {
        return;
    }
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let seen = test.dir().join("seen");
        let body = format!(
            "echo \"${{GLIBC_TUNABLES-unset}}\" >>{}\nexec \"$RUNC\" \"$@\"",
            seen.display()
        );
        let runtime = Runtime::script(test, "environment", &body);
        let bundle = test.bundle("c").build();
        let tuned = |shim: &Shim| {
            let env = proc::words(shim.pid(), "environ");
            env.iter()
                .any(|word| word.starts_with("GLIBC_TUNABLES=glibc.malloc.tcache_count=0"))
        };
        let start = bundle.start().without_env("GLIBC_TUNABLES");
        let shim = start.shim().await;
        assert!(tuned(&shim), "when it is started");
        shim.create(runtime.create(&bundle)).await.unwrap();
        wait::signal(shim.pid(), libc::SIGUSR2).unwrap();
        let upgraded = || match proc::words(shim.pid(), "cmdline").last() {
            Some(last) if last == "resume" => Ok(()),
            last => Err(format!("{last:?}")),
        };
        wait::until("an upgrade", upgraded).await;
        shim.start("c", "").await.unwrap();
        assert!(tuned(&shim), "after an upgrade");
        assert_eq!(fs::read_to_string(&seen).unwrap(), "unset\nunset\n");

        let other = test.bundle("d").build();
        let theirs = other
            .start()
            .env("GLIBC_TUNABLES", "glibc.malloc.perturb=0");
        let shim = theirs.shim().await;
        shim.create(runtime.create(&other)).await.unwrap();
        assert!(!tuned(&shim));
        let seen = fs::read_to_string(&seen).unwrap();
        assert_eq!(seen, "unset\nunset\nglibc.malloc.perturb=0\n");
    });
}

/// What is left of a Create that failed: nothing, and it may be repeated.
async fn undone(test: &Test, bundle: &Bundle, shim: &Shim) {
    assert_eq!(bundle.mounts(), [] as [String; 0], "mounts are undone");
    assert_eq!(refused(shim.state("c", "").await).code, Code::NotFound);
    assert_eq!(test.events().about("c"), []);
    shim.create(bundle.create())
        .await
        .expect("the same container, now rightly");
}

/// T11: a runtime that is not there.
#[test]
fn create_with_a_missing_runtime_tells_its_name() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let options = Options {
            binary_name: "no-runc".into(),
            ..Default::default()
        };
        let request = bundle.create_with(&options);
        let status = refused(shim.create(request).await);
        let text = format!(
            "OCI runtime create failed: unable to retrieve OCI runtime error (open \
             {}/log.json: no such file or directory): exec: \"no-runc\": executable file not found \
             in $PATH",
            bundle.path.display()
        );
        assert_eq!(
            (status.code, status.message.trim_end()),
            (Code::Unknown, text.as_str())
        );
        undone(test, &bundle, &shim).await;
    });
}

/// T11: a runtime that refuses: the last error of its log.
#[test]
fn create_that_the_runtime_refuses_tells_its_reason() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let runtime = Runtime::failing(test, "create", "no room at the inn");
        let request = runtime.create(&bundle);
        let status = refused(shim.create(request).await);
        let text = "OCI runtime create failed: no room at the inn";
        assert_eq!(
            (status.code, status.message.trim_end()),
            (Code::Unknown, text)
        );
        undone(test, &bundle, &shim).await;
    });
}

/// T11, U3: what fails after the runtime was done undoes the container, too.
#[test]
fn create_that_fails_late_leaves_no_container() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let nowhere = test.dir().join("no/such/fifo");
        let nowhere = nowhere.to_string_lossy();
        let request = bundle.create().stdio("", &nowhere, &nowhere);
        refused(shim.create(request).await);
        if differs("failed-create-container") {
            assert!(test.runc_root().join("c").exists());
            bundle.start().deleted().await;
            return;
        }
        assert!(!test.runc_root().join("c").exists());
        undone(test, &bundle, &shim).await;
    });
}

/// T10, B13: options of an unknown kind, or broken ones, are the caller's error.
#[test]
fn bad_options_are_refused() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let any = |type_url: &str, value: &[u8]| {
            Some(Any {
                type_url: type_url.to_owned(),
                value: value.to_vec(),
            })
        };
        let unknown = any("example.com/Unknown", b"");
        let request = CreateTaskRequest {
            options: unknown,
            ..bundle.create()
        };
        let status = refused(shim.create(request).await);
        let text = "type with url example.com/Unknown: not found";
        assert_eq!(status, Status::new(Code::Unknown, text));
        let broken = any("containerd.runc.v1.Options", &[0xff, 0xff]);
        refused(
            shim.create(CreateTaskRequest {
                options: broken,
                ..bundle.create()
            })
            .await,
        );
        undone(test, &bundle, &shim).await;
        let empty = test.bundle("empty").build();
        let request = CreateTaskRequest {
            options: Some(Any::default()),
            ..empty.create()
        };
        shim.create(request)
            .await
            .expect("T10: an empty Any is no options");
    });
}

/// B13: CRI's generic options, for runtimes whose name is not the official one.
#[test]
fn runtimeoptions_are_understood() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let (runtime, record) = Runtime::recording(test);
        let binary = runtime.options().binary_name;
        let options = runtimeoptions::Options {
            type_url: "containerd.runc.v1.Options".into(),
            config_path: String::new(),
            config_body: format!("BinaryName = \"{binary}\"\nNoPivotRoot = true\n").into_bytes(),
        };
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let options = Some(protos::any::pack(&options));
        let created = shim
            .create(CreateTaskRequest {
                options,
                ..bundle.create()
            })
            .await;
        if differs("runtimeoptions") {
            let text = "type with url runtimeoptions.v1.Options: not found";
            assert!(refused(created).message.contains(text));
            return;
        }
        created.unwrap();
        let lines = fs::read_to_string(record).unwrap();
        assert!(lines.contains(" --no-pivot"), "{lines}");
    });
}

/// T20: a Start that fails leaves a container that can be killed, and its exit is told.
#[test]
fn failed_start_keeps_the_container_tracked() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let runtime = Runtime::failing(test, "start", "the engine is cold");
        shim.create(runtime.create(&bundle)).await.unwrap();
        let status = refused(shim.start("c", "").await);
        let text = "OCI runtime start failed: the engine is cold";
        assert_eq!(
            (status.code, status.message.trim_end()),
            (Code::Unknown, text)
        );
        shim.kill("c", "", 9, false).await.unwrap();
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        let started = test.events().count(|e| matches!(e.kind, Kind::Start(_)));
        assert_eq!(started, 0);
        shim.delete("c", "").await.unwrap();
    });
}
