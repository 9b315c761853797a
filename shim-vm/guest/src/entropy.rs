// SPDX-License-Identifier: Apache-2.0
//! The kernel's random numbers, which a VM can't gather for a while after it has booted: until then
//! getrandom(2) blocks.
#![allow(unsafe_code, reason = "two ioctls that nix has no function for")]

use nix::libc;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// What one call takes.
const MOST: usize = 64;

/// `struct rand_pool_info` of linux/random.h.
#[repr(C)]
struct Pool {
    /// In bits.
    entropy: libc::c_int,
    /// In bytes.
    size: libc::c_int,
    bytes: [u8; MOST],
}

nix::ioctl_write_ptr_bad!(
    add_entropy,
    nix::request_code_write!(b'R', 3, size_of::<[libc::c_int; 2]>()),
    Pool
);

/// Adds `seed`, every bit of which nobody can guess (random(4), RNDADDENTROPY).
///
/// # Errors
/// From the ioctl; if there are more than [`MOST`] bytes.
pub fn add(seed: &[u8]) -> io::Result<()> {
    let mut pool = Pool {
        entropy: (8 * seed.len()) as libc::c_int,
        size: seed.len() as libc::c_int,
        bytes: [0; MOST],
    };
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "over 64 bytes");
    let bytes = pool.bytes.get_mut(..seed.len()).ok_or_else(too_long)?;
    bytes.copy_from_slice(seed);
    let random = File::open("/dev/random")?;
    // SAFETY: the struct is as the ioctl has it, says its own size, and outlives the call.
    unsafe { add_entropy(random.as_raw_fd(), &raw const pool) }?;
    Ok(())
}

nix::ioctl_none!(reseed_generators, b'R', 7);

/// Has every generator of random numbers begin anew with what the kernel has gathered (random(4),
/// RNDRESEEDCRNG).
///
/// # Errors
/// From the ioctl.
pub fn reseed() -> io::Result<()> {
    let random = File::open("/dev/random")?;
    // SAFETY: the ioctl takes nothing.
    unsafe { reseed_generators(random.as_raw_fd()) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_is_too_long_is_refused() {
        let refused = add(&[7; MOST + 1]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}
