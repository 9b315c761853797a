// SPDX-License-Identifier: Apache-2.0
//! OCI runtimes that fail in ways of their own: the caller hears of it in time, a second try
//! works, and nothing stays behind (T11, T20, T23).

use harness::runtime::Runtime;
use harness::stdio::Fifo;
use harness::{Code, Shim, Status, Test, differs, proc, refused, wait};
use protos::task::{CreateTaskRequest, StartRequest};
use protos::ttrpc::CallError;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a caller gives a call that will not be answered by itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// A runtime that does `body` for its first `action`, and is the real one ever after.
fn once(test: &Test, name: &str, action: &str, body: &str) -> Runtime {
    let used = test.dir().join(format!("{name}-used"));
    let text = format!(
        "if [ \"$ACTION\" = {action} ] && mkdir {used} 2>/dev/null; then\n{body}\nfi\n\
         exec \"$RUNC\" \"$@\"",
        used = used.display()
    );
    Runtime::script(test, name, &text)
}

/// A Create that is given up after [`PATIENCE`], and answered then.
async fn impatient(shim: &Shim, request: &CreateTaskRequest) -> Status {
    let began = Instant::now();
    let answer = shim.call_for(request, PATIENCE).await;
    assert!(began.elapsed() < PATIENCE * 3, "{:?}", began.elapsed());
    refused(answer)
}

/// Until nothing of a container is known any more, a second Create is refused; then it works.
async fn created_again(shim: &Shim, request: &CreateTaskRequest) {
    let end = Instant::now() + wait::DEADLINE;
    let busy = loop {
        match shim.create(request.clone()).await {
            Ok(_) => break None,
            Err(e) if Instant::now() > end => break Some(e),
            Err(CallError::Status(_)) => {}
            Err(e) => break Some(e),
        }
    };
    assert!(busy.is_none(), "second Create: {busy:?}");
    shim.start(&request.id, "").await.unwrap();
}

/// The deadline's status; Go's shim 1.6 tells the end of the runtime it killed.
fn assert_given_up(status: &Status) {
    if !differs("create-deadline") {
        assert_eq!(status.code, Code::DeadlineExceeded, "{status}");
    }
}

/// A runtime that hangs before it does anything is killed at its caller's deadline.
#[test]
fn runtime_that_hangs_in_create_ends_with_the_deadline() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let gate = Fifo::new(test.dir().join("never"));
        let hang = format!(
            "echo $$ >{}/hung; read -r x <{}",
            test.dir().display(),
            gate.name()
        );
        let runtime = once(test, "hangs", "create", &hang);
        let shim = bundle.start().shim().await;
        let request = runtime.create(&bundle);
        assert_given_up(&impatient(&shim, &request).await);
        let pid = fs::read_to_string(test.dir().join("hung")).unwrap();
        wait::ended(pid.trim().parse().unwrap()).await;
        created_again(&shim, &request).await;
    });
}

/// The same after the real work was done: the container it made goes, too.
#[test]
fn runtime_that_hangs_after_create_leaves_no_container() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let gate = Fifo::new(test.dir().join("never"));
        let hang = format!("\"$RUNC\" \"$@\" || exit 1; read -r x <{}", gate.name());
        let runtime = once(test, "hangs", "create", &hang);
        let shim = bundle.start().shim().await;
        let request = runtime.create(&bundle);
        if harness::peers::is_go() {
            // U3: it leaves the container.
            return;
        }
        assert_given_up(&impatient(&shim, &request).await);
        created_again(&shim, &request).await;
    });
}

/// T11, U3: a runtime that dies once its work is done has failed; its container goes.
#[test]
fn runtime_that_dies_after_create_leaves_no_container() {
    if harness::peers::is_go() {
        return;
    }
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let body = "\"$RUNC\" \"$@\" || exit 1; kill -KILL $$";
        let runtime = once(test, "dies", "create", body);
        let shim = bundle.start().shim().await;
        let request = runtime.create(&bundle);
        let status = refused(shim.create(request.clone()).await);
        assert_eq!(status.code, Code::Unknown);
        assert!(
            status.message.starts_with("OCI runtime create failed: ")
                && status.message.contains("signal: killed"),
            "{status}"
        );
        assert!(!test.runc_root().join("c").exists());
        assert_eq!(bundle.mounts(), [] as [String; 0]);
        created_again(&shim, &request).await;
    });
}

/// Issue 4434 of containerd: more than a pipe holds on stderr, then a failure: it is told, and
/// not at length.
#[test]
fn runtime_that_fails_at_great_length_is_heard() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let body = "head -c 1048576 /dev/zero | tr '\\0' x >&2; exit 1";
        let create = once(test, "shouts", "create", body);
        let shim = bundle.start().shim().await;
        let first = create.create(&bundle);
        let status = refused(shim.create(first.clone()).await);
        assert!(
            status.message.starts_with("OCI runtime create failed: "),
            "{status}"
        );
        let start = once(test, "shouts-later", "start", body);
        let request = start.create(&bundle);
        shim.create(request).await.unwrap();
        let status = refused(shim.start("c", "").await);
        assert!(status.message.starts_with("OCI runtime start failed: "));
        if !harness::peers::is_go() {
            assert!(status.message.len() <= 65 << 10, "{}", status.message.len());
        }
        shim.start("c", "").await.unwrap();
    });
}

