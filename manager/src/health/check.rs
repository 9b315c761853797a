// SPDX-License-Identifier: Apache-2.0
//! What a check is, and what follows from how it ended: no effects.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;

/// What is not said is as docker has it.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES: u32 = 3;
/// No check is made more often.
const SHORTEST: Duration = Duration::from_millis(10);
/// How many checks are remembered, and how much of what each said.
const REMEMBERED: usize = 5;
pub const OUTPUT: usize = 1024;

/// As Docker's images have it: times in nanoseconds, and 0 for what is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Shape {
    pub test: Vec<String>,
    pub interval: u64,
    pub timeout: u64,
    pub start_period: u64,
    pub retries: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    pub command: Vec<String>,
    shape: Shape,
}

impl Check {
    /// Reads a label; none if it says that there is to be no check.
    ///
    /// # Errors
    /// A text, if it is none.
    pub fn read(label: &str) -> Result<Option<Self>, String> {
        let shape: Shape = serde_json::from_str(label).map_err(|e| e.to_string())?;
        let words = shape.test.iter().map(String::as_str).collect::<Vec<_>>();
        let command = match words[..] {
            [] | ["NONE"] => return Ok(None),
            ["CMD-SHELL", line] => vec!["/bin/sh".into(), "-c".into(), line.into()],
            ["CMD", _, ..] => shape.test[1..].to_vec(),
            _ => return Err(format!("{:?} is no check", shape.test)),
        };
        Ok(Some(Self { command, shape }))
    }

    pub fn interval(&self) -> Duration {
        or(self.shape.interval, INTERVAL)
    }

    pub fn timeout(&self) -> Duration {
        or(self.shape.timeout, TIMEOUT)
    }

    pub fn start_period(&self) -> Duration {
        Duration::from_nanos(self.shape.start_period)
    }

    pub fn retries(&self) -> u32 {
        match self.shape.retries {
            0 => RETRIES,
            retries => retries,
        }
    }
}

fn or(nanos: u64, usual: Duration) -> Duration {
    match nanos {
        0 => usual,
        nanos => Duration::from_nanos(nanos).max(SHORTEST),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Starting,
    Healthy,
    Unhealthy,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// A check that was made.
#[derive(Clone, Debug)]
pub struct Ran {
    pub at: Option<protos::Timestamp>,
    /// `None` if it did not run, or not to its end.
    pub exit: Option<u32>,
    pub output: String,
}

/// How a container is.
#[derive(Debug)]
pub struct State {
    pub status: Status,
    /// How many checks have failed one after the other.
    streak: u32,
    latest: VecDeque<Ran>,
}

impl State {
    /// As a daemon before us has left it; of what was just started nothing is known.
    pub fn known(status: &str) -> Self {
        let all = [Status::Healthy, Status::Unhealthy];
        let found = all.into_iter().find(|it| it.name() == status);
        Self {
            status: found.unwrap_or(Status::Starting),
            streak: 0,
            latest: VecDeque::new(),
        }
    }

    pub fn is_unhealthy(&self) -> bool {
        self.status == Status::Unhealthy
    }

    /// Takes what a check has shown. True if the status is another now.
    pub fn judge(&mut self, ran: Ran, is_early: bool, retries: u32) -> bool {
        let before = self.status;
        if ran.exit == Some(0) {
            (self.status, self.streak) = (Status::Healthy, 0);
        } else if !(is_early && before == Status::Starting) {
            self.streak = self.streak.saturating_add(1);
            if self.streak >= retries {
                self.status = Status::Unhealthy;
            }
        }
        self.latest.push_back(ran);
        if self.latest.len() > REMEMBERED {
            self.latest.pop_front();
        }
        self.status != before
    }

    /// For those who inspect it.
    pub fn to_json(&self) -> Value {
        let log = self.latest.iter().map(|ran| {
            let at = ran.at.unwrap_or_default();
            json!({"at": [at.seconds, at.nanos], "exit_status": ran.exit, "output": ran.output})
        });
        json!({
            "status": self.status.name(),
            "failing_streak": self.streak,
            "log": log.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(exit: Option<u32>) -> Ran {
        Ran {
            at: None,
            exit,
            output: String::new(),
        }
    }

    #[test]
    fn a_check_is_read_as_docker_writes_it() {
        let check = Check::read(r#"{"Test":["CMD-SHELL","a b"],"Interval":2000000000}"#);
        let check = check.unwrap().unwrap();
        assert_eq!(check.command, ["/bin/sh", "-c", "a b"]);
        assert_eq!(check.interval(), Duration::from_secs(2));
        assert_eq!((check.timeout(), check.retries()), (TIMEOUT, 3));
        let check = Check::read(r#"{"Test":["CMD","a","b"],"Interval":1,"Retries":1}"#);
        let check = check.unwrap().unwrap();
        assert_eq!((check.command.len(), check.interval()), (2, SHORTEST));
        assert_eq!(Check::read(r#"{"Test":["NONE"]}"#), Ok(None));
        assert_eq!(Check::read("{}"), Ok(None));
        for text in ["", "{", r#"{"Test":["CMD"]}"#, r#"{"Test":["a"]}"#] {
            assert!(Check::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn how_often_it_has_failed_decides() {
        let mut state = State::known("");
        // While it starts, what fails does not count.
        assert!(!state.judge(ran(Some(1)), true, 2));
        assert!(!state.judge(ran(None), false, 2));
        assert_eq!(state.status, Status::Starting);
        assert!(state.judge(ran(Some(1)), false, 2));
        assert_eq!(state.status, Status::Unhealthy);
        assert!(!state.judge(ran(Some(1)), false, 2));
        assert!(state.judge(ran(Some(0)), false, 2));
        assert_eq!(state.status, Status::Healthy);
        // It has started: so now it does.
        assert!(!state.judge(ran(Some(1)), true, 2));
        assert!(state.judge(ran(Some(1)), true, 2));
        assert_eq!(state.to_json()["log"].as_array().unwrap().len(), REMEMBERED);
        assert_eq!(State::known("unhealthy").status, Status::Unhealthy);
    }
}
