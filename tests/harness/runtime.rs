// SPDX-License-Identifier: Apache-2.0
//! OCI runtimes in front of the real one: shell scripts that wait at a gate, fail, or keep a
//! record, chosen by a container's `Options.binary_name`.

use crate::bundle::Bundle;
use crate::peers;
use crate::program;
use crate::shim::Shim;
use crate::stdio::Fifo;
use crate::test::Test;
use crate::wait;
use protos::runc::Options;
use protos::task::{CreateTaskRequest, StartResponse};
use protos::ttrpc::CallError;
use std::path::PathBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::{JoinHandle, spawn_local};

/// A runtime of the test's own.
pub struct Runtime {
    path: PathBuf,
}

impl Runtime {
    /// A script of this name; in it, `$RUNC` is the real runtime and `$ACTION` the subcommand.
    pub fn script(test: &Test, name: &str, body: &str) -> Self {
        let path = test.dir().join(name);
        let runc = peers::runc().display();
        let text = format!(
            "#!/bin/sh\nRUNC={runc}\nskip=\nfor word in \"$@\"; do\n  \
             if [ -n \"$skip\" ]; then skip=; continue; fi\n  \
             case $word in\n    --root|--log|--log-format) skip=yes ;;\n    -*) ;;\n    \
             *) ACTION=$word; break ;;\n  esac\ndone\n{body}\n"
        );
        assert!(!path.exists(), "a second {}", path.display());
        program::write(&path, &text);
        Self { path }
    }

    /// The real runtime, but `action` fails before it does anything, with `text` as its reason.
    pub fn failing(test: &Test, action: &str, text: &str) -> Self {
        let body = format!(
            "[ \"$ACTION\" = {action} ] || exec \"$RUNC\" \"$@\"\n\
             log=; for word in \"$@\"; do\n  \
             if [ \"$log\" = next ]; then log=$word; break; fi\n  \
             [ \"$word\" != --log ] || log=next\ndone\n\
             echo '{{\"level\":\"error\",\"msg\":\"{text}\",\"time\":\"2024-01-01T00:00:00Z\"}}' >\"$log\"\n\
             exit 1"
        );
        Self::script(test, &format!("{action}-fails"), &body)
    }

    /// The real runtime; its command lines are written to a file, one per line.
    pub fn recording(test: &Test) -> (Self, PathBuf) {
        let record = test.dir().join("runtime-record");
        let body = format!("echo \"$@\" >>{}\nexec \"$RUNC\" \"$@\"", record.display());
        (Self::script(test, "recording-runtime", &body), record)
    }

    /// The real runtime, but every `action` waits at a gate first.
    pub fn gated(test: &Test, action: &str) -> (Self, Gate) {
        let gate = Gate::new(test, action);
        let body = format!(
            "if [ \"$ACTION\" = {action} ]; then\n  {}\nfi\nexec \"$RUNC\" \"$@\"",
            gate.script()
        );
        (Self::script(test, &format!("{action}-gated"), &body), gate)
    }

    /// The real runtime, but every `action` that is done waits at a gate before it ends.
    pub fn lingering(test: &Test, action: &str) -> (Self, Gate) {
        let gate = Gate::new(test, action);
        let body = format!(
            "[ \"$ACTION\" = {action} ] || exec \"$RUNC\" \"$@\"\n\"$RUNC\" \"$@\"; code=$?\n{}\nexit $code",
            gate.script()
        );
        (
            Self::script(test, &format!("{action}-lingering"), &body),
            gate,
        )
    }

    /// Options that choose it.
    pub fn options(&self) -> Options {
        Options {
            binary_name: self.path.to_string_lossy().into_owned(),
            ..Default::default()
        }
    }

    /// A Create that uses it.
    pub fn create(&self, bundle: &Bundle) -> CreateTaskRequest {
        bundle.create_with(&self.options())
    }
}

/// Where a gated runtime waits. Both FIFOs are held at both ends, so nobody blocks in open.
pub struct Gate {
    gate: (pipe::Sender, pipe::Receiver),
    arrivals: (pipe::Sender, pipe::Receiver),
    paths: (String, String),
}

impl Gate {
    fn new(test: &Test, action: &str) -> Self {
        let arrivals = Fifo::new(test.dir().join(format!("{action}-arrivals")));
        let gate = Fifo::new(test.dir().join(format!("{action}-gate")));
        let paths = (arrivals.name(), gate.name());
        Self {
            gate: gate.gate(),
            arrivals: arrivals.gate(),
            paths,
        }
    }

    /// What a script does to wait here.
    fn script(&self) -> String {
        let (arrivals, gate) = &self.paths;
        format!("echo $$ >{arrivals}; read -r line <{gate}")
    }

    /// Waits until a runtime stands at the gate; its pid.
    pub async fn arrival(&mut self) -> i32 {
        let mut line = Vec::new();
        let read = async {
            let mut byte = [0u8; 1];
            loop {
                self.arrivals
                    .1
                    .read_exact(&mut byte)
                    .await
                    .expect("arrivals");
                match byte[0] {
                    b'\n' => break,
                    digit => line.push(digit),
                }
            }
        };
        wait::soon("a runtime at the gate", read).await;
        String::from_utf8_lossy(&line).parse().expect("a pid")
    }

    /// Lets one runtime pass, now or when it comes.
    pub async fn open(&mut self) {
        self.gate.0.write_all(b"go\n").await.expect("gate");
    }
}

/// Exec `e` of container `c`, whose Start hangs in the runtime.
pub struct HangingExec {
    pub bundle: Bundle,
    pub shim: Shim,
    /// The runtime's.
    pub pid: i32,
    pub starting: JoinHandle<Result<StartResponse, CallError>>,
    gate: Gate,
}

impl HangingExec {
    pub async fn new(test: &Test) -> Self {
        let bundle = test.bundle("c").build();
        let (runtime, mut gate) = Runtime::gated(test, "exec");
        let shim = bundle.start().shim().await;
        shim.create(runtime.create(&bundle)).await.unwrap();
        shim.start("c", "").await.unwrap();
        shim.exec(bundle.exec_sh("e", "exit 3")).await.unwrap();
        let starting = spawn_local({
            let shim = shim.clone();
            async move { shim.start("c", "e").await }
        });
        let pid = gate.arrival().await;
        Self {
            bundle,
            shim,
            pid,
            starting,
            gate,
        }
    }

    /// Lets the runtime go on: the exec starts, and ends as it should.
    pub async fn go_on(mut self) {
        self.gate.open().await;
        self.starting.await.unwrap().unwrap();
        assert_eq!(self.shim.wait("c", "e").await.unwrap().exit_status, 3);
    }
}
