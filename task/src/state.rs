// SPDX-License-Identifier: Apache-2.0
//! Which request which state allows: pure decisions, with Go's words for each refusal (contract T7).

use crate::error::{Error, Result};
use protos::task_types::Status;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Created,
    /// Created from a checkpoint: nothing runs before Start restores it.
    Restorable,
    Running,
    Pausing,
    Paused,
    Stopped,
    /// Deleted while somebody still waited for it.
    Deleted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Start,
    Pause,
    Resume,
    Exec,
    Update,
    Checkpoint,
    Delete,
}

impl State {
    /// The state as the API reports it (T40).
    pub fn status(self) -> Status {
        match self {
            Self::Created | Self::Restorable => Status::Created,
            Self::Running => Status::Running,
            Self::Pausing => Status::Pausing,
            Self::Paused => Status::Paused,
            Self::Stopped | Self::Deleted => Status::Stopped,
        }
    }

    /// What it is called where people read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created | Self::Restorable => "created",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }

    /// May the init process take `request` now? (P/init_state.go, P/deleted_state.go)
    ///
    /// # Errors
    /// The refusal, code Unknown; a deleted init is NotFound for Delete.
    pub fn init_allows(self, request: Request) -> Result<()> {
        use Request::*;
        let refusal = match (self, request) {
            (Self::Created, Start | Exec | Update | Delete)
            | (Self::Restorable, Start | Update | Delete)
            | (Self::Running | Self::Pausing, Pause | Exec | Update | Checkpoint)
            | (Self::Paused, Resume | Update | Checkpoint)
            | (Self::Stopped, Delete) => return Ok(()),

            (Self::Deleted, Delete) => {
                return Err(Error::NotFound("cannot delete a deleted process".into()));
            }
            (Self::Created | Self::Restorable, Pause) => "cannot pause task in created state",
            (Self::Created | Self::Restorable, Resume) => "cannot resume task in created state",
            (Self::Created | Self::Restorable, Checkpoint) => {
                "cannot checkpoint a task in created state"
            }
            (Self::Restorable, Exec) => "cannot exec in a created state",

            (Self::Running | Self::Pausing, Start) => "cannot start a running process",
            (Self::Running | Self::Pausing, Resume) => "cannot resume a running process",
            (Self::Running | Self::Pausing, Delete) => "cannot delete a running process",

            (Self::Paused, Start) => "cannot start a paused process",
            (Self::Paused, Pause) => "cannot pause a paused container",
            (Self::Paused, Exec) => "cannot exec in a paused state",
            (Self::Paused, Delete) => "cannot delete a paused process",

            (Self::Stopped, Start) => "cannot start a stopped process",
            (Self::Stopped, Pause) => "cannot pause a stopped container",
            (Self::Stopped, Resume) => "cannot resume a stopped container",
            (Self::Stopped, Exec) => "cannot exec in a stopped state",
            (Self::Stopped, Update) => "cannot update a stopped container",
            (Self::Stopped, Checkpoint) => "cannot checkpoint a stopped container",

            (Self::Deleted, Start) => "cannot start a deleted process",
            (Self::Deleted, Pause) => "cannot pause a deleted process",
            (Self::Deleted, Resume) => "cannot resume a deleted process",
            (Self::Deleted, Exec) => "cannot exec in a deleted state",
            (Self::Deleted, Update) => "cannot update a deleted process",
            (Self::Deleted, Checkpoint) => "cannot checkpoint a deleted process",
        };
        Err(Error::Refused(refusal.into()))
    }

    /// May an exec process be started now? (P/exec_state.go)
    ///
    /// # Errors
    /// The refusal, code Unknown.
    pub fn exec_allows_start(self) -> Result<()> {
        Err(Error::Refused(match self {
            Self::Created => return Ok(()),
            Self::Restorable | Self::Running | Self::Pausing | Self::Paused => {
                "cannot start a running process".into()
            }
            Self::Stopped => "cannot start a stopped process".into(),
            Self::Deleted => "cannot start a deleted process".into(),
        }))
    }

