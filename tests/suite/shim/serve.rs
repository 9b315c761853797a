// SPDX-License-Identifier: Apache-2.0
//! The daemon at its socket: signals, foreign peers, broken and oversized requests, callers
//! that go away.

use harness::events::Event;
use harness::raw::Raw;
use harness::{proc, vm_differs, wait};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use protos::task::ConnectRequest;
use protos::{Message, service, topic};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const CONNECT: (&str, &str) = (service::TASK_V2, "Connect");

/// B50: what its containers orphan becomes the shim's.
#[test]
fn orphans_are_adopted() {
    harness::run_unless_vm_differs("one-process", async |test| {
        let script = "sleep 100000 & echo $! >/mnt/pid.new; mv /mnt/pid.new /mnt/pid; exit 5";
        let bundle = test
            .bundle("c")
            .share()
            .host_pid()
            .sh("read line </mnt/gate")
            .build();
        let gate = harness::stdio::Fifo::new(test.share().join("gate"));
        let (_hold, _) = gate.gate();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        shim.exec(bundle.exec_sh("e", script)).await.unwrap();
        shim.start("c", "e").await.unwrap();
        assert_eq!(test.events().exit("c", "e").await.exit_status, 5);
        let pid = fs::read_to_string(test.share().join("pid"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(proc::stat(pid).unwrap().ppid, shim.pid());
        wait::signal(pid, libc::SIGKILL).unwrap();
        wait::until("the orphan is reaped", || match proc::stat(pid) {
            None => Ok(()),
            Some(stat) => Err(format!("{stat:?}")),
        })
        .await;
    });
}

/// B50: these signals do not end a shim.
#[test]
fn sigusr1_and_sigpipe_are_survived() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().running().await;
        for signal in [libc::SIGUSR1, libc::SIGPIPE] {
            wait::signal(shim.pid(), signal).unwrap();
            shim.state("c", "").await.expect("an answer after a signal");
        }
    });
}

/// B51: on SIGTERM or SIGINT the shim goes, its socket too, and the container stays.
#[test]
fn termination_leaves_containers_running() {
    harness::run(async |test| {
        for (id, signal) in [("term", libc::SIGTERM), ("int", libc::SIGINT)] {
            let bundle = test.bundle(id).build();
            let shim = bundle.start().shim().await;
            let pid = shim.create(bundle.create()).await.unwrap().pid as i32;
            shim.start(id, "").await.unwrap();
            wait::signal(shim.pid(), signal).unwrap();
            wait::ended(shim.pid()).await;
            wait::soon("end of the connection", shim.client().closed()).await;
            assert!(!shim.socket().exists(), "{signal}: the socket is left");
            if !vm_differs("dies-with-shim") {
                assert!(
                    proc::alive(pid),
                    "{signal}: the container died with its shim"
                );
            }
            assert_eq!(bundle.start().deleted().await.pid, pid as u32);
            wait::ended(pid).await;
        }
    });
}

/// B56: without containers the same, of course.
#[test]
fn termination_of_an_idle_shim_removes_the_socket() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().start().shim().await;
        wait::signal(shim.pid(), libc::SIGTERM).unwrap();
        wait::ended(shim.pid()).await;
        assert!(!shim.socket().exists());
    });
}

/// B52: a daemon that cannot log does not serve.
#[test]
fn serving_without_the_log_fifo_exits_1() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        fs::remove_file(bundle.file("log")).unwrap();
        let socket = test.dir().join("served.sock");
        let args = [
            "-namespace",
            test.namespace(),
            "-id",
            "c",
            "-address",
            &test.grpc_address(),
            "-socket",
            &socket.to_string_lossy(),
        ];
        let args: Vec<String> = args.map(str::to_owned).into();
        let output = wait::output(bundle.start().command(&args), None).await;
        assert_eq!(output.code(), Some(1), "{output:?}");
        assert!(
            output.err().contains("log: no such file or directory"),
            "{}",
            output.err()
        );
    });
}

