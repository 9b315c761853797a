// SPDX-License-Identifier: Apache-2.0
//! The binary's commands: `start` and `delete` as containerd calls them, in every dialect.

use crate::bundle::Bundle;
use crate::peers;
use crate::shim::Shim;
use crate::test::Test;
use crate::wait::{self, Output};
use protos::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use protos::runc::Options;
use protos::task::DeleteResponse;
use protos::{Any, Message, any};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What containerd writes to the command's stdin (B9).
#[derive(Clone, Debug)]
pub enum Stdin {
    /// /dev/null, as containerd up to 2.2 without options.
    Null,
    /// An empty pipe.
    Empty,
    /// An Any of runc's Options, as containerd up to 2.2.
    Options(Options),
    /// BootstrapParams of this container, as containerd 2.3 and later.
    Bootstrap,
    /// BootstrapParams of this container with Options in an extension.
    BootstrapOptions(Options),
    Raw(Vec<u8>),
}

/// The three ways to answer `start` (B20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Plain,
    Json,
    Protobuf,
}

/// What `start` answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub dialect: Dialect,
    pub version: i32,
    pub address: String,
    pub protocol: String,
}

impl Answer {
    /// As containerd 2.3 and later reads it: protobuf, else JSON, else an address.
    pub fn parse(stdout: &[u8]) -> Self {
        if let Ok(r) = BootstrapResult::decode(stdout)
            && !r.address.is_empty()
        {
            let dialect = Dialect::Protobuf;
            return Self {
                dialect,
                version: r.version,
                address: r.address,
                protocol: r.protocol,
            };
        }
        let text = String::from_utf8_lossy(stdout);
        if let Ok(json) = serde_json::from_str::<serde_json::Value>(&text) {
            let field = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
            let version = json["version"].as_i64().unwrap_or_default() as i32;
            let (address, protocol) = (field("address"), field("protocol"));
            return Self {
                dialect: Dialect::Json,
                version,
                address,
                protocol,
            };
        }
        let address = text.trim().to_owned();
        Self {
            dialect: Dialect::Plain,
            version: 2,
            address,
            protocol: "ttrpc".to_owned(),
        }
    }

    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        let path = self.address.strip_prefix("unix://");
        PathBuf::from(path.unwrap_or_else(|| panic!("not a unix:// address: {self:?}")))
    }
}

/// A `start` (or `delete`) to be run; its fields begin as containerd 1.6 would have them.
#[derive(Clone)]
pub struct Start {
    pub bundle: Bundle,
    pub binary: PathBuf,
    pub namespace: String,
    pub stdin: Stdin,
    pub debug: bool,
    /// Added to, or with `None` taken from, the inherited environment.
    pub env: Vec<(String, Option<String>)>,
    /// Run as this command's last words, e.g. `["setpriv", "--inh-caps=…"]` before the shim.
    pub wrapper: Vec<String>,
    /// Directories of cgroups the command is put into before it runs.
    pub cgroups: Vec<PathBuf>,
}

