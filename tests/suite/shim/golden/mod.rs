// SPDX-License-Identifier: Apache-2.0
//! T8: the words of Go's shim, step by step: codes, texts, fields, events and files (B80; also T1 to T3, T7
//! and T71).

use harness::events::{Event, Kind};
use harness::{Bundle, Code, Shim, Status, Test, differs, refused, runtime_differs, vm_differs};
use protos::task::{CheckpointTaskRequest, ExecProcessRequest, StateResponse};
use protos::task_types::Status as State;
use protos::{Any, Timestamp, events, service, topic};
use std::fs;

mod life;

/// `exited_at` of what has not exited (T6): the year 1.
const NEVER: Timestamp = Timestamp {
    seconds: -62_135_596_800,
    nanos: 0,
};
const NO_CONTAINER: &str = "container not created: not found";
const NO_EXEC: &str = "process does not exist zz: not found";

#[test]
fn golden_sequence_under_task_v2() {
    harness::run(async |test| Golden::new(test, service::TASK_V2).await.run().await);
}

#[test]
fn golden_sequence_under_task_v3() {
    harness::run(async |test| Golden::new(test, service::TASK_V3).await.run().await);
}

/// The sequence's container, and where it is in the sequence.
struct Golden<'a> {
    test: &'a Test,
    bundle: Bundle,
    shim: Shim,
    events: harness::events::Follower,
    pid: u32,
}

#[track_caller]
fn status(result: Result<impl std::fmt::Debug, protos::ttrpc::CallError>, code: Code, text: &str) {
    assert_eq!(refused(result), Status::new(code, text));
}

impl<'a> Golden<'a> {
    async fn new(test: &'a Test, service: &'static str) -> Self {
        let bundle = test.bundle("g1").build();
        let shim = bundle.start().shim().await.named(service);
        Self {
            test,
            bundle,
            shim,
            events: test.events().follow(),
            pid: 0,
        }
    }

    async fn run(&mut self) {
        // v3 is spoken by callers of containerd 2.x; Debian's 1.6 does not have it.
        if self.shim.service() == service::TASK_V3 && differs("task-v3") {
            let answer = self.shim.connect_call("g1").await;
            status(
                answer,
                Code::Unimplemented,
                "service containerd.task.v3.Task",
            );
            return;
        }
        self.before_create().await;
        self.create().await;
        self.created().await;
        self.start().await;
        self.failed_exec().await;
        self.execs().await;
        self.running().await;
        self.paused().await;
        self.updates_and_signals().await;
        self.killed().await;
        self.stopped().await;
        self.deleted().await;
    }

    /// The next event, of this container's namespace and in the right envelope.
    async fn event(&mut self, topic: &str) -> Kind {
        let Event {
            namespace,
            topic: got,
            timestamp,
            kind,
            metadata,
        } = self.events.next().await;
        let header = (
            "containerd-namespace-ttrpc".to_owned(),
            self.test.namespace().to_owned(),
        );
        assert_eq!(metadata, [header], "B70");
        assert_eq!(
            (namespace.as_str(), got.as_str()),
            (self.test.namespace(), topic)
        );
        assert!(
            timestamp.is_some_and(|t| t.seconds > 1_700_000_000),
            "{timestamp:?}"
        );
        kind
    }

    async fn before_create(&mut self) {
        let s = &self.shim;
        let files = self.bundle.files();
        let expected: &[&str] = &["address", "config.json", "log", "rootfs", "work"];
        assert_eq!(
            files, expected,
            "B35: a legacy caller gets the address file"
        );
        let connected = s.connect_call("").await.unwrap();
        assert_eq!(
            (connected.shim_pid as i32, connected.task_pid),
            (s.pid(), 0)
        );
        assert_eq!(connected.version, "");
        status(s.state("g1", "").await, Code::NotFound, NO_CONTAINER);
        status(s.pids("g1").await, Code::NotFound, NO_CONTAINER);
        let bad = s.call_named("Shutdown2").await;
        status(bad, Code::Unimplemented, "method Shutdown2");
        status(s.start("g1", "").await, Code::NotFound, NO_CONTAINER);
    }