/// T11: success without a pid file, or with a senseless one, is a failure; the container goes.
#[test]
fn runtime_that_forgets_the_pid_file_is_not_believed() {
    if harness::peers::is_go() {
        return;
    }
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        for (name, lie) in [
            ("forgets", "rm -f init.pid"),
            ("raves", "echo gibberish >init.pid"),
            ("denies", "echo 0 >init.pid"),
            ("negates", "echo -1 >init.pid"),
            ("exaggerates", "echo 99999999999 >init.pid"),
            ("empties", ": >init.pid"),
        ] {
            let body = format!("\"$RUNC\" \"$@\" || exit 1; {lie}; exit 0");
            let runtime = once(test, name, "create", &body);
            let request = runtime.create(&bundle);
            let status = refused(shim.create(request.clone()).await);
            assert_eq!(status.code, Code::Unknown);
            assert!(status.message.contains("init.pid"), "{name}: {status}");
            assert!(!test.runc_root().join("c").exists(), "{name}");
            created_again(&shim, &request).await;
            shim.kill("c", "", libc::SIGKILL, false).await.unwrap();
            shim.wait("c", "").await.unwrap();
            shim.delete("c", "").await.unwrap();
        }
    });
}

/// A success that did nothing at all.
#[test]
fn runtime_that_only_says_it_succeeded_is_not_believed() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let runtime = once(test, "idles", "create", "exit 0");
        let request = runtime.create(&bundle);
        refused(shim.create(request.clone()).await);
        created_again(&shim, &request).await;
    });
}

/// A runtime whose child holds its pipes open does not hold up its caller, neither when it
/// succeeds nor when it fails.
#[test]
fn runtime_that_leaves_a_child_holding_its_pipes_is_not_waited_for() {
    if differs("held-pipes") {
        return;
    }
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let gate = Fifo::new(test.dir().join("never"));
        let (hold, _) = gate.gate();
        let child = format!("(read -r x <{}) &", gate.name());
        let runtime = once(
            test,
            "forks",
            "start",
            &format!("{child}\necho no >&2; exit 3"),
        );
        shim.create(runtime.create(&bundle)).await.unwrap();
        let began = Instant::now();
        let status = refused(shim.start("c", "").await);
        assert!(status.message.contains("exit status 3"), "{status}");
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        shim.start("c", "").await.unwrap();
        drop(hold);
    });
}

/// A runtime that SIGKILL does not end, because its cgroup is frozen: the caller has its answer in
/// time, other containers are served, and once it is thawed the next try works.
#[test]
fn runtime_that_outlives_sigkill_holds_up_nobody_else() {
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    if harness::peers::is_go() || !freezer.exists() {
        return;
    }
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let dir = freezer.join(format!("{}-frozen", test.namespace()));
        fs::create_dir(&dir).unwrap();
        let state = dir.join("freezer.state");
        let gate = Fifo::new(test.dir().join("never"));
        let body = format!(
            "echo $$ >{dir}/cgroup.procs; echo $$ >{hung}; echo FROZEN >{state}; read -r x <{never}",
            dir = dir.display(),
            state = state.display(),
            hung = test.dir().join("hung").display(),
            never = gate.name(),
        );
        let runtime = once(test, "freezes", "create", &body);
        let bundle = test
            .bundle("c")
            .annotation("io.containerd.runc.v2.group", "g")
            .build();
        let other = test
            .bundle("other")
            .annotation("io.containerd.runc.v2.group", "g")
            .build();
        let shim = bundle.start().shim().await;
        let request = runtime.create(&bundle);
        let given_up = impatient(&shim, &request).await;
        assert_eq!(given_up.code, Code::DeadlineExceeded);
        let pid: i32 = fs::read_to_string(test.dir().join("hung"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert!(proc::alive(pid), "a frozen process ignores SIGKILL");
        shim.create(other.create()).await.unwrap();
        shim.start("other", "").await.unwrap();
        // It is still at work, so a second Create has to wait, or is refused.
        impatient(&shim, &request).await;
        fs::write(&state, "THAWED").unwrap();
        wait::ended(pid).await;
        created_again(&shim, &request).await;
        wait::until("the cgroup is empty", || {
            fs::remove_dir(&dir).map_err(|e| e.to_string())
        })
        .await;
    });
}

/// T11, U3: what undoes a failed Create hangs, too: the caller, who has set no deadline, has the
/// answer all the same.
#[test]
fn create_fails_in_time_although_its_undoing_hangs() {
    if harness::peers::is_go() {
        return;
    }
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let gate = Fifo::new(test.dir().join("never"));
        let body = format!(
            "case $ACTION in create) exit 3;; delete) read -r x <{};; esac\nexec \"$RUNC\" \"$@\"",
            gate.name()
        );
        let runtime = Runtime::script(test, "never-undoes", &body);
        let shim = bundle.start().shim().await;
        let status = refused(shim.create(runtime.create(&bundle)).await);
        assert!(status.message.contains("exit status 3"), "{status}");
        shim.create(bundle.create())
            .await
            .expect("the real runtime");
    });
}

