// SPDX-License-Identifier: Apache-2.0
//! The part of the unsafe list that is about device-mapper (linux/dm-ioctl.h).

use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// Device-mapper's control device, open.
pub struct Mapper(File);

/// A device of one target.
pub struct Target {
    pub kind: &'static str,
    /// How large it is, in sectors of 512 bytes.
    pub sectors: u64,
    pub arguments: String,
}

/// Bytes of `struct dm_ioctl`, and where in it which field is.
const HEADER: usize = 312;
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGETS: usize = 20;
const FLAGS: usize = 28;
const DEVICE: usize = 40;
const NAME: usize = 48;
const LONGEST_NAME: usize = 127;
/// Bytes of `struct dm_target_spec`, which a target's arguments follow.
const SPEC: usize = 40;

const READONLY: u32 = 1 << 0;
const DEFERRED: u32 = 1 << 17;

/// The numbers of the calls.
#[derive(Clone, Copy)]
enum Call {
    Create = 3,
    Remove = 4,
    /// Without a flag that says otherwise it resumes.
    Suspend = 6,
    Load = 9,
}

impl Mapper {
    pub const CONTROL: &str = "/dev/mapper/control";

    /// # Errors
    /// From open(2): without the driver there is no such device.
    pub fn open() -> io::Result<Self> {
        let control = File::options().read(true).write(true).open(Self::CONTROL);
        control.map(Self)
    }

    /// Makes a device `name` that can't be written to; its path.
    ///
    /// # Errors
    /// From the kernel; nothing is left of it.
    pub fn make_readonly(&self, name: &str, target: &Target) -> io::Result<PathBuf> {
        let made = self.call(Call::Create, name, 0, None)?;
        let device = u64::from_ne_bytes(std::array::from_fn(|i| made[DEVICE + i]));
        let ready = self.call(Call::Load, name, READONLY, Some(target));
        let ready = ready.and_then(|_| self.call(Call::Suspend, name, READONLY, None));
        if let Err(e) = ready {
            let _ = self.call(Call::Remove, name, 0, None);
            return Err(e);
        }
        Ok(format!("/dev/dm-{}", minor(device)).into())
    }

    /// Removes the device `name` as soon as nobody has it open.
    ///
    /// # Errors
    /// From the kernel.
    pub fn remove_when_unused(&self, name: &str) -> io::Result<()> {
        self.call(Call::Remove, name, DEFERRED, None).map(drop)
    }

    /// Calls the kernel; what it has written.
    fn call(
        &self,
        call: Call,
        name: &str,
        flags: u32,
        target: Option<&Target>,
    ) -> io::Result<Vec<u8>> {
        if name.len() > LONGEST_NAME {
            return Err(Errno::ENAMETOOLONG.into());
        }
        let mut data = vec![0_u8; HEADER];
        let mut set =
            |at: usize, value: u32| data[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        set(0, 4); // the version of the interface
        set(DATA_START, HEADER as u32);
        set(TARGETS, u32::from(target.is_some()));
        set(FLAGS, flags);
        data[NAME..NAME + name.len()].copy_from_slice(name.as_bytes());
        if let Some(target) = target {
            let mut spec = [0; SPEC];
            spec[8..16].copy_from_slice(&target.sectors.to_ne_bytes());
            spec[24..24 + target.kind.len()].copy_from_slice(target.kind.as_bytes());
            data.extend(spec);
            data.extend(target.arguments.as_bytes());
            // The text ends with a NUL, and what may follow it is aligned.
            data.resize((data.len() + 1).next_multiple_of(8), 0);
        }
        let size = u32::try_from(data.len()).map_err(|_| Errno::E2BIG)?;
        data[DATA_SIZE..DATA_SIZE + 4].copy_from_slice(&size.to_ne_bytes());
        let number = request(call);
        // SAFETY: the kernel reads and writes as many bytes as the header says, which are the
        // vector's, and keeps no reference to them.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), number as _, data.as_mut_ptr()) };
        Errno::result(done)?;
        Ok(data)
    }
}

/// `_IOWR(0xfd, call, struct dm_ioctl)`.
fn request(call: Call) -> u64 {
    3 << 30 | (HEADER as u64) << 16 | 0xfd << 8 | call as u64
}

/// Of a device's number as the kernel tells it (`huge_encode_dev`).
fn minor(device: u64) -> u64 {
    (device & 0xff) | (device >> 12 & !0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_kernels() {
        assert_eq!(request(Call::Create), 0xc138_fd03);
        assert_eq!(request(Call::Load), 0xc138_fd09);
        // Major 253, minor 300.
        assert_eq!(minor(0x10_fd2c), 300);
    }
}