    async fn create(&mut self) {
        let request = self.bundle.create();
        self.pid = self.shim.create(request.clone()).await.unwrap().pid;
        assert!(self.pid > 0);
        let expected = events::TaskCreate {
            container_id: "g1".into(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(events::TaskIo::default()),
            pid: self.pid,
            ..Default::default()
        };
        assert_eq!(self.event(topic::TASK_CREATE).await, Kind::Create(expected));
        assert_eq!(self.bundle.files(), files_of_a_task());
        let file = |name: &str| fs::read_to_string(self.bundle.file(name)).unwrap();
        assert_eq!(file("init.pid"), self.pid.to_string());
        if !vm_differs("guests-bundle") {
            assert_eq!(file("runtime"), "");
            assert_eq!(file("options.json"), "{}");
            assert_eq!(file("log.json"), "");
        }
        let mounts = self.bundle.mounts();
        let again = refused(self.shim.create(request).await);
        if differs("create-twice") {
            // It also loses the rootfs of the first one (U4); given back for what follows.
            let text = "OCI runtime create failed: container with given ID already exists";
            let newer = "OCI runtime create failed: runc create failed: container with given ID already exists";
            assert!([text, newer].contains(&again.message.as_str()), "{again}");
            assert_eq!(again.code, Code::Unknown);
            assert!(self.bundle.mounts().len() < mounts.len());
        } else {
            assert!(again.message.contains("already exists"), "{again}");
            assert_eq!(
                self.bundle.mounts(),
                mounts,
                "T12: the first one's rootfs stays"
            );
        }
        assert_eq!(self.bundle.files(), files_of_a_task());
    }

    fn state(&self, status: State) -> StateResponse {
        StateResponse {
            id: "g1".into(),
            bundle: self.bundle.create().bundle,
            pid: self.pid,
            status: status.into(),
            exited_at: Some(NEVER),
            ..Default::default()
        }
    }

    fn exec_state(&self, exec: &str, pid: u32, status: State) -> StateResponse {
        StateResponse {
            id: exec.into(),
            pid,
            ..self.state(status)
        }
    }

    async fn added(&mut self, exec: &str) {
        let expected = events::TaskExecAdded {
            container_id: "g1".into(),
            exec_id: exec.into(),
        };
        assert_eq!(
            self.event(topic::TASK_EXEC_ADDED).await,
            Kind::ExecAdded(expected)
        );
    }

    async fn created(&mut self) {
        let s = self.shim.clone();
        assert_eq!(s.state("g1", "").await.unwrap(), self.state(State::Created));
        status(
            s.pause("g1").await,
            Code::Unknown,
            "cannot pause task in created state",
        );
        status(
            s.resume("g1").await,
            Code::Unknown,
            "cannot resume task in created state",
        );
        let request = CheckpointTaskRequest {
            id: "g1".into(),
            ..Default::default()
        };
        let text = "cannot checkpoint a task in created state";
        status(s.checkpoint(request).await, Code::Unknown, text);
        let pids = s.pids("g1").await.unwrap().processes;
        assert_eq!(pids.iter().map(|p| p.pid).collect::<Vec<_>>(), [self.pid]);
        assert_eq!(pids[0].info, None);
        s.exec(self.bundle.exec("e0", &["true"])).await.unwrap();
        self.added("e0").await;
        let unstarted = s.state("g1", "e0").await.unwrap();
        assert_eq!(unstarted, self.exec_state("e0", 0, State::Created));
        let dup = s.exec(self.bundle.exec("e0", &["true"])).await;
        status(dup, Code::AlreadyExists, "id e0: already exists");
        let killed = s.kill("g1", "e0", 9, false).await;
        status(
            killed,
            Code::FailedPrecondition,
            "process not created: failed precondition",
        );
        let deleted = s.delete("g1", "e0").await.unwrap();
        assert_eq!(
            (deleted.pid, deleted.exit_status, deleted.exited_at),
            (0, 0, Some(NEVER))
        );
        let again = s.delete("g1", "e0").await;
        status(
            again,
            Code::NotFound,
            "process does not exist e0: not found",
        );
    }

    async fn start(&mut self) {
        let s = self.shim.clone();
        assert_eq!(s.start("g1", "").await.unwrap().pid, self.pid);
        let started = events::TaskStart {
            container_id: "g1".into(),
            pid: self.pid,
        };
        assert_eq!(self.event(topic::TASK_START).await, Kind::Start(started));
        status(
            s.start("g1", "").await,
            Code::Unknown,
            "cannot start a running process",
        );
        assert_eq!(s.state("g1", "").await.unwrap(), self.state(State::Running));
        status(
            s.delete("g1", "").await,
            Code::Unknown,
            "cannot delete a running process",
        );
    }

    async fn failed_exec(&mut self) {
        let s = self.shim.clone();
        let spec = Some(Any {
            type_url: String::new(),
            value: b"not json".to_vec(),
        });
        let bad = ExecProcessRequest {
            spec,
            ..self.bundle.exec("bad", &[])
        };
        let text = if differs("json-errors") {
            "invalid character 'o' in literal null (expecting 'u')"
        } else {
            "spec of exec bad: 'n' at byte 0 is no JSON"
        };
        status(s.exec(bad).await, Code::Unknown, text);
        s.exec(self.bundle.exec("nx", &["/nonexistent"]))
            .await
            .unwrap();
        self.added("nx").await;
        // What follows depends on crun's release.
        let text = if runtime_differs("exec-not-found") {
            "OCI runtime exec failed: executable file `/nonexistent` not found"
        } else {
            "OCI runtime exec failed: exec failed: unable to start container process: \
             exec: \"/nonexistent\": stat /nonexistent: no such file or directory"
        };
        let refusal = refused(s.start("g1", "nx").await);
        assert_eq!(refusal.code, Code::Unknown);
        assert!(refusal.message.starts_with(text), "{refusal}");
        let state = s.state("g1", "nx").await.unwrap();
        assert_eq!(
            state,
            self.exec_state("nx", 0, State::Created),
            "T23: it stays created"
        );
        let waited = s.wait("g1", "nx").await.unwrap();
        assert_eq!((waited.exit_status, waited.exited_at), (0, Some(NEVER)));
        let deleted = s.delete("g1", "nx").await.unwrap();
        assert_eq!(
            (deleted.pid, deleted.exit_status, deleted.exited_at),
            (0, 0, Some(NEVER))
        );
    }

    async fn started(&mut self, exec: &str, script: &str) -> u32 {
        self.shim
            .exec(self.bundle.exec_sh(exec, script))
            .await
            .unwrap();
        self.added(exec).await;
        let pid = self.shim.start("g1", exec).await.unwrap().pid;
        let (container_id, exec_id) = ("g1".into(), exec.into());
        let expected = events::TaskExecStarted {
            container_id,
            exec_id,
            pid,
        };
        assert_eq!(
            self.event(topic::TASK_EXEC_STARTED).await,
            Kind::ExecStarted(expected)
        );
        pid
    }

    async fn exited(&mut self, id: &str, pid: u32, exit_status: u32) -> Option<Timestamp> {
        let Kind::Exit(exit) = self.event(topic::TASK_EXIT).await else {
            panic!("not a TaskExit")
        };
        let exited_at = exit.exited_at;
        let (container_id, id) = ("g1".into(), id.into());
        assert_eq!(
            exit,
            events::TaskExit {
                container_id,
                id,
                pid,
                exit_status,
                exited_at
            }
        );
        assert!(
            exited_at.is_some_and(|t| t.seconds > 1_700_000_000),
            "{exited_at:?}"
        );
        exited_at
    }
}

/// Of a legacy caller's bundle, once its task was created.
fn files_of_a_task() -> Vec<&'static str> {
    let mut files = vec![
        "address",
        "config.json",
        "init.pid",
        "log",
        "rootfs",
        "work",
    ];
    if !vm_differs("guests-bundle") {
        files.extend(["log.json", "options.json", "runtime"]);
        files.sort_unstable();
    }
    files
}
