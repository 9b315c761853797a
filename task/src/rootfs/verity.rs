// SPDX-License-Identifier: Apache-2.0
//! Images that carry the hashes of their blocks, which are checked at each read: device-mapper's
//! target `verity` (Documentation/admin-guide/device-mapper/verity.rst).

use super::loopdev::Failure;
use crate::sys::mapper::{Mapper, Target};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What says that an image is the one that was meant, as containerd's `.dmverity` files have it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Verity {
    /// In hexadecimal digits.
    #[serde(rename = "roothash")]
    pub root_hash: String,
    /// Where in the image its hashes begin, in bytes.
    #[serde(rename = "hashoffset")]
    pub hash_offset: u64,
}

/// A device, open; it ends with its last user, the mount, or when this is dropped without one.
pub(super) struct Device {
    pub path: PathBuf,
    _open: File,
}

/// What describes the hashes, before them (cryptsetup's on-disk format, version 1).
struct Superblock {
    hash_type: u32,
    algorithm: String,
    data_block: u32,
    hash_block: u32,
    data_blocks: u64,
    salt: String,
}

const SIGNATURE: &[u8] = b"verity\0\0";
const SUPERBLOCK: usize = 512;
const SECTOR: u64 = 512;
/// The longest digest of Linux's, in hexadecimal digits.
const LONGEST_HASH: usize = 128;

/// Of devices that this process has made.
static MADE: AtomicU64 = AtomicU64::new(0);

/// Makes a device of the image on `device`, a block device, that gives out only what the root hash
/// stands for.
pub(super) fn open(device: &Path, verity: &Verity) -> Result<Device, Failure> {
    let failed = |doing: &'static str, path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| Failure { doing, path, error }
    };
    let table = table(device, verity).map_err(failed("read the hashes of", device))?;
    let mapper = Mapper::open().map_err(failed("open", Path::new(Mapper::CONTROL)))?;
    let made = MADE.fetch_add(1, Ordering::Relaxed);
    let name = format!("dunnage-{}-{made}", std::process::id());
    let path = mapper.make_readonly(&name, &table);
    let path = path.map_err(failed("check the blocks of", device))?;
    let open = File::open(&path).map_err(failed("open", &path));
    // From here on it is gone with whoever has it open.
    let removed = mapper.remove_when_unused(&name);
    removed.map_err(failed("let go of", &path))?;
    Ok(Device { _open: open?, path })
}

fn table(device: &Path, verity: &Verity) -> io::Result<Target> {
    let hash = &verity.root_hash;
    if hash.is_empty() || hash.len() > LONGEST_HASH || !hash.bytes().all(|b| b.is_ascii_hexdigit())
    {
        let why = format!("root hash {hash:?}: not {LONGEST_HASH} hexadecimal digits or fewer");
        return Err(io::Error::other(why));
    }
    let mut bytes = [0; SUPERBLOCK];
    File::open(device)?.read_exact_at(&mut bytes, verity.hash_offset)?;
    let about = Superblock::parse(&bytes).map_err(|what| {
        let at = verity.hash_offset;
        io::Error::other(format!("no description of hashes at byte {at}: {what}"))
    })?;
    let hash_block = u64::from(about.hash_block);
    let first = (verity.hash_offset + SUPERBLOCK as u64).div_ceil(hash_block);
    let length = about.data_blocks.checked_mul(u64::from(about.data_block));
    let length = length.ok_or_else(|| io::Error::other("more blocks than there can be"))?;
    let device = device.display();
    Ok(Target {
        kind: "verity",
        sectors: length / SECTOR,
        arguments: format!(
            "{} {device} {device} {} {} {} {first} {} {hash} {}",
            about.hash_type,
            about.data_block,
            about.hash_block,
            about.data_blocks,
            about.algorithm,
            about.salt,
        ),
    })
}

impl Superblock {
    /// What is wrong otherwise.
    fn parse(bytes: &[u8; SUPERBLOCK]) -> Result<Self, &'static str> {
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if &bytes[..8] != SIGNATURE || number(8) != 1 {
            return Err("not of cryptsetup's version 1");
        }
        let algorithm: String = bytes[32..64]
            .iter()
            .take_while(|&&byte| byte != 0)
            .map(|&byte| char::from(byte))
            .collect();
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_()".contains(c);
        if algorithm.is_empty() || !algorithm.chars().all(is_name) {
            return Err("no name of an algorithm");
        }
        let (data_block, hash_block) = (number(64), number(68));
        let is_size = |size: u32| size.is_power_of_two() && (512..=1 << 16).contains(&size);
        if !is_size(data_block) || !is_size(hash_block) {
            return Err("no size of blocks");
        }
        let data_blocks = u64::from_le_bytes(std::array::from_fn(|i| bytes[72 + i]));
        let salt = usize::from(u16::from_le_bytes([bytes[80], bytes[81]]));
        let salt = bytes.get(88..88 + salt.min(256)).unwrap_or_default();
        let salt: String = salt.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            hash_type: number(12),
            algorithm,
            data_block,
            hash_block,
            data_blocks,
            salt: if salt.is_empty() { "-".into() } else { salt },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> [u8; SUPERBLOCK] {
        let mut bytes = [0; SUPERBLOCK];
        bytes[..8].copy_from_slice(SIGNATURE);
        bytes[8] = 1;
        bytes[12] = 1;
        bytes[32..38].copy_from_slice(b"sha256");
        bytes[64..68].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[68..72].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[72..80].copy_from_slice(&3_u64.to_le_bytes());
        bytes[80] = 2;
        bytes[88..90].copy_from_slice(&[0xab, 1]);
        bytes
    }

    #[test]
    fn a_table_is_made_of_what_stands_before_the_hashes() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let mut content = vec![0; 3 * 4096];
        content.extend(superblock());
        std::fs::write(image.path(), content).unwrap();
        let verity = Verity {
            root_hash: "0a".repeat(32),
            hash_offset: 3 * 4096,
        };
        let made = table(image.path(), &verity).unwrap();
        let path = image.path().display();
        assert_eq!(made.sectors, 24);
        let hash = "0a".repeat(32);
        let expected = format!("1 {path} {path} 4096 4096 3 4 sha256 {hash} ab01");
        assert_eq!(made.arguments, expected);
    }

    #[test]
    fn what_is_wrong_with_a_description_is_named() {
        for (at, byte, why) in [
            (0, b'x', "not of cryptsetup's"),
            (32, 0, "no name of an algorithm"),
            (33, b' ', "no name of an algorithm"),
            (65, 3, "no size of blocks"),
        ] {
            let mut bytes = superblock();
            bytes[at] = byte;
            let Err(found) = Superblock::parse(&bytes) else {
                panic!("byte {at}");
            };
            assert!(found.contains(why), "byte {at}: {found}");
        }
        let image = tempfile::NamedTempFile::new().unwrap();
        for hash in ["", "xy", &"0".repeat(129)] {
            let verity = Verity {
                root_hash: hash.into(),
                hash_offset: 0,
            };
            let why = table(image.path(), &verity).err().unwrap().to_string();
            assert!(why.starts_with(&format!("root hash {hash:?}")), "{why}");
        }
    }
}
