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

mod handover;

pub use handover::Moved;

use crate::child::Child;
use crate::config::Accel;
use crate::console::Console;
use crate::image::Abilities;
use crate::jail::{self, Jail, Shown};
use crate::machine::{Machine, Plan, SHARE_TAG};
use crate::program::Program;
use crate::users::User;
use command_fds::{CommandFdExt, FdMapping};
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
/// The processor, without KVM.
const EMULATED: &str = "qemu64,-cx16,+arat";
/// MiB of translated code that are kept, without KVM; left to itself QEMU takes up to 1024.
const TRANSLATED: u32 = 128;
/// Devices that a microvm has room for.
const SLOTS_WITHOUT_ACPI: usize = 8;
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

/// Collects QEMU's arguments, and the fds they name.
#[derive(Default)]
struct Line {
    arguments: Vec<String>,
    fds: Vec<OwnedFd>,
}

impl Line {
    fn add(&mut self, arguments: impl IntoIterator<Item = impl Into<String>>) {
        self.arguments.extend(arguments.into_iter().map(Into::into));
    }

    /// The number under which QEMU has `fd`.
    fn fd(&mut self, fd: impl Into<OwnedFd>) -> i32 {
        self.fds.push(fd.into());
        FIRST_FD + self.fds.len() as i32 - 1
    }
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
        basics(&mut line, &plan);
        let words = append(plan.accel, plan.image.abilities, host_khz());
        line.add(["-kernel", KERNEL, "-initrd", INITRD, "-append", &words]);
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
            format!("socket,id=agent,fd={listener},server=on,wait=off"),
            "-device".to_owned(),
            "virtio-serial-device,max_ports=2".to_owned(),
            "-device".to_owned(),
            "virtserialport,chardev=agent,name=agent".to_owned(),
        ]);
        devices(&mut line, &mut plan);
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

/// Without ACPI a kernel that can do without boots faster, but has one processor and few devices.
fn needs_acpi(plan: &Plan) -> bool {
    // Beside the networks: the serial port, the files and the balloon.
    let devices = plan.taps.len() + 3;
    let can = plan.image.abilities.command_line_devices && plan.accel != Accel::Kvm;
    !can || plan.vcpus > 1 || devices > SLOTS_WITHOUT_ACPI
}

/// The machine. A kernel with ACPI does not use the old interrupt controller, which the firmware of QEMU
/// 10 leaves as it was at its reset: a tick of the old timer would come as exception 0, a division by zero.
fn microvm(acpi: bool) -> String {
    let acpi = if acpi { "acpi=on,pic=off" } else { "acpi=off" };
    format!("microvm,{acpi},isa-serial=on,memory-backend=memory")
}

fn basics(line: &mut Line, plan: &Plan) {
    let (accel, cpu) = match plan.accel {
        Accel::Kvm => ("kvm".to_owned(), "host"),
        Accel::Tcg | Accel::Auto => (format!("tcg,tb-size={TRANSLATED}"), EMULATED),
    };
    let memory = plan.memory;
    let microvm = microvm(needs_acpi(plan));
    line.add([
        "-M",
        &microvm,
        "-accel",
        &accel,
        "-cpu",
        cpu,
        "-global",
        "virtio-mmio.force-legacy=false",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]);
    for dir in &plan.program.data {
        line.add(["-L".to_owned(), dir.display().to_string()]);
    }
    line.add([
        "-name".to_owned(),
        format!("guest={}", plan.name.replace(',', ",,")),
        "-m".to_owned(),
        format!("{memory}M"),
        "-smp".to_owned(),
        plan.vcpus.to_string(),
        "-object".to_owned(),
        format!("memory-backend-memfd,id=memory,size={memory}M,share=on,dump=off"),
    ]);
}

/// The files and the networks, which it takes out of the plan; and the balloon, by which the guest says
/// what memory it has freed, so that the host has it again.
fn devices(line: &mut Line, plan: &mut Plan) {
    line.add(["-device", "virtio-balloon-device,free-page-reporting=on"]);
    if let Some(files) = plan.files.take() {
        let files = line.fd(files);
        line.add([
            "-chardev".to_owned(),
            format!("socket,id=files,fd={files}"),
            "-device".to_owned(),
            format!("vhost-user-fs-device,chardev=files,tag={SHARE_TAG},queue-size=1024"),
        ]);
    }
    for (n, tap) in std::mem::take(&mut plan.taps).into_iter().enumerate() {
        let fd = line.fd(tap.fd);
        line.add([
            "-netdev".to_owned(),
            format!("tap,id=net{n},fd={fd}"),
            "-device".to_owned(),
            format!("virtio-net-device,netdev=net{n},mac={}", tap.mac),
        ]);
    }
}

/// The kernel's command line.
fn append(accel: Accel, kernel: Abilities, khz: u64) -> String {
    let mut words = String::from(
        "console=ttyS0 quiet reboot=t oops=panic panic=-1 noreplace-smp cryptomgr.notests rootfstype=ramfs",
    );
    if accel != Accel::Kvm {
        words.push_str(&format!(" tsc=reliable tsc_early_khz={khz}"));
        if !kernel.zeroes_file_pages {
            words.push_str(" init_on_alloc=1");
        }
    }
    words
}

/// How fast the host's processor counts, in kHz; any plausible number will do.
fn host_khz() -> u64 {
    let info = task::proc::text("/proc/cpuinfo").unwrap_or_default();
    let mhz = info
        .lines()
        .find_map(|line| line.strip_prefix("cpu MHz")?.split_once(':'))
        .and_then(|(_, mhz)| mhz.trim().parse::<f64>().ok());
    (mhz.unwrap_or(2000.0).clamp(100.0, 10_000.0) * 1000.0) as u64
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

#[cfg(test)]
mod tests {
    use super::*;

    /// V13: what keeps boots without KVM from hanging, and those of QEMU 10 from failing.
    #[test]
    fn the_command_lines_carry_what_was_learnt() {
        let unknown = Abilities::default();
        let tcg = append(Accel::Tcg, unknown, 2_596_096);
        for word in [
            "tsc_early_khz=2596096",
            "tsc=reliable",
            "init_on_alloc=1",
            "noreplace-smp",
            "cryptomgr.notests",
            "oops=panic",
            "panic=-1",
            "rootfstype=ramfs",
        ] {
            assert!(tcg.split(' ').any(|has| has == word), "{word}: {tcg}");
        }
        assert!(!append(Accel::Kvm, unknown, 1).contains("tsc"));
        let ours = Abilities {
            zeroes_file_pages: true,
            ..unknown
        };
        assert!(!append(Accel::Tcg, ours, 1).contains("init_on_alloc"));
        assert!((100_000..=10_000_000).contains(&host_khz()));
        assert!(EMULATED.contains(",-cx16") && EMULATED.contains(",+arat"));
        assert!(microvm(true).contains("pic=off") && !microvm(false).contains("pic="));
    }
}
