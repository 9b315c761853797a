// SPDX-License-Identifier: Apache-2.0
//! Tests in a pid namespace of their own, where nobody else takes pids and the next one can be
//! chosen (/proc/sys/kernel/ns_last_pid, see pid_namespaces(7)).

use crate::test::{self, Test};
use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tells a test that it is inside; its value is to the outer machine what a pid is.
const INSIDE: &str = "DUNNAGE_PID_NAMESPACE";

/// Runs a test by running this binary again, inside, with only that test. `name` is its path.
pub fn run_inside(name: &str, body: impl AsyncFnOnce(&Test)) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    if env::var_os(INSIDE).is_some() {
        return test::run(body);
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(env::current_exe().expect("path of the tests"));
    command.args(["--exact", name, "--nocapture"]);
    command.env(INSIDE, format!("{}i{count}", std::process::id()));
    let output = command.process_group(0).output().expect("unshare");
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    let passed = output.status.success() && out.contains("1 passed");
    assert!(passed, "inside the namespace:\n{out}\n{err}");
}

/// What names of this process's tests begin with: no other process on the machine has it.
pub(crate) fn number() -> String {
    env::var(INSIDE).unwrap_or_else(|_| std::process::id().to_string())
}
