// SPDX-License-Identifier: Apache-2.0
//! System calls of another process that take their time, or fail, because we say so.

use crate::bundle::MARK;
use crate::test::Test;
use crate::wait;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// strace(1) on a process and what it starts, told to meddle with system calls; detaches when dropped.
pub struct Meddler {
    strace: Child,
}

impl Meddler {
    /// Returns when every thread of `pid`, and to be, is traced. `inject` is strace's.
    pub fn new(test: &Test, pid: i32, inject: &str) -> Self {
        let calls = inject.split(':').next().unwrap_or_default();
        let mut strace = Command::new("strace")
            .args(["-f", "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={inject}")])
            .args(["-o", "/dev/null", "-p"])
            .arg(pid.to_string())
            .env(MARK, test.namespace())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace (tests/setup.sh installs it)");
        let mut said = BufReader::new(strace.stderr.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("attached") {
            line.clear();
            assert_ne!(
                said.read_line(&mut line).expect("strace"),
                0,
                "strace ended"
            );
        }
        // Its later words must not find the pipe closed.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { strace }
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        let _ = wait::signal(self.strace.id() as i32, libc::SIGTERM);
        let _ = self.strace.wait();
    }
}