    /// May an exec process be deleted now? (P/exec_state.go)
    ///
    /// # Errors
    /// The refusal, code Unknown; NotFound if it is gone already.
    pub fn exec_allows_delete(self) -> Result<()> {
        match self {
            Self::Created | Self::Stopped => Ok(()),
            Self::Deleted => Err(Error::NotFound("cannot delete a deleted process".into())),
            _ => Err(Error::Refused("cannot delete a running process".into())),
        }
    }

    /// May a signal be sent now? (T50)
    ///
    /// # Errors
    /// FailedPrecondition before the process runs (an exec, or an init not yet created),
    /// NotFound after it ended.
    pub fn allows_kill(self, pid: u32) -> Result<()> {
        match self {
            Self::Deleted => Err(Error::NotFound("cannot kill a deleted process".into())),
            Self::Stopped => Err(Error::NotFound("process already finished".into())),
            _ if pid == 0 => Err(Error::FailedPrecondition("process not created".into())),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Request::*;
    use super::State::*;
    use super::*;

    const STATES: [State; 7] = [
        Created, Restorable, Running, Pausing, Paused, Stopped, Deleted,
    ];
    const REQUESTS: [Request; 7] = [Start, Pause, Resume, Exec, Update, Checkpoint, Delete];

    #[test]
    fn init_takes_exactly_these_requests() {
        let allowed: &[(State, &[Request])] = &[
            (Created, &[Start, Exec, Update, Delete]),
            (Restorable, &[Start, Update, Delete]),
            (Running, &[Pause, Exec, Update, Checkpoint]),
            (Pausing, &[Pause, Exec, Update, Checkpoint]),
            (Paused, &[Resume, Update, Checkpoint]),
            (Stopped, &[Delete]),
            (Deleted, &[]),
        ];
        for state in STATES {
            let (_, allowed) = allowed.iter().find(|(s, _)| *s == state).unwrap();
            for request in REQUESTS {
                let ok = state.init_allows(request).is_ok();
                assert_eq!(ok, allowed.contains(&request), "{state:?} {request:?}");
            }
        }
    }

    /// T8: every refusal names the request and is one of Go's sentences.
    #[test]
    fn refusals_speak_as_the_golden_trace() {
        let words = |state: State, request| state.init_allows(request).unwrap_err().to_string();
        assert_eq!(words(Created, Pause), "cannot pause task in created state");
        assert_eq!(
            words(Created, Checkpoint),
            "cannot checkpoint a task in created state"
        );
        assert_eq!(words(Restorable, Exec), "cannot exec in a created state");
        assert_eq!(words(Running, Start), "cannot start a running process");
        assert_eq!(words(Running, Delete), "cannot delete a running process");
        assert_eq!(words(Paused, Exec), "cannot exec in a paused state");
        assert_eq!(words(Stopped, Update), "cannot update a stopped container");
        assert_eq!(
            words(Deleted, Delete),
            "cannot delete a deleted process: not found"
        );
    }

    #[test]
    fn execs_start_once_and_go_when_done() {
        for state in STATES {
            assert_eq!(
                state.exec_allows_start().is_ok(),
                state == Created,
                "{state:?}"
            );
            let deletable = matches!(state, Created | Stopped);
            assert_eq!(state.exec_allows_delete().is_ok(), deletable, "{state:?}");
        }
    }

    #[test]
    fn signals_reach_only_live_processes() {
        let text = |state: State, pid| state.allows_kill(pid).map_err(|e| e.to_string());
        assert_eq!(text(Running, 7), Ok(()));
        assert_eq!(text(Paused, 7), Ok(()));
        assert_eq!(text(Created, 7), Ok(()));
        assert_eq!(
            text(Created, 0),
            Err("process not created: failed precondition".into())
        );
        assert_eq!(
            text(Stopped, 7),
            Err("process already finished: not found".into())
        );
    }
}
