// SPDX-License-Identifier: Apache-2.0
//! One test: its directory, its namespace, its end.
//!
//! ```text
//! /tmp/dn<pid>-<n>x/           Test::dir
//!   state/io.containerd.runtime.v2.task/<ns>/<id>/   bundles
//!   root/<ns>/<id>/            where a bundle's `work` points
//!   bin/                       first in the PATH of shims: the runtime, as `runc`
//!   run/ tmp/                  XDG_RUNTIME_DIR and TMPDIR of the shims: empty at the end
//!   share/                     /mnt of containers that ask for it
//!   containerd.sock[.ttrpc]    the addresses shims are given; events arrive at the second
//! ```

use crate::bundle::{Builder, Log, VMS};
use crate::events::Events;
use crate::leaks;
use crate::ledger::vm_differs;
use crate::limit::Limit;
use crate::peers;
use crate::pid_namespace;
use crate::proc;
use crate::shim::Shim;
use crate::stdio;
use crate::wait;
use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;
use tokio::runtime::{Builder as RuntimeBuilder, LocalRuntime};

/// No single test may take longer.
const LIMIT: Duration = Duration::from_secs(170);

/// Tests that measure run while no other test does.
static MACHINE: RwLock<()> = RwLock::new(());

/// Runs a test, then stops its shims and looks for what it left. Other tests run meanwhile.
pub fn run(body: impl AsyncFnOnce(&Test)) {
    let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    run_here(LIMIT, body);
}

/// [`run`], unless the shim under test is that of VMs: the line `id` of tests/vms.txt says why not.
pub fn run_unless_vm_differs(id: &str, body: impl AsyncFnOnce(&Test)) {
    if !vm_differs(id) {
        run(body);
    }
}

/// [`run`], with the machine for itself as far as this test binary is concerned.
pub fn run_alone(body: impl AsyncFnOnce(&Test)) {
    run_alone_within(LIMIT, body);
}

/// [`run_alone`], for what takes longer than a test may.
pub fn run_alone_within(limit: Duration, body: impl AsyncFnOnce(&Test)) {
    let _exclusive = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    run_here(limit, body);
}

/// Measures: no limit but `limit`, nothing said of what shims leave, for some are not ours; what
/// they leave is removed all the same.
///
/// # Panics
/// If `body` does.
pub fn measure<T>(limit: Duration, body: impl AsyncFnOnce(&Test) -> T) -> T {
    let runtime = runtime();
    let test = runtime.block_on(async { Test::new() });
    let measured = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(wait::within(limit, "end of the measurement", body(&test)))
    }));
    runtime.block_on(leaks::clean(&test));
    measured.unwrap_or_else(|panic| resume_unwind(panic))
}

fn runtime() -> LocalRuntime {
    let runtime = RuntimeBuilder::new_current_thread()
        .enable_all()
        .build_local(Default::default());
    runtime.expect("runtime")
}

fn run_here(limit: Duration, body: impl AsyncFnOnce(&Test)) {
    let _limit = Limit::of_this_test();
    let runtime = runtime();
    let test = runtime.block_on(async { Test::new() });
    let result = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(wait::within(limit, "end of the test", body(&test)));
        runtime.block_on(wait::within(LIMIT, "end of its shims", test.stop()));
    }));
    if result.is_err() {
        // Lets the log reader take what the shim wrote last.
        runtime.block_on(async {
            for _ in 0..200 {
                tokio::task::yield_now().await;
            }
        });
        test.print();
    }
    let cleaned = catch_unwind(AssertUnwindSafe(|| runtime.block_on(leaks::clean(&test))));
    first_failure(result, cleaned);
}

type Ended = Result<(), Box<dyn Any + Send>>;

fn first_failure(result: Ended, cleaned: Ended) {
    for ended in [result, cleaned] {
        if let Err(panic) = ended {
            resume_unwind(panic);
        }
    }
}

/// What a test works with. Clones are the same test.
#[derive(Clone)]
pub struct Test {
    shared: Rc<Shared>,
}

struct Shared {
    namespace: String,
    dir: PathBuf,
    events: Events,
    shims: RefCell<Vec<Shim>>,
    bundles: RefCell<Vec<(PathBuf, Log)>>,
    sockets: RefCell<Vec<PathBuf>>,
    stale: RefCell<Vec<PathBuf>>,
    /// Shim and id of the containers that were created and not deleted.
    containers: RefCell<BTreeSet<(i32, String)>>,
}