/// The real runtime; but once it has made the exec of a case's name, it does what the case says.
/// The exec's pid is in the file of that name.
fn failing_after_exec(test: &Test, cases: &[(&str, &str)]) -> Runtime {
    let case = |(name, end): &(&str, &str)| {
        format!(
            "case \"$*\" in *{name}.pid*) \"$RUNC\" \"$@\" || exit 1; cp {name}.pid {}; {end};; esac\n",
            test.dir().join(name).display()
        )
    };
    let cases: String = cases.iter().map(case).collect();
    let body = format!("[ \"$ACTION\" = exec ] && {{ {cases} }}\nexec \"$RUNC\" \"$@\"");
    Runtime::script(test, "fails-after-exec", &body)
}

/// The exec of [`failing_after_exec`] has ended, and nobody is told of an exit.
async fn assert_undone(test: &Test, shim: &Shim, name: &str) {
    let pid = fs::read_to_string(test.dir().join(name)).unwrap();
    wait::ended(pid.trim().parse().unwrap()).await;
    shim.delete("c", name).await.unwrap();
    let exits = test.events().count(|e| e.exit_of("c", name).is_some());
    assert_eq!(exits, 0, "{name}: no exit of what never started");
}

/// T23: an exec whose runtime made it and then failed, in whatever way: nothing of it runs on.
#[test]
fn runtime_that_fails_after_exec_leaves_no_process() {
    if harness::peers::is_go() {
        return;
    }
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let gate = Fifo::new(test.dir().join("never"));
        let cases = [
            ("dies", "kill -KILL $$"),
            ("fails", "exit 5"),
            ("hangs", &format!("read -r x <{}", gate.name())),
        ];
        let runtime = failing_after_exec(test, &cases);
        let shim = bundle.start().shim().await;
        shim.create(runtime.create(&bundle)).await.unwrap();
        shim.start("c", "").await.unwrap();
        for (name, _) in cases {
            let exec = bundle.exec(name, &["sleep", "100000"]);
            shim.exec(exec).await.unwrap();
            let start = StartRequest {
                id: "c".into(),
                exec_id: name.to_owned(),
            };
            let started = shim.call_for(&start, PATIENCE * 2).await;
            refused(started);
            assert_undone(test, &shim, name).await;
        }
        let exec = bundle.exec_sh("good", "exit 4");
        shim.exec(exec).await.unwrap();
        shim.start("c", "good").await.unwrap();
        assert_eq!(shim.wait("c", "good").await.unwrap().exit_status, 4);
    });
}

/// T23: an exec whose runtime made it and told nobody its pid: it is found, and ends; what runs
/// beside it goes on.
#[test]
fn exec_without_a_pid_file_leaves_no_process() {
    if harness::peers::is_go() {
        return;
    }
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let cases = [
            ("forgets", "rm -f forgets.pid; exit 0"),
            ("raves", "echo gibberish >raves.pid; exit 0"),
            ("fails", "rm -f fails.pid; exit 5"),
        ];
        let runtime = failing_after_exec(test, &cases);
        let shim = bundle.start().shim().await;
        shim.create(runtime.create(&bundle)).await.unwrap();
        let init = shim.start("c", "").await.unwrap().pid as i32;
        let beside = shim.run(bundle.exec("beside", &["sleep", "100000"])).await as i32;
        for (name, _) in cases {
            // Its own orphans are the container's, not ours.
            shim.exec(bundle.exec_sh(name, "sleep 100000 & exec sleep 100000"))
                .await
                .unwrap();
            refused(shim.start("c", name).await);
            assert_undone(test, &shim, name).await;
        }
        assert!(proc::alive(init) && proc::alive(beside));
    });
}

/// D1: `delete` ends within its caller's five seconds, whatever the runtime does.
#[test]
fn delete_ends_in_time_although_the_runtime_hangs() {
    if harness::peers::is_go() {
        return;
    }
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let gate = Fifo::new(test.dir().join("never"));
        let hang = format!(
            "[ \"$ACTION\" = delete ] && read -r x <{}\nexec \"$RUNC\" \"$@\"",
            gate.name()
        );
        let runtime = Runtime::script(test, "never-deletes", &hang);
        let shim = bundle.start().shim().await;
        let pid = shim.create(runtime.create(&bundle)).await.unwrap().pid;
        shim.start("c", "").await.unwrap();
        shim.kill_process().await;
        let began = Instant::now();
        assert_eq!(bundle.start().deleted().await.pid, pid);
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        wait::ended(pid as i32).await;
        assert_eq!(bundle.mounts(), [] as [String; 0]);
        // The runtime's own records are the runtime's to remove, once it is itself again.
        fs::remove_file(bundle.file("runtime")).unwrap();
        fs::remove_file(bundle.file("options.json")).unwrap();
        bundle.start().deleted().await;
    });
}
