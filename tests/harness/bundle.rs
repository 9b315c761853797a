// SPDX-License-Identifier: Apache-2.0
//! Bundles: the directory, `config.json` and log FIFO of a container, as containerd makes them.

use crate::shim::Shim;
use crate::stdio;
use crate::test::Test;
use crate::{peers, proc, start::Start};
use protos::Any;
use protos::runc::Options;
use protos::task::{CreateTaskRequest, ExecProcessRequest};
use protos::types::Mount;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::io::AsyncReadExt;

/// The environment variable by which a process is known to belong to a test.
pub const MARK: &str = "DUNNAGE_TEST";
/// A script that prints four lines of what its kernel has at random.
pub const RANDOM: &str = "cd /proc/sys/kernel/random; cat boot_id uuid; \
                          for f in random urandom; do head -c 16 /dev/$f | od -An -tx1; done";

/// Where VMs have their directories.
pub(crate) const VMS: &str = "/run/dunnage/vm";

/// What a container is to be. Made by [`Test::bundle`]; ends with [`Builder::build`].
pub struct Builder {
    test: Test,
    id: String,
    spec: Value,
    rootfs: Vec<Mount>,
}

impl Builder {
    pub(crate) fn new(test: &Test, id: &str) -> Self {
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": process(test, &["sleep", "100000"]),
            "root": { "path": "rootfs", "readonly": true },
            "hostname": "box",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                  "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            ],
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
                "cgroupsPath": format!("/{}-{id}", test.namespace()),
                "resources": { "devices": [{ "allow": true, "access": "rwm" }] },
            },
        });
        Self {
            test: test.clone(),
            id: id.to_owned(),
            spec,
            rootfs: vec![bind(peers::rootfs())],
        }
    }

    /// Sets any part of config.json, e.g. `set("/process/cwd", json!("/tmp"))`; objects on the
    /// way are made.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self.spec;
        for key in pointer.split('/').skip(1) {
            place = &mut place[key.replace("~1", "/")];
        }
        *place = value;
        self
    }

    pub fn args(self, args: &[&str]) -> Self {
        self.set("/process/args", json!(args))
    }

    /// Init runs `script` in busybox's shell.
    pub fn sh(self, script: &str) -> Self {
        self.args(&["sh", "-c", script])
    }

    pub fn terminal(self) -> Self {
        self.set("/process/terminal", json!(true))
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.spec["annotations"][key] = json!(value);
        self
    }

    /// No pid namespace of its own: its processes live and die beside the host's.
    pub fn host_pid(mut self) -> Self {
        let namespaces = self.spec["linux"]["namespaces"]
            .as_array_mut()
            .expect("namespaces");
        namespaces.retain(|ns| ns["type"] != "pid");
        self
    }

    pub fn memory_limit(self, bytes: u64) -> Self {
        self.set("/linux/resources/memory/limit", json!(bytes))
    }

    pub fn mount(mut self, mount: Value) -> Self {
        self.spec["mounts"]
            .as_array_mut()
            .expect("mounts")
            .push(mount);
        self
    }

    /// The test's `share` directory, at /mnt: FIFOs there are how a test and its container meet.
    pub fn share(self) -> Self {
        let source = self.test.share();
        self.mount(
            json!({ "destination": "/mnt", "type": "bind", "source": source,
                           "options": ["rbind", "rw"] }),
        )
    }

    /// The mounts that Create is to make on `rootfs`, instead of a bind of busybox.
    pub fn rootfs(mut self, mounts: Vec<Mount>) -> Self {
        self.rootfs = mounts;
        self
    }

    /// Writes the bundle, and holds its log FIFO from now on.
    pub fn build(self) -> Bundle {
        let path = self.test.tasks_dir().join(&self.id);
        let root = self
            .test
            .dir()
            .join("root")
            .join(self.test.namespace())
            .join(&self.id);
        let make = |dir: &Path, mode| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(dir)
                .expect("bundle directory");
        };
        make(path.parent().expect("parent"), 0o711);
        make(&path, 0o700);
        make(&path.join("rootfs"), 0o711);
        make(&root, 0o711);
        std::os::unix::fs::symlink(&root, path.join("work")).expect("work");
        fs::write(path.join("config.json"), self.spec.to_string()).expect("config.json");
        let log = Log::hold(&path);
        self.test.note_bundle(&path, &log);
        Bundle {
            test: self.test,
            id: self.id,
            path,
            rootfs: self.rootfs,
            log,
            spec: self.spec,
        }
    }
}

/// A bundle on disk. The test removes it.
#[derive(Clone)]
pub struct Bundle {
    pub test: Test,
    pub id: String,
    pub path: PathBuf,
    pub rootfs: Vec<Mount>,
    pub log: Log,
    pub spec: Value,
}

