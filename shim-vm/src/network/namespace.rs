// SPDX-License-Identifier: Apache-2.0
//! What the devices of a network namespace have, for the VM to have it too.

use super::Network;
use netlink::route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink::route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink::route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink::route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink::{Link, Netlink, mac};
use protos::guest::{Interface, Neighbour, Route};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Reads what these devices have; the network has neither taps nor a namespace yet.
///
/// # Errors
/// The kernel's.
pub fn read(netlink: &mut Netlink, links: &[&Link]) -> io::Result<Network> {
    let name = |index: u32| {
        let link = links.iter().find(|link| link.index == index);
        link.map(|link| link.name.clone())
    };
    let mut interfaces: Vec<Interface> = links
        .iter()
        .map(|link| Interface {
            name: link.name.clone(),
            mac: link.mac.clone(),
            mtu: link.mtu,
            ..Interface::default()
        })
        .collect();
    for message in netlink.dump(Message::GetAddress(AddressMessage::default()))? {
        let Message::NewAddress(message) = message else {
            continue;
        };
        let place = links
            .iter()
            .position(|link| link.index == message.header.index);
        if let (Some(place), Some(address)) = (place, address(&message)) {
            interfaces[place].addresses.push(address);
        }
    }

    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut every = RouteMessage::default();
        every.header.address_family = family;
        for message in netlink.dump(Message::GetRoute(every))? {
            if let Message::NewRoute(message) = message {
                routes.extend(route(&message, name));
            }
        }
    }

    let mut neighbours = Vec::new();
    for message in netlink.dump(Message::GetNeighbour(NeighbourMessage::default()))? {
        if let Message::NewNeighbour(message) = message {
            neighbours.extend(neighbour(&message, name));
        }
    }
    Ok(Network {
        interfaces,
        routes,
        neighbours,
        ..Network::default()
    })
}

/// "10.0.0.2/24"; none for an address that the VM's kernel makes itself.
fn address(message: &AddressMessage) -> Option<String> {
    let mut found = None;
    let mut permanent = false;
    for attribute in &message.attributes {
        match attribute {
            // With a peer's address in Address, the own one is in Local (rtnetlink(7)).
            AddressAttribute::Local(own) => found = Some(*own),
            AddressAttribute::Address(any) => found = found.or(Some(*any)),
            AddressAttribute::Flags(flags) => permanent = flags.contains(AddressFlags::Permanent),
            _ => {}
        }
    }
    let found = found?;
    let given = match found {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => permanent && !address.is_unicast_link_local(),
    };
    given.then(|| format!("{found}/{}", message.header.prefix_len))
}

/// A route of the main table by one of the devices; none for what the VM's kernel makes itself.
fn route(message: &RouteMessage, name: impl Fn(u32) -> Option<String>) -> Option<Route> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut destination = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let mut route = Route {
        onlink: header.flags.contains(RouteFlags::Onlink),
        ..Route::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(to) => destination = ip(to)?,
            RouteAttribute::Gateway(by) => route.gateway = ip(by)?.to_string(),
            RouteAttribute::PrefSource(from) => route.source = ip(from)?.to_string(),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Oif(index) => route.interface = name(*index)?,
            RouteAttribute::MultiPath(_) => {
                log::warn!("the route to {destination} by several ways is not given to the VM");
                return None;
            }
            _ => {}
        }
    }
    let own = match destination {
        IpAddr::V4(_) => false,
        IpAddr::V6(to) => to.is_unicast_link_local() || header.protocol == RouteProtocol::Ra,
    };
    let wanted = table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && header.kind == RouteType::Unicast
        && !header.flags.contains(RouteFlags::Cloned)
        && !route.interface.is_empty();
    route.destination = format!("{destination}/{}", header.destination_prefix_length);
    (wanted && !own).then_some(route)
}

fn neighbour(
    message: &NeighbourMessage,
    name: impl Fn(u32) -> Option<String>,
) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut neighbour = Neighbour {
        interface: name(message.header.ifindex)?,
        ..Neighbour::default()
    };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                neighbour.address = address.to_string();
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                neighbour.address = address.to_string();
            }
            NeighbourAttribute::LinkLayerAddress(address) => neighbour.mac = mac(address),
            _ => {}
        }
    }
    (!neighbour.address.is_empty() && !neighbour.mac.is_empty()).then_some(neighbour)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
