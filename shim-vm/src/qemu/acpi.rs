// SPDX-License-Identifier: Apache-2.0
//! An ACPI table (SSDT) that tells a kernel of places for devices, and the archive in which it finds it
//! (Documentation/admin-guide/acpi/initrd_table_override.rst).
//!
//! The bytes are those of the ACPI specification, chapter 20 (AML): no compiler of it is needed for so
//! little.

use super::slots::Slot;

/// AML's words, as far as they are said here.
const SCOPE: u8 = 0x10;
const NAME: u8 = 0x08;
const BUFFER: u8 = 0x11;
const BYTE: u8 = 0x0a;
const STRING: u8 = 0x0d;
const ONE: u8 = 0x01;
const DEVICE: [u8; 2] = [0x5b, 0x82];
/// What the kernel's driver of virtio-mmio goes by.
const VIRTIO_MMIO: &[u8] = b"LNRO0005\0";
/// A table's header, and where its checksum is.
const HEADER: usize = 36;
const CHECKSUM: usize = 9;
/// Where the kernel looks for tables.
const DIRECTORIES: [&str; 3] = ["kernel", "kernel/firmware", "kernel/firmware/acpi"];
const FILE: &str = "kernel/firmware/acpi/late.aml";

/// A table that names these places.
pub fn table(slots: impl Iterator<Item = Slot>) -> Vec<u8> {
    let mut scope = b"\\_SB_".to_vec();
    for slot in slots {
        scope.extend(DEVICE);
        scope.extend(package(&device(slot)));
    }
    let mut body = vec![SCOPE];
    body.extend(package(&scope));
    let length = (HEADER + body.len()) as u32;
    let mut table = b"SSDT".to_vec();
    table.extend(length.to_le_bytes());
    // The revision, and the sum that is set below.
    table.extend([2, 0]);
    table.extend(b"DUNNAGLATESLOT");
    table.extend(1_u32.to_le_bytes());
    table.extend(b"DUNN");
    table.extend(1_u32.to_le_bytes());
    table.extend(body);
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[CHECKSUM] = sum.wrapping_neg();
    table
}

/// What is said of one device.
fn device(slot: Slot) -> Vec<u8> {
    // A range of memory of 32 bits that can be written to, and an interrupt by level.
    let mut resources = vec![0x86, 9, 0, 1];
    resources.extend(slot.address.to_le_bytes());
    resources.extend(slot.size.to_le_bytes());
    resources.extend([0x89, 6, 0, 1, 1]);
    resources.extend(slot.irq.to_le_bytes());
    resources.extend([0x79, 0]);
    let mut buffer = vec![BYTE, resources.len() as u8];
    buffer.extend(resources);
    let mut said = format!("VL{:02}", slot.number).into_bytes();
    let mut name = |name: &[u8], value: &[u8]| {
        said.push(NAME);
        said.extend(name);
        said.extend(value);
    };
    name(b"_HID", &[&[STRING], VIRTIO_MMIO].concat());
    name(b"_UID", &[BYTE, slot.number]);
    name(b"_CCA", &[ONE]);
    name(b"_CRS", &[vec![BUFFER], package(&buffer)].concat());
    said
}

/// `body`, after its length and that length's own.
fn package(body: &[u8]) -> Vec<u8> {
    let mut all = match body.len() {
        length @ 0..0x3f => vec![length as u8 + 1],
        length => {
            let length = length + 2;
            vec![0x40 | (length & 0xf) as u8, (length >> 4) as u8]
        }
    };
    all.extend(body);
    all
}

/// A cpio archive (newc) with the table.
pub fn archive(table: &[u8]) -> Vec<u8> {
    const DIRECTORY: u32 = 0o040_755;
    const REGULAR: u32 = 0o100_644;
    let mut all = Vec::new();
    let directories = DIRECTORIES.iter().map(|name| (*name, DIRECTORY, &[][..]));
    let files = [(FILE, REGULAR, table), ("TRAILER!!!", 0, &[][..])];
    for (n, (name, mode, content)) in directories.chain(files).enumerate() {
        let (size, length) = (content.len(), name.len() + 1);
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{length:08x}{:08x}",
            n + 1,
            0,
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            0
        );
        all.extend(header.into_bytes());
        all.extend(name.as_bytes());
        all.push(0);
        pad(&mut all, 4);
        all.extend(content);
        pad(&mut all, 4);
    }
    // Of a length that QEMU 10 leaves alone (etc/shim-vm.toml, `initrd`).
    pad(&mut all, 4096);
    all
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots() -> impl Iterator<Item = Slot> {
        (20..25).map(|number| Slot {
            number,
            address: 0xfeb0_0000 + u32::from(number) * 512,
            size: 512,
            irq: 24 + u32::from(number),
        })
    }

    #[test]
    fn a_table_has_its_length_and_adds_up_to_nothing() {
        let table = table(slots());
        assert_eq!(table[4..8], (table.len() as u32).to_le_bytes());
        let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0);
        // The scope's own length, in two bytes.
        assert_eq!(table[HEADER], SCOPE);
        let (low, high) = (table[HEADER + 1], table[HEADER + 2]);
        assert_eq!(low >> 6, 1, "one more byte");
        let length = usize::from(low & 0xf) | usize::from(high) << 4;
        assert_eq!(HEADER + 1 + length, table.len());
        for name in [&b"VL20"[..], b"VL24", b"LNRO0005"] {
            assert!(table.windows(name.len()).any(|window| window == name));
        }
    }

    #[test]
    fn the_archive_ends_where_another_may_follow() {
        let archive = archive(&table(slots()));
        assert_eq!(archive.len() % 4096, 0);
        assert!(archive.starts_with(b"070701"));
    }
}
