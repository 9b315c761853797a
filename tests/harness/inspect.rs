// SPDX-License-Identifier: Apache-2.0
//! Asking shims what they do, and having something hang.

use crate::{Test, peers, wait};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

/// `containerd-shim-... -namespace NS inspect ARGS`.
pub async fn asked(test: &Test, args: &[&str]) -> wait::Output {
    let mut command = Command::new(peers::shim());
    command.args(["-namespace", test.namespace(), "inspect"]);
    command.args(args);
    wait::output(command, None).await
}

/// What it says of the test's only shim.
pub async fn inspected(test: &Test) -> Value {
    let output = asked(test, &["-json"]).await;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Looks until a cause is told; that, and all else.
pub async fn cause(test: &Test) -> (String, Value) {
    let look = async {
        loop {
            let told = inspected(test).await;
            if let Some(cause) = told["causes"][0].as_str() {
                return (cause.to_owned(), told);
            }
        }
    };
    wait::within(Duration::from_secs(60), "a cause", look).await
}

/// A process that is stopped as long as this lives.
pub struct Stopped(i32);

impl Stopped {
    pub fn new(pid: i32) -> Self {
        wait::signal(pid, libc::SIGSTOP).expect("SIGSTOP");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = wait::signal(self.0, libc::SIGCONT);
    }
}
