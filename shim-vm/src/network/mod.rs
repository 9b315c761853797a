// SPDX-License-Identifier: Apache-2.0
//! The container's network, moved into its VM: each veth of its network namespace gets a tap
//! beside it, and every packet that arrives at one leaves by the other.
//!
//! ```text
//!  host                      the container's network namespace            VM
//!  bridge ── veth ── pair ── eth0 ──ingress──> redirect ──> dunnage7 ── fd ── virtio-net
//!                            eth0 <── redirect <──ingress── dunnage7
//! ```
//!
//! Where nobody names a namespace for the container, it has one of its own, and who looks for it
//! finds it as that of the VM's process: Docker does, `ctr run --cni` and hooks, and put a veth
//! there before the container starts. The VM has a device in store for that.
//!
//! The interface in the VM has eth0's MAC address, MTU, addresses, routes and permanent
//! neighbours, so that nobody can tell it from the container itself. eth0 keeps what it has; it
//! hears nothing any more. Whoever makes the namespace, CNI in the field, knows nothing of this.

mod namespace;
mod redirect;
mod tap;
#[cfg(test)]
mod tests;

use netlink::{Kind, Link, Netlink};
use nix::sched::{CloneFlags, setns, unshare};
use protos::guest::{Interface, Neighbour, Route};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

/// Where a container's network is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Where {
    /// With the host's own, of which a VM has no part: it has a loopback device.
    #[default]
    Host,
    /// In a namespace of the container's own.
    Own,
    /// In this one.
    At(PathBuf),
}

impl Where {
    /// The namespace that somebody else has made.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::At(path) => Some(path),
            Self::Host | Self::Own => None,
        }
    }
}

/// What a VM gets of a network namespace.
#[derive(Debug, Default)]
pub struct Network {
    /// One for each of `taps`, in the same order.
    pub interfaces: Vec<Interface>,
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
    pub taps: Vec<Tap>,
    /// The namespace, for the VM's process to be in.
    pub namespace: Option<OwnedFd>,
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

/// The name of the tap in store: none that [`tap::name`] gives, as no device has the index 0.
const SPARE: &str = "dunnage0";
/// Of the device behind it, until it is somebody's.
const SPARE_MAC: &str = "02:64:75:6e:6e:00";

/// What a VM is booted with. Blocks for some milliseconds.
///
/// # Errors
/// Those of [`attach`].
pub fn prepare(wanted: &Where) -> io::Result<Network> {
    match wanted {
        Where::Host => Ok(Network::default()),
        Where::Own => on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let tap = Tap {
                fd: tap::open(SPARE)?,
                mac: SPARE_MAC.into(),
            };
            Ok(Network {
                taps: vec![tap],
                namespace: Some(File::open("/proc/thread-self/ns/net")?.into()),
                ..Network::default()
            })
        }),
        Where::At(netns) => Ok(Network {
            namespace: Some(File::open(netns).map_err(in_namespace(netns))?.into()),
            ..attach(netns)?
        }),
    }
}

/// Whether one device is what a VM is to have, which may be nobody's yet.
///
/// # Errors
/// Those of [`attach`].
pub fn fits_one(wanted: &Where) -> io::Result<bool> {
    match wanted {
        Where::Host | Where::Own => Ok(true),
        Where::At(netns) => within(netns, || Ok(veths(&Netlink::open()?.links()?)?.len() <= 1)),
    }
}

/// What a VM has that was booted with a network of its own, in the namespace at `own`, and is to have
/// `wanted`: its tap in store comes there. Blocks for some milliseconds.
///
/// # Errors
/// Those of [`attach`].
pub fn bring(own: &Path, wanted: &Where) -> io::Result<Network> {
    let Where::At(netns) = wanted else {
        return Ok(Network::default());
    };
    let namespace = File::open(netns).map_err(in_namespace(netns))?;
    let of_veths = |netlink: &mut Netlink| {
        let links = netlink.links()?;
        Ok::<_, io::Error>(veths(&links)?.into_iter().cloned().collect::<Vec<_>>())
    };
    let found = within(netns, || of_veths(&mut Netlink::open()?))?;
    let Some(veth) = found.first() else {
        return Ok(Network {
            namespace: Some(namespace.into()),
            ..Network::default()
        });
    };
    let name = tap::name(veth);
    within(own, || {
        tap::send(&mut Netlink::open()?, SPARE, &namespace, &name)
    })?;
    within(netns, || {
        let mut netlink = Netlink::open()?;
        let mut network = namespace::read(&mut netlink, &[veth])?;
        for interface in &mut network.interfaces {
            interface.device = SPARE_MAC.into();
        }
        redirect_both(&mut netlink, &name, veth)?;
        Ok(Network {
            namespace: Some(namespace.try_clone()?.into()),
            ..network
        })
    })
}

