// SPDX-License-Identifier: Apache-2.0
//! QEMU's command line, and the kernel's.

use super::slots::{self, Slots};
use super::{FIRST_FD, INITRD, KERNEL};
use crate::config::Accel;
use crate::image::Abilities;
use crate::machine::{Begins, Plan, SHARE_TAG};
use std::os::fd::OwnedFd;

/// The processor, without KVM.
const EMULATED: &str = "qemu64,-cx16,+arat";
/// MiB of translated code that are kept, without KVM; left to itself QEMU takes up to 1024.
const TRANSLATED: u32 = 128;
/// As QEMU finds the file with what a machine was, which it was given open.
const STATE: &str = "/dev/fdset/1";
/// The same of what it was not given when it began, and is saved to.
pub const SAVED: u32 = 2;

/// Collects QEMU's arguments, and the fds they name.
#[derive(Default)]
pub struct Line {
    pub arguments: Vec<String>,
    pub fds: Vec<OwnedFd>,
}

impl Line {
    pub fn add(&mut self, arguments: impl IntoIterator<Item = impl Into<String>>) {
        self.arguments.extend(arguments.into_iter().map(Into::into));
    }

    /// The number under which QEMU has `fd`.
    pub fn fd(&mut self, fd: impl Into<OwnedFd>) -> i32 {
        self.fds.push(fd.into());
        FIRST_FD + self.fds.len() as i32 - 1
    }
}

/// Whether a machine with so many networks needs ACPI. Without it a kernel that can do without boots faster,
/// but has one processor and few devices.
pub fn needs_acpi(kernel: Abilities, accel: Accel, vcpus: u32, networks: usize) -> bool {
    let can = kernel.command_line_devices && accel != Accel::Kvm;
    !can || vcpus > 1 || slots::FIRST_NETWORK + networks > slots::WITHOUT_ACPI
}

/// The places of the devices of such a machine. One of which others are made has as many as these.
pub fn slots(plan: &Plan) -> Slots {
    let networks = match plan.begins {
        Begins::Booted => plan.taps.len(),
        Begins::Template(_) | Begins::Restored(_) => slots::NETWORKS,
        Begins::Saved { acpi, .. } => return Slots { acpi },
    };
    let (kernel, accel) = (plan.image.abilities, plan.accel);
    Slots {
        acpi: needs_acpi(kernel, accel, plan.vcpus, networks),
    }
}

/// The machine. A kernel with ACPI does not use the old interrupt controller, which the firmware of QEMU
/// 10 leaves as it was at its reset: a tick of the old timer would come as exception 0, a division by zero.
fn microvm(acpi: bool) -> String {
    let acpi = if acpi { "acpi=on,pic=off" } else { "acpi=off" };
    format!("microvm,{acpi},isa-serial=on,memory-backend=memory")
}

/// What such a machine is, wherever it runs.
pub fn machine(accel: Accel, memory: u64, vcpus: u32, acpi: bool) -> Vec<String> {
    let (accel, cpu) = match accel {
        Accel::Kvm => ("kvm".to_owned(), "host"),
        Accel::Tcg | Accel::Auto => (format!("tcg,tb-size={TRANSLATED}"), EMULATED),
    };
    let (microvm, vcpus) = (microvm(acpi), vcpus.to_string());
    let ram = format!("memory-backend-memfd,id=memory,size={memory}M,share=on,dump=off");
    let memory = format!("{memory}M");
    let words = [
        ["-M", &microvm],
        ["-accel", &accel],
        ["-cpu", cpu],
        ["-global", "virtio-mmio.force-legacy=false"],
        ["-m", &memory],
        ["-smp", &vcpus],
        ["-object", &ram],
    ];
    words.into_iter().flatten().map(str::to_owned).collect()
}

pub fn basics(line: &mut Line, plan: &Plan) {
    let acpi = slots(plan).acpi;
    line.add(machine(plan.accel, plan.memory, plan.vcpus, acpi));
    line.add([
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
    let name = format!("guest={}", plan.name.replace(',', ",,"));
    line.add(["-name".to_owned(), name]);
}

/// What it begins with: its kernel, or what another was.
pub fn beginning(line: &mut Line, plan: &mut Plan) {
    let slots = slots(plan);
    let words = append(plan.accel, plan.image.abilities, host_khz());
    line.add(["-kernel", KERNEL]);
    match std::mem::take(&mut plan.begins) {
        Begins::Booted => line.add(["-initrd", INITRD, "-append", &words]),
        Begins::Template(state) => {
            let words = format!("{words}{}", slots.words());
            line.add(["-initrd", INITRD, "-append", &words]);
            let state = line.fd(state);
            line.add(["-add-fd".to_owned(), format!("fd={state},set=1")]);
        }
        Begins::Restored(state) => {
            line.add(["-global", "migration.mapped-ram=on"]);
            goes_on(line, state, &saved_to());
        }
        Begins::Saved { state, .. } => goes_on(line, state, "defer"),
    }
    if let Some(monitor) = plan.monitor.take() {
        let monitor = line.fd(monitor);
        line.add([
            "-chardev".to_owned(),
            format!("socket,id=monitor,fd={monitor}"),
            "-mon".to_owned(),
            "chardev=monitor,mode=control".to_owned(),
        ]);
    }
}

/// As the one that was saved to this file.
fn goes_on(line: &mut Line, state: OwnedFd, incoming: &str) {
    let state = line.fd(state);
    line.add([
        // The networks have heard of no other place that these machines were at.
        "-global",
        "migration.announce-rounds=0",
        "-add-fd",
        &format!("fd={state},set=1"),
        "-incoming",
        incoming,
    ]);
}

/// Where a machine is saved to, and restored from (QEMU's migration).
pub fn saved_to() -> String {
    format!("file:{STATE}")
}

/// The files and the networks, which it takes out of the plan; and the balloon, by which the guest says
/// what memory it has freed, so that the host has it again.
pub fn devices(line: &mut Line, slots: &Slots, plan: &mut Plan) {
    let bus = slots.bus(slots::BALLOON);
    let balloon = format!("virtio-balloon-device,free-page-reporting=on,bus={bus}");
    line.add(["-device", &balloon]);
    if let Some(files) = plan.files.take() {
        let (files, bus) = (line.fd(files), slots.bus(slots::FILES));
        line.add([
            "-chardev".to_owned(),
            format!("socket,id=files,fd={files}"),
            "-device".to_owned(),
            format!("vhost-user-fs-device,chardev=files,tag={SHARE_TAG},queue-size=1024,bus={bus}"),
        ]);
    }
    for (n, tap) in std::mem::take(&mut plan.taps).into_iter().enumerate() {
        let (fd, bus) = (line.fd(tap.fd), slots.bus(slots::FIRST_NETWORK + n));
        line.add([
            "-netdev".to_owned(),
            format!("tap,id=net{n},fd={fd}"),
            "-device".to_owned(),
            format!("virtio-net-device,netdev=net{n},mac={},bus={bus}", tap.mac),
        ]);
    }
}

/// The kernel's command line.
pub fn append(accel: Accel, kernel: Abilities, khz: u64) -> String {
    let mut words = String::from(
        "console=ttyS0 quiet reboot=t oops=panic panic=-1 noreplace-smp cryptomgr.notests rootfstype=ramfs \
         dummy.numdummies=0",
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
            "dummy.numdummies=0",
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