impl Test {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // The x keeps one test's name from being a part of another's.
        let namespace = format!("dn{}-{number}x", pid_namespace::number());
        let dir = Path::new("/tmp").join(&namespace);
        for name in ["bin", "run", "tmp", "share"] {
            fs::create_dir_all(dir.join(name)).expect("directory of the test");
        }
        symlink(peers::runc(), dir.join("bin/runc")).expect("runtime of the test");
        let events = Events::default();
        events.serve(&dir.join("containerd.sock.ttrpc"));
        let shared = Shared {
            namespace,
            dir,
            events,
            shims: RefCell::default(),
            bundles: RefCell::default(),
            sockets: RefCell::default(),
            stale: RefCell::default(),
            containers: RefCell::default(),
        };
        Self {
            shared: Rc::new(shared),
        }
    }

    /// The containerd namespace, of this test alone.
    pub fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Puts a program into the PATH of the test's shims, before all others of its name.
    pub fn provide(&self, program: impl AsRef<Path>) {
        let program = program.as_ref();
        let name = program.file_name().expect("a program's file");
        symlink(program, self.dir().join("bin").join(name)).expect("program of the test");
    }

    /// The PATH of the test's shims.
    pub fn path(&self) -> OsString {
        let others = peers::path();
        let dirs = [self.dir().join("bin")].into_iter();
        env::join_paths(dirs.chain(env::split_paths(&others))).expect("PATH")
    }

    /// Where containers that ask for it meet the test.
    pub fn share(&self) -> PathBuf {
        self.dir().join("share")
    }

    /// The directory of this namespace's bundles.
    pub fn tasks_dir(&self) -> PathBuf {
        self.dir()
            .join("state/io.containerd.runtime.v2.task")
            .join(self.namespace())
    }

    /// runc's state directory of this namespace.
    pub fn runc_root(&self) -> PathBuf {
        Path::new("/run/containerd/runc").join(self.namespace())
    }

    pub fn grpc_address(&self) -> String {
        self.dir()
            .join("containerd.sock")
            .to_string_lossy()
            .into_owned()
    }

    pub fn ttrpc_address(&self) -> String {
        format!("{}.ttrpc", self.grpc_address())
    }

    /// The socket of this group's shim (B31).
    pub fn socket_of(&self, group: &str) -> PathBuf {
        let key = format!("{}/{}/{group}", self.grpc_address(), self.namespace());
        Path::new("/run/containerd/s").join(stdio::sha256(&key))
    }

    /// The address of this group's shim.
    pub fn address_of(&self, group: &str) -> String {
        format!("unix://{}", self.socket_of(group).display())
    }

    /// Living daemons of the test, by their command line.
    pub fn daemons(&self) -> Vec<i32> {
        let serves = |pid: &i32| {
            let args = proc::words(*pid, "cmdline");
            let shim = |word: &String| {
                word.ends_with("containerd-shim-runc-v2") || word.ends_with("containerd-shim-vm-v2")
            };
            proc::alive(*pid)
                && args.first().is_some_and(shim)
                && args.iter().any(|w| w == self.namespace())
        };
        proc::all().into_iter().filter(serves).collect()
    }

    /// Where the VM is that container `id` is the first in.
    pub fn vm_dir(&self, id: &str) -> PathBuf {
        let name = stdio::sha256(&format!("{}/{id}", self.namespace()));
        Path::new(VMS).join(&name[..16])
    }

    /// The ids of the containers that were described.
    pub(crate) fn ids(&self) -> Vec<String> {
        let bundles = self.shared.bundles.borrow();
        let name = |(path, _): &(PathBuf, Log)| Some(path.file_name()?.to_str()?.to_owned());
        bundles.iter().filter_map(name).collect()
    }

    /// What the shims published.
    pub fn events(&self) -> &Events {
        &self.shared.events
    }

    /// A container named `id`, to be described further.
    pub fn bundle(&self, id: &str) -> Builder {
        Builder::new(self, id)
    }

    pub(crate) fn note_bundle(&self, path: &Path, log: &Log) {
        if let Some(id) = path.file_name().and_then(|name| name.to_str()) {
            self.note_socket(&self.socket_of(id));
        }
        self.shared
            .bundles
            .borrow_mut()
            .push((path.to_owned(), log.clone()));
    }

    pub(crate) fn note_socket(&self, socket: &Path) {
        self.shared.sockets.borrow_mut().push(socket.to_owned());
    }

    pub(crate) fn forget_socket(&self, socket: &Path) {
        let mut sockets = self.shared.sockets.borrow_mut();
        sockets.retain(|known| known != socket);
        self.shared.stale.borrow_mut().push(socket.to_owned());
    }

    /// Sockets that killed shims left.
    pub(crate) fn stale_sockets(&self) -> Vec<PathBuf> {
        self.shared.stale.borrow().clone()
    }

    pub(crate) fn note_shim(&self, shim: &Shim) {
        self.shared.shims.borrow_mut().push(shim.clone());
    }

    pub(crate) fn note_created(&self, shim: i32, id: &str) {
        self.shared
            .containers
            .borrow_mut()
            .insert((shim, id.to_owned()));
    }

    pub(crate) fn note_deleted(&self, shim: i32, id: &str) {
        self.shared
            .containers
            .borrow_mut()
            .remove(&(shim, id.to_owned()));
    }

    pub(crate) fn containers_of(&self, shim: i32) -> Vec<String> {
        let containers = self.shared.containers.borrow();
        containers
            .iter()
            .filter(|(of, _)| *of == shim)
            .map(|(_, id)| id.clone())
            .collect()
    }

    pub(crate) fn shims(&self) -> Vec<Shim> {
        self.shared.shims.borrow().clone()
    }

    pub(crate) fn sockets(&self) -> Vec<PathBuf> {
        self.shared.sockets.borrow().clone()
    }

    /// Stops the shims; panics if that, or the test before it, left anything behind.
    async fn stop(&self) {
        let mut wrong = Vec::new();
        for shim in self.shims() {
            wrong.extend(shim.stop().await);
        }
        wrong.extend(leaks::of(self).await);
        assert!(
            wrong.is_empty(),
            "the test passed, but left behind:\n  {}",
            wrong.join("\n  ")
        );
    }

    /// Tells what is known, for the reader of a failure.
    fn print(&self) {
        let events = self.events().text();
        let lines: Vec<&str> = events.lines().collect();
        let last = lines.len().saturating_sub(100);
        println!("---- events of {}, {last} before", self.namespace());
        lines[last..].iter().for_each(|line| println!("{line}"));
        for (path, log) in self.shared.bundles.borrow().iter() {
            if !log.text().is_empty() {
                println!("---- log of {}\n{}", path.display(), log.text());
            }
        }
        println!("----");
    }
}
