// SPDX-License-Identifier: Apache-2.0
//! QEMU's machine `microvm`: its command line, and its process.
//!
//! What the options are for, where it is not plain: `-cx16`, because QEMU 7.2 without KVM runs that
//! instruction wrongly and some guests panic; `+arat`, without which a kernel takes its timer for one that
//! stops, ticks 250 times a second, and has no shorter time than that; `tsc_early_khz`, because without KVM and with ACPI
//! there is no clock to calibrate by, and some boots hang; `tsc=reliable`, because a guest that
//! waits for a processor takes its clock for broken, counts ticks, and falls behind by seconds in a
//! minute; `init_on_alloc=1`, for kernels that do not zero the pages that the file server will
//! write into (kernel.patch says why they must, without KVM); `dump=off`, because a guest's memory
//! is nobody's to keep; `-L`, because QEMU can't see where it is; `rootfstype=ramfs`, because files
//! of a tmpfs have seals, and an OCI runtime takes a program that could be sealed and is not for
//! one that can be written to; `force-legacy=false`, because vhost-user devices are virtio 1;
//! `noreplace-smp` and `cryptomgr.notests` save a third of the boot; the RTC stays, because a
//! kernel waits seconds for a missing one.

mod acpi;
mod handover;
pub mod line;
pub mod monitor;
mod saving;
pub mod slots;

pub use handover::Moved;

use crate::child::Child;
use crate::config::Accel;
use crate::console::Console;
use crate::jail::{self, Jail, Shown};
use crate::machine::{Begins, Machine, Plan};
use crate::program::Program;
use crate::users::User;
use command_fds::{CommandFdExt, FdMapping};
use line::Line;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use task::aside;
use task::reaper::{ExitStatus, Reaper};

/// The first fd of those that QEMU gets, beside stdio.
const FIRST_FD: i32 = 3;
const KVM: &str = "/dev/kvm";
/// What is booted, as QEMU finds it.
const KERNEL: &str = "/kernel";
const INITRD: &str = "/initrd";
/// In the machine's directory: where QEMU's root is mounted, which nobody sees but QEMU.
const ROOT: &str = "root";
/// The socket in the machine's directory.
pub const AGENT_SOCKET: &str = "agent.sock";

pub struct Qemu {
    /// Who its process is, or will be.
    user: User,
    pub console: Console,
    debug: bool,
    /// What its process will be made of, until there is one.
    prepared: Option<Prepared>,
    child: Option<Child>,
}

struct Prepared {
    plan: Plan,
    /// What QEMU will inherit: at FIRST_FD, and so on.
    inherited: Vec<OwnedFd>,
    arguments: Vec<String>,
    agent: UnixStream,
    console: UnixStream,
}

impl Qemu {
    /// `debug`: the console goes to the log too.
    pub fn with_console_in_log(mut self, debug: bool) -> Self {
        self.debug = debug;
        self
    }
}

impl Machine for Qemu {
    fn prepare(mut plan: Plan, user: User) -> Result<Self, String> {
        let at = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
        let socket = plan.dir.join(AGENT_SOCKET);
        fs::create_dir(plan.dir.join(ROOT)).map_err(at("root"))?;
        // Listening before QEMU runs: so we are connected before it is.
        let listener = UnixListener::bind(&socket).map_err(at("agent.sock"))?;
        let agent = UnixStream::connect(&socket).map_err(at("agent.sock"))?;
        let (console_end, console) = UnixStream::pair().map_err(at("console"))?;

        let mut line = Line::default();
        line::basics(&mut line, &plan);
        let slots = line::slots(&plan);
        // A machine that was saved had a host that listened, and its guest would take another for none.
        let waits = match plan.begins {
            Begins::Restored(_) | Begins::Saved { .. } => "on",
            Begins::Booted => "off",
            Begins::Template(_) => {
                let made = slots.put_tables(&mut plan.image.initrd, &plan.dir);
                made.map_err(at("tables for the kernel"))?;
                "off"
            }
        };
        line::beginning(&mut line, &mut plan);
        let console = line.fd(console);
        line.add([
            "-chardev".to_owned(),
            format!("socket,id=console,fd={console}"),
            "-serial".to_owned(),
            "chardev:console".to_owned(),
        ]);
        let listener = line.fd(listener);
        line.add([
            "-chardev".to_owned(),
            format!("socket,id=agent,fd={listener},server=on,wait={waits}"),
            "-device".to_owned(),
            format!(
                "virtio-serial-device,max_ports=2,bus={}",
                slots.bus(slots::SERIAL)
            ),
            "-device".to_owned(),
            "virtserialport,chardev=agent,name=agent".to_owned(),
        ]);
        line::devices(&mut line, &slots, &mut plan);
        let prepared = Prepared {
            plan,
            inherited: line.fds,
            arguments: line.arguments,
            agent,
            console: console_end,
        };
        Ok(Self {
            user,
            console: Console::default(),
            debug: false,
            prepared: Some(prepared),
            child: None,
        })
    }