impl Start {
    pub fn new(bundle: &Bundle) -> Self {
        let namespace = bundle.test.namespace().to_owned();
        Self {
            bundle: bundle.clone(),
            binary: peers::shim().to_owned(),
            namespace,
            stdin: Stdin::Null,
            debug: false,
            env: Vec::new(),
            wrapper: Vec::new(),
            cgroups: Vec::new(),
        }
    }

    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = path.to_owned();
        self
    }

    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    pub fn debug(mut self) -> Self {
        self.debug = true;
        self
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), Some(value.to_owned())));
        self
    }

    pub fn without_env(mut self, key: &str) -> Self {
        self.env.push((key.to_owned(), None));
        self
    }

    pub fn cgroup(mut self, dir: &Path) -> Self {
        self.cgroups.push(dir.to_owned());
        self
    }

    /// The flags before the action (B6).
    pub fn flags(&self) -> Vec<String> {
        let test = &self.bundle.test;
        let grpc = test.grpc_address();
        let words = [
            "-namespace",
            &self.namespace,
            "-address",
            &grpc,
            "-publish-binary",
            "/usr/bin/containerd",
            "-id",
            &self.bundle.id,
        ];
        let mut flags: Vec<String> = words.map(str::to_owned).into();
        if self.debug {
            flags.push("-debug".to_owned());
        }
        flags
    }

    /// The command with exactly these arguments, in the bundle, with containerd's environment.
    pub fn command(&self, args: &[String]) -> Command {
        let test = &self.bundle.test;
        let mut words = self.wrapper.clone();
        words.push(self.binary.to_string_lossy().into_owned());
        words.extend_from_slice(args);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(&self.bundle.path);
        environment(&mut command, test, &self.namespace);
        for (key, value) in &self.env {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        let procs: Vec<PathBuf> = self
            .cgroups
            .iter()
            .map(|d| d.join("cgroup.procs"))
            .collect();
        // SAFETY: between fork and exec only open, write and close are called.
        unsafe {
            command.pre_exec(move || procs.iter().try_for_each(|file| std::fs::write(file, "0")));
        }
        command
    }

    fn input(&self) -> Option<Vec<u8>> {
        match &self.stdin {
            Stdin::Null => None,
            Stdin::Empty => Some(Vec::new()),
            Stdin::Options(options) => Some(any::pack(options).encode_to_vec()),
            Stdin::Bootstrap => Some(self.bootstrap_params().encode_to_vec()),
            Stdin::BootstrapOptions(options) => {
                let mut params = self.bootstrap_params();
                params.extensions.push(Extension {
                    value: Some(any::pack(options)),
                });
                Some(params.encode_to_vec())
            }
            Stdin::Raw(bytes) => Some(bytes.clone()),
        }
    }

    /// What containerd 2.3 and later writes for this bundle.
    pub fn bootstrap_params(&self) -> BootstrapParams {
        BootstrapParams {
            instance_id: self.bundle.id.clone(),
            namespace: self.namespace.clone(),
            log_level: if self.debug { -4 } else { 0 },
            containerd_version: "2.3.4".to_owned(),
            containerd_ttrpc_address: self.bundle.test.ttrpc_address(),
            containerd_grpc_address: self.bundle.test.grpc_address(),
            containerd_binary: "/usr/bin/containerd".to_owned(),
            ..Default::default()
        }
    }

    /// Runs `start` and waits for its output to end.
    pub async fn run(&self) -> Output {
        let mut args = self.flags();
        args.push("start".to_owned());
        wait::output(self.command(&args), self.input().as_deref()).await
    }

    /// Runs `start`, which must succeed, without connecting to the shim.
    pub async fn answer(&self) -> Answer {
        let output = self.run().await;
        let text = || format!("stdout {:?} stderr {:?}", output.out(), output.err());
        assert_eq!(output.code(), Some(0), "start failed: {}", text());
        assert_eq!(output.err(), "", "start succeeded but wrote to stderr");
        let answer = Answer::parse(&output.stdout);
        assert!(
            answer.address.starts_with("unix:///"),
            "start's answer: {}",
            text()
        );
        self.bundle.test.note_socket(&answer.socket());
        answer
    }

    /// Runs `start` and connects to the shim that answers.
    pub async fn shim(&self) -> Shim {
        Shim::connect(&self.bundle, self.answer().await).await
    }

    /// Runs `delete` (B6, D1 to D4).
    pub async fn delete(&self) -> Output {
        let mut args = self.flags();
        args.push("-bundle".to_owned());
        args.push(self.bundle.path.to_string_lossy().into_owned());
        args.push("delete".to_owned());
        wait::output(self.command(&args), None).await
    }

    /// Runs `delete`, which must succeed.
    pub async fn deleted(&self) -> DeleteResponse {
        let output = self.delete().await;
        assert_eq!(output.code(), Some(0), "delete failed: {}", output.err());
        DeleteResponse::decode(output.stdout.as_slice()).expect("DeleteResponse on stdout")
    }
}

/// The environment containerd gives a shim's commands (B7), private temporary directories, and
/// a PATH in which the runtime comes first.
pub fn environment(command: &mut Command, test: &Test, namespace: &str) {
    command
        .env("PATH", test.path())
        .env("GOMAXPROCS", "2")
        .env("TTRPC_ADDRESS", test.ttrpc_address())
        .env("GRPC_ADDRESS", test.grpc_address())
        .env("NAMESPACE", namespace)
        .env("MAX_SHIM_VERSION", "2")
        .env("XDG_RUNTIME_DIR", test.dir().join("run"))
        .env("TMPDIR", test.dir().join("tmp"));
}

/// Any of Options for Create.
pub fn options(options: &Options) -> Option<Any> {
    Some(any::pack(options))
}