/// B3, B53: without an action it serves; `-socket` serves at a path instead of an inherited listener.
#[test]
fn socket_flag_serves_at_that_path() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let socket = test.dir().join("served.sock");
        let args = [
            "-namespace",
            test.namespace(),
            "-id",
            "c",
            "-address",
            &test.grpc_address(),
            "-socket",
            &socket.to_string_lossy(),
        ];
        let mut command = bundle.start().command(&args.map(str::to_owned));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        wait::exists(&socket).await;
        let mut raw = Raw::connect(&socket).await;
        raw.request(1, CONNECT, &ConnectRequest::default(), None)
            .await;
        let (_, answer) = raw.answer().await.expect("an answer");
        let answer = protos::task::ConnectResponse::decode(answer.unwrap().as_slice()).unwrap();
        assert_eq!(answer.shim_pid, child.id());
        let shutdown = (service::TASK_V2, "Shutdown");
        raw.request(3, shutdown, &protos::task::ShutdownRequest::default(), None)
            .await;
        wait::ended(child.id() as i32).await;
        assert!(child.wait().unwrap().success(), "B56: exit 0");
    });
}

/// B55: the namespace is the flag's, whatever a request says.
#[test]
fn namespace_of_the_flag_wins() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let metadata = [("containerd-namespace-ttrpc", "another")];
        let request = bundle.create().encode_to_vec();
        let call = shim
            .client()
            .call_raw(service::TASK_V2, "Create", request, &metadata, None);
        wait::soon("answer of Create", call).await.unwrap();
        if !vm_differs("guests-runtime") {
            assert!(test.runc_root().join("c").exists());
        }
        let created = |e: &Event| (e.topic == topic::TASK_CREATE).then(|| e.namespace.clone());
        let namespace = test.events().wait_for("TaskCreate", created).await;
        assert_eq!(namespace, test.namespace());
        shim.delete("c", "").await.unwrap();
    });
}

/// What a process of another user or group sees when it speaks to the shim: errno, or 0 for a
/// connection that is closed without an answer.
fn spoken_to_by(uid: u32, gid: u32, socket: &Path) -> i32 {
    let mut request = Vec::new();
    let envelope = protos::ttrpc::wire::Request {
        service: service::TASK_V2.to_owned(),
        method: "Connect".to_owned(),
        ..Default::default()
    }
    .encode_to_vec();
    request.extend_from_slice(&(envelope.len() as u32).to_be_bytes());
    request.extend_from_slice(&[0, 0, 0, 1, 1, 0]);
    request.extend_from_slice(&envelope);
    let socket = socket.to_owned();
    let mut command = Command::new("/bin/true");
    let speak = move || {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(wait::DEADLINE))?;
        // The shim may hang up before, or after, it was spoken to.
        let _ = stream.write_all(&request);
        match stream.read(&mut [0u8; 1]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EBADMSG)),
            Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => Ok(()),
            Err(e) => Err(e),
        }
    };
    // SAFETY: the closure makes system calls on memory that was allocated before the fork.
    unsafe { command.uid(uid).gid(gid).pre_exec(speak) };
    match command.status() {
        Ok(_) => 0,
        Err(e) => e.raw_os_error().unwrap_or(-1),
    }
}

/// B53: only its own user's and group's processes are served.
#[test]
fn peers_of_another_user_or_group_are_refused() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().running().await;
        // Past the permissions of the socket and of its directory.
        let open = test.share().join("socket");
        fs::write(&open, "").unwrap();
        fs::set_permissions(shim.socket(), fs::Permissions::from_mode(0o666)).unwrap();
        mount(
            Some(&shim.socket()),
            &open,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        assert_eq!(
            spoken_to_by(0, 0, &open),
            libc::EBADMSG,
            "our own user gets an answer"
        );
        for (uid, gid) in [(65534, 65534), (65534, 0), (0, 65534)] {
            assert_eq!(spoken_to_by(uid, gid, &open), 0, "uid {uid}, gid {gid}");
        }
        umount2(&open, MntFlags::empty()).unwrap();
        shim.state("c", "").await.expect("the shim lives on");
    });
}