impl Bundle {
    /// A file of the bundle.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names of the files in the bundle, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).expect("bundle");
        let name = |entry: std::io::Result<fs::DirEntry>| {
            entry
                .expect("bundle")
                .file_name()
                .into_string()
                .expect("a name in UTF-8")
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    /// The start command for this bundle.
    pub fn start(&self) -> Start {
        Start::new(self)
    }

    /// A shim, and in it this container, running without stdio.
    pub async fn running(&self) -> Shim {
        let shim = self.start().shim().await;
        shim.create(self.create()).await.expect("Create");
        shim.start(&self.id, "").await.expect("Start");
        shim
    }

    /// A Create without stdio.
    pub fn create(&self) -> CreateTaskRequest {
        CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.path.to_string_lossy().into_owned(),
            rootfs: self.rootfs.clone(),
            ..Default::default()
        }
    }

    /// A Create with options, without stdio.
    pub fn create_with(&self, options: &Options) -> CreateTaskRequest {
        CreateTaskRequest {
            options: Some(protos::any::pack(options)),
            ..self.create()
        }
    }

    /// An Exec without stdio.
    pub fn exec(&self, exec_id: &str, args: &[&str]) -> ExecProcessRequest {
        self.exec_spec(exec_id, &process(&self.test, args))
    }

    /// An Exec of a script for busybox's shell.
    pub fn exec_sh(&self, exec_id: &str, script: &str) -> ExecProcessRequest {
        self.exec(exec_id, &["sh", "-c", script])
    }

    /// An Exec of a whole OCI process.
    pub fn exec_spec(&self, exec_id: &str, process: &Value) -> ExecProcessRequest {
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
            value: process.to_string().into_bytes(),
        };
        let (id, exec_id) = (self.id.clone(), exec_id.to_owned());
        ExecProcessRequest {
            id,
            exec_id,
            spec: Some(spec),
            ..Default::default()
        }
    }

    /// Mount points at or under the bundle, and what mountinfo says of each. A VM's are in its
    /// share, whose namespace its shim has open: they are told as if they were in the bundle.
    pub fn mountinfo(&self) -> Vec<(String, String)> {
        if !peers::is_vm() {
            return proc::mounts(std::process::id() as i32, &self.path);
        }
        let place = format!("/share/{}/rootfs", self.id);
        let shims = self.test.daemons().into_iter();
        let all = shims.flat_map(|shim| proc::mounts_held(shim, Path::new(VMS)));
        let ours = all.filter_map(|(point, line)| {
            let (_, below) = point.split_once(&place)?;
            let at = format!("{}{below}", self.file("rootfs").display());
            Some((at, line))
        });
        ours.collect()
    }

    /// The mount points.
    pub fn mounts(&self) -> Vec<String> {
        let all = self.mountinfo().into_iter();
        all.map(|(point, _)| point).collect()
    }

    /// Where the shim mounts the root filesystem, for a VM that this container is the first in.
    pub fn mounted_at(&self) -> PathBuf {
        if peers::is_vm() {
            let share = self.test.vm_dir(&self.id).join("share");
            return share.join(&self.id).join("rootfs");
        }
        self.file("rootfs")
    }

    /// The root filesystem as the shim sees it, or its VM's file server.
    pub fn rootfs_of(&self, shim: &Shim) -> PathBuf {
        if peers::is_vm() {
            let serves = |pid: &i32| proc::words(*pid, "cmdline").iter().any(|w| w == "fsd");
            let server = proc::children(shim.pid()).into_iter().find(serves);
            let root = format!("/proc/{}/root", server.expect("a file server"));
            return Path::new(&root).join(&self.id).join("rootfs");
        }
        self.file("rootfs")
    }
}

/// An OCI process, marked as the test's.
pub fn process(test: &Test, args: &[&str]) -> Value {
    let capabilities = [
        "CAP_KILL",
        "CAP_CHOWN",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_DAC_OVERRIDE",
    ];
    json!({
        "args": args,
        "cwd": "/",
        "env": ["PATH=/bin:/sbin", "TERM=xterm", format!("{MARK}={}", test.namespace())],
        "user": { "uid": 0, "gid": 0 },
        "capabilities": { "bounding": capabilities, "effective": capabilities,
                          "permitted": capabilities },
        "noNewPrivileges": true,
    })
}

/// A bind mount of `source` on the bundle's rootfs.
pub fn bind(source: &Path) -> Mount {
    Mount {
        r#type: "bind".to_owned(),
        source: source.to_string_lossy().into_owned(),
        options: vec!["rbind".to_owned(), "ro".to_owned()],
        ..Default::default()
    }
}

/// The log FIFO of a bundle, held open read-write as containerd holds it, and all that came.
#[derive(Clone)]
pub struct Log {
    text: Rc<RefCell<Vec<u8>>>,
}

impl Log {
    fn hold(bundle: &Path) -> Self {
        let path = bundle.join("log");
        stdio::mkfifo(&path);
        let mut open = tokio::net::unix::pipe::OpenOptions::new();
        let mut receiver = open
            .read_write(true)
            .open_receiver(&path)
            .expect("log FIFO");
        let text = Rc::new(RefCell::new(Vec::new()));
        let sink = Rc::clone(&text);
        tokio::task::spawn_local(async move {
            let mut buffer = [0u8; 4096];
            while let Ok(n) = receiver.read(&mut buffer).await {
                sink.borrow_mut().extend_from_slice(&buffer[..n]);
            }
        });
        Self { text }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.borrow()).into_owned()
    }
}
