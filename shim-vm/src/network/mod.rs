//! The container's network, moved into its VM: each veth of its network namespace gets a tap
//! beside it, and every packet that arrives at one leaves by the other.
//!
//! ```text
//!  host                      the container's network namespace            VM
//!  bridge ── veth ── pair ── eth0 ──ingress──> redirect ──> dunnage7 ── fd ── virtio-net
//!                            eth0 <── redirect <──ingress── dunnage7
//! ```
//!
//! The interface in the VM has eth0's MAC address, MTU, addresses, routes and permanent
//! neighbours, so that nobody can tell it from the container itself. eth0 keeps what it has; it
//! hears nothing any more. Whoever makes the namespace, CNI in the field, knows nothing of this.

mod namespace;
mod redirect;
mod tap;
#[cfg(test)]
mod tests;

use netlink::{Link, Netlink};
use nix::sched::{CloneFlags, setns};
use protos::guest::{Interface, Neighbour, Route};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

/// What a VM gets of a network namespace.
#[derive(Debug, Default)]
pub struct Network {
    /// One for each of `taps`, in the same order.
    pub interfaces: Vec<Interface>,
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
    pub taps: Vec<Tap>,
}

/// A tap and the address of the device behind it.
#[derive(Debug)]
pub struct Tap {
    /// For QEMU's `-netdev tap,fd=`, with a virtio-net header. The tap lives as long as it is
    /// open anywhere, so whoever gave it to QEMU closes it.
    pub fd: OwnedFd,
    /// For QEMU's `-device virtio-net-device,mac=`.
    pub mac: String,
}

/// Connects a VM to the network namespace at `netns`; to nothing if it has no veth.
///
/// What an earlier VM left there is replaced. Blocks for some milliseconds.
///
/// # Errors
/// If `netns` is not a network namespace, or the host's own; if another VM has its network; if
/// one of its devices has an ingress qdisc of somebody else; the kernel's.
pub fn attach(netns: &Path) -> io::Result<Network> {
    within(netns, || {
        let mut netlink = Netlink::open()?;
        let links = netlink.links()?;
        let veths: Vec<&Link> = links.iter().filter(|link| link.veth).collect();
        let mut network = namespace::read(&mut netlink, &veths)?;
        for (done, veth) in veths.iter().enumerate() {
            match connect(&mut netlink, &links, veth) {
                Ok(fd) => network.taps.push(Tap {
                    fd,
                    mac: veth.mac.clone(),
                }),
                Err(e) => {
                    for veth in &veths[..done] {
                        redirect::remove(&mut netlink, veth.index)?;
                    }
                    return Err(e);
                }
            }
        }
        Ok(network)
    })
}

/// Takes away what VMs that are gone left in the network namespace at `netns`, if it is there.
///
/// A VM is gone once nobody has its taps open: QEMU has ended, and the shim closed its own.
///
/// # Errors
/// The kernel's.
pub fn detach(netns: &Path) -> io::Result<()> {
    match within(netns, || clean(&mut Netlink::open()?)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Makes the tap of a veth, and the way from each to the other.
fn connect(netlink: &mut Netlink, links: &[Link], veth: &Link) -> io::Result<OwnedFd> {
    let name = tap::name(veth);
    let named = |e: io::Error| io::Error::new(e.kind(), format!("device {}: {e}", veth.name));
    if links.iter().any(|link| link.name == name) {
        let why = io::Error::new(io::ErrorKind::ResourceBusy, "another VM has its network");
        return Err(named(why));
    }
    redirect::remove(netlink, veth.index).map_err(named)?;
    let fd = tap::open(&name).map_err(named)?;
    let tap = netlink.links()?.into_iter().find(|link| link.name == name);
    let tap = tap.ok_or_else(|| named(io::Error::other(format!("its tap {name} is not there"))))?;
    tap::set_up(netlink, tap.index, veth.mtu).map_err(named)?;
    redirect::add(netlink, tap.index, veth.index).map_err(named)?;
    // Last, so that the veth is taken from its namespace only when all else is done.
    redirect::add(netlink, veth.index, tap.index).map_err(named)?;
    Ok(fd)
}

/// Removes the redirects whose tap is gone.
fn clean(netlink: &mut Netlink) -> io::Result<()> {
    let links = netlink.links()?;
    for veth in links.iter().filter(|link| link.veth) {
        let name = tap::name(veth);
        if !links.iter().any(|link| link.name == name) {
            redirect::remove(netlink, veth.index)?;
        }
    }
    Ok(())
}

/// Does something in the network namespace at `netns`, on a thread that enters it and ends.
fn within<T: Send>(netns: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let named = |e: io::Error| {
        io::Error::new(
            e.kind(),
            format!("network namespace {}: {e}", netns.display()),
        )
    };
    let file = File::open(netns).map_err(named)?;
    let (there, here) = (file.metadata()?, std::fs::metadata("/proc/self/ns/net")?);
    if (there.dev(), there.ino()) == (here.dev(), here.ino()) {
        let why = io::Error::new(io::ErrorKind::InvalidInput, "it is the host's own");
        return Err(named(why));
    }
    let done = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            work()
        });
        thread.join()
    });
    match done {
        Ok(result) => result.map_err(named),
        Err(_) => Err(named(io::Error::other("the thread in it panicked"))),
    }
}