/// Connects the tap in store in the namespace at `netns` to the veth that has come there since;
/// to nothing if none has. Blocks for some milliseconds.
///
/// # Errors
/// If there are several; those of [`attach`].
pub fn join(netns: &Path) -> io::Result<Option<Network>> {
    within(netns, || {
        let mut netlink = Netlink::open()?;
        let links = netlink.links()?;
        let veths = veths(&links)?;
        let veth = match veths[..] {
            [] => return Ok(None),
            [veth] => veth,
            _ => {
                let names: Vec<&str> = veths.iter().map(|veth| &*veth.name).collect();
                let names = names.join(" and ");
                let why = format!("{names}: a VM has room for one that comes after its boot");
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
        };
        let mut network = namespace::read(&mut netlink, &veths)?;
        for interface in &mut network.interfaces {
            interface.device = SPARE_MAC.into();
        }
        redirect_both(&mut netlink, SPARE, veth)?;
        Ok(Some(network))
    })
}

/// Connects a VM to the network namespace at `netns`; to nothing if it has no veth.
///
/// What an earlier VM left there is replaced.
///
/// # Errors
/// If `netns` is not a network namespace, or the host's own; if another VM has its network; if
/// one of its devices has an ingress qdisc of somebody else, or is of a kind that can't be moved
/// into a VM; the kernel's.
fn attach(netns: &Path) -> io::Result<Network> {
    within(netns, || {
        let mut netlink = Netlink::open()?;
        let links = netlink.links()?;
        let veths = veths(&links)?;
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

/// The devices of a namespace whose network a VM takes over.
fn veths(links: &[Link]) -> io::Result<Vec<&Link>> {
    if let Some(link) = links.iter().find(|link| link.kind == Kind::IpVlan) {
        let why = format!("device {}: an ipvlan can't be moved into a VM", link.name);
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    Ok(links.iter().filter(is_veth).collect())
}

/// A macvlan does as well: it has a MAC address of its own too.
fn is_veth(link: &&Link) -> bool {
    matches!(link.kind, Kind::Veth | Kind::MacVlan)
}

/// Makes the tap of a veth, and the way from each to the other.
fn connect(netlink: &mut Netlink, links: &[Link], veth: &Link) -> io::Result<OwnedFd> {
    let name = tap::name(veth);
    let named = |e: io::Error| io::Error::new(e.kind(), format!("device {}: {e}", veth.name));
    if links.iter().any(|link| link.name == name) {
        let why = io::Error::new(io::ErrorKind::ResourceBusy, "another VM has its network");
        return Err(named(why));
    }
    let fd = tap::open(&name).map_err(named)?;
    redirect_both(netlink, &name, veth)?;
    Ok(fd)
}

/// Makes the way from a veth to its tap, and back, anew.
fn redirect_both(netlink: &mut Netlink, tap: &str, veth: &Link) -> io::Result<()> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("device {}: {e}", veth.name));
    let found = netlink.links()?.into_iter().find(|link| link.name == tap);
    let missing = || named(io::Error::other(format!("its tap {tap} is not there")));
    let tap = found.ok_or_else(missing)?;
    for device in [veth.index, tap.index] {
        redirect::remove(netlink, device).map_err(named)?;
    }
    tap::set_up(netlink, tap.index, veth.mtu).map_err(named)?;
    redirect::add(netlink, tap.index, veth.index).map_err(named)?;
    // Last, so that the veth is taken from its namespace only when all else is done.
    redirect::add(netlink, veth.index, tap.index).map_err(named)
}

/// Removes the redirects whose tap is gone.
fn clean(netlink: &mut Netlink) -> io::Result<()> {
    let links = netlink.links()?;
    for veth in links.iter().filter(is_veth) {
        let name = tap::name(veth);
        if !links.iter().any(|link| link.name == name) {
            redirect::remove(netlink, veth.index)?;
        }
    }
    Ok(())
}

/// Does something in the network namespace at `netns`, on a thread that enters it and ends.
fn within<T: Send>(netns: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let named = in_namespace(netns);
    let file = File::open(netns).map_err(&named)?;
    let (there, here) = (file.metadata()?, std::fs::metadata("/proc/self/ns/net")?);
    if (there.dev(), there.ino()) == (here.dev(), here.ino()) {
        let why = io::Error::new(io::ErrorKind::InvalidInput, "it is the host's own");
        return Err(named(why));
    }
    let done = on_a_thread(|| {
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        work()
    });
    done.map_err(named)
}

/// Does something on a thread of its own, which may leave its namespaces.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let done = thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|_| Err(io::Error::other("the thread in it panicked")))
}

fn in_namespace(netns: &Path) -> impl Fn(io::Error) -> io::Error {
    |e| {
        let why = format!("network namespace {}: {e}", netns.display());
        io::Error::new(e.kind(), why)
    }
}
