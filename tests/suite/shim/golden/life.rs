// SPDX-License-Identifier: Apache-2.0
//! The second half of the sequence: from the first exec to the last Delete.

use super::{Golden, NO_CONTAINER, NO_EXEC, files_of_a_task, status};
use harness::events::Kind;
use harness::raw::Raw;
use harness::{Code, Status, differs, refused, runtime_differs, vm_differs};
use protos::task::{StateResponse, WaitRequest};
use protos::task_types::Status as State;
use protos::{Any, events, runc, topic};
use std::time::Duration;

impl Golden<'_> {
    pub(super) async fn execs(&mut self) {
        let s = self.shim.clone();
        let e1 = self.started("e1", "exec sleep 100000").await;
        let e2 = self.started("e2", "exit 3").await;
        let at = self.exited("e2", e2, 3).await;
        let waited = s.wait("g1", "e2").await.unwrap();
        assert_eq!((waited.exit_status, waited.exited_at), (3, at));
        let stopped = self.exec_state("e2", e2, State::Stopped);
        let expected = StateResponse {
            exit_status: 3,
            exited_at: at,
            ..stopped
        };
        assert_eq!(s.state("g1", "e2").await.unwrap(), expected);
        let killed = s.kill("g1", "e2", 9, false).await;
        status(
            killed,
            Code::NotFound,
            "process already finished: not found",
        );
        let resized = s.resize("g1", "e2", 80, 24).await;
        status(resized, Code::Unknown, "cannot resize a stopped container");
        s.resize("g1", "", 80, 24)
            .await
            .expect("T77: no terminal, no objection");
        let deleted = s.delete("g1", "e2").await.unwrap();
        assert_eq!(
            (deleted.pid, deleted.exit_status, deleted.exited_at),
            (e2, 3, at)
        );
        status(
            s.delete("g1", "e1").await,
            Code::Unknown,
            "cannot delete a running process",
        );
        status(s.state("g1", "zz").await, Code::NotFound, NO_EXEC);
        status(s.start("g1", "zz").await, Code::NotFound, NO_EXEC);
        status(s.kill("g1", "zz", 9, false).await, Code::NotFound, NO_EXEC);
        status(s.close_io("g1", "zz").await, Code::Unknown, NO_EXEC);
        status(s.wait("g1", "zz").await, Code::NotFound, NO_EXEC);
        s.close_io("g1", "")
            .await
            .expect("T78: no stdin, no objection");
        let state = s.state("g1", "e1").await.unwrap();
        assert_eq!(state, self.exec_state("e1", e1, State::Running));
    }

    /// Pid and exec id of every process Pids tells.
    async fn pids(&self) -> Vec<(u32, Option<String>)> {
        let details = |any: Any| {
            assert_eq!(any.type_url, "containerd.runc.v1.ProcessDetails");
            protos::any::unpack::<runc::ProcessDetails>(&any)
                .unwrap()
                .unwrap()
                .exec_id
        };
        let processes = self.shim.pids("g1").await.unwrap().processes;
        let mut pids: Vec<_> = processes
            .into_iter()
            .map(|p| (p.pid, p.info.map(details)))
            .collect();
        pids.sort();
        pids
    }

    pub(super) async fn running(&mut self) {
        let e1 = self.shim.state("g1", "e1").await.unwrap().pid;
        let mut expected = vec![(self.pid, None), (e1, Some("e1".to_owned()))];
        expected.sort();
        assert_eq!(self.pids().await, expected);
        let stats = self.shim.stats("g1").await.unwrap().stats.expect("stats");
        let version = if vm_differs("guests-cgroups") { 2 } else { 1 };
        let metrics = format!("io.containerd.cgroups.v{version}.Metrics");
        assert_eq!(stats.type_url, metrics);
    }

    pub(super) async fn paused(&mut self) {
        let s = self.shim.clone();
        let e1 = s.state("g1", "e1").await.unwrap().pid;
        s.pause("g1").await.unwrap();
        let expected = events::TaskPaused {
            container_id: "g1".into(),
        };
        assert_eq!(self.event(topic::TASK_PAUSED).await, Kind::Paused(expected));
        assert_eq!(s.state("g1", "").await.unwrap(), self.state(State::Paused));
        let exec = s.state("g1", "e1").await.unwrap();
        assert_eq!(exec, self.exec_state("e1", e1, State::Paused));
        status(
            s.pause("g1").await,
            Code::Unknown,
            "cannot pause a paused container",
        );
        let exec = s.exec(self.bundle.exec("ep", &["true"])).await;
        status(exec, Code::Unknown, "cannot exec in a paused state");
        status(
            s.start("g1", "").await,
            Code::Unknown,
            "cannot start a paused process",
        );
        status(
            s.delete("g1", "").await,
            Code::Unknown,
            "cannot delete a paused process",
        );
        s.resume("g1").await.unwrap();
        let expected = events::TaskResumed {
            container_id: "g1".into(),
        };
        assert_eq!(
            self.event(topic::TASK_RESUMED).await,
            Kind::Resumed(expected)
        );
        status(
            s.resume("g1").await,
            Code::Unknown,
            "cannot resume a running process",
        );
    }

    pub(super) async fn updates_and_signals(&mut self) {
        let s = self.shim.clone();
        s.update("g1", r#"{"memory":{"limit":67108864}}"#)
            .await
            .unwrap();
        assert_eq!(s.figures("g1").await.memory_limit, 64 << 20);
        let junk = if differs("json-errors") {
            "invalid character 'j' looking for beginning of value"
        } else {
            "resources: 'j' at byte 0 is no JSON"
        };
        status(s.update("g1", "junk").await, Code::Unknown, junk);
        let reason = if runtime_differs("bad-signal") {
            "send signal to pidfd: Invalid argument"
        } else {
            "unable to signal init: invalid argument"
        };
        let text = "unknown error after kill: runc did not terminate successfully: exit status 1";
        let refusal = refused(s.kill("g1", "", 99, false).await);
        assert_eq!(refusal.code, Code::Unknown);
        assert_eq!(refusal.message, format!("{text}: {reason}\n"));
        s.kill("g1", "", 0, false).await.unwrap();
        s.shutdown("g1")
            .await
            .expect("T80: with a container, Shutdown does nothing");
        self.wait_with_deadline().await;
    }

    async fn wait_with_deadline(&self) {
        if differs("wait-deadline") {
            return;
        }
        let mut raw = Raw::to(&self.shim).await;
        let request = WaitRequest {
            id: "g1".into(),
            ..Default::default()
        };
        let wait = (self.shim.service(), "Wait");
        raw.request(1, wait, &request, Some(Duration::from_millis(100)))
            .await;
        let refusal = raw.refusal(1).await;
        assert_eq!(
            refusal,
            Status::new(Code::DeadlineExceeded, "context deadline exceeded")
        );
    }

    pub(super) async fn killed(&mut self) {
        let s = self.shim.clone();
        let e1 = s.state("g1", "e1").await.unwrap().pid;
        s.kill("g1", "", 9, false).await.unwrap();
        let exec_at = self.exited("e1", e1, 137).await;
        let at = self.exited("g1", self.pid, 137).await;
        let waited = s.wait("g1", "").await.unwrap();
        assert_eq!((waited.exit_status, waited.exited_at), (137, at));
        let stopped = StateResponse {
            exit_status: 137,
            exited_at: at,
            ..self.state(State::Stopped)
        };
        assert_eq!(s.state("g1", "").await.unwrap(), stopped);
        assert_eq!(s.wait("g1", "e1").await.unwrap().exited_at, exec_at);
    }

    pub(super) async fn stopped(&mut self) {
        let s = self.shim.clone();
        let killed = s.kill("g1", "", 9, false).await;
        status(
            killed,
            Code::NotFound,
            "process already finished: not found",
        );
        status(
            s.start("g1", "").await,
            Code::Unknown,
            "cannot start a stopped process",
        );
        let exec = s.exec(self.bundle.exec("es", &["true"])).await;
        status(exec, Code::Unknown, "cannot exec in a stopped state");
        let started = s.start("g1", "e1").await;
        if differs("exec-after-init") {
            status(started, Code::Unknown, "cannot start a stopped process");
        } else {
            let text = "container g1 init process is not running: failed precondition";
            status(started, Code::FailedPrecondition, text);
        }
        let pids = self.pids().await;
        if differs("pids-after-exit") {
            assert_eq!(pids, []);
        } else {
            assert_eq!(pids, [(self.pid, None)]);
        }
        s.stats("g1").await.expect("T79: stopped but not deleted");
        status(
            s.pause("g1").await,
            Code::Unknown,
            "cannot pause a stopped container",
        );
        let updated = s.update("g1", r#"{"memory":{"limit":67108864}}"#).await;
        status(updated, Code::Unknown, "cannot update a stopped container");
    }

    pub(super) async fn deleted(&mut self) {
        let s = self.shim.clone();
        let waited = s.wait("g1", "e1").await.unwrap();
        let deleted = s.delete("g1", "e1").await.unwrap();
        assert_eq!(
            (deleted.exit_status, deleted.exited_at),
            (137, waited.exited_at)
        );
        let at = s.wait("g1", "").await.unwrap().exited_at;
        let deleted = s.delete("g1", "").await.unwrap();
        assert_eq!(
            (deleted.pid, deleted.exit_status, deleted.exited_at),
            (self.pid, 137, at)
        );
        let expected = events::TaskDelete {
            container_id: "g1".into(),
            pid: self.pid,
            exit_status: 137,
            exited_at: at,
            ..Default::default()
        };
        assert_eq!(self.event(topic::TASK_DELETE).await, Kind::Delete(expected));
        status(s.delete("g1", "").await, Code::NotFound, NO_CONTAINER);
        assert!(self.bundle.mounts().is_empty());
        let mut files = self.bundle.files();
        if !differs("exit-record") {
            let exits = files.iter().position(|file| file == "exits");
            files.remove(exits.expect("the exit is on record"));
        }
        assert_eq!(files, files_of_a_task());
        let connected = s.connect_call("").await.unwrap();
        assert_eq!(
            (connected.shim_pid as i32, connected.task_pid),
            (s.pid(), 0)
        );
        assert_eq!(self.events.rest(), [], "nothing more was published");
        // The end of the test shuts it down, and looks for the process and the socket.
    }
}