    async fn boot(&mut self, reaper: &Reaper) -> Result<UnixStream, String> {
        let at = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
        let prepared = self.prepared.take().ok_or("QEMU was started before")?;
        let Prepared {
            mut plan,
            inherited,
            arguments,
            agent,
            console,
        } = prepared;
        let (program, shown) = (plan.program.clone(), shown(&plan));
        let parts = aside::run(move || jail::look_up(&program, shown)).await;
        let (reader, writer) = io::pipe().map_err(at("pipe"))?;
        let program = &plan.program;
        let mut command = Command::new(&program.path);
        command
            .args(arguments)
            .env_clear()
            .envs(environment(program))
            // What is translated is kept on the heap, which grows fast (mallopt(3)).
            .env("MALLOC_ARENA_MAX", "1")
            .env("MALLOC_TOP_PAD_", (16 << 20).to_string())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(at("pipe"))?)
            .stderr(writer);
        let fds = FIRST_FD + inherited.len() as i32;
        let mappings = inherited.into_iter().zip(FIRST_FD..);
        let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
        command
            .fd_mappings(mappings.collect())
            .map_err(|e| format!("fds for QEMU: {e}"))?;
        let jail = Jail::new(
            &self.user,
            group(plan.accel),
            plan.netns.take(),
            plan.dir.join(ROOT),
            fds,
            parts,
        );
        let jail = jail.map_err(at("jail"))?;
        self.console.read(reader, self.debug).map_err(at("pipe"))?;
        let read = self.console.read(console, self.debug);
        read.map_err(at("console"))?;
        self.child = Some(Child::jailed(command, jail, reaper)?);
        Ok(agent)
    }

    async fn runs(&mut self) -> Result<(), String> {
        match &mut self.child {
            Some(child) => child.runs().await,
            None => std::future::pending().await,
        }
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, |child| child.pid)
    }

    async fn wait(&self) -> ExitStatus {
        match &self.child {
            Some(child) => child.wait().await,
            None => std::future::pending().await,
        }
    }

    fn kill(&self) {
        if let Some(child) = &self.child {
            child.kill();
        }
    }

    async fn said_all(&self) {
        self.console.read_to_end().await;
    }

    fn last_words(&self) -> String {
        self.console.last()
    }
}

/// The group that QEMU needs to be of, beside its own.
fn group(accel: Accel) -> Option<u32> {
    let kvm = || fs::metadata(KVM).ok().map(|file| file.gid());
    (accel == Accel::Kvm).then(kvm).flatten()
}

/// What QEMU finds beside itself.
fn shown(plan: &Plan) -> Vec<Shown> {
    let mut shown = vec![
        Shown::data(&plan.image.kernel, Path::new(KERNEL)),
        Shown::data(&plan.image.initrd, Path::new(INITRD)),
    ];
    if plan.accel == Accel::Kvm {
        shown.push(Shown::device(Path::new(KVM)));
    }
    shown
}

/// Where QEMU looks for its libraries and modules: it has neither a cache of them nor a /proc that
/// says where it is.
fn environment(program: &Program) -> impl Iterator<Item = (&'static str, OsString)> {
    let libraries = std::env::join_paths(&program.libraries).ok();
    let libraries = libraries.filter(|paths| !paths.is_empty());
    let modules = program.modules.as_ref().map(OsString::from);
    let modules = modules.map(|dir| ("QEMU_MODULE_DIR", dir));
    let libraries = libraries.map(|paths| ("LD_LIBRARY_PATH", paths));
    libraries.into_iter().chain(modules)
}
