// SPDX-License-Identifier: Apache-2.0
//! Where a machine's devices are: places that its kernel is told of when it boots (virtio-mmio). There is no
//! other way to a device here, and none can be plugged in while the machine runs; but a machine that goes on
//! as another was may have devices in places that were empty then, if the kernel knew of the places.

use super::acpi;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The devices, in the order of their places.
pub const SERIAL: usize = 0;
pub const BALLOON: usize = 1;
pub const FILES: usize = 2;
pub const FIRST_NETWORK: usize = 3;
/// Networks that a machine may have that is made of another.
pub const NETWORKS: usize = 4;
/// Places that there are (hw/i386/microvm.c), and the interrupt of the first.
pub const WITHOUT_ACPI: usize = 8;
const WITH_ACPI: usize = 24;
const IRQ_WITHOUT_ACPI: usize = 5;
const IRQ_WITH_ACPI: usize = 24;
/// Where the first is, and how large each.
const BASE: usize = 0xfeb0_0000;
const SIZE: usize = 512;
/// What tells the agent that its machine is one of which others are made (guest/src/late.rs).
const TEMPLATE: &str = "dunnage.template";

/// The places of a machine with ACPI, or without.
pub struct Slots {
    pub acpi: bool,
}

/// A place, as a kernel must know it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slot {
    pub number: u8,
    pub address: u32,
    pub size: u32,
    pub irq: u32,
}

impl Slots {
    /// The last place is the first that is taken, as QEMU does it by itself.
    fn number(&self, device: usize) -> usize {
        let count = if self.acpi { WITH_ACPI } else { WITHOUT_ACPI };
        count.saturating_sub(device + 1)
    }

    /// The bus of QEMU's that this device is on.
    pub fn bus(&self, device: usize) -> String {
        format!("virtio-mmio-bus.{}", self.number(device))
    }

    /// The places where nothing is yet in a machine of which others are made.
    fn late(&self) -> impl Iterator<Item = Slot> {
        let first = if self.acpi {
            IRQ_WITH_ACPI
        } else {
            IRQ_WITHOUT_ACPI
        };
        let numbers = (FILES..FIRST_NETWORK + NETWORKS).map(|device| self.number(device));
        numbers.map(move |number| Slot {
            number: number as u8,
            address: (BASE + number * SIZE) as u32,
            size: SIZE as u32,
            irq: (first + number) as u32,
        })
    }

    /// What the kernel's command line says of them, beside what it says of others.
    pub fn words(&self) -> String {
        let mut words = format!(" {TEMPLATE}");
        if !self.acpi {
            for slot in self.late() {
                let Slot {
                    address, size, irq, ..
                } = slot;
                words.push_str(&format!(" virtio_mmio.device={size}@{address:#x}:{irq}"));
            }
        }
        words
    }

    /// With ACPI a table says it, which a kernel finds before its initial root (CONFIG_ACPI_TABLE_UPGRADE):
    /// makes such an `initrd` of this one, in the directory `dir`.
    ///
    /// # Errors
    /// If it can't be read, or written.
    pub fn put_tables(&self, initrd: &mut PathBuf, dir: &Path) -> io::Result<()> {
        if !self.acpi {
            return Ok(());
        }
        let mut all = acpi::archive(&acpi::table(self.late()));
        all.extend(fs::read(&*initrd)?);
        *initrd = dir.join("initrd");
        fs::write(initrd, all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_are_those_of_qemu() {
        let (plain, acpi) = (Slots { acpi: false }, Slots { acpi: true });
        assert_eq!(plain.bus(SERIAL), "virtio-mmio-bus.7");
        assert_eq!(acpi.bus(FILES), "virtio-mmio-bus.21");
        let words = plain.words();
        assert!(words.starts_with(" dunnage.template virtio_mmio.device=512@0xfeb00a00:10 "));
        assert_eq!(words.matches("virtio_mmio").count(), 1 + NETWORKS);
        assert_eq!(acpi.words(), " dunnage.template");
        let first = acpi.late().next().unwrap();
        let files = Slot {
            number: 21,
            address: 0xfeb0_2a00,
            size: 512,
            irq: 45,
        };
        assert_eq!(first, files);
    }
}
