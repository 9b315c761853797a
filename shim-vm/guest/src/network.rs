// SPDX-License-Identifier: Apache-2.0
//! The VM's network devices, set up as the host says.

use netlink::core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink::route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink::route::link::{LinkAttribute, LinkFlags};
use netlink::route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink::route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink::route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink::{Kind, Link, Netlink, mac_bytes};
use protos::guest::{Interface, Neighbour, Route};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// Gives the devices in this network namespace, found by their MAC addresses, their names,
/// addresses, routes and neighbours, and brings them and the loopback device up.
///
/// # Errors
/// If there is no such device, a value is not what it should be, or the kernel refuses it; the
/// text names the value.
pub fn apply(
    interfaces: &[Interface],
    routes: &[Route],
    neighbours: &[Neighbour],
) -> Result<(), String> {
    let mut netlink = Netlink::open().map_err(|e| format!("netlink: {e}"))?;
    let links = netlink
        .links()
        .map_err(|e| format!("network devices: {e}"))?;
    for lo in links.iter().filter(|link| link.kind == Kind::Loopback) {
        let up = netlink.set_link(lo.index, LinkFlags::Up, LinkFlags::Up, Vec::new());
        up.map_err(|e| format!("device {}: {e}", lo.name))?;
    }
    for interface in interfaces {
        set_up(&mut netlink, &links, interface)
            .map_err(|e| format!("interface {}: {e}", interface.name))?;
    }
    // Their names have changed.
    let links = netlink
        .links()
        .map_err(|e| format!("network devices: {e}"))?;
    for neighbour in neighbours {
        let set = index(&links, &neighbour.interface)
            .and_then(|index| add_neighbour(&mut netlink, index, neighbour));
        set.map_err(|e| format!("neighbour {}: {e}", neighbour.address))?;
    }
    // A gateway must be reachable when its route is made.
    let (near, far): (Vec<_>, Vec<_>) = routes.iter().partition(|route| route.gateway.is_empty());
    for route in near.into_iter().chain(far) {
        let added =
            index(&links, &route.interface).and_then(|index| add_route(&mut netlink, index, route));
        added.map_err(|e| format!("route to {}: {e}", route.destination))?;
    }
    Ok(())
}

/// Takes away what the devices of this network namespace have of a host before; `interfaces` are found
/// by the addresses that they have now.
///
/// # Errors
/// The kernel's.
pub fn begin_anew(interfaces: &mut [Interface]) -> Result<(), String> {
    let begun = || -> io::Result<()> {
        let mut netlink = Netlink::open()?;
        let links = netlink.links()?;
        let mut devices = links.iter().filter(is_device);
        for interface in interfaces {
            if let Some(device) = devices.next() {
                interface.device.clone_from(&device.mac);
            }
        }
        let devices: Vec<u32> = links
            .iter()
            .filter(is_device)
            .map(|link| link.index)
            .collect();
        for message in netlink.dump(Message::GetAddress(AddressMessage::default()))? {
            if let Message::NewAddress(address) = message
                && devices.contains(&address.header.index)
            {
                netlink.change(Message::DelAddress(address), 0)?;
            }
        }
        // With that go its routes and its neighbours.
        for device in devices {
            netlink.set_link(device, LinkFlags::empty(), LinkFlags::Up, Vec::new())?;
        }
        Ok(())
    };
    begun().map_err(|e| format!("network: {e}"))
}

/// It is the machine's, and nothing that a container has made.
fn is_device(link: &&Link) -> bool {
    Path::new("/sys/class/net")
        .join(&link.name)
        .join("device")
        .exists()
}

