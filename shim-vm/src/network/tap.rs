// SPDX-License-Identifier: Apache-2.0
//! Taps: what the kernel sends there, QEMU reads (Documentation/networking/tuntap.rst).
#![allow(unsafe_code, reason = "one ioctl that nix has no function for")]

use netlink::route::link::{LinkAttribute, LinkFlags};
use netlink::{Link, Netlink};
use nix::libc;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

nix::ioctl_write_ptr_bad!(
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// The name of a veth's tap: not that of any other device of its namespace.
pub fn name(veth: &Link) -> String {
    format!("dunnage{}", veth.index)
}

/// Makes the tap of this name in the thread's network namespace, for QEMU: without the packet
/// information that nobody reads, with the header that carries offloads.
///
/// # Errors
/// The kernel's.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let why = |e: io::Error| io::Error::new(e.kind(), format!("/dev/net/tun: {e}"));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(why)?;
    // SAFETY: all zeroes is a value of this C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = i16::from_ne_bytes((flags as u16).to_ne_bytes());
    // SAFETY: the struct outlives the call, and its name ends with a zero.
    unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) }
        .map_err(|e| why(io::Error::from(e)))?;
    Ok(file.into())
}

/// Sends the device `from` of the thread's network namespace to another, as `name`.
///
/// # Errors
/// If it is not here, or there is one of that name there; the kernel's.
pub fn send(netlink: &mut Netlink, from: &str, namespace: impl AsFd, name: &str) -> io::Result<()> {
    let found = netlink.links()?.into_iter().find(|link| link.name == from);
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no device {from}"));
    let index = found.ok_or_else(missing)?.index;
    let to = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()),
    ];
    netlink.set_link(index, LinkFlags::empty(), LinkFlags::empty(), to)
}

/// Has it carry packets, as large as those of its veth.
///
/// # Errors
/// The kernel's.
pub fn set_up(netlink: &mut Netlink, index: u32, mtu: u32) -> io::Result<()> {
    let mtu = vec![LinkAttribute::Mtu(mtu)];
    netlink.set_link(index, LinkFlags::Up, LinkFlags::Up, mtu)
}