fn set_up(netlink: &mut Netlink, links: &[Link], interface: &Interface) -> io::Result<()> {
    let (own, other) = (&interface.mac, &interface.device);
    let mac = if other.is_empty() { own } else { other };
    let link = links.iter().find(|link| link.mac == *mac);
    let link = link.ok_or_else(|| invalid(format!("no device has the MAC {mac}")))?;
    let addresses = interface.addresses.iter().map(|text| prefix(text));
    let addresses = addresses.collect::<io::Result<Vec<_>>>()?;
    let mut attributes = Vec::new();
    if link.name != interface.name {
        attributes.push(LinkAttribute::IfName(interface.name.clone()));
    }
    if link.mac != interface.mac {
        attributes.push(LinkAttribute::Address(mac_bytes(&interface.mac)?));
    }
    if interface.mtu != 0 {
        attributes.push(LinkAttribute::Mtu(interface.mtu));
    }
    // It is down, and only then can it be renamed, or have another MAC.
    netlink.set_link(
        link.index,
        LinkFlags::empty(),
        LinkFlags::empty(),
        attributes,
    )?;
    netlink.set_link(link.index, LinkFlags::Up, LinkFlags::Up, Vec::new())?;
    addresses
        .into_iter()
        .try_for_each(|(address, length)| add_address(netlink, link.index, address, length))
}

fn add_address(netlink: &mut Netlink, index: u32, address: IpAddr, length: u8) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = length;
    message.header.index = index;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![
        AddressAttribute::Address(address),
        AddressAttribute::Local(address),
        // The routes come from the host, all of them; and whether the address is taken was asked
        // there: it is usable at once.
        AddressAttribute::Flags(AddressFlags::Noprefixroute | AddressFlags::Nodad),
    ];
    if let IpAddr::V4(own) = address
        && length < 31
    {
        let broadcast = u32::from(own) | u32::MAX.checked_shr(length.into()).unwrap_or(0);
        message
            .attributes
            .push(AddressAttribute::Broadcast(Ipv4Addr::from(broadcast)));
    }
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    netlink.change(Message::NewAddress(message), flags)
}

fn add_route(netlink: &mut Netlink, index: u32, route: &Route) -> io::Result<()> {
    let (destination, length) = prefix(&route.destination)?;
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(destination),
        destination_prefix_length: length,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Oif(index));
    if length > 0 {
        let to = RouteAttribute::Destination(destination.into());
        message.attributes.push(to);
    }
    if !route.gateway.is_empty() {
        let by: RouteAddress = ip(&route.gateway)?.into();
        message.attributes.push(RouteAttribute::Gateway(by));
    } else if destination.is_ipv4() {
        message.header.scope = RouteScope::Link;
    }
    if !route.source.is_empty() {
        let from: RouteAddress = ip(&route.source)?.into();
        message.attributes.push(RouteAttribute::PrefSource(from));
    }
    if route.metric != 0 {
        let metric = RouteAttribute::Priority(route.metric);
        message.attributes.push(metric);
    }
    if route.onlink {
        message.header.flags |= RouteFlags::Onlink;
    }
    match netlink.change(Message::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL) {
        // The kernel made it when the device came up.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

fn add_neighbour(netlink: &mut Netlink, index: u32, neighbour: &Neighbour) -> io::Result<()> {
    let address = ip(&neighbour.address)?;
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }),
        NeighbourAttribute::LinkLayerAddress(mac_bytes(&neighbour.mac)?),
    ];
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    netlink.change(Message::NewNeighbour(message), flags)
}

fn index(links: &[Link], name: &str) -> io::Result<u32> {
    let link = links.iter().find(|link| link.name == name);
    let link = link.ok_or_else(|| invalid(format!("there is no interface \"{name}\"")))?;
    Ok(link.index)
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn ip(text: &str) -> io::Result<IpAddr> {
    text.parse()
        .map_err(|_| invalid(format!("\"{text}\" is not an address")))
}

/// "10.0.0.2/24" as its address and its length.
fn prefix(text: &str) -> io::Result<(IpAddr, u8)> {
    let parts = text.split_once('/');
    let parsed = parts.and_then(|(address, length)| {
        let address: IpAddr = address.parse().ok()?;
        let length: u8 = length.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        (length <= most).then_some((address, length))
    });
    parsed.ok_or_else(|| invalid(format!("\"{text}\" is not an address with a length")))
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests;
